"""A parameter's gradient as a sum of factors, one for each use of the parameter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.kernels.layout import widen
from mechfeat.kernels.patches import Patches
from mechfeat.ntk.views import Place


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
        J = widen(flat(factor.rows(slice(0, _n_rows(factor, place)))))
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
        return widen(flat(factor.rows(part)))
    width = prod(factor.place.whole) // n_rows
    low, high = part.start * width, part.stop * width
    index = factor.place.index.reshape(_n_rows(factor, factor.place), -1)
    inside = (index >= low) & (index < high)
    hit = inside.any(1).nonzero()[:, 0].tolist()
    some = slice(hit[0], hit[-1] + 1) if hit else slice(0, 0)
    J, keep = widen(flat(factor.rows(some))), inside[some].flatten()
    return J.new_zeros(*J.shape[:2], high - low).index_copy_(2, index[some].flatten()[keep] - low, J[..., keep])


def _n_rows(factor: Factor, place: Place) -> int:
    """Rows of the view."""
    if isinstance(factor, Dense):
        return factor.gradient.shape[2] if factor.gradient.ndim > 2 else 1
    return factor.left.shape[3] if isinstance(factor, Outer) else place.size // max(1, factor.left.shape[3])


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


def flat(J: Float[Tensor, "n o *parameter"]) -> Float[Tensor, "n o p"]:
    """A gradient with the parameter's axes as one.

    Args:
        J: The gradient.

    Returns:
        The same numbers.
    """
    return J.flatten(2) if J.ndim > 2 else J[..., None]  # a parameter may be one number
