"""Attributions: exact where the network is linear, complete along a path, first order elsewhere."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.circuits import (
    Attribution,
    activation_patching,
    attribution_patching,
    gradient_times_activation,
    integrated_gradients,
)
from mechfeat.errors import DtypeError, GradientError, OptionError, SelectorError, ShapeError
from tests.hooks import nets


def first(y):
    return y[:, 0]


def last_logit(out):
    return out.logits[:, -1, 3] - out.logits[:, -1, 5]


def tanh_net():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def linear_net():
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))


# --- exact on linear networks


@pytest.mark.parametrize("point", ["0:in", "0", "1"])
def test_on_a_linear_network_every_method_is_weight_times_activation(point):
    net, x, y = linear_net(), torch.randn(6, 3), torch.randn(6, 3)
    k = {"0:in": 0, "0": 1, "1": 2}[point]
    weight = torch.eye(3) if k == 3 else torch.linalg.multi_dot([net[i].weight for i in range(2, k - 1, -1)] + [torch.eye(4 if k else 3)])
    a, b = net[:k](x).detach(), net[:k](y).detach()
    want = (a * weight[0]).detach()
    torch.testing.assert_close(gradient_times_activation(net, x, first, point).values[point], want)
    torch.testing.assert_close(integrated_gradients(net, x, first, point, steps=1).values[point], want)
    torch.testing.assert_close(integrated_gradients(net, x, first, point, steps=3, method="midpoint").values[point], want)
    torch.testing.assert_close(attribution_patching(net, x, y, first, point).values[point], ((a - b) * weight[0]).detach())
    torch.testing.assert_close(integrated_gradients(net, x, first, point, baseline=b).values[point], ((a - b) * weight[0]).detach())


def test_attribution_patching_is_activation_patching_where_the_network_is_linear_after_the_point():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.h, self.out = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.out(self.h(x)).sum(1)

    net, x, y = Summed(), torch.randn(5, 6, 3), torch.randn(5, 6, 3)
    exact = activation_patching(net, x, y, first, "h", positions="each")
    found = attribution_patching(net, x, y, first, "h")
    torch.testing.assert_close(found.total("h", "channel").T, exact.metrics[0] - exact.corrupted)
    torch.testing.assert_close(found.gap("h"), torch.zeros(5))
    torch.testing.assert_close(found.difference, exact.clean - exact.corrupted)


def test_attribution_patching_is_the_derivative_of_patching():
    """Along clean = corrupted + t·d the error of the estimate falls with t²."""
    net, _ = nets.build("gpt2")
    net = net.double()
    e, d = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    model, points = mf.HookedModel(net), ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    errors = []
    for t in (1e-2, 1e-3):
        clean, corrupted = {"inputs_embeds": e + t * d}, {"inputs_embeds": e}
        exact = activation_patching(model, clean, corrupted, last_logit, points, positions="each")
        found = attribution_patching(model, clean, corrupted, last_logit, points)
        estimate = torch.stack([found.total(p, "channel").T for p in points])
        errors.append(float((estimate - (exact.metrics - exact.corrupted)).abs().max()))
    assert errors[1] < 0.02 * errors[0]


# --- gradients


def test_gradient_times_activation_is_the_derivative_in_the_scale():
    net, x = nets.build("gpt2")
    points = ["transformer.wte", "transformer.h.0.mlp", "transformer.h.1:out"]
    found = gradient_times_activation(net.double(), x, last_logit, points)
    step = 1e-6
    for name, values in found.values.items():
        up, down = (last_logit(mf.HookedModel(net).run_with_hooks(x, mf.Scale(name, 1 + s))) for s in (step, -step))
        torch.testing.assert_close(found.total(name), ((up - down) / (2 * step)).detach(), rtol=1e-5, atol=1e-8)
        assert values.shape == mf.HookedModel(net).record(x, name)[name].shape
        assert not values.requires_grad
    torch.testing.assert_close(found.metric, last_logit(net(x)).detach())
    assert found.difference is None


def test_frozen_parameters_and_switched_off_gradients_change_nothing():
    net, x = tanh_net(), torch.randn(4, 3)
    want = gradient_times_activation(net, x, first, "1").values["1"]
    path = integrated_gradients(net, x, first, "1").values["1"]
    net.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(gradient_times_activation(net, x, first, "1").values["1"], want)
        assert torch.equal(integrated_gradients(net, x, first, "1").values["1"], path)
    assert nets.hook_count(net) == 0


# --- integrated gradients


def literal_midpoint(f, a, b, steps):
    """Equation 3 with the sum at the middle of every step, one number at a time by autograd."""
    total = torch.zeros_like(a)
    for i in range(steps):
        p = (b + (i + 0.5) / steps * (a - b)).detach().requires_grad_()
        f(p).sum().backward()
        total += p.grad / steps
    return (a - b) * total


def test_the_midpoint_rule_is_that_of_the_definition():
    net, x = tanh_net(), torch.randn(4, 3)
    a, b = net[:2](x).detach(), torch.randn(1, 5)
    found = integrated_gradients(net, x, first, "1", baseline=b, steps=7, method="midpoint")
    torch.testing.assert_close(found.values["1"], literal_midpoint(lambda p: net[2:](p)[:, 0], a, b.expand(4, 5), 7))


@pytest.mark.parametrize("point", [":in", "0", "1", "3"])
def test_attributions_add_up_to_the_difference(point):
    net, x = tanh_net(), torch.randn(4, 3)
    found = integrated_gradients(net, x, first, point, steps=30)
    assert found.gap(point).abs().max() < 1e-10
    model = mf.HookedModel(net)
    want = (net(x) - model.run_with_hooks(x, mf.Ablate(point)))[:, 0].detach()
    torch.testing.assert_close(found.difference, want)
    torch.testing.assert_close(found.total(point), want)


def test_the_gap_falls_with_the_steps():
    net, x = tanh_net(), 3 * torch.randn(20, 3)
    coarse, fine = (integrated_gradients(net, x, first, steps=s, method="midpoint").gap(":in").abs().max() for s in (20, 40))
    assert fine == pytest.approx(float(coarse) / 4, rel=0.2)


def test_gauss_legendre_is_exact_below_twice_the_steps():
    net, x = nn.Sequential(nn.Identity()), torch.randn(4, 3)
    for steps in (1, 2, 3):
        exact = integrated_gradients(net, x, lambda y, p=2 * steps: (y**p).sum(1), steps=steps)  # gradient of degree 2·steps − 1
        torch.testing.assert_close(exact.values[":in"], x ** (2 * steps))
        beyond = integrated_gradients(net, x, lambda y, p=2 * steps + 1: (y**p).sum(1), steps=steps)
        assert beyond.gap(":in").abs().max() > 1e-4


def test_what_bypasses_the_point_is_not_attributed():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)

        def forward(self, x):
            return 5 * x + self.f(x).tanh()

    net, x = Residual(), torch.randn(4, 3)
    found = integrated_gradients(net, x, first, "f")
    assert found.gap("f").abs().max() < 1e-10
    torch.testing.assert_close(found.values["f"][:, 0], net.f(x).tanh()[:, 0].detach())
    assert (found.values["f"][:, 1:] == 0).all()


def test_a_transformer_from_its_embedding():
    net, x = nets.build("gpt2")
    found = integrated_gradients(net.double(), x, last_logit, "transformer.wte", steps=60)
    assert found.gap("transformer.wte").abs().max() < 1e-6
    assert found.total("transformer.wte", "channel").shape == x.shape


def test_a_network_that_works_in_place():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), torch.randn(5, 3)
    h = net[0](x).detach()
    found = integrated_gradients(net, x, first, "0", steps=4)
    torch.testing.assert_close(found.values["0"], (h.relu() * net[2].weight[0]).detach())
    torch.testing.assert_close(gradient_times_activation(net, x, first, "0").values["0"], (h.relu() * net[2].weight[0]).detach())


def test_agrees_with_captum():
    captum = pytest.importorskip("captum.attr")
    net, x, b = tanh_net(), torch.randn(4, 3), torch.randn(1, 3)
    want = captum.IntegratedGradients(net).attribute(x, b, target=0, n_steps=20, method="gausslegendre")
    torch.testing.assert_close(integrated_gradients(net, x, first, baseline=b, steps=20).values[":in"], want)


# --- evidence


def linear_pairs(n, shift, generator):
    clean, corrupted = torch.randn(2, n, 3, generator=generator)
    clean[:, 0] += shift
    return clean, corrupted


class Three(nn.Module):
    """Place 0 carries the answer, place 1 none of it, and place 2 as much in every run."""

    def __init__(self):
        super().__init__()
        self.h = nn.Identity()

    def forward(self, x):
        return self.h(x[:, :, None])[:, :, 0] @ torch.tensor([1.0, 0.0, 1.0])[:, None]


def test_the_place_that_carries_the_answer_is_established():
    clean, corrupted = linear_pairs(20, 3.0, torch.Generator().manual_seed(0))
    found = attribution_patching(Three(), clean, corrupted, first, "h").finding("h")
    patched = activation_patching(Three(), clean, corrupted, first, "h", positions="each")
    assert found.established
    assert found.value == pytest.approx(patched.value)  # the network is linear
    assert found.settings["place"] == 0
    assert found.interval[0] < found.value < found.interval[1]
    control = attribution_patching(Three(), clean, corrupted, first, "h").control["h"][:, :, 0]
    assert control[:, 0].abs().min() > 0
    torch.testing.assert_close((control + corrupted)[:, 0].sort().values, corrupted[:, 0].sort().values)  # each input has another's
    without = attribution_patching(Three(), clean[:, [1, 1, 1]] * 0 + corrupted + torch.tensor([0.0, 1.0, 0.0]), corrupted, first, "h")
    assert without.total("h").abs().max() == 0  # place 1 differs and is not read
    for f in (gradient_times_activation(Three(), clean, first, "h"), integrated_gradients(Three(), clean, first, "h")):
        assert f.finding("h").established
        assert f.finding("h").value == pytest.approx(float(clean[:, 0].mean()))
        assert not gradient_times_activation(Three(), corrupted - corrupted.mean(0), first, "h").finding("h").established


@pytest.mark.parametrize("method", ["attribution patching", "gradient times activation"])
def test_without_an_effect_it_stands_out_at_most_at_the_nominal_rate(method):
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        clean, corrupted = linear_pairs(8, 0.0, generator)
        if method == "attribution patching":
            found = attribution_patching(Three(), clean, corrupted, first, "h")
        else:
            found = gradient_times_activation(Three(), clean, first, "h")
        hits += found.finding("h", n_null=199, n_boot=2).p_value <= 0.05
    assert hits <= 0.1 * 200  # more than that has probability 0.001 at a true rate of 0.05


def test_too_few_inputs_have_no_null():
    found = gradient_times_activation(Three(), torch.randn(5, 3), first, "h").finding("h")
    assert found.null is None
    assert found.settings["no null because"] == "5 inputs, and a null needs 6"
    with pytest.raises(SelectorError) as caught:
        gradient_times_activation(Three(), torch.randn(5, 3), first, "h").finding("h", "sample")
    assert str(caught.value) == "'h' cannot be summed over 'sample': inputs are what the evidence is counted in."


# --- the result


def test_totals_are_over_the_axes_asked_for():
    net, x = nets.build("gpt2")
    found = gradient_times_activation(net, x, last_logit, "transformer.h.0.mlp")
    values = found.values["transformer.h.0.mlp"]
    assert torch.equal(found.total("transformer.h.0.mlp"), values.sum((1, 2)))
    assert torch.equal(found.total("transformer.h.0.mlp", "pos"), values.sum(1))
    assert torch.equal(found.total("transformer.h.0.mlp", "sample", "channel"), values.sum((0, 2)))


def test_it_is_saved_and_loaded(tmp_path):
    found = integrated_gradients(tanh_net(), torch.randn(4, 3), first, "1")
    found.save(tmp_path / "a.safetensors")
    again = Attribution.load(tmp_path / "a.safetensors")
    assert torch.equal(again.values["1"], found.values["1"])
    assert torch.equal(again.gap("1"), found.gap("1"))
    assert dict(again.axes) == {"1": ("sample", "channel")}


# --- what it refuses


def test_refusals_of_the_result():
    found = gradient_times_activation(tanh_net(), torch.randn(4, 3), first, "1")
    with pytest.raises(SelectorError) as caught:
        found.total("2")
    assert str(caught.value) == "'2' is not in this attribution, which holds ['1']."
    with pytest.raises(SelectorError) as caught:
        found.total("1", "pos")
    assert str(caught.value) == "'1' has no axis 'pos' to sum over; its axes are ('sample', 'channel')."
    with pytest.raises(OptionError) as caught:
        found.gap("1")
    assert (
        str(caught.value)
        == "gap='1' is not known. It can be 'a point of attribution_patching or integrated_gradients, which compare two runs'."
    )


@pytest.mark.usefixtures("unchecked")
def test_refusals_of_integrated_gradients():
    net, x = tanh_net(), torch.randn(4, 3)

    def message(error, *args, **options):
        with pytest.raises(error) as caught:
            integrated_gradients(*args, **options)
        return str(caught.value)

    assert message(OptionError, net, x, first, steps=0) == "steps=0 is not known. It can be 'a number of points, at least 1'."
    assert message(OptionError, net, x, first, method="simpson") == "method='simpson' is not known. It can be 'midpoint', 'gauss-legendre'."
    assert message(OptionError, net, x, first, "*") == "point='*' is not known. It can be \"one hook point, such as '0'\"."
    assert (
        message(ShapeError, net, x, first, "0", baseline=torch.zeros(4))
        == "The baseline has shape (4,), and the activation at '0' has (4, 5). Give that shape, or one that expands to it."
    )
    assert (
        message(ShapeError, net, x, lambda y: y.sum(), "0")
        == "The metric gave shape (). It must give one number an input, such as logits[:, 3]."
    )
    assert (
        message(GradientError, net, x, lambda y: y[:, 0].detach(), "0")
        == "The metric does not depend on '0' by a gradient. Take a hook point that it is computed from."
    )
    gpt2, tokens = nets.build("gpt2")
    assert (
        message(DtypeError, gpt2, tokens, last_logit, "transformer.wte:in")
        == "'transformer.wte:in' holds torch.int64, which has no gradient. Take a later hook point, such as the output of the embedding."
    )


def test_runs_of_different_shapes():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ShapeError) as caught:
        attribution_patching(net, torch.randn(3, 4, 2), torch.randn(3, 5, 2), lambda y: y[:, 0, 0], "0")
    assert (
        str(caught.value) == "Clean and corrupted run have activations of different shapes at '0': (3, 4, 2) and (3, 5, 2). "
        "Give inputs of one shape, in pairs."
    )
