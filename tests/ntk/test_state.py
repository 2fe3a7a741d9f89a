"""Symmetry bit for bit, and a model that is as it was."""

import pytest
import torch
from torch import nn

from mechfeat.models import mlp
from mechfeat.ntk import empirical_ntk, plan
from tests.ntk.test_exact import OUTPUTS
from tests.ntk.zoo import ZOO, Net

SOME = ("mlp", "one sample", "groups", "transformer", "tied embedding", "bare parameter", "resnet", "lstm", "weight norm", "position table")


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_equals_its_transpose_bit_for_bit(name, outputs):
    net, x, _ = ZOO[name].build()
    for dtype in (torch.float64, torch.float32):
        net, x = net.to(dtype), x.to(dtype) if x.is_floating_point() else x
        for method in ("auto", "block", "gram"):
            result = empirical_ntk(net, x, outputs=outputs, method=method, layerwise=True)
            for kernel in (result.kernel, *result.layers.values()):
                turned = kernel.permute(2, 3, 0, 1) if outputs == "full" else kernel.transpose(0, 1)
                assert torch.equal(kernel, turned)


def test_symmetry_across_tiles():
    net, x = mlp([4, 8, 3], nn.Tanh).float(), torch.randn(400, 4).float()
    for outputs in OUTPUTS:
        kernel = empirical_ntk(net, x, outputs=outputs, prove="never").kernel
        assert torch.equal(kernel, kernel.permute(2, 3, 0, 1) if outputs == "full" else kernel.transpose(0, 1))


@pytest.mark.parametrize("name", SOME)
def test_positive_semidefinite(name):
    net, x, _ = ZOO[name].build()
    for outputs in ("full", "trace"):
        eigenvalues = empirical_ntk(net, x, outputs=outputs).spectrum()
        assert eigenvalues.min() >= -1e-13 * eigenvalues.max()
        assert torch.equal(eigenvalues, eigenvalues.sort(descending=True).values)
    for kernel in empirical_ntk(net, x, outputs="diagonal").kernel.unbind(-1):
        eigenvalues = torch.linalg.eigvalsh(kernel)
        assert eigenvalues.min() >= -1e-13 * eigenvalues.max()


@pytest.mark.parametrize("name", ["mlp", "transformer", "tied embedding", "gpt2"])
def test_between_two_batches_and_back(name):
    net, x1, x2 = ZOO[name].build()
    there, back = empirical_ntk(net, x1, x2).kernel, empirical_ntk(net, x2, x1).kernel
    torch.testing.assert_close(there, back.permute(2, 3, 0, 1), rtol=1e-11, atol=1e-12 * float(there.abs().max()))
    together = empirical_ntk(net, torch.cat([x1, x2])).kernel[: len(x1), :, len(x1) :]
    torch.testing.assert_close(there, together, rtol=1e-11, atol=1e-12 * float(there.abs().max()))


def test_order_of_samples():
    net, x, _ = ZOO["transformer"].build()
    order = torch.randperm(len(x))
    kernel = empirical_ntk(net, x, outputs="trace").kernel
    torch.testing.assert_close(empirical_ntk(net, x[order], outputs="trace").kernel, kernel[order][:, order], rtol=1e-11, atol=1e-12)


def state(net):
    return {
        "flags": [p.requires_grad for p in net.parameters()],
        "gradients": [p.grad for p in net.parameters()],
        "training": [m.training for m in net.modules()],
        "hooks": [
            len(h)
            for m in net.modules()
            for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks, m._state_dict_hooks)
        ],
        "tensor hooks": [bool(p._backward_hooks) for p in net.parameters()],
        "attributes": [sorted(vars(m)) for m in net.modules()],
        "graphs": [p.grad_fn for p in net.parameters()],
    }


def values(net):
    return [t.clone() for t in (*net.parameters(), *net.buffers())]


@pytest.mark.parametrize("name", SOME)
def test_the_model_is_left_as_it_was(name):
    net, x1, x2 = ZOO[name].build()
    before, kept, y, given = state(net), values(net), net(x1), x1.clone()
    for run in (empirical_ntk, plan):
        run(net, x1)
        run(net, x1, x2)
    assert state(net) == before
    assert all(torch.equal(a, b) for a, b in zip(values(net), kept))
    assert torch.equal(net(x1), y)
    assert torch.equal(x1, given)
    assert not x1.requires_grad


@pytest.mark.parametrize("run", [empirical_ntk, plan])
def test_also_after_an_exception(run):
    class Broken(nn.Module):
        def forward(self, x):
            if self.training:
                raise KeyError("forward")
            return x

    net = nn.Sequential(nn.Linear(5, 4), Broken(), nn.Linear(4, 3))
    net[0].bias.requires_grad_(False)
    x = torch.randn(6, 5)
    before, kept = state(net), values(net)
    with pytest.raises(KeyError, match="forward"):
        run(net, x)
    assert state(net) == before
    assert all(torch.equal(a, b) for a, b in zip(values(net), kept))
    # no function mode is left behind: a call is what it was
    assert type(nn.functional.linear(x, net[0].weight).grad_fn).__name__ != "_TapBackward"
    net.eval()
    run(net, x)


def test_gradients_that_are_there_stay():
    net, x = mlp([5, 4, 2]), torch.randn(6, 5)
    net(x).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    empirical_ntk(net, x)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before))


@pytest.mark.parametrize("name", ["mlp", "transformer", "bare parameter", "lstm"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_other_modes(name, mode):
    net, x, _ = ZOO[name].build()
    want = empirical_ntk(net, x).kernel
    with mode():
        inside = x.clone()  # an inference tensor
        for method in ("auto", "jacobian"):
            kernel = empirical_ntk(net, inside, method=method, prove="always").kernel
            assert not kernel.requires_grad
            torch.testing.assert_close(kernel, want, rtol=1e-12, atol=1e-12)
        plan(net, inside)


def test_result_has_no_graph():
    result = empirical_ntk(Net(lambda s, x: s.a(x) * s.a.bias, a=nn.Linear(5, 3)), torch.randn(4, 5), layerwise=True)
    assert not result.kernel.requires_grad
    assert not any(k.requires_grad for k in result.layers.values())


def test_input_that_requires_a_gradient():
    net, x = mlp([5, 4, 2]), torch.randn(6, 5)
    want = empirical_ntk(net, x).kernel
    given = x.clone().requires_grad_()
    assert torch.equal(empirical_ntk(net, given, prove="always").kernel, want)
    assert given.grad is None


def test_same_twice():
    net, x, _ = ZOO["transformer"].build()
    state = torch.get_rng_state()
    first, second = (empirical_ntk(net, x, prove="always").kernel for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
