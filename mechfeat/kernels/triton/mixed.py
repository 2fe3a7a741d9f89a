"""The mixed order without the carried gradients in memory: a tile of them is made in registers and contracted there."""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.kernels.contract import Sum
from mechfeat.kernels.layout import Outputs
from mechfeat.kernels.triton.launch import Block
from mechfeat.kernels.triton.pairs import pairwise, right_gram

BLOCKS: tuple[Block, ...] = ((16, 16, 4), (32, 16, 8), (64, 16, 16))


@triton.jit
@no_type_check  # what a kernel is traced with are no tensors
def _mixed(
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
    oi, pi = tl.arange(0, BO), tl.arange(0, BP)
    acc = tl.zeros((BO, BP), dtype=tl.float32)
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        for s0 in range(0, S, BT):
            s = s0 + tl.arange(0, BT)
            a = right_gram(R1, R2, i, j, t, s, T, S, K, TOKENS, BT, 16, PRECISION)
            for c0 in range(0, C, BC):
                c = c0 + tl.arange(0, BC)
                if OUTPUTS == "full":  # one read of the first side's gradients serves every output of the second side
                    at = (((i * O + o0 + oi)[:, None] * T + t[None, :]) * C)[:, :, None] + c[None, None, :]
                    inside = ((o0 + oi < O)[:, None] & (t < T)[None, :])[:, :, None] & (c < C)[None, None, :]
                    x = tl.load(L1 + at, mask=inside, other=0.0).to(tl.float32)
                    for p in range(p0, tl.minimum(p0 + BP, O)):
                        at2 = ((j * O + p) * S + s)[:, None] * C + c[None, :]
                        y = tl.load(L2 + at2, mask=(s < S)[:, None] & (c < C)[None, :], other=0.0)
                        z = tl.dot(a, y.to(tl.float32), input_precision=PRECISION)
                        met = tl.sum(tl.sum(x * z[None, :, :], 2), 1)
                        acc += tl.where((pi == p - p0)[None, :], met[:, None], 0.0)
                else:
                    for o in range(o0, O if OUTPUTS == "trace" else tl.minimum(o0 + BO, O)):
                        at1 = ((i * O + o) * T + t)[:, None] * C + c[None, :]
                        x1 = tl.load(L1 + at1, mask=(t < T)[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
                        at2 = ((j * O + o) * S + s)[:, None] * C + c[None, :]
                        y = tl.load(L2 + at2, mask=(s < S)[:, None] & (c < C)[None, :], other=0.0)
                        z = tl.dot(a, y.to(tl.float32), input_precision=PRECISION)
                        row = 0 if OUTPUTS == "trace" else o - o0
                        acc += tl.where((oi == row)[:, None], tl.sum(tl.sum(x1 * z, 1), 0), 0.0)
    where = M + i * stride_n + j * stride_m + (o0 + oi).to(tl.int64)[:, None] * stride_o + (p0 + pi).to(tl.int64)[None, :] * stride_p
    known = (o0 + oi < (1 if OUTPUTS == "trace" else O))[:, None] & (p0 + pi < (O if OUTPUTS == "full" else 1))[None, :]
    tl.store(where, tl.load(where, mask=known, other=0.0) + acc.to(M.dtype.element_ty), mask=known)


def mixed(
    left1: Float[Tensor, "n o t c"],
    right1: Float[Tensor, "n t k"] | Int[Tensor, "n t"],
    left2: Float[Tensor, "m o s c"],
    right2: Float[Tensor, "m s k"] | Int[Tensor, "m s"],
    outputs: Outputs,
    into: Sum = None,
) -> Float[Tensor, "..."]:
    """Twin of :func:`mechfeat.kernels.mixed`: carried gradients are not held.

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
        That of the reference with positions rounded up to the tile; the last term once for each tile of positions of the second side.
    """
    return pairwise(_mixed, BLOCKS, left1, right1, left2, right2, outputs, into)
