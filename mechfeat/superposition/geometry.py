r"""Polytopes: which known arrangement the features of a toy model have taken.

Features that overlap are joined in a graph. Its components lie in orthogonal subspaces, so that an arrangement is a tegum
product of the components, and each of them can be looked up: an arrangement of :math:`n` equal features that fills :math:`m`
dimensions evenly has dimensionality :math:`m/n` everywhere.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import NonFiniteError, OptionError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.superposition.metrics import feature_dimensionality
from mechfeat.superposition.rows import check_rows, unit_rows

_GON = {3: "triangle", 4: "square", 5: "pentagon", 6: "hexagon", 7: "heptagon", 8: "octagon"}
NAMED_FRACTIONS = {
    "own dimension": 1.0,
    "tetrahedron": 3 / 4,
    "triangle": 2 / 3,
    "digon": 1 / 2,
    "pentagon": 2 / 5,
    "square antiprism": 3 / 8,
}


def _polygon(k: int) -> Tensor:
    angle = torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)
    return torch.stack([angle.cos(), angle.sin()], -1)


def _simplex(m: int) -> Tensor:
    corners = torch.eye(m + 1, dtype=torch.float64) - 1 / (m + 1)
    # The corners sum to zero, so the first m right singular vectors span them.
    rows = corners @ torch.linalg.svd(corners).Vh[:m].T
    return rows / rows.norm(dim=-1, keepdim=True)


def _antiprism() -> Tensor:
    rings = _polygon(8) * math.sqrt(2 / 3)  # every other corner up: two squares turned by 45° against each other
    height = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4) / math.sqrt(3)  # the height at which the frame is tight
    return torch.cat([rings, height[:, None]], -1)


POLYTOPES = (
    "own dimension",
    "digon",
    "triangle",
    "tetrahedron",
    "pentagon",
    "square antiprism",
    "square",
    "hexagon",
    "heptagon",
    "octagon",
    "4-simplex",
)


def polytope(name: str) -> Float[Tensor, "feature hidden"]:
    """Ideal coordinates of a named arrangement.

    Args:
        name: One of ``POLYTOPES``; the square splits into two digons, and is there for comparison.

    Returns:
        Rows of length 1, float64.

    Raises:
        OptionError: The name is not known.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "The Geometry of Superposition".

    Example:
        >>> feature_dimensionality(polytope("square antiprism"))[:2]
        tensor([0.3750, 0.3750], dtype=torch.float64)
    """
    if name not in POLYTOPES:
        raise OptionError("name", name, POLYTOPES)
    if name == "own dimension":
        return torch.ones(1, 1, dtype=torch.float64)
    if name == "digon":
        return torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    if name == "square antiprism":
        return _antiprism()
    if name in ("tetrahedron", "4-simplex"):
        return _simplex({"tetrahedron": 3, "4-simplex": 4}[name])
    return _polygon(next(k for k, known in _GON.items() if known == name))


@storable
@dataclass(frozen=True, eq=False)
class Factor(Stored):
    """A group of features that overlap with each other and with no other.

    Attributes:
        name: The arrangement, or ``"other"``.
        features: Which features.
        n_dimensions: Dimensions that they span.
        dimensionality: Of each, in [0, 1].
    """

    name: str
    features: tuple[int, ...]
    n_dimensions: int
    dimensionality: Float[Tensor, " feature"]


@storable
@dataclass(frozen=True, eq=False)
class FeatureGraph(Stored):
    """Which features overlap, and what they form.

    Attributes:
        W: The directions that the graph was made of.
        edges: Pairs of features, smaller index first.
        cosines: Cosine of each pair, in [-1, 1].
        component: Factor of each feature; −1 for one that is not represented.
        factors: The tegum factors, largest first.
    """

    W: Float[Tensor, "feature hidden"]
    edges: Int[Tensor, "edge 2"]
    cosines: Float[Tensor, " edge"]
    component: Int[Tensor, " feature"]
    factors: tuple[Factor, ...]

    def summary(self) -> str:
        """The arrangement in words, such as ``2 x pentagon + 1 x digon``."""
        names = [f.name for f in self.factors]
        return " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "nothing represented"


def feature_graph(
    W: Float[Tensor, "feature hidden"],
    *,
    threshold: int | float = 0.1,
    min_norm: int | float = 0.1,
    tolerance: int | float = 0.02,
    angle: int | float = 10,
) -> FeatureGraph:
    """Features that overlap, split into tegum factors, each named where it is a known arrangement.

    A factor has a name where number and rank fit, every dimensionality is within ``tolerance`` of the ideal, and the sorted
    angles between its features are within ``angle`` of the ideal ones (a cube and a square antiprism have the same
    dimensionalities).

    Real networks: as a clustering of a dictionary; names are for toy models.

    Args:
        W: Feature directions, one row per feature.
        threshold: Features with a larger absolute cosine are joined.
        min_norm: Rows shorter than this share of the longest count as not represented.
        tolerance: Allowed deviation of a dimensionality.
        angle: Allowed deviation of an angle, in degrees.

    Returns:
        The graph.

    Raises:
        NonFiniteError: ``W`` holds NaN or infinity.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "The Geometry of Superposition".

    Example:
        >>> feature_graph(torch.block_diag(polytope("pentagon"), polytope("digon"))).summary()
        '1 x pentagon + 1 x digon'
    """
    check_rows(W)
    if not bool(torch.isfinite(W).all()):
        raise NonFiniteError(f"W, of shape {list(W.shape)}, holds NaN or infinity, which points nowhere. `torch.isfinite(W)` shows where.")
    norms = (W / W.abs().amax().clamp_min(torch.finfo(W.dtype).tiny)).norm(dim=-1)
    alive = (norms > 0) & (norms >= min_norm * norms.amax())
    unit = unit_rows(W)
    cosine = (unit @ unit.mT).clamp(-1, 1)
    joined = (cosine.abs() > threshold) & alive & alive[:, None]
    edges = joined.triu(1).nonzero()
    component = torch.full((len(W),), -1, dtype=torch.long, device=W.device)
    groups = sorted(_components(joined, alive), key=lambda g: (-len(g), g))
    factors = []
    for k, members in enumerate(groups):
        component[members] = k
        factors.append(_factor(W[members], members, float(tolerance), float(angle)))
    return FeatureGraph(W.detach(), edges, cosine[edges[:, 0], edges[:, 1]].detach(), component, tuple(factors))


def identify(W: Float[Tensor, "feature hidden"], *, tolerance: int | float = 0.02, angle: int | float = 10) -> str:
    """Name of the arrangement of all features together, taken as one factor.

    Args:
        W: Feature directions, one row per feature.
        tolerance: Allowed deviation of a dimensionality.
        angle: Allowed deviation of an angle, in degrees.

    Returns:
        A name of ``POLYTOPES``, or ``"other"``.

    Example:
        >>> identify(polytope("triangle")), identify(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        ('triangle', 'other')
    """
    return _factor(W, list(range(len(W))), float(tolerance), float(angle)).name


def canonicalise(W: Float[Tensor, "feature hidden"], *, threshold: int | float = 0.1) -> Float[Tensor, "feature hidden"]:
    r"""The same arrangement in a fixed position: features in order of their factors, the hidden space turned to fit.

    Features are ordered by factor (largest first), inside a factor by length, and the hidden space is turned so that each
    new feature adds at most one coordinate, with a positive sign (the LQ decomposition). Factors then occupy their own
    coordinates, and any rotation or reflection of ``W`` gives the same result.

    Args:
        W: Feature directions, one row per feature.
        threshold: As for :func:`feature_graph`.

    Returns:
        Rows in the new order, with the overlaps they had; zero rows last. Where fewer dimensions are filled than there are, the
        last columns are 0.

    Raises:
        NonFiniteError: ``W`` holds NaN or infinity.

    Example:
        >>> canonicalise(torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, -2.0]]))
        tensor([[ 2.,  0.],
                [-1.,  0.],
                [ 0.,  3.]])
    """
    graph = feature_graph(W, threshold=threshold, min_norm=0)
    rounding = max(1e-9, 10 * torch.finfo(W.dtype).eps)  # of the largest entry: float32 has no ninth digit
    scale = W.abs().amax().clamp_min(torch.finfo(W.dtype).tiny)
    rank = _ranks((W / scale).norm(dim=-1).tolist(), rounding)
    order = [i for f in graph.factors for i in sorted(f.features, key=lambda i: (rank[i], i))]
    rows = W[order + [i for i in range(len(W)) if i not in set(order)]]
    # A row that the rows before it span adds no coordinate. A plain QR would give it one made of rounding.
    basis: list[Tensor] = []
    out = torch.zeros_like(rows)
    for k, row in enumerate(rows):
        rest = row
        for _ in range(2):  # once more, for what the first pass leaves by rounding
            for q in basis:
                rest = rest - (rest @ q) * q
        if len(basis) < W.shape[1] and rest.norm() > rounding * scale * max(W.shape):
            basis.append(rest / rest.norm())
        if basis:
            out[k, : len(basis)] = torch.stack(basis) @ row
    # What rounding leaves in the coordinates of other factors is 0.
    return torch.where(out.abs() > max(1e-12, 10 * torch.finfo(W.dtype).eps) * scale, out, 0.0)


def _ranks(lengths: list[float], rounding: float) -> list[int]:
    """Place of each length, the longest first; lengths that differ by rounding share one."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    found, rank = [0] * len(lengths), 0
    for before, i in itertools.pairwise(order):
        rank += lengths[before] - lengths[i] > rounding
        found[i] = rank
    return found


def _components(joined: Tensor, alive: Tensor) -> list[list[int]]:
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(joined.cpu().numpy(), directed=False)
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        if bool(alive[i]):
            groups.setdefault(int(label), []).append(i)
    return list(groups.values())


def _factor(W: Tensor, members: list[int], tolerance: float, angle: float) -> Factor:
    rows = W.detach().double()
    D = feature_dimensionality(rows)
    # A direction with a hundredth of the largest singular value is noise of training, not a dimension.
    sigma = torch.linalg.svdvals(unit_rows(rows))
    rank = int((sigma > 0.1 * sigma[0]).sum()) if len(rows) else 0
    name = "other"
    for known in POLYTOPES:
        ideal = polytope(known).to(rows.device)
        fits = ideal.shape == (len(rows), rank)
        if fits and bool(((D - rank / len(rows)).abs() <= tolerance).all()) and _apart(rows, ideal) <= angle:
            name = known
            break
    return Factor(name, tuple(members), rank, D)


def _apart(rows: Tensor, ideal: Tensor) -> float:
    """Largest difference of sorted angles, each feature's own, in degrees."""
    both = []
    for W in (rows, ideal):
        unit = unit_rows(W)
        seen = torch.rad2deg(torch.acos((unit @ unit.mT).clamp(-1, 1))).sort(-1).values
        # Features in the order of their angles: all polytopes here look the same from each corner.
        both.append(seen)
    return float((both[0] - both[1][:1]).abs().max())
