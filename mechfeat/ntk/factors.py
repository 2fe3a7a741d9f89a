"""A parameter's gradient as a sum of factors, one for each use of the parameter, and the contraction of two such sums."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.kernels import Outputs, block, dense, gram, kernel_shape
from mechfeat.kernels.contract import CHUNK_BYTES, widen

Contraction = Literal["auto", "block", "gram"]


@dataclass(frozen=True)
class Outer:
    """Gradient of a matrix: a sum over positions of outer products.

    Attributes:
        left: Gradient at the output of the call.
        right: Input rows of the call.
        turned: The parameter is stored as ``[k c]`` (``addmm``) rather than ``[c k]`` (``linear``).
    """

    left: Float[Tensor, "n o t c"]
    right: Float[Tensor, "n t k"]
    turned: bool = False

    def rows(self, part: slice) -> Float[Tensor, "n o row column"]:
        """Gradient of some rows of the parameter."""
        if self.turned:
            return einsum(self.right[..., part], self.left, "n t k, n o t c -> n o k c")
        return einsum(self.left[..., part], self.right, "n o t c, n t k -> n o c k")


@dataclass(frozen=True)
class Lookup:
    """Gradient of a table read by row.

    Attributes:
        left: Gradient at the output of the call, zero where the row takes none.
        ids: Which row was read.
    """

    left: Float[Tensor, "n o t c"]
    ids: Int[Tensor, "n t"]

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
    """

    gradient: Float[Tensor, "n o *parameter"]

    def rows(self, part: slice) -> Float[Tensor, "n o *parameter"]:
        """Gradient of some rows of the parameter."""
        return self.gradient[:, :, part] if self.gradient.ndim > 2 else self.gradient


Factor = Outer | Lookup | Dense


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


Choose = Callable[[Shape, Outputs], Literal["block", "gram"]]


def merge(factors: Sequence[Factor]) -> Factor | None:
    """Several uses as one: positions are concatenated where all uses are of one kind.

    Args:
        factors: The uses of one parameter.

    Returns:
        One factor, or None where the kinds differ.
    """
    first = factors[0]
    if len(factors) == 1:
        return first
    if isinstance(first, Outer) and all(isinstance(f, Outer) and f.turned == first.turned for f in factors):
        return Outer(torch.cat([f.left for f in factors], 2), torch.cat([f.right for f in factors], 1), first.turned)  # type: ignore[union-attr]
    if isinstance(first, Lookup) and all(isinstance(f, Lookup) for f in factors):
        return Lookup(torch.cat([f.left for f in factors], 2), torch.cat([f.ids for f in factors], 1))  # type: ignore[union-attr]
    return None


def shape_of(factors1: Sequence[Factor], factors2: Sequence[Factor]) -> Shape | None:
    """Sizes of a contraction in outer-product form.

    Args:
        factors1: Uses on the first side.
        factors2: Uses on the second side; the same object for a batch with itself.

    Returns:
        The sizes, or None where the gradient has to be formed (mixed kinds, or vectors).
    """
    same = factors2 is factors1
    a, b = merge(factors1), merge(factors2)
    if a is None or b is None or isinstance(a, Dense) or isinstance(b, Dense) or type(a) is not type(b):
        return None
    (n1, o, t, c), (n2, _, s, _) = a.left.shape, b.left.shape
    if isinstance(a, Outer) and isinstance(b, Outer):
        return None if a.turned != b.turned else Shape(n1, n2, o, t, s, c, a.right.shape[-1], same=same)
    assert isinstance(a, Lookup)
    assert isinstance(b, Lookup)
    rows = torch.cat([a.ids.flatten(), b.ids.flatten()]).unique().numel()
    return Shape(n1, n2, o, t, s, c, rows, one_hot=True, same=same)


def contract(
    factors1: Sequence[Factor], factors2: Sequence[Factor], outputs: Outputs, choose: Choose, n_rows: int
) -> tuple[Float[Tensor, "..."], str]:
    """A parameter's part of the kernel.

    Args:
        factors1: Uses on the first side.
        factors2: Uses on the second side; the same object for a kernel of a batch with itself.
        outputs: What is kept of the outputs.
        choose: Decides between ``block`` and ``gram``.
        n_rows: Size of the parameter's first axis.

    Returns:
        The kernel, and the name of the contraction used.
    """
    a = merge(factors1)
    b = a if factors2 is factors1 else merge(factors2)
    shape = None if a is None or b is None else shape_of(one := [a], one if b is a else [b])
    if shape is not None and not isinstance(a, Dense) and not isinstance(b, Dense):
        assert a is not None
        assert b is not None
        right1, right2 = (a.ids, b.ids) if isinstance(a, Lookup) else (a.right, b.right)  # type: ignore[union-attr]
        if b is a:
            right2 = right1
        method = choose(shape, outputs)
        return (block if method == "block" else gram)(a.left, right1, b.left, right2, outputs), method
    if isinstance(a, Dense) and isinstance(b, Dense):
        return dense(_flat(a.gradient), _flat(b.gradient), outputs), "dense"
    return _contract_by_rows(factors1, factors2, outputs, n_rows), "dense"


def _contract_by_rows(factors1: Sequence[Factor], factors2: Sequence[Factor], outputs: Outputs, n_rows: int) -> Float[Tensor, "..."]:
    """Form the gradient a few rows at a time: uses of different kinds (tied embeddings) meet only there."""
    one = factors1[0].rows(slice(0, 1))
    n1, o = one.shape[:2]
    n2 = factors2[0].rows(slice(0, 1)).shape[0]
    row_bytes = (n1 + n2) * o * max(1, one[0, 0].numel()) * one.element_size()
    step = max(1, CHUNK_BYTES // row_bytes)
    kernel = widen(one).new_zeros(kernel_shape(n1, n2, o, outputs))
    for i in range(0, n_rows, step):
        part = slice(i, min(i + step, n_rows))
        J1 = _total(factors1, part)
        J2 = J1 if factors2 is factors1 else _total(factors2, part)
        kernel += dense(J1, J2, outputs)
    return kernel


def _total(factors: Sequence[Factor], part: slice) -> Float[Tensor, "n o p"]:
    total = widen(_flat(factors[0].rows(part)))
    for factor in factors[1:]:
        total = total + _flat(factor.rows(part))
    return total


def _flat(J: Float[Tensor, "n o *parameter"]) -> Float[Tensor, "n o p"]:
    return J.flatten(2) if J.ndim > 2 else J[..., None]  # a parameter may be one number
