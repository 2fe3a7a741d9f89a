"""Traces over more outputs than the last hidden layer is wide."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.bench.workloads import Decoder
from mechfeat.errors import ProofError
from mechfeat.models import mlp
from mechfeat.ntk import bottleneck, empirical_ntk, plan, proof
from mechfeat.ntk.factors import Outer
from tests.ntk.test_exact import assert_exact
from tests.ntk.zoo import Net, P


def tied(s, t):
    return F.linear(torch.tanh(s.l(s.e(t)).mean(1)), s.e.weight, s.b)


def tied_table(vocabulary=31, padding=None, bias=True):
    parts = {"e": nn.Embedding(vocabulary, 4, padding_idx=padding), "l": nn.Linear(4, 4), "b": P(vocabulary)}
    return Net(tied, **parts | ({} if bias else {"b": None}))


def tied_decoder(norm=lambda net: net):
    net = Decoder(8, 1, 31, 5, heads=2)
    net.head.weight = net.embed.weight
    return norm(net)


NETS = {
    "tied decoder": (lambda: tied_decoder(), lambda n: torch.randint(0, 31, (n, 5))),
    "tied table": (lambda: tied_table(bias=False), lambda n: torch.randint(0, 31, (n, 5))),
    "tied table with bias": (lambda: tied_table(), lambda n: torch.randint(0, 31, (n, 5))),
    "tied table with padding": (lambda: tied_table(padding=2), lambda n: torch.randint(0, 4, (n, 5))),
    "a weight used twice": (
        lambda: Net(lambda s, x: F.linear(torch.tanh(F.linear(x, s.w)[:, :4]), s.w, s.b), w=P(9, 4), b=P(9)),
        lambda n: torch.randn(n, 4),
    ),
    "a weight used twice, the other way round": (
        lambda: Net(lambda s, x: F.linear(torch.tanh(torch.addmm(s.a, x, s.w)), s.w), w=P(9, 4), a=P(4)),
        lambda n: torch.randn(n, 9),
    ),
    "a weight used in three ways": (
        lambda: Net(
            lambda s, t: F.linear(torch.tanh(torch.addmm(s.a, F.linear(s.w[0] * 0 + F.embedding(t, s.w).mean(1), s.w), s.w)), s.w),
            w=P(9, 4),
            a=P(4),
        ),
        lambda n: torch.randint(0, 9, (n, 5)),
    ),
    "wider than what the total is checked on": (lambda: mlp([5, 36, 40], nn.Tanh), lambda n: torch.randn(n, 5)),
    "wider, and tied": (
        lambda: Net(tied, e=nn.Embedding(50, 37), l=nn.Linear(37, 37), b=P(50)),
        lambda n: torch.randint(0, 50, (n, 5)),
    ),
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


@pytest.mark.parametrize("name", ["decoder", "tied decoder", "tied table", "tied table with bias"])  # 31 outputs each
def test_exact_to_the_last_digits(name):
    make, batch = NETS[name]
    net, x = make(), batch(6)
    assert_exact(empirical_ntk(net, x, outputs="trace").kernel, sum(oracle.empirical_ntk(net, x, outputs="trace").values()), 1e-14)


def test_as_many_passes_as_the_hidden_layer_is_wide(monkeypatch):
    net, x = mlp([5, 7, 6, 200], nn.Tanh), torch.randn(6, 5)
    sent, right = [], bottleneck.Capture.backward

    def backward(self, y, sink, rows=None):
        sent.append(y.shape[1] if rows is None else len(rows))
        right(self, y, sink, rows)

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


@pytest.mark.parametrize("shared", [False, True])
def test_float32(shared):
    # 12 passes of 4 rows, each a sum of thousands of products: what float64 sums leave is the rounding of activations and gradients
    net, x = Decoder(48, 2, 500, 16).eval(), torch.randint(0, 500, (6, 16))
    if shared:
        net.head.weight = net.embed.weight
    want = empirical_ntk(net, x, outputs="trace").kernel
    assert_exact(empirical_ntk(net.float(), x, outputs="trace").kernel.double(), want, 2e-6)


# The proof


def corrupted(monkeypatch, change):
    """Let ``change(number of the pass, factor)`` spoil what a pass hands on for matrices; None loses it."""
    right, passes = bottleneck.Capture.backward, []

    def backward(self, y, sink, rows=None):
        if rows is not None:
            passes.append(1)

        def spoiled(name, factors):
            if rows is not None and isinstance(factors[0], Outer):
                factors = [change((len(passes) - 1) % 10, f) for f in factors]
            if None not in factors:
                sink(name, factors)

        right(self, y, spoiled, rows)

    monkeypatch.setattr(bottleneck.Capture, "backward", backward)


def only(number, spoil):
    return lambda i, f: spoil(f) if i == number else f


SPOIL = {
    "lost": lambda f: None,
    "doubled": lambda f: replace(f, left=2 * f.left),
    "one row of it lost": lambda f: replace(f, left=torch.cat([f.left[:, 1:], 0 * f.left[:, :1]], 1)),
    "a percent off": lambda f: replace(f, left=1.01 * f.left),
}


@pytest.mark.parametrize("number", [0, 3, 7, 9])  # of 10
@pytest.mark.parametrize("how", SPOIL)
def test_an_error_in_any_row_is_caught(how, number, monkeypatch):
    net, x = mlp([5, 7, 38, 60], nn.Tanh), torch.randn(9, 5)
    want = sum(oracle.empirical_ntk(net, x, outputs="trace").values())
    corrupted(monkeypatch, only(number, SPOIL[how]))
    with pytest.raises(ProofError):
        empirical_ntk(net, x, outputs="trace", strict=True)
    result = empirical_ntk(net, x, outputs="trace", prove="always")
    assert_exact(result.kernel, want)
    assert {c.path for c in result.coverage if c.parameter in ("0.weight", "2.weight")} == {"exact"}


@pytest.mark.parametrize("width", [7, 38])
def test_an_error_of_a_sample_that_is_not_looked_at_is_caught(width, monkeypatch):
    net, x = mlp([5, 7, width, 60], nn.Tanh), torch.randn(12, 5)
    i, *_ = set(range(12)) - set(proof.proof_samples(12, torch.Generator().manual_seed(0)))
    mask = (torch.arange(12) != i).double()[:, None, None, None]
    corrupted(monkeypatch, lambda number, f: replace(f, left=f.left * mask))
    with pytest.raises(ProofError) as caught:
        empirical_ntk(net, x, outputs="trace")
    assert caught.value.parameters == ("the sum over parameters",)


@pytest.mark.parametrize("net", [lambda: mlp([5, 7, 6, 23], nn.Tanh), tied_table, lambda: mlp([5, 36, 50], nn.Tanh)])
@pytest.mark.parametrize("spoil", [lambda Q: torch.cat([Q[:, 1:], 0 * Q[:, :1]], 1), lambda Q: 1.01 * Q, lambda Q: Q.roll(1, 0)])
def test_a_wrong_basis_is_caught(net, spoil, monkeypatch):
    net = net()
    x = torch.randint(0, 31, (6, 5)) if "e.weight" in dict(net.named_parameters()) else torch.randn(6, 5)
    right = bottleneck.find
    monkeypatch.setattr("mechfeat.ntk.tile.find", lambda captures, _: (h := right(captures)) and replace(h, basis=spoil(h.basis)))
    with pytest.raises(ProofError):
        empirical_ntk(net, x, outputs="trace", strict=True)


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda h1, h2: (0 * h1, 0 * h2),
        lambda h1, h2: (h1 / 2, h2),
        lambda h1, h2: (h1, h2.roll(1, 0)),
        lambda h1, h2: (h1 * (torch.arange(h1.shape[2]) < h1.shape[2] // 2), h2),
    ],
)
def test_a_wrong_cross_term_is_caught(spoil, padding, monkeypatch):
    net, x = tied_table(padding=padding), torch.randint(0, 31, (8, 5))
    right = bottleneck.Head.cross
    monkeypatch.setattr(bottleneck.Head, "cross", lambda self: spoil(*right(self)))
    with pytest.raises(ProofError) as caught:
        empirical_ntk(net, x, outputs="trace", strict=True)
    assert caught.value.parameters == ("e.weight",)


def test_a_wrong_part_of_the_head_is_caught(monkeypatch):
    right = bottleneck.Head.factors

    def factors(self, together):
        found = right(self, together)
        return {name: [[replace(f, right=f.right[:, :, :-1]) for f in side] for side in sides] for name, sides in found.items()}

    monkeypatch.setattr(bottleneck.Head, "factors", factors)
    for width in (6, 36):
        with pytest.raises(ProofError) as caught:
            empirical_ntk(mlp([5, width, 50], nn.Tanh), torch.randn(6, 5), outputs="trace", strict=True)
        assert caught.value.parameters == ("2.weight", "2.bias")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETS)
def test_no_false_alarm(name, dtype):
    make, batch = NETS[name]
    for seed in range(6):
        torch.manual_seed(seed)
        net, x1, x2 = make().to(dtype), batch(9), batch(7)
        x1, x2 = (x.to(dtype) if x.is_floating_point() else x for x in (x1, x2))
        result = empirical_ntk(net, x1, x2 if seed % 2 else None, outputs="trace", prove="always", seed=seed)
        assert [c for c in result.coverage if "proof" in c.detail] == []


def test_a_model_that_fixes_its_batch_size():
    net, x = Net(lambda s, x: s.o(torch.tanh(s.a(x.view(9, 5)))), a=nn.Linear(5, 6), o=nn.Linear(6, 20)), torch.randn(9, 5)
    result = empirical_ntk(net, x, outputs="trace", strict=True, prove="always")
    assert_exact(result.kernel, sum(oracle.empirical_ntk(mlp_of(net), x, outputs="trace").values()))
    assert all(c.gap < 1e-9 for c in result.coverage)


def mlp_of(net):
    return nn.Sequential(net.a, nn.Tanh(), net.o)


@pytest.mark.parametrize(
    "f",
    [
        lambda s, t: s.e.weight.flip(0)[t].mean(1),
        lambda s, t: F.embedding(t.clamp(max=20), s.e.weight[1:]).mean(1),
        lambda s, t: F.linear(F.linear(s.e(t).mean(1), s.e.weight[:4]).tanh(), s.w),
    ],
)
def test_a_tied_table_that_is_also_used_through_a_view(f):
    net = Net(lambda s, t: F.linear(torch.tanh(f(s, t)), s.e.weight), e=nn.Embedding(31, 6), w=nn.Parameter(torch.randn(6, 4)))
    x = torch.randint(0, 31, (6, 5))
    want = sum(oracle.empirical_ntk(net, x, None, outputs="trace").values())
    for prove in ("never", "always"):
        assert_exact(empirical_ntk(net, x, outputs="trace", prove=prove).kernel, want)
