"""What the infinite-width kernels of token models share: checks, blocks of documents, and symmetry bit for bit."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import UnsupportedModelError
from mechfeat.models.text.base import PART_OF, TextModel
from mechfeat.models.text.ids import check_ids, lengths
from mechfeat.models.text.init import InitSpec

CELLS = 2**22  # pairs of positions computed at once: 32 MiB an array of them
STANDARD = InitSpec()
BITS = 44
Triple = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class AnalyticKernel(ABC):
    """An infinite-width tangent kernel of documents, for one output; with C outputs it is that of each, and outputs are independent.

    Attributes:
        init: Standard deviations, and what does not train.
        n_tokens: Size of the vocabulary, to check ids against; None for any.
    """

    init: InitSpec = STANDARD
    n_tokens: int | None = None

    def __call__(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"] | None = None) -> Float[Tensor, "n1 n2"]:
        """The kernel of documents.

        Args:
            x1: Documents, padded by -1.
            x2: Other documents; by default the kernel is that of ``x1`` with itself, and equals its transpose bit for bit.

        Returns:
            float64; 0 for empty documents.

        Raises:
            DtypeError: Ids are not integers.
            ShapeError: Ids are outside the vocabulary, or padding stands before a token.
        """
        check_ids(x1, self.n_tokens)
        if x2 is not None:
            check_ids(x2, self.n_tokens)
        left, right = trimmed(x1), trimmed(x1 if x2 is None else x2)
        theta = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
        rows = max(1, CELLS // max(1, len(right) * self._cells(left.shape[1], right.shape[1])))
        for start in range(0, len(left), rows):
            stop = min(start + rows, len(left))
            columns = stop if x2 is None else len(right)
            theta[start:stop, :columns] = self._block(left[start:stop], right[:columns])
        return theta if x2 is not None else theta.tril() + theta.tril(-1).T

    @classmethod
    @abstractmethod
    def of(cls, module: Any) -> "AnalyticKernel":
        """The kernel of a module's architecture and initial standard deviations.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """

    @abstractmethod
    def _block(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"]) -> Float[Tensor, "n1 n2"]:
        """The kernel of documents that fit in memory together."""

    def _cells(self, T1: int, T2: int) -> int:
        """Numbers a pair of documents takes."""
        return max(1, T1) * max(1, T2)


def init_of(module: TextModel) -> InitSpec:
    """Initial standard deviations of a text model, and what does not train: what its kernel reads of it.

    Args:
        module: The finite network.

    Returns:
        Its specification.

    Raises:
        UnsupportedModelError: A parameter trains, or does not, against what the specification says.
    """
    for name, p in module.named_parameters(recurse=False):
        part = PART_OF[name]
        if p.requires_grad != bool(module.init.trains(part)):
            raise UnsupportedModelError(
                f"{name} {'trains' if p.requires_grad else 'does not train'}, and the model's init says otherwise of its part {part!r}; the"
                " kernel would have the wrong gradients. Say what does not train when the model is made:"
                f" init=InitSpec(frozen=frozenset({{{part!r}}}))."
            )
    return module.init


def trimmed(ids: Int[Tensor, "doc position"]) -> Int[Tensor, "doc shorter"]:
    """Documents without positions that are padding in all of them.

    Args:
        ids: Documents.

    Returns:
        A view with as many positions as the longest document has tokens, at least one.
    """
    longest = int(lengths(ids).max()) if len(ids) else 0
    kept = ids[:, : max(1, longest)]
    return kept if kept.shape[1] else ids.new_full((len(ids), 1), -1)


def matches(x1: Int[Tensor, "n1 p1"], x2: Int[Tensor, "n2 p2"]) -> Float[Tensor, "n1 n2 p1 p2"]:
    r""":math:`Δ_{jj'} = [x_j = x'_{j'}]`, for tokens only.

    Args:
        x1: Documents.
        x2: Other documents.

    Returns:
        0 and 1; 0 for padding.
    """
    equal = (x1[:, None, :, None] == x2[None, :, None, :]) & (x1 >= 0)[:, None, :, None]
    return equal.to(torch.float64)


def looked_up(
    function: Triple, q1: Float[Tensor, " pair"], q2: Float[Tensor, " pair"], overlap: Float[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """A function of two squared norms and an inner product, computed once for each distinct triple.

    Norms count as equal to 44 bits, and cosines to 44 bits of 1: at a cosine of 1 the dual activations of functions with kinks have an
    infinite slope, by which the rounding of a sum would grow to its square root, and depend on the company a document is in.

    Args:
        function: The function, elementwise.
        q1: Squared norms.
        q2: Squared norms of the others.
        overlap: Inner products.

    Returns:
        Values.
    """
    if not q1.numel():
        return torch.zeros_like(q1)
    norms = (q1 * q2).sqrt()  # as given: by the rounded ones a cosine of 1 would fall short by a bit
    cosine = torch.where(norms > 0, overlap / torch.where(norms > 0, norms, 1.0), 0.0).clamp(-1, 1)
    cosine = (cosine * 2.0**BITS).round() / 2.0**BITS
    q1, q2 = _rounded(q1), _rounded(q2)
    norms = (q1 * q2).sqrt()
    code = torch.zeros(len(q1), dtype=torch.int64, device=q1.device)
    for v in (q1, q2, cosine):
        distinct, where = v.unique(return_inverse=True)
        code = (code * len(distinct) + where).unique(return_inverse=True)[1]  # compact again, so that codes never overflow
    picked = torch.zeros(int(code.max()) + 1, dtype=torch.int64, device=code.device).scatter(
        0, code, torch.arange(len(code), device=code.device)
    )
    return function(q1[picked], q2[picked], (cosine * norms)[picked])[code]


def _rounded(v: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(v)
    return torch.ldexp((mantissa * 2.0**BITS).round(), exponent - BITS)
