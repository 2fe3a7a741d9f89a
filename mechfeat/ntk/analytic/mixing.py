"""The block of mixed positions and a hidden layer at infinite width."""

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechfeat.models.text.attention import MixingBlock, Readout, check_readout
from mechfeat.models.text.ids import is_real, lengths
from mechfeat.models.text.mixing import Mixing, check_mixing, mixed
from mechfeat.ntk.analytic.base import AnalyticKernel, init_of, looked_up, matches
from mechfeat.ntk.analytic.hidden import hidden_layer
from mechfeat.ntk.dual import Activation
from mechfeat.ntk.dual.activation import check_activation


@dataclass(frozen=True, kw_only=True, eq=False)
class MixingKernel(AnalyticKernel):
    r"""Kernel of :class:`~mechfeat.models.text.MixingBlock`.

    With :math:`S(x, x') = A(x)\, Δ(x, x')\, A(x')^\top` and :math:`Δ_{jj'} = [x_j = x'_{j'}]`,

    .. math:: Θ(x, x') = \sum_{ii'} k(τ^2 q_i, τ^2 q'_{i'}, τ^2 S_{ii'}) + s_v^2 (s_e^2 + s_w^2)\, S_{ii'}\, k_1(\ldots) ,
        \qquad q_i = S(x, x)_{ii} .

    A read-out from the last token keeps the last i and i' alone.

    Attributes:
        activation: φ.
        mixing: α of A = r I + α: ``"attention"`` (in the limit :math:`α_{ij} \propto e^{s_e^2 [x_i = x_j]}`), ``"mean"``, the same two
            ``"causal_…"``, ``"none"``, or a matrix ``[query key]``.
        residual: r.
        readout: From the ``"sum"`` over positions or from the ``"last"`` token.

    Raises:
        OptionError: An option is unknown.
        ShapeError: A given mixing is not a square matrix.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*, theorem 1, on mixed orthogonal embeddings; derived in the guide.

    Example:
        >>> block = MixingKernel(activation=Activation.of("linear"), mixing="mean", residual=0)
        >>> block(torch.tensor([[0, 1], [0, -1]])).round(decimals=6)
        tensor([[6., 3.],
                [3., 3.]], dtype=torch.float64)
    """

    activation: Activation
    mixing: Mixing | Tensor = field(default="attention")
    residual: int | float = 1.0
    readout: Readout = "sum"

    def __post_init__(self) -> None:
        check_activation(self.activation)
        check_mixing(self.mixing)
        check_readout(self.readout)

    @classmethod
    def of(cls, module: MixingBlock) -> "MixingKernel":
        """The kernel of a mixing block.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(
            activation=Activation.of(module.activation),
            mixing=module.mixing,
            residual=module.residual,
            readout=module.readout,
            init=init_of(module),
            n_tokens=module.n_tokens,
        )

    def _mixed(self, ids: Int[Tensor, "doc position"]) -> tuple[Float[Tensor, "doc row position"], Bool[Tensor, "doc row"]]:
        """Rows of A that are read, and which of them are a document's."""
        same = (ids[:, :, None] == ids[:, None, :]).double()
        A = mixed(self.mixing, self.residual, float(self.init.embedding**2) * same, ids)
        if self.readout == "sum":
            return A, is_real(ids)
        T = lengths(ids)
        return A[torch.arange(len(A)), (T - 1).clamp(min=0)][:, None], (T > 0)[:, None]

    def _block(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"]) -> Float[Tensor, "n1 n2"]:
        (A, real1), (B, real2) = self._mixed(x1), self._mixed(x2)
        S = torch.einsum("aij,abjk,blk->abil", A, matches(x1, x2), B)
        q1, q2 = _norms(A, x1)[:, None, :, None].expand(S.shape), _norms(B, x2)[None, :, None, :].expand(S.shape)
        real = (real1[:, None, :, None] & real2[None, :, None, :]).expand(S.shape)
        theta = torch.zeros_like(S)
        theta[real] = looked_up(partial(hidden_layer, self.activation, self.init), q1[real], q2[real], S[real])
        return theta.sum((2, 3))


def _norms(A: Float[Tensor, "doc row position"], ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc row"]:
    """Squared norms of mixed embeddings, in units of one."""
    same = (ids[:, :, None] == ids[:, None, :]).double()
    return torch.einsum("aij,ajk,aik->ai", A, same, A)
