"""What the text models share: embeddings, masks, the read-out, and weights drawn from one generator."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import OptionError
from mechfeat.models.text.activations import Function, activation
from mechfeat.models.text.ids import check_ids, is_real
from mechfeat.models.text.init import InitSpec
from mechfeat.points import point

#: Which part of :class:`~mechfeat.models.text.InitSpec` each parameter belongs to.
PART_OF = {
    "W_E": "embedding",
    **dict.fromkeys(("W_in", "W_V", "W_1", "W_2"), "hidden"),
    "W_U": "readout",
    "M": "token_matrix",
    "W_h": "recurrence",
    **dict.fromkeys(("W_x", "W_Q", "W_K"), "inputs"),
}


class TextModel(nn.Module):
    r"""A network on token ids in NTK parameterisation: each matrix product is divided by :math:`\sqrt{\text{fan-in}}` when it is made.

    Documents are ``[doc position]`` with -1 after their ends; padding contributes nothing. Hook points ``embed`` and those that the
    subclass names.

    Args:
        n_tokens: Size of the vocabulary.
        d_model: Channels of an embedding.
        width: Inputs of the read-out.
        n_outputs: Outputs, each with a read-out row of its own.
        init: Standard deviations, and what does not train.
        phi: Activation function or its name.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer.
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        width: int,
        n_outputs: int,
        init: InitSpec | None,
        phi: str | Function = "linear",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("n_tokens", n_tokens), ("d_model", d_model), ("d_mlp", width), ("n_outputs", n_outputs)):
            if not isinstance(size, int) or size < 1:
                raise OptionError(name, size, ("a positive integer",))
        self.n_tokens, self.d_model, self.width, self.n_outputs = n_tokens, d_model, width, n_outputs
        self.init = init or InitSpec()
        self.activation = phi
        self.phi = activation(phi)
        self._generator = generator
        self.W_E = self._drawn("embedding", n_tokens, d_model)

    def _drawn(self, part: str, *shape: int) -> nn.Parameter:
        """A weight of one part."""
        sd = float(getattr(self.init, part))
        return nn.Parameter(sd * torch.randn(*shape, generator=self._generator), requires_grad=bool(self.init.trains(part)))

    def _finish(self) -> None:
        """Draw the read-out, which comes last, so that models that differ in outputs alone share their other weights."""
        self.W_U = self._drawn("readout", self.n_outputs, self.width)
        self._generator = None  # a module that keeps a generator can be neither copied nor saved

    def _embed(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc position d_model"]:
        check_ids(ids, self.n_tokens)
        return point(F.embedding(ids.clamp(min=0).long(), self.W_E) * self._mask(ids), "embed", self)

    def _mask(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc position 1"]:
        return is_real(ids)[..., None].to(self.W_E.dtype)

    def _read(self, h: Float[Tensor, "doc width"]) -> Float[Tensor, "doc output"]:
        return F.linear(point(h, "pooled", self), self.W_U) / self.width**0.5
