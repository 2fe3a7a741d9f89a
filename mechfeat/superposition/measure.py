"""A measure of superposition as a finding: its value, what random weights would give, and how far features agree on it.

Many features in few dimensions overlap whatever a network has learned, so a number such as "mean dimensionality 0.4"
says little by itself. The null has the same shape and the same row norms and no arrangement: a network that has
arranged its features differs from it, and on which side says how.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import DegenerateNullError, DtypeError, NonFiniteError, OptionError, ShapeError
from mechfeat.features import FeatureSet, Finding, signal_share, storable
from mechfeat.nulls import random_directions, shuffled_weights
from mechfeat.superposition.frames import frame_potential, mean_squared_overlap, relu_energy
from mechfeat.superposition.jackknife import pseudo_values
from mechfeat.superposition.metrics import (
    effective_rank,
    feature_dimensionality,
    features_per_dimension,
    interference,
    participation_ratio,
)
from mechfeat.superposition.rows import unit_rows

Metric = Literal[
    "features_per_dimension",
    "effective_rank",
    "participation_ratio",
    "mean_dimensionality",
    "mean_interference",
    "mean_squared_overlap",
    "frame_potential",
    "relu_energy",
]
Null = Literal["random_directions", "shuffled_weights"]

METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "features_per_dimension": features_per_dimension,
    "effective_rank": effective_rank,
    "participation_ratio": participation_ratio,
    "mean_dimensionality": lambda rows: feature_dimensionality(rows).mean(),
    "mean_interference": lambda rows: interference(rows).mean(),
    "mean_squared_overlap": mean_squared_overlap,
    "frame_potential": frame_potential,
    "relu_energy": relu_energy,
}
_NULLS = ("random_directions", "shuffled_weights")


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class SuperpositionFinding(Finding):
    """How far the features of one hook point are in superposition, against a null.

    Attributes:
        hook: Hook name; empty where bare weights were measured.
        per_feature: Dimensionality of each feature, in [0, 1], of the rows as they were measured.
        gram: Cosine between each two features, in [-1, 1]; 0 where one of them is a zero row.
    """

    hook: str
    per_feature: Float[Tensor, " feature"]
    gram: Float[Tensor, "feature feature"]


def measure(
    W: FeatureSet | Float[Tensor, "feature hidden"],
    *,
    metric: Metric = "mean_dimensionality",
    null: Null = "random_directions",
    n_null: int = 200,
    n_boot: int = 200,
    seed: int = 0,
) -> SuperpositionFinding:
    r"""A metric of superposition with its null, interval and reliability.

    The metric is taken on rows at length 1, so that the finding is about directions, except that
    ``"features_per_dimension"``, which is ``n / m`` on any unit rows, is about norms: its rows are divided by the
    largest row norm, and it counts features by squared norm, the strongest as 1. Zero rows stay zero, here and in the
    null.

    The null keeps shape and row norms: ``"random_directions"`` replaces every row by a uniform direction,
    ``"shuffled_weights"`` permutes the entries inside each row, which also keeps sparsity and sign. A metric of norms
    is constant under both, so ``"features_per_dimension"`` goes with ``"shuffled_weights"`` alone and then permutes
    entries over the whole matrix: it asks whether norm is concentrated in fewer features than chance would.

    Rows are not resampled with replacement: a copy of a row has overlap 1 with it, where other rows have about
    :math:`1/m`, so that the percentile interval of such a bootstrap can leave out the value itself. Instead, features
    are deleted one at a time (in equal random groups beyond 256 features), which gives pseudo-values and their standard
    error,

    .. math:: \theta^*_g = \theta + (G-1)(\bar\theta_{(\cdot)} - \theta_{(-g)}), \qquad
              \mathrm{SE}^2 = \tfrac{G-1}{G} \textstyle\sum_g (\theta_{(-g)} - \bar\theta_{(\cdot)})^2

    and the interval is the percentile bootstrap of their mean. The shift of the metric with the number of features
    cancels, since every deletion leaves equally many. The largest norm is held fixed.

    Args:
        W: Feature directions, one row per feature: a feature set, or weights. At least two features and two hidden
            dimensions (else ``ShapeError``), floating (``DtypeError``) and finite (``NonFiniteError``).
        metric: What is measured; the functions of this package, ``"mean_…"`` over features.
        null: What it is compared with.
        n_null: Draws of the null. The smallest two-sided p-value is ``2 / (n_null + 1)``.
        n_boot: Draws of the bootstrap over features.
        seed: Seed of every draw, made on the CPU, so that devices agree.

    Returns:
        A two-sided finding. ``value`` is in the unit of the metric (dimensionless on these rows). ``reliability`` is
        ``signal² / (signal² + SE²)`` in [0, 1], signal = value − median of the null, 0 where both vanish: the share of
        the squared difference that is not noise of which features were there. It and ``interval`` are None below three
        features, since deleting one then leaves no pair. Tensors are float64 on the device of ``W``.

    Raises:
        OptionError: ``metric`` or ``null`` is not known.
        DegenerateNullError: The metric is constant under the null.
        ShapeError: A number of draws is not positive.

    Cost:
        ``n_null + min(n, 256)`` evaluations of the metric: O(n² m) time and O(n²) memory each; a singular value
        decomposition for ``"effective_rank"``.

    Source:
        Shao & Tu 1995, *The Jackknife and Bootstrap*, for deleting groups;
        Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 11, for pseudo-values.

    Example:
        >>> angles = torch.arange(5, dtype=torch.float64) * (2 * torch.pi / 5)
        >>> pentagon = torch.stack([angles.cos(), angles.sin()], dim=-1)
        >>> finding = measure(pentagon, n_null=99)
        >>> print(finding.summary())
        value 0.4 | 95 % interval [0.4, 0.4] | n 5 | null median 0.38..., p 0.02 | reliability 1.00 | established
    """
    if metric not in METRICS:
        raise OptionError("metric", metric, tuple(METRICS))
    if null not in _NULLS:
        raise OptionError("null", null, _NULLS)
    if metric == "features_per_dimension" and null == "random_directions":
        raise DegenerateNullError(metric, null, ("shuffled_weights",), "it depends on row norms alone, and random directions keep them")
    if n_null < 1 or n_boot < 1:
        raise ShapeError(f"n_null={n_null} and n_boot={n_boot}: both count draws, and at least one of each is needed.")
    hook, directions = (W.hook, W.directions) if isinstance(W, FeatureSet) else ("", W)
    _check(directions, hook)

    statistic = METRICS[metric]
    generator = torch.Generator().manual_seed(seed)
    # float64 throughout: draws of a null can differ by less than float32 rounding, and a finding is no place for speed.
    rows = _rows(directions.detach().double(), metric)
    value = statistic(rows)
    draws = torch.stack([statistic(_rows(_null_draw(rows, metric, null, generator), metric)) for _ in range(n_null)])
    if n_null > 1 and bool(draws.max() - draws.min() <= 1e-12 * draws.abs().max()):
        other = tuple(o for o in _NULLS if o != null and metric != "features_per_dimension")
        raise DegenerateNullError(metric, null, other, f"{list(rows.shape)} weights like these leave it nothing to vary")

    interval, reliability = None, None
    if len(rows) >= 3:
        pseudo, error = pseudo_values(rows, statistic, value, generator)
        chosen = torch.randint(len(pseudo), (n_boot, len(pseudo)), generator=generator).to(pseudo.device)
        ends = pseudo[chosen].mean(-1).quantile(torch.tensor([0.025, 0.975], dtype=pseudo.dtype, device=pseudo.device))
        interval = (ends[0].item(), ends[1].item())
        reliability = signal_share(value.item(), draws, error)

    unit = unit_rows(rows)
    return SuperpositionFinding(
        value=value.item(),
        n=len(rows),
        seed=seed,
        null=draws,
        reliability=reliability,
        interval=interval,
        settings={"metric": metric, "null": null, "n_null": n_null, "n_boot": n_boot, "unit": "feature"},
        tail="two-sided",
        hook=hook,
        per_feature=feature_dimensionality(rows),
        gram=unit @ unit.mT,
    )


def _check(W: Tensor, hook: str) -> None:
    where = f"W at {hook!r}" if hook else "W"
    if not isinstance(W, Tensor) or not W.is_floating_point():
        found = W.dtype if isinstance(W, Tensor) else type(W).__name__
        raise DtypeError(f"{where} is of {found}. A measure of superposition needs a floating tensor [feature hidden].")
    if W.ndim != 2 or min(W.shape) < 2:
        raise ShapeError(
            f"{where} has shape {list(W.shape)}. A measure of superposition needs [feature hidden] with at least two "
            "of each: one feature overlaps with none, and in one dimension all directions are one. "
            "Measure the instances of a bank one by one."
        )
    if not bool(torch.isfinite(W).all()):
        raise NonFiniteError(f"{where} holds NaN or infinity. `torch.isfinite(W)` shows where.")


def _rows(W: Tensor, metric: str) -> Tensor:
    """The rows that the metric is taken on."""
    if metric != "features_per_dimension":
        return unit_rows(W)
    W = W / W.abs().amax().clamp_min(torch.finfo(W.dtype).tiny)
    return W / W.norm(dim=-1).amax().clamp_min(torch.finfo(W.dtype).tiny)


def _null_draw(rows: Tensor, metric: str, null: str, generator: torch.Generator) -> Tensor:
    if null == "shuffled_weights":
        return shuffled_weights(rows, generator=generator, within="all" if metric == "features_per_dimension" else "unit")
    directions = random_directions(*rows.shape, generator=generator, dtype=rows.dtype, device=rows.device)
    return directions * rows.norm(dim=-1, keepdim=True)
