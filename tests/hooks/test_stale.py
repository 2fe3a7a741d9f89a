"""Values overwritten in place after they passed."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import StaleActivationError

from . import nets
from .test_bit_equality import out_of_place

MESSAGE = (
    "overwritten in place after being recorded, so the values are not those that passed the hook point. "
    "Record with clone=True, or leave clone unset: it copies what is known to be overwritten, and these names are known from now on."
)


@pytest.mark.parametrize("grad", [False, True])
def test_exactly_the_overwritten_points_are_named(grad):
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    with pytest.raises(StaleActivationError) as caught:
        model.run_with_cache(x, clone=False, grad=grad)
    assert str(caught.value) == f"'a', 'b': {MESSAGE}"
    assert caught.value.names == ("a", "b")
    model.run_with_cache(x, ["relu#*", "flag", "c", ":out"], clone=False, grad=grad)
    with pytest.raises(StaleActivationError) as caught:
        model.run_with_cache(x, ["relu:in#1", "c"], clone=False, grad=grad)
    assert caught.value.names == ("relu:in#1",)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_in_a_resnet_they_are_those_that_differ_from_the_out_of_place_twin(train, grad):
    net, x = nets.resnet(train), torch.randn(2, 3, 8, 8)
    right = mf.HookedModel(out_of_place(net)).run_with_cache(x, clone=True)[1]
    raw, handles = {}, []
    for path, m in net.named_modules():
        handles.append(m.register_forward_hook(lambda m, a, out, path=path: raw.setdefault(path, []).append(out.detach())))
    net(x)
    for h in handles:
        h.remove()
    every = [(p, k, len(outs), out) for p, outs in raw.items() for k, out in enumerate(outs)]
    keys = [(str(mf.hooks.HookName(p, "out", k if n > 1 else None)), out) for p, k, n, out in every]
    wrong = {key for key, out in keys if not torch.equal(out, right[key])}
    assert wrong
    with pytest.raises(StaleActivationError) as caught:
        mf.HookedModel(net).run_with_cache(x, clone=False, grad=grad)
    assert set(caught.value.names) == wrong
    assert len(caught.value.names) == len(wrong)


@pytest.mark.parametrize("grad", [False, True])
def test_frozen_models_work_in_place_too(grad):
    net, x = nets.build("chain")
    expected = mf.HookedModel(net).run_with_cache(x, clone=True)[1]
    net.requires_grad_(False)
    model = mf.HookedModel(net)
    with pytest.raises(StaleActivationError):
        model.run_with_cache(x, clone=False, grad=grad)
    model.run_with_cache(x, grad=grad)
    found = model.run_with_cache(x, grad=grad)[1]
    for key in expected:
        assert torch.equal(found[key], expected[key])


def test_what_was_wrong_once_is_copied_from_then_on():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    right = model.run_with_cache(x, clone=True)[1]
    model.run_with_cache(x)
    net.flag.forward = lambda v: v.mul_(1)  # the model changes: relu#0 is overwritten from now on
    with pytest.raises(StaleActivationError) as caught:
        model.run_with_cache(x)
    assert caught.value.names == ("relu#0",)
    found = model.run_with_cache(x)[1]
    for key in right:
        assert torch.equal(found[key], right[key])


def test_overwriting_after_the_run_is_noticed_at_the_read():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(2, 3)
    model = mf.HookedModel(net)
    model.run_with_cache(x)
    out, cache = model.run_with_cache(x)
    with torch.no_grad():
        out.add_(1)
    cache["0"]
    with pytest.raises(StaleActivationError) as caught:
        cache["1"]
    assert str(caught.value) == f"'1': {MESSAGE}"
    with pytest.raises(StaleActivationError):
        cache.samples("1")


def test_the_first_run_copies():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(2, 3)
    out, cache = mf.HookedModel(net).run_with_cache(x)
    expected = out.clone()
    with torch.no_grad():
        out.add_(1)
    assert torch.equal(cache["1"], expected)


def test_what_stays_is_shared_from_the_second_run_on():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(2, 3)
    model = mf.HookedModel(net)
    out, first = model.run_with_cache(x)
    assert first["1"].data_ptr() != out.data_ptr()
    out, second = model.run_with_cache(x)
    assert second["1"].data_ptr() == out.data_ptr()
    out, third = model.run_with_cache(x, clone=True)
    assert third["1"].data_ptr() != out.data_ptr()


@pytest.mark.parametrize("clone", [None, True, False])
@pytest.mark.parametrize("name", ["chain", "cnn", "resnet eval", "mlp"])
def test_inference_mode_copies_since_tensors_have_no_version_there(name, clone):
    net, x = nets.build(name)
    right = mf.HookedModel(net).run_with_cache(x, clone=True)[1]
    model = mf.HookedModel(net)
    with torch.inference_mode():
        for _ in range(2):
            found = model.run_with_cache(x, clone=clone)[1]
            for key in right:
                assert torch.equal(found[key], right[key])
