"""The contraction of two sums of factors: a parameter's part of a kernel."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels import Outputs, block, dense, gram, mixed
from mechfeat.kernels.contract import CHUNK_BYTES
from mechfeat.kernels.layout import widen
from mechfeat.ntk.factors import Dense, Factor, Lookup, Outer, flat, pair, spread
from mechfeat.ntk.outlines import Choose, Shape, apart, entries, outline, shape_of


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
        J = flat(a.gradient)
        dense(J, J if b is a else flat(b.gradient), outputs, into)
        return Piece("dense", None, entries(a))
    return Piece("dense", None, _contract_by_rows(into, factors1, factors2, outputs, n_rows))


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
