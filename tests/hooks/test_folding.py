"""A layer and the batch norm after it as one layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mechfeat.errors import ShapeError, UnsupportedLayerError
from mechfeat.hooks import fold_batch_norm

CASES = {
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d, (3, 2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d, (3, 2, 7, 6)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 4, (1, 3), bias=False), nn.BatchNorm2d, (3, 2, 7, 6)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d, (3, 4, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), nn.BatchNorm3d, (3, 2, 4, 4, 4)),
    "linear": (lambda: nn.Linear(5, 4), nn.BatchNorm1d, (3, 5)),
}


def pair(case, **options):
    make, norm, shape = CASES[case]
    conv = make()
    bn = norm(len(conv.weight), eps=0.1, **options)
    for _ in range(3):  # statistics of their own
        bn(3 * conv(torch.randn(shape)) + 1)
    for p in bn.parameters():
        nn.init.normal_(p)
    return conv, bn.eval(), torch.randn(shape)


def applied(conv, x, kernel, bias):
    if isinstance(conv, nn.Linear):
        return F.linear(x, kernel, bias)
    return conv._conv_forward(x, kernel, bias)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_folded_layer_is_both_layers(case, affine, dtype, atol):
    conv, bn, x = pair(case, affine=affine)
    conv, bn, x = conv.to(dtype), bn.to(dtype), x.to(dtype)
    before = [t.clone() for t in (*conv.state_dict().values(), *bn.state_dict().values())]
    found = applied(conv, x, *fold_batch_norm(conv, bn))
    torch.testing.assert_close(found, bn(conv(x)), atol=atol, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, (*conv.state_dict().values(), *bn.state_dict().values())))


def test_gradients_are_those_of_both_layers():
    conv, bn, x = pair("conv2d")
    parameters = [*conv.parameters(), *bn.parameters()]
    found = torch.autograd.grad(applied(conv, x, *fold_batch_norm(conv, bn)).square().sum(), parameters)
    expected = torch.autograd.grad(bn(conv(x)).square().sum(), parameters)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_no_fixed_map():
    conv, bn, _ = pair("conv2d")
    with pytest.raises(UnsupportedLayerError) as caught:
        fold_batch_norm(conv, bn.train())
    assert (
        str(caught.value)
        == "This batch norm is in train mode, where it uses the statistics of each batch and is no fixed map. Call `model.eval()` first."
    )
    with pytest.raises(UnsupportedLayerError) as caught:
        fold_batch_norm(conv, nn.BatchNorm2d(4, track_running_stats=False).eval())
    assert (
        str(caught.value)
        == "This batch norm keeps no running statistics (track_running_stats=False): it uses those of each batch and is no fixed map."
    )


def test_other_layers():
    conv, bn, _ = pair("conv2d")
    with pytest.raises(UnsupportedLayerError) as caught:
        fold_batch_norm(nn.ConvTranspose2d(2, 4, 3), bn)
    assert str(caught.value) == "fold_batch_norm takes nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.Linear, and was given ConvTranspose2d."
    with pytest.raises(UnsupportedLayerError) as caught:
        fold_batch_norm(conv, nn.GroupNorm(1, 4))
    assert str(caught.value) == "fold_batch_norm takes a batch norm, and was given GroupNorm."
    with pytest.raises(ShapeError) as caught:
        fold_batch_norm(conv, nn.BatchNorm2d(5).eval())
    assert str(caught.value) == "The layer gives 4 channels, and the batch norm takes 5. They must be neighbours."
