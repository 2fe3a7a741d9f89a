r"""More outputs than the last hidden layer is wide: language-model heads, large classifiers.

The outputs are ``f = W h``, so every gradient below the head lies in the column space of ``W``. With an orthonormal basis ``Q`` of it,

.. math:: \sum_o \langle ∇f_o, ∇f'_o \rangle = \sum_l \langle ∇(Q^\top f)_l, ∇(Q^\top f')_l \rangle,

and as many backward passes as the hidden layer is wide give the trace over any number of outputs. The sum over ``l`` is additive, so that a
few rows are held at a time. The head's own part is ``o (⟨h, h'⟩ + 1)``. Where ``W`` has other uses (it is the table of embeddings), its
gradient is ``e_o hᵀ + G_o``, and the two meet in

.. math:: \sum_o \langle e_o h^\top, G'_o \rangle = \Big\langle h, \textstyle\sum_l G'^\top_l Q_l \Big\rangle,

of which the sum over ``l`` is one vector a sample. Equal outputs kept apart, or all pairs, would need all pairs of rows: as many numbers
as squares of the width, and that many times the contraction, so that they go one output after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels.contract import CHUNK_BYTES
from mechfeat.kernels.layout import widen
from mechfeat.ntk.capture import Capture
from mechfeat.ntk.factors import Factor, Lookup, Outer

ROWS = 4  # backward rows held at a time: more were measured slower, and take more memory


@dataclass(frozen=True)
class Head:
    """The last layer of a model with more outputs than inputs.

    Attributes:
        names: Its parameters, the weight first.
        basis: Orthonormal basis of the column space of its weight.
        inputs: Its inputs on each side.
        tied: Other calls receive its weight.
        met: What the weight's other uses come to against the head, for each sample of each side: the sums over rows of ``Gᵀ Q``.
    """

    names: tuple[str, ...]
    basis: Float[Tensor, "o l"]
    inputs: tuple[Tensor, ...]  # [n k]
    tied: bool = False
    met: list[Tensor] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.met.extend(torch.zeros_like(h, dtype=torch.float64) for h in self.inputs)

    def ties(self, name: str) -> bool:
        """Whether a parameter is the weight, and has other uses.

        Args:
            name: The parameter.

        Returns:
            True or False.
        """
        return self.tied and name == self.names[0]

    def meet(self, name: str, side: int, some: Float[Tensor, "l o"] | None, factors: Sequence[Factor]) -> None:
        """Let the head meet the weight's other uses, for a few rows of the basis; of other parameters nothing is taken.

        Args:
            name: A parameter.
            side: Which batch.
            some: The rows.
            factors: The parameter's factors of these rows.
        """
        if some is not None and self.ties(name):
            for factor in factors:
                self.met[side] += _against(widen(some), factor)

    def meeting_macs(self, name: str, factors1: Sequence[Factor], factors2: Sequence[Factor]) -> int:
        """Multiply-adds of :meth:`meet`.

        Args:
            name: A parameter.
            factors1: Its factors, first side.
            factors2: Its factors, second side; the same object for one batch.

        Returns:
            The count, for both sides.
        """
        sides = (factors1,) if len(self.met) == 1 else (factors1, factors2)
        return sum(against_macs(f, len(self.basis)) for factors in sides for f in factors) if self.ties(name) else 0

    def cross(self) -> tuple[Float[Tensor, "n 1 k"], Float[Tensor, "m 1 k"]]:
        """Vectors whose products are the part of the weight in which the head meets its other uses.

        Returns:
            First side, second side.
        """
        (h1, h2), (u1, u2) = ((v[0].double(), v[-1].double()) for v in (self.inputs, self.met))
        return torch.cat([h1, u1], 1)[:, None], torch.cat([u2, h2], 1)[:, None]

    def factors(self, together: bool) -> dict[str, list[list[Outer]]]:
        """The head's own factors, whose gradients are unit vectors and need no memory.

        Args:
            together: One part for weight and bias, unless the weight has other uses.

        Returns:
            Parameter → one use on each side.
        """
        o = len(self.basis)
        rights = {self.names[0]: list(self.inputs)}
        for bias in self.names[1:]:
            ones = [h.new_ones(len(h), 1) for h in self.inputs]
            if together and not self.tied:
                rights[self.names[0]] = [torch.cat(pair, 1) for pair in zip(self.inputs, ones)]
            else:
                rights[bias] = ones
        return {
            name: [[Outer(h.new_zeros(()).expand(len(h), o, 1, o), h[:, None], unit=True)] for h in sides] for name, sides in rights.items()
        }


def find(captures: tuple[Capture, ...], basis: Tensor | None = None) -> Head | None:
    """The head of a captured model, if going through its bottleneck saves backward passes.

    Args:
        captures: The captured passes.
        basis: The basis, where it is known.

    Returns:
        The head; None where the outputs are no linear layer's, are few, or share their bias with another call.
    """
    heads = [c.head for c in captures]
    first = heads[0]
    if first is None or any(h is None or h[0] != first[0] for h in heads):
        return None
    names, W, _, tied = first
    if W.shape[0] <= W.shape[1]:
        return None
    # In float64: what leaks out of the basis is lost from every kernel entry.
    Q = torch.linalg.qr(W.detach().double())[0].to(W.dtype) if basis is None else basis
    return Head(names, Q, tuple(h[2] for h in heads if h is not None), tied)


def _against(some: Float[Tensor, "l o"], factor: Factor) -> Float[Tensor, "n k"]:
    """``Σ_l G_lᵀ q_l``: of a table read by row, one gather."""
    if isinstance(factor, Lookup):
        return einsum(some[:, factor.ids], widen(factor.left), "l n t, n l t k -> n k")
    if isinstance(factor, Outer):
        left, right = widen(factor.left), widen(factor.inputs)[:, None]
        rows, columns = (right, left) if factor.turned else (left, right)
        weights = (rows * some[None, :, None]).sum(3, keepdim=True)
        return (weights * columns).sum((1, 2))
    (n, l, _, k), o = factor.rows(slice(0, 1)).shape, some.shape[1]
    step = max(1, CHUNK_BYTES // max(1, n * l * k * some.element_size()))
    total = some.new_zeros(n, k)
    for i in range(0, o, step):
        part = slice(i, min(i + step, o))
        total += einsum(some[:, part], widen(factor.rows(part)), "l o, n l o k -> n k")
    return total


def against_macs(factor: Factor, o: int) -> int:
    """Multiply-adds with which a head meets another use of its weight.

    Args:
        factor: The use, for some rows.
        o: Outputs.

    Returns:
        The count.
    """
    if isinstance(factor, Lookup):
        return factor.left.numel()
    if isinstance(factor, Outer):
        n, l, t, c = factor.left.shape
        return n * l * t * (c + factor.right.shape[2])
    return factor.rows(slice(0, 1)).numel() * o
