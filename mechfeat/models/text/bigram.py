"""Multiplicative models of two neighbouring tokens: a matrix for every token, and an entry-wise product."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.models.text.base import TextModel
from mechfeat.models.text.init import InitSpec
from mechfeat.points import point


class BigramMatrixVector(TextModel):
    r"""Each token is a vector and a matrix; a token's matrix acts on the vector of the next token.

    .. math:: f(x) = d^{-1/2} v \cdot \sum_t \big( u\, E_{x_t} + d^{-1/2} M_{x_{t-1}} E_{x_t} \big)

    Hook points: ``embed``, ``bigram`` (the products, from the second token on), ``pooled``.

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Channels d; there are V·d² parameters in M.
        unigram: Weight u of the part without products, which does not train.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer.

    Source:
        Socher et al. 2012, *Semantic Compositionality through Recursive Matrix-Vector Spaces*, section 2; the bigram form is our reading of
        the matrix-vector model of Sun, Li and Lu 2023, whose code is not public.

    Example:
        >>> BigramMatrixVector(5, 8)(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        *,
        unigram: int | float = 1.0,
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_model, n_outputs, init, "linear", generator)
        self.unigram = unigram
        self.M = self._drawn("token_matrix", n_tokens, d_model, d_model)
        self._finish()

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc output"]:
        """Scores.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Scores (logits); 0 for an empty document.
        """
        E = self._embed(ids)
        M = self.M[ids[:, :-1].clamp(min=0).long()]
        products = point(torch.einsum("ntij,ntj->nti", M, E[:, 1:]) / self.d_model**0.5, "bigram", self)
        return self._read(self.unigram * E.sum(1) + products.sum(1))


class HadamardBigram(TextModel):
    r"""Entry-wise products of two projections, of each token and of the next.

    .. math:: f(x) = m^{-1/2} \sum_t v \cdot \big( (W_1 E_{x_{t-1}} / \sqrt d) \odot (W_2 E_{x_t} / \sqrt d) \big)

    Hook points: ``embed``, ``bigram`` (the products), ``pooled``.

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Channels d of an embedding.
        d_mlp: Entries m of a product.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer.

    Source:
        Mitchell and Lapata 2008, *Vector-based Models of Semantic Composition*, section 3 (the multiplicative model).

    Example:
        >>> HadamardBigram(5, 8, 16)(torch.tensor([[0, 3], [2, -1]]))[1]  # one token has no neighbour
        tensor([0.], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        d_mlp: int,
        *,
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_mlp, n_outputs, init, "linear", generator)
        self.W_1 = self._drawn("hidden", d_mlp, d_model)
        self.W_2 = self._drawn("hidden", d_mlp, d_model)
        self._finish()

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc output"]:
        """Scores.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Scores (logits); 0 for a document of fewer than two tokens.
        """
        E = self._embed(ids)
        left, right = F.linear(E[:, :-1], self.W_1), F.linear(E[:, 1:], self.W_2)
        return self._read(point(left * right / self.d_model, "bigram", self).sum(1))
