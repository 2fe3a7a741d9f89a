"""What the launches have in common: the precision of products and the choice of a tile size."""

from collections.abc import Callable, Hashable

import torch
import triton

from mechfeat.kernels.precision import tf32

Block = tuple[int, int, int]  # rows of a tile, terms of a sum at a time (or columns), warps

_FASTEST: dict[Hashable, Block] = {}


def precision() -> str:
    """How products of float32 numbers are taken.

    Returns:
        ``ieee``, or ``tf32`` where torch has been told that its own matrix products may round to it.
    """
    return "tf32" if tf32() else "ieee"


def fastest(key: Hashable, blocks: tuple[Block, ...], run: Callable[[Block], object], device: torch.device) -> Block:
    """The fastest tile size, timed once for sizes alike.

    Triton's own autotuner would run each size on the kernel that is added to, and keep a copy of it to undo that.

    Args:
        key: Names the computation and its sizes.
        blocks: The tile sizes; the first is what the interpreter takes.
        run: Launches a small part of the computation into a kernel of its own.
        device: Where.

    Returns:
        One of ``blocks``.
    """
    if device.type != "cuda" or len(blocks) == 1:
        return blocks[0]
    key = (key, device.index, precision())
    if key not in _FASTEST:
        seconds = {}
        for block in blocks:
            run(block)  # compiles
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(3):
                run(block)
            end.record()
            end.synchronize()
            seconds[block] = start.elapsed_time(end)
        _FASTEST[key] = min(seconds, key=lambda b: seconds[b])
    return _FASTEST[key]


def alike(*sizes: int) -> tuple[int, ...]:
    """Sizes rounded to powers of two, for which one choice of a tile is enough."""
    return tuple(triton.next_power_of_2(max(1, s)) for s in sizes)
