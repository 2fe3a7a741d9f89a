"""Traces over more outputs than the last hidden layer is wide."""

import pytest
import torch
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.bench.workloads import Decoder
from mechfeat.errors import ProofError
from mechfeat.models import mlp
from mechfeat.ntk import bottleneck, empirical_ntk, plan
from tests.ntk.test_exact import assert_exact
from tests.ntk.zoo import Net

NETS = {
    "decoder": (lambda: Decoder(8, 1, 31, 5, heads=2), lambda n: torch.randint(0, 31, (n, 5))),
    "mlp with bias": (lambda: mlp([5, 7, 6, 23], nn.Tanh), lambda n: torch.randn(n, 5)),
    "width no multiple of the rows": (lambda: mlp([5, 7, 21], nn.Tanh), lambda n: torch.randn(n, 5)),
    "no hidden layer": (lambda: nn.Linear(3, 8), lambda n: torch.randn(n, 3)),
    "frozen bias": (lambda: frozen(), lambda n: torch.randn(n, 5)),
    "a weight without full rank": (lambda: flat_weight(), lambda n: torch.randn(n, 5)),
    "a parameter without rule": (
        lambda: Net(lambda s, x: s.b(torch.tanh(s.a(x)) * s.t), a=nn.Linear(5, 4), t=nn.Parameter(torch.randn(4)), b=nn.Linear(4, 9)),
        lambda n: torch.randn(n, 5),
    ),
}


def frozen():
    net = mlp([5, 6, 9], nn.Tanh)
    net[2].bias.requires_grad_(False)
    return net


def flat_weight():
    net = mlp([5, 6, 9], nn.Tanh)
    with torch.no_grad():
        net[2].weight[:, 3:] = 0
    return net


@pytest.mark.parametrize("name", NETS)
def test_exact(name):
    make, batch = NETS[name]
    net, x1, x2 = make(), batch(6), batch(8)
    for other in (None, x2):
        literal = oracle.empirical_ntk(net, x1, other, outputs="trace")
        result = empirical_ntk(net, x1, other, outputs="trace", prove="always", layerwise=True)
        assert_exact(result.kernel, sum(literal.values()))
        for parameter, part in result.layers.items():
            # the keys' bias moves no attention pattern: its part is rounding
            assert (part - literal[parameter]).abs().max() <= 1e-12 * result.kernel.abs().max()
        result = empirical_ntk(net, x1, other, outputs="trace")
        assert_exact(result.kernel, sum(literal.values()))
        assert not any("proof" in c.detail for c in result.coverage)
        assert plan(net, x1, other, outputs="trace").rows == result.plan.rows
        if other is None:
            assert torch.equal(result.kernel, result.kernel.T)


def test_as_many_passes_as_the_hidden_layer_is_wide(monkeypatch):
    net, x = mlp([5, 7, 6, 200], nn.Tanh), torch.randn(6, 5)
    sent, right = [], bottleneck.Capture.backward

    def backward(self, y, sink, rows=None, skip=()):
        sent.append(y.shape[1] if rows is None else len(rows))
        right(self, y, sink, rows, skip)

    monkeypatch.setattr(bottleneck.Capture, "backward", backward)
    empirical_ntk(net, x, outputs="trace", prove="never")
    assert sent == [4, 2]
    sent.clear()
    empirical_ntk(net, x, outputs="diagonal", prove="never")
    assert sent == [200]


@pytest.mark.parametrize(
    "net",
    [
        Net(lambda s, x: s.b(torch.tanh(s.a(x))) * 2, a=nn.Linear(9, 4), b=nn.Linear(4, 9)),
        Net(lambda s, x: s.b(torch.tanh(s.a(x))).relu_(), a=nn.Linear(9, 4), b=nn.Linear(4, 9)),
        Net(lambda s, x: s.b(s.b(torch.tanh(s.a(x)))[:, :4]), a=nn.Linear(9, 4), b=nn.Linear(4, 9)),
        Net(lambda s, x: s.b(torch.tanh(s.a(x))).T.contiguous().T, a=nn.Linear(9, 4), b=nn.Linear(4, 9)),
    ],
)
def test_other_last_layers_are_no_bottleneck(net):
    net, x = net.double(), torch.randn(6, 9)
    result = empirical_ntk(net, x, outputs="trace", prove="always")
    assert_exact(result.kernel, sum(oracle.empirical_ntk(net, x, outputs="trace").values()))


def test_float32():
    # 37 rows of 4, each a sum of thousands of products: what float64 sums leave is the rounding of activations and gradients
    net, x = Decoder(48, 2, 500, 16).eval(), torch.randint(0, 500, (6, 16))
    want = empirical_ntk(net, x, outputs="trace").kernel
    assert_exact(empirical_ntk(net.float(), x, outputs="trace").kernel.double(), want, 2e-6)


def test_a_lost_row_is_caught(monkeypatch):
    from mechfeat.ntk import factors

    right = factors.contract

    def lossy(into, f1, f2, outputs, *rest):
        if outputs == "trace" and f1[0].left.shape[1] > 1 and not f1[0].unit:
            f1 = f2 = [type(f1[0])(f1[0].left[:, 1:], f1[0].right)]
        return right(into, f1, f2, outputs, *rest)

    net, x = mlp([5, 7, 6, 23], nn.Tanh), torch.randn(6, 5)
    monkeypatch.setattr(factors, "contract", lossy)
    with pytest.raises(ProofError):
        empirical_ntk(net, x, outputs="trace", strict=True)
