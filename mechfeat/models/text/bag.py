"""The bag of tokens: a hidden layer applied to each token, summed over the document."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.models.text.activations import Function
from mechfeat.models.text.base import TextModel
from mechfeat.models.text.init import InitSpec
from mechfeat.points import point


class BagMLP(TextModel):
    r"""One hidden layer on every token, summed over tokens, and a linear read-out.

    .. math:: f(x) = m^{-1/2} \sum_t v \cdot φ(W E_{x_t} / \sqrt d)

    Hook points: ``embed``, ``pre`` and ``post`` either side of the activation, ``pooled``.

    Args:
        n_tokens: Size V of the vocabulary.
        d_model: Channels d of an embedding.
        d_mlp: Hidden neurons m.
        activation: φ, a name or a function.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, or the activation is unknown.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*, the MLP of the authors' code.

    Example:
        >>> BagMLP(5, 8, 16)(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        d_mlp: int,
        *,
        activation: str | Function = "relu",
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_mlp, n_outputs, init, activation, generator)
        self.W_in = self._drawn("hidden", d_mlp, d_model)
        self._finish()

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc output"]:
        """Scores.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Scores (logits); 0 for an empty document.
        """
        pre = point(F.linear(self._embed(ids), self.W_in) / self.d_model**0.5, "pre", self)
        post = point(self.phi(pre) * self._mask(ids), "post", self)
        return self._read(post.sum(1))
