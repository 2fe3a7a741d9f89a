"""Activations by role: one, one of several by number, all of them, stacked."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import HookNameError, OptionError, PortError, ShapeError, StaleActivationError

from . import families, nets


@pytest.fixture
def encoder():
    return mf.HookedModel(families.built(families.encoder).train())  # no dropout; a layer that trains is not fused


def x():
    return torch.randn(2, 5, 16)


def test_a_role_that_one_hook_point_plays(encoder):
    alone = encoder.record(x(), "layers.0")
    assert torch.equal(alone["@resid_post"], alone["layers.0"])
    assert "@resid_post" in alone


def test_by_number_in_the_model_whichever_were_recorded(encoder):
    cache = encoder.record(x(), "layers.1")
    assert torch.equal(cache["@resid_post", 1], cache["layers.1"])
    assert torch.equal(cache["@resid_post", -1], cache["layers.1"])
    assert ("@resid_post", 0) not in cache
    with pytest.raises(HookNameError) as caught:
        cache["@resid_post", 0]
    assert str(caught.value) == "No hook point matches '@resid_post, 0' among the 1 recorded in this cache. `list(cache)` lists them."
    with pytest.raises(OptionError) as caught:
        cache["@resid_post", 2]
    assert str(caught.value) == "cache['@resid_post', i], i=2 is not known. It can be -2, -1, 0, 1."
    with pytest.raises(OptionError) as caught:
        cache["layers.1", 0]
    assert str(caught.value).startswith("role='layers.1' is not known. It can be '@resid_pre', '@resid_mid'")


def test_inputs_play_roles_too(encoder):
    given = x()
    cache = encoder.record(given, ["@resid_pre", "@mlp_post"])
    assert torch.equal(cache["@resid_pre", 0], given)
    assert torch.equal(cache["@mlp_post", 1], cache["layers.1.linear2:in"])


def test_several_at_once(encoder):
    cache = encoder.record(x(), ["@resid_post", "@attn_out"])
    assert list(cache.select("@resid_post")) == ["layers.0", "layers.1"]
    assert list(cache.select("layers.*.dropout1")) == ["layers.0.dropout1", "layers.1.dropout1"]
    assert list(cache.select("layers.1")) == ["layers.1"]
    stacked = cache.stacked("@resid_post")
    assert torch.equal(stacked, torch.stack([cache["layers.0"], cache["layers.1"]]))
    with pytest.raises(PortError) as caught:
        cache["@resid_post"]
    assert (
        str(caught.value)
        == "'@resid_post' does not address one tensor: 2 recorded hook points play this role, which `cache.select` gives together. "
        "Use 'layers.0' or 'layers.1'."
    )
    assert "@resid_post" not in cache


def test_gradients_pass_through_the_stack(encoder):
    out, cache = encoder.run_with_cache(x(), "@resid_post", grad=True)
    found = cache.gradients(cache.stacked("@resid_post")[1].sum() + out.sum())
    torch.testing.assert_close(found["layers.1"], torch.full_like(out, 2.0))


def test_calls(encoder):
    net = nets.CNN()
    cache = mf.HookedModel(net).record(torch.randn(2, 1, 5, 5), "@act")
    assert list(cache.select("@act")) == ["relu#0", "relu#1"]
    assert torch.equal(cache["@act#1"], cache["relu#1"])
    with pytest.raises(ShapeError) as caught:
        cache.stacked("@act")
    assert (
        str(caught.value) == "'@act' cannot be stacked: the shapes are {'relu#0': [2, 3, 5, 5], 'relu#1': [2, 4, 5, 5]}. "
        "Select activations of one shape with a glob."
    )


def test_what_is_not_there(encoder):
    cache = encoder.record(x(), "@resid_post")
    with pytest.raises(HookNameError) as caught:
        cache["@resid_posts"]
    assert (
        str(caught.value) == f"No role is called '@resid_posts' among the {len(encoder.roles())} in this model. "
        "Closest: @resid_post, @resid_pre, @resid_mid. `model.roles()` lists them."
    )
    with pytest.raises(HookNameError) as caught:
        cache.select("@mlp_out")
    assert str(caught.value) == "No hook point matches '@mlp_out' among the 2 recorded in this cache. `list(cache)` lists them."
    assert "@mlp_out" not in cache
    assert cache.get("@mlp_out") is None


def test_a_selection_is_checked_like_a_read():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model, given = mf.HookedModel(net), torch.randn(2, 3)
    cache = [model.run_with_cache(given)[1] for _ in range(2)][1]  # the second run shares memory
    cache["1"].add_(1)
    with pytest.raises(StaleActivationError):
        cache.select("@post")
    assert list(cache.select("@pre")) == ["0"]


def test_a_module_called_like_a_role():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    net.add_module("@conv", nn.ReLU())
    _, cache = mf.HookedModel(net).run_with_cache(torch.randn(1, 1, 2, 2))
    assert torch.equal(cache["@conv"], cache["0"].relu())
    assert list(cache.select("@conv")) == ["@conv"]
