"""Activation patching: which activations of a clean run, put into a corrupted run, bring the clean answer back.

Every patch is an intervention of its own. Several share a forward pass: the corrupted inputs are repeated along the sample axis, and
each copy gets its own patch. That the copies do not disturb each other is checked on a copy that is left alone.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.circuits.evidence import MIN_INPUTS, partners, relabelled, split_half_agreement
from mechfeat.errors import CircuitError, OptionError, SampleInteractionError, SelectorError, ShapeError
from mechfeat.features import Finding, storable
from mechfeat.hooks import ActivationCache, HookedModel, Replace, hooked
from mechfeat.hooks.values import leaves, substitute

Metric = Callable[[Any], Float[Tensor, " input"]]
Each = Literal["each"]
_NOT_POSITIONS = ("sample", "channel", "head")


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class PatchingFinding(Finding):
    """What each patch restores.

    Attributes:
        points: Hook names, one a row of the grid.
        axes: Names of the axes of the grid: ``"point"``, then the axes that were swept.
        metrics: The metric for each patch and each pair of inputs, in its own units.
        clean: The metric of the clean run, for each input.
        corrupted: The metric of the corrupted run, for each input.
        control: The metric for each patch where the activation comes from the corrupted run of another pair; None without a null.
    """

    points: tuple[str, ...]
    axes: tuple[str, ...]
    metrics: Float[Tensor, "point *place input"]
    clean: Float[Tensor, " input"]
    corrupted: Float[Tensor, " input"]
    control: Float[Tensor, "point *place input"] | None = None

    @property
    def scores(self) -> Float[Tensor, "*grid"]:
        r"""Share of the difference that a patch restores: 0 as in the corrupted run, 1 as in the clean one, dimensionless.

        .. math:: \frac{\bar m_{patched} - \bar m_{corrupted}}{\bar m_{clean} - \bar m_{corrupted}}

        with means over the inputs. It may lie outside [0, 1].
        """
        return _score(self.metrics, self.clean, self.corrupted)

    @property
    def p_values(self) -> Float[Tensor, "*grid"] | None:
        """For each patch, the share of the null at least as large as its score, in (0, 1]: paid for looking at all of them. None without"
        " a null.
        """
        if self.null is None:
            return None
        scores = self.scores
        return (1 + (~(self.null < scores[..., None])).sum(-1)).to(scores) / (1 + len(self.null))

    def summary(self) -> str:
        """One line: value, interval, n, null, reliability, verdict, and why there is no null where there is none."""
        reason = self.settings.get("no null because")
        return super().summary() + (f" ({reason})" if reason else "")

    def strongest(self, k: int = 5) -> list[tuple[str, tuple[int, ...], float]]:
        """The patches that restore most.

        Args:
            k: At most this many.

        Returns:
            Hook name, place on the swept axes and score, largest first.
        """
        scores = self.scores
        top = scores.flatten().topk(min(k, scores.numel()))
        places = [tuple(int(i) for i in torch.unravel_index(i, scores.shape)) for i in top.indices]
        return [(self.points[p[0]], p[1:], float(v)) for p, v in zip(places, top.values)]


def activation_patching(
    model: nn.Module | HookedModel,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    points: str | Sequence[str],
    *,
    positions: Each | None = None,
    heads: Each | None = None,
    batch: int = 64,
    n_null: int = 1000,
    n_boot: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> PatchingFinding:
    """Puts activations of a clean run into a corrupted run, one at a time, and measures what comes back.

    Args:
        model: The model, in eval mode. Samples are on the first axis of its inputs and outputs.
        clean: Inputs, as :meth:`HookedModel.run_with_cache` takes them.
        corrupted: Inputs of the same shape; the i-th is the counterpart of the i-th clean one. Tensors in it whose first axis has as many
            entries as there are inputs are repeated to share a pass.
        metric: From the model's output to one number an input, such as the difference of two logits. It is called on the outputs
            of all inputs, in order.
        points: Hook names or globs.
        positions: ``"each"`` patches every position on its own (for images every height and width); None all of them together.
        heads: ``"each"`` patches every head on its own, where the activation has a ``head`` axis.
        batch: Inputs a forward pass may hold; at least one copy of ``corrupted`` is always run, two in the first pass.
        n_null: Draws of the null; 0 saves its forward passes.
        n_boot: Bootstrap draws of inputs for the interval.
        seed: Seed of the mismatched pairs, of the null, of the bootstrap and of the halves for the reliability.
        progress: Show a progress bar.

    Returns:
        ``value``: the largest score, dimensionless. ``interval``: bootstrap over inputs of the score of that same patch, 95 %.
        ``null``: the largest score over all patches where nothing is to be found: where each input's effect could as well have the other
        sign, or as well be that of a control, the activation at the same place in the corrupted run of another pair; the larger of the two.
        The control tells what a clean activation restores from what any other activation does. None below six inputs, where too few
        labellings exist to reach p = 0.05; ``summary`` says so. ``reliability``: agreement, between halves of the inputs, of the score of
        the patch that is strongest in one of them, in [-1, 1]; None below four inputs. ``n``: number of inputs.

    Raises:
        CircuitError: Clean and corrupted run do not differ in the metric, so nothing can be restored.
        ShapeError: The activations of the two runs differ in shape, or the metric gives no number for each input.
        SelectorError: A swept axis is missing, or differs in size between points.
        SampleInteractionError: The output for one sample depends on the others, so patches cannot share a pass.
        OptionError: ``positions`` or ``heads`` is neither None nor "each", or ``batch`` is below 1.

    Cost:
        Two runs, and ``2 · points · places · inputs / batch`` forward passes of ``batch`` inputs, half of them with ``n_null=0``; holds the
        activations of all points in both runs.

    Source:
        Vig et al. 2020, *Causal Mediation Analysis for Interpreting Neural NLP*; Meng et al. 2022, *Locating and Editing Factual
        Associations in GPT*. The null is a permutation test in pairs (Fisher 1935, *The Design of Experiments*), over the largest of all
        scores.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> found = activation_patching(net, torch.ones(4, 2), -torch.ones(4, 2), lambda y: y[:, 0], ["0", "1"])
        >>> found.axes, found.scores
        (('point',), tensor([1., 1.]))
    """
    from tqdm.auto import tqdm

    for option, found in (("positions", positions), ("heads", heads)):
        if found not in (None, "each"):
            raise OptionError(option, found, (None, "each"))
    if batch < 1:
        raise OptionError("batch", batch, ("a number of inputs, at least 1",))
    if n_null < 0:
        raise OptionError("n_null", n_null, ("a number of draws, 0 for no null",))
    hm = hooked(model)
    with torch.no_grad():
        out, source = hm.run_with_cache(clean, points)
        clean_metric = _per_input(metric(out))
        n = len(clean_metric)
        out, target = hm.run_with_cache(corrupted, list(source))
        corrupted_metric = _per_input(metric(out), n)
        _check_pair(source, target, clean_metric, corrupted_metric)
        swept, sizes = _swept(source, positions == "each", heads == "each", n)
        patches = [(name, place) for name in source for place in itertools.product(*map(range, sizes))]
        axes = {name: source.axes(name) for name in source}
        generator = torch.Generator().manual_seed(seed)
        reason = _no_null(n, n_null)
        other = None if reason else partners(n, generator)
        tolerance = _tolerance(clean_metric, corrupted_metric, _rounding(source))
        with tqdm(total=len(patches) * (1 if other is None else 2), desc="patches", unit="patch", disable=not progress) as bar:

            def run(values: Mapping[str, Tensor], check: bool) -> Tensor:
                rows = _patched(
                    hm, corrupted, values, axes, patches, swept, metric, max(1, batch // max(n, 1)), corrupted_metric, tolerance, check, bar
                )
                return torch.stack(rows).view(len(source), *sizes, n)

            metrics = run(source, True)
            control = None if other is None else run(_mismatched(target, axes, other), False)
    difference = (clean_metric - corrupted_metric).mean()
    effects = (metrics - corrupted_metric).view(-1, n)
    null = None
    if control is not None:
        swapped = (control - corrupted_metric).view(-1, n)
        null = relabelled(effects / difference, swapped / difference, n_null, generator, floor=tolerance / float(difference.abs()))
    scores = _score(metrics, clean_metric, corrupted_metric)
    best = metrics.view(-1, n)[int(scores.flatten().argmax())]
    drawn = torch.randint(n, (n_boot, n), generator=generator, device="cpu").to(best.device)
    again = torch.stack([_score(best[r], clean_metric[r], corrupted_metric[r]) for r in drawn])
    low, high = again.quantile(torch.tensor([0.025, 0.975]).to(again)).tolist()
    return PatchingFinding(
        value=float(scores.max()),
        n=n,
        seed=seed,
        null=null,
        reliability=split_half_agreement(effects, clean_metric - corrupted_metric, generator),
        interval=(low, high),
        settings={
            "statistic": "largest score",
            "positions": positions,
            "heads": heads,
            "batch": batch,
            "n_null": n_null,
            "n_boot": n_boot,
            "unit": "input",
            **({"no null because": reason} if reason else {}),
        },
        points=tuple(source),
        axes=("point", *swept),
        metrics=metrics,
        clean=clean_metric,
        corrupted=corrupted_metric,
        control=control,
    )


def _no_null(n: int, n_null: int) -> str | None:
    if n_null == 0:
        return "n_null is 0"
    if n < MIN_INPUTS:
        return f"{n} pair{'' if n == 1 else 's'} of inputs, and a null needs {MIN_INPUTS}"
    return None


def _mismatched(target: ActivationCache, axes: Mapping[str, tuple[str, ...]], other: Tensor) -> dict[str, Tensor]:
    return {name: target[name].index_select(axes[name].index("sample"), other.to(target[name].device)) for name in target}


def _patched(
    hm: HookedModel,
    corrupted: Any,
    values: Mapping[str, Tensor],
    axes: Mapping[str, tuple[str, ...]],
    patches: Sequence[tuple[str, tuple[int, ...]]],
    swept: tuple[str, ...],
    metric: Metric,
    copies: int,
    alone: Float[Tensor, " input"],
    tolerance: float,
    check: bool,
    bar: Any,
) -> list[Tensor]:
    """The metric under each patch, several patches a pass; with ``check`` the first pass also holds a copy that is left alone."""
    n, rows = len(alone), list[Tensor]()
    while len(rows) < len(patches):
        first = check and not rows
        chosen = patches[len(rows) : len(rows) + (max(1, copies - 1) if first else copies)]
        out = hm.run_with_hooks(_repeated(corrupted, n, len(chosen) + first), *_edits(values, axes, chosen, swept, n))
        parts = [_per_input(metric(part), n) for part in _split(out, n, len(chosen) + first)]
        if first:
            _check_alone(parts.pop(), alone, tolerance)
        rows += parts
        bar.update(len(parts))
    return rows


def _score(metrics: Float[Tensor, "*patch input"], clean: Float[Tensor, " input"], corrupted: Float[Tensor, " input"]) -> Tensor:
    return (metrics - corrupted).mean(-1) / (clean - corrupted).mean()


def _check_pair(source: ActivationCache, target: ActivationCache, clean: Tensor, corrupted: Tensor) -> None:
    wrong = [f"{k!r}: {tuple(source[k].shape)} and {tuple(target[k].shape)}" for k in source if source[k].shape != target[k].shape]
    if wrong:
        raise ShapeError(
            f"Clean and corrupted run have activations of different shapes at {'; '.join(wrong)}. Give inputs of one shape, in pairs."
        )
    if not bool((clean - corrupted).mean().abs() > 0):
        raise CircuitError(
            f"The metric is {float(clean.mean()):.6g} in the clean and {float(corrupted.mean()):.6g} in the corrupted run, so there is"
            " nothing to restore. Give inputs, or a metric, that differ."
        )


def _swept(source: ActivationCache, positions: bool, heads: bool, n: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and sizes of the axes of the grid, the same at every point."""
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for name in source:
        axes = dict(zip(source.axes(name), source[name].shape))
        places = tuple((a, s) for a, s in axes.items() if a not in _NOT_POSITIONS)
        if "sample" not in axes or (positions and not places) or (heads and "head" not in axes):
            missing = "sample" if "sample" not in axes else "head" if heads and "head" not in axes else "position"
            raise SelectorError(
                f"{name!r} has no {missing} axis to patch along: its axes are {axes}. Leave it out, or name its axes:"
                " HookedModel(net, axes=...)."
            )
        if axes["sample"] != n:
            raise ShapeError(f"The metric gave {n} numbers, and {name!r} holds {axes['sample']} samples. It must give one number an input.")
        found[name] = (*(places if positions else ()), *((("head", axes["head"]),) if heads else ()))
    if len(set(found.values())) > 1:
        rows = "; ".join(f"{name!r}: {dict(grid)}" for name, grid in found.items())
        raise SelectorError(f"The points have different axes to patch along, which make no grid: {rows}. Ask for them in separate calls.")
    grid = next(iter(found.values()))
    return tuple(a for a, _ in grid), tuple(s for _, s in grid)


def _edits(
    values: Mapping[str, Tensor],
    axes: Mapping[str, tuple[str, ...]],
    chosen: Sequence[tuple[str, tuple[int, ...]]],
    swept: tuple[str, ...],
    n: int,
) -> Iterator[Replace]:
    """One edit a point, which patches each copy of the inputs at its own place.

    Yields:
        Edits, in order of the points.
    """
    for name in dict.fromkeys(name for name, _ in chosen):
        mine = [(copy, place) for copy, (at, place) in enumerate(chosen) if at == name]
        yield Replace(name, _patch(values[name], axes[name], mine, swept, n))


def _patch(
    clean: Tensor, axes: tuple[str, ...], mine: Sequence[tuple[int, tuple[int, ...]]], swept: tuple[str, ...], n: int
) -> Callable[[Tensor], Tensor]:
    order = tuple(axes.index(a) for a in ("sample", *swept))
    all_rows: Any = slice(None)

    def patched(x: Tensor) -> Tensor:
        y = x.clone()
        into, out_of = y.movedim(order, tuple(range(len(order)))), clean.movedim(order, tuple(range(len(order))))
        for copy, place in mine:
            into[copy * n : (copy + 1) * n][(all_rows, *place)] = out_of[(all_rows, *place)]
        return y

    return patched


def _repeated(x: Any, n: int, copies: int) -> Any:
    """The inputs several times over; tensors whose first axis does not count the inputs stay as they are."""
    if isinstance(x, Mapping) and not isinstance(x, dict):
        x = dict(x)
    new = {
        place: part.repeat(copies, *[1] * (part.ndim - 1))
        for place, part in leaves(x, "in")
        if isinstance(part, Tensor) and part.ndim and part.shape[0] == n
    }
    return substitute(x, new, "in")


def _split(out: Any, n: int, copies: int) -> Iterator[Any]:
    """The output of a pass over several copies, one output a copy.

    Yields:
        Outputs of the model's own type.
    """
    parts = [(place, part) for place, part in leaves(out, "out") if isinstance(part, Tensor) and part.ndim and part.shape[0] == n * copies]
    for copy in range(copies):
        yield substitute(out, {place: part[copy * n : (copy + 1) * n] for place, part in parts}, "out")


def _tolerance(clean: Tensor, corrupted: Tensor, eps: float) -> float:
    """How far a metric may be off by the rounding of another batch size."""
    # A difference of logits rounds with the logits, which may be much larger; what counts is the share of the effect.
    return max(min(1e3 * eps, 0.05) * float(corrupted.abs().amax()), eps**0.5 * float((clean - corrupted).mean().abs()))


def _check_alone(found: Tensor, corrupted: Tensor, tolerance: float) -> None:
    """A copy that was not patched must answer as the corrupted run did, up to rounding."""
    gap = float((found - corrupted).abs().amax())
    if not gap <= tolerance:
        raise SampleInteractionError(
            f"An unpatched copy of the corrupted inputs gives a metric that is {gap:.3g} away from that of the corrupted run: the output"
            " for one sample depends on the other samples of the batch, or on random numbers, so patches cannot share a pass."
            " Call model.eval()."
        )


def _rounding(source: ActivationCache) -> float:
    """Machine precision of the coarsest floating-point activation: a metric in float32 may come from a network in bfloat16."""
    return max((torch.finfo(v.dtype).eps for v in source.values() if v.is_floating_point()), default=torch.finfo(torch.float32).eps)


def _per_input(values: Tensor, n: int | None = None) -> Tensor:
    if values.ndim != 1 or (n is not None and len(values) != n):
        raise ShapeError(
            f"The metric gave shape {tuple(values.shape)}{'' if n is None else f' for {n} inputs'}. "
            "It must give one number an input, such as logits[:, 3]."
        )
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))  # quantiles need at least float32
