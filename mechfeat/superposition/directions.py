r"""How many directions: features that share a ray count as one, and what "share" means is an angle.

The number belongs to the angle and the rule as much as to the weights, so that both go with it. Two rules do not depend on
the order of the features: ``"components"`` (rays within the angle are joined, and joins chain) and ``"complete"`` (all rays of
a group are within the angle of each other). ``"greedy"`` is the rule of the FeatureFinding notebooks, in feature order, for
comparison with their numbers; their tolerance of 0.1 in the cosine is 25.8°.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import NonFiniteError, OptionError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.superposition.rows import check_rows, unit_rows

Rule = Literal["components", "complete", "greedy"]
RULES = ("components", "complete", "greedy")
GREEDY_ANGLE = math.degrees(math.acos(0.9))


@storable
@dataclass(frozen=True, eq=False)
class DirectionCurve(Stored):
    """Number of directions at each tolerance.

    Attributes:
        angles: Tolerances, in degrees.
        counts: Directions at each, ``[*instance angle]``.
        rule: How rays were grouped.
    """

    angles: Float[Tensor, " angle"]
    counts: Int[Tensor, "*instance angle"]
    rule: str


def count_directions(
    W: Float[Tensor, "*instance feature hidden"], angle: int | float, *, rule: Rule = "components", min_norm: int | float = 1e-6
) -> Int[Tensor, "*instance"]:
    """Number of directions that the features take up.

    Real networks: yes, as a curve over the angle (:func:`direction_curve`).

    Args:
        W: Feature directions, one row per feature.
        angle: Rays at most this far apart count as one, in degrees.
        rule: ``"components"``, ``"complete"`` (where three rays or more are equally far apart, the grouping may break the tie by
            order), or ``"greedy"``: in feature order, each joins the first group whose first member is within the angle.
        min_norm: Rows shorter than this share of the longest count as not represented.

    Returns:
        Counts from 0 to the number of features.

    Raises:
        OptionError: The angle is outside [0, 180), or the rule is not known.
        NonFiniteError: ``W`` holds NaN or infinity.

    Source:
        The greedy rule: J. Mendel, *FeatureFinding* (2023), ``group_vectors``.

    Example:
        >>> count_directions(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]), 10)
        tensor(2)
    """
    return direction_curve(W, [angle], rule=rule, min_norm=min_norm).counts[..., 0]


def direction_curve(
    W: Float[Tensor, "*instance feature hidden"],
    angles: Sequence[int | float],
    *,
    rule: Rule = "components",
    min_norm: int | float = 1e-6,
) -> DirectionCurve:
    """Number of directions as a function of the tolerance. A plateau is a number that the weights mean.

    Real networks: yes.

    Args:
        W: Feature directions, one row per feature.
        angles: Tolerances, in degrees.
        rule: As for :func:`count_directions`, whose errors it raises.
        min_norm: As there.

    Returns:
        The counts; under ``"components"`` and ``"complete"`` they never rise with the angle.

    Raises:
        OptionError: An angle is outside [0, 180), or the rule is not known.
        NonFiniteError: ``W`` holds NaN or infinity.

    Cost:
        O(n² m + n² log n) time an instance, and some 40 n² bytes.

    Example:
        >>> direction_curve(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]), [1, 10, 179]).counts
        tensor([3, 2, 1])
    """
    check_rows(W)
    if rule not in RULES:
        raise OptionError("rule", rule, RULES)
    wrong = [a for a in angles if not 0 <= a < 180]
    if wrong or not angles:
        raise OptionError("angle", wrong[0] if wrong else list(angles), ("degrees from 0 to below 180",))
    if not bool(torch.isfinite(W).all()):
        raise NonFiniteError(f"W, of shape {list(W.shape)}, holds NaN or infinity, which points nowhere. `torch.isfinite(W)` shows where.")
    flat = W.detach().double().reshape(-1, *W.shape[-2:])
    found = torch.tensor([_counts(w, angles, rule, float(min_norm)) for w in flat], dtype=torch.long).view(len(flat), len(angles))
    counts = found.view(*W.shape[:-2], len(angles)).to(W.device)
    return DirectionCurve(torch.tensor([float(a) for a in angles], dtype=torch.float64), counts, rule)


def group_directions(
    W: Float[Tensor, "feature hidden"], angle: int | float, *, rule: Rule = "components", min_norm: int | float = 1e-6
) -> Int[Tensor, " feature"]:
    """Which direction each feature belongs to.

    Args:
        W: Feature directions, one row per feature.
        angle: As for :func:`count_directions`, whose errors it raises.
        rule: As there.
        min_norm: As there.

    Returns:
        Group of each feature, numbered in the order in which the features first reach them; −1 for a row that is not
        represented.

    Raises:
        OptionError: The angle is outside [0, 180), or the rule is not known.
        NonFiniteError: ``W`` holds NaN or infinity.

    Example:
        >>> group_directions(torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [1.0, 0.1]]), 10)
        tensor([ 0, -1,  1,  0])
    """
    count_directions(W, angle, rule=rule, min_norm=min_norm)  # checks
    rows = W.detach().double()
    alive = _alive(rows, float(min_norm))
    labels = _labels(_angles(rows[alive]), float(angle), rule)
    order: dict[int, int] = {}
    for label in labels:
        order.setdefault(label, len(order))
    groups = torch.full((len(W),), -1, dtype=torch.long, device=W.device)
    groups[alive] = torch.tensor([order[label] for label in labels], dtype=torch.long, device=W.device)
    return groups


def merge_directions(
    W: Float[Tensor, "feature hidden"], angle: int | float, *, rule: Rule = "components", min_norm: int | float = 1e-6
) -> Float[Tensor, "direction hidden"]:
    r"""One row a direction, whose squared length is the sum of its features'.

    A one-hot loss of a ReLU model sees only this sum, so that features on one ray stand for one.

    Args:
        W: Feature directions, one row per feature.
        angle: As for :func:`count_directions`, whose errors it raises.
        rule: As there.
        min_norm: As there.

    Returns:
        Rows along the norm-weighted mean of each group.

    Raises:
        OptionError: The angle is outside [0, 180), or the rule is not known.
        NonFiniteError: ``W`` holds NaN or infinity.

    Example:
        >>> merge_directions(torch.tensor([[3.0, 0.0], [-1.0, 0.0], [4.0, 0.0]]), 10)
        tensor([[ 5.,  0.],
                [-1.,  0.]])
    """
    groups = group_directions(W, angle, rule=rule, min_norm=min_norm)
    n = int(groups.max()) + 1 if len(groups) else 0
    member = torch.nn.functional.one_hot(groups.clamp_min(0), max(n, 1)).to(W) * (groups >= 0).to(W)[:, None]
    length = (member.mT @ W.square().sum(-1)).sqrt()
    return (unit_rows(member.mT @ W) * length[:, None])[:n]


def _alive(rows: Tensor, min_norm: float) -> Tensor:
    norms = (rows / rows.abs().amax().clamp_min(torch.finfo(rows.dtype).tiny)).norm(dim=-1)
    return (norms > 0) & (norms >= min_norm * norms.amax())


def _angles(rows: Tensor) -> Tensor:
    """Angles between rays in degrees, by the half-angle form: the arc cosine loses half the digits near 0."""
    unit = unit_rows(rows)
    # By differences: a distance from a product of matrices would lose the same digits. Nothing larger than the result is held.
    apart, together = (torch.cdist(unit, end, compute_mode="donot_use_mm_for_euclid_dist") for end in (unit, -unit))
    return torch.rad2deg(2 * torch.atan2(apart, together))


def _tree(angles: Tensor, rule: str) -> Any:
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    return linkage(squareform(angles.cpu().numpy(), checks=False), {"components": "single", "complete": "complete"}[rule])


def _counts(W: Tensor, angles: Sequence[int | float], rule: str, min_norm: float) -> list[int]:
    rows = W[_alive(W, min_norm)]
    if len(rows) < 2:
        return [len(rows)] * len(angles)
    apart = _angles(rows)
    if rule == "greedy":
        return [max(_greedy(apart, float(a))) + 1 for a in angles]
    heights = _tree(apart, rule)[:, 2]  # never fall along the tree
    return [len(rows) - int((heights <= a).sum()) for a in angles]


def _labels(apart: Tensor, angle: float, rule: str) -> list[int]:
    from scipy.cluster.hierarchy import fcluster

    if len(apart) < 2:
        return [0] * len(apart)
    if rule == "greedy":
        return _greedy(apart, angle)
    return [int(k) for k in fcluster(_tree(apart, rule), angle, "distance")]


def _greedy(apart: Tensor, angle: float) -> list[int]:
    firsts: list[int] = []
    labels = []
    near = (apart <= angle).tolist()
    for i in range(len(near)):
        group = next((g for g, first in enumerate(firsts) if near[i][first]), len(firsts))
        if group == len(firsts):
            firsts.append(i)
        labels.append(group)
    return labels
