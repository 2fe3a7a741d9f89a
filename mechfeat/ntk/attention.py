"""``multi_head_attention_forward`` in steps. To a function mode it is one call; its projections are calls with rules of their own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechfeat.hooks.attention import MULTI_HEAD, added_mask


def multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """``torch.nn.functional.multi_head_attention_forward``, samples first inside.

    Args:
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The same values up to rounding.
    """
    bound = MULTI_HEAD.bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    batched = a["query"].ndim == 3
    one = a["query"] is a["key"] is a["value"]
    query, key, value = (t.transpose(0, 1) if batched else t.unsqueeze(0) for t in (a["query"], a["key"], a["value"]))
    W, b, n, heads = a["in_proj_weight"], a["in_proj_bias"], len(query), a["num_heads"]
    if one and not a["use_separate_proj_weight"]:
        q, k, v = F.linear(query, W, b).chunk(3, -1)
    else:
        weights = (a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]) if a["use_separate_proj_weight"] else W.chunk(3)
        biases = (None, None, None) if b is None else b.chunk(3)
        q, k, v = (F.linear(t, w, c) for t, w, c in zip((query, key, value), weights, biases))
    extra = 0
    if a["bias_k"] is not None:
        k, v, extra = torch.cat([k, a["bias_k"].expand(n, 1, -1)], 1), torch.cat([v, a["bias_v"].expand(n, 1, -1)], 1), 1
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    k, v = (
        k if a["static_k"] is None else a["static_k"].unflatten(0, (n, heads)),
        v if a["static_v"] is None else a["static_v"].unflatten(0, (n, heads)),
    )
    if a["add_zero_attn"]:
        k, v, extra = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), extra + 1
    padding = a["key_padding_mask"] if batched or a["key_padding_mask"] is None else a["key_padding_mask"].unsqueeze(0)
    mask = added_mask(a["attn_mask"], padding, n, heads, q, extra)
    p = a["dropout_p"] if a["training"] else 0.0
    pattern = None
    if a["need_weights"]:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        pattern = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
        z = pattern @ v
        pattern = pattern.mean(1) if a["average_attn_weights"] else pattern
    else:
        z = F.scaled_dot_product_attention(q, k, v, mask, p)
    out = F.linear(z.transpose(1, 2).flatten(2), a["out_proj_weight"], a["out_proj_bias"])
    return (out.transpose(0, 1), pattern) if batched else (out[0], None if pattern is None else pattern[0])
