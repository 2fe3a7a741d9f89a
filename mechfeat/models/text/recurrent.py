"""Recurrent models that are linear in their state: a matrix for every token, one matrix for all, or one behind a gate."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp

from mechfeat.models.text.activations import Function
from mechfeat.models.text.attention import Readout, check_readout
from mechfeat.models.text.base import TextModel
from mechfeat.models.text.init import InitSpec
from mechfeat.points import point


class Recurrent(TextModel):
    """What the recurrent models share: the state starts at zero and is read at the last token, or summed over tokens.

    Hook points: ``embed``, ``state`` (every state), ``pooled``.
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        width: int,
        readout: Readout,
        n_outputs: int,
        init: InitSpec | None,
        phi: str | Function,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(n_tokens, d_model, width, n_outputs, init, phi, generator)
        check_readout(readout)
        self.readout = readout

    @abstractmethod
    def _states(self, ids: Int[Tensor, "doc position"]) -> list[Tensor]:
        """States after each position."""

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc output"]:
        """Scores.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Scores (logits); 0 for an empty document.
        """
        states = self._states(ids)
        zero = self.W_E.new_zeros(len(ids), 1, self.width)
        h = point(torch.stack(states, 1) if states else zero, "state", self)
        real = self._mask(ids) if states else zero[..., :1]
        if self.readout == "last":  # 1 at the last token: a token that no token follows
            real = real - F.pad(real[:, 1:], (0, 0, 0, 1))
        return self._read((h * real).sum(1))


class MatrixVectorRNN(Recurrent):
    r"""A recurrent network whose matrix is that of the token read.

    .. math:: h_t = m^{-1/2} M_{x_t} h_{t-1} + E_{x_t} , \quad h_0 = 0 , \qquad f(x) = m^{-1/2} v \cdot h_T

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Entries m of the state and of an embedding; there are V·m² parameters in M.
        readout: From the ``"last"`` state, or from the ``"sum"`` over states.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, or the read-out is unknown.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*, names a matrix-vector model; this form is ours.

    Example:
        >>> MatrixVectorRNN(5, 8)(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        *,
        readout: Readout = "last",
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_model, readout, n_outputs, init, "linear", generator)
        self.M = self._drawn("token_matrix", n_tokens, d_model, d_model)
        self._finish()

    def _states(self, ids: Int[Tensor, "doc position"]) -> list[Tensor]:
        E, states = self._embed(ids), list[Tensor]()
        for t in range(ids.shape[1]):
            h = E[:, t]
            if states:  # the first state is zero, and its product too
                h = h + torch.einsum("nij,nj->ni", self.M[ids[:, t].clamp(min=0).long()], states[-1]) / self.width**0.5
            states.append(h)
        return states


class LinearRNN(Recurrent):
    r"""A recurrent network with one matrix and no nonlinearity.

    .. math:: h_t = m^{-1/2} W h_{t-1} + E_{x_t} , \quad h_0 = 0 , \qquad f(x) = m^{-1/2} v \cdot h_T

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Entries m of the state and of an embedding.
        readout: From the ``"last"`` state, or from the ``"sum"`` over states.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, or the read-out is unknown.

    Source:
        Elman 1990, *Finding Structure in Time*, with the identity as activation.

    Example:
        >>> LinearRNN(5, 8, readout="sum")(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        *,
        readout: Readout = "last",
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_model, readout, n_outputs, init, "linear", generator)
        self.W_h = self._drawn("recurrence", d_model, d_model)
        self._finish()

    def _states(self, ids: Int[Tensor, "doc position"]) -> list[Tensor]:
        E, states = self._embed(ids), list[Tensor]()
        for t in range(ids.shape[1]):
            states.append(E[:, t] + F.linear(states[-1], self.W_h) / self.width**0.5 if states else E[:, t])
        return states


class GatedLinearRNN(Recurrent):
    r"""An Elman network expanded to first order in its state: the token read opens and closes what is remembered.

    .. math::
        u_t = d^{-1/2} W_x E_{x_t} , \qquad h_t = φ(u_t) + φ'(u_t) \odot (m^{-1/2} H h_{t-1}) , \quad h_0 = 0 , \qquad
        f(x) = m^{-1/2} v \cdot h_T

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Channels d of an embedding.
        d_mlp: Entries m of the state.
        activation: φ, a name or a function, with a second derivative.
        readout: From the ``"last"`` state, or from the ``"sum"`` over states.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations; all 1 by default.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, or an option is unknown.

    Source:
        Inferred: the form that the first author of Sun, Li and Lu 2023 published in earlier work on n-grams; the code of that paper's
        linear recurrent network is not public.

    Example:
        >>> GatedLinearRNN(5, 8, 16)(torch.tensor([[0, 3], [2, -1]])).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        d_mlp: int,
        *,
        activation: str | Function = "tanh",
        readout: Readout = "last",
        n_outputs: int = 1,
        init: InitSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_tokens, d_model, d_mlp, readout, n_outputs, init, activation, generator)
        self.W_x = self._drawn("inputs", d_mlp, d_model)
        self.W_h = self._drawn("recurrence", d_mlp, d_mlp)
        self._finish()

    def _states(self, ids: Int[Tensor, "doc position"]) -> list[Tensor]:
        u = point(F.linear(self._embed(ids), self.W_x) / self.d_model**0.5, "pre", self)
        # φ acts entry by entry, so that its pull-back of ones is φ'. (Forward mode would do; loading it warns.)
        pulled = vjp(self.phi, u)
        post, slope = pulled[0], pulled[1](torch.ones_like(u))[0]
        states = list[Tensor]()
        for t in range(ids.shape[1]):
            h = post[:, t]
            if states:
                h = h + slope[:, t] * (F.linear(states[-1], self.W_h) / self.width**0.5)
            states.append(h)
        return states
