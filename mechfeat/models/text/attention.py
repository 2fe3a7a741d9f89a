"""Self-attention without a nonlinearity, and the block of mixing and nonlinearity."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import OptionError
from mechfeat.models.text.activations import Function
from mechfeat.models.text.base import TextModel
from mechfeat.models.text.ids import lengths
from mechfeat.models.text.init import InitSpec
from mechfeat.models.text.mixing import Mixing, check_mixing, masked_softmax, mixed
from mechfeat.points import point

Scaling = Literal["1/d", "1/sqrt(d)"]
QueryKey = Literal["tied", "separate"]
Readout = Literal["sum", "last"]


class SelfAttention(TextModel):
    r"""Attention of a document to itself, summed over positions, and a linear read-out; no nonlinearity beside the softmax.

    .. math:: α_{ij} = \mathrm{softmax}_j(q_i \cdot k_j / d), \qquad f(x) = d^{-1/2} v \cdot \sum_{ij} α_{ij} u_j

    ``q = k = E`` where they are tied, else :math:`q = W_Q E / \sqrt d`, :math:`k = W_K E / \sqrt d`. ``u = E``, or
    :math:`W_V E / \sqrt d` with a value matrix. Hook points: ``embed``, ``scores``, ``pattern``, ``attn_out``, ``pooled``.

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Channels d.
        value: Whether there is a value matrix.
        residual: Whether each position adds its own embedding to what it attends to.
        scaling: ``"1/d"``, with which the attention becomes deterministic as d grows, or ``"1/sqrt(d)"``, with which it stays random.
        query_key: ``"tied"`` to the embeddings, or ``"separate"`` matrices (standard deviation ``init.inputs``).
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, or an option is unknown.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*, the attention of the authors' code (tied,
        1/sqrt(d), no value matrix), without its positions and dropout.

    Example:
        >>> SelfAttention(5, 8)(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        *,
        value: bool = False,
        residual: bool = False,
        scaling: Scaling = "1/d",
        query_key: QueryKey = "tied",
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_model, n_outputs, init, "linear", generator)
        check_attention(scaling, query_key)
        self.value, self.residual, self.scaling, self.query_key = value, residual, scaling, query_key
        if query_key == "separate":
            self.W_Q = self._drawn("inputs", d_model, d_model)
            self.W_K = self._drawn("inputs", d_model, d_model)
        if value:
            self.W_V = self._drawn("hidden", d_model, d_model)
        self._finish()

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc output"]:
        """Scores.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Scores (logits); 0 for an empty document.
        """
        E, d = self._embed(ids), self.d_model
        q, k = E, E
        if self.query_key == "separate":
            q, k = F.linear(E, self.W_Q) / d**0.5, F.linear(E, self.W_K) / d**0.5
        scores = point(q @ k.mT / (d if self.scaling == "1/d" else d**0.5), "scores", self)
        pattern = point(masked_softmax(scores, ids), "pattern", self)
        u = F.linear(E, self.W_V) / d**0.5 if self.value else E
        out = pattern @ u + E if self.residual else pattern @ u
        return self._read(point(out, "attn_out", self).sum(1))


class MixingBlock(TextModel):
    r"""Positions mixed by a matrix A(x), a hidden layer on each, and a read-out from their sum or from the last: a block without norms.

    .. math:: z_i = d^{-1/2} W \sum_j A_{ij} E_{x_j} , \qquad f(x) = m^{-1/2} \sum_i v \cdot φ(z_i)

    A = r I + α with residual r. Hook points: ``embed``, ``pattern`` (A), ``resid_mid``, ``pre``, ``post``, ``pooled``.

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Channels d of an embedding.
        d_mlp: Hidden neurons m.
        mixing: α: ``"attention"`` (scores E·E/d), ``"mean"``, the same two ``"causal_…"``, ``"none"``, or a matrix ``[query key]``.
        residual: r.
        readout: From the ``"sum"`` over positions or from the ``"last"`` token of each document.
        activation: φ, a name or a function.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, or an option is unknown.
        ShapeError: A given mixing is not a square matrix.

    Source:
        Vaswani et al. 2017, *Attention Is All You Need*, section 3.1, without normalisation and with one hidden layer after the attention.

    Example:
        >>> MixingBlock(5, 8, 16, mixing="causal_mean", readout="last")(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        d_mlp: int,
        *,
        mixing: Mixing | Tensor = "attention",
        residual: int | float = 1.0,
        readout: Readout = "sum",
        activation: str | Function = "relu",
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_mlp, n_outputs, init, activation, generator)
        check_mixing(mixing)
        check_readout(readout)
        self.given = isinstance(mixing, Tensor)
        self.register_buffer("matrix", mixing if isinstance(mixing, Tensor) else None)
        self.name: Mixing = "none" if isinstance(mixing, Tensor) else mixing
        self.residual, self.readout = residual, readout
        self.W_in = self._drawn("hidden", d_mlp, d_model)
        self._finish()

    @property
    def mixing(self) -> Mixing | Tensor:
        """The mixing: its name, or the matrix given."""
        matrix = self._buffers["matrix"]
        return self.name if matrix is None else matrix

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc output"]:
        """Scores.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Scores (logits); 0 for an empty document.
        """
        E = self._embed(ids)
        A = point(mixed(self.mixing, self.residual, E @ E.mT / self.d_model, ids), "pattern", self)
        pre = point(F.linear(point(A @ E, "resid_mid", self), self.W_in) / self.d_model**0.5, "pre", self)
        post = point(self.phi(pre) * self._mask(ids), "post", self)
        return self._read(at_end(post, ids) if self.readout == "last" else post.sum(1))


def at_end(h: Float[Tensor, "doc position d"], ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc d"]:
    """The value at the last token of each document.

    Args:
        h: A value at every position, zero on padding.
        ids: Documents.

    Returns:
        Rows; zero for an empty document.
    """
    last = torch.arange(ids.shape[1], device=ids.device) == lengths(ids)[:, None] - 1
    return (h * last[..., None].to(h.dtype)).sum(1)


def check_attention(scaling: str, query_key: str) -> None:
    """Check the options of attention.

    Args:
        scaling: Scale of the scores.
        query_key: Where queries and keys come from.

    Raises:
        OptionError: One is unknown.
    """
    for name, found, allowed in (("scaling", scaling, ("1/d", "1/sqrt(d)")), ("query_key", query_key, ("tied", "separate"))):
        if found not in allowed:
            raise OptionError(name, found, allowed)


def check_readout(readout: str) -> None:
    """Check the read-out.

    Args:
        readout: From where outputs are read.

    Raises:
        OptionError: It is unknown.
    """
    if readout not in ("sum", "last"):
        raise OptionError("readout", readout, ("sum", "last"))
