"""Layers with one position each, all in one launch: a tile of the kernel stays in registers while every layer is added to it."""

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels.tiles import Single
from mechfeat.kernels.triton.launch import Block, alike, fastest, precision

BLOCKS: tuple[Block, ...] = ((32, 16, 4), (64, 16, 8), (128, 16, 16))
INTERPRETED: Block = (16, 16, 1)
PAD = 16  # a layer's columns are filled with zeros up to a multiple of this, so that a sum needs no mask
SLICE = 2048  # rows that a tile size is timed on


@triton.jit
@no_type_check  # what a kernel is traced with are no tensors
def _single(
    M, A1, G1, A2, G2, K, C, rows, columns, O, sum_k, sum_c, n_layers,
    FRESH: tl.constexpr, SAME: tl.constexpr, B: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Entries, and with many outputs factors too, are more than int32 counts.
    pid = tl.program_id(0).to(tl.int64)
    wide = tl.cdiv(columns, B)
    i, j = pid // wide, pid % wide
    if SAME and j > i:
        return
    r, q = i * B + tl.arange(0, B), j * B + tl.arange(0, B)
    r_in, q_in = r < rows, q < columns
    at = r[:, None] * columns + q[None, :]
    inside = r_in[:, None] & q_in[None, :]
    if FRESH:
        theta = tl.zeros((B, B), dtype=tl.float32)
    else:
        theta = tl.load(M + at, mask=inside, other=0.0)
    for layer in range(n_layers):
        a = tl.zeros((B, B), dtype=tl.float32)
        for k0 in range(tl.load(K + layer), tl.load(K + layer + 1), BK):
            k = k0 + tl.arange(0, BK)
            x = tl.load(A1 + (r // O)[:, None] * sum_k + k[None, :], mask=r_in[:, None], other=0.0)
            y = tl.load(A2 + (q // O)[None, :] * sum_k + k[:, None], mask=q_in[None, :], other=0.0)
            a = tl.dot(x, y, a, input_precision=PRECISION)
        c_start, c_end = tl.load(C + layer), tl.load(C + layer + 1)
        if c_start == c_end:  # unit gradients: outputs meet themselves alone
            theta += tl.where((r % O)[:, None] == (q % O)[None, :], a, 0.0)
        else:
            g = tl.zeros((B, B), dtype=tl.float32)
            for c0 in range(c_start, c_end, BK):
                c = c0 + tl.arange(0, BK)
                x = tl.load(G1 + r[:, None] * sum_c + c[None, :], mask=r_in[:, None], other=0.0)
                y = tl.load(G2 + q[None, :] * sum_c + c[:, None], mask=q_in[None, :], other=0.0)
                g = tl.dot(x, y, g, input_precision=PRECISION)
            theta += a * g
    if SAME:
        turned = tl.trans(theta)
        if i == j:
            theta = tl.where(r[:, None] >= q[None, :], theta, turned)  # two orders of one sum differ in their last bits
        else:
            tl.store(M + q[:, None] * columns + r[None, :], turned, mask=q_in[:, None] & r_in[None, :])
    tl.store(M + at, theta, mask=inside)


def add_singles(kernel: Float[Tensor, "n o m o"], layers: Sequence[Single], *, fresh: bool, same: bool) -> None:
    """Twin of :func:`mechfeat.kernels.tiles.add_singles`: the kernel is written once, for all layers of whatever shapes.

    Args:
        kernel: What is added to, contiguous, in single precision.
        layers: The layers.
        fresh: The kernel holds nothing yet, and is written without being read.
        same: Both sides are one batch.

    Cost:
        ``Σ n m o² (k + c)`` multiply-adds, half for one batch with itself: the Gram of the inputs is not shared by outputs. A copy of the
        factors is held.
    """
    n, o, m, _ = kernel.shape
    if not kernel.numel():
        return
    M = kernel.view(n * o, m * o)
    # An empty layer adds nothing; one without gradients would be taken for unit gradients.
    layers = [x for x in layers if x.right1.shape[1] and (x.left1 is None or x.left1.shape[2])]
    A1, K = _packed([x.right1 for x in layers], n, kernel)
    G1, C = _packed([kernel.new_empty(n * o, 0) if x.left1 is None else x.left1.flatten(0, 1) for x in layers], n * o, kernel)
    A2, G2 = A1, G1
    if not same:
        A2, _ = _packed([x.right2 for x in layers], m, kernel)
        G2, _ = _packed([kernel.new_empty(m * o, 0) if x.left2 is None else x.left2.flatten(0, 1) for x in layers], m * o, kernel)
    rows = max(1, SLICE // o)

    def part(block: Block) -> None:
        some = kernel.new_empty(min(n, rows) * o, min(m, rows) * o)
        launch(some, A1[:rows], G1[: rows * o], A2[:rows], G2[: rows * o], K, C, o, True, same, block)

    blocks = BLOCKS if kernel.is_cuda else (INTERPRETED,)
    block = fastest(("single", len(layers), *alike(o, A1.shape[1], G1.shape[1])), blocks, part, kernel.device)
    launch(M, A1, G1, A2, G2, K, C, o, fresh, same, block)


def _packed(parts: list[Tensor], rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The layers' factors side by side, and the column at which each begins."""
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + triton.cdiv(part.shape[1], PAD) * PAD)
    out = like.new_zeros(rows, ends[-1])
    for part, start in zip(parts, ends):
        out[:, start : start + part.shape[1]] = part
    return out, torch.tensor(ends, device=like.device)


def launch(
    M: Tensor, A1: Tensor, G1: Tensor, A2: Tensor, G2: Tensor, K: Tensor, C: Tensor, o: int, fresh: bool, same: bool, block: Block
) -> None:
    """Write the kernel with one tile size."""
    (rows, columns), size = M.shape, block[0]
    _single[(triton.cdiv(rows, size) * triton.cdiv(columns, size),)](
        M, A1, G1, A2, G2, K, C, rows, columns, o, A1.shape[1], G1.shape[1], len(K) - 1,
        FRESH=fresh, SAME=same, B=size, BK=block[1], PRECISION=precision(),
        num_warps=block[2], enable_fp_fusion=True,
    )  # fmt: skip
