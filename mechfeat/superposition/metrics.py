r"""Measures of superposition, as functions of the feature directions :math:`W`, one row a feature.

A hat is the row at length 1: :math:`\hat W_i = W_i / \|W_i\|`, and the zero row has none: it counts as a feature that
is not represented. Every function takes leading instance axes, is differentiable, and has a finite gradient where rows
are zero. NaN gives NaN, except where a function says otherwise; a ``W`` without a feature or a hidden dimension is a
``ShapeError``.
"""

# i, j feature; h hidden

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import NonFiniteError
from mechfeat.superposition.rows import check_rows, largest, unit_rows


def feature_dimensionality(
    W: Float[Tensor, "*instance feature hidden"],
) -> Float[Tensor, "*instance feature"]:
    r"""Fraction of a hidden dimension that each feature owns.

    .. math:: D_i = \|W_i\|^2 \Big/ \textstyle\sum_j (\hat W_i \cdot W_j)^2

    The capacity :math:`(W_i \cdot W_i)^2 / \sum_j (W_i \cdot W_j)^2` of Scherlis et al. is the same number.

    Real networks: yes; it depends on row lengths, so normalise a dictionary or report both.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [0, 1], dimensionless. A zero row gives 0, and so does a row whose norm is below the square root of
        the dtype's smallest normal number times the largest entry of ``W`` (1e-154 in float64, 1e-19 in float32). The
        sum over features is at most the rank of ``W``. Scale-free: multiplying ``W`` by a constant changes nothing.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*; Scherlis et al. 2022, *Polysemanticity and Capacity in Neural
        Networks*.

    Example:
        >>> feature_dimensionality(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    tiny = torch.finfo(W.dtype).tiny
    W = W / largest(W)[..., None, None]  # squares neither under- nor overflow
    norm_sq = W.square().sum(-1)
    overlap = einsum(unit_rows(W), W, "... i h, ... j h -> ... i j").square().sum(-1)
    # A subnormal norm_sq has lost its digits, and its quotient could be anything up to 2. Dividing by 1 on such rows
    # and on zero rows, rather than masking the quotient, keeps their gradient finite.
    represented = ~(norm_sq < tiny)  # NaN stays in
    return torch.where(represented, norm_sq, 0.0) / torch.where(represented, overlap, 1.0)


def interference(
    W: Float[Tensor, "*instance feature hidden"],
) -> Float[Tensor, "*instance feature"]:
    r"""Squared length of the other features along each feature's direction.

    .. math:: I_i = \textstyle\sum_{j \ne i} (\hat W_i \cdot W_j)^2

    Real networks: yes (decoder rows of a dictionary, filters), on rows of length 1.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values ≥ 0, in squared units of ``W``; for unit rows, 1 is as much as the feature's own squared length. A zero
        row gives 0, since it has no direction to be disturbed along, and adds nothing to the others.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*.

    Example:
        >>> interference(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))
        tensor([1., 1., 0.])
    """
    scale = largest(W)[..., None]
    overlap = einsum(unit_rows(W), W / scale[..., None], "... i h, ... j h -> ... i j")
    # The diagonal is masked before squaring: subtracting it afterwards would lose what is small beside it.
    own = torch.eye(W.shape[-2], dtype=torch.bool, device=W.device)
    return (scale * overlap.masked_fill(own, 0.0).square().sum(-1)) * scale


def feature_norm(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance feature"]:
    r"""Length of each feature's direction; in a toy model near 1 where it is represented, and near 0 where it is not.

    .. math:: \|W_i\|

    Real networks: yes, of decoder and unembedding rows, in their own scale.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values ≥ 0, in units of ``W``; 0 for a zero row.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*.

    Example:
        >>> feature_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    scale = largest(W)
    return (W / scale[..., None, None]).norm(dim=-1) * scale[..., None]


def interference_matrix(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance feature feature"]:
    r"""Signed length of each feature along each other's direction; row i holds what feature i hears.

    .. math:: \hat W_i \cdot W_j

    Real networks: yes; on rows of length 1 it is the matrix of cosines.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in units of ``W``; the diagonal holds the norms, and a zero row gives a row and a column of zeros.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*.

    Example:
        >>> interference_matrix(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        tensor([[ 1., -2.],
                [-1.,  2.]])
    """
    scale = largest(W)[..., None, None]
    return einsum(unit_rows(W), W / scale, "... i h, ... j h -> ... i j") * scale


def capacity(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance feature"]:
    r"""Capacity of each feature: algebraically its dimensionality, under the name of Scherlis et al.

    .. math:: C_i = (W_i \cdot W_i)^2 \Big/ \textstyle\sum_j (W_i \cdot W_j)^2 = D_i

    Real networks: yes, as :func:`feature_dimensionality`.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [0, 1], dimensionless; 0 for a zero row.

    Source:
        Scherlis et al. 2022, *Polysemanticity and Capacity in Neural Networks*, equation 1.

    Example:
        >>> capacity(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    return feature_dimensionality(W)


def features_per_dimension(
    W: Float[Tensor, "*instance feature hidden"],
) -> Float[Tensor, "*instance"]:
    r"""Number of features that a hidden dimension holds, the inverse of the paper's :math:`D^*`.

    .. math:: 1 / D^* = \|W\|_F^2 / m

    It counts features where each is either represented with norm near 1 or not at all; other norms enter with their
    square, so that directions of another scale must be normalised first.

    Real networks: only where norms are near 0 or 1: normalise a dictionary first.

    Args:
        W: Feature directions, one row per feature, in :math:`m` hidden dimensions.

    Returns:
        Values ≥ 0, features per dimension where norms are 0 or 1. Zero rows add nothing.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "The Geometry of Superposition".

    Example:
        >>> features_per_dimension(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        tensor(1.5000)
    """
    check_rows(W)
    # Summed in float32 at least: the sum may overflow where the quotient does not.
    return (W.square().sum((-2, -1), dtype=torch.promote_types(W.dtype, torch.float32)) / W.shape[-1]).to(W.dtype)


def effective_rank(
    W: Float[Tensor, "*instance feature hidden"],
) -> Float[Tensor, "*instance"]:
    r"""Number of equal singular values that would have the entropy of those of ``W``.

    .. math:: \operatorname{erank}(W) = \exp\Big(-\textstyle\sum_k p_k \ln p_k\Big), \qquad
              p_k = \sigma_k / \textstyle\sum_l \sigma_l

    Rows are not centred. Singular values below ``max(feature, hidden) * eps`` times the largest are rounding, and count
    as zero.

    Real networks: yes.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [1, rank of ``W``], dimensionless; 0 for a zero matrix, which the paper leaves out. Scale-free.

    Raises:
        NonFiniteError: ``W`` holds NaN or infinity.

    Source:
        Roy & Vetterli 2007, *The effective rank: a measure of effective dimensionality*.

    Example:
        >>> effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
        tensor(2.)
    """
    if not bool(torch.isfinite(W).all()):
        raise NonFiniteError(
            f"W, of shape {list(W.shape)}, holds NaN or infinity, and its singular values do not exist. `torch.isfinite(W)` shows where."
        )
    # torch has no singular values of 16-bit matrices.
    wide = (W / largest(W)[..., None, None]).to(torch.promote_types(W.dtype, torch.float32))
    sigma = torch.linalg.svdvals(wide)
    rounding = max(W.shape[-2:]) * torch.finfo(wide.dtype).eps * sigma[..., :1]
    kept = sigma > rounding
    total = torch.where(kept, sigma, 0.0).sum(-1, keepdim=True)
    # The slope of p ln p is infinite at 0, so the dropped values enter as p = 1, which adds nothing either.
    p = torch.where(kept, sigma, 1.0) / torch.where(kept, total, 1.0)
    erank = torch.exp(-(p * p.log()).sum(-1))
    return torch.where(total.squeeze(-1) == 0, 0.0, erank).to(W.dtype)


def participation_ratio(
    W: Float[Tensor, "*instance feature hidden"],
) -> Float[Tensor, "*instance"]:
    r"""Number of equal eigenvalues that would have the spread of those of :math:`W^\top W`.

    .. math:: \operatorname{PR}(W) = \Big(\textstyle\sum_k \lambda_k\Big)^2 \Big/ \textstyle\sum_k \lambda_k^2
              = \|W\|_F^4 \big/ \|W^\top W\|_F^2

    The eigenvalues are the squared singular values of ``W``; rows are not centred.

    Real networks: yes, of directions, or of centred activations.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [1, rank of ``W``], dimensionless; 0 for a zero matrix. Scale-free. For ``n`` unit rows it is
        ``n / (1 + mean interference)``.

    Source:
        Gao et al. 2017, *A theory of multineuronal dimensionality, dynamics and measurement*, for covariances.

    Example:
        >>> participation_ratio(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        tensor(1.8000)
    """
    dtype = W.dtype
    # Fourth powers of a few hundred entries overflow in 16 bits.
    W = (W / largest(W)[..., None, None]).to(torch.promote_types(dtype, torch.float32))
    # W Wᵀ and Wᵀ W have the same eigenvalues other than 0; the smaller one is formed.
    gram = W @ W.mT if W.shape[-2] <= W.shape[-1] else W.mT @ W
    total = W.square().sum((-2, -1))
    squares = gram.square().sum((-2, -1))
    return (total.square() / torch.where(squares == 0, 1.0, squares)).to(dtype)
