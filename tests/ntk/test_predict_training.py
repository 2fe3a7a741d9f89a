"""Prediction of training against training, and the linearised model against its definition."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.errors import NoParametersError, OptionError, ShapeError
from mechfeat.features import signal_share
from mechfeat.models import mlp
from mechfeat.ntk import KernelDynamics, TrainingPrediction, empirical_ntk, linearize, predict_training
from mechfeat.nulls import permuted_labels


def task(n=8, m=6, o=3):
    g = torch.Generator().manual_seed(3)
    x, x_test = torch.randn(n, 4, generator=g), torch.randn(m, 4, generator=g)
    return x, torch.randint(0, o, (n,), generator=g), x_test


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) * self.frozen)


@pytest.mark.parametrize("net", [lambda: mlp([4, 6, 3], nn.Tanh), Tied], ids=["mlp", "tied"])
def test_linearize_is_the_first_order_expansion(net):
    torch.manual_seed(1)
    net, (x, _, _) = net(), task()
    expanded, h = linearize(net), 1e-5
    change = {n: torch.randn_like(p) for n, p in net.named_parameters() if p.requires_grad}
    zero = {n: torch.zeros_like(d) for n, d in change.items()}
    torch.testing.assert_close(expanded(x, zero), net(x), rtol=0, atol=0)
    torch.testing.assert_close(expanded(x, {}), net(x), rtol=0, atol=0)
    start = copy.deepcopy(net.state_dict())
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in net.named_parameters():
                p += sign * h * change.get(n, 0)
            ends.append(net(x))
            for n, p in net.named_parameters():
                p.copy_(start[n])
    slope = (ends[0] - ends[1]) / (2 * h)  # central differences, with an error of order h²
    torch.testing.assert_close(expanded(x, change) - net(x), slope, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(expanded(x, {n: 2 * d for n, d in change.items()}) - net(x), 2 * slope, rtol=1e-6, atol=1e-8)


def test_linearize_stays_where_it_was_made():
    net, (x, _, _) = mlp([4, 6, 3], nn.Tanh), task()
    expanded, before = linearize(net), net(x).detach()
    with torch.no_grad():
        for p in net.parameters():
            p += 1
    assert torch.equal(expanded(x, {}), before)
    assert not torch.allclose(net(x), before)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_descent_on_the_linearised_model_is_what_the_kernel_says(loss):
    net, (x, y, x_test) = mlp([4, 6, 3], nn.Tanh), task()
    y = y if loss == "softmax" else F.one_hot(y, 3).double()
    training = KernelDynamics(empirical_ntk(net, x), y, loss=loss, lr=0.2, f0=net(x).detach())
    expanded = linearize(net)
    change = {n: torch.zeros_like(p, requires_grad=True) for n, p in net.named_parameters()}
    for _ in range(25):
        f = expanded(x, change)
        total = {
            "squared": lambda f: 1.5 * F.mse_loss(f, y),  # o/2: torch's mean is over outputs as well
            "logistic": lambda f: 3 * F.binary_cross_entropy_with_logits(f, y),
            "softmax": lambda f: F.cross_entropy(f, y),
        }[loss](f)
        gradients = torch.autograd.grad(total, list(change.values()))
        change = {n: (d - 0.2 * g).detach().requires_grad_() for (n, d), g in zip(change.items(), gradients)}
    torch.testing.assert_close(training.at(25), expanded(x, change), rtol=0, atol=1e-10)
    want = expanded(x_test, change)
    torch.testing.assert_close(training.at(25, empirical_ntk(net, x_test, x), net(x_test)), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_linear_model_is_predicted_exactly_and_actual_is_training(loss, reduction):
    net, (x, y, x_test) = nn.Linear(4, 3), task()
    y = y if loss == "softmax" else F.one_hot(y, 3).double()
    found = predict_training(net, x, y, x_test, loss=loss, lr=0.02, steps=[30, 1], reduction=reduction, seed=5)
    torch.testing.assert_close(found.predicted, found.actual, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.predicted_train, found.actual_train, rtol=0, atol=1e-12)
    assert (found.value, found.n, found.steps, found.seed) == (pytest.approx(1.0), 6, (30, 1), 5)
    assert found.drift < 1e-12
    trained = copy.deepcopy(net)
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.02)
    for step in range(1, 31):
        optimiser.zero_grad()
        f = trained(x)
        whole = {
            "squared": lambda f: 0.5 * F.mse_loss(f, y, reduction="sum"),
            "logistic": lambda f: F.binary_cross_entropy_with_logits(f, y, reduction="sum"),
            "softmax": lambda f: F.cross_entropy(f, y, reduction="sum"),
        }[loss](f)
        (whole / (8 if reduction == "mean" else 1)).backward()
        optimiser.step()
        if step in (1, 30):
            torch.testing.assert_close(found.actual[found.steps.index(step)], trained(x_test), rtol=0, atol=1e-12)


def test_the_model_is_left_as_it_was():
    net, (x, y, x_test) = mlp([4, 8, 3], nn.Tanh), task()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    predict_training(net, x, y, x_test, loss="softmax", lr=0.1, steps=5)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_value_null_and_drift_are_what_they_say():
    net, (x, y, x_test) = mlp([4, 16, 3], nn.Tanh), task(n=12, m=9)
    found = predict_training(net, x, y, x_test, loss="softmax", lr=0.5, steps=[2, 40], n_null=4, seed=2)
    moved = found.actual[-1] - net(x_test).detach()
    want = 1 - (found.predicted[-1] - found.actual[-1]).square().sum() / moved.square().sum()
    assert found.value == pytest.approx(float(want))
    torch.testing.assert_close(found.explained[-1], want.double())
    torch.testing.assert_close(found.relative_errors[-1], (1 - want).sqrt())
    assert 0.2 < found.relative_errors[-1] > found.relative_errors[0] > 1e-6  # the kernel regime ends
    theta, cross = empirical_ntk(net, x), empirical_ntk(net, x_test, x)
    orders = permuted_labels(torch.arange(12), 4, generator=torch.Generator().manual_seed(2))
    draws = []
    for order in orders:
        p = KernelDynamics(theta, y[order], loss="softmax", lr=0.5, f0=net(x).detach()).at(40, cross, net(x_test))
        draws.append(1 - (p - found.actual[-1]).square().sum() / moved.square().sum())
    torch.testing.assert_close(found.null, torch.stack(draws).detach())
    trained = copy.deepcopy(net)
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.5)
    for _ in range(40):
        optimiser.zero_grad()
        F.cross_entropy(trained(x), y).backward()
        optimiser.step()
    after = empirical_ntk(trained, x_test, x).kernel
    assert found.drift == pytest.approx(float((after - cross.kernel).norm() / cross.kernel.norm()))
    generator = torch.Generator().manual_seed(2)
    permuted_labels(torch.arange(12), 4, generator=generator)
    rows = torch.randint(9, (200, 9), generator=generator)
    gap = (found.predicted[-1] - found.actual[-1]).square().sum(1)
    again = 1 - gap[rows].sum(1) / moved.square().sum(1)[rows].sum(1)
    assert found.interval == pytest.approx(again.quantile(torch.tensor([0.025, 0.975])).tolist())
    assert found.reliability == pytest.approx(signal_share(found.value, found.null, float(again.std())))


@pytest.mark.parametrize("outputs", ["full", "diagonal", "trace"])
def test_a_wide_network_is_predicted_and_labels_matter(outputs):
    # In NTK parameterisation outputs learn by kernels that are equal and uncoupled at infinite width.
    torch.manual_seed(0)

    class Wide(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.W = nn.Parameter(torch.randn(width, 4))
            self.V = nn.Parameter(torch.randn(2, width))

        def forward(self, x):
            return torch.tanh(x @ self.W.T / 2) @ self.V.T / self.W.shape[0] ** 0.5

    g = torch.Generator().manual_seed(1)
    x, x_test = torch.randn(16, 4, generator=g), torch.randn(40, 4, generator=g)
    y = (x[:, 0] > x[:, 0].median()).long()
    values = []
    for width in (16, 4096):
        found = predict_training(Wide(width), x, y, x_test, loss="softmax", lr=1.0, steps=30, outputs=outputs)
        values.append(1 - found.value)
    assert values[1] < (0.001 if outputs == "full" else 0.02)
    assert values[1] < values[0] / 4
    assert found.established
    assert found.value > float(found.null.max()) + 0.1
    assert found.drift < 0.1


def test_round_trip_and_few_inputs(tmp_path):
    net, (x, y, x_test) = mlp([4, 6, 3], nn.Tanh), task(m=3)
    found = predict_training(net, x, y, x_test, loss="softmax", lr=0.1, steps=3)
    assert (found.interval, found.reliability, found.established) == (None, None, False)
    found.save(tmp_path / "f.safetensors")
    after = TrainingPrediction.load(tmp_path / "f.safetensors")
    assert after.summary() == found.summary()
    assert torch.equal(after.predicted, found.predicted)
    assert after.steps == found.steps


def test_a_result_predicts():
    net, (x, y, x_test) = mlp([4, 6, 3], nn.Tanh), task()
    f0, f0_test = net(x).detach(), net(x_test).detach()
    theta, cross = empirical_ntk(net, x), empirical_ntk(net, x_test, x)
    training = KernelDynamics(theta, y, loss="softmax", lr=0.1, reduction="sum", f0=f0)
    options = {"loss": "softmax", "lr": 0.1, "reduction": "sum", "f0": f0}
    assert torch.equal(theta.predict(y, [1, 9], **options), training.at([1, 9]))
    assert torch.equal(theta.predict(y, 9, cross=cross, f0_test=f0_test, **options), training.at(9, cross, f0_test))


def test_no_null():
    net, (x, y, x_test) = mlp([4, 6, 3], nn.Tanh), task()
    without = predict_training(net, x, y, x_test, loss="softmax", lr=0.1, steps=3, n_null=0, drift=False, n_boot=0)
    assert (without.null, without.interval, without.drift) == (None, None, None)
    assert without.settings["no null because"] == "n_null is 0"
    same = predict_training(net, x, torch.zeros(8).long(), x_test, loss="softmax", lr=0.1, steps=3)
    assert same.null is None
    assert not same.established
    assert same.settings["no null because"] == "all targets are equal"


def test_single_samples():
    net, (x, _, x_test) = mlp([4, 6, 1], nn.Tanh), task()
    found = predict_training(net, x[:1], torch.tensor([1]), x_test[:1], loss="logistic", lr=1e-3, steps=10)
    assert found.predicted.shape == (1, 1, 1)
    assert found.value > 0.999


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (OptionError, "steps=0 is not known. It can be 'a number of steps, at least 1', 'several of them'.", {"steps": 0}),
        (OptionError, "steps=[1, 2.5] is not known. It can be 'a number of steps, at least 1', 'several of them'.", {"steps": [1, 2.5]}),
        (OptionError, "steps=[] is not known. It can be 'a number of steps, at least 1', 'several of them'.", {"steps": []}),
        (OptionError, "n_null=-1 is not known. It can be 'a number of draws, 0 for none'.", {"n_null": -1}),
        (OptionError, "outputs='pseudo' is not known. It can be 'full', 'trace', 'diagonal'.", {"outputs": "pseudo"}),
        (OptionError, "loss='nll' is not known. It can be 'squared', 'logistic', 'softmax'.", {"loss": "nll"}),
    ],
)
def test_refusals(error, message, options):
    net, (x, y, x_test) = mlp([4, 6, 3], nn.Tanh), task()
    with pytest.raises(error) as caught:
        predict_training(net, x, y, x_test, **{"loss": "softmax", "lr": 0.1, "steps": 2} | options)
    assert str(caught.value) == message


def test_more_refusals():
    net, (x, y, x_test) = mlp([4, 6, 3], nn.Tanh), task()
    with pytest.raises(OptionError) as caught:
        linearize(nn.Linear(4, 1, bias=False))(x, {"bias": torch.zeros(1)})
    assert str(caught.value) == "change='bias' is not known. It can be 'weight'."
    with pytest.raises(NoParametersError):
        linearize(nn.ReLU())
    dead = nn.Linear(4, 3, bias=False)
    with pytest.raises(ShapeError) as still:
        predict_training(dead, x, y, torch.zeros_like(x_test), loss="softmax", lr=0.1, steps=2)
    assert str(still.value) == "The outputs of the network on x_test are the same after 2 steps as before: there is nothing to predict."
    with pytest.raises(ShapeError) as wrong:
        predict_training(net, x, y[:-1], x_test, loss="softmax", lr=0.1, steps=2)
    assert str(wrong.value) == "y has shape [7]. For 8 samples loss='softmax' takes class indices, as integers, [8]."
    assert math.isfinite(predict_training(net, x, y, x_test, loss="softmax", lr=0.1, steps=2).value)
