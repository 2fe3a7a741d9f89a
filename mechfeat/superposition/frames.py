r"""Frames: how far directions are from the best arrangement that their number allows.

All measures here are of the cosines :math:`\hat W_i \cdot \hat W_j`, so that lengths do not enter. A zero row is a feature
that is not represented: it has cosine 0 with every other and is not counted in :math:`n`. Every function takes leading
instance axes and says at "Real networks" where else it applies.
"""

# i, j feature

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.superposition.rows import check_rows, unit_rows


def coherence(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    r"""Largest absolute cosine between two features.

    .. math:: \mu(W) = \max_{i \ne j} |\hat W_i \cdot \hat W_j|

    Real networks: yes, for any set of directions. It is a statement about the worst pair alone.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [0, 1], dimensionless; 0 with fewer than two represented features.

    Source:
        Welch 1974, *Lower bounds on the maximum cross correlation of signals*.

    Example:
        >>> coherence(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))
        tensor(1.)
    """
    return _cosines(W).abs().amax((-2, -1))


def welch_bound(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    r"""The smallest coherence that as many directions in as many dimensions can have.

    .. math:: \mu(W) \ge \sqrt{\frac{n - m}{m (n - 1)}}

    Real networks: yes.

    Args:
        W: Feature directions; only the number :math:`n` of rows other than 0 and the number :math:`m` of columns enter.

    Returns:
        Values in [0, 1), dimensionless; 0 where :math:`n \le m`, since orthogonal directions exist then.

    Source:
        Welch 1974, *Lower bounds on the maximum cross correlation of signals*.

    Example:
        >>> welch_bound(torch.eye(3)[:, :2] + 1)
        tensor(0.5000)
    """
    n, m = _represented(W), W.shape[-1]
    # (n - 1) is at least 1 wherever n > m, and the quotient is not used elsewhere.
    return torch.where(n > m, (n - m).clamp_min(0) / (m * (n - 1).clamp_min(1)), 0.0).sqrt().to(W.dtype)


def welch_gap(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    r"""Coherence over the smallest possible one: 1 where every two features overlap equally little (an equiangular tight frame).

    Real networks: yes.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values ≥ 1, dimensionless. Where the bound is 0 (no more features than dimensions): 1 for orthogonal directions,
        infinity for others.

    Source:
        Welch 1974; Strohmer & Heath 2003, *Grassmannian frames with applications to coding and communication*.

    Example:
        >>> simplex = torch.eye(4) - 0.25  # in the three dimensions that it spans
        >>> welch_gap(simplex @ torch.linalg.svd(simplex).Vh[:3].T)
        tensor(1.0000)
    """
    found, bound = coherence(W), welch_bound(W)
    degenerate = torch.where(found > 0, torch.inf, 1.0).to(found.dtype)
    quotient = found / torch.where(bound > 0, bound, 1.0)
    return torch.where(bound > 0, quotient, torch.where(found.isnan(), found, degenerate))


def frame_potential(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    r"""Summed squared cosines over the least that they can be.

    .. math:: \frac{\sum_{ij} (\hat W_i \cdot \hat W_j)^2}{\max(n^2 / m,\; n)}

    Real networks: yes.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values ≥ 1, dimensionless: 1 for a tight frame, and for orthogonal directions where there are at most as many as
        dimensions. At most ``min(n, m)``, where all are parallel. 0 for a zero matrix.

    Source:
        Benedetto & Fickus 2003, *Finite normalized tight frames*, theorem 6.2.

    Example:
        >>> frame_potential(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))
        tensor(1.1111)
    """
    n = _represented(W)
    least = torch.maximum(n * n / W.shape[-1], n)
    return ((_summed(_cosines(W).square()) + n) / torch.where(n == 0, 1.0, least)).to(W.dtype)


def tightness(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    r"""Smallest over largest eigenvalue of :math:`\hat W^\top \hat W`: how evenly the directions fill the space.

    Real networks: yes.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [0, 1], dimensionless: 1 for a tight frame, 0 where a dimension is not reached, and for a zero matrix.

    Source:
        Benedetto & Fickus 2003, *Finite normalized tight frames*; the inverse is the ratio of the frame bounds.

    Example:
        >>> tightness(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))
        tensor(0.5000)
    """
    check_rows(W)
    unit = unit_rows(W).to(torch.promote_types(W.dtype, torch.float32))  # torch has no eigenvalues of 16-bit matrices
    values = torch.linalg.eigvalsh(unit.mT @ unit)
    low, high = values[..., 0], values[..., -1]
    # What rounding alone puts below or above 0 is 0: a dimension that is not reached.
    rounding = max(W.shape[-2:]) * torch.finfo(values.dtype).eps * high
    return torch.where(low > rounding, low / torch.where(high > 0, high, 1.0), 0.0).to(W.dtype)


def relu_energy(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    r"""Squared positive cosines, summed over ordered pairs: the overlap that a rectified reader cannot ignore.

    .. math:: E(W) = \textstyle\sum_{i \ne j} \operatorname{ReLU}(\hat W_i \cdot \hat W_j)^2

    It is the energy of the Thomson-like problem that a tied ReLU model on one-hot inputs solves: with :math:`k` equal
    directions that model recovers :math:`k / (1 + E / k)` features.

    Real networks: yes, where what reads the features is rectified; opposite directions count as free.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [0, n (n − 1)], dimensionless. Zero rows add nothing.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "The Geometry of Superposition".

    Example:
        >>> relu_energy(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]))
        tensor(1.0000)
    """
    return _summed(torch.relu(_cosines(W)).square()).to(W.dtype)


def mean_squared_overlap(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    r"""Mean squared cosine between two represented features; :math:`1/m` for random directions in :math:`m` dimensions.

    .. math:: \frac{1}{n (n-1)} \textstyle\sum_{i \ne j} (\hat W_i \cdot \hat W_j)^2

    Real networks: yes (token embeddings, dictionaries).

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [0, 1], dimensionless; at least ``(n − m) / (m (n − 1))``. 0 with fewer than two represented features.

    Source:
        Liu et al. 2025, *Superposition Yields Robust Neural Scaling*.

    Example:
        >>> mean_squared_overlap(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))
        tensor(0.3333)
    """
    n = _represented(W)
    return (_summed(_cosines(W).square()) / (n * (n - 1)).clamp_min(1)).to(W.dtype)


def _cosines(W: Tensor) -> Tensor:
    """Cosines between features, 0 with itself and with a zero row."""
    check_rows(W)
    unit = unit_rows(W)
    own = torch.eye(W.shape[-2], dtype=torch.bool, device=W.device)
    return (unit @ unit.mT).masked_fill(own, 0.0).clamp(-1, 1)


def _summed(squares: Tensor) -> Tensor:
    """Sum over pairs, in float32 at least: in 16 bits it overflows beyond some hundred features."""
    return squares.sum((-2, -1), dtype=torch.promote_types(squares.dtype, torch.float32))


def _represented(W: Tensor) -> Tensor:
    """Number of rows other than 0, in float32 at least; a row with NaN counts."""
    check_rows(W)
    return (W != 0).any(-1).sum(-1).to(torch.promote_types(W.dtype, torch.float32))
