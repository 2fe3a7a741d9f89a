"""Self-attention without a nonlinearity at infinite width: a linear model of counts, weighted by the attention each token gets."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import UnsupportedModelError
from mechfeat.models.text.attention import QueryKey, Scaling, SelfAttention, check_attention
from mechfeat.models.text.mixing import masked_softmax
from mechfeat.ntk.analytic.base import init_of
from mechfeat.ntk.analytic.features import FeatureBlock, FeatureKernel, FeatureMap, Sparse, sparse_sums, token_counts


@dataclass(frozen=True, kw_only=True)
class AttentionKernel(FeatureKernel):
    r"""Kernel of :class:`~mechfeat.models.text.SelfAttention`, where its attention is deterministic.

    .. math:: Θ(x, x') = c \sum_{jj'} a_j(x)\, a_{j'}(x')\, [x_j = x'_{j'}] , \qquad a_j = \sum_i α_{ij}, \quad
        α_{ij} \propto e^{s_e^2 [x_i = x_j]}

    with :math:`c = s_e^2 + s_v^2`, or with a value matrix :math:`c = s_w^2 s_e^2 + s_v^2 s_e^2 + s_v^2 s_w^2`. A residual adds 1 to a, and
    beside a value matrix a second sum with a = 1 and :math:`c = s_e^2 + s_v^2`. Separate queries and keys attend uniformly, a = 1.

    Attributes:
        value: Whether there is a value matrix.
        residual: Whether each position adds its own embedding.
        scaling: ``"1/d"``; with ``"1/sqrt(d)"`` there is no such kernel.
        query_key: ``"tied"`` or ``"separate"``.

    Raises:
        UnsupportedModelError: The scaling leaves the attention, hence the kernel, random at every width.
        OptionError: An option is unknown.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks* (the model); the kernel is derived in the guide.

    Example:
        >>> AttentionKernel()(torch.tensor([[0, 1], [0, -1]]))
        tensor([[4., 2.],
                [2., 2.]], dtype=torch.float64)
    """

    value: bool = False
    residual: bool = False
    scaling: Scaling = "1/d"
    query_key: QueryKey = "tied"

    def __post_init__(self) -> None:
        check_attention(self.scaling, self.query_key)
        if self.scaling != "1/d":
            raise UnsupportedModelError(_refusal(self.query_key))

    @classmethod
    def of(cls, module: SelfAttention) -> "AttentionKernel":
        """The kernel of self-attention.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(
            value=module.value,
            residual=module.residual,
            scaling=module.scaling,
            query_key=module.query_key,
            init=init_of(module),
            n_tokens=module.n_tokens,
        )

    def feature_map(self) -> FeatureMap:
        """Counts of tokens weighted by attention; and plain counts for a residual beside a value matrix.

        Returns:
            One kind of features or two.
        """
        s = self.init
        plain = s.trains("readout") * s.embedding**2 + s.trains("embedding") * s.readout**2
        valued = (
            s.trains("readout") * s.hidden**2 * s.embedding**2
            + s.trains("hidden") * s.readout**2 * s.embedding**2
            + s.trains("embedding") * s.readout**2 * s.hidden**2
        )
        if not self.value:
            return FeatureMap((FeatureBlock("attention", plain, self._received),))
        found = FeatureBlock("attention", valued, self._received)
        return FeatureMap((found, FeatureBlock("tokens", plain, token_counts)) if self.residual else (found,))

    def _received(self, ids: Int[Tensor, "doc position"], n_tokens: int) -> Sparse:
        a = attention_received(ids, float(self.init.embedding**2) if self.query_key == "tied" else 0.0)
        return sparse_sums(ids, a + 1 if self.residual and not self.value else a, n_tokens)


def attention_received(ids: Int[Tensor, "doc position"], score: float) -> Float[Tensor, "doc position"]:
    """Attention that each position gets from all others, where equal tokens have one score and different ones none.

    Args:
        ids: Documents.
        score: Score of equal tokens.

    Returns:
        Column sums of the attention; the tokens of a document sum to its length.
    """
    # A document at a time where they are many would be slow, and all at once takes T² numbers a document.
    rows = max(1, 2**22 // max(1, ids.shape[1] ** 2))
    parts = []
    for part in ids.split(rows) if len(ids) else (ids,):
        same = (part[:, :, None] == part[:, None, :]).double()
        parts.append(masked_softmax(score * same, part).sum(1))
    return torch.cat(parts)


def _refusal(query_key: str) -> str:
    why = (
        "with queries and keys of their own, scores keep a variance of order 1 at every width"
        if query_key == "separate"
        else "with scores E·E/√d, those of different tokens keep a variance of order 1 and those of equal tokens grow with √d"
    )
    return (
        f"scaling='1/sqrt(d)' has no deterministic kernel: {why}, so that the kernel stays a random variable. Average"
        " mechfeat.ntk.empirical_ntk(SelfAttention(...), ids) over several seeds and report its spread, or take scaling='1/d'."
    )
