r"""Measures of activations: how many features are in use, and how well a unit tells concepts apart.

Rows are samples. In a convolution each position is a sample (``cache.samples(name)`` lays them out so), which sums
feature activations over space.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import ShapeError


def effective_features(A: Float[Tensor, "*instance sample feature"]) -> Float[Tensor, "*instance"]:
    r"""Number of equally used features that would have the entropy of these.

    .. math:: F = \exp\Big(-\textstyle\sum_j p_j \ln p_j\Big), \qquad p_j \propto \textstyle\sum_s |A_{sj}|

    Real networks: yes, of the feature activations of a dictionary. It depends on the size and the sparsity of the
    dictionary, so report it over several.

    Args:
        A: Activation of each feature on each sample.

    Returns:
        Values in [1, n], features; 0 where nothing is active.

    Raises:
        ShapeError: There is no sample or no feature.

    Source:
        Bereska et al. 2025, *Superposition as Lossy Compression*.

    Example:
        >>> effective_features(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-1.0, 0.0, 0.0]]))
        tensor(2.)
    """
    _check_samples(A)
    used = A.abs()
    # Divided by the largest first: a sum of many large activations would overflow.
    used = (used / used.amax((-2, -1), keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)).mean(-2)
    total = used.sum(-1, keepdim=True)
    p = torch.where(used == 0, 1.0, used) / torch.where((used == 0) | (total == 0), 1.0, total)  # p = 1 adds nothing
    found = torch.exp(-(p * p.log()).sum(-1))
    return torch.where(total.squeeze(-1) == 0, 0.0, found)


def superposition_ratio(A: Float[Tensor, "*instance sample feature"], n_dimensions: int) -> Float[Tensor, "*instance"]:
    r"""Effective features over dimensions, :math:`\psi = F / N`; above 1 the layer holds more features than it has neurons.

    Real networks: yes, with the care that :func:`effective_features` asks for.

    Args:
        A: Activation of each feature on each sample.
        n_dimensions: Neurons or channels :math:`N` of the layer that the features live in.

    Returns:
        Values in [0, n / N], features per dimension.

    Raises:
        ShapeError: There is no sample, no feature or no dimension.

    Source:
        Bereska et al. 2025, *Superposition as Lossy Compression*.

    Example:
        >>> superposition_ratio(torch.eye(6), 2).round(decimals=4)
        tensor(3.)
    """
    if n_dimensions < 1:
        raise ShapeError(f"n_dimensions={n_dimensions}. Give the number of neurons or channels of the layer, at least 1.")
    return effective_features(A) / n_dimensions


def concept_separability(A: Float[Tensor, "sample unit"], labels: Int[Tensor, " sample"], *, bins: int = 16) -> Float[Tensor, " unit"]:
    r"""Jensen–Shannon distance between the distributions of a unit's activation, one a concept.

    .. math:: \sqrt{\frac{1}{\ln K} \Big( H\big(\tfrac1K \textstyle\sum_c P_c\big) - \tfrac1K \sum_c H(P_c) \Big)}

    Distributions are histograms of ranks, over bins with equally many samples each (equal values share their middle rank). With few samples
    a bin the distance is too large: compare with the same under permuted labels, as
    :func:`~mechfeat.superposition.superposition_report` does.

    Real networks: yes, for neurons and for features of a dictionary.

    Args:
        A: Activation of each unit on each sample.
        labels: Concept of each sample, any integers; concepts weigh equally, whatever their number of samples.
        bins: Bins of the histogram, at least 2.

    Returns:
        Values in [0, 1], dimensionless: 0 where all concepts look alike (a constant unit included), 1 where no two share
        a bin. With two concepts it is the Jensen–Shannon distance to base 2.

    Raises:
        ShapeError: Labels and samples differ in number, there are fewer than two concepts, or fewer than two bins.

    Source:
        Lin 1991, *Divergence measures based on the Shannon entropy*; Endres & Schindelin 2003, *A new metric for probability
        distributions*, for the root.

    Example:
        >>> A = torch.tensor([[0.0, 1.0], [0.1, 1.0], [5.0, 1.0], [6.0, 1.0]])
        >>> concept_separability(A, torch.tensor([0, 0, 1, 1]), bins=4)
        tensor([1., 0.])
    """
    _check_samples(A)
    if labels.shape != A.shape[:1]:
        raise ShapeError(f"{len(labels)} labels for {len(A)} samples. Give one concept a sample.")
    concepts, concept = labels.unique(return_inverse=True)
    if len(concepts) < 2 or bins < 2:
        raise ShapeError(f"{len(concepts)} concepts and bins={bins}. Separability compares at least two concepts over at least two bins.")
    place = _bin(A, bins)  # [unit sample]
    k = len(concepts)
    flat = (torch.arange(len(place), device=A.device)[:, None] * k + concept) * bins + place
    counts = torch.bincount(flat.flatten(), minlength=len(place) * k * bins).view(-1, k, bins).to(A.dtype)
    P = counts / counts.sum(-1, keepdim=True)
    divergence = _entropy(P.mean(1)) - _entropy(P).mean(1)
    return (divergence / math.log(k)).clamp(0, 1).sqrt() + 0.0  # no negative zero


def _bin(A: Tensor, bins: int) -> Tensor:
    """Bin of each entry, ``[unit sample]``, by its middle rank: all zeros of a rectified unit fall into one bin, and leave the others."""
    columns = A.mT.contiguous()
    ordered = columns.sort(-1).values
    below, upto = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    return (below + upto) * bins // (2 * A.shape[0])


def _entropy(P: Tensor) -> Tensor:
    return -torch.special.xlogy(P, P).sum(-1)


def _check_samples(A: Tensor) -> None:
    if A.ndim < 2 or 0 in A.shape[-2:]:
        raise ShapeError(f"A has shape {list(A.shape)}. Activations are [sample feature], with at least one of each.")
