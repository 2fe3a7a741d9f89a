"""The linear layers that run in the place of torch's on the way to a kernel: same kernels, and out of the way where torch's is needed."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.kernels import linear as fast
from mechfeat.kernels import products
from mechfeat.ntk import capture, contraction, empirical_ntk
from tests.ntk.zoo import Net

DIGITS = 2e-6


@pytest.fixture(autouse=True)
def always_fast(monkeypatch):
    torch.set_default_dtype(torch.float32)  # restored by the settings of all tests
    monkeypatch.setattr(products, "SMALLEST", 1)
    monkeypatch.setattr(products, "onednn_is_faster", lambda threads: True)
    monkeypatch.setattr(fast, "ROWS", 1)


def kernels(net, x, **options):
    with torch.no_grad():
        exact = oracle.empirical_ntk(net.double(), x.double() if x.is_floating_point() else x)
    want = sum(exact.values())
    net.float()
    have = empirical_ntk(net, x, prove="always", **options)
    assert have.kernel.dtype == torch.float32
    assert float((have.kernel.double() - want).abs().max() / want.abs().max()) <= DIGITS
    return have


def layered(*layers):
    return nn.Sequential(nn.Linear(5, 8), *layers, nn.Linear(8, 3))


@pytest.mark.parametrize("cache", [0, 2 << 20])
@pytest.mark.parametrize(
    "net",
    [
        lambda: layered(nn.Tanh()),
        lambda: layered(nn.Tanh(), nn.Linear(8, 8, bias=False), nn.ReLU()),
        lambda: layered(nn.Linear(8, 8).requires_grad_(False), nn.ReLU(inplace=True)),
        lambda: Net(lambda s, x: s.b(s.a(x[:, None].expand(-1, 3, -1)).add_(1).relu_()).mean(1), a=nn.Linear(5, 8), b=nn.Linear(8, 3)),
        lambda: Net(lambda s, x: s.b(torch.tanh(s.a(s.a(x)))), a=nn.Linear(5, 5), b=nn.Linear(5, 3)),
    ],
)
def test_kernels_are_right(net, cache, monkeypatch):
    monkeypatch.setattr(capture, "IN_CACHE", cache)
    made = kernels(net(), torch.randn(6, 5))
    assert all(c.path == "rule" for c in made.coverage)


def test_it_runs(monkeypatch):
    calls = []
    right = fast.product
    monkeypatch.setattr(fast, "product", lambda A, B: calls.append(A.shape) or right(A, B))
    empirical_ntk(layered(nn.Tanh()), torch.randn(6, 5), prove="never")
    assert len(calls) == 3  # two layers forward, and one back for all outputs at once


def test_inside_a_vmap_of_the_model():
    kernels(Net(lambda s, x: s.b(torch.func.vmap(s.a)(x[:, None]).tanh()[:, 0]), a=nn.Linear(5, 5), b=nn.Linear(5, 3)), torch.randn(6, 5))


def test_checkpoints_recompute_what_they_kept():
    inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    net = Net(lambda s, x: s.b(checkpoint(s.m, s.a(x), use_reentrant=False)), a=nn.Linear(5, 8), m=inner, b=nn.Linear(8, 3))
    kernels(net, torch.randn(6, 5))


def test_a_weight_that_is_computed_keeps_its_gradient():
    net = Net(lambda s, x: nn.functional.linear(x, s.w.tanh()), w=nn.Parameter(torch.randn(3, 5)))
    assert kernels(net, torch.randn(6, 5)).coverage[0].path == "exact"


def test_a_weight_that_is_computed_from_the_input():
    def f(s, x):
        return (s.b(torch.tanh(s.a(x))).unflatten(1, (3, 5)) @ x[:, :, None])[:, :, 0]

    kernels(Net(f, a=nn.Linear(5, 8), b=nn.Linear(8, 15)), torch.randn(6, 5))


@pytest.mark.parametrize("error", [RuntimeError("no room"), torch.OutOfMemoryError("no room"), ValueError("no room")])
def test_an_error_of_a_contraction_is_raised(error, monkeypatch):
    net, x = layered(nn.Tanh()), torch.randn(6, 5)
    empirical_ntk(net, x)
    right, calls = contraction.contract, []

    def contract(*args):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return right(*args)

    monkeypatch.setattr(contraction, "contract", contract)
    with pytest.raises(type(error), match="no room"):
        empirical_ntk(net, x)
