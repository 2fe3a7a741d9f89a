"""Kernels between outputs in three layouts, as blocks of a matrix that share one set of formulas.

``[n o m p]`` couples outputs. ``[n m]`` is one kernel that every output learns by, independently of the others, as at infinite width.
``[n m o]`` is a kernel for each output. A full kernel is one block over samples × outputs, a shared one a block over samples that acts on
each output, and the last is a block for each output.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import DtypeError, NonFiniteError, ShapeError
from mechfeat.ntk.result import NTKResult

Kernel = NTKResult | Float[Tensor, "..."]
FORMS = {4: "[n o m o]", 2: "[n m]", 3: "[n m o]"}
_DENSE = 256  # rows up to which a dense eigenvalue routine is faster than products


def kernel_of(theta: Kernel, what: str) -> Tensor:
    """The kernel, one entry per pair, in a layout that outputs learn by.

    Args:
        theta: A result, or a tensor.
        what: What it is, for messages.

    Returns:
        The tensor; a trace divided by the number of outputs it sums.

    Raises:
        DtypeError: It is no real floating-point tensor.
        ShapeError: It has another number of axes, or none of some axis.
        NonFiniteError: It holds NaN or infinity.
    """
    K = theta
    if isinstance(theta, NTKResult):
        # A trace is a sum over outputs; each of them learns by its own share, taken to be equal.
        K = theta.kernel / theta.settings["n_outputs"] if theta.outputs == "trace" else theta.kernel
    if not isinstance(K, Tensor) or not K.is_floating_point():
        raise DtypeError(
            f"{what} is of {K.dtype if isinstance(K, Tensor) else type(K).__name__}. It must be a floating-point tensor or an NTKResult."
        )
    if K.ndim not in FORMS or not K.numel():
        raise ShapeError(f"{what} has shape {list(K.shape)}. A kernel is [n o m o], or [n m] for outputs that share it, or [n m o].")
    if not bool(torch.isfinite(K).all()):
        raise NonFiniteError(f"{what} holds NaN or infinity.")
    return K


def blocks(K: Float[Tensor, "..."]) -> Float[Tensor, "block row column"]:
    """The kernel as matrices, in float64.

    Args:
        K: In one of the layouts.

    Returns:
        One matrix, or one for each output of ``[n m o]``.
    """
    K = K.detach().double()
    if K.ndim == 4:
        return K.flatten(2).flatten(0, 1)[None]
    return K.permute(2, 0, 1) if K.ndim == 3 else K[None]


def pack(v: Float[Tensor, "draw n o"], ndim: int) -> Float[Tensor, "block row column"]:
    """Vectors over samples and outputs as columns that the blocks multiply.

    Args:
        v: The vectors.
        ndim: Number of axes of the kernel.

    Returns:
        Columns.
    """
    if ndim == 4:
        return v.flatten(1).T[None]
    return v.permute(2, 1, 0) if ndim == 3 else v.permute(1, 0, 2).flatten(1)[None]


def unpack(columns: Float[Tensor, "block row column"], ndim: int, o: int) -> Float[Tensor, "draw n o"]:
    """Undo :func:`pack`.

    Args:
        columns: Columns.
        ndim: Number of axes of the kernel.
        o: Number of outputs.

    Returns:
        The vectors.
    """
    if ndim == 4:
        return columns[0].T.unflatten(1, (-1, o))
    return columns.permute(2, 1, 0) if ndim == 3 else columns[0].unflatten(1, (-1, o)).permute(1, 0, 2)


def times(B: Float[Tensor, "block row column"], v: Float[Tensor, "draw m o"], ndim: int) -> Float[Tensor, "draw n o"]:
    """The kernel times vectors.

    Args:
        B: Blocks of the kernel.
        v: Vectors over its second batch.
        ndim: Number of axes of the kernel.

    Returns:
        Vectors over its first batch.
    """
    return unpack(B @ pack(v, ndim), ndim, v.shape[-1])


def rounding(rows: int, dtype: torch.dtype) -> float:
    """Relative size of eigenvalues that rounding can make of zero.

    Args:
        rows: Size of a block.
        dtype: That the kernel was computed in.

    Returns:
        A multiple of the largest eigenvalue.
    """
    return rows * torch.finfo(dtype).eps


def largest(B: Float[Tensor, "block row row"]) -> float:
    """Largest eigenvalue of all blocks.

    Args:
        B: Symmetric blocks.

    Returns:
        It, to 1e-10 relative.
    """
    if B.shape[-1] <= _DENSE:
        return float(torch.linalg.eigvalsh(B).max())
    from scipy.sparse.linalg import eigsh

    # A fixed random start: one with a meaning, such as all ones, may have no part along the leading eigenvector.
    start = torch.randn(B.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu").numpy()
    found = [
        float(eigsh(block.cpu().numpy(), k=1, which="LA", v0=start, tol=1e-10, return_eigenvectors=False)[0]) if bool(block.any()) else 0.0
        for block in B
    ]
    return max(found)


def check_symmetric(B: Float[Tensor, "block row column"], dtype: torch.dtype) -> None:
    """Check that blocks are those of a kernel of a batch with itself.

    Args:
        B: Blocks.
        dtype: That the kernel was computed in.

    Raises:
        ShapeError: They are not square, not symmetric, or have a negative eigenvalue.
    """
    if B.shape[1] != B.shape[2]:
        raise ShapeError(
            f"theta has {B.shape[1]} rows and {B.shape[2]} columns. Training needs the kernel of the training batch with itself; "
            "one between test and training inputs goes to at(t, cross)."
        )
    size = float(B.abs().max())
    if float((B - B.mT).abs().max()) > 100 * torch.finfo(dtype).eps * size:
        raise ShapeError(
            "theta differs from its transpose. Training needs the kernel of the training batch with itself, computed without x2."
        )
    # An exact test of definiteness costs a third of a multiplication; eigenvalues are found only where it fails.
    slack = 10 * rounding(B.shape[1], dtype)
    shift = slack * B.diagonal(dim1=1, dim2=2).abs().amax()
    if size and bool(torch.linalg.cholesky_ex(B + shift * torch.eye(B.shape[1], dtype=B.dtype, device=B.device))[1].any()):
        values = torch.linalg.eigvalsh(B)
        if float(values.min()) < -slack * float(values.abs().max()):
            raise ShapeError(
                f"theta has the eigenvalue {float(values.min()):.3g}, and {float(values.max()):.3g} at most. A tangent kernel has none "
                "below zero, and training by it would run away. Was it centred, rounded, or put together of parts?"
            )
