"""Predicted seconds of a contraction, and the choice between the orders.

Multiply-adds alone do not decide: thin products run at a fraction of the rate of large ones, and what is carried or weighted is written to
memory and read back. Each order is therefore costed by the products and passes that it does, at the rates of this machine.
"""

import math
from functools import lru_cache

from mechfeat.kernels import Outputs
from mechfeat.kernels.contract import block_steps, gram_tiles, mixed_step
from mechfeat.kernels.products import SMALLEST
from mechfeat.kernels.symmetric import PIECE, area, bands
from mechfeat.ntk.machine import Machine
from mechfeat.ntk.outlines import Contraction, Shape


def dense_seconds(sides: tuple[int, int], o: int, size: int, outputs: Outputs, same: bool, itemsize: int, m: Machine) -> float:
    """Predicted seconds for gradients that are there.

    Args:
        sides: Samples of the two sides.
        o: Outputs.
        size: Entries of the parameter.
        outputs: What is kept of the outputs.
        same: Both sides are one batch.
        itemsize: Bytes a number.
        m: The machine.

    Returns:
        Seconds.
    """
    n1, n2 = sides
    rows, columns, inner, many = (n1 * o, n2 * o, size, 1) if outputs == "full" else (n1, n2, o * size, 1)
    if outputs == "diagonal":
        inner, many = size, o
    pieces = max(1, math.ceil(inner / PIECE))
    strips = len(list(bands(rows, same)))
    met = area(rows, columns, same)
    one = m.product(met / max(1, columns), min(inner, PIECE), columns, itemsize)
    return many * (pieces * (one + m.pass_over(met, itemsize, 2) + strips * 5 * m.call) + 10 * m.call)


def block_seconds(s: Shape, outputs: Outputs, m: Machine) -> float:
    """Predicted seconds of the block order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.
        m: The machine.

    Returns:
        Seconds.
    """
    n = s.n1 if s.same else s.n1 + s.n2
    step, step_o = block_steps(n, s.o, s.c, s.k, outputs, s.itemsize, s.taps)
    chunks, parts = math.ceil(s.k / step), math.ceil(s.o / step_o)
    size = n * s.o * s.c * s.k
    t = s.t if s.same else (s.n1 * s.t + s.n2 * s.s) // n
    if s.t == 1:
        formed = chunks * parts * 12 * m.call + m.pass_over(size, s.itemsize)
    elif s.taps > 1:
        one = m.product(step_o * s.c, t, step, s.itemsize)
        formed = chunks * parts * n * (one + 4 * m.call) + m.pass_over(size, s.itemsize) + m.pass_over(n * t * s.k, s.itemsize, 4)
    else:
        formed = chunks * s.o * (m.product(s.c, t, step, s.itemsize, n, plain=False) + 8 * m.call) + m.pass_over(size, s.itemsize, 1)
    return formed + 20 * m.call + chunks * parts * dense_seconds((s.n1, s.n2), step_o, step * s.c, outputs, s.same, s.itemsize, m)


def gram_seconds(s: Shape, outputs: Outputs, m: Machine) -> float:
    """Predicted seconds of the gram order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.
        m: The machine.

    Returns:
        Seconds.
    """
    total = 0.0
    full = outputs == "full"
    pairs = s.o * s.o if full else s.o
    seen: dict[tuple[int, int], float] = {}
    for a, b in gram_tiles(s.n1, s.n2, s.o, s.t, s.s, outputs, s.itemsize, s.same):
        high, wide = a.stop - a.start, b.stop - b.start
        if (high, wide) not in seen:
            entries = high * wide * s.t * s.s
            seconds = _right_gram(s, high, wide, m)
            if full:
                seconds += m.product(high * s.o * s.t, s.c, wide * s.o * s.s, s.itemsize, plain=s.t == s.s == 1)
                single = s.t == s.s == 1
                # Weighting permutes the entries, in runs as long as there are positions.
                reach = 5 if single else 14 + 360 / s.s**1.7
                seconds += m.pass_over(entries * pairs, s.itemsize, reach) + (20 if single else 90) * m.call
            elif outputs == "trace":
                seconds += (
                    m.product(high * s.t, s.o * s.c, wide * s.s, s.itemsize, plain=False)
                    + m.pass_over(entries, s.itemsize, 6)
                    + 50 * m.call
                )
            else:
                each = m.product(high * s.t, s.c, wide * s.s, s.itemsize, plain=False) + m.pass_over(entries, s.itemsize, 6) + 50 * m.call
                seconds += s.o * each
            seen[high, wide] = seconds
        total += seen[high, wide]
    return total


def mixed_seconds(s: Shape, outputs: Outputs, m: Machine) -> float:
    """Predicted seconds of the mixed order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.
        m: The machine.

    Returns:
        Seconds.
    """
    step = mixed_step(s.n1, s.o, s.t, s.c, s.itemsize)
    met = s.n1 * (s.n1 + 1) // 2 if s.same else s.n1 * s.n2
    calls = sum(-(-(s.n1 - (j if s.same else 0)) // step) for j in range(s.n2))
    if not calls:
        return 0.0
    high = met / calls
    entries, carried = high * s.t * s.s, high * s.o * s.t * s.c
    one = _right_gram(s, high, 1, m)
    quick = s.o * s.c * s.s * high * s.t >= SMALLEST
    if quick:
        one += m.product(s.o * s.c, s.s, high * s.t, s.itemsize) + m.pass_over(carried, s.itemsize, 10)  # turned round
    else:
        one += m.product(s.o * s.c, s.s, s.t, s.itemsize, math.ceil(high), plain=False) + m.pass_over(carried, s.itemsize, 3)
    if outputs == "full":
        one += m.product(s.o, s.t * s.c, s.o, s.itemsize, math.ceil(high), plain=False) + m.pass_over(high * s.o * s.o, s.itemsize, 3)
    else:
        one += m.pass_over(carried, s.itemsize, 4)
    copied = (s.n1 + (0 if s.same else s.n2)) * s.o * s.t * s.c
    return calls * (one + 40 * m.call) + m.pass_over(copied, s.itemsize) + m.pass_over(entries, s.itemsize, 1)


def _right_gram(s: Shape, high: int | float, wide: int | float, m: Machine) -> float:
    entries = high * s.t * wide * s.s
    if s.one_hot:
        return m.pass_over(entries, s.itemsize)
    if s.pixel_macs:
        shifts = round(s.taps**0.5) * 2  # box sums go axis by axis
        return m.product(high * s.t, s.pixel_macs / (s.t * s.s), wide * s.s, s.itemsize) + shifts * m.pass_over(entries, s.itemsize, 3)
    return m.product(high * s.t, s.k, wide * s.s, s.itemsize)


SECONDS = {"block": block_seconds, "gram": gram_seconds, "mixed": mixed_seconds}


@lru_cache(maxsize=4096)
def choose(s: Shape, outputs: Outputs, m: Machine) -> Contraction:
    """The fastest order for one parameter.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.
        m: The machine.

    Returns:
        ``block``, ``gram`` or ``mixed``; ``output`` for the last layer.
    """
    if s.unit and s.t == s.s == 1:
        return "output"
    if s.t == s.s == 1 and min(s.c, s.k) > 2:
        return "gram"  # always, and the same on every machine
    seconds: dict[Contraction, float] = {"block": block_seconds(s, outputs, m)}
    half = 2 if s.same else 1
    least = s.n1 * s.n2 * s.t * s.s / half / m.products  # what one product of each pair of positions costs
    if least * s.c * (s.o * s.o if outputs == "full" else s.o) < seconds["block"]:
        seconds["gram"] = gram_seconds(s, outputs, m)
    if least * s.c * s.o < seconds["block"]:
        seconds["mixed"] = mixed_seconds(s, outputs, m)
    return min(seconds, key=lambda how: seconds[how])
