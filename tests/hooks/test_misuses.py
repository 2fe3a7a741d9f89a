"""What users of hook libraries asked for and complained about, done as they did it: a right answer, or the named error."""

import gc
import subprocess
import sys
import traceback
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mechfeat as mf
from mechfeat.errors import (
    AmbiguousCallError,
    EditNotFiredError,
    EmptyGlobError,
    HookNameError,
    HookNotReachedError,
    OptionError,
    UnsupportedModelError,
)
from tests.peers import needs

from . import families, nets


def message(error, call):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# --- N1: do not cache everything


def test_n01_one_layer_costs_one_layer():
    """Only what was asked for is kept, and nothing of the run outlives its cache."""
    net, x = families.built(families.ResNet), torch.randn(2, 3, 8, 8)
    model, seen = mf.HookedModel(net), []
    handles = [m.register_forward_hook(lambda m, args, out: seen.append(weakref.ref(out))) for m in net.modules()]
    gc.disable()
    try:
        for _ in range(2):  # the first run copies, later ones share
            with torch.no_grad():
                cache = model.record(x, "layer1.0.conv1")
            assert list(cache) == ["layer1.0.conv1"]
            assert len(seen) >= 4
            assert all(ref() is None for ref in seen)
            kept = weakref.ref(cache["layer1.0.conv1"])
            del cache
            assert kept() is None
            seen.clear()
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()


def test_n01_one_activation_over_all_layers():
    """The stream after each layer is one tensor, at one request; everything is one too."""
    model, x = mf.HookedModel(families.built(families.encoder).train()), torch.randn(2, 5, 16)
    stacked = model.record(x, "@resid_post").stacked("@resid_post")
    first = model.module.layers[0](x)
    torch.testing.assert_close(stacked, torch.stack([first, model.module.layers[1](first)]))
    assert set(model.hook_names()) - set(model.run_with_cache(x)[1]) == {f"layers.{i}.self_attn.out_proj" for i in (0, 1)} | {
        f"layers.{i}.self_attn"
        for i in (0, 1)  # a tuple, recorded as its parts
    }


def test_n01_generation_keeps_one_step_at_a_time():
    """Greedy decoding under a session gives each step's activation once: what is held does not grow with the square of the length."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 7))
    tokens, last = torch.tensor([[1]]), []
    with mf.HookedModel(net).attach("2", stop=False) as session, torch.no_grad():
        for _ in range(6):
            cache = session(tokens)
            last.append(cache["2"][:, -1].clone())
            tokens = torch.cat([tokens, net(tokens)[:, -1:].argmax(-1)], 1)
    torch.testing.assert_close(torch.stack(last, 1), net[:3](tokens[:, :-1]).detach())


# --- N2: hooks that leak, vanish or never fire


def test_n02_an_error_in_a_run_leaves_the_users_hooks_and_none_of_ours():
    """After a failed run the tables of hooks are what they were, whatever kind of run it was."""
    net, calls = nets.Chain(), []
    own = net.a.register_forward_hook(lambda m, args, out: calls.append("own"))
    before, model, x = nets.hook_tables(net), mf.HookedModel(net), torch.randn(2, 3)
    net.flag.error = KeyError("from the model")
    runs = (
        lambda: model.run_with_cache(x, grad=True),
        lambda: model.run_with_hooks(x, mf.Ablate("a")),
        lambda: list(model.stream([x], "c")),
        lambda: model.describe(x),
    )
    for run in runs:
        assert message(KeyError, run) == "'from the model'"
        assert nets.hook_tables(net) == before
    net.flag.error = None
    calls.clear()
    model.run_with_cache(x)
    assert calls == ["own"]  # not removed by a run that caches
    own.remove()


def test_n02_points_that_never_fire_and_filters_that_select_nothing():
    """An empty cache and an edit without effect are errors that say so."""
    model, x = mf.HookedModel(nets.Chain()), torch.randn(2, 3)
    assert (
        message(HookNotReachedError, lambda: model.run_with_cache(x, "skip"))
        == "'skip' was not reached by this forward pass. The module exists, but this input did not call it: it may be skipped, used"
        " through "
        "its weight alone, fire fewer times, or hold no tensor at this port. `model.describe(x)` shows what is reached and how often."
    )
    assert (
        message(EmptyGlobError, lambda: model.run_with_cache(x, lambda name: "resid" in name))
        == "The pattern 'names_filter' matches none of the 7 hook points in this model. `*` stays within one level, `**` crosses levels; "
        "`model.hook_names()` lists the names."
    )
    assert (
        message(EditNotFiredError, lambda: model.run_with_hooks(x, mf.Ablate("skip")))
        == "1 edit was never applied: Ablate('skip'). A forward pass completed inside the block without calling the hook point, so the"
        " result "
        "is that of the unedited model. `model.describe(x)` shows what is reached and how often."
    )


class Swallows(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x, scale=1.0, **kwargs):
        return self.fc(x) * scale


def test_n02_options_that_a_model_would_swallow():
    """An option of another tool, a misspelt one, or one of another call is refused where the model would take it and do nothing."""
    model, x = mf.HookedModel(Swallows()), torch.randn(2, 3)
    where = "is neither an option of this call nor an argument that the forward of Swallows names."
    assert (
        message(OptionError, lambda: model.run_with_cache(x, incl_bwd=True))
        == f"incl_bwd=True {where} Here, run_with_cache(..., grad=True) keeps the graph, and cache.gradients(scalar) gives gradients."
    )
    assert (
        message(OptionError, lambda: model.record(x, name_filter="fc")) == f"name_filter='fc' {where} The nearest option is names_filter."
    )
    assert (
        message(OptionError, lambda: model.run_with_hooks(x, mf.Ablate("fc"), grad=True))
        == f"grad=True {where} It is an option of other calls."
    )
    assert torch.equal(model.run_with_cache(x, scale=2.0, use_cache=False)[0], model.module(x, 2.0))


# --- N3: operations in place


class InPlace(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(4, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 4)

    def forward(self, x):
        h = self.relu(self.a(x))
        if self.relu.inplace:
            h += x
            return F.relu_(self.b(h))
        return F.relu(self.b(h + x))


@pytest.mark.parametrize("frozen", [False, True])
def test_n03_values_and_gradients_of_a_net_that_works_in_place(frozen):
    """They are those of the same net written out of place: values before the overwriting, gradients at each output."""
    clean = InPlace(False).requires_grad_(not frozen)
    net = InPlace(True).requires_grad_(not frozen)
    net.load_state_dict(clean.state_dict())
    x = torch.randn(5, 4)
    found, expected = {}, {}
    for model, into in ((net, found), (clean, expected)):
        for _ in range(2):
            out, cache = mf.HookedModel(model).run_with_cache(x, ["a", "relu", "b"], grad=True)
            into["values"] = [v.detach().clone() for v in cache.values()]
            into["gradients"] = list(cache.gradients(out.square().sum()).values())
    for kind in ("values", "gradients"):
        for one, other in zip(found[kind], expected[kind], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("returns", [True, False])
def test_n03_a_hook_function_that_assigns_to_its_argument(returns):
    """It acts as an edit at that place alone: neither the user's input nor what other modules read is overwritten."""

    def zero(activation, hook):
        activation[:, 0] = 0
        return activation if returns else None

    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model, x = mf.HookedModel(net), torch.randn(5, 3)
    given = x.clone()
    with model.hooks(fwd_hooks=[("1:in", zero)]):
        edited, cache = model.run_with_cache(x, "0")
    assert torch.equal(edited, model.run_with_hooks(x, mf.Ablate("1:in", channel=0)))
    assert not torch.equal(edited, net(x))
    assert torch.equal(cache["0"], net[0](x))
    at_input = model.run_with_hooks(x, fwd_hooks=[(":in", zero)])
    assert torch.equal(x, given)
    assert torch.equal(at_input, net(x * torch.tensor([0.0, 1, 1])))


# --- N4: modules called twice, functional operations


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.b(self.relu(self.a(x))))
        x = mf.point(F.gelu(x), "gelu", self)
        return nn.Softplus()(x)  # made anew in each call


def test_n04_a_module_called_twice_has_two_activations_and_two_gradients():
    """Each call is an entry of its own; a name without call is refused rather than taken as the last."""
    net, x = Functional(), torch.randn(4, 3)
    out, cache = mf.HookedModel(net).run_with_cache(x, ["relu", "gelu"], grad=True)
    first = net.a(x).relu()
    second = net.b(first).relu()
    assert torch.equal(cache["relu#0"], first)
    assert torch.equal(cache["relu#1"], second)
    weight = torch.randn(4, 3)
    found = cache.gradients((out * weight).sum())
    for name, value in (("relu#0", first), ("relu#1", second)):
        leaf = value.detach().requires_grad_()
        rest = F.softplus(F.gelu(net.relu(net.b(leaf)) if name == "relu#0" else leaf))
        torch.testing.assert_close(found[name], torch.autograd.grad((rest * weight).sum(), leaf)[0])
    advice = "'relu' fires 2 times in one forward pass. Say which call: 'relu#0', 'relu#1', or 'relu#*' for all."
    assert message(AmbiguousCallError, lambda: cache["relu"]) == advice
    assert message(AmbiguousCallError, lambda: mf.HookedModel(net).run_with_hooks(x, mf.Ablate("relu"))) == advice


def test_n04_operations_that_are_no_modules_have_a_name_where_the_author_gives_one():
    """``mf.point`` makes a functional operation a hook point; an operation without one is an unknown name, not an empty result."""
    net, x = Functional(), torch.randn(4, 3)
    model = mf.HookedModel(net)
    cache = model.record(x, ["gelu", "relu#1"])
    assert torch.equal(cache["gelu"], F.gelu(cache["relu#1"]))
    assert torch.equal(model.run_with_hooks(x, mf.Ablate("gelu")), F.softplus(torch.zeros(4, 3)))
    assert (
        message(HookNameError, lambda: model.record(x, "softplus"))
        == "No hook point matches 'softplus' among the 5 in this model. `model.hook_names()` lists them."
    )


# --- N5: attention


def padded():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2, enable_nested_tensor=True)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    return net.eval(), torch.randn(2, 5, 16), mask


def test_n05_the_weights_of_an_encoder_that_returns_none_under_a_padding_mask():
    """The pattern of each head is recorded from the fused encoder: rows sum to one, and nothing attends to padding."""
    net, x, mask = padded()
    cache = mf.HookedModel(net).record(x, "**:pattern", src_key_padding_mask=mask)
    assert list(cache) == ["layers.0.self_attn:pattern", "layers.1.self_attn:pattern"]
    W = mf.Weights(net)
    q, k = (torch.einsum("sid,hde->shie", x, W[f"layers.0.self_attn.W_{c}"]) + W[f"layers.0.self_attn.b_{c}"][:, None] for c in "QK")
    scores = (q @ k.mT / 2).masked_fill(mask[:, None, None], -torch.inf)
    first = cache["layers.0.self_attn:pattern"]
    torch.testing.assert_close(first, scores.softmax(-1))
    assert not first[1, :, :, 3:].any()


def test_n05_layers_that_receive_nested_tensors():
    """Under a padding mask torch hands nested tensors from layer to layer: they are recorded padded with zeros, and not edited blindly."""
    net, x, mask = padded()
    model = mf.HookedModel(net)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls nested tensors a prototype
        plain = net(x, src_key_padding_mask=mask)
        cache = model.record(x, "layers.*", src_key_padding_mask=mask)
        torch.testing.assert_close(cache["layers.1"], plain)
        assert not cache["layers.0"][1, 3:].any()
        error = message(UnsupportedModelError, lambda: model.run_with_hooks(x, mf.Ablate("layers.0"), src_key_padding_mask=mask))
    assert (
        error == "layers.0#0 holds a nested tensor, which can be recorded without graph, but not edited. "
        "Build the encoder with enable_nested_tensor=False."
    )


def test_n05_the_output_projection_that_never_fires():
    """``out_proj`` is used through its weight alone: asking for it is an error, and the attention module's output is what it gives."""
    net, x, _ = padded()
    model = mf.HookedModel(net)
    error = message(HookNotReachedError, lambda: model.record(x, "layers.0.self_attn.out_proj"))
    assert error.startswith("'layers.0.self_attn.out_proj' was not reached by this forward pass.")
    cache = model.record(x, ["layers.0.self_attn:out.0", "layers.0.self_attn:z"])
    z = cache["layers.0.self_attn:z"].transpose(1, 2).flatten(2)
    torch.testing.assert_close(net.layers[0].self_attn.out_proj(z), cache["layers.0.self_attn:out.0"])


@pytest.mark.parametrize("make", ["gpt2", "llama", "bert", "encoder"])
def test_n05_one_call_ablates_a_head_of_every_family(make):
    """Ablating a head's result is ablating its rows of W_O, in whichever model."""
    net = families.built(getattr(families, make))
    model = mf.HookedModel(net)
    x = torch.randn(2, 5, 16) if make == "encoder" else families.tokens()
    name = next(n for n in model.weights if n.endswith(".W_O"))
    path = {"bert": "bert.encoder.layer.0.attention.self"}.get(make, name.removesuffix(".W_O"))
    with torch.no_grad():
        edited = model.run_with_hooks(x, mf.Ablate(f"{path}:z", head=2))
        plain = net(x)
        model.weights[name][2] = 0
        expected = net(x)
    if make != "encoder":
        edited, expected, plain = edited.logits, expected.logits, plain.logits
    torch.testing.assert_close(edited, expected)
    assert not torch.allclose(edited, plain)


# --- N6: own models


class Video(nn.Module):
    """3d convolution, own norm, attention over time with a mask given by keyword, and a random latent."""

    class Norm(nn.Module):
        def forward(self, x, *, eps=1e-6):
            return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv3d(1, 8, (1, 4, 4)), self.Norm()
        self.attn, self.mu = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, clip, *, mask, generator=None):
        h = self.norm(self.stem(clip).flatten(2).transpose(1, 2), eps=1e-3)
        h = h + self.attn(h, h, h, attn_mask=mask)[0]
        mu = self.mu(h.mean(1))
        return {"latent": mf.point(mu + 0.1 * torch.randn(mu.shape, generator=generator), "latent", self), "mu": mu}


def test_n06_an_own_model_is_wrapped_as_it_is():
    """No rewrite: convolution, own norm, attention, keyword inputs and a point of a model that nobody knows are recorded and edited."""
    net, clip, mask = Video(), torch.randn(2, 1, 6, 4, 4), torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    model = mf.HookedModel(net)

    def seeded(seed=0):
        return {"mask": mask, "generator": torch.Generator().manual_seed(seed)}

    names = ["stem", "norm", "norm:in", "attn:in.attn_mask", "attn:pattern", ":in.mask", "latent"]
    out, cache = model.run_with_cache(clip, names, **seeded())
    plain = net(clip, **seeded())
    torch.testing.assert_close(out["latent"], plain["latent"])
    assert torch.equal(cache["latent"], out["latent"])
    assert cache["stem"].shape == (2, 8, 6, 1, 1)
    assert torch.equal(cache["norm"], net.norm(cache["norm:in"], eps=1e-3))
    assert torch.equal(cache["attn:in.attn_mask"], mask)
    assert torch.equal(cache[":in.mask"], mask)
    assert not cache["attn:pattern"].triu(1).any()
    edited = model.run_with_hooks(clip, mf.Replace(":in.mask", torch.zeros_like), **seeded())
    torch.testing.assert_close(edited["mu"], net(clip, mask=torch.zeros(6, 6))["mu"])
    assert not torch.allclose(edited["mu"], plain["mu"])


# --- N7: numbers differ


def test_n07_the_wrapped_model_is_the_users_own():
    """Recorded or not, the numbers are those of the model, bit for bit; the state is what it was."""
    net, x = families.built(families.gpt2, torch.float32), families.tokens()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    plain = net(x).logits
    out, cache = mf.HookedModel(net).run_with_cache(x)
    assert torch.equal(out.logits, plain)
    assert torch.equal(cache["lm_head"], plain)
    mf.HookedModel(net).weights.QK(0, 1).dense()
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


# --- N8: names


def test_n08_the_table_says_what_each_name_is_in_order_of_execution():
    """Name, role, kind, axes and calls of every hook point; underscores for dots are answered with the right name; train mode too."""
    net, x = families.built(families.VGG).train(), torch.randn(2, 3, 8, 8)
    model = mf.HookedModel(net)
    order = []
    handles = [m.register_forward_hook(lambda m, args, out, n=n: order.append(n)) for n, m in net.named_modules() if n]
    rows = model.describe(x)
    for handle in handles:
        handle.remove()
    assert [r.name for r in rows if r.name != ":out"] == order
    row = next(r for r in rows if r.name == "features.3")
    assert (row.role, row.kind, row.calls) == ("conv", "Conv2d", 1)
    assert dict(zip(row.axes, row.shape)) == {"sample": 2, "channel": 5, "height": 4, "width": 4}
    assert (
        message(HookNameError, lambda: model.record(x, "features_3"))
        == f"No hook point matches 'features_3' among the {len(model.hook_names())} in this model. "
        "Closest: features.3, features, features.5. `model.hook_names()` lists them."
    )


# --- N9: weights


def test_n09_weights_are_read_where_the_model_is_now():
    """After an optimiser step, a move and a loaded state, one and the same view object reads the parameters in force."""
    net, other = families.built(families.encoder), families.built(families.encoder)
    W = mf.HookedModel(net).weights
    name = "layers.1.self_attn.W_K"
    before = W[name].detach().clone()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()(torch.randn(2, 5, 16)).square().sum().backward()
    optimiser.step()
    assert not torch.equal(W[name], before)
    net.load_state_dict(other.state_dict())
    assert torch.equal(W[name], before)
    net.to(torch.float16)
    assert W[name].dtype == torch.float16
    net.to("meta")
    assert W[name].is_meta
    assert W.QK(1, 0).A.is_meta


def test_n09_heads_that_share_keys_are_matched_to_them():
    """With two key heads for four queries, query head h reads key head h // 2: its scores are those of the model's pattern."""
    net, x = families.built(families.llama), families.tokens()
    W, path = mf.Weights(net), "model.layers.0.self_attn"
    assert [len(W[f"{path}.W_{c}"]) for c in "QKVO"] == [4, 2, 2, 4]
    cache = mf.HookedModel(net).record(x, [f"{path}:scores", "model.layers.0.input_layernorm"])
    stream = cache["model.layers.0.input_layernorm"][:, 0]  # the first position, which is not rotated
    for head in range(4):
        expected = cache[f"{path}:scores"][:, head, 0, 0] * 2  # times sqrt(d_head)
        found = torch.einsum("si,ij,sj->s", stream, W.QK(0, head).dense(), stream)
        torch.testing.assert_close(found, expected)


# --- N10: install and import


def test_n10_broken_and_missing_packages_around_do_not_matter(tmp_path):
    """With a torchvision, a wandb and a datasets that fail inside their import, and no transformer_lens, the core imports and runs."""
    for name in ("torchvision", "wandb", "datasets"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules['transformer_lens'] = None\n"
        "import torch, mechfeat as mf\n"
        "net = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2, enable_nested_tensor=False)\n"
        "model = mf.HookedModel(net.train())\n"
        "cache = model.record(torch.randn(2, 3, 8), '@resid_post')\n"
        "print(list(cache), tuple(model.weights.stacked('W_Q').shape), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() == "['layers.0', 'layers.1'] (2, 2, 8, 4) False"


def test_n10_the_version_that_runs_is_in_the_range_that_is_asked_for():
    """The range of transformer-lens in the package's own metadata takes the version these tests run on and no other major one."""
    from importlib.metadata import requires, version

    needs("transformer_lens")
    asked = [r.replace(" ", "") for r in requires("mechfeat") if r.startswith("transformer-lens")]
    assert asked in (["transformer-lens<5,>=4"], ["transformer-lens>=4,<5"])
    assert 4 <= int(version("transformer-lens").split(".")[0]) < 5


# --- N11: errors and order


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(self.a(x))  # the line at fault


def test_n11_an_error_in_the_model_is_pythons_and_shows_the_line():
    """What the model raises arrives as it was raised, with the user's line in the traceback, from every kind of run."""
    net, x = Fails(), torch.randn(2, 3)
    model = mf.HookedModel(net)
    plain = message(RuntimeError, lambda: net(x))
    for run in (
        lambda: model.run_with_cache(x, grad=True),
        lambda: model.record(x, "b"),
        lambda: model.run_with_hooks(x, mf.Scale("a", 2.0)),
    ):
        with pytest.raises(RuntimeError) as caught:
            run()
        assert str(caught.value) == plain
        assert caught.value.__cause__ is None
        lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert "return self.b(self.a(x))  # the line at fault" in lines


def test_n11_an_error_in_a_hook_function_shows_its_line():
    """A mistake in a function of the user is shown at that function, not at the library's."""

    def wrong(activation, hook):
        return activation @ torch.ones(7, 7)

    with pytest.raises(RuntimeError) as caught:
        mf.HookedModel(nn.Sequential(nn.Linear(3, 4))).run_with_hooks(torch.randn(2, 3), fwd_hooks=[("0", wrong)])
    assert "return activation @ torch.ones(7, 7)" in [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]


def test_n11_runs_do_not_depend_on_each_other_nor_reads_on_order():
    """A second run gives the same, values are read in any order, and they stay after the run as ordinary tensors."""
    net, x = nets.CNN(), torch.randn(2, 1, 5, 5)
    model = mf.HookedModel(net)
    first = model.record(x, ["fc", "conv1"])
    values = {n: first[n].clone() for n in ("fc", "conv1")}  # the later one first
    with model.hooks(mf.Ablate("conv1")):
        model.record(torch.randn(2, 1, 5, 5), "fc")
    second = model.record(x, ["conv1", "fc"])
    for name in ("conv1", "fc"):
        assert torch.equal(second[name], values[name])
        assert torch.equal(first[name], values[name])
        assert type(first[name]) is torch.Tensor


# --- N12: compile, parallel, checkpointing


def test_n12_models_whose_hooks_would_be_ignored_are_refused():
    """A compiled model and ``nn.DataParallel`` are refused with the way out, instead of giving caches that lack or mix activations."""
    net = nn.Sequential(nn.Linear(3, 2))
    assert (
        message(UnsupportedModelError, lambda: mf.HookedModel(torch.compile(net, backend="eager")))
        == "This model is compiled: hooks added after compilation are ignored. Wrap the module inside it, HookedModel(model._orig_mod)."
    )
    assert (
        message(UnsupportedModelError, lambda: mf.HookedModel(nn.DataParallel(net)))
        == "nn.DataParallel runs copies in other threads, where hooks do not fire. Wrap the module inside it, HookedModel(model.module)."
    )


class Branches(nn.Module):
    """Control flow that tracing fails on, and a checkpointed block."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.block = nn.Linear(3, 3), nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x):
        x = self.up(x) if x.sum() > 0 else self.down(x)
        return checkpoint(self.block, x, use_reentrant=False)


def test_n12_control_flow_is_followed():
    """What is recorded is what this input took; the other branch is an error where asked for, and listed where a glob took it."""
    net, x = Branches(), torch.ones(2, 3)
    model = mf.HookedModel(net)
    for value, taken, other in ((x, "up", "down"), (-x, "down", "up"), (x, "up", "down")):
        cache = model.record(value, "*")
        assert torch.equal(cache[taken], getattr(net, taken)(value))
        assert cache.unreached == (other,)
        assert message(HookNotReachedError, lambda v=value, n=other: model.record(v, n)).startswith(f"'{other}' was not reached")


def test_n12_a_backward_pass_after_the_hooks_are_gone():
    """A checkpointed block is computed again by backward, when no hook is there: recording leaves its gradients right, an edit that the
    second computation would lack is refused."""
    net, x = Branches(), torch.ones(2, 3)
    model = mf.HookedModel(net)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.block.parameters()))
    out, cache = model.run_with_cache(x, ["block.0", "block"])
    assert torch.equal(cache["block"], out)
    found = torch.autograd.grad(out.square().sum(), list(net.block.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert message(UnsupportedModelError, lambda: model.run_with_hooks(x, mf.Ablate("block.0"))).startswith(
        "block.0#0 lies in a region of activation checkpointing, which the backward pass computes again, and then without this edit."
    )


# --- N13: factors of weight gradients


def test_n13_inputs_and_output_gradients_are_the_factors_of_the_weight_gradient():
    """The gradient of W is the sum of δ xᵀ over samples and positions, with both factors out of one run."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 6, 3)
    out, cache = mf.HookedModel(net).run_with_cache(x, ["0:in", "0", "2:in", "2"], grad=True)
    loss = out.square().sum()
    weights = torch.autograd.grad(loss, [net[0].weight, net[2].weight], retain_graph=True)
    delta = cache.gradients(loss, names=["0", "2"])
    for layer, grad in zip(("0", "2"), weights):
        torch.testing.assert_close(torch.einsum("spo,spi->oi", delta[layer], cache[f"{layer}:in"]), grad)


def test_n13_the_factors_give_the_kernel():
    """For one output the kernel's part of a layer is (x xᵀ)(δ δᵀ), entry by entry; summed over layers it is what ``mf.ntk`` gives."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 1, bias=False)), torch.randn(5, 3)
    out, cache = mf.HookedModel(net).run_with_cache(x, ["0:in", "0", "2:in", "2"], grad=True)
    delta = cache.gradients(out.sum(), names=["0", "2"])
    theta = sum((cache[f"{n}:in"] @ cache[f"{n}:in"].T) * (delta[n] @ delta[n].T) for n in ("0", "2"))
    torch.testing.assert_close(mf.ntk.empirical_ntk(net, x, outputs="trace").kernel, theta.detach())


# --- N14: simple interventions, saved


def test_n14_one_fixed_place_is_one_value_that_can_be_saved(tmp_path):
    """An intervention is a value: written, read in another process's place, and applied, it gives the same output bit for bit."""
    net, x = nets.CNN(), torch.randn(2, 1, 5, 5)
    edits = [mf.Ablate("conv1", channel=1), mf.Steer("conv2", torch.randn(4), 0.3), mf.Scale("fc", 2.0)]
    with mf.HookedModel(net).hooks(*edits) as model:
        expected = model(x)
    (tmp_path / "edits.json").write_text(mf.hooks.edits_to_json(edits))
    read = mf.hooks.edits_from_json((tmp_path / "edits.json").read_text())
    assert torch.equal(mf.HookedModel(nets.twin(net)).run_with_hooks(x, *read), expected)
    assert not torch.equal(expected, net(x))


def test_n14_what_was_recorded_needs_no_saving():
    """Inside the block of an edit or after it, a recorded value is a tensor; the edit is over when the block is."""
    net, x = nets.CNN(), torch.randn(2, 1, 5, 5)
    model = mf.HookedModel(net)
    with model.hooks(mf.Ablate("conv1", channel=1)):
        cache = model.record(x, "conv1")
        inside = cache["conv1"].sum()
    assert cache["conv1"].sum() == inside
    assert not cache["conv1"][:, 1].any()
    assert torch.equal(model(x), net(x))
    assert model.record(x, "conv1")["conv1"][:, 1].any()
