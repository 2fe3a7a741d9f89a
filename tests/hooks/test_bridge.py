"""The bridge of TransformerLens: roles and weights under its own names, native and over local models of `transformers`."""

import importlib.metadata
import warnings

import pytest
import torch

import mechfeat as mf
from mechfeat.hooks import Weights
from tests.peers import needs

from . import families

SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "n_ctx": 8, "d_vocab": 13, "d_mlp": 24}
PARTS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_gate", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")


def native(**options):
    needs("transformer_lens")
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_native(TransformerBridgeConfig(**SIZES, **options))


def over(make, folder):
    """A bridge over a model in a local folder: nothing is fetched."""
    needs("transformer_lens")
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    families.built(make, torch.float32).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(13)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", eos_token="0", bos_token="0", pad_token="0").save_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder))


KINDS = {
    "native": lambda folder: native(act_fn="gelu"),
    "native gated": lambda folder: native(act_fn="silu", gated_mlp=True),
    "GPT-2": lambda folder: over(families.gpt2, folder),
    "Llama": lambda folder: over(families.llama, folder),
}


@pytest.fixture(scope="module", params=KINDS)
def bridge(request, tmp_path_factory):
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net = KINDS[request.param](tmp_path_factory.mktemp("model"))
    finally:  # a skip too
        torch.set_default_dtype(default)
    with torch.no_grad():
        for p in net.parameters():  # biases start at zero, which would hide one that is missing
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.fixture
def bridge_x():
    return torch.randint(0, 13, (2, 6))


def theirs(bridge, part):
    """What the bridge itself gives, stacked over layers; None where it has none."""
    try:
        return getattr(bridge, part)
    except AttributeError:  # how it says that a checkpoint has no such bias
        return None


def test_the_suite_runs_on_the_fourth_version():
    needs("transformer_lens")
    assert importlib.metadata.version("transformer_lens").startswith("4.")


def test_weights_are_those_of_the_bridge(bridge):
    W = Weights(bridge)
    seen = []
    for part in PARTS:
        expected = theirs(bridge, part)
        where = "mlp" if part in ("W_in", "W_out", "W_gate", "b_in", "b_out") else "attn"
        if expected is None:
            assert f"blocks.0.{where}.{part}" not in W
            continue
        seen.append(part)
        assert torch.equal(W.stacked(part), expected), part
        for layer in range(2):
            assert torch.equal(W[f"blocks.{layer}.{where}.{part}"], expected[layer])
    assert {"W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"} <= set(seen)
    assert torch.equal(W["W_E"], bridge.W_E)
    assert torch.equal(W["W_U"], bridge.W_U)
    assert W.axes("W_U") == ("d_model", "d_vocab")
    assert W.axes("blocks.1.attn.W_Q") == ("head", "d_model", "d_head")


def test_weights_are_views_that_follow_and_carry_gradients(bridge, bridge_x):
    W = Weights(bridge)
    storages = {p.untyped_storage().data_ptr() for p in bridge.parameters()}
    names = ["W_E", "W_U", *(n for n in W if n.startswith("blocks.") and n.split(".")[-1] in PARTS)]
    assert len(names) >= 2 + 2 * 6
    assert all(W[n].untyped_storage().data_ptr() in storages for n in names)
    # The layers that these names read are the ones that the forward pass uses.
    before = bridge(bridge_x)
    for name in names:
        if name.endswith(("b_K", "b_U")):  # a bias of all keys moves all scores of a query alike
            continue
        kept = W[name].detach().clone()
        with torch.no_grad():
            W[name].mul_(2.0)
        assert not torch.allclose(bridge(bridge_x), before), name
        with torch.no_grad():
            W[name].copy_(kept)
    assert torch.equal(bridge(bridge_x), before)
    bridge.zero_grad()
    sum(W[n].square().sum() for n in names).backward()
    total = sum(p.grad.square().sum() for p in bridge.parameters() if p.grad is not None)
    expected = sum((2 * W[n]).square().sum() for n in names)
    if W["W_E"].untyped_storage().data_ptr() == W["W_U"].untyped_storage().data_ptr():  # tied: one gradient, of twice the size
        expected = expected + (2 * W["W_E"]).square().sum() * 2
    torch.testing.assert_close(total, expected)
    bridge.zero_grad()


def test_circuits_of_a_head(bridge):
    W = Weights(bridge)
    W_Q, W_K, W_V, W_O = (theirs(bridge, f"W_{c}") for c in "QKVO")
    shared = W_K.shape[1]
    for head in range(4):
        key = head // (4 // shared)
        torch.testing.assert_close(W.QK(1, head).dense(), W_Q[1, head] @ W_K[1, key].T)
        torch.testing.assert_close(W.OV("blocks.0.attn", head).dense(), W_V[0, key] @ W_O[0, head])
        assert W.QK(1, head).A.untyped_storage().data_ptr() == W["blocks.1.attn.W_Q"].untyped_storage().data_ptr()


def test_roles_are_the_points_that_the_bridge_calls_so(bridge, bridge_x):
    model = mf.HookedModel(bridge)
    expected, cache = bridge.run_with_cache(bridge_x)
    names = {"embed": ["hook_embed"], "final_norm": ["ln_final.hook_out"], "logits": ["hook_unembed"]}
    if "pos_embed.hook_out" in bridge.hook_dict:  # else positions are rotations of queries and keys
        names["pos_embed"] = ["pos_embed.hook_out"]
    names |= {r: [f"blocks.{i}.hook_{r}" for i in (0, 1)] for r in ("resid_pre", "resid_post", "attn_out", "mlp_out")}
    names |= {f"mlp_{r}": [f"blocks.{i}.mlp.hook_{r}" for i in (0, 1)] for r in ("pre", "post")}
    missing = {r for r, points in names.items() if any(p not in bridge.hook_dict for p in points)}
    assert set(model.roles()) == set(names) - missing
    assert not missing
    out, recorded = model.run_with_cache(bridge_x, [f"@{r}" for r in names])
    assert torch.equal(out, expected)
    for role, points in names.items():
        for path, point in zip(model.roles()[role], points, strict=True):
            assert torch.equal(recorded[path], cache[point]), point


def test_a_bridge_inside_another_model():
    net = torch.nn.ModuleDict({"language": native(act_fn="gelu")})
    assert mf.HookedModel(net).roles()["resid_post"] == ("language.blocks.0.hook_out", "language.blocks.1.hook_out")
    W = Weights(net)
    assert torch.equal(W.stacked("W_Q"), net["language"].W_Q)
    assert torch.equal(W["language.W_E"], net["language"].W_E)


def test_weights_after_processing_are_those_in_force(tmp_path, bridge_x):
    net = over(families.gpt2, tmp_path)
    before = Weights(net)["blocks.0.attn.W_Q"].detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bridge advises other options
        net.enable_compatibility_mode()
    W = Weights(net)
    assert not torch.equal(W["blocks.0.attn.W_Q"], before)  # layer norms were folded in
    for part in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
        assert torch.equal(W.stacked(part), getattr(net, part)), part
    assert torch.equal(W["W_U"], net.W_U)
