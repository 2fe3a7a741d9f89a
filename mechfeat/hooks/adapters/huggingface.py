"""Models of the ``transformers`` library, which is never imported: classes are known by their module and their parts.

Blocks in the manner of GPT-2, Llama, BERT and ViT are recognised; others have no roles. The residual stream between attention
and MLP (``resid_mid``) passes through a module of its own in BERT alone. In the others the norm before the MLP reads it, but an
edit there would reach the MLP and not the stream, so the role is absent.
"""

from torch import Tensor, nn

from mechfeat.hooks.adapters.base import (
    AXES_IN,
    Collected,
    View,
    child,
    children,
    heads,
    heads_of_rows,
    join,
    linear_attention,
    linear_mlp,
    third,
    transposed,
    walk,
)

_EMBEDDINGS = ("wte", "embed_tokens", "word_embeddings")
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
_FINAL_NORMS = ("ln_f", "transformer.ln_f", "norm", "model.norm")


def collect(module: nn.Module, into: Collected) -> bool:
    """Roles and weights of models of ``transformers``.

    Args:
        module: The model.
        into: Where they go.

    Returns:
        Whether it is one, or holds one.
    """
    roots: list[str] = []
    for path, m in walk(module):
        if not type(m).__module__.startswith("transformers."):
            continue
        top = next((r for r in roots if not r or path == r or path.startswith(r + ".")), None)
        if top is None:
            roots.append(path)
            _ends(path, m, into)
        _block(path, m, into)
    return bool(roots)


def _ends(top: str, model: nn.Module, into: Collected) -> None:
    """What comes before the first block and after the last."""
    for path, m in walk(model):
        name, full = path.rpartition(".")[2], join(top, path)
        if name in _EMBEDDINGS and isinstance(m, nn.Embedding):
            into.role("embed", full)
            into.views(top, {"W_E": View(m, "weight", ("d_vocab", "d_model"))})
        elif name in _POSITIONS and isinstance(m, nn.Embedding):
            into.role("pos_embed", full)
            into.views(top, {"W_pos": View(m, "weight", ("pos", "d_model"))})
        elif path in _FINAL_NORMS:
            into.role("final_norm", full)
        elif name == "patch_embeddings":
            into.role("embed", full)
        elif isinstance(m, nn.Linear) and (path == "lm_head" or path.endswith("predictions.decoder")):
            into.role("logits", full)
            into.views(top, {"W_U": View(m, "weight", ("d_model", "d_vocab"), transposed), "b_U": View(m, "bias", ("d_vocab",))})
        elif isinstance(m, nn.Linear) and path in ("classifier", "score", "qa_outputs"):
            into.role("logits", full)


def _block(path: str, m: nn.Module, into: Collected) -> None:
    if children(m, "ln_1", "attn.c_attn", "ln_2", "mlp.c_fc", "mlp.act"):
        _stream(path, into, attn_out="attn:out.0", mlp_pre="mlp.c_fc", mlp_post="mlp.act", mlp_out="mlp")
        into.views(join(path, "attn"), _gpt2_attention(m.get_submodule("attn")))
        into.views(join(path, "mlp"), linear_mlp(child(m, "mlp.c_fc"), child(m, "mlp.c_proj")))
    elif children(m, "self_attn.q_proj", "mlp.gate_proj", "input_layernorm", "post_attention_layernorm"):
        # Gemma 2 and 3 norm what attention and MLP give before it is added to the stream.
        twice = children(m, "pre_feedforward_layernorm", "post_feedforward_layernorm")
        attn_out, mlp_out = ("post_attention_layernorm", "post_feedforward_layernorm") if twice else ("self_attn:out.0", "mlp")
        _stream(path, into, attn_out=attn_out, mlp_pre="mlp.gate_proj", mlp_post="mlp.down_proj:in", mlp_out=mlp_out)
        into.views(join(path, "self_attn"), _projections(m.get_submodule("self_attn")))
        mlp = m.get_submodule("mlp")
        into.views(join(path, "mlp"), linear_mlp(child(mlp, "up_proj"), child(mlp, "down_proj"), child(mlp, "gate_proj")))
    elif children(m, "attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
        names = {"attn_out": "attention.output.dropout", "mlp_pre": "intermediate.dense", "mlp_post": "intermediate"}
        _stream(path, into, **names, mlp_out="output.dropout", resid_mid="attention.output")
        attention = m.get_submodule("attention")
        q, k, v = (child(attention, f"self.{n}") for n in ("query", "key", "value"))
        d_head = getattr(child(attention, "self"), "attention_head_size", None)
        if d_head is not None:
            into.views(join(path, "attention"), linear_attention(q, k, v, child(attention, "output.dense"), d_head))
        into.views(path, linear_mlp(child(m, "intermediate.dense"), child(m, "output.dense")))
    elif children(m, "attention.q_proj", "layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2", "mlp.activation_fn"):
        _stream(path, into, attn_out="attention:out.0", mlp_pre="mlp.fc1", mlp_post="mlp.activation_fn", mlp_out="mlp")
        into.views(join(path, "attention"), _projections(m.get_submodule("attention")))
        into.views(join(path, "mlp"), linear_mlp(child(m, "mlp.fc1"), child(m, "mlp.fc2")))


def _stream(path: str, into: Collected, **inner: str) -> None:
    into.role("resid_pre", f"{path}:in.0")
    for role, name in inner.items():
        into.role(role, join(path, name))
    into.role("resid_post", path)


def _projections(m: nn.Module) -> dict[str, View]:
    d_head = getattr(m, "head_dim", None)
    q, k, v, o = (child(m, f"{n}_proj") for n in "qkvo")
    return {} if d_head is None else linear_attention(q, k, v, o, d_head)


def _gpt2_attention(m: nn.Module) -> dict[str, View]:
    if getattr(m, "is_cross_attention", False) or not children(m, "c_attn", "c_proj"):
        return {}
    packed, out, d_head = m.get_submodule("c_attn"), m.get_submodule("c_proj"), int(m.head_dim)  # type: ignore[arg-type]

    def per_head(w: Tensor) -> Tensor:  # GPT-2's Conv1D keeps [in out]
        return heads_of_rows(d_head)(w.transpose(0, 1))

    views: dict[str, View] = {}
    for i, letter in enumerate("QKV"):
        views[f"W_{letter}"] = View(packed, "weight", AXES_IN, third(i, 1, per_head))
        views[f"b_{letter}"] = View(packed, "bias", ("head", "d_head"), third(i, 0, heads(d_head)))
    return {**views, "W_O": View(out, "weight", ("head", "d_head", "d_model"), heads(d_head)), "b_O": View(out, "bias", ("d_model",))}
