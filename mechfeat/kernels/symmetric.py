"""Products of which one triangle is enough: a kernel of a batch with itself equals its transpose.

Torch has no symmetric matrix product. Bands of rows against the columns up to the diagonal cost little more than half of the whole.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels.layout import Outputs
from mechfeat.kernels.products import product, quick

PIECE = 4096  # longest sum in one float32 product: longer ones lose digits, and shorter ones are no faster


def band(n: int, lower: bool) -> int:
    """How many rows to multiply at a time.

    Args:
        n: Number of rows.
        lower: Only the lower triangle is wanted.

    Returns:
        Rows of a band.
    """
    # Narrower bands waste less above the diagonal, wider ones multiply faster: measured best between 64 and 256 rows.
    return min(256, max(64, -(-n // 64) * 16)) if lower else 256


def bands(n: int, lower: bool) -> Iterator[tuple[int, int, int]]:
    """Bands of rows of a matrix.

    Args:
        n: Number of rows.
        lower: Only the lower triangle is wanted.

    Yields:
        First row, end of the rows, end of the columns; -1 for all columns.
    """
    if not lower:
        if n:
            yield 0, n, -1
        return
    step = band(n, lower)
    for i in range(0, n, step):
        yield i, min(i + step, n), min(i + step, n)


def area(n: int, m: int, lower: bool) -> int:
    """Entries that :func:`bands` computes.

    Args:
        n: Rows.
        m: Columns.
        lower: Only the lower triangle is wanted.

    Returns:
        The number of entries.
    """
    return sum((j - i) * (m if end < 0 else end) for i, j, end in bands(n, lower))


def add_product(M: Float[Tensor, "row column"], A: Float[Tensor, "row k"], B: Float[Tensor, "column k"], *, lower: bool) -> None:
    """Add ``A Bᵀ`` to a matrix, in sums that are short enough for float32.

    Args:
        M: What is added to; it may be wider than the factors (float64 for float32), and then takes each sum exactly.
        A: Left factor.
        B: Right factor; ``A`` itself where only the lower triangle is wanted.
        lower: Leave out what lies above the diagonal bands.
    """
    k = A.shape[1]
    if M.dtype != A.dtype and len(A) <= 64 and k > PIECE and not quick(A, B):
        whole = k // PIECE * PIECE
        pieces = [x[:, :whole].unflatten(1, (-1, PIECE)).transpose(0, 1) for x in (A, B)]
        M += torch.bmm(pieces[0], pieces[1].mT).sum(0, dtype=M.dtype)
        A, B = A[:, whole:], B[:, whole:]
    for i, j, end in bands(len(A), lower):
        end = len(B) if end < 0 else end
        a, b = A[i:j], B[:end]
        if quick(a, b):
            M[i:j, :end] += product(a, b)
            continue
        for q in range(0, A.shape[1], PIECE):
            part, other = a[:, q : q + PIECE], b[:, q : q + PIECE].T
            if M.dtype == A.dtype:
                M[i:j, :end].addmm_(part, other)
            else:
                M[i:j, :end] += part @ other


def mirror(kernel: Tensor, outputs: Outputs) -> None:
    """Copy the lower triangle to the upper: two orders of one sum differ in their last bits, and a kernel equals its transpose.

    Args:
        kernel: Changed in place.
        outputs: What it keeps of the outputs.
    """
    if outputs == "full":
        size = kernel.shape[0] * kernel.shape[1]
        stack = [kernel.view(size, size)]
    else:
        stack = [kernel] if outputs == "trace" else list(kernel.unbind(-1))
    tile = 512
    for M in stack:
        for i in range(0, len(M), tile):
            d = M[i : i + tile, i : i + tile]
            d.copy_(d.tril() + d.tril(-1).T)
            for j in range(0, i, tile):  # a tile is transposed in the cache; a whole column of them is not
                M[j : j + tile, i : i + tile].copy_(M[i : i + tile, j : j + tile].T)
