"""Convolutions: linear maps of each patch, so the gradient of the kernel is gradient ⊗ patch, summed over positions."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels.patches import Patches
from mechfeat.ntk.factors import Dense, Factor, Outer
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule


@register_rule(torch.conv1d, F.conv1d, torch.conv2d, F.conv2d, torch.conv3d, F.conv3d)
def conv(call: Call) -> list[Use]:
    """Convolution in one to three dimensions, any stride, padding, dilation and number of groups."""
    x, W, b = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    axes = W.ndim - 2
    stride, padding = _each(call.argument(3, "stride", 1), axes), call.argument(4, "padding", 0)
    dilation, groups = _each(call.argument(5, "dilation", 1), axes), call.argument(6, "groups", 1)
    x = _input(call, x, W)

    def kernel(g: Tensor) -> Factor:
        seen = patches(x, tuple(W.shape[2:]), stride, padding, dilation)
        left = g.flatten(3).permute(1, 0, 3, 2)
        if groups > 1:
            return Dense(_by_group(left, seen, groups).reshape(left.shape[0], left.shape[1], *W.shape))
        return Outer(left, seen if left.shape[2] > 1 else seen.rows())

    small = groups > 1 and W.numel() * call.n <= call.out.numel()
    uses = [Use(W, kernel, small=small)] if call.owns(W) else []
    if call.owns(b):
        uses.append(Use(b, _over_space, W if groups == 1 else None, small=True))
    return uses


@register_rule(*(getattr(module, f"conv_transpose{axes}d") for module in (torch, F) for axes in (1, 2, 3)))
def conv_transpose(call: Call) -> list[Use]:
    """Transposed convolution: each input pixel meets the patch of the output's gradient that it was spread over."""
    x, W, b = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    axes = W.ndim - 2
    stride, padding = _each(call.argument(3, "stride", 1), axes), _each(call.argument(4, "padding", 0), axes)
    groups, dilation = call.argument(6, "groups", 1), _each(call.argument(7, "dilation", 1), axes)
    x = _input(call, x, W)

    def kernel(g: Tensor) -> Factor:
        o, n = g.shape[:2]
        # One sample and output at a time, its kernel's gradient is that of a convolution with input and gradient in each other's place.
        out = g.new_empty(n, o, *W.shape)
        for i in range(o):
            right = x.flatten(2).mT.unsqueeze(1)
            seen = patches(g[i], tuple(W.shape[2:]), stride, padding, dilation)
            out[:, i] = _by_group(right, _cut(seen, x.shape[2:]), groups).reshape(n, *W.shape)
        return Dense(out)

    uses = [Use(W, kernel)] if call.owns(W) else []
    if call.owns(b):
        uses.append(Use(b, _over_space, small=True))
    return uses


def patches(
    x: Float[Tensor, "n channel *space"], size: tuple[int, ...], stride: tuple[int, ...], padding: Any, dilation: tuple[int, ...]
) -> Patches:
    """The patches that a kernel sees, one an output position.

    Args:
        x: Input of the convolution.
        size: Size of the kernel.
        stride: Step between patches.
        padding: Zeros added on each side: a number, one an axis, ``"valid"`` or ``"same"``.
        dilation: Step inside a patch.

    Returns:
        Patches whose rows are in the order of the kernel's entries: channel, then place.

    Example:
        >>> patches(torch.arange(4.0).view(1, 1, 2, 2), (2, 2), (1, 1), 0, (1, 1)).rows()
        tensor([[[0., 1., 2., 3.]]])
    """
    if padding == "same":
        # Odd totals put the extra zero after the data, as torch does.
        total = [d * (k - 1) for d, k in zip(dilation, size)]
        sides = tuple((t // 2, t - t // 2) for t in total)
    else:
        sides = tuple((p, p) for p in _each(0 if padding == "valid" else padding, len(size)))
    return Patches(x, size, stride, sides, dilation)


def _by_group(left: Float[Tensor, "n o t c"], seen: Patches, groups: int) -> Float[Tensor, "n o c k"]:
    """Gradient of a grouped kernel; it is small where the groups are many, and each sample's patches are dropped with their sample."""
    n, o, t, c = left.shape
    out = left.new_empty(n, o, c, seen.shape[2] // groups)
    for i in range(n):
        rows = seen[i : i + 1].rows()[0].unflatten(1, (groups, -1)).transpose(0, 1)
        own = left[i].mT.unflatten(1, (groups, -1)).transpose(0, 1).reshape(groups, -1, t)
        out[i] = torch.bmm(own, rows).view(groups, o, c // groups, -1).transpose(0, 1).flatten(1, 2)
    return out


def _cut(seen: Patches, space: tuple[int, ...]) -> Patches:
    """Patches at the given number of positions: an output padded at its end has more than there are input pixels."""
    sizes = (d * (k - 1) + 1 + s * (t - 1) for d, k, s, t in zip(seen.dilation, seen.size, seen.stride, space))
    need = [(length, before, x) for length, (before, _), x in zip(sizes, seen.padding, seen.maps.shape[2:])]
    return Patches(seen.maps, seen.size, seen.stride, tuple((before, length - before - x) for length, before, x in need), seen.dilation)


def _over_space(g: Float[Tensor, "o n channel *space"]) -> Dense:
    return Dense(g.flatten(3).sum(3).transpose(0, 1))


def _input(call: Call, x: Tensor, W: Tensor) -> Tensor:
    if call.owns(x):
        raise Unfit("its input is a parameter")
    if x.ndim != W.ndim or x.shape[0] != call.n:
        raise Unfit(f"its input of shape {tuple(x.shape)} has no axis of {call.n} samples")
    return x.detach()


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
