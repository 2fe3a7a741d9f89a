"""``linear`` and ``addmm``: the gradient of the weight is gradient ⊗ input, summed over positions."""

import torch
import torch.nn.functional as F

from mechfeat.ntk.factors import Outer
from mechfeat.ntk.rules.registry import Call, Unfit, Use, bias_use, register_rule


@register_rule(F.linear)
def linear(call: Call) -> list[Use]:
    """``y = x Wᵀ + b`` with ``W [c k]``."""
    x, W, b = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if x.ndim < 2 or W.ndim != 2:
        raise Unfit("its input or weight is a single vector")
    X = call.input_rows(x)
    uses = [Use(W, lambda g: Outer(call.gradient_rows(g), X))] if call.owns(W) else []
    return uses + bias_use(call, b, W)


@register_rule(torch.addmm, torch.Tensor.addmm)
def addmm(call: Call) -> list[Use]:
    """``y = b + x W`` with ``W [k c]``; samples and positions share an axis (GPT-2's projections)."""
    b, x, W = call.argument(0, "input"), call.argument(1, "mat1"), call.argument(2, "mat2")
    if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        raise Unfit("alpha or beta is not 1")
    if isinstance(b, torch.Tensor) and b.ndim > 1 and call.owns(b):
        raise Unfit("its bias is a matrix")
    X = call.input_rows(x)
    uses = [Use(W, lambda g: Outer(call.gradient_rows(g), X, turned=True))] if call.owns(W) else []
    return uses + bias_use(call, b, W)
