"""Named values inside a forward, and runs that know nothing of each other."""

import sys
import threading
import timeit

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat import points
from mechfeat.errors import DtypeError, HookNameError, OptionError
from mechfeat.models import ToyAutoencoder

from .hooks import nets


def test_idle_it_is_the_argument_itself():
    x = torch.randn(2)
    assert mf.point(x, "x") is x
    assert mf.point(x, "x", nn.Linear(2, 2)) is x
    assert points.active() == ()


def test_idle_it_costs_little():
    x, point = torch.randn(2), getattr(points.point, "__wrapped__", points.point)  # without the shape checker of the test run
    point(x, "x")
    best = min(timeit.repeat(lambda: point(x, "x"), number=2000, repeat=9)) / 2000
    assert best < 2e-6  # seconds


def test_points_are_recorded_under_the_path_of_their_module():
    net, x = nets.Points(), torch.randn(2, 3)
    cache = mf.HookedModel(net).run_with_cache(x)[1]
    assert list(cache) == ["one.h", "one", "mid", "two.h", "two", "end", ":out"]
    assert torch.equal(cache["one.h"], x @ net.one.W)
    assert torch.equal(cache["mid"], cache["one"])
    assert torch.equal(cache["two.h"], cache["one"] @ net.two.W)
    assert cache.axes("one.h") == ("sample", "channel")
    assert list(mf.HookedModel(net).record(x, "**.h")) == ["one.h", "two.h"]
    assert list(mf.HookedModel(net.one).record(x, "h")) == ["h"]


def test_points_are_edited():
    net, x = nets.Points(), torch.randn(2, 3)
    model = mf.HookedModel(net)
    assert torch.equal(model.run_with_hooks(x, mf.Ablate("one.h")), x @ net.two.W + x)
    assert torch.equal(model.run_with_hooks(x, mf.Ablate("*.h")), x)
    assert torch.equal(model.run_with_hooks(x, mf.Ablate("end", channel=0))[:, 0], torch.zeros(2))
    with model.hooks(mf.Ablate("mid", channel=2)):
        assert (model.record(x, ["mid", "two:in"])["two:in"][:, 2] == 0).all()


def test_points_stop_a_recording_and_carry_gradients():
    net, x = nets.Points(), torch.randn(2, 3)
    model = mf.HookedModel(net)
    assert not model.record(x, "mid#0").reached_end
    assert model.record(x, "mid").reached_end
    assert not model.record(x, "mid").reached_end
    out, cache = model.run_with_cache(x, ["one.h", "mid"], grad=True)
    found = cache.gradients(out.sum())
    assert torch.equal(found["mid"], 2 * torch.ones(2, 3))
    assert torch.equal(found["one.h"], 2 * torch.ones(2, 3))


def test_toy_model():
    net, x = ToyAutoencoder(5, 2), torch.rand(3, 5)
    cache = mf.HookedModel(net).run_with_cache(x)[1]
    assert list(cache) == ["hidden", "pre", ":out"]
    assert torch.equal(cache[":out"], cache["pre"].relu())


def test_a_point_fired_twice():
    class Loop(nn.Module):
        def forward(self, x):
            for _ in range(3):
                x = mf.point(x + 1, "step")
            return x

    cache = mf.HookedModel(Loop()).run_with_cache(torch.zeros(1, 2))[1]
    assert list(cache) == ["step#0", "step#1", "step#2", ":out"]
    assert mf.HookedModel(Loop()).run_with_hooks(torch.zeros(1, 2), mf.Ablate("step#1")).tolist() == [[1.0, 1.0]]


def test_an_unknown_point():
    model, x = mf.HookedModel(nets.Points()), torch.randn(2, 3)
    for run in (
        lambda: model.run_with_cache(x, "one.hh"),
        lambda: model.record(x, "one.hh"),
        lambda: model.run_with_hooks(x, mf.Ablate("one.hh")),
    ):
        with pytest.raises(HookNameError) as caught:
            run()
        assert (
            str(caught.value)
            == "No hook point matches 'one.hh' among the 7 in this model. Closest: one.h, one, two.h. `model.hook_names()` lists them."
        )
    with pytest.raises(HookNameError):
        model.record(x, "one.h:in")


def test_a_point_named_as_a_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)
            self.g = self.f

        def forward(self, x, name="f"):
            return mf.point(self.f(x), name)

    for name in ("f", "g"):
        with pytest.raises(OptionError) as caught:
            mf.HookedModel(Net()).run_with_cache(torch.randn(2, 3), ":out", name=name)
        assert str(caught.value) == f"mf.point name={name!r} is not known. It can be 'a name that is not a module path of the model'."


@pytest.mark.usefixtures("unchecked")
def test_a_point_takes_a_tensor():
    class Net(nn.Module):
        def forward(self, x):
            return mf.point((x, x), "pair")[0]

    with pytest.raises(DtypeError) as caught:
        mf.HookedModel(Net()).run_with_cache(torch.randn(2, 3))
    assert str(caught.value) == "mf.point(..., 'pair') was given a tuple. It takes one tensor."


def test_points_of_another_model_inside_are_its_own():
    other = nets.Points()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)

        def forward(self, x):
            hidden = mf.HookedModel(other).record(x, "one.h")["one.h"]  # a run inside a run
            return mf.point(self.f(other.one(x)) + hidden, "sum", self)

    net, x = Net(), torch.randn(2, 3)
    plain = net(x)
    out, cache = mf.HookedModel(net).run_with_cache(x)
    assert torch.equal(out, plain)
    assert {"f", "sum", ":out"} <= set(cache)
    assert "one.h" not in cache
    assert "h" not in cache
    with mf.HookedModel(other).hooks(mf.Ablate("one.h")):
        net(x)


def test_points_outside_the_forward_of_the_model_are_not_its_own():
    net, x = nets.Points(), torch.randn(2, 3)
    with mf.HookedModel(net).hooks(mf.Ablate("mid")):
        assert mf.point(x, "mid") is x
        assert torch.equal(net(x), torch.zeros(2, 3))
        assert mf.point(x, "mid") is x


def test_a_pass_that_was_cut_short_is_over():
    """A point called outside the forward, after a pass that stopped early or failed in a hook of the user, is nobody's."""
    net, x = nets.Points(), torch.randn(2, 3)

    def broken(module, args):
        raise ZeroDivisionError

    with mf.HookedModel(net).hooks(mf.Ablate("mid")):
        mf.HookedModel(net).record(x, "one#0")
        assert mf.point(x, "mid") is x
        mf.HookedModel(nn.Sequential(net)).record(x, "0.one#0")
        assert mf.point(x, "mid") is x
        net(x)
    handle = net.register_forward_pre_hook(broken)
    with mf.HookedModel(net).hooks(mf.Ablate("mid")):
        with pytest.raises(ZeroDivisionError):
            net(x)
        assert mf.point(x, "mid") is x
        handle.remove()
        assert torch.equal(net(x), torch.zeros(2, 3))


def test_a_thread_that_meets_a_hook_half_registered_passes_through():
    """torch keeps a pre-hook and its wish for keyword arguments in two tables, and fills and empties them one after the other."""
    net, x, found = nets.Chain(), torch.randn(2, 3), []
    plain = net(x)
    with mf.HookedModel(net).hooks(mf.Ablate("b:in")):
        wishes = dict(net.b._forward_pre_hooks_with_kwargs)
        assert wishes
        net.b._forward_pre_hooks_with_kwargs.clear()
        thread = threading.Thread(target=lambda: found.append(net(x)))
        thread.start()
        thread.join()
        net.b._forward_pre_hooks_with_kwargs.update(wishes)
        net(x)
    nets.assert_same(found, plain)


EVERY = ["relu#*", "a", "b:in", "points.*.h", "mid", "c", ":out"]


def test_threads_see_their_own_runs_alone():
    """Eight threads record and edit one model at once, with a thread switch every 0.1 ms."""
    net = nets.Chain()
    net.points = nets.Points()
    net.forward = lambda x: nets.Chain.forward(net, net.points(x))
    model, inputs = mf.HookedModel(net), torch.randn(8, 50, 2, 3)
    expected = [
        [{k: v.clone() for k, v in mf.HookedModel(net).run_with_cache(x, EVERY, clone=True)[1].items()} for x in xs] for xs in inputs
    ]
    outputs = [[net(x).detach() for x in xs] for xs in inputs]
    with mf.HookedModel(net).hooks(mf.Ablate("b")):
        zeroed = [[net(x).detach() for x in xs] for xs in inputs]
    wrong, errors, barrier = [], [], threading.Barrier(8)

    def work(i):
        try:
            barrier.wait()
            for k in range(50):
                x = inputs[i, k]
                kind = (i + k) % 4
                if kind == 0:
                    found = model.run_with_cache(x, EVERY)[1]
                    same = list(found) == list(expected[i][k]) and all(torch.equal(found[n], v) for n, v in expected[i][k].items())
                elif kind == 1:
                    with model.hooks(mf.Ablate("b")):
                        same = torch.equal(model(x), zeroed[i][k])
                elif kind == 2:
                    found = model.record(x, ["relu#0", "points.one.h", "b:in#0"])
                    same = all(torch.equal(found[n], expected[i][k][n]) for n in ("relu#0", "points.one.h", "b:in"))
                else:
                    same = torch.equal(net(x), outputs[i][k])
                if not same:
                    wrong.append((i, k, kind))
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert wrong == []
    assert nets.hook_count(net) == 0
