r"""More outputs than the last hidden layer is wide: language-model heads, large classifiers.

The outputs are ``f = W h``, so every gradient below the head lies in the column space of ``W``. With an orthonormal basis ``Q`` of it,

.. math:: \sum_o \langle ∇f_o, ∇f'_o \rangle = \sum_l \langle ∇(Q^\top f)_l, ∇(Q^\top f')_l \rangle,

and as many backward passes as the hidden layer is wide give the trace over any number of outputs. The sum over ``l`` is additive, so that a
few rows are held at a time. The head's own part is ``o (⟨h, h'⟩ + 1)``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.ntk.capture import Capture
from mechfeat.ntk.factors import Outer

ROWS = 4  # backward rows held at a time: more were measured slower, and take more memory


@dataclass(frozen=True)
class Head:
    """The last layer of a model with more outputs than inputs.

    Attributes:
        names: Its parameters, the weight first.
        basis: Orthonormal basis of the column space of its weight.
        inputs: Its inputs on each side.
    """

    names: tuple[str, ...]
    basis: Float[Tensor, "o l"]
    inputs: tuple[Tensor, ...]  # [n k]

    def factors(self, together: bool) -> dict[str, list[list[Outer]]]:
        """The head's own factors, whose gradients are unit vectors and need no memory.

        Args:
            together: One part for weight and bias.

        Returns:
            Parameter → one use on each side.
        """
        o = len(self.basis)
        rights = {self.names[0]: list(self.inputs)}
        for bias in self.names[1:]:
            ones = [h.new_ones(len(h), 1) for h in self.inputs]
            if together:
                rights[self.names[0]] = [torch.cat(pair, 1) for pair in zip(self.inputs, ones)]
            else:
                rights[bias] = ones
        return {
            name: [[Outer(h.new_zeros(()).expand(len(h), o, 1, o), h[:, None], unit=True)] for h in sides] for name, sides in rights.items()
        }


def find(captures: tuple[Capture, ...]) -> Head | None:
    """The head of a captured model, if going through its bottleneck saves backward passes.

    Args:
        captures: The captured passes.

    Returns:
        The head; None where the outputs are no linear layer's, are few, or share their weight with another call.
    """
    heads = [c.head for c in captures]
    first = heads[0]
    if first is None or any(h is None or h[0] != first[0] for h in heads):
        return None
    names, W, _ = first
    if W.shape[0] <= W.shape[1]:
        return None
    # In float64: what leaks out of the basis is lost from every kernel entry.
    Q = torch.linalg.qr(W.detach().double())[0].to(W.dtype)
    return Head(names, Q, tuple(h[2] for h in heads if h is not None))
