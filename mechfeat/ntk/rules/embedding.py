"""``embedding``: the gradient of the table is the gradient at the output, placed in the row that was read."""

import torch
import torch.nn.functional as F

from mechfeat.ntk.factors import Lookup
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule


@register_rule(F.embedding)
def embedding(call: Call) -> list[Use]:
    """A table read by token ids ``[n *position]``."""
    ids, W, padding = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "padding_idx")
    if call.argument(3, "max_norm") is not None or call.argument(4, "scale_grad_by_freq", False) or call.argument(5, "sparse", False):
        raise Unfit("max_norm, scale_grad_by_freq or sparse is set")
    if not call.owns(W):
        return []
    if ids.ndim == 0 or ids.shape[0] != call.n:
        raise Unfit(f"its ids of shape {tuple(ids.shape)} have no axis of {call.n} samples")
    flat = ids.reshape(call.n, -1)

    def table(g: torch.Tensor) -> Lookup:
        left = call.gradient_rows(g)
        if padding is not None:
            # torch gives the padding row no gradient
            left = left.masked_fill((flat == padding % len(W))[:, None, :, None], 0)
        return Lookup(left, flat)

    return [Use(W, table)]
