"""``nn.MultiheadAttention`` and the layers of ``nn.TransformerEncoder`` and ``nn.TransformerDecoder``."""

from torch import nn

from mechfeat.hooks.adapters.base import AXES_IN, Collected, View, heads, heads_of_columns, heads_of_rows, join, linear_mlp, third, walk

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def collect(module: nn.Module, into: Collected) -> bool:
    """Roles and weights of torch's own attention layers.

    The residual stream between attention and MLP (``resid_mid``) is the output of a norm where norms come last; where they come
    first no module carries it, and the role is absent. A stack of layers neither embeds nor reads out: what it is given is the first
    ``resid_pre``, and ``embed`` and ``logits`` are the modules around it.

    Args:
        module: The model.
        into: Where they go.

    Returns:
        Whether it has any.
    """
    found = False
    inside: set[int] = set()
    for path, m in walk(module):
        if isinstance(m, _LAYERS):
            decoder = isinstance(m, nn.TransformerDecoderLayer)
            inside |= {id(child) for child in m.children()}
            into.role("resid_pre", f"{path}:in.0")
            into.role("attn_out", join(path, "dropout1"))
            if not m.norm_first:
                into.role("resid_mid", join(path, "norm2" if decoder else "norm1"))
            into.role("mlp_pre", join(path, "linear1"))
            into.role("mlp_post", join(path, "linear2") + ":in")
            into.role("mlp_out", join(path, "dropout3" if decoder else "dropout2"))
            into.role("resid_post", path or ":out")
            into.views(path, linear_mlp(m.linear1, m.linear2))
        elif isinstance(m, nn.MultiheadAttention):
            if id(m) not in inside:
                into.role("attn_out", f"{path}:out.0")
            into.views(path, _attention(m))
        else:
            continue
        found = True
    return found


def _attention(m: nn.MultiheadAttention) -> dict[str, View]:
    views: dict[str, View] = {}
    turn = heads_of_rows(m.head_dim)
    for i, letter in enumerate("QKV"):
        if m._qkv_same_embed_dim:
            views[f"W_{letter}"] = View(m, "in_proj_weight", AXES_IN, third(i, 0, turn))
        else:  # keys and values of other widths than queries
            views[f"W_{letter}"] = View(m, f"{letter.lower()}_proj_weight", AXES_IN, turn)
        views[f"b_{letter}"] = View(m, "in_proj_bias", ("head", "d_head"), third(i, 0, heads(m.head_dim)))
    views["W_O"] = View(m.out_proj, "weight", ("head", "d_head", "d_model"), heads_of_columns(m.head_dim))
    views["b_O"] = View(m.out_proj, "bias", ("d_model",))
    return views
