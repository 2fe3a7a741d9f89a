import pytest
import torch
from torch import nn

from mechfeat.circuits import direct_weights
from mechfeat.errors import CircuitError, HookNameError, UnsupportedLayerError


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def images(n=6):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def literal_contributions(W, a, stride, padding):
    """Mean absolute part of each channel, by loops over every place."""
    a = torch.nn.functional.pad(a, (padding,) * 4)
    n, channels, h, w = a.shape
    units, _, kh, kw = W.shape
    out = torch.zeros(units, channels)
    places = [(i, j) for i in range(0, h - kh + 1, stride) for j in range(0, w - kw + 1, stride)]
    for u in range(units):
        for c in range(channels):
            total = 0.0
            for s in range(n):
                for i, j in places:
                    total += abs(float((a[s, c, i : i + kh, j : j + kw] * W[u, c]).sum()))
            out[u, c] = total / (n * len(places))
    return out


def test_convolution_weights_and_contributions_match_the_definition():
    net, x = convnet(), images()
    found = direct_weights(net, "0", "4", x)
    assert torch.equal(found.weights, net[4].weight)
    torch.testing.assert_close(found.contributions, literal_contributions(net[4].weight.detach(), net[:4](x).detach(), 2, 1))
    share = found.contributions / found.contributions.sum(1, keepdim=True)
    assert found.value == pytest.approx(float(share.amax(1).mean()))
    channel, top = found.strongest(2, 1)[0]
    assert channel == int(share[2].argmax())
    assert top == pytest.approx(float(share[2].max()))


def test_linear_weights_are_read_by_the_channel_they_were_flattened_from():
    net, x = convnet(), images()
    found = direct_weights(net, "4", "6", x, units=[3, 1])
    torch.testing.assert_close(found.weights, net[6].weight.view(5, 4, 4)[[3, 1]])
    flat = net[:6](x).detach().view(6, 4, 4)
    want = torch.stack([(flat * net[6].weight.view(5, 4, 4)[u]).sum(2).abs().mean(0) for u in (3, 1)])
    torch.testing.assert_close(found.contributions, want)


def test_mlp_and_sequence_layers():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    assert torch.equal(direct_weights(net, "1", "2", x).weights, net[2].weight)
    sequence = torch.randn(5, 7, 3)
    found = direct_weights(net, "0", "2", sequence)
    torch.testing.assert_close(found.contributions, (net[:2](sequence).unsqueeze(2) * net[2].weight).abs().mean((0, 1)).detach())


def test_a_planted_connection_is_established_and_random_weights_are_not():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(200, 8)
    net[2].weight.data = torch.tensor([[4.0, 0.1, 0.1, -0.1, 0.1, -0.1, 0.1, 0.1]])
    net[0].weight.data = torch.eye(8)
    planted = direct_weights(net, "1", "2", x)
    assert planted.value > 0.8
    assert planted.strongest(0, 1)[0][0] == 0
    # The share of the strongest channel does not change when weights are permuted among channels of equal size, so it is
    # not evidence of anything: the null says so.
    assert not planted.established


def test_unequal_channels_make_concentration_evidence():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(200, 8)
    net[0].weight.data = torch.diag(torch.tensor([5.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]))
    net[0].bias.data.zero_()
    net[2].weight.data = torch.tensor([[4.0, *[0.1] * 7]])
    found = direct_weights(net, "1", "2", x, n_null=200)
    assert found.p_value < 0.2  # one in eight shuffles puts the large weight on the large channel again


def test_the_model_is_left_as_it_was():
    net, x = convnet(), images()
    before = net(x)
    direct_weights(net, "0", "4", x)
    assert torch.equal(before, net(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_errors():
    net, x = convnet(), images()
    with pytest.raises(CircuitError) as error:
        direct_weights(net, "0", "6", x)
    assert str(error.value) == "'6' reads 16 inputs, which is no multiple of the 3 channels of the source."
    mixing = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    nn.init.ones_(mixing[1].weight)
    nn.init.constant_(mixing[1].bias, 10.0)
    with pytest.raises(CircuitError) as error:
        direct_weights(mixing, "0", "3", x)
    assert (
        str(error.value)
        == "Channel 2 of '0' reaches channels [0, 1, 2] of the input of '3': something between them mixes channels, so there are no direct"
        " weights. Read the layers between them one by one."
    )
    with pytest.raises(CircuitError) as error:
        direct_weights(net, "6", "4", x)
    assert str(error.value) == "'6' has 5 channels and '4' reads 3. Name the hook point that feeds it."
    with pytest.raises(CircuitError) as error:
        direct_weights(net, "0", "4", x, units=[4])
    assert str(error.value) == "units=[4] do not exist at '4', which has units 0 to 3."
    with pytest.raises(UnsupportedLayerError) as error:
        direct_weights(net, "0", "3", x)
    assert str(error.value) == "'3' is a MaxPool2d; direct weights are read from Conv2d (one group) and Linear."
    with pytest.raises(HookNameError):
        direct_weights(net, "0", "conv", x)
    parallel = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    parallel.forward = lambda x: parallel["a"](x) + parallel["b"](x)
    with pytest.raises(CircuitError) as error:
        direct_weights(parallel, "a", "b", torch.randn(4, 3))
    assert str(error.value) == "Moving channels of 'a' does not change the input of 'b': it does not feed that layer."


def test_strongest_needs_a_unit_of_the_finding():
    found = direct_weights(convnet(), "0", "4", images(), units=[1])
    with pytest.raises(CircuitError) as error:
        found.strongest(0)
    assert str(error.value) == "Unit 0 of '4' is not in this finding, which holds [1]. Ask for it with units=[...]."
