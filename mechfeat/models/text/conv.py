"""The text CNN: filters over windows of tokens, an activation, and a sum over windows."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechfeat.errors import OptionError
from mechfeat.models.text.activations import Function
from mechfeat.models.text.base import TextModel
from mechfeat.models.text.ids import check_ids, lengths, widened
from mechfeat.models.text.init import InitSpec
from mechfeat.points import point


class TextCNN(TextModel):
    r"""Filters over windows of K tokens, an activation, and a sum over windows.

    .. math:: z_p = d^{-1/2} \sum_{k<K} W_k E_{x_{p+k}} , \qquad f(x) = m^{-1/2} \sum_p v \cdot φ(z_p)

    A document of T tokens has T + 2·padding - K + 1 windows (none where that is negative), of which those at its ends hold fewer than K
    tokens. Hook points: ``embed``, ``pre``, ``post`` (with windows as positions), ``pooled``.

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Channels d of an embedding.
        d_mlp: Filters m.
        kernel_size: Tokens K of a window.
        padding: Places by which windows may stand out of the document at each end, 0 to K - 1; by default K - 1.
        activation: φ, a name or a function.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, ``padding`` would give windows without a token, or the activation is unknown.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*, the CNN of the authors' code (K = 3, padding 2).

    Example:
        >>> TextCNN(5, 8, 16, kernel_size=2)(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        d_mlp: int,
        *,
        kernel_size: int = 3,
        padding: int | None = None,
        activation: str | Function = "relu",
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_mlp, n_outputs, init, activation, generator)
        self.kernel_size, self.padding = window_options(kernel_size, padding)
        self.W_in = self._drawn("hidden", d_mlp, d_model, self.kernel_size)
        self._finish()

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc output"]:
        """Scores.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Scores (logits); 0 for a document without windows.
        """
        check_ids(ids, self.n_tokens)
        ids = widened(ids, max(1, self.kernel_size - 2 * self.padding))
        E = self._embed(ids).transpose(1, 2)
        pre = point(F.conv1d(E, self.W_in, padding=self.padding).transpose(1, 2) / self.d_model**0.5, "pre", self)
        real = has_window(ids, self.kernel_size, self.padding)[..., None].to(pre.dtype)
        post = point(self.phi(pre) * real, "post", self)
        return self._read(post.sum(1))


def window_options(kernel_size: int, padding: int | None) -> tuple[int, int]:
    """Checked width and padding of windows.

    Args:
        kernel_size: Tokens of a window.
        padding: Places out of the document at each end; None for one less than a window has.

    Returns:
        Both, as numbers.

    Raises:
        OptionError: A window would hold no token.
    """
    if not isinstance(kernel_size, int) or kernel_size < 1:
        raise OptionError("kernel_size", kernel_size, ("a positive integer",))
    padding = kernel_size - 1 if padding is None else padding
    if not isinstance(padding, int) or not 0 <= padding < kernel_size:
        raise OptionError("padding", padding, tuple(range(kernel_size)))
    return kernel_size, padding


def has_window(ids: Int[Tensor, "doc position"], kernel_size: int, padding: int) -> Bool[Tensor, "doc window"]:
    """Which windows belong to a document, rather than to what pads it to the length of others.

    Args:
        ids: Documents.
        kernel_size: Tokens of a window.
        padding: Places out of the document at each end.

    Returns:
        A row a document; an empty document has no windows.
    """
    T = lengths(ids)[:, None]
    start = torch.arange(ids.shape[1] + 2 * padding - kernel_size + 1, device=ids.device) - padding
    return (start <= T + padding - kernel_size) & (T > 0)
