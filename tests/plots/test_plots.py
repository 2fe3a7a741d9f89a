"""Figures are functions of findings: what is drawn is what the finding holds."""

import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from mechfeat import circuits, evidence, ntk, plots, probes, superposition
from mechfeat.errors import CircuitError, OptionError, ShapeError
from mechfeat.features import Finding, Samples


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()


@pytest.fixture(scope="module")
def x():
    return torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def direction():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2 == 0
    rows = torch.randn(40, 6, generator=g, dtype=torch.float64) + labels[:, None]
    return probes.difference_of_means(Samples(rows, torch.arange(40), "1", 40), labels, name="planted", n_null=30, n_boot=10)


def data(fig, kind):
    return [t for t in fig.data if isinstance(t, kind)]


def test_null_distribution_draws_null_value_and_interval(direction):
    fig = plots.null_distribution(direction, label="AUROC")
    torch.testing.assert_close(torch.tensor(data(fig, go.Histogram)[0].x), direction.null.float())
    lines = [s for s in fig.layout.shapes if s.type == "line"]
    bands = [s for s in fig.layout.shapes if s.type == "rect"]
    assert lines[0].x0 == direction.value
    assert (bands[0].x0, bands[0].x1) == direction.interval
    assert fig.layout.title.text.startswith("Established: AUROC")


def test_null_distribution_needs_a_null():
    with pytest.raises(ShapeError) as error:
        plots.null_distribution(Finding(value=1.0, n=3, seed=0))
    assert str(error.value) == "This finding has no null distribution to draw. Compute it with n_null > 0."


def test_projection_keeps_the_groups_apart(direction):
    without, having = data(plots.projection(direction), go.Histogram)
    torch.testing.assert_close(torch.tensor(having.x), direction.scores[direction.labels].float())
    torch.testing.assert_close(torch.tensor(without.x), direction.scores[~direction.labels].float())


def test_ablation_shows_the_value(direction, net, x):
    found = evidence.ablation_effect(net, direction.feature, x, lambda y: y[:, 0], n_null=5)
    fig = plots.ablation(found, metric="logit")
    assert fig.layout.shapes[-1].x0 == found.value
    assert fig.layout.title.text.startswith("Removing planted: logit falls by")


def test_circuit_figures_hold_the_weights(net, x):
    found = circuits.direct_weights(net, "1", "2", x, n_null=3, n_boot=3)
    maps = data(plots.circuit_weights(found, unit=2, k=3), go.Heatmap)
    for trace, (channel, _) in zip(maps, found.strongest(2, 3), strict=True):
        torch.testing.assert_close(torch.tensor(trace.z), found.weights[2, channel].float())
    (share,) = data(plots.contributions(found), go.Heatmap)
    torch.testing.assert_close(torch.tensor(share.z).sum(1), torch.ones(4, dtype=torch.float32))
    linear = circuits.direct_weights(net, "2", "4", x, n_null=3, n_boot=3)
    assert len(data(plots.circuit_weights(linear, k=2), go.Heatmap)) == 2
    flat = circuits.direct_weights(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "0", "1", torch.randn(4, 3), n_null=3, n_boot=3)
    assert data(plots.circuit_weights(flat), go.Heatmap)[0].z.shape == (1, 4)
    with pytest.raises(CircuitError):
        plots.circuit_weights(found, unit=9)


def test_superposition_figures_hold_the_finding():
    found = superposition.measure(torch.randn(6, 3), n_null=5, n_boot=5)
    (line,) = data(plots.dimensionality(found), go.Scatter)
    torch.testing.assert_close(torch.tensor(line.y), found.per_feature.sort(descending=True).values.float())
    (heat,) = data(plots.overlaps(found), go.Heatmap)
    torch.testing.assert_close(torch.tensor(heat.z), found.gram.float())


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_kernel_figures(net, x, outputs):
    result = ntk.empirical_ntk(net, x, outputs=outputs, layerwise=True)
    trace = ntk.empirical_ntk(net, x, outputs="trace").kernel
    (heat,) = data(plots.kernel_heatmap(result), go.Heatmap)
    torch.testing.assert_close(torch.tensor(heat.z), trace.float())
    labels = torch.tensor([1, 0] * 6)
    (sorted_,) = data(plots.kernel_heatmap(result, labels=labels), go.Heatmap)
    order = labels.argsort(stable=True)
    torch.testing.assert_close(torch.tensor(sorted_.z), trace[order][:, order].float())
    (bars,) = data(plots.layer_share(result), go.Bar)
    assert sum(bars.x) == pytest.approx(1.0)
    if outputs != "diagonal":
        (line,) = data(plots.spectrum(result), go.Scatter)
        assert list(line.y) == sorted(line.y, reverse=True)


def test_kernel_figure_errors(net, x):
    result = ntk.empirical_ntk(net, x, outputs="trace")
    with pytest.raises(ShapeError) as error:
        plots.layer_share(result)
    assert str(error.value) == "This result holds no layer kernels. Compute it with layerwise=True."
    with pytest.raises(ShapeError) as error:
        plots.kernel_heatmap(result, labels=torch.arange(3))
    assert str(error.value) == "labels have shape (3,) for a kernel of (12, 12). Give one label a sample of a square kernel."


@pytest.fixture(scope="module")
def trained(net, x):
    return ntk.predict_training(net, x[:8], torch.arange(8) % 3, x[8:], loss="softmax", lr=0.05, steps=[10, 1], n_null=3, n_boot=3)


@pytest.mark.parametrize(("step", "i"), [(None, 1), (10, 0), (1, 1)])
def test_predicted_outputs_are_changes(trained, step, i):
    points, line = data(plots.predicted_outputs(trained, step=step), go.Scatter)
    torch.testing.assert_close(torch.tensor(points.x), (trained.predicted[i] - trained.initial).flatten().float())
    torch.testing.assert_close(torch.tensor(points.y), (trained.actual[i] - trained.initial).flatten().float())
    assert list(line.x) == list(line.y)
    assert line.x[0] <= min(points.x)
    assert line.x[1] >= max(points.x)


def test_predicted_outputs_need_a_step_that_was_compared(trained):
    with pytest.raises(OptionError) as error:
        plots.predicted_outputs(trained, step=2)
    assert str(error.value) == "step=2 is not known. It can be 10, 1."


def test_prediction_error_goes_along_the_steps(trained):
    one, two = data(plots.prediction_error({"a": trained, "b": trained}), go.Scatter)
    assert (one.name, two.name, list(one.x)) == ("a", "b", [1, 10])
    torch.testing.assert_close(torch.tensor(one.y), trained.relative_errors.flip(0).float())
