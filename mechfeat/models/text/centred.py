"""The change of a model since it was wrapped: f - f_0."""

import copy
from typing import Any

from torch import Tensor, nn


class Centred(nn.Module):
    r"""A model minus its own initial outputs, so that training starts at zero.

    .. math:: f(x) = g_θ(x) - g_{θ_0}(x)

    The kernel is that of the model: the copy does not train. Hook points of the model have the prefix ``model.``.

    Args:
        model: The model, used as it is. It is copied once, at the moment of wrapping.

    Source:
        Chizat, Oyallon and Bach 2019, *On Lazy Training in Differentiable Programming*, section 2.

    Example:
        >>> import torch
        >>> Centred(nn.Linear(2, 1))(torch.ones(1, 2))
        tensor([[0.]], grad_fn=<SubBackward0>)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.initial = copy.deepcopy(model).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's output less that of its copy.

        Args:
            *args: As for the model.
            **kwargs: As for the model.

        Returns:
            The difference.
        """
        return self.model(*args, **kwargs) - self.initial(*args, **kwargs)
