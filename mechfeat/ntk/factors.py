"""A parameter's gradient as a sum of factors, one for each use of the parameter, and the contraction of two such sums."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeVar

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.kernels import Outputs, block, dense, gram, mixed
from mechfeat.kernels.contract import CHUNK_BYTES
from mechfeat.kernels.layout import widen
from mechfeat.kernels.patches import Patches
from mechfeat.ntk.views import Place, together

Contraction = Literal["block", "gram", "mixed", "output"]


@dataclass(frozen=True)
class Outer:
    """Gradient of a matrix: a sum over positions of outer products.

    Attributes:
        left: Gradient at the output of the call.
        right: Input rows of the call, or the patches whose rows they are.
        turned: The parameter is stored as ``[k c]`` (``addmm``) rather than ``[c k]`` (``linear``).
        unit: The call's output is the model's, so that the gradients are unit vectors.
        place: Which entries of the parameter the matrix has, row by row; None where it is the parameter.
    """

    left: Float[Tensor, "n o t c"]
    right: Float[Tensor, "n t k"] | Patches
    turned: bool = False
    unit: bool = False
    place: Place | None = None

    def at(self, samples: Sequence[int]) -> "Outer":
        """The factor of some samples."""
        return replace(self, left=self.left[list(samples)], right=self.right[list(samples)])

    def with_bias(self) -> "Outer":
        """The factor of weight and bias together: a bias is the column of a weight whose input is one."""
        if isinstance(self.right, Patches):
            return replace(self, right=replace(self.right, ones=True))
        return replace(self, right=torch.cat([self.right, self.right.new_ones(*self.right.shape[:2], 1)], 2))

    @property
    def inputs(self) -> Float[Tensor, "n t k"]:
        """Input rows of the call, formed."""
        return self.right.rows() if isinstance(self.right, Patches) else self.right

    def rows(self, part: slice) -> Float[Tensor, "n o row column"]:
        """Gradient of some rows of the parameter."""
        if self.turned:
            return einsum(self.inputs[..., part], self.left, "n t k, n o t c -> n o k c")
        return einsum(self.left[..., part], self.inputs, "n o t c, n t k -> n o c k")


@dataclass(frozen=True)
class Lookup:
    """Gradient of a table read by row.

    Attributes:
        left: Gradient at the output of the call, zero where the row takes none.
        ids: Which row was read.
        place: Which entries of the parameter the table has; None where it is the parameter.
    """

    left: Float[Tensor, "n o t c"]
    ids: Int[Tensor, "n t"]
    place: Place | None = None

    def rows(self, part: slice) -> Float[Tensor, "n o row c"]:
        """Gradient of some rows of the table."""
        n, o, t, c = self.left.shape
        size = part.stop - part.start
        inside = (self.ids >= part.start) & (self.ids < part.stop)
        where = torch.where(inside, self.ids - part.start, size)  # rows outside are collected in one more, which is cut off
        out = self.left.new_zeros(n, o, size + 1, c)
        return out.scatter_add_(2, where[:, None, :, None].expand(n, o, t, c), self.left)[:, :, :size]


@dataclass(frozen=True)
class Dense:
    """Gradient that is there already.

    Attributes:
        gradient: One row a sample and output.
        place: Which entries of the parameter the gradient is of; None where it is of all.
    """

    gradient: Float[Tensor, "n o *parameter"]
    place: Place | None = None

    def rows(self, part: slice) -> Float[Tensor, "n o *parameter"]:
        """Gradient of some rows of the parameter."""
        return self.gradient[:, :, part] if self.gradient.ndim > 2 else self.gradient


Factor = Outer | Lookup | Dense


def placed(factor: Factor, place: Place | None) -> Factor:
    """The factor of a parameter, from that of a view.

    Args:
        factor: The gradient of the view.
        place: Which entries of the parameter the view has; None where it is the parameter.

    Returns:
        The same numbers, as the parameter's; entries that the view has several times are summed.
    """
    if place is None:
        return factor
    if isinstance(factor, Outer) and factor.turned:
        factor, place = replace(factor, turned=False), place.permuted((1, 0))
    if not place.injective:
        entries, where = place.index.flatten().unique(return_inverse=True)
        J = widen(_flat(factor.rows(slice(0, _n_rows(factor, place)))))
        sums = J.new_zeros(*J.shape[:2], len(entries)).index_add_(2, where, J)
        return placed(Dense(sums), Place(place.whole, entries.shape, None, listed=entries, device=entries.device))
    if isinstance(factor, Dense):
        whole = place.fits(place.whole[0] if place.whole else 1)
        return Dense(factor.gradient.reshape(*factor.gradient.shape[:2], *place.whole)) if whole else replace(factor, place=place)
    if place.fits(_n_rows(factor, place)):
        return factor
    if isinstance(factor, Outer) and place.turned(factor.left.shape[3], factor.right.shape[2]):
        return replace(factor, turned=True)
    return replace(factor, place=place)


def spread(factor: Factor, part: slice, n_rows: int) -> Float[Tensor, "n o p"]:
    """Gradient of some rows of the parameter.

    Args:
        factor: A use, possibly of a view.
        part: Rows of the parameter.
        n_rows: How many it has.

    Returns:
        The gradient, zero where the view has no entries.
    """
    if factor.place is None:
        return widen(_flat(factor.rows(part)))
    width = prod(factor.place.whole) // n_rows
    low, high = part.start * width, part.stop * width
    index = factor.place.index.reshape(_n_rows(factor, factor.place), -1)
    inside = (index >= low) & (index < high)
    hit = inside.any(1).nonzero()[:, 0].tolist()
    some = slice(hit[0], hit[-1] + 1) if hit else slice(0, 0)
    J, keep = widen(_flat(factor.rows(some))), inside[some].flatten()
    return J.new_zeros(*J.shape[:2], high - low).index_copy_(2, index[some].flatten()[keep] - low, J[..., keep])


def _n_rows(factor: Factor, place: Place) -> int:
    """Rows of the view."""
    if isinstance(factor, Dense):
        return factor.gradient.shape[2] if factor.gradient.ndim > 2 else 1
    return factor.left.shape[3] if isinstance(factor, Outer) else place.size // max(1, factor.left.shape[3])


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


def merge(factors: Sequence[Factor]) -> Factor | None:
    """Several uses as one: positions are concatenated where all uses are of one kind.

    Args:
        factors: The uses of one parameter.

    Returns:
        One factor, or None where the kinds, or the places in the parameter, differ.
    """
    first = factors[0]
    if len(factors) == 1:
        return first
    if isinstance(first, Dense) or any(type(f) is not type(first) or _form(f) != _form(first) for f in factors):
        return None
    left = torch.cat([f.left for f in factors], 2)  # type: ignore[union-attr]
    if isinstance(first, Lookup):
        return Lookup(left, torch.cat([f.ids for f in factors], 1), first.place)  # type: ignore[union-attr]
    return Outer(left, torch.cat([f.inputs for f in factors], 1), first.turned, place=first.place)  # type: ignore[union-attr]


def _form(f: Outer | Lookup) -> tuple[object, ...]:
    return (f.place, f.left.shape[3]) + ((f.turned, f.right.shape[-1]) if isinstance(f, Outer) else ())


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
        found.append(outline(one) or Formed(_entries(one) if isinstance(one, Dense) else None, uses[0].place))
    return found


def _entries(f: Dense) -> int:
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


def foresee(uses1: Sequence[Outline | Formed], uses2: Sequence[Outline | Formed], entries: int) -> list[tuple[Shape | None, int]]:
    """What :func:`contract` will do.

    Args:
        uses1: Outlines of the first side.
        uses2: Outlines of the second side; the same object for a batch with itself.
        entries: Size of the parameter.

    Returns:
        For each part of the parameter the sizes of its outer-product form, if it has one, and the entries of its gradient.
    """
    found: list[tuple[Shape | None, int]] = []
    for a, b in apart(uses1, uses2):
        one, other, single = a[0], b[0], len(a) == len(b) == 1
        if single and isinstance(one, Outline) and isinstance(other, Outline) and (shape := shape_of(one, other)):
            found.append((shape, entries))
        elif (
            single and isinstance(one, Formed) and isinstance(other, Formed) and one.entries and other.entries and one.place == other.place
        ):
            found.append((None, one.entries))
        else:
            found.append((None, entries))
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


@dataclass(frozen=True)
class Piece:
    """One contraction of some entries of a parameter.

    Attributes:
        how: Its name.
        shape: The sizes it had, if it had the outer-product form.
        entries: Entries of the gradients that were formed, if it had not.
    """

    how: str
    shape: Shape | None
    entries: int


def contract(
    into: Float[Tensor, "..."], factors1: Sequence[Factor], factors2: Sequence[Factor], outputs: Outputs, choose: Choose, n_rows: int
) -> list[Piece]:
    """Add a parameter's part to a kernel.

    Args:
        into: The kernel.
        factors1: Uses on the first side.
        factors2: Uses on the second side; the same object for a kernel of a batch with itself, whose lower triangle alone is meant then.
        outputs: What is kept of the outputs.
        choose: Decides between the orders.
        n_rows: Size of the parameter's first axis.

    Returns:
        The contractions used; several where uses are of different parts of the parameter.
    """
    return [_contract(into, a, b, outputs, choose, n_rows) for a, b in apart(factors1, factors2)]


def _contract(
    into: Float[Tensor, "..."], factors1: Sequence[Factor], factors2: Sequence[Factor], outputs: Outputs, choose: Choose, n_rows: int
) -> Piece:
    a, b = pair(factors1, factors2)
    first = outline(a)
    shape = shape_of(first, first if b is a else outline(b))
    if shape is not None and not isinstance(a, Dense) and not isinstance(b, Dense):
        assert a is not None
        assert b is not None
        right1, right2 = (a.ids, b.ids) if isinstance(a, Lookup) else (a.right, b.right)  # type: ignore[union-attr]
        if b is a:
            right2 = right1
        method = choose(shape, outputs)
        if method == "output":
            assert isinstance(a, Outer)
            assert isinstance(b, Outer)
            add_output(into, a.inputs[:, 0], b.inputs[:, 0], outputs, shape.o)
        else:
            {"block": block, "gram": gram, "mixed": mixed}[method](a.left, right1, b.left, right2, outputs, into)
        return Piece(method, shape, 0)
    if isinstance(a, Dense) and isinstance(b, Dense) and a.place == b.place:
        J = _flat(a.gradient)
        dense(J, J if b is a else _flat(b.gradient), outputs, into)
        return Piece("dense", None, _entries(a))
    return Piece("dense", None, _contract_by_rows(into, factors1, factors2, outputs, n_rows))


def pair(factors1: Sequence[Factor], factors2: Sequence[Factor]) -> tuple[Factor | None, Factor | None]:
    """Both sides' uses as one factor each, without dead positions.

    Args:
        factors1: Uses on the first side.
        factors2: Uses on the second side; the same object for a kernel of a batch with itself.

    Returns:
        Two factors, one object for one batch; None for a side whose uses are of several kinds.
    """
    a = merge(factors1)
    a = a if a is None or isinstance(a, Dense) else living(a)
    if factors2 is factors1:
        return a, a
    b = merge(factors2)
    return a, b if b is None or isinstance(b, Dense) else living(b)


def living(f: Outer | Lookup) -> Outer | Lookup:
    """A factor without the positions at which every gradient is zero: with a read-out at the last token, most of the last block.

    Args:
        f: A factor.

    Returns:
        The factor itself if all its positions live; of a factor that is zero one position is left.
    """
    if f.left.shape[2] < 2 or not f.left.numel():
        return f
    # Positions that are zero for one sample and output are few, so that all of the gradients need not be read.
    suspects = (f.left[0, 0] == 0).all(1).nonzero()[:, 0]
    dead = suspects[(f.left[:, :, suspects] == 0).all(3).all(1).all(0)] if len(suspects) else suspects
    if not len(dead):
        return f
    live = torch.ones(f.left.shape[2], dtype=torch.bool, device=f.left.device)
    live[dead[1:] if len(dead) == len(live) else dead] = False
    if isinstance(f, Lookup):
        return replace(f, left=f.left[:, :, live], ids=f.ids[:, live])
    return replace(f, left=f.left[:, :, live], right=f.inputs[:, live])


def add_output(into: Float[Tensor, "..."], right1: Float[Tensor, "n k"], right2: Float[Tensor, "m k"], outputs: Outputs, o: int) -> None:
    """Add the part of a layer whose output is the model's: its gradients are unit vectors, so equal outputs alone meet.

    Args:
        into: The kernel.
        right1: The layer's inputs, first side.
        right2: The layer's inputs, second side.
        outputs: What is kept of the outputs.
        o: Outputs.
    """
    right1, right2 = widen(right1), widen(right2)
    A = right1 @ right2.T
    if outputs == "full":
        into.diagonal(dim1=1, dim2=3).add_(A[..., None])
    elif outputs == "trace":
        into.add_(A, alpha=o)
    else:
        into.add_(A[..., None])


def _contract_by_rows(
    into: Float[Tensor, "..."], factors1: Sequence[Factor], factors2: Sequence[Factor], outputs: Outputs, n_rows: int
) -> int:
    """Form the gradient a few rows at a time: uses of different kinds (tied embeddings) meet only there."""
    one = spread(factors1[0], slice(0, 1), n_rows)
    n1, o, width = one.shape
    n2 = len(spread(factors2[0], slice(0, 1), n_rows))
    step = max(1, CHUNK_BYTES // ((n1 + n2) * o * max(1, width) * one.element_size()))
    for i in range(0, n_rows, step):
        part = slice(i, min(i + step, n_rows))
        J1 = _total(factors1, part, n_rows)
        dense(J1, J1 if factors2 is factors1 else _total(factors2, part, n_rows), outputs, into)
    return n_rows * width


def _total(factors: Sequence[Factor], part: slice, n_rows: int) -> Float[Tensor, "n o p"]:
    total = spread(factors[0], part, n_rows)
    for factor in factors[1:]:
        total = total + spread(factor, part, n_rows)
    return total


def _flat(J: Float[Tensor, "n o *parameter"]) -> Float[Tensor, "n o p"]:
    return J.flatten(2) if J.ndim > 2 else J[..., None]  # a parameter may be one number
