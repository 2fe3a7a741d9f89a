"""Training of toy models: spectra of the Hessian, falls of the loss, hysteresis."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from mechfeat.errors import ShapeError
from mechfeat.plots.style import BLUE, GREY, ORANGE, RED, array, figure
from mechfeat.plots.toy import movie
from mechfeat.superposition import HessianSpectrum, Hysteresis, Run, feature_dimensionality


def spectrum_movie(spectrum: HessianSpectrum, *, threshold: int | float = 1e-6) -> go.Figure:
    """Eigenvalues of the Hessian over training, with a slider; red ones are directions of escape.

    Args:
        spectrum: From :func:`mechfeat.superposition.run_spectrum`.
        threshold: Size above which a negative eigenvalue is drawn as one.

    Returns:
        Eigenvalues by rank, on an axis that is linear near zero and logarithmic beyond.

    Raises:
        ShapeError: The spectrum has no axis of steps.
    """
    if spectrum.steps is None or spectrum.eigenvalues.ndim != 2:
        raise ShapeError(
            f"The eigenvalues have shape {list(spectrum.eigenvalues.shape)}. A movie needs [frame parameter] with their steps."
        )
    # arsinh is linear near 0 and logarithmic far from it, on both sides.
    unit = float(threshold)
    heights = torch.asinh(spectrum.eigenvalues / unit)
    marks = sorted({s * 10.0**e for e in range(-6, 2) for s in (-1, 1)} | {0.0})
    low, high = float(heights.min()), float(heights.max())
    ticks = [(v, float(torch.asinh(torch.tensor(v / unit)))) for v in marks]
    ticks = [(v, h) for v, h in ticks if low - 1 <= h <= high + 1]

    def trace(values: Any, height: Any) -> go.Scatter:
        colours = [RED if v < -threshold else GREY if v <= threshold else BLUE for v in values.tolist()]
        names = [f"{v:.3g}" for v in values.tolist()]
        return go.Scatter(y=array(height), mode="markers", marker={"size": 6, "color": colours}, text=names, hoverinfo="text")

    frames = [[trace(v, h)] for v, h in zip(spectrum.eigenvalues, heights)]
    negative = spectrum.n_negative(threshold).tolist()
    labels = [f"{t:,} ({k} negative)" for t, k in zip(spectrum.steps.tolist(), negative)]
    fig = figure(frames[0], title="Spectrum of the Hessian", x="eigenvalue, by rank", y="eigenvalue", height=520)
    fig.update_yaxes(tickvals=[h for _, h in ticks], ticktext=[f"{v:g}" for v, _ in ticks], range=[low - 0.5, high + 0.5])
    return movie(fig, frames, labels, prefix="step", indices=[0])


def loss_events(run: Run, *, instance: int = 0, events: Sequence[Any] | None = None) -> go.Figure:
    """The loss of one instance, the dimensionality of each feature below it, and bands where the loss falls suddenly.

    Args:
        run: A run.
        instance: Which instance.
        events: Falls to mark; those that ``run.events()`` finds by default.

    Returns:
        Two panels with one axis of steps.

    Raises:
        ShapeError: There is no such instance.
    """
    if not 0 <= instance < len(run.seeds):
        raise ShapeError(f"instance={instance}, and the run has instances 0 to {len(run.seeds) - 1}.")
    found = [e for e in (run.events() if events is None else events) if e.instance == instance]
    grid = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.4, 0.6])
    fig = figure(
        grid,
        title=f"{len(found)} sudden fall{'' if len(found) == 1 else 's'} of the loss, and the features that move",
        height=560,
        showlegend=False,
    )
    line = {"color": BLUE, "width": 2}
    fig.add_trace(go.Scatter(x=array(run.loss_steps), y=array(run.losses[:, instance]), mode="lines", line=line), row=1, col=1)
    D = feature_dimensionality(run.weights[:, instance])
    movers = {i for e in found for i in e.moved}
    for i in range(D.shape[1]):
        colour, width = (ORANGE, 1.8) if i in movers else (GREY, 0.8)
        fig.add_trace(
            go.Scatter(x=array(run.steps), y=array(D[:, i]), mode="lines", name=f"feature {i}", line={"color": colour, "width": width}),
            row=2,
            col=1,
        )
    for e in found:
        fig.add_vrect(x0=e.start, x1=e.stop, fillcolor=RED, opacity=0.16, line_width=0)
    fig.update_yaxes(title="loss", type="log", row=1, col=1)
    fig.update_yaxes(title="dimensionality", rangemode="tozero", row=2, col=1)
    fig.update_xaxes(title="step", row=2, col=1)
    return fig


def hysteresis_loop(loop: Hysteresis, *, x: str = "level", y: str = "observable") -> go.Figure:
    """The way out and the way back of a quasi-static sweep, and the control without memory.

    Args:
        loop: From :func:`mechfeat.superposition.hysteresis`.
        x: What the level is, with its unit.
        y: What is observed.

    Returns:
        Three lines and the threshold.
    """
    levels = array(loop.levels)
    lines = [
        go.Scatter(x=levels, y=array(loop.out), mode="lines+markers", name="way out", line={"color": BLUE, "width": 2}),
        go.Scatter(x=levels, y=array(loop.back), mode="lines+markers", name="way back", line={"color": RED, "width": 2}),
        go.Scatter(
            x=levels,
            y=array(loop.control_out),
            mode="lines+markers",
            name="without memory",
            line={"color": GREY, "width": 1.5, "dash": "dot"},
        ),
    ]
    width = "does not come back" if loop.width == float("inf") else f"is {loop.width:.3g} wide"
    title = f"The loop {width}; without memory {loop.control_width:.3g}"
    fig = figure(lines, title=title, x=x, y=y, height=420, showlegend=True)
    fig.add_hline(y=loop.threshold, line={"dash": "dash", "width": 1, "color": GREY})
    return fig
