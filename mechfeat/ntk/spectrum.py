"""What a kernel's eigenvalues and its agreement with labels say about learning.

Gradient descent on squared loss learns the component of the labels along an eigenvector at the rate of its eigenvalue. How many directions
matter is an effective rank; how well the leading ones point at the labels is an alignment.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechfeat.errors import DegenerateNullError, DtypeError, NonFiniteError, ShapeError
from mechfeat.features import Finding, signal_share, storable
from mechfeat.features.storage import Stored
from mechfeat.ntk.result import NTKResult
from mechfeat.nulls import permuted_labels

_MAX_GROUPS = 256


@storable
@dataclass(frozen=True, eq=False)
class Spectrum(Stored):
    """Eigenvalues of a kernel of a batch with itself, and numbers made of them.

    Eigenvalues up to ``rows · eps`` times the largest, negative ones among them, are rounding and count as zero.

    Attributes:
        eigenvalues: Largest first, as computed, in float64.
        rounding: What counts as zero.
    """

    eigenvalues: Float[Tensor, " eigenvalue"]
    rounding: float

    @property
    def rank(self) -> int:
        """Number of eigenvalues beyond rounding."""
        return int((self.eigenvalues > self.rounding).sum())

    @property
    def effective_rank(self) -> float:
        r"""Number of equal eigenvalues that would have the entropy of these, in [1, rank]; 0 for a zero kernel.

        .. math:: \exp\Big(-\sum_k p_k \ln p_k\Big), \qquad p_k = λ_k / \textstyle\sum_l λ_l

        Source:
            Roy & Vetterli 2007, *The effective rank: a measure of effective dimensionality*.
        """
        kept = self._kept()
        p = kept / kept.sum()
        return float(torch.exp(-(p * p.log()).sum())) if len(kept) else 0.0

    @property
    def participation_ratio(self) -> float:
        r"""Number of equal eigenvalues that would have the spread of these, in [1, rank]; 0 for a zero kernel.

        .. math:: \Big(\sum_k λ_k\Big)^2 \Big/ \sum_k λ_k^2

        At most the effective rank: it weighs the largest eigenvalues more.

        Source:
            Gao et al. 2017, *A theory of multineuronal dimensionality, dynamics and measurement*.
        """
        kept = self._kept()
        return float((kept / kept[0]).sum() ** 2 / (kept / kept[0]).square().sum()) if len(kept) else 0.0

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue, at least 1; infinite for a singular kernel, where the smallest is rounding.

        The slowest direction takes this many times as long to learn as the fastest.
        """
        return float(self.eigenvalues[0] / self.eigenvalues[-1]) if self.rank == len(self.eigenvalues) else math.inf

    def _kept(self) -> Tensor:
        return self.eigenvalues[self.eigenvalues > self.rounding]


def spectrum(theta: NTKResult | Float[Tensor, "row row"]) -> Spectrum:
    """Eigenvalues of a kernel of a batch with itself, with effective ranks and condition number.

    Args:
        theta: A result with outputs ``full`` or ``trace``, or a symmetric matrix.

    Returns:
        The spectrum. It is a property of this kernel, without randomness, and so no finding.

    Raises:
        ShapeError: It is not square, not symmetric, empty, or one matrix for each output.
        DtypeError: It is not floating-point.
        NonFiniteError: It holds NaN or infinity.

    Cost:
        O(rows³) time.

    Example:
        >>> found = spectrum(torch.diag(torch.tensor([4.0, 2.0, 2.0, 0.0])))
        >>> found.rank, round(found.effective_rank, 4), round(found.participation_ratio, 4), found.condition_number
        (3, 2.8284, 2.6667, inf)
    """
    K = theta.matrix() if isinstance(theta, NTKResult) else theta
    _check(K, "A spectrum")
    scale = float(K.abs().max()) or 1.0
    eigenvalues = torch.linalg.eigvalsh(K.double() / scale).flip(0) * scale
    # Rounding is that of the dtype the kernel was computed in, whatever its eigenvalues are computed in.
    return Spectrum(eigenvalues, len(K) * torch.finfo(K.dtype).eps * float(eigenvalues.abs().max()))


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class AlignmentFinding(Finding):
    """How far a kernel agrees with labels, against labels in random order.

    Attributes:
        influence: What the alignment loses without each sample; negative where a sample lowers it.
    """

    influence: Float[Tensor, " sample"]


def label_alignment(
    theta: NTKResult | Float[Tensor, "n n"],
    y: Int[Tensor, " n"] | Bool[Tensor, " n"] | Float[Tensor, " n"] | Float[Tensor, "n target"],
    *,
    centred: bool = True,
    n_null: int = 200,
    seed: int = 0,
) -> AlignmentFinding:
    r"""Kernel-target alignment: the cosine between a kernel over samples and that of their labels.

    .. math:: A = \frac{\langle K, Y \rangle}{\|K\| \, \|Y\|}, \qquad Y = y y^\top

    with Frobenius products, for one-hot rows y where labels are integers or truth values. Centred, both matrices are multiplied from each
    side by :math:`H = I - 1 1^\top / n`; otherwise a constant part of the kernel, which says nothing about labels, dominates the value.

    The null permutes the labels. The interval and the standard error behind the reliability are the jackknife's over samples; the
    alignment is a function of pairs of samples, and drawing samples with replacement would pair copies.

    Args:
        theta: A result with outputs ``trace``, or ``full`` or ``diagonal``, which are summed over equal outputs; or a symmetric matrix
            over samples.
        y: A label for each sample, or real targets.
        centred: Centre both matrices.
        n_null: Permutations.
        seed: Seed of the permutations.

    Returns:
        A finding of the value, in [-1, 1] (at least 0 for positive semi-definite kernels), dimensionless. ``interval`` is the value ± 1.96
        standard errors, within [-1, 1]. Interval and reliability are None below four samples.

    Raises:
        ShapeError: The kernel is not one over samples of one batch, ``y`` has another number of samples, there are fewer than three, or
            no permutation is asked for.
        DtypeError: The kernel is not floating-point, or labels are complex.
        NonFiniteError: Something holds NaN or infinity.
        DegenerateNullError: All labels are equal, or the kernel vanishes once centred: permuting changes nothing.

    Cost:
        O(n² (n_null + min(n, 256)) targets) time.

    Source:
        Cristianini et al. 2001, *On kernel-target alignment*; Cortes, Mohri & Rostamizadeh 2012, *Algorithms for learning kernels based on
        centered alignment*, for centring; Shao & Tu 1995, *The Jackknife and Bootstrap*.

    Example:
        >>> y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> found = label_alignment(F.one_hot(y) @ F.one_hot(y).T * 1.0, y)
        >>> round(found.value, 6)
        1.0
    """
    K = _over_samples(theta) if isinstance(theta, NTKResult) else theta
    _check(K, "An alignment")
    n = len(K)
    if not isinstance(y, Tensor) or y.is_complex():
        raise DtypeError(
            f"y is of {y.dtype if isinstance(y, Tensor) else type(y).__name__}. Labels are integers, truth values or real targets."
        )
    if y.ndim not in (1, 2) or len(y) != n or (y.ndim == 2 and not y.is_floating_point()):
        raise ShapeError(
            f"y has shape {list(y.shape)} and dtype {y.dtype}. A kernel over {n} samples needs labels [{n}], or real targets [{n}, k]."
        )
    if n < 3 or n_null < 1:
        raise ShapeError(f"n={n} samples and n_null={n_null}. Permuting labels takes at least three samples and one permutation.")
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        raise NonFiniteError("y holds NaN or infinity.")
    K = K.double() / (float(K.abs().max()) or 1.0)
    Y = y.double().reshape(n, -1) if y.is_floating_point() else F.one_hot(y.unique(return_inverse=True)[1]).double()
    Y = Y.to(K.device) / (float(Y.abs().max()) or 1.0)
    if bool(Y.eq(Y[0]).all()):
        raise DegenerateNullError("label_alignment", "permuted_labels", (), "all labels are equal")

    kernel = _centred(K) if centred else K
    if float(kernel.norm()) <= n * torch.finfo(K.dtype).eps * float(K.norm()):
        raise DegenerateNullError("label_alignment", "permuted_labels", (), "the kernel is zero, up to rounding and centring")
    value = _alignment(K, Y, centred)
    generator = torch.Generator().manual_seed(seed)
    orders = permuted_labels(torch.arange(n, device="cpu"), n_null, generator=generator).to(K.device)
    norm = _gram_norm(Y, centred) * kernel.norm()
    null = torch.stack([((kernel @ Y[order]) * Y[order]).sum() / norm for order in orders])

    size = -(-n // _MAX_GROUPS)
    groups = torch.randperm(n, generator=generator, device="cpu")[: n // size * size].view(-1, size).to(K.device)
    influence = torch.full((n,), math.nan, dtype=torch.float64, device=K.device)
    interval, reliability = None, None
    if n >= 4:
        without = []
        for group in groups:
            keep = torch.ones(n, dtype=torch.bool, device=K.device)
            keep[group] = False
            without.append(_alignment(K[keep][:, keep], Y[keep], centred))
            influence[group] = (value - without[-1]) / size
        left = torch.stack(without)
        g = len(left)
        error = float(((g - 1) / g * (left - left.mean()).square().sum()).sqrt())
        if math.isfinite(error):  # NaN where leaving out one sample leaves labels that are all equal
            interval = (max(-1.0, float(value) - 1.96 * error), min(1.0, float(value) + 1.96 * error))
            reliability = signal_share(float(value), null, error)
    settings = {"centred": centred, "null": "permuted_labels", "n_null": n_null, "unit": "sample", "n_targets": Y.shape[1]}
    return AlignmentFinding(
        value=float(value), n=n, seed=seed, null=null, reliability=reliability, interval=interval, settings=settings, influence=influence
    )


def _alignment(K: Float[Tensor, "n n"], Y: Float[Tensor, "n target"], centred: bool) -> Float[Tensor, ""]:
    if centred:
        K = _centred(K)
    return ((K @ Y) * Y).sum() / (K.norm() * _gram_norm(Y, centred))


def _gram_norm(Y: Float[Tensor, "n target"], centred: bool) -> Float[Tensor, ""]:
    """‖Y Yᵀ‖, through the smaller Yᵀ Y."""
    Y = Y - Y.mean(0) if centred else Y
    return (Y.T @ Y).norm()


def _centred(K: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()


def _over_samples(result: NTKResult) -> Tensor:
    if result.outputs == "full":
        return result.kernel.diagonal(dim1=1, dim2=3).sum(-1)
    return result.kernel.sum(-1) if result.outputs == "diagonal" else result.kernel


def _check(K: Tensor, what: str) -> None:
    if not isinstance(K, Tensor) or not K.is_floating_point():
        raise DtypeError(f"{what} needs a floating kernel; this is of {K.dtype if isinstance(K, Tensor) else type(K).__name__}.")
    if K.ndim != 2 or K.shape[0] != K.shape[1] or not K.numel():
        raise ShapeError(f"{what} needs a square kernel of a batch with itself; this one is {tuple(K.shape)}.")
    if not bool(torch.isfinite(K).all()):
        raise NonFiniteError(f"{what} needs finite numbers; this kernel holds NaN or infinity.")
    # A kernel of empirical_ntk equals its transpose bit for bit; one from elsewhere may differ by rounding.
    if float((K - K.T).abs().max()) > 100 * torch.finfo(K.dtype).eps * float(K.abs().max()):
        raise ShapeError(f"{what} needs a kernel of a batch with itself; this one differs from its transpose. Compute it without x2.")
