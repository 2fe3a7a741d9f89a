"""``conv2d``: a linear map of each patch, so the gradient of the kernel is gradient ⊗ patch, summed over positions."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechfeat.ntk.factors import Dense, Factor, Outer
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule


@register_rule(torch.conv2d, F.conv2d)
def conv2d(call: Call) -> list[Use]:
    """Convolution in two dimensions, any stride, padding, dilation and number of groups."""
    x, W, b = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    stride, padding = _pair(call.argument(3, "stride", 1)), call.argument(4, "padding", 0)
    dilation, groups = _pair(call.argument(5, "dilation", 1)), call.argument(6, "groups", 1)
    if call.owns(x):
        raise Unfit("its input is a parameter")
    if x.ndim != 4 or x.shape[0] != call.n:
        raise Unfit(f"its input of shape {tuple(x.shape)} has no axis of {call.n} samples")
    x = x.detach()

    def kernel(g: Tensor) -> Factor:
        left = g.flatten(3).permute(1, 0, 3, 2)
        right = patches(x, tuple(W.shape[2:]), stride, padding, dilation)
        if groups == 1:
            return Outer(left, right)
        # Each group has a kernel of its own; with many groups the gradient is small, so it is formed.
        L = left.unflatten(3, (groups, -1))
        R = right.unflatten(2, (groups, -1))
        return Dense(einsum(L, R, "n o t q c, n t q k -> n o q c k").reshape(left.shape[0], left.shape[1], *W.shape))

    uses = [Use(W, kernel)] if call.owns(W) else []
    if call.owns(b):
        uses.append(Use(b, lambda g: Dense(g.flatten(3).sum(3).transpose(0, 1)), W, small=True))
    return uses


def patches(
    x: Float[Tensor, "n channel h w"], size: tuple[int, ...], stride: tuple[int, int], padding: Any, dilation: tuple[int, int]
) -> Float[Tensor, "n t k"]:
    """The patches that a kernel sees, one row an output position.

    Args:
        x: Input of the convolution.
        size: Height and width of the kernel.
        stride: Step between patches.
        padding: Zeros added on each side: a number, a pair, ``"valid"`` or ``"same"``.
        dilation: Step inside a patch.

    Returns:
        Rows in the order of the kernel's entries: channel, height, width.

    Example:
        >>> patches(torch.arange(4.0).view(1, 1, 2, 2), (2, 2), (1, 1), 0, (1, 1))
        tensor([[[0., 1., 2., 3.]]])
    """
    if padding == "same":
        # Odd totals put the extra zero after the data, as torch does.
        total = [d * (k - 1) for d, k in zip(dilation, size)]
        x = F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
        padding = 0
    pad = (0, 0) if padding == "valid" else _pair(padding)
    return F.unfold(x, size, dilation, pad, stride).transpose(1, 2)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])
