"""Matrix products of float32 on a CPU, by whichever of torch's two libraries is faster there.

Torch multiplies matrices with its BLAS library and convolves with oneDNN. On processors that the BLAS library does not know it falls back
to narrower instructions and runs at half the rate of oneDNN, whose linear layer is the same product.
"""

import time
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST = 1 << 20  # multiply-adds below which the call itself costs more than it saves
LONGEST = 1 << 17  # products in one sum; oneDNN adds up in blocks, and so keeps as many digits as pieces of 4096 elsewhere


def product(A: Float[Tensor, "row k"], B: Float[Tensor, "column k"]) -> Float[Tensor, "row column"]:
    """``A Bᵀ``.

    Args:
        A: Left factor.
        B: Right factor.

    Returns:
        The product.

    Example:
        >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
        tensor([[11., 17.]])
    """
    if quick(A, B):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(A, B, None, "none", [], "")
        return out
    return A @ B.T


def quick(A: Tensor, B: Tensor) -> bool:
    """Whether :func:`product` takes oneDNN.

    Args:
        A: Left factor, ``[row k]``.
        B: Right factor, ``[column k]``.

    Returns:
        True for large contiguous float32 factors on a CPU where oneDNN is the faster library.
    """
    return (
        A.dtype == B.dtype == torch.float32
        and A.device.type == "cpu"
        and len(A) * len(B) * A.shape[1] >= SMALLEST
        and A.shape[1] <= LONGEST
        and A.is_contiguous()  # of strided factors oneDNN takes its slow reference path
        and B.is_contiguous()
        and bool(torch.backends.mkldnn.enabled)
        and onednn_is_faster(torch.get_num_threads())
    )


@lru_cache(maxsize=16)
def onednn_is_faster(threads: int) -> bool:
    """Multiply once with each library, for some milliseconds, and remember the answer for the process.

    Args:
        threads: Number of threads, part of what is remembered.

    Returns:
        True where oneDNN is right, and faster by 1.4: the libraries round differently, so that a close race must not be decided by noise.
    """
    A = torch.arange(256 * 1024, dtype=torch.float32).remainder_(7).view(256, 1024)
    try:
        calls = {
            "blas": lambda: A @ A.T,
            "onednn": lambda: torch.ops.mkldnn._linear_pointwise(A, A, None, "none", [], ""),
        }
        if not torch.equal(calls["blas"](), calls["onednn"]()):  # sums of small integers are exact
            return False
    except (AttributeError, RuntimeError, NotImplementedError):  # a build without oneDNN, or a torch that renamed it
        return False
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(5):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds["blas"] > 1.4 * seconds["onednn"]
