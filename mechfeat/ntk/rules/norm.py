"""Scale and shift of norms: the gradient of the scale is gradient × normalised input."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechfeat.ntk.rules.product import LETTERS, product
from mechfeat.ntk.rules.registry import Call, Use, register_rule


@register_rule(F.layer_norm)
def layer_norm(call: Call) -> list[Use]:
    """Normalisation over the last axes."""
    x, shape, eps = call.argument(0, "input").detach(), call.argument(1, "normalized_shape"), call.argument(4, "eps", 1e-5)
    return _affine(call, _last(call), lambda: F.layer_norm(x, shape, eps=eps), call.argument(2, "weight"), call.argument(3, "bias"))


@register_rule(F.rms_norm, torch.rms_norm)
def rms_norm(call: Call) -> list[Use]:
    """Division by the root mean square over the last axes."""
    x, shape, eps = call.argument(0, "input").detach(), call.argument(1, "normalized_shape"), call.argument(3, "eps")
    return _affine(call, _last(call), lambda: F.rms_norm(x, shape, eps=eps), call.argument(2, "weight"))


@register_rule(F.batch_norm)
def batch_norm(call: Call) -> list[Use]:
    """Normalisation by running statistics; batch statistics are refused before any rule."""
    x, mean, var = (call.argument(i, name).detach() for i, name in enumerate(("input", "running_mean", "running_var")))
    view, eps = [1, -1] + [1] * (x.ndim - 2), call.argument(7, "eps", 1e-5)

    def normal() -> Tensor:
        return (x - mean.view(view)) * torch.rsqrt(var.view(view) + eps)

    return _affine(call, "b", normal, call.argument(3, "weight"), call.argument(4, "bias"))


@register_rule(F.group_norm)
def group_norm(call: Call) -> list[Use]:
    """Normalisation over groups of channels of one sample."""
    x, groups, eps = call.argument(0, "input").detach(), call.argument(1, "num_groups"), call.argument(4, "eps", 1e-5)
    return _affine(call, "b", lambda: F.group_norm(x, groups, eps=eps), call.argument(2, "weight"), call.argument(3, "bias"))


@register_rule(F.instance_norm)
def instance_norm(call: Call) -> list[Use]:
    """Normalisation over the positions of one sample, or by running statistics."""
    x, (mean, var, w, b) = call.argument(0, "input").detach(), (call.argument(i + 1, name) for i, name in enumerate(_STATISTICS))
    from_input, eps = call.argument(5, "use_input_stats", True), call.argument(7, "eps", 1e-5)
    return _affine(call, "b", lambda: F.instance_norm(x, mean, var, None, None, from_input, 0.0, eps), w, b)


_STATISTICS = ("running_mean", "running_var", "weight", "bias")


def _last(call: Call) -> str:
    """Labels of the axes that are normalised over."""
    n = call.out.ndim
    return LETTERS[n - len(call.argument(1, "normalized_shape")) : n]


def _affine(call: Call, channels: str, normal: Callable[[], Tensor], w: Any = None, b: Any = None) -> list[Use]:
    """The uses of scale and shift over some axes."""
    out = LETTERS[: call.out.ndim]
    uses = [product(call, w, channels, out, normal, out)] if call.owns(w) else []
    return uses + ([product(call, b, channels, out)] if call.owns(b) else [])
