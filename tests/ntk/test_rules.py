"""A user's own rule takes effect, and is proved like the others."""

import pytest
import torch
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import ProofError
from mechfeat.ntk import empirical_ntk, register_rule
from mechfeat.ntk.factors import Dense, Outer
from mechfeat.ntk.rules import Unfit, Use, rule_for
from mechfeat.ntk.rules.registry import _RULES
from tests.ntk.test_exact import OUTPUTS, assert_exact, reduced
from tests.ntk.zoo import Net, P


def scaled():
    return Net(lambda s, x: s.o(torch.mul(torch.tanh(s.a(x)), s.w)), a=nn.Linear(5, 4), w=P(4), o=nn.Linear(4, 3))


def mul(call):
    """A scale of the channels."""
    x, w = call.argument(0, "input"), call.argument(1, "other")
    if not call.owns(w) or call.owns(x) or w.ndim != 1 or x.shape[0] != call.n:
        raise Unfit("it is no scale of an activation")
    x = x.detach()
    return [Use(w, lambda g: Dense((g * x).reshape(len(g), call.n, -1, len(w)).sum(2).transpose(0, 1)))]


def test_a_new_rule_takes_effect():
    net, x1, x2 = scaled(), torch.randn(6, 5), torch.randn(8, 5)
    del _RULES[torch.mul]
    before = empirical_ntk(net, x1)
    assert {c.parameter: (c.path, c.detail) for c in before.coverage}["w"] == ("exact", "mul has no rule")
    register_rule(torch.mul)(mul)
    for other in (None, x2):
        for outputs in OUTPUTS:
            result = empirical_ntk(net, x1, other, outputs=outputs, strict=True)
            assert_exact(result.kernel, reduced(sum(oracle.empirical_ntk(net, x1, other).values()), outputs))
            row = {c.parameter: c for c in result.coverage}["w"]
            assert (row.path, row.detail) == ("rule", "mul")
            assert row.gap < 1e-9


def test_a_wrong_rule_does_not():
    register_rule(torch.mul)(lambda call: [Use(call.args[1], lambda g: Dense(g.transpose(0, 1)))])
    net, x = scaled(), torch.randn(6, 5)
    result = empirical_ntk(net, x)
    assert_exact(result.kernel, sum(oracle.empirical_ntk(net, x).values()))
    assert {c.parameter: c.path for c in result.coverage}["w"] == "exact"
    with pytest.raises(ProofError):
        empirical_ntk(net, x, strict=True)


def test_a_replaced_rule_is_proved_again():
    net, x = scaled(), torch.randn(6, 5)
    register_rule(torch.mul)(mul)
    assert {c.parameter: c.path for c in empirical_ntk(net, x).coverage}["w"] == "rule"
    register_rule(torch.mul)(lambda call: [Use(call.args[1], lambda g: Dense(g.transpose(0, 1)))])
    result = empirical_ntk(net, x)
    assert {c.parameter: c.path for c in result.coverage}["w"] == "exact"
    assert_exact(result.kernel, sum(oracle.empirical_ntk(net, x).values()))


def test_a_rule_for_several_functions():
    @register_rule(torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
    def matmul(call):
        x, W = call.args
        X = call.input_rows(x)
        return [Use(W, lambda g: Outer(call.gradient_rows(g), X, turned=True))]

    assert rule_for(torch.matmul) is matmul
    net = Net(lambda s, x: torch.matmul(torch.tanh(x @ s.w), s.u), w=P(5, 4), u=P(4, 2))
    for x in (torch.randn(6, 5), torch.randn(6, 3, 5)):
        result = empirical_ntk(net, x, strict=True)
        assert_exact(result.kernel, sum(oracle.empirical_ntk(net, x).values()))
        assert {c.path for c in result.coverage} == {"rule"}


def test_a_rule_that_leaves_an_argument_out():
    register_rule(torch.mul)(mul)
    net = Net(lambda s, x: torch.mul(s.w, s.a(x)), a=nn.Linear(5, 4), w=P(4))
    result = empirical_ntk(net, torch.randn(6, 5))
    assert {c.parameter: c.detail for c in result.coverage}["w"] == "mul: it is no scale of an activation"

    register_rule(torch.mul)(lambda call: [])
    result = empirical_ntk(net, torch.randn(6, 5))
    assert {c.parameter: c.detail for c in result.coverage}["w"] == "mul: its rule does not cover this argument"


def test_a_parameter_that_is_one_number():
    @register_rule(torch.mul)
    def scale(call):
        x, w = call.args
        x = x.detach()
        return [Use(w, lambda g: Dense((g * x).flatten(2).sum(2).T))]

    for f in (lambda s, x: torch.mul(s.a(x), s.w), lambda s, x: torch.mul(torch.mul(s.a(x), s.w).tanh(), s.w)):
        net, x = Net(f, a=nn.Linear(5, 4), w=nn.Parameter(torch.tensor(0.6))), torch.randn(6, 5)
        for outputs in OUTPUTS:
            result = empirical_ntk(net, x, outputs=outputs, strict=True)
            assert_exact(result.kernel, reduced(sum(oracle.empirical_ntk(net, x).values()), outputs))


def test_a_rule_for_a_view():
    # a token in front of every sequence: the output is a view of the parameter, and its gradient is there already
    @register_rule(torch.Tensor.expand)
    def expand(call):
        return [Use(call.args[0], lambda g: Dense(g.transpose(0, 1)))]

    def f(s, x):
        h = torch.cat([s.cls.expand(len(x), -1, -1), x], 1)
        return s.a(torch.tanh(h)).prod(1)

    net, x = Net(f, cls=P(1, 1, 4), a=nn.Linear(4, 2)), torch.randn(6, 3, 4)
    result = empirical_ntk(net, x, strict=True)
    assert_exact(result.kernel, sum(oracle.empirical_ntk(net, x).values()))


def test_an_unhashable_function_has_no_rule():
    assert rule_for([]) is None


def test_a_rule_need_not_ask_whether_its_argument_is_trained():
    """``weight`` of a parametrised layer is no parameter, though the vector it meets is one."""

    @register_rule(torch.mv)
    def mv(call):
        return [Use(call.args[0], lambda g: Dense(g)), Use(call.args[1], lambda g: Dense(g[..., None] * call.args[0].detach()))]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return torch.mv(torch.sin(x), self.w)[:, None]

    net, x = Net(), torch.randn(3, 4)
    result = empirical_ntk(net, x)
    torch.testing.assert_close(result.kernel[:, 0, :, 0], torch.sin(x) @ torch.sin(x).T)
