"""A run like an earlier one takes a shorter way. It must end where the long one ends, and notice when it is not alike."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import HookNotReachedError, StaleActivationError, UnsupportedModelError


class Switch(nn.Module):
    """Two layers, the second called as often as ``times`` says, its first output written to where ``overwrite`` says."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.times, self.overwrite = 1, False

    def forward(self, x):
        h = self.a(x)
        for i in range(self.times):
            new = self.b(h)
            if self.overwrite and not i:
                h.mul_(0)
            h = new
        return h


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Switch().requires_grad_(False)


@pytest.fixture
def model(net):
    model = mf.HookedModel(net)
    for _ in range(3):
        model.run_with_cache(torch.ones(2, 3))
    return model


def test_the_short_way_gives_what_the_long_one_gives(net, model):
    for x in torch.randn(5, 2, 3):
        fresh, usual = mf.HookedModel(net).run_with_cache(x)[1], model.run_with_cache(x)[1]
        assert list(usual) == list(fresh)
        assert all(torch.equal(usual[n], fresh[n]) for n in fresh)
        assert [usual.axes(n) for n in usual] == [fresh.axes(n) for n in fresh]
        assert (usual.unreached, usual.reached_end, dict(usual.skipped)) == (fresh.unreached, True, {})


def test_another_number_of_calls(net, model):
    net.times = 3
    cache = model.run_with_cache(torch.ones(2, 3))[1]
    assert list(cache) == ["a", "b#0", "b#1", "b#2", ":out"]
    assert torch.equal(cache["b#2"], cache[":out"])
    net.times = 0
    cache = model.run_with_cache(torch.ones(2, 3))[1]
    assert (list(cache), cache.unreached) == (["a", ":out"], ("b",))
    with pytest.raises(HookNotReachedError):
        model.run_with_cache(torch.ones(2, 3), "b")


def test_a_value_that_is_overwritten_for_the_first_time(net, model):
    net.overwrite = True
    with pytest.raises(StaleActivationError) as caught:
        model.run_with_cache(torch.ones(2, 3))
    assert caught.value.names == ("a",)
    cache = model.run_with_cache(torch.ones(2, 3))[1]  # it is copied from now on
    assert torch.equal(cache["a"], net.a(torch.ones(2, 3)))


def test_a_value_that_is_overwritten_after_the_run(model):
    out, cache = model.run_with_cache(torch.ones(2, 3), "b")
    out.zero_()
    with pytest.raises(StaleActivationError):
        cache["b"]


def test_modules_that_are_exchanged_added_and_moved(net, model):
    x = torch.randn(2, 3)
    net.b = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    assert list(model.run_with_cache(x)[1]) == ["a", "b.0", "b.1", "b", ":out"]
    net.b[1] = nn.Identity()
    cache = model.run_with_cache(x)[1]
    assert torch.equal(cache["b.1"], cache["b.0"])
    net.b, net.c = nn.Identity(), net.b  # the same modules under another name
    cache = model.run_with_cache(x)[1]
    assert (list(cache), cache.unreached) == (["a", "b", ":out"], ("c", "c.0", "c.1"))


def test_a_transform_is_refused_on_the_short_way_too(model):
    with pytest.raises(UnsupportedModelError):
        torch.func.vmap(lambda x: model.run_with_cache(x)[0])(torch.ones(4, 2, 3))


def test_values_without_version_number(net, model):
    with torch.inference_mode():
        x = torch.ones(2, 3)
    net.a, net.b = nn.Identity(), nn.Identity()  # hand on what they were given
    for _ in range(3):
        out, cache = model.run_with_cache(x)
        with torch.inference_mode():
            out.mul_(1)
        assert torch.equal(cache["b"], x)


def test_no_graph_is_held(net, model):
    net.requires_grad_(True)
    for _ in range(3):
        cache = model.run_with_cache(torch.ones(2, 3))[1]
        assert not any(v.requires_grad for v in cache.values())
