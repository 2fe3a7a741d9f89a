"""Whatever ends a run, the module is left as it was."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import EditNotFiredError, HookNotReachedError
from mechfeat.hooks import Ablate, Replace
from mechfeat.hooks.registration import HookTables

from . import nets


def fail(x):
    raise ZeroDivisionError


@pytest.fixture
def net():
    return nets.Chain()


def with_own_hooks(net):
    """The user's hooks, on several modules, which note that they ran."""
    seen = []
    net.a.register_forward_hook(lambda m, a, o: seen.append("a out"))
    net.a.register_forward_pre_hook(lambda m, a: seen.append("a in"))
    net.register_forward_hook(lambda m, a, o: seen.append("root out"))
    net.flag.register_full_backward_hook(lambda m, i, o: seen.append("flag back"))
    net.register_forward_pre_hook(lambda m, a: seen.append("root in"))
    net.c.register_forward_hook(lambda m, a, k, o: seen.append("c out"), with_kwargs=True, always_call=True)
    return seen


def repeat(net, x, run, error):
    """A hundred failures, half of them beside hooks of the user, leave hooks and outputs as they were."""
    for own in (False, True):
        seen = with_own_hooks(net) if own else []
        before, plain = nets.hook_tables(net), net(x)
        one_pass = list(seen)
        for _ in range(50):
            with pytest.raises(error):
                run()
            assert nets.hook_tables(net) == before
        assert not mf.points.active()
        net.flag.error = None
        seen.clear()
        assert torch.equal(net(x), plain)
        assert seen == one_pass
        if not own:
            assert nets.hook_count(net) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("grad", [False, True])
def test_error_in_forward_while_recording(net, error, grad):
    x, model = torch.randn(2, 3), mf.HookedModel(net)

    def run():
        net.flag.error = error()
        try:
            model.run_with_cache(x, ["**", "*:in"], grad=grad)
        finally:
            net.flag.error = None

    repeat(net, x, run, error)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_in_forward_while_editing_and_recording(net, error):
    x, model = torch.randn(2, 3), mf.HookedModel(net)

    def run():
        net.flag.error = error()
        try:
            with model.hooks(Ablate("a")), model.hooks(Ablate("b:in")):
                model.record(x, ["c:in", "c"])
        finally:
            net.flag.error = None

    repeat(net, x, run, error)


def test_error_in_an_edit(net):
    x, model = torch.randn(2, 3), mf.HookedModel(net)
    repeat(net, x, lambda: model.run_with_hooks(x, Ablate("a"), Replace("b", fail)), ZeroDivisionError)


def test_error_in_an_edit_of_the_root(net):
    x, model = torch.randn(2, 3), mf.HookedModel(net)

    def run():
        with model.hooks(Replace(":in", fail)):
            model.run_with_cache(x)

    repeat(net, x, run, ZeroDivisionError)


def test_error_when_the_run_ends(net):
    x, model = torch.randn(2, 3), mf.HookedModel(net)
    repeat(net, x, lambda: model.run_with_cache(x, "skip"), HookNotReachedError)


def test_error_when_the_block_ends(net):
    x, model = torch.randn(2, 3), mf.HookedModel(net)
    repeat(net, x, lambda: model.run_with_hooks(x, Ablate("skip")), EditNotFiredError)


def test_error_in_the_body_of_the_block(net):
    x, model = torch.randn(2, 3), mf.HookedModel(net)

    def run():
        with model.hooks(Ablate("a")):
            model(x)
            raise KeyError

    repeat(net, x, run, KeyError)


@pytest.mark.parametrize(
    ("owner", "kind", "steps"),
    [
        (nn.Module, "register_forward_hook", 2),
        (nn.Module, "register_forward_pre_hook", 1),
        (HookTables, "leaves", 5),
        (HookTables, "enters", 5),
        (HookTables, "_place", 15),
    ],
)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_during_registration(net, monkeypatch, owner, kind, steps, late, error):
    x, model = torch.randn(2, 3), mf.HookedModel(net)
    before, plain = nets.hook_tables(net), net(x)
    register = getattr(owner, kind)
    late = late and owner is HookTables  # torch's own registration hands out its handle in the same step
    for k in range(100):
        count = 0

        def failing(self, *args, k=k, **kwargs):
            nonlocal count
            count += 1
            if count == 1 + k % steps and not late:
                raise error
            made = register(self, *args, **kwargs)
            if count == 1 + k % steps:
                raise error
            return made

        with monkeypatch.context() as patch:
            patch.setattr(owner, kind, failing)
            with pytest.raises(error):
                model.run_with_cache(x, "**:*")
            count = 0
            with (
                pytest.raises(error),
                model.hooks(*(Ablate(f"{p}{port}#0") for p in ("a", "b", "c", "relu", "flag") for port in ("", ":in"))),
            ):
                pass
        assert nets.hook_tables(net) == before
    assert torch.equal(model.run_with_cache(x)[0], plain)  # and the lock is free


def test_early_stop_leaves_nothing(net):
    x, model = torch.randn(2, 3), mf.HookedModel(net)
    seen = with_own_hooks(net)
    before, plain = nets.hook_tables(net), net(x)
    for _ in range(100):
        model.record(x, "a#0")
        assert nets.hook_tables(net) == before
    seen.clear()
    assert torch.equal(net(x), plain)
    assert seen == ["root in", "a in", "a out", "c out", "root out"]


def test_own_hooks_run_once_during_a_recording(net):
    x = torch.randn(2, 3)
    seen = with_own_hooks(net)
    mf.HookedModel(net).run_with_cache(x, "**:*", grad=True)[0].sum().backward()
    assert seen == ["root in", "a in", "a out", "c out", "root out", "flag back"]


def ablated(net, x, call):
    """The chain with one call of its ReLU set to zero, written out."""
    h = net.a(x).relu() * (call != 0)
    return net.c(net.b(h).relu() * (call != 1))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [0, 1])
def test_calls_are_counted_right_after_a_pass_that_failed(net, error, call):
    x, model = torch.randn(2, 3), mf.HookedModel(net)
    expected = ablated(net, x, call)
    with model.hooks(Ablate(f"relu#{call}")):
        for _ in range(3):
            net.flag.error = error()
            with pytest.raises(error):
                net(x)
            net.flag.error = None
            assert torch.equal(net(x), expected)


@pytest.mark.parametrize("stop", ["a#0", "relu#0", "relu#1", "b:in#0"])
@pytest.mark.parametrize("call", [0, 1])
def test_calls_are_counted_right_after_an_early_stop(net, call, stop):
    x, model = torch.randn(2, 3), mf.HookedModel(net)
    expected = ablated(net, x, call)
    with model.hooks(Ablate(f"relu#{call}")):
        for _ in range(3):
            model.record(x, stop)
            assert torch.equal(net(x), expected)


def test_calls_are_counted_right_when_another_model_around_it_stops_early(net):
    x, outer = torch.randn(2, 3), nn.Sequential(net, nn.Linear(2, 2))
    expected = ablated(net, x, 1)
    with mf.HookedModel(net).hooks(Ablate("relu#1")):
        mf.HookedModel(outer).record(x, "0.b#0")
        assert torch.equal(net(x), expected)


def test_a_failing_hook_of_the_user_does_not_hide_an_edit_that_never_fired(net):
    x, model = torch.randn(2, 3), mf.HookedModel(net)

    def broken(module, args):
        raise ZeroDivisionError

    handle = net.register_forward_pre_hook(broken)

    def block():
        with model.hooks(Ablate("skip")):
            with pytest.raises(ZeroDivisionError):
                net(x)
            handle.remove()
            net(x)

    with pytest.raises(EditNotFiredError):
        block()


def test_a_block_left_by_an_error_does_not_replace_it(net):
    def block():
        with mf.HookedModel(net).hooks(Ablate("skip")):
            net(torch.randn(2, 3))
            raise KeyError

    with pytest.raises(KeyError):
        block()


def test_a_recursive_model_is_one_pass():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)

        def forward(self, x, depth=2):
            return self(self.f(x), depth - 1) if depth else x

    net, x = Recursive(), torch.randn(2, 3)
    out, cache = mf.HookedModel(net).run_with_cache(x)
    assert list(cache) == ["f#0", "f#1", ":out#0", ":out#1", ":out#2"]
    assert torch.equal(out, net(x))
    with mf.HookedModel(net).hooks(Ablate("f#1")):
        assert (net(x) == 0).all()
        assert (net(x) == 0).all()
