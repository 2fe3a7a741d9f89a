"""Multiply-adds and temporaries of the contractions: counts of what runs.

The block order forms each sample's weight gradient, the gram order multiplies the Gram matrices of both factors, the mixed order carries
gradients through the Gram of the inputs.
"""

from mechfeat.kernels import Outputs
from mechfeat.kernels.contract import block_steps, gram_tiles, mixed_step
from mechfeat.kernels.symmetric import area
from mechfeat.ntk.outlines import Shape


def block_macs(s: Shape, outputs: Outputs) -> int:
    """Multiply-adds of the block order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        The count; with one position the gradients are formed by products that no sum follows, which are counted too.
    """
    sides = s.n1 * s.t if s.same else s.n1 * s.t + s.n2 * s.s
    return sides * s.o * s.k * s.c + dense_macs((s.n1, s.n2), s.o, s.k * s.c, outputs, s.same)


def dense_macs(sides: tuple[int, int], o: int, size: int, outputs: Outputs, same: bool) -> int:
    """Multiply-adds of gradients that are there.

    Args:
        sides: Samples of the two sides.
        o: Outputs.
        size: Entries of the parameter.
        outputs: What is kept of the outputs.
        same: Both sides are one batch.

    Returns:
        The count.
    """
    n, m = sides
    return area(n * o, m * o, same) * size if outputs == "full" else area(n, m, same) * o * size


def gram_macs(s: Shape, outputs: Outputs) -> int:
    """Multiply-adds of the gram order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        The count. Comparing token ids counts one an entry; weighting one Gram by the other is counted as one product more.
    """
    pairs = s.o * s.o if outputs == "full" else s.o
    extra = s.o * s.o if outputs == "full" else s.o if outputs == "diagonal" else 1
    met = sum((a.stop - a.start) * (b.stop - b.start) for a, b in gram_tiles(s.n1, s.n2, s.o, s.t, s.s, outputs, s.itemsize, s.same))
    return met * (right_macs(s) + s.t * s.s * (pairs * s.c + extra))


def mixed_macs(s: Shape, outputs: Outputs) -> int:
    """Multiply-adds of the mixed order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        The count.
    """
    met = s.n1 * (s.n1 + 1) // 2 if s.same else s.n1 * s.n2
    pairs = s.o * s.o if outputs == "full" else s.o
    return met * (right_macs(s) + s.t * s.s * s.o * s.c + pairs * s.t * s.c)


def right_macs(s: Shape) -> int:
    """Multiply-adds of one pair of samples' right Gram matrix.

    Args:
        s: Sizes.

    Returns:
        The count; of patches that share their pixels, that of the pixels.
    """
    return s.pixel_macs or s.t * s.s * (1 if s.one_hot else s.k)


MACS = {"block": block_macs, "gram": gram_macs, "mixed": mixed_macs}


def workspace_bytes(s: Shape, outputs: Outputs, method: str, itemsize: int) -> int:
    """Largest temporary of a contraction, beside its factors and its result.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.
        method: ``block``, ``gram``, ``mixed`` or ``output``.
        itemsize: Bytes a number.

    Returns:
        Bytes.
    """
    n = s.n1 if s.same else s.n1 + s.n2
    if method == "block":
        step, step_o = block_steps(n, s.o, s.c, s.k, outputs, itemsize, s.taps)
        rows = (s.n1 * s.t + (0 if s.same else s.n2 * s.s)) * step if s.taps > 1 else 0
        return (n * step_o * step * s.c + rows) * itemsize
    if method == "mixed":
        step = mixed_step(s.n1, s.o, s.t, s.c, itemsize)
        return step * s.t * (2 * s.o * s.c + 2 * s.s) * itemsize
    if method == "output":
        return s.n1 * s.n2 * itemsize
    copies = 1 if s.t == s.s == 1 else 3  # weighting several positions lays the entries out anew
    pair = s.t * s.s * itemsize * (1 + copies * (s.o**2 if outputs == "full" else 1))
    tiles = gram_tiles(s.n1, s.n2, s.o, s.t, s.s, outputs, itemsize, s.same)
    return max(((a.stop - a.start) * (b.stop - b.start) for a, b in tiles), default=0) * pair
