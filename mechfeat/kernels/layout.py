"""Shapes, dtypes and the memory layout of kernels."""

from typing import Literal

import torch
from torch import Tensor

Outputs = Literal["full", "trace", "diagonal"]


def kernel_shape(n1: int, n2: int, o: int, outputs: Outputs) -> tuple[int, ...]:
    """Shape of a kernel.

    Args:
        n1: Samples of the first side.
        n2: Samples of the second side.
        o: Outputs of the model.
        outputs: What is kept of them.

    Returns:
        ``[n1 o n2 o]`` for full, ``[n1 n2]`` for trace, ``[n1 n2 o]`` for diagonal.
    """
    return {"full": (n1, o, n2, o), "trace": (n1, n2), "diagonal": (n1, n2, o)}[outputs]


def new_kernel(like: Tensor, n1: int, n2: int, o: int, outputs: Outputs, dtype: torch.dtype | None = None) -> Tensor:
    """A kernel of zeros to add to.

    Args:
        like: Gives device, and dtype.
        n1: Samples of the first side.
        n2: Samples of the second side.
        o: Outputs of the model.
        outputs: What is kept of them.
        dtype: Another dtype.

    Returns:
        Zeros, shaped as :func:`kernel_shape` says. The matrices of a diagonal kernel are contiguous one by one.
    """
    if outputs == "diagonal":
        return like.new_zeros(o, n1, n2, dtype=dtype or like.dtype).permute(1, 2, 0)
    return like.new_zeros(kernel_shape(n1, n2, o, outputs), dtype=dtype or like.dtype)


def widen(x: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is.

    Args:
        x: Factors or gradients.

    Returns:
        A tensor to accumulate in.
    """
    # A Gram of 4096 half-precision products overflows, and sums of thousands of them lose three digits.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
