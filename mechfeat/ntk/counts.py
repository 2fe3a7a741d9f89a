"""Multiply-adds and temporaries of the contractions: counts of what runs.

The block order forms each sample's weight gradient, the gram order multiplies the Gram matrices of both factors, the mixed order carries
gradients through the Gram of the inputs.
"""

from mechfeat.kernels import Outputs
from mechfeat.kernels.contract import block_steps, gram_tiles, mixed_columns
from mechfeat.kernels.symmetric import area
from mechfeat.ntk.factors import Shape


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
    return met * s.t * s.s * ((1 if s.one_hot else s.k) + pairs * s.c + extra)


def mixed_macs(s: Shape, outputs: Outputs) -> int:
    """Multiply-adds of the mixed order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        The count.
    """
    met = sum((a.stop - a.start) * (s.n1 - first) for a, first in mixed_columns(s.n1, s.n2, s.o, s.t, s.c, s.itemsize, s.same))
    pairs = s.o * s.o if outputs == "full" else s.o
    return met * (s.t * s.s * ((1 if s.one_hot else s.k) + s.o * s.c) + pairs * s.t * s.c)


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
        step, step_o = block_steps(n, s.o, s.c, s.k, outputs, itemsize)
        return n * step_o * step * s.k * itemsize
    if method == "mixed":
        columns = mixed_columns(s.n1, s.n2, s.o, s.t, s.c, itemsize, s.same)
        return max((a.stop - a.start for a, _ in columns), default=0) * s.n1 * s.o * s.t * max(s.c, s.s) * itemsize
    if method == "output":
        return s.n1 * s.n2 * itemsize
    pair = s.t * s.s * itemsize * (1 + (s.o**2 if outputs == "full" else 1))
    tiles = gram_tiles(s.n1, s.n2, s.o, s.t, s.s, outputs, itemsize, s.same)
    return max(((a.stop - a.start) * (b.stop - b.start) for a, b in tiles), default=0) * pair
