"""Attribution by gradients: how much of a metric each entry of an activation accounts for.

A gradient sees all points of a network in one backward pass, where patching takes a run for each. The price is exactness: to first
order for gradient × activation and attribution patching, up to the quadrature along a path for integrated gradients. What the attributions
should sum to is kept beside them, and the gap between the two is part of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.circuits.evidence import MIN_INPUTS, partners, relabelled, split_half_agreement
from mechfeat.errors import DtypeError, GradientError, OptionError, SelectorError, ShapeError
from mechfeat.features import Finding, storable
from mechfeat.features.storage import Stored
from mechfeat.hooks import ActivationCache, HookedModel, Patch, hooked

Metric = Callable[[Any], Float[Tensor, " input"]]
Quadrature = Literal["midpoint", "gauss-legendre"]


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution(Stored):
    """Attributions at one or several hook points.

    Attributes:
        values: Hook name → attribution of every entry of the activation, in units of the metric.
        axes: Hook name → axis names.
        metric: The metric at the activations that are explained, for each input.
        difference: Fall of the metric from there to the activations they are compared with, for each input: what the attributions at a
            point that everything passes through sum to, exactly or to first order. None where nothing was compared.
        control: Hook name → the same where the activation comes from the corrupted run of another pair; None where nothing was compared, or
            fewer than six inputs were.
        settings: The options that produced it, by name.
    """

    values: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    metric: Float[Tensor, " input"]
    difference: Float[Tensor, " input"] | None = None
    control: Mapping[str, Tensor] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def total(self, point: str, *over: str) -> Tensor:
        """Attributions summed over axes.

        Args:
            point: Hook name, as in ``values``.
            *over: Axes to sum over; by default all but ``sample``.

        Returns:
            The sums, in units of the metric, with the remaining axes in order.

        Raises:
            SelectorError: The point is not there, or lacks an axis.
        """
        if point not in self.values:
            raise SelectorError(f"{point!r} is not in this attribution, which holds {list(self.values)}.")
        axes = self.axes[point]
        absent = [a for a in over if a not in axes]
        if absent:
            raise SelectorError(f"{point!r} has no axis {absent[0]!r} to sum over; its axes are {axes}.")
        summed = [i for i, a in enumerate(axes) if (a in over if over else a != "sample")]
        return self.values[point].sum(summed) if summed else self.values[point]

    def gap(self, point: str) -> Float[Tensor, " input"]:
        """How far the attributions at a point are from accounting for the difference of the metric.

        Args:
            point: Hook name, as in ``values``.

        Returns:
            Sum of the attributions minus ``difference``, for each input, in units of the metric. For integrated gradients it tends to 0
            with the number of steps; for a first-order attribution it is the part of higher order and what bypasses the point.

        Raises:
            OptionError: Nothing was compared.
        """
        if self.difference is None:
            raise OptionError("gap", point, ("a point of attribution_patching or integrated_gradients, which compare two runs",))
        return self.total(point) - self.difference

    def finding(self, point: str, *over: str, n_null: int = 1000, n_boot: int = 200, seed: int = 0) -> Finding:
        """Whether the largest attribution at a point is more than chance.

        Args:
            point: Hook name, as in ``values``.
            *over: Axes to sum over; by default ``channel``, so that each position is one place.
            n_null: Draws of the null.
            n_boot: Bootstrap draws of inputs for the interval.
            seed: Seed of all draws.

        Returns:
            ``value``: largest absolute mean over inputs of the attribution of a place, in units of the metric; after
            ``attribution_patching`` largest share of the mean difference, dimensionless. ``null``: the same where the sign of each input's
            attribution is drawn at random, and after ``attribution_patching`` also whether it is that of the pair or of ``control``, as in
            :func:`activation_patching`. It tells an attribution that inputs agree on from one that they do not, and not what the network
            has learnt from what any network computes. None below six inputs. ``interval``: bootstrap over inputs of that same place, 95 %.
            ``reliability``: agreement of its value between halves of the inputs, in [-1, 1]; None below four.

        Raises:
            SelectorError: The point is not there, or lacks an axis, or ``sample`` is to be summed over.

        Source:
            Fisher 1935, *The Design of Experiments*, section 21; Westfall and Young 1993, *Resampling-Based Multiple Testing*.

        Example:
            >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
            >>> _ = nn.init.constant_(net[0].weight, 3.0)
            >>> x = 1 + torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
            >>> gradient_times_activation(net, x, lambda y: y[:, 0], "0:in").finding("0:in").established
            True
        """
        axes = over or tuple(a for a in self.axes.get(point, ()) if a == "channel")
        if "sample" in axes:
            raise SelectorError(f"{point!r} cannot be summed over 'sample': inputs are what the evidence is counted in.")
        effects = self._places(self.values, point, axes)
        generator = torch.Generator().manual_seed(seed)
        n = effects.shape[1]
        scale, control = torch.ones_like(effects[0]), None
        if self.control is not None and self.difference is not None:
            scale, control = self.difference.to(effects), self._places(self.control, point, axes)
            control = control / scale.mean()
        scores = effects / scale.mean()
        if control is None:  # without a direction to restore, either sign counts
            scores = scores * torch.where(scores.mean(1, keepdim=True) < 0, -1.0, 1.0)
        means = scores.mean(1)
        best = int(means.argmax())
        drawn = torch.randint(n, (n_boot, n), generator=generator).to(effects.device)
        again = scores[best][drawn].sum(1) / (scale[drawn].sum(1) / scale.mean())
        low, high = again.quantile(torch.tensor([0.025, 0.975]).to(again)).tolist()
        settings = {**self.settings, "point": point, "over": list(axes), "place": best, "n_null": n_null, "n_boot": n_boot, "unit": "input"}
        if n < MIN_INPUTS:
            settings["no null because"] = f"{n} input{'' if n == 1 else 's'}, and a null needs {MIN_INPUTS}"
        return Finding(
            value=float(means[best]),
            n=n,
            seed=seed,
            null=None if n < MIN_INPUTS or n_null < 1 else relabelled(scores, control, n_null, generator),
            reliability=split_half_agreement(scores, scale, generator),
            interval=(low, high),
            settings=settings,
        )

    def _places(self, values: Mapping[str, Tensor], point: str, over: tuple[str, ...]) -> Float[Tensor, "place input"]:
        summed = Attribution(values=values, axes=self.axes, metric=self.metric).total(point, *over) if over else values[point]
        left = [a for a in self.axes[point] if a not in over]
        return summed.movedim(left.index("sample"), -1).flatten(0, -2) if summed.ndim > 1 else summed[None]


def gradient_times_activation(model: nn.Module | HookedModel, x: Any, metric: Metric, points: str | Sequence[str]) -> Attribution:
    r"""Gradient times activation: what the metric would lose, to first order, if an entry were zero.

    .. math:: a_i \, \partial m / \partial a_i

    Args:
        model: The model, in eval mode.
        x: Inputs, as :meth:`HookedModel.run_with_cache` takes them.
        metric: From the model's output to one number an input.
        points: Hook names or globs of floating-point activations. ``":in"`` is the input itself.

    Returns:
        Attributions without a comparison. Exact where the metric is linear in the activation and has no constant part. Raises what
        :meth:`ActivationCache.gradients` raises, and ShapeError where the metric gives no number for each input.

    Source:
        Shrikumar et al. 2016, *Not Just a Black Box: Learning Important Features Through Propagating Activation Differences*.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.constant_(net[0].weight, 3.0)
        >>> gradient_times_activation(net, torch.tensor([[1.0, 2.0]]), lambda y: y[:, 0], "0:in").values["0:in"]
        tensor([[3., 6.]])
    """
    cache, value, gradients = _gradients(hooked(model), x, metric, points)
    return Attribution(
        values={name: cache[name].detach() * g for name, g in gradients.items()},
        axes={name: cache.axes(name) for name in gradients},
        metric=value,
        settings={"method": "gradient times activation"},
    )


def attribution_patching(
    model: nn.Module | HookedModel, clean: Any, corrupted: Any, metric: Metric, points: str | Sequence[str], *, seed: int = 0
) -> Attribution:
    r"""First-order estimate of activation patching, at every point at once.

    .. math:: (a^{clean}_i - a^{corrupted}_i) \, \partial m / \partial a_i \big|_{corrupted}

    estimates how far the metric of the corrupted run rises when the clean entry is patched in.

    Args:
        model: The model, in eval mode.
        clean: Inputs, as :meth:`HookedModel.run_with_cache` takes them.
        corrupted: Inputs of the same shape, in pairs with the clean ones.
        metric: From the model's output to one number an input.
        points: Hook names or globs of floating-point activations.
        seed: Seed of the mismatched pairs of ``control``.

    Returns:
        Attributions with ``metric`` of the clean run and ``difference`` clean minus corrupted. Exact where the metric is linear in the
        activation. Divided by the difference they are the scores that :func:`activation_patching` measures.

    Raises:
        ShapeError: The activations of the two runs differ in shape, or the metric gives no number for each input.

    Cost:
        Two forward passes and one backward pass; holds the activations of all points four times.

    Source:
        Nanda 2023, *Attribution Patching: Activation Patching At Industrial Scale*.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.constant_(net[0].weight, 3.0)
        >>> found = attribution_patching(net, torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), lambda y: y[:, 0], "0:in")
        >>> found.values["0:in"], found.gap("0:in")
        (tensor([[3., 6.]]), tensor([0.]))
    """
    hm = hooked(model)
    cache, corrupted_metric, gradients = _gradients(hm, corrupted, metric, points)
    with torch.no_grad():
        out, source = hm.run_with_cache(clean, list(gradients))
        clean_metric = _per_input(metric(out))
    wrong = [f"{k!r}: {tuple(source[k].shape)} and {tuple(cache[k].shape)}" for k in gradients if source[k].shape != cache[k].shape]
    if wrong:
        raise ShapeError(
            f"Clean and corrupted run have activations of different shapes at {'; '.join(wrong)}. Give inputs of one shape, in pairs."
        )
    axes = {name: cache.axes(name) for name in gradients}
    target = {name: cache[name].detach() for name in gradients}
    n, control = len(clean_metric), None
    if n >= MIN_INPUTS and all("sample" in a and target[name].shape[a.index("sample")] == n for name, a in axes.items()):
        other = partners(n, torch.Generator().manual_seed(seed))
        mismatched = {name: t.index_select(axes[name].index("sample"), other.to(t.device)) for name, t in target.items()}
        control = {name: (mismatched[name] - target[name]) * g for name, g in gradients.items()}
    return Attribution(
        values={name: (source[name] - target[name]) * g for name, g in gradients.items()},
        axes=axes,
        metric=clean_metric,
        difference=clean_metric - corrupted_metric,
        control=control,
        settings={"method": "attribution patching"},
    )


def integrated_gradients(
    model: nn.Module | HookedModel,
    x: Any,
    metric: Metric,
    point: str = ":in",
    *,
    baseline: Tensor | None = None,
    steps: int = 32,
    method: Quadrature = "gauss-legendre",
) -> Attribution:
    r"""Gradients averaged along the straight line from a baseline to the activation.

    .. math:: (a_i - b_i) \int_0^1 \frac{\partial m}{\partial a_i}\big(b + \alpha (a - b)\big) \, d\alpha

    The activation at the point is put in place of what the model computes there, and everything else of the run is left as it is; so the
    attributions of a sample sum to the change of its metric when the baseline is patched in. ``gap`` says how nearly they do.

    Args:
        model: The model, in eval mode.
        x: Inputs, as :meth:`HookedModel.run_with_cache` takes them.
        metric: From the model's output to one number an input.
        point: Hook name of one floating-point activation; the model's input by default. For tokens take the output of the embedding.
        baseline: Activation the path begins at, of the activation's shape or one that expands to it; zeros by default.
        steps: Points on the path.
        method: ``"gauss-legendre"`` is exact for gradients that are polynomials of degree below ``2 * steps`` along the path, and best for
            smooth networks; ``"midpoint"`` has an error in ``1 / steps²`` for smooth ones. Kinks, as of ReLU, cost either its order.

    Returns:
        Attributions with ``metric`` at the activation, and as ``difference`` its fall from there to the baseline.

    Raises:
        OptionError: ``method`` is unknown, ``steps`` is below 1, or the point is not one hook point.
        ShapeError: The baseline does not fit, or the metric gives no number for each input.
        DtypeError: The activation is not of floating point.
        GradientError: The metric does not depend on the activation.

    Cost:
        ``steps`` forward and backward passes, and two forward passes.

    Source:
        Sundararajan et al. 2017, *Axiomatic Attribution for Deep Networks*, equations 1 to 3; at hidden activations Dhamdhere et al. 2019,
        *How Important Is a Neuron?*.

    Example:
        >>> net = nn.Sequential(nn.Identity())
        >>> found = integrated_gradients(net, torch.tensor([[1.0, 2.0]]), lambda y: (y**3).sum(1), steps=2)
        >>> found.values[":in"], found.gap(":in").abs() < 1e-5
        (tensor([[1., 8.]]), tensor([True]))
    """
    if steps < 1:
        raise OptionError("steps", steps, ("a number of points, at least 1",))
    nodes, weights = _quadrature(method, steps)
    hm = hooked(model)
    with torch.no_grad():
        out, cache = hm.run_with_cache(x, point, clone=True)
        value = _per_input(metric(out))
        if len(cache) != 1:
            raise OptionError("point", point, (f"one hook point, such as {next(iter(cache))!r}",))
        name = next(iter(cache))
        a, axes = cache[name], cache.axes(name)
        if not a.is_floating_point():
            raise DtypeError(
                f"{name!r} holds {a.dtype}, which has no gradient. Take a later hook point, such as the output of the embedding."
            )
        b = _baseline(a, baseline, name)
        at_baseline = _per_input(metric(hm.run_with_hooks(x, Patch(name, b))))
    mean = torch.zeros_like(a)
    for alpha, weight in zip(nodes, weights):
        with torch.enable_grad():
            on_path = (b + alpha * (a - b)).requires_grad_()
            found = metric(hm.run_with_hooks(x, Patch(name, on_path)))
            _per_input(found, len(value))
            gradient = torch.autograd.grad(found.sum(), on_path, allow_unused=True)[0] if found.requires_grad else None
        if gradient is None:
            raise GradientError(f"The metric does not depend on {name!r} by a gradient. Take a hook point that it is computed from.")
        mean += weight * gradient
    return Attribution(
        values={name: (a - b) * mean},
        axes={name: axes},
        metric=value,
        difference=value - at_baseline,
        settings={"method": "integrated gradients", "quadrature": method, "steps": steps},
    )


def _gradients(
    hm: HookedModel, x: Any, metric: Metric, points: str | Sequence[str]
) -> tuple[ActivationCache, Float[Tensor, " input"], dict[str, Tensor]]:
    with torch.enable_grad():
        out, cache = hm.run_with_cache(x, points, grad=True)
        value = metric(out)
        # Samples are independent, so the gradient of the sum holds every sample's own gradient.
        return cache, _per_input(value), cache.gradients(value.sum(), names=list(cache))


def _baseline(a: Tensor, baseline: Tensor | None, name: str) -> Tensor:
    if baseline is None:
        return torch.zeros_like(a)
    try:
        return baseline.to(a).expand_as(a)
    except RuntimeError:
        raise ShapeError(
            f"The baseline has shape {tuple(baseline.shape)}, and the activation at {name!r} has {tuple(a.shape)}. Give that shape, or one"
            " that expands to it."
        ) from None


def _quadrature(method: Quadrature, steps: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]; the weights sum to 1."""
    if method == "midpoint":
        return [(i + 0.5) / steps for i in range(steps)], [1 / steps] * steps
    if method == "gauss-legendre":
        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1], where the weights sum to 2
        return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    raise OptionError("method", method, ("midpoint", "gauss-legendre"))


def _per_input(values: Tensor, n: int | None = None) -> Tensor:
    if values.ndim != 1 or (n is not None and len(values) != n):
        raise ShapeError(f"The metric gave shape {tuple(values.shape)}. It must give one number an input, such as logits[:, 3].")
    return values.detach()
