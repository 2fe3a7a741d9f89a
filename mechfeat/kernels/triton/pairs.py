"""Kernels with one program a pair of samples: how they are launched, and the Gram of the right factors that both begin with."""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from mechfeat.kernels.layout import Outputs, new_kernel
from mechfeat.kernels.symmetric import mirror
from mechfeat.kernels.triton.launch import Block, alike, fastest, precision

OUTPUTS = 16  # of each side that one program holds
FEW = 32  # samples of each side that a tile size is timed on: a thousand programs fill any device


def pairwise(
    kernel: Any,
    blocks: tuple[Block, ...],
    left1: Tensor,
    right1: Tensor,
    left2: Tensor,
    right2: Tensor,
    outputs: Outputs,
    into: Tensor | None,
) -> Tensor:
    """Add a contraction of two families of factors to a kernel, or to a new one.

    Args:
        kernel: The Triton function.
        blocks: Its tile sizes.
        left1: ``[n o t c]``.
        right1: ``[n t k]`` or ids ``[n t]``.
        left2: ``[m o s c]``.
        right2: As ``right1``.
        outputs: ``full``, ``trace`` or ``diagonal``.
        into: Added to; of one batch with itself to its lower triangle.

    Returns:
        The kernel, mirrored if it is new.
    """
    same = left1 is left2 and right1 is right2
    (n, o, t, c), (m, _, s, _) = left1.shape, left2.shape
    theta = new_kernel(left1, n, m, o, outputs, torch.float32) if into is None else into
    left1, left2 = _alike(left1, left2, same)
    right1, right2 = _alike(right1, right2, same)
    if n * m * o * t * s:
        sizes = alike(o, t, s, c, right1.shape[-1] if right1.is_floating_point() else 1)
        few = (left1[:FEW], right1[:FEW], left2[:FEW], right2[:FEW])

        def part(block: Block) -> None:
            _launch(kernel, new_kernel(left1, min(n, FEW), min(m, FEW), o, outputs, torch.float32), *few, outputs, same, block)

        block = fastest((kernel, outputs, left1.dtype, right1.dtype, *sizes), blocks, part, left1.device)
        _launch(kernel, theta, left1, right1, left2, right2, outputs, same, block)
    if same and into is None:
        mirror(theta, outputs)
    return theta


def _alike(x: Tensor, y: Tensor, same: bool) -> tuple[Tensor, Tensor]:
    """As kernels read them: contiguous, and of one dtype."""
    if x.is_floating_point() and x.dtype != y.dtype:
        x, y = x.float(), y.float()
    x = x.contiguous()
    return x, x if same else y.contiguous()


def _launch(
    kernel: Any, theta: Tensor, left1: Tensor, right1: Tensor, left2: Tensor, right2: Tensor, outputs: Outputs, same: bool, block: Block
) -> None:
    (n, o, t, c), (m, _, s, _) = left1.shape, left2.shape
    tokens = not right1.is_floating_point()
    bo = 1 if outputs == "trace" else min(OUTPUTS, triton.next_power_of_2(o))
    bp = bo if outputs == "full" else 1
    x, y, z = theta.stride(0), theta.stride(1), theta.stride(-1)
    strides = {"full": (x, y, theta.stride(theta.ndim - 2), z), "trace": (x, 0, y, 0), "diagonal": (x, z, y, 0)}[outputs]
    grid = (n * m, 1 if outputs == "trace" else triton.cdiv(o, bo), triton.cdiv(o, bp) if outputs == "full" else 1)
    kernel[grid](
        theta, left1, right1, left2, right2, m, o, t, s, c, 1 if tokens else right1.shape[-1], *strides,
        OUTPUTS=outputs, TOKENS=tokens, SAME=same, BO=bo, BP=bp, BT=block[0], BC=block[1], PRECISION=precision(),
        num_warps=block[2], enable_fp_fusion=True,
    )  # fmt: skip


@triton.jit
@no_type_check  # what a kernel is traced with are no tensors
def dot(x, y, acc, PRECISION: tl.constexpr):
    """A product added to float32 sums. Half-precision numbers are TF32 numbers, so that none of theirs rounds."""
    exact: tl.constexpr = "tf32" if x.dtype.primitive_bitwidth == 16 else PRECISION
    return tl.dot(x.to(tl.float32), y.to(tl.float32), acc, input_precision=exact)


@triton.jit
@no_type_check  # what a kernel is traced with are no tensors
def right_gram(
    R1, R2, n, m, t, s, T, S, K, TOKENS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """``⟨r_nt, r'_ms⟩`` for a tile of positions, zero outside of them."""
    if TOKENS:
        x = tl.load(R1 + n * T + t, mask=t < T, other=0)
        y = tl.load(R2 + m * S + s, mask=s < S, other=0)
        a = ((x[:, None] == y[None, :]) & (t < T)[:, None] & (s < S)[None, :]).to(tl.float32)
    else:
        a = tl.zeros((BT, BT), dtype=tl.float32)
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            x = tl.load(R1 + (n * T + t)[:, None] * K + k[None, :], mask=(t < T)[:, None] & (k < K)[None, :], other=0.0)
            y = tl.load(R2 + (m * S + s)[None, :] * K + k[:, None], mask=(s < S)[None, :] & (k < K)[:, None], other=0.0)
            a = dot(x, y, a, PRECISION)
    return a
