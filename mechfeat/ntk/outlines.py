"""What a contraction of factors will be, from their sizes alone: the factors themselves may be gone, or not there yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from mechfeat.kernels import Outputs
from mechfeat.kernels.patches import Patches
from mechfeat.ntk.factors import Dense, Factor, Lookup, pair
from mechfeat.ntk.views import Place, together

Contraction = Literal["block", "gram", "mixed", "output"]


@dataclass(frozen=True)
class Shape:
    """The numbers that decide how a parameter is contracted.

    Attributes:
        n1: Samples of the first side.
        n2: Samples of the second side.
        o: Outputs.
        t: Positions of the first side, all uses together.
        s: Positions of the second side.
        c: Output channels.
        k: Input channels; for a table the number of rows read, at most.
        one_hot: Whether the right factor is one-hot.
        same: Whether both sides are one batch, whose gradients are formed once.
        unit: Whether the left factors are unit vectors.
        itemsize: Bytes of a number in the products.
        taps: Columns that are formed together: the places of a convolution's kernel, or one.
        pixel_macs: Multiply-adds of a pair's Gram matrix of pixels, where it stands for that of the right factors.
    """

    n1: int
    n2: int
    o: int
    t: int
    s: int
    c: int
    k: int
    one_hot: bool = False
    same: bool = False
    unit: bool = False
    itemsize: int = 4
    taps: int = 1
    pixel_macs: int = 0


Choose = Callable[[Shape, Outputs], Contraction]


@dataclass(frozen=True)
class Outline:
    """What the cost of a contraction depends on of one side's factor; the factor itself may be gone.

    Attributes:
        n: Samples.
        o: Outputs.
        t: Positions.
        c: Output channels.
        k: Input channels; 0 for a table.
        ids: Rows of the table that were read; None for a matrix.
        turned: As for :class:`Outer`.
        unit: As for :class:`Outer`.
        itemsize: Bytes of a number in the products.
        place: As for :class:`Outer`.
        taps: Of patches, places of the kernel.
        pixels: Of patches that share them, pixels a sample; 0 otherwise.
        channels: Of patches that share their pixels, channels.
    """

    n: int
    o: int
    t: int
    c: int
    k: int
    ids: Int[Tensor, "n t"] | None
    turned: bool
    unit: bool
    itemsize: int
    place: Place | None
    taps: int = 1
    pixels: int = 0
    channels: int = 0


@dataclass(frozen=True)
class Formed:
    """A gradient without outline, because it is there, or because uses of several kinds have to be added.

    Attributes:
        entries: Of a gradient that is there, how many; None where it has to be formed.
        place: As for :class:`Outer`.
    """

    entries: int | None
    place: Place | None


def outline(f: Factor | None) -> Outline | None:
    """The outline of a factor.

    Args:
        f: A factor.

    Returns:
        Its outline; None for a gradient that is formed, or uses of several kinds.
    """
    if f is None or isinstance(f, Dense):
        return None
    (n, o, t, c), itemsize = f.left.shape, max(4, f.left.element_size())
    if isinstance(f, Lookup):
        return Outline(n, o, t, c, 0, f.ids, False, False, itemsize, f.place)
    right, taps, pixels, channels = f.right, 1, 0, 0
    if isinstance(right, Patches):
        taps = right.taps
        pixels, channels = (right.pixels, right.maps.shape[1]) if right.shares else (0, 0)
    return Outline(n, o, t, c, right.shape[-1], None, f.turned, f.unit, itemsize, f.place, taps, pixels, channels)


def outlines(factors: Sequence[Factor]) -> list[Outline | Formed]:
    """Outlines of the uses of a parameter.

    Args:
        factors: The uses.

    Returns:
        One for each place in the parameter.
    """
    places: list[list[Factor]] = []
    for f in factors:
        same = [uses for uses in places if uses[0].place == f.place]
        if same:
            same[0].append(f)
        else:
            places.append([f])
    found: list[Outline | Formed] = []
    for uses in places:
        one = pair(uses, uses)[0]
        found.append(outline(one) or Formed(entries(one) if isinstance(one, Dense) else None, uses[0].place))
    return found


def entries(f: Dense) -> int:
    """Entries of a gradient that is there.

    Args:
        f: The gradient.

    Returns:
        Their number, for one sample and output.
    """
    return prod(f.gradient.shape[2:])


T = TypeVar("T", Factor, "Outline | Formed")


def apart(uses1: Sequence[T], uses2: Sequence[T]) -> list[tuple[Sequence[T], Sequence[T]]]:
    """Uses of different parts of a parameter, which are contracted one by one.

    Args:
        uses1: Uses on the first side, or their outlines.
        uses2: Uses on the second side; the same object for a batch with itself.

    Returns:
        Uses of both sides that share no entry with the others. What meets nothing of the other side is left out.
    """
    sides: list[Sequence[T]] = [uses1] if uses2 is uses1 else [uses1, uses2]
    places = [f.place for uses in sides for f in uses if f.place is not None]
    if len(places) < sum(map(len, sides)):
        return [(uses1, uses2)]  # the whole parameter meets every part of it
    found: dict[int, tuple[list[T], list[T]]] = {}
    groups = iter(together(places))
    for side, uses in enumerate(sides):
        for f in uses:
            found.setdefault(next(groups), ([], []))[side].append(f)
    if uses2 is uses1:
        return [(one, one) for one, _ in found.values()]
    return [pair for pair in found.values() if pair[0] and pair[1]]


def foresee(uses1: Sequence[Outline | Formed], uses2: Sequence[Outline | Formed], n_entries: int) -> list[tuple[Shape | None, int]]:
    """What :func:`~mechfeat.ntk.contraction.contract` will do.

    Args:
        uses1: Outlines of the first side.
        uses2: Outlines of the second side; the same object for a batch with itself.
        n_entries: Size of the parameter.

    Returns:
        For each part of the parameter the sizes of its outer-product form, if it has one, and the entries of its gradient.
    """
    found: list[tuple[Shape | None, int]] = []
    for a, b in apart(uses1, uses2):
        one, other, single = a[0], b[0], len(a) == len(b) == 1
        if single and isinstance(one, Outline) and isinstance(other, Outline) and (shape := shape_of(one, other)):
            found.append((shape, n_entries))
        elif (
            single and isinstance(one, Formed) and isinstance(other, Formed) and one.entries and other.entries and one.place == other.place
        ):
            found.append((None, one.entries))
        else:
            found.append((None, n_entries))
    return found


def shape_of(a: Outline | None, b: Outline | None) -> Shape | None:
    """Sizes of a contraction in outer-product form.

    Args:
        a: Outline of the first side.
        b: Outline of the second side; the same object for a batch with itself.

    Returns:
        The sizes, or None where the gradient has to be formed (mixed kinds, or vectors).
    """
    if a is None or b is None or (a.ids is None) != (b.ids is None) or a.turned != b.turned or a.place != b.place or a.c != b.c:
        return None
    k = a.k if a.ids is None or b.ids is None else torch.cat([a.ids.flatten(), b.ids.flatten()]).unique().numel()
    one_hot, unit = a.ids is not None, a.unit and b.unit
    pixel_macs = a.pixels * b.pixels * a.channels
    return Shape(
        a.n, b.n, a.o, a.t, b.t, a.c, k, one_hot=one_hot, same=b is a, unit=unit, itemsize=a.itemsize, taps=a.taps, pixel_macs=pixel_macs
    )
