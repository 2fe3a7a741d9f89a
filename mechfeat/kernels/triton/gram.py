"""The gram order without the arrays of one entry a pair of positions: they live in registers, a tile at a time, and are summed there."""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.kernels.contract import Sum
from mechfeat.kernels.layout import Outputs
from mechfeat.kernels.triton.launch import Block
from mechfeat.kernels.triton.pairs import dot, pairwise, right_gram

BLOCKS: tuple[Block, ...] = ((16, 16, 4), (32, 16, 4), (64, 16, 8))


@triton.jit
@no_type_check  # what a kernel is traced with are no tensors
def _gram(
    M, L1, R1, L2, R2, m, O, T, S, C, K, stride_n, stride_o, stride_m, stride_p,
    OUTPUTS: tl.constexpr, TOKENS: tl.constexpr, SAME: tl.constexpr,
    BO: tl.constexpr, BP: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # One program a pair of samples and block of outputs; pairs beyond int32 and offsets beyond 2³¹ entries occur.
    pair = tl.program_id(0).to(tl.int64)
    i, j = pair // m, pair % m
    if SAME and j > i:
        return
    o0, p0 = tl.program_id(1) * BO, tl.program_id(2) * BP
    last = O if OUTPUTS == "trace" else tl.minimum(o0 + BO, O)
    oi, pi = tl.arange(0, BO), tl.arange(0, BP)
    acc = tl.zeros((BO, BP), dtype=tl.float32)
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        for s0 in range(0, S, BT):
            s = s0 + tl.arange(0, BT)
            a = right_gram(R1, R2, i, j, t, s, T, S, K, TOKENS, BT, 16, PRECISION)
            for o in range(o0, last):
                for p in range(p0 if OUTPUTS == "full" else o, tl.minimum(p0 + BP, O) if OUTPUTS == "full" else o + 1):
                    g = tl.zeros((BT, BT), dtype=tl.float32)
                    for c0 in range(0, C, BC):
                        c = c0 + tl.arange(0, BC)
                        x = tl.load(
                            L1 + ((i * O + o) * T + t)[:, None] * C + c[None, :], mask=(t < T)[:, None] & (c < C)[None, :], other=0.0
                        )
                        y = tl.load(
                            L2 + ((j * O + p) * S + s)[None, :] * C + c[:, None], mask=(s < S)[None, :] & (c < C)[:, None], other=0.0
                        )
                        g = dot(x, y, g, PRECISION)
                    total = tl.sum(tl.sum(a * g, 1), 0)
                    row = 0 if OUTPUTS == "trace" else o - o0
                    column = p - p0 if OUTPUTS == "full" else 0
                    acc += tl.where((oi == row)[:, None] & (pi == column)[None, :], total, 0.0)
    where = M + i * stride_n + j * stride_m + (o0 + oi).to(tl.int64)[:, None] * stride_o + (p0 + pi).to(tl.int64)[None, :] * stride_p
    inside = (o0 + oi < (1 if OUTPUTS == "trace" else O))[:, None] & (p0 + pi < (O if OUTPUTS == "full" else 1))[None, :]
    tl.store(where, tl.load(where, mask=inside, other=0.0) + acc.to(M.dtype.element_ty), mask=inside)


def gram(
    left1: Float[Tensor, "n o t c"],
    right1: Float[Tensor, "n t k"] | Int[Tensor, "n t"],
    left2: Float[Tensor, "m o s c"],
    right2: Float[Tensor, "m s k"] | Int[Tensor, "m s"],
    outputs: Outputs,
    into: Sum = None,
) -> Float[Tensor, "..."]:
    """Twin of :func:`mechfeat.kernels.gram`: no array of pairs of positions is held.

    Args:
        left1: Gradients at the layer's output, first side; half or single precision.
        right1: The layer's inputs; integers stand for one-hot rows.
        left2: Gradients at the layer's output, second side.
        right2: The layer's inputs, second side.
        outputs: ``full``, ``trace`` or ``diagonal``.
        into: Kernel to add to, of any strides, in single or double precision.

    Returns:
        The kernel.

    Cost:
        That of the reference with positions rounded up to the tile, and one output block's input Gram repeated for every 16 outputs.
    """
    return pairwise(_gram, BLOCKS, left1, right1, left2, right2, outputs, into)
