"""Recording: what is recorded, when it stops, how the cache is read."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import (
    AmbiguousCallError,
    EmptyGlobError,
    GradientError,
    HookNameError,
    HookNotReachedError,
    PortError,
    ShapeError,
    UnsupportedModelError,
)

from . import nets

NOT_REACHED = (
    "The module exists, but this input did not call it: it may be skipped, used through its weight alone, fire fewer times, or hold no"
    " tensor at this port. `model.describe(x)` shows what is reached and how often."
)


@pytest.fixture
def net():
    return nets.Chain()


@pytest.fixture
def x():
    return torch.randn(2, 3)


# --- stopping


def test_a_call_index_stops_at_once(net, x):
    cache = mf.HookedModel(net).record(x, "a#0")
    assert net.flag.calls == 0
    assert not cache.reached_end
    assert torch.equal(cache["a"], net.a(x))
    assert torch.equal(cache["a#0"], net.a(x))


def test_a_name_stops_once_its_calls_are_known(net, x):
    model = mf.HookedModel(net)
    assert model.record(x, "a").reached_end
    assert net.flag.calls == 1
    assert not model.record(x, "a").reached_end
    assert net.flag.calls == 1
    assert model.record(torch.randn(5, 3), "a").reached_end  # other shapes may take other ways
    assert model.record(x, "b").reached_end
    assert not model.record(x, ["a", "b"]).reached_end


def test_run_with_cache_always_completes(net, x):
    model = mf.HookedModel(net)
    for k in range(3):
        out, cache = model.run_with_cache(x, "a#0")
        assert torch.equal(out, net(x))
        assert cache.reached_end
        assert net.flag.calls == 2 * (k + 1)


@pytest.mark.parametrize("names", ["relu", "relu#*", ["relu", "a"], "rel*", "relu:*", ["relu:in"]])
def test_modules_called_twice_are_recorded_completely(net, x, names):
    model = mf.HookedModel(net)
    first = model.record(x, names)
    for _ in range(3):
        again = model.record(x, names)
        assert not again.reached_end
        assert list(again) == list(first)
        assert {"relu#1", "relu:in#1"} & set(again)
        for key in first:
            assert torch.equal(first[key], again[key])


def test_the_second_call_alone(net, x):
    kept = nets.captured_by_hand(net, x)["relu", "out"]
    calls = net.flag.calls
    cache = mf.HookedModel(net).record(x, "relu#1")
    assert net.flag.calls == calls + 1
    assert list(cache) == ["relu#1"]
    assert torch.equal(cache["relu#1"], kept[1][0])
    with pytest.raises(HookNameError):
        cache["relu#0"]


def test_stopping_is_no_exception_that_a_model_catches(x):
    class Catching(nets.Chain):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return x

    net = Catching()
    assert list(mf.HookedModel(net).record(x, "relu#0")) == ["relu"]
    assert net.flag.calls == 0


def test_recording_inside_an_edit_and_editing_inside_a_run(net, x):
    model = mf.HookedModel(net)
    with model.hooks(mf.Ablate("a", channel=0)):
        cache = model.run_with_cache(x, ["a", "relu#0", "b:in"])[1]
    assert (cache["a"][:, 0] == 0).all()
    assert torch.equal(cache["relu#0"], cache["a"].relu())
    assert torch.equal(cache["b:in"], cache["relu#0"])


def test_inputs_by_tuple_mapping_and_keyword():
    net, x = nets.Tuples().pair, torch.randn(2, 3)
    model = mf.HookedModel(net)
    a = model.run_with_cache(x, ":*", scale=2.0, mask=x > 0)[1]
    b = model.run_with_cache((x, 2.0), ":*", mask=x > 0)[1]
    c = model.run_with_cache({"x": x, "mask": x > 0}, ":*")[1]
    assert list(a) == [":in.0", ":in.mask", ":out.0", ":out.1"]
    assert list(b) == [":in.0", ":in.mask", ":out.0", ":out.1"]
    assert list(c) == [":in.x", ":in.mask", ":out.0", ":out.1"]
    assert dict(a.skipped) == {":in.scale": "float"}
    assert dict(b.skipped) == {":in.1": "float"}


# --- reading


def test_a_cache_lists_calls_where_there_are_several(net, x):
    cache = mf.HookedModel(net).run_with_cache(x)[1]
    assert list(cache) == ["a", "relu#0", "flag", "b", "relu#1", "c", ":out"]
    assert len(cache) == 7
    assert cache.unreached == ("skip",)
    assert cache.calls("relu") == 2
    assert cache.calls("a") == 1
    assert cache.calls("skip") == 0
    assert cache["a#0"] is cache["a:out"] is cache["a"]
    assert "relu#1" in cache
    assert "relu" not in cache
    assert "a#1" not in cache
    assert "nothing" not in cache


def test_reading_a_module_called_twice_needs_the_call(net, x):
    cache = mf.HookedModel(net).run_with_cache(x)[1]
    with pytest.raises(AmbiguousCallError) as caught:
        cache["relu"]
    assert str(caught.value) == "'relu' fires 2 times in one forward pass. Say which call: 'relu#0', 'relu#1', or 'relu#*' for all."
    assert (caught.value.name, caught.value.calls) == ("relu", 2)


def test_one_recorded_call_of_two_is_not_the_whole(net, x):
    cache = mf.HookedModel(net).run_with_cache(x, "relu#0")[1]
    assert list(cache) == ["relu#0"]
    with pytest.raises(AmbiguousCallError):
        cache["relu"]


def test_reading_a_call_that_was_not(net, x):
    cache = mf.HookedModel(net).run_with_cache(x, ["a", "b"])[1]
    with pytest.raises(HookNameError) as caught:
        cache["a#3"]
    assert str(caught.value) == "No hook point matches 'a#3' among the 2 recorded in this cache. Closest: a. `list(cache)` lists them."
    with pytest.raises(HookNameError) as caught:
        cache["c"]
    assert str(caught.value) == "No hook point matches 'c' among the 2 recorded in this cache. `list(cache)` lists them."


def test_tuple_outputs_by_port():
    net, x = nets.Tuples(), torch.randn(2, 3)
    out, cache = mf.HookedModel(net).run_with_cache(x, "**:*")
    assert list(cache) == [
        ":in", "pair:in.0", "pair:in.mask", "pair:out.0", "pair:out.1", "single:in", "single:out.0",
        "mapped:in", "mapped:out.h", ":out.logits", ":out.hidden.0", ":out.hidden.1",
    ]  # fmt: skip
    assert cache["single"] is cache["single:out"] is cache["single:out.0"]
    assert cache["mapped"] is cache["mapped:out.h"]
    assert torch.equal(cache[":out.logits"], out.logits)
    assert dict(cache.skipped) == {"pair:in.1": "float", "single:out.1": "NoneType", "mapped:out.n": "int", ":out.note": "str"}
    with pytest.raises(PortError) as caught:
        cache["pair"]
    assert str(caught.value) == "'pair' does not address one tensor: it holds 2 tensors. Use 'pair:out.0' or 'pair:out.1'."


def test_one_tensor_in_a_tuple_needs_no_place():
    cache = mf.HookedModel(nets.Tuples()).record(torch.randn(2, 3), ["single", "mapped"])
    assert list(cache) == ["single:out.0", "mapped:out.h"]


def test_hugging_face_outputs_by_name():
    net, x = nets.build("gpt2")
    out, cache = mf.HookedModel(net).run_with_cache(x, [":out.logits", "transformer:out.last_hidden_state", "transformer.h.0"])
    assert torch.equal(cache[":out.logits"], out.logits)
    assert torch.equal(net.lm_head(cache["transformer:out.last_hidden_state"]), out.logits)
    assert cache.axes("transformer.h.0") == ("sample", "pos", "channel")


def test_a_cache_prints_its_shapes(net, x):
    cache = mf.HookedModel(net).run_with_cache(x, "*")[1]
    assert repr(cache).splitlines()[:2] == ["ActivationCache of 6 hook points", "  a  sample=2 channel=3"]
    assert repr(cache).splitlines()[-1] == "  not reached: skip"


def test_a_cache_is_immutable(net, x):
    cache = mf.HookedModel(net).record(x, "a")
    with pytest.raises(TypeError):
        cache["a"] = x
    with pytest.raises(TypeError):
        cache.skipped["a"] = "b"


# --- what is asked for and not there


@pytest.mark.parametrize("method", ["record", "run_with_cache"])
class TestNothingIsEmpty:
    def test_literal_name_not_reached(self, net, x, method):
        with pytest.raises(HookNotReachedError) as caught:
            getattr(mf.HookedModel(net), method)(x, ["a", "skip", "relu#5"])
        assert str(caught.value) == f"'skip', 'relu#5' were not reached by this forward pass. {NOT_REACHED}"
        assert caught.value.names == ("skip", "relu#5")
        assert caught.value.reached == ("a",)

    def test_one_name_not_reached(self, net, x, method):
        with pytest.raises(HookNotReachedError) as caught:
            getattr(mf.HookedModel(net), method)(x, "skip:in")
        assert str(caught.value) == f"'skip:in' was not reached by this forward pass. {NOT_REACHED}"

    def test_glob_that_reaches_nothing(self, net, x, method):
        with pytest.raises(HookNotReachedError):
            getattr(mf.HookedModel(net), method)(x, "sk*")

    def test_glob_of_a_port_that_is_nowhere(self, net, x, method):
        with pytest.raises(HookNotReachedError):
            getattr(mf.HookedModel(net), method)(x, "**:out.7")

    def test_glob_that_reaches_no_tensor(self, x, method):
        class Number(nn.Module):
            def forward(self, x):
                return 5

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.n = Number()

            def forward(self, x):
                return x * self.n(x)

        with pytest.raises(HookNotReachedError):
            getattr(mf.HookedModel(Net()), method)(x, "n*")
        with pytest.raises(PortError) as caught:
            getattr(mf.HookedModel(Net()), method)(x, "n")
        assert str(caught.value) == "'n' does not address one tensor: there is out: int. It holds no tensor to record or edit."

    def test_unknown_name(self, net, x, method):
        with pytest.raises(HookNameError) as caught:
            getattr(mf.HookedModel(net), method)(x, "fleg")
        assert (
            str(caught.value) == "No hook point matches 'fleg' among the 7 in this model. Closest: flag. `model.hook_names()` lists them."
        )

    def test_unknown_input(self, net, x, method):
        with pytest.raises(HookNameError) as caught:
            getattr(mf.HookedModel(net), method)(x, "fleg:in")
        assert (
            str(caught.value)
            == "No hook point matches 'fleg:in' among the 7 in this model. Closest: flag. `model.hook_names()` lists them."
        )
        assert net.flag.calls == 0

    def test_empty_glob(self, net, x, method):
        with pytest.raises(EmptyGlobError) as caught:
            getattr(mf.HookedModel(net), method)(x, "qq*")
        assert (
            str(caught.value) == "The pattern 'qq*' matches none of the 7 hook points in this model. "
            "`*` stays within one level, `**` crosses levels; `model.hook_names()` lists the names."
        )

    def test_empty_filter(self, net, x, method):
        for request in ([], lambda n: False):
            with pytest.raises(EmptyGlobError) as caught:
                getattr(mf.HookedModel(net), method)(x, request)
            text = "[]" if request == [] else "names_filter"
            assert (
                str(caught.value) == f"The pattern {text!r} matches none of the 7 hook points in this model. "
                "`*` stays within one level, `**` crosses levels; `model.hook_names()` lists the names."
            )

    def test_wrong_port(self, x, method):
        with pytest.raises(PortError) as caught:
            getattr(mf.HookedModel(nets.Tuples()), method)(x, "pair")
        assert (
            str(caught.value)
            == "'pair' does not address one tensor: there are out.0: Tensor, out.1: Tensor. Use 'pair:out.0' or 'pair:out.1'."
        )
        with pytest.raises(PortError) as caught:
            getattr(mf.HookedModel(nets.Tuples()), method)(x, "pair:out.2")
        assert (
            str(caught.value)
            == "'pair:out.2' does not address one tensor: there are out.0: Tensor, out.1: Tensor. Use 'pair:out.0' or 'pair:out.1'."
        )
        assert caught.value.ports == ("pair:out.0", "pair:out.1")
        with pytest.raises(PortError) as caught:
            getattr(mf.HookedModel(nets.Tuples()), method)(x, "single:out.1")
        assert (
            str(caught.value) == "'single:out.1' does not address one tensor: there are out.0: Tensor, out.1: NoneType. Use 'single:out.0'."
        )

    def test_inside_vmap(self, net, x, method):
        model = mf.HookedModel(net)
        with pytest.raises(UnsupportedModelError) as caught:
            torch.vmap(lambda row: getattr(model, method)(row, "a") or row)(x)
        assert (
            str(caught.value) == "a#0 was reached inside a torch.func transform (vmap, grad, jvp), where tensors lack their batch axis. "
            "Record or edit in a plain call of the model."
        )
        assert nets.hook_count(net) == 0


def test_a_predicate_is_a_set_like_a_glob(net, x):
    cache = mf.HookedModel(net).run_with_cache(x, lambda n: n in ("skip", "a", "relu"))[1]
    assert list(cache) == ["a", "relu#0", "relu#1"]
    assert cache.unreached == ("skip",)
    every = mf.HookedModel(nets.Tuples()).run_with_cache(x, lambda n: True)[1]
    assert {"pair:out.0", "pair:out.1", ":out.logits"} <= set(every)


# --- gradients


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn", "chain", "resnet eval", "resnet train", "encoder train", "points"])
def test_gradients_are_those_of_retain_grad(name, frozen):
    net, x = nets.build(name, torch.float32)
    net.requires_grad_(not frozen)
    # By hand: each output is handed on as a copy, so that writing in place leaves the retained one alone.
    kept, handles = {}, []

    def keep(path):
        def hook(m, a, out):
            out = out if out.requires_grad else out.detach().requires_grad_()
            out.retain_grad()
            kept.setdefault(path, []).append(out)
            return out.clone()

        return hook

    clean = nets.twin(net)
    hooked = [(p, m) for p, m in clean.named_modules() if not isinstance(m, nn.MultiheadAttention | nn.ModuleList)]
    handles = [m.register_forward_hook(keep(p)) for p, m in hooked]
    clean(x)[:, 0].sum().backward()
    for h in handles:
        h.remove()

    model = mf.HookedModel(net)
    for _ in range(2):  # the second run knows more
        names = [p or ":out" for p, m in hooked if p in kept]
        out, cache = model.run_with_cache(x, names, grad=True)
        gradients = cache.gradients(out[:, 0].sum())
    assert set(gradients) == set(cache)
    for path, nodes in kept.items():
        for k, node in enumerate(nodes):
            key = str(mf.hooks.HookName(path, "out", k if len(nodes) > 1 else None))
            assert torch.equal(cache[key], node), key
            assert torch.equal(gradients[key], torch.zeros_like(node) if node.grad is None else node.grad), key


def test_gradient_at_an_input_is_that_through_the_module_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)

        def forward(self, x):
            return x + self.f(x)

    net, x = Residual(), torch.randn(2, 3)
    out, cache = mf.HookedModel(net).run_with_cache(x, ["f:in", ":in"], grad=True)
    found = cache.gradients(out.sum())
    torch.testing.assert_close(found["f:in"], torch.ones(2, 3) @ net.f.weight)
    torch.testing.assert_close(found[":in"], torch.ones(2, 3) @ net.f.weight + 1)


def test_gradient_of_what_the_scalar_ignores_is_zero(net, x):
    _, cache = mf.HookedModel(net).run_with_cache(x, ["a", "c"], grad=True)
    found = cache.gradients(cache["a"].sum(), names=["c"])
    assert list(found) == ["c"]
    assert torch.equal(found["c"], torch.zeros(2, 2))


def test_gradients_twice(net, x):
    out, cache = mf.HookedModel(net).run_with_cache(x, "a", grad=True)
    once = cache.gradients(out.sum(), retain_graph=True)
    assert torch.equal(cache.gradients(out.sum())["a"], once["a"])


def test_gradients_without_graph(net, x):
    out, cache = mf.HookedModel(net).run_with_cache(x, "a")
    with pytest.raises(GradientError) as caught:
        cache.gradients(out.sum())
    assert str(caught.value) == "This cache holds values without graph. Record with grad=True to ask for gradients."


def test_gradients_of_no_scalar(net, x):
    out, cache = mf.HookedModel(net).run_with_cache(x, "a", grad=True)
    with pytest.raises(ShapeError) as caught:
        cache.gradients(out)
    assert (
        str(caught.value) == "gradients() needs a scalar and was given shape (2, 2). Sum or select first, for instance logits[:, 3].sum()."
    )
    with pytest.raises(GradientError) as caught:
        cache.gradients(torch.tensor(1.0))
    assert str(caught.value) == "The scalar does not depend on anything recorded in this run. Compute it from the output of the same run."


def test_gradients_of_integers():
    net, x = nets.build("gpt2")
    out, cache = mf.HookedModel(net).run_with_cache(x, ["transformer.wte:in", "transformer.wte"], grad=True)
    assert list(cache.gradients(out.logits.sum(), retain_graph=True)) == ["transformer.wte"]
    with pytest.raises(GradientError) as caught:
        cache.gradients(out.logits.sum(), names=["transformer.wte:in"])
    assert str(caught.value) == "'transformer.wte:in' hold torch.int64, which has no gradient."


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_graph_asked_for_where_there_is_none(net, x, mode):
    with mode(), pytest.raises(GradientError) as caught:
        mf.HookedModel(net).run_with_cache(x, grad=True)
    assert str(caught.value) == "grad=True was asked for while gradients are switched off. Leave the no_grad or inference_mode block."


def test_get_gives_the_default_for_what_is_not_there(net, x):
    cache = mf.HookedModel(net).record(x, "a")
    assert torch.equal(cache.get("a"), cache["a"])
    assert cache.get("nothing", 3) == 3
    weights = mf.HookedModel(net).weights
    assert weights.get("nothing") is None
