"""The plan says what the result then reports, and computes no gradient."""

import pytest
import torch
from torch import nn

from mechfeat.models import mlp
from mechfeat.ntk import empirical_ntk, plan
from mechfeat.ntk.planner import Plan
from tests.ntk.test_exact import OUTPUTS
from tests.ntk.zoo import ZOO, Net


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_rows_are_those_of_the_result(name):
    net, x1, x2 = ZOO[name].build()
    failing = {c.parameter for c in empirical_ntk(net, x1).coverage if "proof" in c.detail}  # what fails is not known beforehand
    for other in (None, x2):
        for outputs in OUTPUTS:
            for method in ("auto", "block", "jacobian"):
                said = plan(net, x1, other, outputs=outputs, method=method)
                done = empirical_ntk(net, x1, other, outputs=outputs, method=method, prove="never").plan
                assert [r for r in said.rows if r.parameter not in failing] == [r for r in done.rows if r.parameter not in failing]
                assert (said.kernel_shape, said.kernel_bytes, said.outputs) == (done.kernel_shape, done.kernel_bytes, done.outputs)


def test_a_call_whose_output_is_not_used():
    def f(s, x):
        s.b(x)
        return s.a(x)

    net, x = Net(f, a=nn.Linear(5, 3), b=nn.Linear(5, 3)), torch.randn(4, 5)
    assert plan(net, x).rows == empirical_ntk(net, x).plan.rows
    assert [r.contraction for r in plan(net, x).rows] == ["gram", "dense", "unused", "unused"]


def test_counts():
    # Two layers, 4 → 3 → 2, five positions, seven samples; o = 2.
    n, t, o, c, k = 7, 5, 2, 3, 4
    net = Net(lambda s, x: s.b(torch.tanh(s.a(x)).mean(1)), a=nn.Linear(k, c), b=nn.Linear(c, o))
    x = torch.randn(n, t, k)
    for outputs, pairs in (("full", o * o), ("trace", o), ("diagonal", o)):
        block = {r.parameter: r for r in plan(net, x, outputs=outputs, method="block").rows}
        gram = {r.parameter: r for r in plan(net, x, outputs=outputs, method="gram").rows}
        forming, products = 0, 0
        for _ in range(n):  # each sample, output and position adds one outer product
            forming += o * t * c * k
            for _ in range(n):
                products += pairs * c * k
        assert block["a.weight"].macs == forming + products
        grams = 0
        for _ in range(
            n * n * t * t
        ):  # each pair of rows: one inner product of inputs; of gradients and its product with it, a pair of outputs
            grams += k + pairs * (c + 1)
        assert gram["a.weight"].macs == grams
        assert gram["b.weight"].macs == n * n * (c + pairs * (o + 1))
        assert block["a.bias"].macs == n * n * pairs * c
        assert block["a.weight"].positions == t
        assert block["b.weight"].positions == 1
        best = plan(net, x, outputs=outputs)
        assert [r.macs for r in best.rows if "weight" in r.parameter] == [
            min(block[p].macs, gram[p].macs) for p in ("a.weight", "b.weight")
        ]
        assert best.macs == sum(r.macs for r in best.rows)
        assert best.seconds == best.macs / best.macs_per_second


def test_both_sides_are_counted():
    net, x = mlp([4, 2]), torch.randn(6, 3, 4)
    o = 6
    alone, pair = plan(net, x, method="block").rows[0].macs, plan(net, x, x + 1, method="block").rows[0].macs
    assert alone == 6 * o * 3 * 2 * 4 + 36 * o * o * 8
    assert pair - alone == 6 * o * 3 * 2 * 4


def test_tokens_are_compared():
    net = Net(lambda s, t: s.e(t).sum(1), e=nn.Embedding(50, 3))
    tokens = torch.tensor([[0, 1], [1, 2], [7, 7]])
    assert plan(net, tokens, method="gram").rows[0].macs == 9 * 4 * (1 + 9 * (3 + 1))
    # four rows of the table occur
    assert plan(net, tokens, method="block").rows[0].macs == 3 * 3 * 2 * 4 * 3 + 9 * 9 * 4 * 3


def test_no_gradient_is_computed(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a plan takes no gradient")

    net, x1, x2 = ZOO["transformer"].build()
    for place, name in (
        (torch.autograd, "grad"),
        (torch.autograd, "backward"),
        (torch.func, "jacrev"),
        (torch.func, "vmap"),
        (torch.Tensor, "backward"),
    ):
        monkeypatch.setattr(place, name, forbidden)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    plan(net, x1, x2, method="jacobian")
    plan(net, x1)
    assert len(calls) == 3


def test_prints():
    net = Net(lambda s, x: s.a(x) * s.a.bias, a=nn.Linear(4, 3), b=nn.Linear(1, 1, bias=False))
    made = plan(net, torch.randn(5, 2, 4))
    text = str(Plan(made.rows, made.kernel_shape, made.kernel_bytes, made.outputs, 1e9))
    assert text.splitlines() == [
        "parameter  function                              contraction  positions    MMAC      MiB",
        "a.weight   linear                                block                2  0.0115  0.00549",
        "a.bias     mul has no rule                       exact                1  0.0027  0.00137",
        "b.weight   not used, or not reaching the output  unused               0       0        0",
        (
            "kernel [5, 6, 5, 6] (full), 0.00687 MiB; contractions 1.42e-05 GMAC, 1.4e-05 s at 1 GMAC/s; peak 0.0192 MiB "
            "beside the factors of one layer"
        ),
    ]


def test_round_trip(tmp_path):
    made = plan(mlp([4, 3, 2]), torch.randn(5, 4))
    made.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors") == made


def test_runs_of_a_plan_agree_on_the_rate():
    net, x = mlp([4, 3, 2]), torch.randn(5, 4)
    assert plan(net, x) == plan(net, x)
    assert plan(net, x).peak_bytes >= 2 * 100 * 8
