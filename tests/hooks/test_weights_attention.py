"""Weights of attention and MLPs: views that compute what the modules compute."""

import pytest
import torch
from torch import nn

from mechfeat.errors import HookNameError, OptionError, ShapeError
from mechfeat.hooks import Weights

from . import families

# family: model, path of layer 1's attention, of its MLP, and heads of the keys
FAMILIES = {
    "gpt2": (families.gpt2, "transformer.h.1.attn", "transformer.h.1.mlp", 4),
    "llama": (families.llama, "model.layers.1.self_attn", "model.layers.1.mlp", 2),
    "bert": (families.bert, "bert.encoder.layer.1.attention", "bert.encoder.layer.1", 4),
    "vit": (families.vit, "vit.layers.1.attention", "vit.layers.1.mlp", 4),
    "encoder": (families.encoder, "layers.1.self_attn", "layers.1", 4),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def build(family):
    make, attention, mlp, shared = FAMILIES[family]
    return families.built(make), attention, mlp, shared


def heads(W, path, x, letter):
    """``[sample head pos d_head]`` from the views."""
    out = torch.einsum("sid,hde->shie", x, W.expanded(f"{path}.W_{letter}"))
    bias = f"{path}.b_{letter}"
    return out + W.expanded(bias)[:, None] if bias in W else out


def rotated(x):
    """Rotary positions of Llama, written out: pairs (i, i + d/2) turned by position times 10000^(-2i/d)."""
    n, d = x.shape[-2:]
    angle = torch.arange(n)[:, None] * 10000.0 ** (-2 * torch.arange(d // 2) / d)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def attention_by_hand(W, path, x, *, causal, rotary):
    q, k, v = (heads(W, path, x, letter) for letter in "QKV")
    if rotary:
        q, k = rotated(q), rotated(k)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    out = torch.einsum("shie,hed->sid", scores.softmax(-1) @ v, W[f"{path}.W_O"])
    return out + W[f"{path}.b_O"] if f"{path}.b_O" in W else out


@every_family
def test_attention_from_the_views_is_that_of_the_module(family):
    net, path, _, _ = build(family)
    W = Weights(net)
    x = {"vit": torch.randn(2, 3, 8, 8), "encoder": torch.randn(2, 5, 16)}.get(family)
    x = families.tokens() if x is None else x
    module, seen = net.get_submodule(path), {}

    def keep(m, args, kwargs, out):
        seen["in"] = args[0] if args else kwargs["hidden_states"]
        seen["out"] = out[0]

    handle = module.register_forward_hook(keep, with_kwargs=True)
    net.train() if family == "encoder" else None  # its fused path calls no submodule; there is no dropout
    net(x)
    handle.remove()
    expected = seen["out"]
    if family == "bert":  # the module adds the stream and norms
        output = module.output
        found = output.LayerNorm(attention_by_hand(W, path, seen["in"], causal=False, rotary=False) + seen["in"])
    else:
        found = attention_by_hand(W, path, seen["in"], causal=family in ("gpt2", "llama"), rotary=family == "llama")
    # The rotation is computed in float32 by transformers, and the rest here in float64.
    torch.testing.assert_close(found, expected, atol=1e-5 if family == "llama" else 1e-10, rtol=0)


@every_family
def test_mlp_from_the_views_is_that_of_the_module(family):
    net, _, path, _ = build(family)
    W, x = Weights(net), torch.randn(3, 16)
    m = net.get_submodule(path)
    bias = {b: W.get(f"{path}.{b}", torch.zeros(())) for b in ("b_in", "b_out")}
    pre = x @ W[f"{path}.W_in"] + bias["b_in"]
    act = {"gpt2": lambda: m.act(pre), "bert": lambda: m.intermediate.intermediate_act_fn(pre), "encoder": lambda: torch.relu(pre)}
    act |= {"vit": lambda: m.activation_fn(pre), "llama": lambda: m.act_fn(x @ W[f"{path}.W_gate"]) * pre}
    found = act[family]() @ W[f"{path}.W_out"] + bias["b_out"]
    whole = {"bert": lambda: m.output.dense(m.intermediate(x)), "encoder": lambda: m.linear2(torch.relu(m.linear1(x)))}
    torch.testing.assert_close(found, whole.get(family, lambda: m(x))())


@every_family
def test_axes_and_shapes(family):
    net, attention, mlp, shared = build(family)
    W = Weights(net)
    d_mlp = W[f"{mlp}.W_in"].shape[1]
    assert d_mlp == (64 if family == "gpt2" else 24)
    expected = {
        f"{attention}.W_Q": (("head", "d_model", "d_head"), (4, 16, 4)),
        f"{attention}.W_K": (("head", "d_model", "d_head"), (shared, 16, 4)),
        f"{attention}.W_V": (("head", "d_model", "d_head"), (shared, 16, 4)),
        f"{attention}.W_O": (("head", "d_head", "d_model"), (4, 4, 16)),
        f"{mlp}.W_in": (("d_model", "d_mlp"), (16, d_mlp)),
        f"{mlp}.W_out": (("d_mlp", "d_model"), (d_mlp, 16)),
    }
    if family != "llama":
        expected |= {f"{attention}.b_{c}": (("head", "d_head"), (4, 4)) for c in "QKV"}
        expected |= {
            f"{attention}.b_O": (("d_model",), (16,)),
            f"{mlp}.b_in": (("d_mlp",), (d_mlp,)),
            f"{mlp}.b_out": (("d_model",), (16,)),
        }
    if family in ("gpt2", "llama", "bert"):
        expected |= {"W_E": (("d_vocab", "d_model"), (13, 16)), "W_U": (("d_model", "d_vocab"), (16, 13))}
    for name, (axes, shape) in expected.items():
        assert W.axes(name) == axes, name
        assert tuple(W[name].shape) == shape, name
    assert ("layers.1.b_in" in W) == (family == "encoder")


@every_family
def test_every_weight_is_a_view_of_a_parameter(family):
    net = build(family)[0]
    W = Weights(net)
    storages = {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert all(W[name].untyped_storage().data_ptr() in storages for name in W)
    with torch.no_grad():
        for name in W:
            W[name].zero_()
    left = [n for n, p in net.named_parameters() if p.any()]
    # Positions of ViT are a bare parameter, and the norm of Llama is a class of its own.
    assert all(n.endswith(("cls_token", "position_embeddings")) or (family == "llama" and "norm" in n) for n in left)


@every_family
def test_views_follow_their_parameters(family):
    net, attention, mlp, _ = build(family)
    torch.manual_seed(1)
    other = FAMILIES[family][0]().double()
    W, theirs = Weights(net), Weights(other)
    assert not torch.equal(W[f"{attention}.W_Q"], theirs[f"{attention}.W_Q"])
    net.load_state_dict(other.state_dict())
    for name in W:
        assert torch.equal(W[name], theirs[name])
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    for name in W:
        assert torch.equal(W[name], theirs[name] + 1)
    net.to(torch.bfloat16)
    assert {W[name].dtype for name in W} == {torch.bfloat16}
    assert torch.equal(W[f"{mlp}.W_in"], (theirs[f"{mlp}.W_in"] + 1).to(torch.bfloat16))


@every_family
def test_views_carry_gradients(family):
    net, attention, mlp, _ = build(family)
    W = Weights(net)
    names = [f"{attention}.W_{c}" for c in "QKVO"] + [f"{mlp}.W_in", f"{mlp}.W_out"]
    sum(W[name].square().sum() for name in names).backward()
    total = sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None)
    torch.testing.assert_close(total, sum((2 * W[name]).square().sum() for name in names))


def test_embeddings_and_unembedding():
    net = families.built(families.gpt2)
    W, tokens = Weights(net), families.tokens()
    assert torch.equal(W["W_E"][tokens], net.transformer.wte(tokens))
    assert torch.equal(W["W_pos"], net.transformer.wpe.weight)
    x = torch.randn(2, 16)
    torch.testing.assert_close(x @ W["W_U"], net.lm_head(x))
    bert = families.built(families.bert)
    B = Weights(bert)
    torch.testing.assert_close(x @ B["W_U"] + B["b_U"], bert.cls.predictions.decoder(x))


def test_keys_and_values_of_other_widths():
    m = nn.MultiheadAttention(16, 4, kdim=6, vdim=5, bias=False, batch_first=True)
    W = Weights(m)
    assert [tuple(W[f"W_{c}"].shape) for c in "QKV"] == [(4, 16, 4), (4, 6, 4), (4, 5, 4)]
    assert "b_Q" not in W
    q, k, v = torch.randn(2, 3, 16), torch.randn(2, 7, 6), torch.randn(2, 7, 5)
    heads = [torch.einsum("sid,hde->shie", x, W[f"W_{c}"]) for x, c in zip((q, k, v), "QKV")]
    z = (heads[0] @ heads[1].transpose(-2, -1) / 2).softmax(-1) @ heads[2]
    torch.testing.assert_close(torch.einsum("shie,hed->sid", z, W["W_O"]), m(q, k, v)[0])


def test_stacked():
    net = families.built(families.llama)
    W = Weights(net)
    for part in ("W_Q", "W_K", "W_O", "W_in"):
        layers = [W[n] for n in W if n.endswith(f".{part}")]
        assert len(layers) == 2
        assert torch.equal(W.stacked(part), torch.stack(layers))
    assert tuple(W.stacked("W_Q").shape) == (2, 4, 16, 4)
    stacked = W.stacked("**.self_attn.W_Q")
    assert stacked.untyped_storage().data_ptr() != net.model.layers[0].self_attn.q_proj.weight.untyped_storage().data_ptr()
    stacked.square().sum().backward()
    p = net.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(p.grad, 2 * p)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 8), 3)
    assert tuple(Weights(decoder).stacked("W_Q").shape) == (6, 2, 8, 4)
    assert tuple(Weights(decoder).stacked("**.multihead_attn.W_Q").shape) == (3, 2, 8, 4)


def test_what_cannot_be_stacked():
    W = Weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)))
    with pytest.raises(ShapeError) as caught:
        W.stacked("W")
    assert (
        str(caught.value) == "'W' cannot be stacked: the shapes are {'0.W': [3, 2], '1.W': [3, 3]}. Select layers of one shape with a glob."
    )
    with pytest.raises(HookNameError) as caught:
        W.stacked("W_Q")
    assert str(caught.value) == "No weight matches 'W_Q' among the 2 in this model. Closest: W. `list(model.weights)` lists them."


def test_shared_heads_are_repeated_on_request():
    net = families.built(families.llama)
    W, path = Weights(net), "model.layers.0.self_attn"
    K = W[f"{path}.W_K"]
    assert torch.equal(W.expanded(f"{path}.W_K"), torch.stack([K[0], K[0], K[1], K[1]]))
    assert torch.equal(W.expanded(f"{path}.W_Q"), W[f"{path}.W_Q"])
    gpt2 = Weights(families.built(families.gpt2))
    same = gpt2.expanded("transformer.h.0.attn.W_K")
    assert same.data_ptr() == gpt2["transformer.h.0.attn.W_K"].data_ptr()


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_circuits_equal_the_dense_product(family, dtype):
    make, path, _, shared = FAMILIES[family]
    W = Weights(families.built(make, dtype))
    for head in range(4):
        key = head // (4 // shared)
        Q, K, V, O = (W[f"{path}.W_{c}"] for c in "QKVO")
        for layer in (1, path):
            torch.testing.assert_close(W.QK(layer, head).dense(), Q[head] @ K[key].T, atol=1e-5, rtol=0)
            torch.testing.assert_close(W.OV(layer, head).dense(), V[key] @ O[head], atol=1e-5, rtol=0)
        assert W.QK(1, head).A.data_ptr() == Q[head].data_ptr()
        assert torch.equal(W.OV(1, head).A, W.expanded(f"{path}.W_V")[head])


def test_no_such_layer_or_head():
    W = Weights(families.built(families.gpt2))
    for layer in (2, -1, "transformer.h.2.attn"):
        with pytest.raises(OptionError, match="layer="):
            W.QK(layer, 0)
    with pytest.raises(OptionError) as caught:
        W.OV(0, 4)
    assert str(caught.value) == "head=4 is not known. It can be 0, 1, 2, 3."
    with pytest.raises(OptionError, match="layer=0"):
        Weights(nn.Linear(2, 2)).QK(0, 0)
