"""A linear layer whose gradient goes to its input alone, multiplied by the faster of torch's libraries.

A kernel needs the gradients at activations and none at weights, so that a layer is one product forward and one for each output back.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels.products import product, quick

ROWS = 64  # below, turning the weight round costs more than the faster product saves


def linear(x: Float[Tensor, "*row k"], W: Float[Tensor, "c k"], b: Float[Tensor, " c"] | None) -> Float[Tensor, "*row c"]:
    """``x Wᵀ + b``, whose gradient reaches ``x``; that of ``W`` and ``b`` is left out.

    Args:
        x: Inputs.
        W: Weight.
        b: Bias.

    Returns:
        The outputs.

    Example:
        >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([1.0]))
        tensor([[12.]])
    """
    y: Tensor = _Linear.apply(x, W, b)
    return y


def _shaped(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A product in another shape that does not count as a view."""
    out: Tensor = torch.ops.aten._unsafe_view(y, shape)
    return out


class _Weight:
    """A weight, and its transpose once a gradient needs it laid out row by row."""

    def __init__(self, W: Tensor) -> None:
        self.W = W
        self.turned: Tensor | None = None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        y = product(x.reshape(-1, x.shape[-1]), W)
        if b is not None:
            y += b
        # Not a view: what is computed here may be overwritten in place.
        return y if x.ndim == 2 else _shaped(y, (*x.shape[:-1], len(W)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.weight = _Weight(inputs[1].detach())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return (_Back.apply(g, ctx.weight) if ctx.needs_input_grad[0] else None), None, None


class _Back(torch.autograd.Function):
    """``g W``, for one output or several at once."""

    generate_vmap_rule = False

    @staticmethod
    def forward(g: Tensor, weight: _Weight) -> Tensor:
        rows = g.reshape(-1, g.shape[-1])
        if weight.turned is None and len(rows) >= ROWS and quick(rows, weight.W):
            weight.turned = weight.W.T.contiguous()
        if weight.turned is None:
            return g @ weight.W
        return _shaped(product(rows, weight.turned), (*g.shape[:-1], weight.W.shape[1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pragma: no cover - the gradient is never differentiated again
        raise NotImplementedError

    @staticmethod
    def vmap(info: Any, in_dims: Any, g: Tensor, weight: _Weight) -> tuple[Tensor, int]:
        g = g.unsqueeze(0).expand(info.batch_size, *g.shape) if in_dims[0] is None else g.movedim(in_dims[0], 0)
        out: Tensor = _Back.apply(g, weight)
        return out, 0
