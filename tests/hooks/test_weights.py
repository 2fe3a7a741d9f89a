"""Weights: views of the parameters as they are."""

import copy

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import HookNameError
from mechfeat.hooks import Weights

from . import nets


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = nn.Conv1d(2, 3, 5), nn.Conv2d(2, 4, (3, 5)), nn.Conv3d(2, 3, 1, bias=False)
        self.up = nn.ConvTranspose2d(2, 5, 3)
        self.fc, self.emb, self.bag = nn.Linear(6, 7), nn.Embedding(9, 4), nn.EmbeddingBag(8, 3)
        self.ln, self.bn, self.gn, self.rms = nn.LayerNorm(3), nn.BatchNorm2d(3), nn.GroupNorm(1, 2), nn.RMSNorm(5)
        self.plain = nn.LayerNorm(3, elementwise_affine=False)


EXPECTED = {
    "c1.kernel": (("out", "in", "kernel"), (3, 2, 5), "c1.weight"),
    "c1.b": (("out",), (3,), "c1.bias"),
    "c2.kernel": (("out", "in", "kernel_height", "kernel_width"), (4, 2, 3, 5), "c2.weight"),
    "c2.b": (("out",), (4,), "c2.bias"),
    "c3.kernel": (("out", "in", "kernel_depth", "kernel_height", "kernel_width"), (3, 2, 1, 1, 1), "c3.weight"),
    "up.kernel": (("out", "in", "kernel_height", "kernel_width"), (5, 2, 3, 3), "up.weight"),
    "up.b": (("out",), (5,), "up.bias"),
    "fc.W": (("out", "in"), (7, 6), "fc.weight"),
    "fc.b": (("out",), (7,), "fc.bias"),
    "emb.W_E": (("token", "channel"), (9, 4), "emb.weight"),
    "bag.W_E": (("token", "channel"), (8, 3), "bag.weight"),
    "ln.w": (("channel",), (3,), "ln.weight"),
    "ln.b": (("channel",), (3,), "ln.bias"),
    "bn.w": (("channel",), (3,), "bn.weight"),
    "bn.b": (("channel",), (3,), "bn.bias"),
    "gn.w": (("channel",), (2,), "gn.weight"),
    "gn.b": (("channel",), (2,), "gn.bias"),
    "rms.w": (("channel",), (5,), "rms.weight"),
}


def assert_views(net, W, expected):
    for name, (axes, shape, parameter) in expected.items():
        p = net.get_parameter(parameter)
        assert W.axes(name) == axes
        assert tuple(W[name].shape) == shape
        assert W[name].data_ptr() == p.data_ptr()
        assert torch.equal(W[name], p if p.shape == W[name].shape else p.transpose(0, 1))


def test_names_axes_and_storage():
    net = Net()
    W = mf.HookedModel(net).weights
    assert list(W) == list(EXPECTED)
    assert len(W) == len(EXPECTED)
    assert_views(net, W, EXPECTED)


def test_they_follow_the_parameters():
    net, other = Net(), Net()
    W = Weights(net)
    net.load_state_dict(other.state_dict())
    for name in W:
        assert torch.equal(W[name], Weights(other)[name])
    with torch.no_grad():
        net.fc.weight.add_(1)
    assert torch.equal(W["fc.W"], other.fc.weight + 1)
    net.to(torch.bfloat16)
    assert {W[name].dtype for name in W} == {torch.bfloat16}
    assert_views(net, W, EXPECTED)
    net.fc = nn.Linear(2, 2)
    assert W["fc.W"] is net.fc.weight


@pytest.mark.parametrize("name", ["fc.W", "up.kernel", "emb.W_E", "ln.w"])
def test_they_carry_gradients(name):
    net = Net()
    Weights(net)[name].square().sum().backward()
    p = net.get_parameter(EXPECTED[name][2])
    torch.testing.assert_close(p.grad, 2 * p)


def test_transposed_kernels_map_channels_in_to_channels_out():
    net = nn.ConvTranspose2d(2, 5, 1, bias=False)
    x = torch.randn(3, 2, 1, 1)
    torch.testing.assert_close(net(x)[..., 0, 0], x[..., 0, 0] @ Weights(net)["kernel"][..., 0, 0].T)


def test_gpt2():
    net, _ = nets.build("gpt2")
    W = Weights(net)
    layer = net.transformer.h[0].mlp.c_fc
    assert W.axes("transformer.h.0.mlp.c_fc.W") == ("out", "in")
    assert tuple(W["transformer.h.0.mlp.c_fc.W"].shape) == (32, 8)
    assert W["transformer.h.0.mlp.c_fc.W"].data_ptr() == layer.weight.data_ptr()
    h = torch.randn(2, 8)
    torch.testing.assert_close(layer(h), nn.functional.linear(h, W["transformer.h.0.mlp.c_fc.W"], W["transformer.h.0.mlp.c_fc.b"]))
    assert W["lm_head.W"] is W["transformer.wte.W_E"]


def test_an_unknown_weight():
    W = Weights(Net())
    with pytest.raises(HookNameError) as caught:
        W["fc.weight"]
    assert (
        str(caught.value)
        == "No weight matches 'fc.weight' among the 18 in this model. Closest: fc.b, fc.W. `list(model.weights)` lists them."
    )
    assert caught.value.name == "fc.weight"
    with pytest.raises(HookNameError) as caught:
        W.axes("qqq")
    assert str(caught.value) == f"No weight matches 'qqq' among the {len(EXPECTED)} in this model. `list(model.weights)` lists them."
    assert "qqq" not in W


def test_copies_are_apart():
    net = Net()
    W = Weights(copy.deepcopy(net))
    assert W["fc.W"].data_ptr() != net.fc.weight.data_ptr()
