"""Layers with one position each, all at once: every tile of the kernel is written one time, while it is in the cache.

A large kernel is far bigger than the factors that it is made of, so that adding one layer after the other costs more in memory traffic
than in products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels.products import product

TILE = 256  # rows and columns of a tile: 128 and 512 were measured slower
CUDA_TILE = 4096  # there a small tile is over before the next operation has started


@dataclass(frozen=True)
class Single:
    """One layer's factors at its one position.

    Attributes:
        left1: Gradients at the layer's output, first side; None where they are unit vectors, the layer's output being the model's.
        right1: The layer's inputs, first side.
        left2: As ``left1``, second side; the same object for one batch with itself.
        right2: As ``right1``, second side.
    """

    left1: Float[Tensor, "n o c"] | None
    right1: Float[Tensor, "n k"]
    left2: Float[Tensor, "m o c"] | None
    right2: Float[Tensor, "m k"]


def add_singles(kernel: Float[Tensor, "n o m o"], layers: Sequence[Single], *, fresh: bool, same: bool) -> None:
    r"""Add the parts of several layers to a kernel, tile by tile.

    .. math:: Θ_{no,mp} = \sum_ℓ \langle r^ℓ_n, r'^ℓ_m \rangle \langle l^ℓ_{no}, l'^ℓ_{mp} \rangle

    Args:
        kernel: What is added to. For one batch with itself its lower triangle is read, and both are written, equal bit for bit.
        layers: The layers.
        fresh: The kernel holds nothing yet, and is written without being read.
        same: Both sides are one batch.

    Cost:
        ``Σ n m (k + o² c)`` multiply-adds, half for one batch with itself.
    """
    n, o, m, _ = kernel.shape
    if not kernel.numel():
        return
    step = max(1, (CUDA_TILE if kernel.is_cuda else TILE) // o)
    M = kernel.view(n * o, m * o)
    room = kernel.new_empty(min(step, n) * o * min(step, m) * o)
    for i in range(0, n, step):
        a = slice(i, min(i + step, n))
        rows = slice(a.start * o, a.stop * o)
        for j in range(0, a.stop if same else m, step):
            b = slice(j, min(j + step, m))
            columns = slice(b.start * o, b.stop * o)
            S = room[: (rows.stop - rows.start) * (columns.stop - columns.start)].view(rows.stop - rows.start, -1)
            if fresh:
                S.zero_()
            else:
                S.copy_(M[rows, columns])
            for layer in layers:
                _add(S, layer, a, b, o)
            if same and i == j:
                S = S.tril() + S.tril(-1).T
            M[rows, columns] = S
            if same and i != j:
                M[columns, rows] = S.T  # while it is hot


def _add(S: Tensor, layer: Single, a: slice, b: slice, o: int) -> None:
    R1, R2 = layer.right1[a], layer.right2[b]
    if layer.left1 is None or layer.left2 is None:
        if o == 1:
            S += product(R1, R2)
        else:
            S.view(len(R1), o, len(R2), o).diagonal(dim1=1, dim2=3).add_(product(R1, R2)[..., None])
        return
    P, A = product(layer.left1[a].flatten(0, 1), layer.left2[b].flatten(0, 1)), product(R1, R2)
    if o == 1:
        S.addcmul_(P, A)
    else:
        # Repeating along the columns alone leaves long rows to multiply; a stride of zero there would not.
        S.view(len(R1), o, -1).addcmul_(P.view(len(R1), o, -1), A.repeat_interleave(o, 1)[:, None])
