r"""The same question for any network: which of its features, or outputs, will training move next?

The empirical kernel takes the place of the closed form. With :math:`Δθ = J^\top α` the change of parameters that the kernel at the start
predicts, a probe p moves by :math:`J_p\, Δθ`: one backward pass over the training inputs and one forward-mode pass of the probe.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import NonFiniteError, OptionError, ShapeError
from mechfeat.features import FeatureSet, Finding, signal_share, storable
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.ntk.capture import trainable
from mechfeat.ntk.checks import check_input, check_model, check_output
from mechfeat.ntk.dynamics import KernelDynamics
from mechfeat.ntk.dynamics.losses import Loss, Reduction, gradient, targets
from mechfeat.ntk.empirical import empirical_ntk
from mechfeat.ntk.predict.compare import pearson
from mechfeat.ntk.predict.measured import kernel_drift
from mechfeat.ntk.predict.probe import Probe, probe_of
from mechfeat.ntk.predict.regime import DRIFT_LIMIT, Regime, RichRegimeWarning, regime, rich_message
from mechfeat.ntk.tangent import WAYS, pull, verify
from mechfeat.nulls import permuted_labels

Change = dict[str, Tensor]


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class MovementFinding(Finding):
    """How training moves probes of a network, predicted and actual.

    ``value`` is Pearson's correlation of predicted and actual movement over the probes, after the last step.

    Attributes:
        steps: Numbers of steps.
        names: What the probes are called.
        initial: Their values before training.
        predicted: Predicted movement.
        actual: Movement of the network, trained.
        drift: Relative change of the kernel between inputs of the probes and training inputs; None if it was not measured.
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    initial: Float[Tensor, " probe"]
    predicted: Float[Tensor, "step probe"]
    actual: Float[Tensor, "step probe"]
    drift: float | None = None

    @property
    def regime(self) -> Regime:
        """``"kernel regime"`` where the kernel moved by less than 0.1 of its norm, ``"rich"`` where by more, or ``"not measured"``."""
        return regime(self.drift)

    @property
    def relative_errors(self) -> Float[Tensor, " step"]:
        """‖predicted − actual‖ / ‖actual‖ over probes, at each number of steps."""
        return (self.predicted - self.actual).norm(dim=1) / self.actual.norm(dim=1)

    def next(self, k: int = 5) -> list[tuple[str, float, float]]:
        """The probes that are predicted to move furthest.

        Args:
            k: How many.

        Returns:
            Name, predicted and actual movement after the last step, the largest first.
        """
        order = self.predicted[-1].abs().sort(descending=True, stable=True).indices[:k].tolist()
        return [(self.names[i], float(self.predicted[-1, i]), float(self.actual[-1, i])) for i in order]

    def report(self) -> str:
        """All figures as text, the verdict last."""
        moved = "" if self.drift is None else f": the kernel moved by {self.drift:.2g} of its norm (limit {DRIFT_LIMIT:g})"
        rows = [f"{name}: predicted {p:+.4g}, actual {a:+.4g}" for name, p, a in self.next()]
        error = f"relative error {float(self.relative_errors[-1]):.3f} after {self.steps[-1]} steps"
        talk = "cross-talk ± 0: the kernel is this network's own, what its width does is in it"
        return "\n".join([self.summary(), error, talk, *rows, f"{self.regime}{moved}"])

    def __str__(self) -> str:
        return self.report()


def predict_movement(
    model: nn.Module | HookedModel,
    x: Tensor,
    y: Tensor,
    probes: FeatureSet | Tensor,
    *,
    steps: int | Sequence[int],
    lr: int | float,
    loss: Loss = "softmax",
    reduction: Reduction = "mean",
    on: Tensor | None = None,
    positions: str = "mean",
    drift: bool = True,
    n_null: int = 20,
    n_boot: int = 200,
    seed: int = 0,
) -> MovementFinding:
    r"""Predicts which features, tokens or patches training will move next, trains a copy of the network, and compares.

    Args:
        model: The model, in the mode it shall be used in. It is not changed: a copy is trained.
        x: Training inputs.
        y: Targets, as :class:`KernelDynamics` takes them.
        probes: Feature directions at a hook point: a probe is the mean over the inputs ``on``, and over positions, of the activation
            along the unit direction. Or inputs, such as tokens or patches: a probe is an output on one of them.
        steps: Steps of full-batch descent from here, or several numbers of them.
        lr: Learning rate.
        loss: ``"softmax"``, ``"logistic"`` or ``"squared"``.
        reduction: Mean or sum over samples.
        on: Inputs on which feature directions are read; the training inputs by default.
        positions: ``"mean"`` over positions, or ``"each"``: a probe for each direction at each position, which says where.
        drift: Measure how far the kernel has moved after training, on up to 64 inputs.
        n_null: Permutations of the training targets; 0 for no null.
        n_boot: Bootstrap draws of probes.
        seed: Seed of permutations and bootstrap.

    Returns:
        ``value``: Pearson's correlation over probes of predicted and actual movement after the last step; NaN where there is one probe.
        ``null``: the same for predictions from permuted targets. ``interval``: bootstrap over probes, 95 %. ``reliability``: share of
        signal in the distance to the null. ``n``: number of probes. There is no null where all targets are equal.

    Raises:
        OptionError: An option is unknown, or a count out of range.
        ShapeError: The probes do not fit the model, or nothing moves.
        NonFiniteError: Training diverged.

    Warns:
        RichRegimeWarning: The kernel moved by 0.1 of its norm or more.

    What :func:`empirical_ntk`, :class:`KernelDynamics` and the hooked model raise is raised as well.

    Cost:
        One full kernel of ``x``, a forward and backward pass a step, and a few passes a stop and a draw of the null.

    Example:
        >>> import mechfeat as mf
        >>> net = mf.models.mlp([3, 64, 2])
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
        >>> probes = mf.FeatureSet("0", torch.eye(64)[:20])  # 20 hidden neurons
        >>> found = mf.ntk.predict_movement(net, x, y, probes, steps=5, lr=0.01)
        >>> found.predicted.shape, found.value > 0.9
        (torch.Size([1, 20]), True)
    """
    stops = tuple(steps) if isinstance(steps, Sequence) else (steps,)
    if not stops or any(not (isinstance(k, int) and k >= 1) for k in stops):
        raise OptionError("steps", steps, ("a number of steps, at least 1", "several of them"))
    if positions not in ("mean", "each"):
        raise OptionError("positions", positions, ("mean", "each"))
    for option, count in (("n_null", n_null), ("n_boot", n_boot)):
        if count < 0:
            raise OptionError(option, count, ("a number of draws, 0 for none",))
    module = unwrap(model)
    one = next(iter(check_model(module).values()))
    x = check_input(x, "x", one)
    inputs = check_input(
        probes if isinstance(probes, Tensor) else x if on is None else on, "probes" if isinstance(probes, Tensor) else "on", one
    )
    probe = probe_of(module, probes, positions)
    if not _depends(probe, inputs):
        raise ShapeError(
            f"No probe at {_place(probes)!r} depends on a trainable parameter: nothing can move there. Give directions after the first "
            "trained layer."
        )

    with torch.no_grad():
        f0 = check_output(module(x.clone()), len(x), "x").detach()
    theta = empirical_ntk(module, x)
    training = KernelDynamics(theta, y, loss=loss, lr=lr, reduction=reduction, f0=f0)
    push = _pusher(probe, inputs, seed)

    def foretold(alpha: Float[Tensor, "n o"]) -> Tensor:
        return push(pull(module, x, alpha.to(f0)))

    start = probe.read(inputs)
    predicted = torch.stack([foretold(a) for a in training.coefficients(list(stops))])
    trained, actual = _trained(module, x, y, training, probe, inputs, stops)
    actual = actual - start
    if not bool(torch.isfinite(actual).all()):
        raise NonFiniteError(f"A probe is NaN or infinite after {stops[-1]} steps at lr={lr:g}: training diverged.")
    if not bool(actual[-1].any()):
        raise ShapeError(f"No probe has moved after {stops[-1]} steps: there is nothing to predict.")
    moved = kernel_drift(module, trained, inputs, x, n_max=64) if drift else None
    if moved is not None and regime(moved) == "rich":
        warnings.warn(rich_message(moved), RichRegimeWarning, stacklevel=2)

    generator = torch.Generator().manual_seed(seed)
    value, null, interval, reliability = pearson(predicted[-1], actual[-1]), None, None, None
    reason = "n_null is 0" if not n_null else "all targets are equal" if bool((y[0] == y).all()) else None
    if reason is None:
        orders = permuted_labels(torch.arange(len(x)), n_null, generator=generator)
        draws = [foretold(a) for a in _shuffled(training, orders, stops[-1])]
        null = torch.tensor([pearson(d, actual[-1]) for d in draws], dtype=torch.float64)
    if n_boot and len(start) >= 4:
        rows = torch.randint(len(start), (n_boot, len(start)), generator=generator)
        again = torch.tensor([pearson(predicted[-1, r], actual[-1, r]) for r in rows.to(start.device)], dtype=torch.float64)
        again = again[again.isfinite()]
        if len(again) >= 2:
            low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            interval = (low, high)
            reliability = None if null is None or not bool(null.isfinite().all()) else signal_share(value, null, float(again.std()))
    return MovementFinding(
        value=value,
        n=len(start),
        seed=seed,
        null=null,
        reliability=reliability,
        interval=interval,
        settings={
            "loss": loss,
            "lr": float(lr),
            "lr_limit": training.lr_limit,
            "reduction": reduction,
            "n_train": len(x),
            "hook": _place(probes),
            "positions": positions,
            "null": "permuted_labels",
            "n_null": n_null,
            "unit": "probe",
            **({"no null because": reason} if reason else {}),
        },
        steps=stops,
        names=probe.names(len(start), probes),
        initial=start,
        predicted=predicted,
        actual=actual,
        drift=moved,
    )


def _depends(probe: Probe, inputs: Tensor) -> bool:
    with torch.enable_grad():
        values = probe(inputs.clone())
        found = torch.autograd.grad(values.sum(), list(trainable(probe).values()), allow_unused=True) if values.requires_grad else ()
    return any(g is not None for g in found)


def _place(probes: FeatureSet | Tensor) -> str:
    return probes.hook if isinstance(probes, FeatureSet) else "outputs"


def _pusher(probe: Probe, inputs: Tensor, seed: int) -> Callable[[Change], Tensor]:
    """The derivative of the probes along a change of parameters, by a way that was proved on this batch."""
    way = WAYS[verify(probe, inputs, "probes", seed, len(inputs))[1]]
    reached = trainable(probe)

    def push(change: Change) -> Tensor:
        along = {f"inner.{name}": g for name, g in change.items() if f"inner.{name}" in reached}
        return probe.reduce(way(probe, inputs, along))

    return push


def _shuffled(training: KernelDynamics, orders: Int[Tensor, "draw n"], t: int) -> Float[Tensor, "draw n o"]:
    return training._coefficients([t], training._Y[0][orders.to(training.device)])[0]


def _trained(
    module: nn.Module, x: Tensor, y: Tensor, training: KernelDynamics, probe: Probe, inputs: Tensor, stops: Sequence[int]
) -> tuple[nn.Module, Float[Tensor, "step probe"]]:
    """Plain gradient descent of a copy: the network at the last stop that was given, and its probes at all of them."""
    trained = copy.deepcopy(module)
    reading = probe.of(trained)
    Y = targets(y, training.loss, training.n, training.o)
    rate = training.lr / (training.n if training.reduction == "mean" else 1)
    parameters, found = trainable(trained), {}
    for step in range(1, max(stops) + 1):
        with torch.no_grad():
            f = trained(x.clone()).reshape(len(x), -1)
        slopes = pull(trained, x, gradient(f.double(), Y, training.loss).to(f))
        with torch.no_grad():
            for name, p in parameters.items():
                p.sub_(slopes[name], alpha=rate)
        if step in stops:
            found[step] = reading.read(inputs)
        if step == stops[-1]:
            end = trained if step == max(stops) else copy.deepcopy(trained)
    return end, torch.stack([found[k] for k in stops])
