"""Roles: the same request for every network of a family, at the right activation."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import EditNotFiredError, HookNameError, HookNotReachedError
from mechfeat.hooks.adapters import ROLES, adapter_for
from mechfeat.hooks.names import Pattern
from tests.peers import needs

from . import families, nets

CNNS = {
    families.ResNet: {
        "conv": ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer1.1.downsample"],
        "norm": ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2"],
        "act": ["relu", "layer1.0.relu", "layer1.1.relu"],
        "pool": ["maxpool", "avgpool"],
        "block_out": ["layer1.0", "layer1.1"],
    },
    families.Squeeze: {
        "conv": ["features.0"] + [f"features.{i}.{c}" for i in (3, 4) for c in ("squeeze", "expand1x1", "expand3x3")],
        "act": ["features.1"] + [f"features.{i}.{c}_activation" for i in (3, 4) for c in ("squeeze", "expand1x1", "expand3x3")],
        "pool": ["features.2"],
        "block_out": ["features.3", "features.4"],
    },
    families.VGG: {
        "conv": ["features.0", "features.3"],
        "act": ["features.1", "features.4", "classifier.1"],
        "pool": ["features.2", "features.5", "avgpool"],
        "block_out": ["features.2", "features.5"],
    },
}


def listed(roles):
    return {role: list(names) for role, names in roles.items()}


def image(n=8):
    return torch.randn(2, 3, n, n)


@pytest.mark.parametrize("make", CNNS)
def test_convolutional_networks(make):
    net = families.built(make)
    model = mf.HookedModel(net)
    assert listed(model.roles()) == CNNS[make]
    for role, names in CNNS[make].items():
        x = image()
        cache, expected = model.record(x, f"@{role}"), model.record(x, [f"{n}#*" for n in names])
        assert list(cache) == list(expected)
        for name in cache:
            assert torch.equal(cache[name], expected[name])


def test_residual_network_of_the_package():
    roles = mf.HookedModel(mf.models.CifarResNet(8, width=4)).roles()
    assert roles["block_out"] == ("layer1.0", "layer2.0", "layer3.0")
    assert set(roles) == {"conv", "norm", "act", "block_out"}


def test_a_whole_network_is_no_block():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mf.models.DigitsCNN()

    assert "block_out" not in adapter_for(mf.models.DigitsCNN()).roles
    assert "block_out" not in adapter_for(Wrapped()).roles


# --- transformers: the values, from what each family says of itself


def stream(net, roles, x, hidden_states, logits, mids):
    """Roles of the stream agree with the hidden states the model returns, and with sums of their parts."""
    model = mf.HookedModel(net)
    assert set(roles) <= set(model.roles())
    with torch.no_grad():
        cache = model.record(x, [f"@{r}" for r in model.roles()])
    names = model.roles()
    value = {r: [cache[n if not n.endswith(":in.0") or n in cache else n.removesuffix(".0")] for n in names[r]] for r in names}
    for i in range(2):
        assert torch.equal(value["resid_pre"][i], hidden_states[i])
        if i == 0 or len(hidden_states) > 2:
            assert torch.equal(value["resid_post"][i], hidden_states[i + 1])
    if mids:
        assert torch.equal(value["resid_mid"][0], mids[0])
    else:
        assert "resid_mid" not in names
        for i in range(2):
            total = value["resid_pre"][i] + value["attn_out"][i] + value["mlp_out"][i]
            torch.testing.assert_close(total, value["resid_post"][i])
    if logits is not None:
        assert torch.equal(value["logits"][0], logits)
    return value


def causal_states(net, x, final):
    """Hidden states of each block; the last one transformers returns is normed already, so it is taken as the norm's input."""
    kept = []
    handle = final.register_forward_pre_hook(lambda m, args: kept.append(args[0].detach()))
    with torch.no_grad():
        out = net(x, output_hidden_states=True)
    handle.remove()
    return [*out.hidden_states[:-1], kept[0]], out.logits


TRANSFORMER = {"resid_pre", "resid_post", "attn_out", "mlp_pre", "mlp_post", "mlp_out"}


def test_gpt2():
    net, x = families.built(families.gpt2), families.tokens()
    states, logits = causal_states(net, x, net.transformer.ln_f)
    value = stream(net, TRANSFORMER, x, states, logits, None)
    assert torch.equal(value["embed"][0], net.transformer.wte(x))
    assert torch.equal(value["pos_embed"][0], net.transformer.wpe(torch.arange(6))[None])
    assert torch.equal(value["final_norm"][0], net.transformer.ln_f(states[-1]))
    block = net.transformer.h[1].mlp
    assert torch.equal(block.act(value["mlp_pre"][1]), value["mlp_post"][1])
    assert torch.equal(block.c_proj(value["mlp_post"][1]), value["mlp_out"][1])


def test_llama():
    net, x = families.built(families.llama), families.tokens()
    states, logits = causal_states(net, x, net.model.norm)
    value = stream(net, TRANSFORMER, x, states, logits, None)
    assert torch.equal(value["embed"][0], states[0])
    assert torch.equal(value["final_norm"][0], net.model.norm(states[-1]))
    assert "pos_embed" not in value  # its positions are rotations inside attention
    block = net.model.layers[1].mlp
    assert value["mlp_pre"][1].shape == (2, 6, 24)
    torch.testing.assert_close(block.down_proj(value["mlp_post"][1]), value["mlp_out"][1])


def test_bert():
    net, x = families.built(families.bert), families.tokens()
    with torch.no_grad():
        out = net(x, output_hidden_states=True)
    layer = net.bert.encoder.layer[0]
    with torch.no_grad():
        mid = mf.HookedModel(net).record(x, "bert.encoder.layer.0.attention.output")["bert.encoder.layer.0.attention.output"]
    value = stream(net, TRANSFORMER | {"resid_mid"}, x, out.hidden_states, out.logits, [mid])
    torch.testing.assert_close(layer.attention.output.LayerNorm(value["resid_pre"][0] + value["attn_out"][0]), value["resid_mid"][0])
    torch.testing.assert_close(layer.output.LayerNorm(value["resid_mid"][0] + value["mlp_out"][0]), value["resid_post"][0])
    torch.testing.assert_close(layer.output.dense(value["mlp_post"][0]), value["mlp_out"][0])


def test_vit():
    net, x = families.built(families.vit), torch.randn(2, 3, 8, 8)
    states, logits = causal_states(net, x, net.vit.layernorm)
    value = stream(net, TRANSFORMER, x, states, logits, None)
    assert torch.equal(net.vit.layers[0].mlp.fc2(value["mlp_post"][0]), value["mlp_out"][0])
    assert value["embed"][0].shape == (2, 4, 16)


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder(norm_first):
    net, x = families.built(lambda: families.encoder(norm_first)), torch.randn(2, 5, 16)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
        states = [x, net.layers[0](x), net(x)]
        layer = net.layers[0]
        mid = None if norm_first else [layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])]
        value = stream(net, TRANSFORMER, x, states, None, mid)
    torch.testing.assert_close(layer.linear2(value["mlp_post"][0]), value["mlp_out"][0])
    torch.testing.assert_close(torch.relu(value["mlp_pre"][0]), value["mlp_post"][0])


def test_an_encoder_alone_has_a_stream_and_neither_embedding_nor_logits():
    net, x = families.built(families.encoder), torch.randn(2, 5, 16)
    model = mf.HookedModel(net)
    assert not {"embed", "logits"} & set(model.roles())
    assert torch.equal(model.record(x, "@resid_pre")["@resid_pre", 0], x)


def test_a_layer_called_with_its_input_alone():
    layer, x = families.encoder().layers[0], torch.randn(2, 5, 16)
    cache = mf.HookedModel(layer).record(x, "@resid_pre")
    assert list(cache) == [":in"]
    assert torch.equal(cache[":in"], x)


def test_models_inside_others():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = families.gpt2()

        def forward(self, x):
            return self.inner(x).logits

    roles = mf.HookedModel(Outer()).roles()
    assert roles["resid_post"] == ("inner.transformer.h.0", "inner.transformer.h.1")
    assert roles["logits"] == ("inner.lm_head",)


def test_convolutions_before_attention():
    class Hybrid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attn = nn.Conv2d(3, 16, 4), nn.MultiheadAttention(16, 4, batch_first=True)

    assert listed(adapter_for(Hybrid()).roles) == {"conv": ["stem"], "attn_out": ["attn:out.0"]}


def test_perceptrons_and_toy_models():
    assert listed(adapter_for(mf.models.mlp([3, 4, 4, 2])).roles) == {"pre": ["0", "2"], "post": ["1", "3"], "hidden": ["1", "3"]}
    toy = mf.HookedModel(mf.models.ToyAutoencoder(5, 2))
    assert listed(toy.roles()) == {"pre": ["pre"], "hidden": ["hidden"]}
    for _ in range(2):  # the second run knows the points
        x = torch.rand(3, 5)
        assert torch.equal(toy.record(x, "@hidden")["hidden"], x @ toy.module.W)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.act, self.first = nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)

    # The order of definition says nothing about the order of calls here.
    assert adapter_for(Functional()).roles["pre"] == ("act:in",)


# --- TransformerLens


@pytest.fixture(params=["gelu", "gated silu"])
def bridge(request):
    needs("transformer_lens")
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    *gated, act = request.param.split()
    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 6, "d_vocab": 7, "d_mlp": 16}
    return TransformerBridge.boot_native(TransformerBridgeConfig(**sizes, act_fn=act, gated_mlp=bool(gated)))


def test_bridge(bridge):
    x = torch.randint(0, 7, (1, 5))
    model = mf.HookedModel(bridge)
    logits, theirs = bridge.run_with_cache(x)
    cache = model.record(x, [f"@{r}" for r in model.roles()])
    names = {"embed": "hook_embed", "pos_embed": "hook_pos_embed", "final_norm": "ln_final.hook_out", "logits": "hook_unembed"}
    names |= {r: f"blocks.1.hook_{r}" for r in ("resid_pre", "resid_post", "attn_out", "mlp_out")}
    names |= {"mlp_pre": "blocks.1.mlp.hook_pre", "mlp_post": "blocks.1.mlp.hook_post"}
    assert set(model.roles()) == set(names)
    for role, name in names.items():
        assert torch.equal(cache[model.roles()[role][-1]], theirs[name])
        assert torch.equal(model.record(x, name)[name], theirs[name])  # their name serves as well
    zero = model.run_with_hooks(x, mf.Ablate("blocks.0.hook_resid_post"))
    assert not torch.equal(zero, logits)


def test_modules_made_of_hook_points():
    needs("transformer_lens")
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    class Net(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.fc, self.hook_pre, self.hook_post = nn.Linear(3, 4), HookPoint(), HookPoint()
            self.blocks = nn.ModuleList([Block()])
            self.setup()

        def forward(self, x):
            return self.blocks[0](self.hook_post(torch.relu(self.hook_pre(self.fc(x)))))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.hook_resid_post = HookPoint()

        def forward(self, x):
            return self.hook_resid_post(2 * x)

    net, x = Net(), torch.randn(2, 3)
    roles = mf.HookedModel(net).roles()
    assert listed(roles) == {"resid_post": ["blocks.0.hook_resid_post"], "pre": ["hook_pre"], "post": ["hook_post"]}
    assert torch.equal(mf.HookedModel(net).record(x, "@pre")["hook_pre"], net.fc(x))


def test_adapters_import_neither_library():
    code = (
        "import sys, torch, mechfeat as mf\n"
        "mf.HookedModel(mf.models.DigitsCNN()).roles()\n"
        "print([m for m in ('transformer_lens', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- requests


def test_a_role_takes_every_call_and_lists_what_was_not_reached():
    net = families.built(families.ResNet)
    cache = mf.HookedModel(net).record(image(), "@act")
    assert list(cache) == ["relu", "layer1.0.relu#0", "layer1.0.relu#1", "layer1.1.relu#0", "layer1.1.relu#1"]
    assert list(mf.HookedModel(net).run_with_cache(image(), "@act#0")[1]) == ["relu", "layer1.0.relu#0", "layer1.1.relu#0"]
    assert list(mf.HookedModel(net).record(image(), "@pool:in")) == ["maxpool:in", "avgpool:in"]
    net.unused = nn.Conv2d(1, 1, 1)
    assert list(mf.HookedModel(net).record(image(), "@conv").unreached) == ["unused"]


def test_roles_stop_early_once_the_calls_are_known():
    net = families.built(families.VGG)
    model, x = mf.HookedModel(net), image()
    model.run_with_cache(x, "@conv")
    assert not model.record(x, "@conv").reached_end


def test_edits_of_a_role_reach_each_of_its_hook_points():
    net, x = families.built(families.gpt2), families.tokens()
    model = mf.HookedModel(net)
    with model.hooks(mf.Ablate("@attn_out"), mf.Ablate("@mlp_out")), torch.no_grad():
        cache = model.record(x, ["@resid_pre", "@resid_post"])
    for i in range(2):
        assert torch.equal(cache[f"transformer.h.{i}:in.0"], cache[f"transformer.h.{i}"])
    seen = []
    model.run_with_hooks(x, fwd_hooks=[("@mlp_post", lambda activation, hook: seen.append(hook.name))])
    assert seen == ["transformer.h.0.mlp.act", "transformer.h.1.mlp.act"]


def test_an_edit_of_the_stream_is_seen_by_all_that_reads_it():
    net, x = families.built(families.gpt2), families.tokens()
    with torch.no_grad():
        out = mf.HookedModel(net).run_with_hooks(x, mf.Ablate("@resid_pre"), mf.Ablate("@attn_out"), mf.Ablate("@mlp_out")).logits
        expected = net.lm_head(net.transformer.ln_f(torch.zeros(2, 6, 16)))
    torch.testing.assert_close(out, expected)


def test_unknown_roles():
    model = mf.HookedModel(families.ResNet())
    for use in (lambda: model.record(image(), "@convs"), lambda: model.run_with_hooks(image(), mf.Ablate("@convs"))):
        with pytest.raises(HookNameError) as caught:
            use()
        assert (
            str(caught.value) == "No role is called '@convs' among the 5 in this model. Closest: @conv, @act. `model.roles()` lists them."
        )
        assert caught.value.name == "@convs"
    with pytest.raises(HookNameError, match="No role is called '@conv' among the 0 in this model"):
        mf.HookedModel(nets.Points()).record(torch.randn(2, 3), "@conv")


def test_roles_that_never_fire():
    net = nets.CNN()
    net.never = nn.MaxPool2d(2)
    model, x = mf.HookedModel(net), torch.randn(2, 1, 5, 5)
    with pytest.raises(HookNotReachedError):
        model.record(x, "@pool")
    with pytest.raises(EditNotFiredError):
        model.run_with_hooks(x, mf.Ablate("@pool"))


def test_a_module_may_be_called_like_a_role():
    net = nn.Sequential()
    net.add_module("@conv", nn.Conv2d(1, 1, 1))
    assert list(mf.HookedModel(net).record(torch.randn(1, 1, 2, 2), "@conv")) == ["@conv"]
    assert Pattern.parse("@conv").role == "conv"
    assert Pattern.parse("conv").role is None


def test_roles_are_a_closed_list_in_one_order():
    for make in (families.gpt2, families.bert, families.encoder, families.ResNet):
        roles = list(adapter_for(make()).roles)
        assert roles == [r for r in ROLES if r in roles]


def test_the_table_shows_roles():
    net = families.built(families.gpt2)
    for description in (mf.HookedModel(net).describe(), mf.HookedModel(net).describe(families.tokens())):
        role = {row.name: row.role for row in description}
        assert role["transformer.h.0"] == "resid_pre:in resid_post"
        assert role["transformer.h.0.mlp.act"] == "mlp_post"
        assert role.get("transformer.h.0.attn", role.get("transformer.h.0.attn:out.0")) == "attn_out"
        assert role["transformer.wte"] == "embed"


def test_each_hook_point_of_a_role_has_its_own_port():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2))
    assert list(mf.HookedModel(net).record(torch.randn(4, 2), "@pre")) == ["0", "3:in"]
