"""TF32 is off unless the caller allowed it, and every switch is left as it was found."""

import pytest
import torch
from torch import nn

from mechfeat.kernels.precision import tf32
from mechfeat.ntk import empirical_ntk, plan


class Seen(nn.Module):
    """Notes the switches that are in force while it runs."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(2, 1), set()

    def forward(self, x):
        cudnn = torch.backends.cudnn
        self.seen.add((cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.enabled))
        return self.layer(x)


@pytest.fixture
def allowed():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def switches():
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.enabled, cudnn.allow_tf32


@pytest.mark.parametrize("run", [empirical_ntk, plan])
def test_a_model_runs_in_full_precision(run):
    before = switches()
    assert before[0] == "tf32"  # torch's default
    net = Seen()
    run(net, torch.randn(3, 2))
    assert net.seen == {("ieee", "ieee", True)}
    assert switches() == before


def test_tf32_that_is_allowed_stays_and_is_named(allowed):
    net = Seen()
    assert empirical_ntk(net, torch.randn(3, 2)).settings["tf32"] is True
    assert net.seen == {("tf32", "tf32", True)}


def test_switches_of_single_backends():
    assert not tf32()
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert tf32()
    finally:
        matmul.fp32_precision = before
    assert not tf32()


def test_recurrent_layers_and_errors():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(2, 2)

        def forward(self, x):
            assert not torch.backends.cudnn.enabled  # cuDNN has no backward in eval mode
            raise ZeroDivisionError

    before = switches()
    with pytest.raises(ZeroDivisionError):
        empirical_ntk(Fails(), torch.randn(3, 2))
    assert switches() == before
