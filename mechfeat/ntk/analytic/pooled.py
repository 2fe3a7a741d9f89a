"""The sum over prefixes: pooling over time of any model that reads out at the last token."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.models.text.ids import lengths
from mechfeat.ntk.analytic.base import AnalyticKernel


@dataclass(frozen=True, kw_only=True)
class PooledKernel(AnalyticKernel):
    r"""Kernel of a causal model whose outputs at all tokens are summed, from that of its output at the last token.

    .. math:: Θ_{pool}(x, x') = \sum_{s \le T} \sum_{s' \le T'} Θ_{last}(x_{1:s}, x'_{1:s'})

    Exact, and slow: the kernel is asked for T·T' pairs of prefixes. Recurrent kernels with ``readout="sum"`` give the same in one pass.

    Attributes:
        last: The kernel of the output at the last token. Its model must not see later tokens.

    Source:
        Linearity of gradients in the sum.

    Example:
        >>> from mechfeat.ntk.analytic import LinearRNNKernel
        >>> ids = torch.tensor([[0, 1, 0], [1, 0, -1]])
        >>> torch.equal(PooledKernel(last=LinearRNNKernel())(ids), LinearRNNKernel(readout="sum")(ids))
        True
    """

    last: AnalyticKernel

    @classmethod
    def of(cls, module: AnalyticKernel) -> "PooledKernel":
        """The pooled kernel of a kernel.

        Args:
            module: The kernel of the output at the last token.

        Returns:
            That of the sum over tokens.
        """
        return cls(last=module, init=module.init, n_tokens=module.n_tokens)

    def _block(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"]) -> Float[Tensor, "n1 n2"]:
        (p1, own1), (p2, own2) = _prefixes(x1), _prefixes(x2)
        theta = self.last(p1, p2)
        rows = torch.zeros(len(x1), len(p2), dtype=torch.float64, device=x1.device).index_add(0, own1, theta)
        return torch.zeros(len(x1), len(x2), dtype=torch.float64, device=x1.device).index_add(1, own2, rows)


def _prefixes(ids: Int[Tensor, "doc position"]) -> tuple[Int[Tensor, "prefix position"], Int[Tensor, " prefix"]]:
    """Every prefix of every document, and whose it is."""
    T = ids.shape[1]
    column = torch.arange(T, device=ids.device)
    cut = torch.where(column[None, None] <= column[None, :, None], ids[:, None, :], -1)  # [doc end position]
    whole = column[None] < lengths(ids)[:, None]
    own = torch.arange(len(ids), device=ids.device)[:, None].expand(whole.shape)
    return cut[whole], own[whole]
