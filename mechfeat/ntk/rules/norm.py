"""Scale and shift of ``layer_norm`` and ``batch_norm``: the gradient of the scale is gradient × normalised input."""

import math
from functools import cache

import torch
import torch.nn.functional as F

from mechfeat.ntk.factors import Dense
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule


@register_rule(F.layer_norm)
def layer_norm(call: Call) -> list[Use]:
    """Normalisation over the last axes."""
    x, shape = call.argument(0, "input"), tuple(call.argument(1, "normalized_shape"))
    w, b, eps = call.argument(2, "weight"), call.argument(3, "bias"), call.argument(4, "eps", 1e-5)
    size, trailing = math.prod(shape), len(shape)
    rows = math.prod(x.shape[: x.ndim - trailing])
    if x.ndim <= trailing or rows % call.n or (x.shape[0] != call.n and x.ndim != trailing + 1):
        raise Unfit(f"its input of shape {tuple(x.shape)} has no axis of {call.n} samples")
    x = x.detach()

    def by_sample(g: torch.Tensor) -> torch.Tensor:
        return g.reshape(g.shape[0], call.n, -1, size)

    uses = []
    if call.owns(w):

        @cache
        def normal() -> torch.Tensor:
            return F.layer_norm(x, shape, eps=eps).reshape(call.n, -1, size)

        def scale(g: torch.Tensor) -> Dense:
            return Dense((by_sample(g) * normal()).sum(2).transpose(0, 1).unflatten(2, shape))

        uses.append(Use(w, scale, small=True))
    if call.owns(b):
        uses.append(Use(b, lambda g: Dense(by_sample(g).sum(2).transpose(0, 1).unflatten(2, shape)), small=True))
    return uses


@register_rule(F.batch_norm)
def batch_norm(call: Call) -> list[Use]:
    """Normalisation by running statistics; batch statistics are refused before any rule."""
    x, mean, var = call.argument(0, "input"), call.argument(1, "running_mean"), call.argument(2, "running_var")
    w, b, eps = call.argument(3, "weight"), call.argument(4, "bias"), call.argument(7, "eps", 1e-5)
    if x.shape[0] != call.n:
        raise Unfit(f"its input of shape {tuple(x.shape)} has no axis of {call.n} samples")
    x = x.detach()
    view = [1, -1] + [1] * (x.ndim - 2)

    def over_space(g: torch.Tensor) -> Dense:
        return Dense(g.reshape(*g.shape[:3], -1).sum(3).transpose(0, 1))

    uses = []
    if call.owns(w):

        @cache
        def normal() -> torch.Tensor:
            return (x - mean.view(view)) * torch.rsqrt(var.view(view) + eps)

        uses.append(Use(w, lambda g: over_space(g * normal()), small=True))
    if call.owns(b):
        uses.append(Use(b, over_space, small=True))
    return uses
