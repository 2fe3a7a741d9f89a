"""Predicted movement of probes against literal Jacobians, and against training."""

import copy

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import HookNameError, OptionError, ShapeError
from mechfeat.models import mlp
from mechfeat.ntk import KernelDynamics, RichRegimeWarning, empirical_ntk, predict_movement, predict_training


def task(n=8, o=3):
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, generator=g), torch.randint(0, o, (n,), generator=g)


def directions(hook, n, channels):
    return mf.FeatureSet(hook, torch.randn(n, channels, generator=torch.Generator().manual_seed(1)))


def jacobian(net, outputs):
    rows = []
    for value in outputs.flatten():
        found = torch.autograd.grad(value, list(net.parameters()), retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(net.parameters(), found)]))
    return torch.stack(rows)


@pytest.mark.parametrize("loss", ["softmax", "squared"])
def test_predicted_movement_is_the_product_of_jacobians(loss):
    net, (x, y) = mlp([4, 16, 3], nn.Tanh), task()
    y = y if loss == "softmax" else torch.randn(8, 3)
    probes, on = directions("1", 6, 16), torch.randn(5, 4)
    found = predict_movement(net, x, y, probes, on=on, steps=[1, 7], lr=0.05, loss=loss, n_null=0)
    unit = probes.directions / probes.directions.norm(dim=1, keepdim=True)
    values = (net[:2](on) @ unit.T).mean(0)
    torch.testing.assert_close(found.initial, values.detach())
    training = KernelDynamics(empirical_ntk(net, x), y, loss=loss, lr=0.05, f0=net(x).detach())
    J, Jp = jacobian(net, net(x)), jacobian(net, values)
    for i, step in enumerate((1, 7)):
        torch.testing.assert_close(found.predicted[i], Jp @ J.T @ training.coefficients(step).flatten())
    trained = copy.deepcopy(net)
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.05)
    for _ in range(7):
        optimiser.zero_grad()
        f = trained(x)
        (nn.functional.cross_entropy(f, y) if loss == "softmax" else 0.5 * (f - y).square().sum() / 8).backward()
        optimiser.step()
    torch.testing.assert_close(found.actual[1], (trained[:2](on) @ unit.T).mean(0).detach() - values.detach())
    assert found.value > 0.9
    assert (found.n, found.steps, found.null) == (6, (1, 7), None)


def test_outputs_as_probes_are_predict_training():
    net, (x, y), x_test = mlp([4, 12, 3], nn.Tanh), task(), torch.randn(6, 4)
    moved = predict_movement(net, x, y, x_test, steps=[3, 20], lr=0.02, n_null=3, seed=2)
    other = predict_training(net, x, y, x_test, loss="softmax", lr=0.02, steps=[3, 20], n_null=3, seed=2)
    torch.testing.assert_close(moved.predicted, (other.predicted - other.initial).flatten(1))
    torch.testing.assert_close(moved.actual, (other.actual - other.initial).flatten(1))
    assert moved.names[4] == "input 1, output 1"
    assert moved.null.numel() == 3


def test_the_verdict_is_on_the_number_of_steps_given_last():
    net, (x, y), probes = mlp([4, 16, 3], nn.Tanh), task(), directions("1", 6, 16)
    last, alone = (predict_movement(net, x, y, probes, steps=steps, lr=0.02, n_null=0) for steps in ([9, 2], 2))
    assert last.value == pytest.approx(alone.value)
    assert last.drift == pytest.approx(alone.drift)
    lines = str(alone).splitlines()
    assert any(line.startswith("cross-talk ± 0") for line in lines)
    assert lines[-1].startswith("kernel regime: the kernel moved by")


def test_each_position_is_a_probe_of_its_own():
    net = mf.models.DigitsCNN((4, 6), 8, generator=torch.Generator().manual_seed(0)).double()
    d = mf.data.digits()
    x, y, probes = d.x_train[:12], d.y_train[:12], directions("conv2", 3, 6)
    each, mean = (predict_movement(net, x, y, probes, steps=2, lr=1e-3, positions=p, n_null=0, drift=False) for p in ("each", "mean"))
    assert each.predicted.shape == (1, 3 * 64)
    torch.testing.assert_close(each.predicted.view(1, 64, 3).mean(1), mean.predicted)
    torch.testing.assert_close(each.actual.view(1, 64, 3).mean(1), mean.actual)
    assert each.names[4] == "conv2[1] at position 1"
    assert (each.drift, each.regime) == (None, "not measured")


def test_the_model_is_left_as_it_was_and_a_linear_one_is_exact():
    net, (x, y) = nn.Linear(4, 3), task()
    before = copy.deepcopy(net.state_dict())
    found = predict_movement(net, x, y, torch.randn(5, 4), steps=30, lr=0.1)
    torch.testing.assert_close(found.predicted, found.actual, rtol=0, atol=1e-12)
    assert found.value == pytest.approx(1)
    assert found.drift < 1e-12
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_probes_below_the_trained_part_stay():
    net, (x, y) = mlp([4, 8, 3], nn.Tanh), task()
    net[0].requires_grad_(False)
    with pytest.raises(ShapeError) as caught:
        predict_movement(net, x, y, directions("1", 3, 8), steps=3, lr=0.1)
    assert str(caught.value) == (
        "No probe at '1' depends on a trainable parameter: nothing can move there. Give directions after the first trained layer."
    )


def digits(width, lr, seed=0):
    torch.set_default_dtype(torch.float32)  # the fixture restores it
    net = mf.models.DigitsCNN((width, width), 2 * width, generator=torch.Generator().manual_seed(seed)).eval()
    d = mf.data.digits()
    probes = mf.FeatureSet("conv2", torch.randn(50, width, generator=torch.Generator().manual_seed(1)))
    return predict_movement(net, d.x_train[:100], d.y_train[:100], probes, steps=[5, 20], lr=lr)


@pytest.mark.full
def test_fifty_directions_of_the_digits_cnn():
    """Twenty steps in the kernel regime: Pearson ≥ 0.95, above predictions from shuffled labels; beyond it the verdict is rich."""
    found = digits(64, 3e-4)
    assert found.value >= 0.95
    assert found.null.max() < found.value
    assert found.established
    assert found.drift < 0.1
    assert found.regime == "kernel regime"
    with pytest.warns(RichRegimeWarning):
        left = digits(64, 5e-3)
    assert left.regime == "rich"
    assert left.value < 0.95
    assert left.relative_errors[-1] > found.relative_errors[-1]


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    net, (x, y) = mlp([4, 8, 3], nn.Tanh), task()
    probes = directions("1", 3, 8)
    for error, message, options in (
        (OptionError, "steps=0 is not known. It can be 'a number of steps, at least 1', 'several of them'.", {"steps": 0}),
        (OptionError, "positions='all' is not known. It can be 'mean', 'each'.", {"positions": "all"}),
        (OptionError, "n_null=-1 is not known. It can be 'a number of draws, 0 for none'.", {"n_null": -1}),
        (
            ShapeError,
            "2 directions at '1', of which none may be zero. Give directions with a length.",
            {"probes": mf.FeatureSet("1", torch.tensor([[1.0] + [0.0] * 7, [0.0] * 8]))},
        ),
        (
            ShapeError,
            "The directions at '1' have 5 channels, and the activation 8.",
            {"probes": mf.FeatureSet("1", torch.ones(2, 5))},
        ),
    ):
        with pytest.raises(error) as caught:
            predict_movement(net, x, y, **{"probes": probes, "steps": 2, "lr": 0.1} | options)
        assert str(caught.value) == message
    with pytest.raises(HookNameError):
        predict_movement(net, x, y, mf.FeatureSet("relu", torch.ones(2, 8)), steps=2, lr=0.1)
