"""Sums and products entry by entry: bare biases, position parameters, scales of norms that are written out."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechfeat.ntk.rules.product import LETTERS, aligned, fitting, product, shift, squeezed
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule


@register_rule(torch.add, torch.Tensor.add, torch.sub, torch.Tensor.sub, torch.subtract, torch.Tensor.__rsub__, torch.rsub)
def add(call: Call) -> list[Use]:
    """``y = a ± b``, either of which may be the parameter."""
    a, b, alpha = call.argument(0, "input"), call.argument(1, "other"), call.kwargs.get("alpha", 1)
    signs = {"sub": (1, -alpha), "subtract": (1, -alpha), "__rsub__": (-1, 1), "rsub": (-alpha, 1)}.get(call.name, (1, alpha))
    return fitting(*(partial(_scaled, call, t, sign) for t, sign in zip((a, b), signs) if call.owns(t)))


@register_rule(torch.Tensor.add_)
def add_(call: Call) -> list[Use]:
    """``x += b``."""
    if call.out._is_view():
        raise Unfit("it changes a view in place")
    return add(call)


@register_rule(torch.mul, torch.Tensor.mul, torch.multiply)
def mul(call: Call) -> list[Use]:
    """``y = a b``, either of which may be the parameter."""
    a, b = call.argument(0, "input"), call.argument(1, "other")
    return fitting(*(partial(_scaled, call, t, by) for t, by in ((a, b), (b, a)) if call.owns(t)))


@register_rule(torch.div, torch.Tensor.div, torch.true_divide, torch.Tensor.true_divide)
def div(call: Call) -> list[Use]:
    """``y = a / b``, either of which may be the parameter."""
    a, b = (t.detach() if isinstance(t, Tensor) else t for t in (call.argument(0, "input"), call.argument(1, "other")))
    if call.argument(2, "rounding_mode"):
        raise Unfit("it rounds")
    uses = zip((call.argument(0, "input"), call.argument(1, "other")), (lambda: 1 / b, lambda: -a / b**2))
    return fitting(*(partial(lambda t, by: _scaled(call, t, by()), t, by) for t, by in uses if call.owns(t)))


@register_rule(torch.Tensor.expand, torch.Tensor.expand_as, torch.broadcast_to, torch.Tensor.broadcast_to, torch.Tensor.repeat)
def expand(call: Call) -> list[Use]:
    """A parameter that is given an axis of samples: from there on it is an activation (a class token)."""
    p, out = call.args[0], tuple(call.out.shape)
    labels = aligned(p.shape, out)
    if not out or out[0] != call.n or (p.ndim == len(out) and labels[0] != "1"):
        raise Unfit("it gives no axis of samples")
    if any(s != "1" and size != out[len(out) - p.ndim + i] for i, (s, size) in enumerate(zip(labels, p.shape))):
        raise Unfit("it repeats entries")
    return [shift(call, p)]


def _scaled(call: Call, w: Tensor, by: Any) -> Use:
    """The use of a parameter that the output has ``by`` times."""
    out = tuple(call.out.shape)
    if not isinstance(by, Tensor):
        if by == 1:
            return shift(call, w)
        by = torch.as_tensor(by, dtype=call.out.dtype, device=call.out.device)
    return product(call, w, aligned(w.shape, out), LETTERS[: len(out)], *squeezed(by, aligned(by.shape, out)))
