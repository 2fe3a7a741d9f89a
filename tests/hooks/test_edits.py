"""Edits: what they compute, where, and what they refuse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mechfeat as mf
from mechfeat.errors import (
    AmbiguousCallError,
    DtypeError,
    EditNotFiredError,
    EmptyGlobError,
    HookNameError,
    OptionError,
    PortError,
    SelectorError,
    ShapeError,
    UnsupportedModelError,
)
from mechfeat.hooks import Ablate, ProjectOut, Replace, Steer

from . import nets, oracle

AXES = ("sample", "channel", "height", "width")


@pytest.fixture
def net():
    return nets.Chain()


@pytest.fixture
def x():
    return torch.randn(2, 3)


# --- what they compute


@st.composite
def selections(draw):
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=4, max_size=4)))
    axes = draw(st.lists(st.sampled_from(range(4)), unique=True, max_size=4))
    where = {AXES[i]: draw(st.lists(st.integers(-shape[i], shape[i] - 1), min_size=1, max_size=3)) for i in axes}
    return shape, where


@given(selections(), st.sampled_from(["ablate", "replace"]))
def test_a_selection_is_the_intersection_of_its_axes(selection, kind):
    shape, where = selection
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    new = torch.zeros_like(x) if kind == "ablate" else -x
    edit = Ablate("x", **where) if kind == "ablate" else Replace("x", torch.neg, **where)
    before = x.clone()
    assert torch.equal(edit.apply(x, AXES), oracle.replace_selected(x, new, AXES, where))
    assert torch.equal(x, before)


@pytest.mark.parametrize("axes", [AXES, ("pos", "sample", "channel", "height")])
def test_steering_adds_a_direction_along_the_channels(axes):
    x, d = torch.randn(2, 3, 3, 2), torch.randn(3)
    if axes != AXES:
        x, d = torch.randn(4, 2, 3, 2), torch.randn(3)
    found = Steer("x", d, 2.5, sample=0).apply(x, axes)
    expected = x.clone()
    for place in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        if place[axes.index("sample")] == 0:
            expected[tuple(place)] += 2.5 * d[place[axes.index("channel")]]
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)


def test_steering_by_a_feature_is_along_its_unit():
    f = mf.Feature("x", torch.tensor([3.0, 4.0]))
    assert torch.equal(Steer("x", f, 10.0).apply(torch.zeros(1, 2), ("sample", "channel")), torch.tensor([[6.0, 8.0]]))
    assert torch.equal(Steer("x", f.direction, 1.0).apply(torch.zeros(1, 2), ("sample", "channel")), torch.tensor([[3.0, 4.0]]))


@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1.0, 1e30]))
def test_projecting_out_leaves_nothing_along_the_direction_and_all_else(seed, scale):
    g = torch.Generator().manual_seed(seed)
    x, d = torch.randn(4, 3, 2, generator=g), torch.randn(3, generator=g)
    y = ProjectOut("x", scale * d).apply(x, ("sample", "channel", "pos"))
    unit = d / d.norm()
    assert (torch.einsum("ncp,c->np", y, unit)).abs().max() < 1e-13
    torch.testing.assert_close(y, x - torch.einsum("ncp,c,k->nkp", x, unit, unit))
    torch.testing.assert_close(ProjectOut("x", d).apply(y, ("sample", "channel", "pos")), y)


def test_projecting_to_a_level_leaves_that_component():
    x, d = torch.randn(4, 3), torch.randn(3)
    y = ProjectOut("x", d, 2.5).apply(x, ("sample", "channel"))
    torch.testing.assert_close(y @ (d / d.norm()), torch.full((4,), 2.5))
    torch.testing.assert_close(y - 2.5 * d / d.norm(), ProjectOut("x", d).apply(x, ("sample", "channel")))


def test_projecting_out_a_zero_direction_removes_nothing():
    x = torch.randn(4, 3)
    assert torch.equal(ProjectOut("x", torch.zeros(3)).apply(x, ("sample", "channel")), x)


def test_projecting_out_a_basis_direction_is_ablating_a_channel():
    x = torch.randn(4, 3)
    assert torch.equal(
        ProjectOut("x", mf.Feature.neuron("x", 1, 3)).apply(x, ("sample", "channel")),
        Ablate("x", channel=1).apply(x, ("sample", "channel")),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_take_the_dtype_of_the_activation(dtype):
    x = torch.randn(2, 3).to(dtype)
    for edit in (Steer("x", torch.randn(3)), ProjectOut("x", torch.randn(3))):
        assert edit.apply(x, ("sample", "channel")).dtype == dtype


# --- in a model


def test_edits_apply_in_order_and_blocks_nest(net, x):
    double, add = Replace("a", lambda h: 2 * h), Replace("a", lambda h: h + 1)
    model, a = mf.HookedModel(net), net.a(x).detach()

    def recorded(*edits):
        with model.hooks(*edits):
            return model.record(x, "a")["a"]

    assert torch.equal(recorded(double, add), 2 * a + 1)
    assert torch.equal(recorded(add, double), 2 * (a + 1))
    with model.hooks(double):
        assert torch.equal(recorded(add), 2 * a + 1)
        with model.hooks(add), model.hooks(double):
            assert torch.equal(model.record(x, "a")["a"], 2 * (2 * a + 1))
        assert torch.equal(model.record(x, "a")["a"], 2 * a)
    assert torch.equal(model.record(x, "a")["a"], a)


@pytest.mark.parametrize("name", nets.MODELS)
def test_the_identity_changes_nothing(name):
    net, x = nets.build(name, torch.float32)
    plain = net(x)
    out = mf.HookedModel(net).run_with_hooks(x, Replace("**:*", lambda h: h))
    nets.assert_same(out, plain)
    nets.assert_same(mf.HookedModel(net).run_with_hooks(x, Replace("**:*", torch.clone)), plain)


def test_an_edit_of_a_call(net, x):
    model = mf.HookedModel(net)
    h = net.b(net.a(x).relu()).relu()
    assert torch.equal(model.run_with_hooks(x, Ablate("relu#1", channel=0)), net.c(h * torch.tensor([0.0, 1, 1])))
    assert torch.equal(model.run_with_hooks(x, Ablate("relu#*")), net.c(torch.zeros(2, 3)))
    assert torch.equal(model.run_with_hooks(x, Ablate("rel*")), net.c(torch.zeros(2, 3)))


def test_an_edit_of_an_input_is_seen_by_that_module_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)

        def forward(self, x):
            return x + self.f(x)

    net, x = Residual(), torch.randn(2, 3)
    before = x.clone()
    assert torch.equal(mf.HookedModel(net).run_with_hooks(x, Ablate("f:in")), x + net.f(torch.zeros(2, 3)))
    assert torch.equal(x, before)


def test_edits_of_places():
    net, x = nets.Tuples(), torch.randn(2, 3)
    model = mf.HookedModel(net)
    a, b = x + 1, 2 * x
    out = model.run_with_hooks(x, Ablate("pair:out.0"))
    nets.assert_same(out, [3 * b - 1, a * 0, b])
    assert type(out) is nets.Out
    assert out.note == "text"
    nets.assert_same(model.run_with_hooks(x, Ablate("pair:in.0")), [3 * torch.ones(2, 3) - 1, torch.ones(2, 3), b * 0])
    nets.assert_same(model.run_with_hooks(x, Ablate("mapped:out.h")), [a * 0, a, b])
    nets.assert_same(model.run_with_hooks(x, Ablate("single")), [-torch.ones(2, 3), a, b])
    nets.assert_same(model.run_with_hooks(x, Ablate(":out.logits", channel=0)), [(3 * (a + b) - 1) * torch.tensor([0.0, 1, 1]), a, b])
    seen = []
    nets.assert_same(model.run_with_hooks(x, Replace("pair:in.mask", lambda m: seen.append(m) or ~m)), model(x))
    assert torch.equal(seen[0], x > 0)


def test_edits_of_hugging_face_outputs():
    net, x = nets.build("gpt2")
    plain = net(x)
    model = mf.HookedModel(net)
    out = model.run_with_hooks(x, Ablate(":out.logits", pos=-1))
    assert (out.logits[:, -1] == 0).all()
    assert (out["logits"][:, -1] == 0).all()
    assert (out[0][:, -1] == 0).all()
    assert torch.equal(out.logits[:, :-1], plain.logits[:, :-1])
    assert type(out) is type(plain)
    out = model.run_with_hooks(x, Ablate("transformer:out.last_hidden_state"))
    assert (out.logits == 0).all()
    d = torch.randn(8)
    out, cache = model.run_with_cache(x, ["transformer.h.1", "transformer.ln_f"])
    with model.hooks(Steer("transformer.h.1", d, 2.0, pos=1)):
        steered = model.run_with_cache(x, "transformer.h.1")[1]
    expected = cache["transformer.h.1"].clone()
    expected[:, 1] += 2 * d
    torch.testing.assert_close(steered["transformer.h.1"], expected)


def test_edits_never_write_into_what_they_are_given():
    given, axes = torch.randn(2, 3), ("sample", "channel")
    before = given.clone()
    for edit in (Ablate("x"), Ablate("x", channel=0), Steer("x", torch.ones(3)), ProjectOut("x", torch.ones(3)), Replace("x", torch.neg)):
        edit.apply(given, axes)
        assert torch.equal(given, before)
        assert given._version == 0


def test_gradients_pass_through_edits(net, x):
    model = mf.HookedModel(net)
    with model.hooks(Ablate("b", channel=0)):
        out, cache = model.run_with_cache(x, ["a", "b"], grad=True)
    found = cache.gradients(out.sum())
    on = cache["b"] > 0
    torch.testing.assert_close(found["b"], on * net.c.weight.sum(0))
    keep = torch.tensor([0.0, 1, 1])
    torch.testing.assert_close(found["a"], ((on * net.c.weight.sum(0) * keep) @ net.b.weight) * (cache["a"] > 0))


def test_direct_calls_of_the_module_are_edited(net, x):
    model = mf.HookedModel(net)
    with model.hooks(Ablate("a")) as same:
        assert same is model
        assert torch.equal(net(x), model(x))
        assert torch.equal(net.a(x), torch.zeros(2, 3))


# --- functions as in TransformerLens


def test_functions_are_told_where_they_are(net, x):
    seen = []

    def note(value, hook):
        seen.append(hook.name)

    model = mf.HookedModel(net)
    plain = net(x)
    for hooks in (
        [("a", note), (":out", note)],
        [("*", note)],
        [(lambda n: n in ("b", "c"), note)],
        [("relu#1", note)],
        [("relu:in#*", note)],
    ):
        assert torch.equal(model.run_with_hooks(x, fwd_hooks=hooks), plain)
    assert seen == ["a", ":out", "a", "relu", "flag", "b", "relu", "c", "b", "c", "relu#1", "relu:in#0", "relu:in#1"]


def test_functions_replace_what_they_return(net, x):
    with mf.HookedModel(net).hooks(Ablate("a", channel=0), fwd_hooks=[("a", lambda value, hook: value + 1)]) as model:
        found = model.record(x, "a")["a"]
    expected = net.a(x).detach()
    expected[:, 0] = 0
    assert torch.equal(found, expected + 1)


def test_a_function_by_a_predicate_that_selects_nothing(net, x):
    with (
        pytest.raises(EmptyGlobError) as caught,
        mf.HookedModel(net).hooks(Ablate("a"), fwd_hooks=[(lambda n: False, lambda value, hook: value)]),
    ):
        net(x)
    assert (
        str(caught.value) == "The pattern 'fwd_hooks' matches none of the 7 hook points in this model. "
        "`*` stays within one level, `**` crosses levels; `model.hook_names()` lists the names."
    )


def test_an_idle_function_is_named(net, x):
    def double(value, hook):
        return 2 * value

    with pytest.raises(EditNotFiredError) as caught:
        mf.HookedModel(net).run_with_hooks(x, fwd_hooks=[("skip", double)])
    assert caught.value.edits == ("ForwardHook('skip', fn=double)",)


# --- what they refuse


def test_an_edit_that_never_fired(net, x):
    with pytest.raises(EditNotFiredError) as caught:
        mf.HookedModel(net).run_with_hooks(x, Ablate("a"), Ablate("skip", channel=[0, 2]), Steer("relu#2", torch.ones(3), 2.0))
    assert (
        str(caught.value) == "2 edits were never applied: Ablate('skip', channel=[0, 2]); Steer('relu#2', direction[3], scale=2). "
        "A forward pass completed inside the block without calling the hook point, so the result is that of the unedited model. "
        "`model.describe(x)` shows what is reached and how often."
    )
    with pytest.raises(EditNotFiredError) as caught:
        mf.HookedModel(net).run_with_hooks(x, Ablate("sk*"))
    assert str(caught.value).startswith("1 edit was never applied: Ablate('sk*'). A forward pass completed")


def test_a_block_without_a_run_is_no_error(net):
    with mf.HookedModel(net).hooks(Ablate("skip")):
        pass


def test_an_unknown_name(net, x):
    with pytest.raises(HookNameError) as caught:
        mf.HookedModel(net).run_with_hooks(x, Ablate("fleg"))
    assert str(caught.value) == "No hook point matches 'fleg' among the 7 in this model. Closest: flag. `model.hook_names()` lists them."
    with pytest.raises(HookNameError) as caught, mf.HookedModel(net).hooks(Ablate("fleg:in")):
        pass
    assert str(caught.value) == "No hook point matches 'fleg:in' among the 7 in this model. Closest: flag. `model.hook_names()` lists them."


def test_a_module_called_twice_needs_the_call(net, x):
    with pytest.raises(AmbiguousCallError) as caught:
        mf.HookedModel(net).run_with_hooks(x, Ablate("relu"))
    assert str(caught.value) == "'relu' fires 2 times in one forward pass. Say which call: 'relu#0', 'relu#1', or 'relu#*' for all."


def test_one_call_each_of_several_passes_is_not_ambiguous(net, x):
    with mf.HookedModel(net).hooks(Ablate("a")):
        assert torch.equal(net(x), net(x))


def test_a_wrong_port(x):
    with pytest.raises(PortError) as caught:
        mf.HookedModel(nets.Tuples()).run_with_hooks(x, Ablate("pair"))
    assert (
        str(caught.value) == "'pair' does not address one tensor: there are out.0: Tensor, out.1: Tensor. Use 'pair:out.0' or 'pair:out.1'."
    )


def test_a_wrong_axis(net, x):
    with pytest.raises(SelectorError) as caught:
        mf.HookedModel(net).run_with_hooks(x, Ablate("a", head=1))
    assert (
        str(caught.value)
        == "Ablate('a', head=1) selects by 'head', but the activation at this hook point has axes {'sample': 2, 'channel': 3}."
    )


@pytest.mark.parametrize("channel", [3, -4])
def test_an_index_out_of_range(net, x, channel):
    with pytest.raises(SelectorError) as caught:
        mf.HookedModel(net).run_with_hooks(x, Ablate("a", channel=[0, channel]))
    assert (
        str(caught.value)
        == f"Ablate('a', channel=[0, {channel}]) selects channel={channel}, but this hook point has 3 of them, counted from 0."
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x[:1], ShapeError, "gave shape (1, 3) for an activation of shape (2, 3). An edit keeps the shape."),
        (
            lambda x: x.float(),
            DtypeError,
            "gave torch.float32 for an activation of torch.float64. An edit keeps the dtype; convert with .to(x).",
        ),
        (lambda x: 1.0, DtypeError, "gave a float for an activation. It must give a tensor of shape (2, 3)."),
        (lambda x: None, DtypeError, "gave a NoneType for an activation. It must give a tensor of shape (2, 3)."),
    ],
)
def test_an_edit_that_gives_something_else(net, x, fn, error, message):
    fn.__name__ = "fn"
    with pytest.raises(error) as caught:
        mf.HookedModel(net).run_with_hooks(x, Replace("a", fn))
    assert str(caught.value) == f"Replace('a', fn=fn) {message}"


def test_a_direction_of_another_size(net, x):
    with pytest.raises(ShapeError) as caught:
        mf.HookedModel(net).run_with_hooks(x, Steer("a", torch.ones(5)))
    assert (
        str(caught.value)
        == "Steer('a', direction[5], scale=1) has 5 channels, and the activation has 3. Take the direction at this hook point."
    )


def test_a_direction_where_no_channel_is_known(x):
    net = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Flatten())
    with pytest.raises(SelectorError) as caught:
        mf.HookedModel(net).run_with_hooks(x, ProjectOut("0", torch.ones(3)))
    assert (
        str(caught.value)
        == "ProjectOut('0', direction[3]) needs the channel axis, and the axes here are ('sample', 'axis1', 'axis2', 'axis3'). "
        "Name it: HookedModel(net, axes={'0': (..., 'channel', ...)})."
    )
    model = mf.HookedModel(net, axes={"0": ("sample", "channel", "height", "width")})
    assert torch.allclose(model.run_with_hooks(x, ProjectOut("0", torch.ones(3))).sum(1), torch.zeros(2))


def test_an_empty_selection():
    with pytest.raises(SelectorError) as caught:
        Ablate("a", channel=[])
    assert str(caught.value) == "channel=[] selects nothing. Give an index, or leave the axis out to select all of it."


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("index", ["x", 1.5, True, None])
def test_a_selection_that_is_no_index(index):
    with pytest.raises(OptionError) as caught:
        Ablate("a", channel=index)
    assert str(caught.value) == f"channel={index!r} is not known. It can be 'an index', 'a sequence of indices'."


@pytest.mark.usefixtures("unchecked")
def test_replacing_needs_a_function():
    with pytest.raises(OptionError) as caught:
        Replace("a", 5)
    assert str(caught.value) == "fn=5 is not known. It can be 'a function from activation to activation'."


def test_nothing_to_apply(net):
    with pytest.raises(OptionError) as caught, mf.HookedModel(net).hooks():
        pass
    assert str(caught.value) == "edits=[] is not known. It can be 'at least one edit or forward hook'."


def test_inside_vmap(net, x):
    with pytest.raises(UnsupportedModelError) as caught, mf.HookedModel(net).hooks(Ablate("a")):
        torch.vmap(net)(x)
    assert (
        str(caught.value) == "a#0 was reached inside a torch.func transform (vmap, grad, jvp), where tensors lack their batch axis. "
        "Record or edit in a plain call of the model."
    )


# --- models that cannot be wrapped


@pytest.mark.usefixtures("unchecked")
def test_no_module():
    with pytest.raises(DtypeError) as caught:
        mf.HookedModel(5)
    assert str(caught.value) == "HookedModel wraps a torch.nn.Module and was given a int."
    with pytest.raises(DtypeError) as caught:
        mf.hooks.unwrap("x")
    assert str(caught.value) == "A torch.nn.Module or a HookedModel is needed, and a str was given."


def test_a_compiled_model():
    net = nn.Linear(2, 2)
    net._orig_mod = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError) as caught:
        mf.HookedModel(net)
    assert (
        str(caught.value)
        == "This model is compiled: hooks added after compilation are ignored. Wrap the module inside it, HookedModel(model._orig_mod)."
    )


def test_data_parallel():
    with pytest.raises(UnsupportedModelError) as caught:
        mf.HookedModel(nn.DataParallel(nn.Linear(2, 2)))
    assert (
        str(caught.value)
        == "nn.DataParallel runs copies in other threads, where hooks do not fire. Wrap the module inside it, HookedModel(model.module)."
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script():
    with pytest.raises(UnsupportedModelError) as caught:
        mf.HookedModel(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
    assert str(caught.value) == "A TorchScript model does not call hooks of its submodules. Wrap the eager module it was made from."


def test_wrapper_or_module():
    net = nn.Linear(2, 2)
    model = mf.HookedModel(net, axes={"": ("sample", "unit")})
    assert mf.hooks.unwrap(net) is mf.hooks.unwrap(model) is net
    assert mf.hooks.hooked(model) is model
    assert mf.hooks.hooked(net).module is net
    assert mf.HookedModel(model).record(torch.ones(1, 2), "").axes("") == ("sample", "unit")
