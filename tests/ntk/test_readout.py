"""Kernels of the summed outputs, of a class, and of a function of the outputs."""

import functools

import pytest
import torch
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import MechfeatError, ModelOutputError, OptionError
from mechfeat.models import mlp
from mechfeat.ntk import empirical_ntk, plan
from tests.ntk.test_exact import assert_exact
from tests.ntk.zoo import ZOO, Net


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_follow_from_the_full_kernel(name):
    net, x1, x2 = ZOO[name].build()
    for other in (None, x2):
        full = sum(oracle.empirical_ntk(net, x1, other).values())
        mix = torch.randn(full.shape[1], 2)
        one, two = functools.partial(torch.matmul, other=mix[:, 0]), functools.partial(torch.matmul, other=mix)
        for outputs, want, word in (
            ("pseudo", full.sum((1, 3)), "pseudo"),
            (0, full[:, 0, :, 0], "class 0"),
            (-1, full[:, -1, :, -1], "class -1"),
            (one, torch.einsum("nomp,o,p->nm", full, mix[:, 0], mix[:, 0]), "partial"),
            (two, torch.einsum("nomp,oa,pb->namb", full, mix, mix), "full"),
        ):
            for method in ("auto", "jacobian") if word == "pseudo" else ("auto",):
                result = empirical_ntk(net, x1, other, outputs=outputs, method=method, prove="always", layerwise=True)
                assert result.outputs == word
                assert_exact(result.kernel, want)
                assert_exact(sum(result.layers.values()), result.kernel)
                assert result.plan.kernel_shape == result.kernel.shape
                assert plan(net, x1, other, outputs=outputs).kernel_shape == result.kernel.shape
    assert not net._forward_hooks


def test_a_nonlinear_function():
    net, x = mlp([5, 6, 4, 3], nn.Tanh), torch.randn(6, 5)
    found = empirical_ntk(net, x, outputs=lambda y: y.logsumexp(1) - y[:, 1]).kernel
    J = torch.cat(list(oracle.jacobian(net, x).values()), 2)
    y = net(x).detach()
    weights = y.softmax(1) - torch.eye(3)[1]
    rows = torch.einsum("nop,no->np", J, weights)
    assert_exact(found, rows @ rows.T)


def test_one_backward_pass_is_enough(monkeypatch):
    net, x = mlp([5, 6, 4], nn.Tanh), torch.randn(6, 5)
    passes, right = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or right(*a, **k))
    for outputs in ("pseudo", 2, lambda y: y.amax(1)):
        passes.clear()
        empirical_ntk(net, x, outputs=outputs, prove="never")
        assert len(passes) == 1


def test_a_proof_of_one_class_is_not_that_of_another():
    net, x = mlp([5, 6, 4], nn.Tanh), torch.randn(6, 5)
    gaps = [empirical_ntk(net, x, outputs=o).coverage[0].gap for o in (0, 1, 1, "pseudo", "pseudo", "full")]
    assert [g is None for g in gaps] == [False, False, True, False, True, False]
    # a function may be another one the next time
    f = lambda y: y[:, 0]  # noqa: E731
    assert all(empirical_ntk(net, x, outputs=f).coverage[0].gap is not None for _ in range(2))


def test_refused(unchecked):
    net, x = mlp([5, 6, 4], nn.Tanh), torch.randn(6, 5)
    for run in (empirical_ntk, plan):
        for wrong in ("sum", True, 1.5, None):
            with pytest.raises(OptionError):
                run(net, x, outputs=wrong)
        with pytest.raises(OptionError) as error:
            run(net, x, outputs=4)
        assert "4" in str(error.value)
        assert "0, 1, 2, 3" in str(error.value)
        with pytest.raises(ModelOutputError) as error:
            run(net, x, outputs=lambda y: y.sum())
        assert (
            str(error.value)
            == "The function given as outputs= returned shape () and torch.float64 for outputs of shape (6, 4). It must return real"
            " numbers, "
            "one row a sample, computed by torch from that sample's outputs."
        )
        assert not net._forward_hooks
    with pytest.raises(MechfeatError):  # samples interact
        empirical_ntk(net, x, outputs=lambda y: y - y.mean(0))
    with pytest.raises(ModelOutputError):
        empirical_ntk(Net(lambda s, x: s.a(x)[:, :0], a=nn.Linear(5, 2)), x, outputs="pseudo")
