"""Cases in which a kernel could be wrong and look right: each is exact, or raises, or is marked."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mechfeat import Ablate, HookedModel, Replace, Steer
from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import NondeterministicModelError, ProofError, SampleInteractionError, UnsupportedLayerError
from mechfeat.models import mlp
from mechfeat.ntk import empirical_ntk, plan
from mechfeat.ntk.capture import Capture
from tests.ntk.test_exact import OUTPUTS, assert_exact, reduced
from tests.ntk.zoo import Net, P


def assert_all_exact(net, x, x2=None, *, outputs=OUTPUTS, **paths):
    """The kernel is the literal one with and without proof, and parameters took these paths."""
    want = sum(oracle.empirical_ntk(net, x, x2).values())
    for kept in outputs:
        result = empirical_ntk(net, x, x2, outputs=kept, prove="always")
        if float(want.abs().max()):
            assert_exact(result.kernel, reduced(want, kept))
        else:
            assert not result.kernel.any()
        found = {c.parameter.replace(".", "_"): c.path for c in result.coverage}
        assert {p: found[p] for p in paths} == paths
    return result


# Parameters that reach a call as something else


def test_transposed_parameter():
    assert_all_exact(Net(lambda s, x: F.linear(torch.tanh(x), s.w.T), w=P(5, 3)), torch.randn(6, 5), w="rule")


def test_row_of_a_parameter():
    assert_all_exact(Net(lambda s, x: s.a(x) * s.w[1], a=nn.Linear(5, 4), w=P(2, 4)), torch.randn(6, 5), w="rule", a_weight="rule")


def test_straight_use_beside_a_view():
    net = Net(lambda s, x: F.linear(x, s.w) + x @ s.w.T, w=P(5, 5))
    assert_all_exact(net, torch.randn(6, 5), w="rule")


def test_view_made_before_the_call():
    net = Net(lambda s, x: F.linear(x, s.view), w=P(4, 5))
    net.view = net.w.view(4, 5)
    result = assert_all_exact(net, torch.randn(6, 5), w="exact")
    assert result.coverage[0].detail == "it is used out of sight of torch functions"


def test_alias_in_a_list_is_not_lost():
    # functional_call replaces attributes of modules, and this use is not one of them
    net = Net(lambda s, x: s.a(x) * s.kept[0] + s.kept[1], a=nn.Linear(5, 4), w=P(4))
    net.kept = [net.w, net.a.bias]
    for method in ("auto", "jacobian"):
        for prove in ("always", "never"):
            x = torch.randn(6, 5)
            want = sum(oracle.empirical_ntk(net, x).values())
            assert_exact(empirical_ntk(net, x, method=method, prove=prove).kernel, want)


def test_detached_use_does_not_count():
    net = Net(lambda s, x: F.linear(x, s.w.detach()) + F.linear(x.tanh(), s.w), w=P(3, 5))
    assert_all_exact(net, torch.randn(6, 5), w="rule")


def test_use_without_grad_does_not_count():
    def f(s, x):
        with torch.no_grad():
            h = s.a(x)
        return s.a(h.tanh())

    assert_all_exact(Net(f, a=nn.Linear(5, 5)), torch.randn(6, 5), a_weight="rule")


def test_data_of_a_parameter_does_not_count():
    assert_all_exact(Net(lambda s, x: F.linear(x, s.w.data) + s.b(x), w=P(3, 5), b=nn.Linear(5, 3)), torch.randn(6, 5), w="unused")


def test_output_of_a_call_is_unused():
    def f(s, x):
        s.a(x)
        return s.a(x.tanh())

    assert_all_exact(Net(f, a=nn.Linear(5, 3)), torch.randn(6, 5), a_weight="rule")


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: F.linear(input=x, weight=s.w, bias=s.b),
        lambda s, x: F.linear(x, bias=s.b, weight=s.w),
        lambda s, x: torch.addmm(input=s.b, mat1=x, mat2=s.u),
        lambda s, x: torch.addmm(s.b, mat1=x, mat2=s.u),
        lambda s, x: s.b.addmm(x, mat2=s.u),
        lambda s, x: F.layer_norm(input=x, normalized_shape=(5,), weight=s.v, bias=s.c, eps=0.1),
        lambda s, x: F.batch_norm(input=x, running_mean=s.m, running_var=s.m.exp(), weight=s.v, bias=s.c, eps=0.1),
        lambda s, x: F.embedding(input=(x > 0).long(), weight=s.w).sum(1),
    ],
)
def test_keywords(f):
    net = Net(f, w=P(3, 5), b=P(3), u=P(5, 3), v=P(5), c=P(5))
    net.register_buffer("m", torch.randn(5))
    assert_all_exact(net, torch.randn(6, 5))


def test_keyword_convolution():
    net = Net(lambda s, x: F.conv2d(input=x, weight=s.w, bias=s.b, stride=2).flatten(1), w=P(3, 2, 2, 2), b=P(3))
    assert_all_exact(net, torch.randn(6, 2, 4, 4), w="rule", b="rule")


def test_flag_that_turns_beta_off():
    net = Net(lambda s, x: torch.addmm(s.b, x, s.w, beta=2, alpha=0.5), w=P(5, 3), b=P(3))
    assert_all_exact(net, torch.randn(6, 5), w="exact", b="exact")


def test_broadcast_bias():
    net = Net(lambda s, x: torch.addmm(s.b, x, s.w), w=P(5, 3), b=P(1))
    assert_all_exact(net, torch.randn(6, 5), w="rule", b="rule")


@pytest.mark.parametrize("n", [1, 6])
def test_weight_with_one_axis(n):
    assert_all_exact(Net(lambda s, x: F.linear(x, s.w).tanh(), w=P(5)), torch.randn(n, 5))


def test_scalar_parameter():
    net = Net(lambda s, x: s.a(x) * s.t + s.t, a=nn.Linear(5, 3), t=nn.Parameter(torch.tensor(0.7)))
    assert_all_exact(net, torch.randn(6, 5), a_weight="rule", t="rule")


def test_one_parameter_as_scale_and_shift():
    assert_all_exact(Net(lambda s, x: F.layer_norm(x, (5,), s.w, s.w), w=P(5)), torch.randn(6, 5), w="rule")


def test_parameter_as_input_and_as_weight():
    net = Net(lambda s, x: x @ F.linear(s.w, s.w), w=P(5, 5))
    assert_all_exact(net, torch.randn(5, 5), w="exact")


def test_parameter_as_input_of_a_layer():
    # as many rows in the table as samples in the batch: row i belongs to sample i, and the batch size is fixed
    net = Net(lambda s, x: x * s.a(s.w), w=P(6, 5), a=nn.Linear(5, 5))
    assert_all_exact(net, torch.randn(6, 5), w="exact", a_weight="exact")


def test_backward_without_batching_rule():
    class Decides(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2 if g.abs().sum() >= 0 else g

    net = Net(lambda s, x: s.o(Decides.apply(s.a(x)).tanh()) * s.w.exp(), a=nn.Linear(5, 4), w=P(3), o=nn.Linear(4, 3))
    for other in (None, torch.randn(8, 5)):
        assert_all_exact(net, torch.randn(6, 5), other, a_weight="rule", o_weight="rule", w="exact")


def test_custom_function():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return F.linear(x, w) ** 2

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            g = 2 * g * F.linear(x, w)
            return g @ w, g.T @ x

    net = Net(lambda s, x: s.o(Square.apply(s.a(x), s.w)), a=nn.Linear(5, 4), w=P(4, 4), o=nn.Linear(4, 2))
    assert_all_exact(net, torch.randn(6, 5), w="exact", a_weight="rule", o_weight="rule")


def test_reentrant_checkpoint_is_refused_by_torch():
    net = Net(lambda s, x: s.o(checkpoint(s.b, s.a(x), use_reentrant=True)), a=nn.Linear(5, 5), b=nn.Linear(5, 4), o=nn.Linear(4, 2))
    with pytest.raises(RuntimeError):
        empirical_ntk(net, torch.randn(6, 5))


def test_nested_functional_call():
    def f(s, x):
        h = torch.func.functional_call(s.a, {"weight": s.w}, (x,))
        return torch.func.functional_call(s.a, {"weight": s.w * 2}, (h.tanh(),))

    assert_all_exact(Net(f, a=nn.Linear(5, 5), w=P(5, 5)), torch.randn(6, 5), a_bias="rule", w="exact", a_weight="unused")


# Axes that agree by chance


def test_table_of_as_many_positions_as_samples():
    def f(s, t):
        return s.o(torch.tanh(s.e(t) + s.p(torch.arange(5))).mean(1))

    net = Net(f, e=nn.Embedding(7, 4), p=nn.Embedding(5, 4), o=nn.Linear(4, 2))
    result = assert_all_exact(net, torch.randint(0, 7, (5, 5)), torch.randint(0, 7, (8, 5)), e_weight="rule", p_weight="exact")
    assert result.coverage[0].path == "rule"
    assert_all_exact(net, torch.randint(0, 7, (5, 5)), e_weight="rule", p_weight="exact")


def test_positions_before_samples():
    def f(s, x):
        return s.o(torch.tanh(s.a(x.transpose(0, 1))).transpose(0, 1).flatten(1))

    net = Net(f, a=nn.Linear(4, 3), o=nn.Linear(18, 2))
    for n in (1, 3, 6, 8):
        assert_all_exact(net, torch.randn(n, 6, 4), o_weight="rule")


def test_flattened_positions_before_samples():
    def f(s, x):
        h = torch.tanh(s.a(x.transpose(0, 1).reshape(-1, 4)))
        return s.o(h.view(6, -1, 3).transpose(0, 1).flatten(1))

    net = Net(f, a=nn.Linear(4, 3), o=nn.Linear(18, 2))
    for n in (1, 3, 6, 8):
        assert_all_exact(net, torch.randn(n, 6, 4), o_weight="rule")


def test_samples_reversed_on_the_way():
    assert_all_exact(Net(lambda s, x: s.a(x.flip(0)).flip(0), a=nn.Linear(5, 3)), torch.randn(6, 5), a_weight="exact")


def test_layer_applied_to_a_constant():
    net = Net(lambda s, x: x * s.a(torch.ones(6, 4)).sum(0), a=nn.Linear(4, 5))
    assert_all_exact(net, torch.randn(6, 5), a_weight="exact")
    assert_all_exact(net, torch.randn(3, 5), a_weight="exact")
    assert_all_exact(net, torch.randn(4, 5), a_weight="exact")


# Outputs


def test_output_is_the_input():
    assert_all_exact(Net(lambda s, x: x, a=nn.Linear(5, 3)), torch.randn(6, 5), a_weight="unused")


def test_output_does_not_reach_every_parameter():
    net = Net(lambda s, x: torch.cat([s.a(x), s.b(x), x], 1), a=nn.Linear(5, 1), b=nn.Linear(5, 2))
    assert_all_exact(net, torch.randn(6, 5), a_weight="rule", b_weight="rule")


def test_gradient_is_zero():
    net = Net(lambda s, x: torch.floor(s.a(x)) + s.b(x), a=nn.Linear(5, 2), b=nn.Linear(5, 2))
    assert_all_exact(net, torch.randn(6, 5), b_weight="rule")


def test_views_of_a_tapped_tensor():
    def f(s, x):
        h = s.a(x)
        h[:, 0].mul_(2)
        return h[:, :2] * h[:, 2:].T.T + h.view(-1, 2, 2)[:, 1].exp()

    assert_all_exact(Net(f, a=nn.Linear(5, 4)), torch.randn(6, 5), a_weight="rule")


def test_parameter_used_for_one_batch_alone():
    net = Net(lambda s, x: s.a(x) + (s.b(x) if len(x) > 6 else 0), a=nn.Linear(5, 2), b=nn.Linear(5, 2))
    want = sum(p for n, p in oracle.empirical_ntk(net, torch.ones(5, 5), torch.ones(8, 5)).items())
    assert_exact(empirical_ntk(net, torch.ones(5, 5), torch.ones(8, 5), prove="never").kernel, want)


# State


def test_input_overwritten_by_the_model():
    x = torch.randn(6, 5)
    before = x.clone()
    net = Net(lambda s, x: s.a(x.mul_(2)) * s.w, a=nn.Linear(5, 3), w=P(3))
    want = sum(oracle.empirical_ntk(net, x).values())
    for method in ("auto", "jacobian"):
        for prove in ("always", "never"):
            assert_exact(empirical_ntk(net, x, method=method, prove=prove).kernel, want)
    assert torch.equal(x, before)


@pytest.mark.parametrize("prove", ["once", "never"])
def test_stored_input_overwritten_later(prove):
    def f(s, x):
        h = torch.tanh(s.a(x))
        y = s.b(h)
        h.add_(1)
        return y

    net = Net(f, a=nn.Linear(5, 4), b=nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        empirical_ntk(net, torch.randn(6, 5), prove=prove)


def test_stored_ids_overwritten_later():
    def f(s, t):
        h = s.e(t)
        t.fill_(0)
        return s.o(h.mean(1))

    net = Net(f, e=nn.Embedding(7, 4), o=nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        empirical_ntk(net, torch.randint(0, 7, (6, 3)), prove="never")


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_fixed_batch_size(outputs):
    net = Net(lambda s, x: s.b(torch.tanh(s.a(x)).view(6, 2, 2).flatten(1)) * s.w.exp(), a=nn.Linear(5, 4), b=nn.Linear(4, 3), w=P(3))
    x = torch.randn(6, 5)
    want = reduced(sum(oracle.empirical_ntk(net, x).values()), outputs)
    result = empirical_ntk(net, x, outputs=outputs)
    assert_exact(result.kernel, want)
    assert [c.path for c in result.coverage] == ["exact", "rule", "rule", "rule", "rule"]


def test_random_forward_at_few_samples():
    net = Net(lambda s, x: s.a(x) + torch.randn(len(x), 3), a=nn.Linear(5, 3))
    for n in (1, 3, 6):
        with pytest.raises(NondeterministicModelError):
            empirical_ntk(net, torch.randn(n, 5))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_samples_interact(n, outputs):
    net = Net(lambda s, x: s.b(torch.tanh(s.a(x) - s.a(x).mean(0))), a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    with pytest.raises(SampleInteractionError, match="samples interact"):
        empirical_ntk(net, torch.randn(n, 5), outputs=outputs)


def test_samples_interact_in_the_gradient_alone():
    def f(s, x):
        h = s.a(x)
        return torch.tanh(s.b(h + h.mean(0) - h.mean(0).detach()))

    with pytest.raises(ProofError):
        empirical_ntk(Net(f, a=nn.Linear(5, 4), b=nn.Linear(4, 3)), torch.randn(6, 5))


# Hooks


@pytest.mark.parametrize("make", [lambda: Ablate("1", channel=2), lambda: Steer("1", torch.ones(4), 0.5)], ids=["ablate", "steer"])
def test_edits_in_force(make):
    edit = make()
    net = mlp([5, 4, 4, 3], nn.Tanh)
    model, x = HookedModel(net), torch.randn(6, 5)
    plain = empirical_ntk(net, x).kernel
    with model.hooks(edit):
        want = sum(oracle.empirical_ntk(net, x).values())
        for given in (model, net):
            assert_exact(empirical_ntk(given, x, prove="always").kernel, want)
    assert (plain - want).abs().max() > 1e-3
    assert torch.equal(empirical_ntk(model, x).kernel, plain)


def test_edits_are_not_covered_by_an_earlier_proof():
    net = mlp([5, 4, 3], nn.Tanh)
    model, x = HookedModel(net), torch.randn(6, 5)
    empirical_ntk(model, x)
    with model.hooks(Replace("1", fn=lambda a: a - a.mean(0))), pytest.raises(SampleInteractionError):
        empirical_ntk(model, x)
    handle = net[1].register_forward_hook(lambda m, args, out: out - out.mean(0))
    with pytest.raises(SampleInteractionError):
        empirical_ntk(net, x)
    handle.remove()


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_kept_alive(failing):
    def f(s, x):
        y = s.a(x)
        if failing:
            raise KeyError("forward")
        return y

    net, x = Net(f, a=nn.Linear(5, 3)), torch.randn(6, 5)
    alive = []
    begin = Capture.__init__

    def watched(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        alive.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Capture, "__init__", watched)
        for run in (empirical_ntk, plan):
            if failing:
                with pytest.raises(KeyError):
                    run(net, x)
            else:
                run(net, x)
    gc.collect()
    assert alive
    assert not [c for c in alive if c() is not None]


def test_a_parameter_used_out_of_sight_is_found_in_the_graph():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g * w, (g * x).sum(0)

    net = Net(lambda s, x: Scaled.apply(s.a(x), s.w), a=nn.Linear(5, 3), w=nn.Parameter(torch.randn(3)))
    x = torch.randn(6, 5)
    result = empirical_ntk(net, x, prove="never")
    assert {c.parameter: c.path for c in result.coverage}["w"] == "exact"
    want = sum(oracle.empirical_ntk(net, x).values())
    assert float((result.kernel - want).abs().max() / want.abs().max()) <= 1e-12


def test_a_strict_failure_is_not_taken_for_a_proof():
    """A view made once keeps its graph, so that neither rule nor functional call sees the parameter through it."""

    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.randn(5, 3))
            self.turned = self.W.T

        def forward(self, x):
            return x @ self.turned.T

    net, x = Cached(), torch.randn(6, 5)
    with pytest.raises((ProofError, UnsupportedLayerError)):
        empirical_ntk(net, x, strict=True)
    want = sum(oracle.empirical_ntk(net, x).values())
    for _ in range(2):
        result = empirical_ntk(net, x)
        assert float((result.kernel - want).abs().max() / want.abs().max()) <= 1e-12
