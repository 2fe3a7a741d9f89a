"""Which of two twins runs: the torch reference, or on a CUDA device its Triton kernel where counting says that it is faster.

``MECHFEAT_NO_TRITON=1`` in the environment switches the kernels off.
"""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels import contract, cost, tiles
from mechfeat.kernels.contract import Other, Right, Sum
from mechfeat.kernels.layout import Outputs
from mechfeat.kernels.patches import Patches
from mechfeat.kernels.precision import tf32
from mechfeat.kernels.tiles import Single

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = 1e-5  # of the largest entry, in the example that a kernel has to get right before it is used


def gram(  # noqa: D103 (the reference's)
    left1: Float[Tensor, "n o t c"],
    right1: Right,
    left2: Float[Tensor, "m o s c"],
    right2: Other,
    outputs: Outputs,
    into: Sum = None,
) -> Float[Tensor, "..."]:
    return _pairs("gram", contract.gram, cost.gram_torch, cost.gram_fused)(left1, right1, left2, right2, outputs, into)


def mixed(  # noqa: D103 (the reference's)
    left1: Float[Tensor, "n o t c"],
    right1: Right,
    left2: Float[Tensor, "m o s c"],
    right2: Other,
    outputs: Outputs,
    into: Sum = None,
) -> Float[Tensor, "..."]:
    return _pairs("mixed", contract.mixed, cost.mixed_torch, cost.mixed_fused)(left1, right1, left2, right2, outputs, into)


def add_singles(kernel: Float[Tensor, "n o m o"], layers: Sequence[Single], *, fresh: bool, same: bool) -> None:  # noqa: D103
    run: Callable[..., None] = tiles.add_singles
    factors = [x for layer in layers for x in (layer.left1, layer.right1, layer.left2, layer.right2) if x is not None]
    if kernel.dtype == torch.float32 and all(x.dtype == torch.float32 for x in factors) and _usable(kernel, factors):
        (n, o, m, _), sizes = kernel.shape, [(0 if x.left1 is None else x.left1.shape[2], x.right1.shape[1]) for x in layers]
        works = cost.singles_torch(n, m, o, sizes, same), cost.singles_fused(n, m, o, sizes, same)
        run = _twin("add_singles", kernel.device, works) or run
    run(kernel, layers, fresh=fresh, same=same)


gram.__doc__, mixed.__doc__, add_singles.__doc__ = contract.gram.__doc__, contract.mixed.__doc__, tiles.add_singles.__doc__


def _pairs(
    name: str,
    reference: Callable[..., Tensor],
    torch_work: Callable[[cost.Sizes], cost.Work],
    fused_work: Callable[[cost.Sizes], list[cost.Work]],
) -> Callable[..., Tensor]:
    def run(left1: Tensor, right1: Right, left2: Tensor, right2: Other, outputs: Outputs, into: Tensor | None) -> Tensor:
        chosen = reference
        if isinstance(right1, Patches) or isinstance(right2, Patches):  # their rows need not be formed
            return chosen(left1, right1, left2, right2, outputs, into)
        factors = (left1, right1, left2, right2)
        if _usable(left1, factors) and (into is None or into.dtype in (torch.float32, torch.float64)):
            (n, o, t, c), (m, _, s, _) = left1.shape, left2.shape
            k = right1.shape[2] if right1.is_floating_point() else 1
            sizes = cost.Sizes(n, m, o, t, s, c, k, outputs, left1 is left2 and right1 is right2)
            chosen = _twin(name, left1.device, (torch_work(sizes), fused_work(sizes))) or reference
        return chosen(left1, right1, left2, right2, outputs, into)

    return run


def _usable(first: Tensor, factors: Sequence[Tensor]) -> bool:
    """Whether a kernel can take them: on one device, in half or single precision, and with no gradient asked for."""
    if not is_cuda(first) or os.environ.get("MECHFEAT_NO_TRITON", "") not in ("", "0"):
        return False
    kinds = all(x.dtype == torch.float32 or x.dtype in HALF or (not x.dtype.is_floating_point and not x.is_complex()) for x in factors)
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in factors)
    return kinds and not asked and all(x.device == first.device for x in factors)


def _twin(name: str, device: torch.device, works: tuple[cost.Work, list[cost.Work]]) -> Callable[..., Any] | None:
    # Whether products may be rounded to TF32 is part of the device's speed.
    if not cost.pays(*works, speed(device, tf32())):
        return None
    return proved(name, device)


def is_cuda(x: Tensor) -> bool:
    """Whether a tensor is on a CUDA device."""
    return x.is_cuda


@lru_cache(maxsize=32)
def proved(name: str, device: torch.device) -> Callable[..., Any] | None:
    """A Triton kernel, if it is there and agrees with its reference on a small example, which compiles it.

    Args:
        name: ``gram``, ``mixed`` or ``add_singles``.
        device: Where it has to run.

    Returns:
        The function; None without triton, and, with a warning, where the kernel does not compile or is wrong.
    """
    try:
        from mechfeat.kernels import triton
    except ImportError:
        return None
    kernel = getattr(triton, name)

    def twin(first: Tensor, *args: Any, **options: Any) -> Any:
        with torch.cuda.device_of(first):  # Triton launches on the current device
            return kernel(first, *args, **options)

    left, right = (torch.arange(size, device=device, dtype=torch.float32).sin_() for size in (5 * 3 * 2 * 7, 5 * 2 * 9))
    L, R = left.view(5, 3, 2, 7), right.view(5, 2, 9)
    try:
        if name == "add_singles":
            want, have = L.new_zeros(2, 5, 3, 5, 3)
            layers = [Single(L[:, :, 0], R[:, 0], L[:, :, 0], R[:, 0]), Single(None, R[:, 1], None, R[:, 1])]
            tiles.add_singles(want, layers, fresh=True, same=True)
            twin(have, layers, fresh=True, same=True)
        else:
            want, have = (f(L, R, L, R, "full") for f in (getattr(contract, name), twin))
        gap = float((have - want).abs().max() / want.abs().max())
    except Exception as error:  # whatever a compiler or driver says, the torch path is there
        reason = f"failed: {type(error).__name__}: {error}"
    else:
        # Rounding to TF32, where it is allowed, costs both of them three digits.
        if gap <= TOLERANCE or (tf32() and gap <= 1e-2):
            return twin
        reason = f"differs from its torch reference by {gap:.0e} of the largest entry on {device}"
    warnings.warn(
        f"The Triton kernel {name!r} {reason}. The torch path is used instead. MECHFEAT_NO_TRITON=1 in the environment says so from the "
        "start.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


@lru_cache(maxsize=32)
def speed(device: torch.device, rounded: bool) -> cost.Speed:
    """What a device does in a second, measured for some milliseconds and remembered for the process.

    Args:
        device: The device.
        rounded: Whether float32 products may round to TF32, part of what is remembered.

    Returns:
        Bandwidth of a copy and rate of a product.
    """
    a, b = torch.ones(2048, 2048, device=device), torch.ones(32 << 20, device=device)  # the second is larger than caches
    room = torch.empty_like(a), torch.empty_like(b)

    def best(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            run()
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    product, copy = best(lambda: torch.mm(a, a, out=room[0])), best(lambda: room[1].copy_(b))
    return cost.Speed(bandwidth=2 * b.numel() * 4 / copy, rate=2 * 2048**3 / product)
