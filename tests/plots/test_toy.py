"""Figures of toy models: what is drawn is what the results hold, and each can be written without a display."""

import plotly.graph_objects as go
import pytest
import torch

from mechfeat import plots
from mechfeat.data import OneHot
from mechfeat.errors import ShapeError
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import (
    NAMED_FRACTIONS,
    Hysteresis,
    Record,
    direction_curve,
    feature_dimensionality,
    feature_graph,
    feature_norm,
    fit,
    hessian_spectrum,
    interference,
    phase_diagram,
    polytope,
    run_spectrum,
    superposition_boundary,
)


@pytest.fixture(scope="module")
def runs():
    record = Record(frames=5, losses=20)
    return {m: fit(ToyBank(ToySpec(7, m), 2, dtype=torch.float64), OneHot(7), steps=40, lr=1.0, record=record) for m in (1, 2, 3, 4)}


def data(fig, kind):
    return [t for t in fig.data if isinstance(t, kind)]


def same(drawn, want):
    torch.testing.assert_close(torch.tensor(drawn, dtype=torch.float32), want.float().cpu())


@pytest.mark.parametrize("m", [2, 3])
def test_the_movie_shows_every_frame(runs, m):
    run = runs[m]
    fig = plots.weights_movie(run, instance=1)
    assert [f.name for f in fig.frames] == ["0", "10", "20", "30", "40"]
    assert [s.label for s in fig.layout.sliders[0].steps] == [f.name for f in fig.frames]
    for frame, W in zip(fig.frames, run.weights[:, 1]):
        _, ends = frame.data
        for i, axis in enumerate("xyz"[:m]):
            same(getattr(ends, axis), W[:, i])
        same(ends.marker.color, interference(W))
    same(fig.data[1].x, run.weights[0, 1, :, 0])


def test_the_movie_of_many_dimensions_is_of_overlaps(runs):
    fig = plots.weights_movie(runs[4])
    assert len(fig.frames) == 5
    assert isinstance(fig.frames[2].data[0], go.Heatmap)
    same(fig.frames[4].data[0].z.diagonal(), runs[4].weights[-1, 0].norm(dim=-1) / runs[4].weights[-1, 0].norm(dim=-1).max())


def test_a_movie_needs_two_dimensions(runs):
    with pytest.raises(ShapeError) as error:
        plots.weights_movie(runs[1])
    assert str(error.value) == "instance=0 of 2, in 1 hidden dimensions. Give an instance of the run, with two dimensions or more."


def test_gram_and_bias():
    W, b = torch.randn(5, 2), torch.randn(5)
    product, bias = data(plots.gram(W, b), go.Heatmap)
    same(product.z, W @ W.T)
    same(bias.z[:, 0], b)
    (alone,) = data(plots.gram(W), go.Heatmap)
    same(alone.z, W @ W.T)


def test_norms_and_interference():
    W = torch.randn(6, 3)
    (bars,) = data(plots.norm_bars(W), go.Bar)
    same(bars.y, feature_norm(W))
    same(bars.marker.color, interference(W))


def test_stacks_hold_all_weights():
    W = torch.randn(6, 4)
    bars = data(plots.stack_plot(W), go.Bar)
    total = torch.stack([torch.tensor(t.y).abs() for t in bars]).sum(0)
    torch.testing.assert_close(total, W.abs().sum(0).float())
    for t in bars:
        same(t.y, W.gather(0, torch.tensor(t.marker.color).long()[None])[0])
    monosemantic = data(plots.stack_plot(torch.eye(3)), go.Bar)
    assert len(monosemantic) == 1


def test_graph_shows_features_edges_and_names():
    graph = feature_graph(torch.block_diag(polytope("pentagon"), polytope("digon")))
    fig = plots.feature_graph_plot(graph)
    *lines, points = data(fig, go.Scatter)
    assert len(lines) == len(graph.edges) == 11
    assert len(points.x) == 7
    assert [a.text for a in fig.layout.annotations] == ["pentagon<br>D = 0.4", "digon<br>D = 0.5"]
    assert fig.layout.title.text == "1 x pentagon + 1 x digon"
    plots.feature_graph_plot(feature_graph(torch.zeros(2, 2)))


def test_dimensionalities_with_named_lines(unchecked):
    W = torch.stack([torch.eye(4), torch.cat([polytope("digon"), -polytope("digon")], 1).repeat(2, 2)])
    W[0, 3] = 0.1  # not represented
    fig = plots.dimensionality_scatter(W, torch.tensor([1.0, 10.0]))
    points, mean = data(fig, go.Scatter)
    D = feature_dimensionality(W)
    same(points.y, torch.cat([D[0, :3], D[1]]))
    same(mean.y, torch.stack([D[0, :3].mean(), D[1].mean()]))
    assert {s.y0 for s in fig.layout.shapes} == set(NAMED_FRACTIONS.values())
    with pytest.raises(ShapeError) as error:
        plots.dimensionality_scatter(W, torch.ones(3))
    assert str(error.value) == "3 levels for 2 sets of weights. Give one a set."


def test_phase_map_with_boundary_and_disagreement():
    diagram = phase_diagram(importance=torch.tensor([0.2, 1.0]), density=torch.tensor([0.9, 0.1]), n_models=1, steps=2)
    fig = plots.phase_map(diagram)
    (heat,) = data(fig, go.Heatmap)
    line, wrong = data(fig, go.Scatter)
    assert (torch.tensor(heat.z) == diagram.phase).all()
    same(line.y, superposition_boundary(torch.tensor(line.x, dtype=torch.float64)))
    assert len(wrong.x) == int((~diagram.agrees).sum())


def test_counts_against_the_angle():
    W = torch.stack([polytope("pentagon"), polytope("pentagon") * 2])
    fig = plots.direction_counts(direction_curve(W, [1, 50, 80]), instance=1)
    (line,) = data(fig, go.Scatter)
    assert list(line.y) == [5, 5, 1]
    assert len(data(plots.direction_counts({r: direction_curve(W[0], [1], rule=r) for r in ("complete", "greedy")}), go.Scatter)) == 2


def test_spectrum_movie(runs):
    spectrum = run_spectrum(runs[2])
    fig = plots.spectrum_movie(spectrum)
    for frame, values in zip(fig.frames, spectrum.eigenvalues):
        same(frame.data[0].y, torch.asinh(values / 1e-6))
        assert sum(c == "#D55E00" for c in frame.data[0].marker.color) == int((values < -1e-6).sum())
    with pytest.raises(ShapeError) as error:
        plots.spectrum_movie(hessian_spectrum(lambda v: v["x"].square().sum(), {"x": torch.ones(2)}))
    assert str(error.value) == "The eigenvalues have shape [2]. A movie needs [frame parameter] with their steps."


def test_loss_events(runs):
    events = runs[2].events()
    fig = plots.loss_events(runs[2])
    loss, *lines = data(fig, go.Scatter)
    same(loss.y, runs[2].losses[:, 0])
    assert len(lines) == 7
    same(lines[3].y, feature_dimensionality(runs[2].weights[:, 0])[:, 3])
    mine = [e for e in events if e.instance == 0]
    bands = {(s.x0, s.x1) for s in fig.layout.shapes}
    assert bands == {(e.start, e.stop) for e in mine}
    assert plots.loss_events(runs[2], events=[]).layout.shapes == ()
    with pytest.raises(ShapeError) as error:
        plots.loss_events(runs[2], instance=2)
    assert str(error.value) == "instance=2, and the run has instances 0 to 1."


def loop():
    levels, out, back = torch.arange(3.0), torch.tensor([0.0, 0.2, 1.0]), torch.tensor([0.4, 0.8, 1.0])
    return Hysteresis(levels, out, back, torch.zeros(3), torch.zeros(3), 0.5)


def test_the_loop():
    fig = plots.hysteresis_loop(loop())
    out, back, control = data(fig, go.Scatter)
    same(out.y, loop().out)
    same(back.y, loop().back)
    same(control.y, loop().control_out)
    assert fig.layout.title.text == f"The loop is {loop().width:.3g} wide; without memory 0"


def test_each_figure_is_written_without_a_display(runs, tmp_path, monkeypatch):
    # Check 15.
    monkeypatch.delenv("DISPLAY", raising=False)
    W = runs[2].weights[-1, 0]
    figures = {
        "weights_movie": plots.weights_movie(runs[2]),
        "gram": plots.gram(W),
        "norm_bars": plots.norm_bars(W),
        "stack_plot": plots.stack_plot(W),
        "feature_graph_plot": plots.feature_graph_plot(feature_graph(W)),
        "dimensionality_scatter": plots.dimensionality_scatter(runs[2].weights[:, 0], torch.arange(1.0, 6.0)),
        "phase_map": plots.phase_map(phase_diagram(importance=torch.ones(1), density=torch.ones(1), n_models=1, steps=1)),
        "direction_counts": plots.direction_counts(direction_curve(W, [1, 20])),
        "spectrum_movie": plots.spectrum_movie(run_spectrum(runs[2])),
        "loss_events": plots.loss_events(runs[2]),
        "hysteresis_loop": plots.hysteresis_loop(loop()),
    }
    for name, fig in figures.items():
        fig.write_html(tmp_path / f"{name}.html", include_plotlyjs=False)
        assert (tmp_path / f"{name}.html").stat().st_size > 1000
