"""``embedding``: the gradient of the table is the gradient at the output, placed in the row that was read."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from mechfeat.ntk.factors import Lookup
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule


@register_rule(F.embedding)
def embedding(call: Call) -> list[Use]:
    """A table read by token ids ``[n *position]``."""
    ids, W, padding = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "padding_idx")
    if call.argument(3, "max_norm") is not None or call.argument(4, "scale_grad_by_freq", False):
        raise Unfit("max_norm or scale_grad_by_freq is set")
    if not call.owns(W):
        return []
    if ids.ndim == 0 or ids.shape[0] != call.n:
        raise Unfit(f"its ids of shape {tuple(ids.shape)} have no axis of {call.n} samples")
    flat = ids.reshape(call.n, -1)

    def table(g: torch.Tensor) -> Lookup:
        left = g.reshape(len(g), call.n, flat.shape[1], -1).transpose(0, 1)
        if padding is not None:
            # torch gives the padding row no gradient
            left = left.masked_fill((flat == padding % len(W))[:, None, :, None], 0)
        return Lookup(left, flat)

    return [Use(W, table)]


@register_rule(torch.Tensor.__getitem__)
def getitem(call: Call) -> list[Use]:
    """A table read by ``W[ids]``, which is an embedding."""
    W, ids = call.args
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise Unfit("it is not read by one tensor of row numbers")
    return embedding(replace(call, args=(ids % len(W), W)))
