"""What the proof does with a failure, which samples it takes, and what it remembers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import ProofError
from mechfeat.ntk import PROVED, empirical_ntk, factors, proof, register_rule
from mechfeat.ntk.factors import Lookup, Outer
from mechfeat.ntk.rules import rule_for
from tests.ntk.broken import BROKEN, matrix, model, part
from tests.ntk.test_exact import OUTPUTS, assert_exact


@pytest.mark.parametrize("name", ["bias counted twice", "last position dropped"])
def test_strict_raises(name, monkeypatch):
    key, parameter, break_it = BROKEN[name]
    net, x, _ = model(key)
    break_it(monkeypatch)
    messages = []
    for prove in ("always", "once", "once"):
        with pytest.raises(ProofError) as caught:
            empirical_ntk(net, x, strict=True, prove=prove)
        assert parameter in caught.value.parameters
        messages.append(str(caught.value))
    rows = ", ".join(f"{p!r} (relative gap {g:.1e})" for p, g in zip(caught.value.parameters, caught.value.gaps))
    assert messages == [f"The completeness proof failed for {rows}. Leave strict off to compute these parameters by autograd."] * 3
    assert all(0 < g < 10 for g in caught.value.gaps)


# The whole batch


@pytest.mark.parametrize("with_x2", [False, True])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_an_error_outside_the_proof_samples_is_caught(outputs, with_x2, monkeypatch):
    net, x1, x2 = model("mlp", 12)
    four = proof.proof_samples(12, torch.Generator().manual_seed(0))
    assert len(four) == 4
    assert {0, 11} < set(four)
    i = next(k for k in range(1, 11) if k not in four)

    def change(kernel, outputs):
        if len(kernel) < 12:  # the small kernel that a reduced one is compared with
            return kernel
        kernel = kernel.clone()
        kernel[i, ..., :] = 0
        return kernel

    part(matrix, change)(monkeypatch)
    with pytest.raises(ProofError) as caught:
        empirical_ntk(net, x1, x2 if with_x2 else None, outputs=outputs)
    (gap,) = caught.value.gaps
    assert caught.value.parameters == ("the sum over parameters",)
    assert (
        str(caught.value)
        == f"The completeness proof failed for 'the sum over parameters' (relative gap {gap:.1e}). Every part was right on "
        "its own: please report this model."
    )


def test_proof_samples():
    for n in range(1, 20):
        found = proof.proof_samples(n, torch.Generator().manual_seed(n))
        assert found == sorted(set(found))
        assert len(found) == min(n, 4)
        assert {0, n - 1} <= set(found) <= set(range(n))


# Remembering


@pytest.fixture
def counted(monkeypatch):
    """How often the independent gradient was taken."""
    calls = []
    right = proof.reference

    def reference(*args, **kwargs):
        calls.append(args)
        return right(*args, **kwargs)

    monkeypatch.setattr(proof, "reference", reference)
    return calls


def test_once_always_never(counted):
    net, x, _ = model("mlp")
    gaps = [c.gap for c in empirical_ntk(net, x).coverage]
    assert len(counted) == 2
    assert None not in gaps
    again = empirical_ntk(net, torch.randn_like(x))
    assert len(counted) == 2
    assert [c.gap for c in again.coverage] == [None] * len(gaps)
    assert again.proved
    PROVED.clear()
    empirical_ntk(net, x)
    assert len(counted) == 4
    empirical_ntk(net, x, prove="always")
    assert len(counted) == 6
    assert not empirical_ntk(net, x, prove="never").proved
    assert len(counted) == 6


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.flag, self.slopes, self.act = nn.Linear(4, 4), 1, [1, 2], torch.tanh

    def forward(self, x):
        return self.a(self.act(self.a(x)) * self.flag)


def other_values(net):
    with torch.no_grad():
        net.a.weight.add_(1)


CHANGES = {
    "weights": (other_values, False),
    "attribute": (lambda net: setattr(net, "flag", 2), True),
    "list": (lambda net: net.slopes.append(3), True),
    "function": (lambda net: setattr(net, "act", lambda h: h.sigmoid()), True),
    "forward": (lambda net: setattr(net, "forward", lambda x: net.a(x.tanh())), True),
    "mode": (lambda net: net.eval(), True),
    "module": (lambda net: setattr(net, "b", nn.ReLU()), True),
    "option of a module": (lambda net: setattr(net.a, "in_features", 5), True),
    "frozen": (lambda net: net.a.bias.requires_grad_(False), True),
    "hook": (lambda net: net.a.register_forward_hook(lambda *_: None), True),
    "rule": (lambda net: register_rule(F.linear)(rule_for(F.linear)), True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_proved_again(name, counted):
    change, again = CHANGES[name]
    net, x = Gated(), torch.randn(6, 4)
    empirical_ntk(net, x)
    counted.clear()
    change(net)
    empirical_ntk(net, x)
    assert bool(counted) == again


@pytest.mark.parametrize(
    "options",
    [{"outputs": "trace"}, {"method": "block"}, {"x1": torch.ones(7, 4)}, {"x2": torch.ones(6, 4)}, {"dtype": torch.float32}],
    ids=lambda o: next(iter(o)),
)
def test_what_else_is_proved_again(options, counted):
    net, x = Gated(), torch.randn(6, 4)
    empirical_ntk(net, x)
    counted.clear()
    dtype = options.pop("dtype", torch.float64)
    batches = {k: options.pop(k).to(dtype) for k in ("x1", "x2") if k in options}
    empirical_ntk(net.to(dtype), **{"x1": x.to(dtype), **batches}, **options)
    assert counted


def test_tokens_of_another_precision_are_proved_again(counted):
    net, x, _ = model("tokens")
    empirical_ntk(net, x)
    counted.clear()
    empirical_ntk(net.float(), x)
    assert counted


def test_a_method_replaced_is_proved_again(counted, monkeypatch):
    net, x = Gated(), torch.randn(6, 4)
    empirical_ntk(net, x)
    counted.clear()
    monkeypatch.setattr(Gated, "forward", lambda s, x: s.a(s.a(x).sigmoid()))
    empirical_ntk(net, x)
    assert counted


def test_a_class_defined_again_is_another_class(counted):
    def run(source):
        scope = {"nn": nn}
        exec(source, scope)
        empirical_ntk(scope["M"](), torch.randn(4, 4, 4))

    source = (
        "class M(nn.Module):\n    def __init__(s):\n        super().__init__()\n        s.a = nn.Linear(4, 4)\n    def "
        "forward(s, x):\n        return "
    )
    run(source + "s.a(x)\n")
    counted.clear()
    run(source + "s.a(x.transpose(0, 1)).transpose(0, 1)\n")
    assert counted


def test_a_failure_is_remembered(counted, monkeypatch):
    key, parameter, break_it = BROKEN["bias counted twice"]
    net, x, _ = model(key)
    want = sum(oracle.empirical_ntk(net, x).values())
    break_it(monkeypatch)
    first = empirical_ntk(net, x)
    counted.clear()
    second = empirical_ntk(net, x)
    assert not counted
    for result in (first, second):
        assert_exact(result.kernel, want)
        row = {c.parameter: c for c in result.coverage}[parameter]
        assert row.path == "exact"
    assert [c.detail for c in first.coverage] == [c.detail for c in second.coverage]


def test_memory_is_bounded():
    from mechfeat.ntk.fingerprint import Proved

    proved = Proved(limit=3)
    for key in range(5):
        proved.put(key, {})
    assert [proved.get(k) for k in range(5)] == [None, None, {}, {}, {}]


def test_merge_of_different_kinds_is_left_to_rows():
    a, b = Outer(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 3)), Lookup(torch.ones(1, 1, 1, 3), torch.zeros(1, 1, dtype=torch.long))
    assert factors.merge([a, b]) is None
    assert factors.merge([a, dataclasses.replace(a, turned=True)]) is None
