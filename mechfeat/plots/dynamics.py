"""Predicted against actual training."""

from collections.abc import Mapping

import plotly.graph_objects as go

from mechfeat.errors import OptionError
from mechfeat.ntk import TrainingPrediction
from mechfeat.plots.style import BLUE, GREEN, GREY, ORANGE, RED, array, figure


def predicted_outputs(finding: TrainingPrediction, *, step: int | None = None) -> go.Figure:
    """What training adds to each output of each held-out input, predicted against actual, with the line where they are equal.

    What was there before training is left out of both: with it even a prediction of no movement would look right.

    Args:
        finding: Predicted and actual outputs.
        step: At which of its numbers of steps; by default the last one given.

    Returns:
        A point for each output of each input.

    Raises:
        OptionError: There is no such number of steps.
    """
    at = finding.steps[-1] if step is None else step
    if at not in finding.steps:
        raise OptionError("step", step, finding.steps)
    i = finding.steps.index(at)
    predicted, actual = (array((f[i] - finding.initial).flatten()) for f in (finding.predicted, finding.actual))
    low, high = float(min(predicted.min(), actual.min())), float(max(predicted.max(), actual.max()))
    points = go.Scatter(
        x=predicted, y=actual, mode="markers", name="output of a held-out input", marker={"size": 5, "color": BLUE, "opacity": 0.5}
    )
    same = go.Scatter(x=[low, high], y=[low, high], mode="lines", name="equal", line={"color": ORANGE, "width": 1.5})
    fig = figure(
        [points, same],
        title=f"After {at} steps the kernel foresees {float(finding.explained[i]):.1%} of the movement",
        x="predicted change of the output",
        y="actual change",
        height=440,
    )
    fig.update_xaxes(constrain="domain")  # equal scales by a narrower figure, not by a wider range
    fig.update_yaxes(scaleanchor="x", scaleratio=1, constrain="domain")
    return fig


def prediction_error(findings: Mapping[str, TrainingPrediction]) -> go.Figure:
    """Error of the prediction over the course of training: where it leaves the kernel regime.

    Args:
        findings: By name, such as the width of the network.

    Returns:
        A line for each, on logarithmic axes.
    """
    lines = []
    for (name, finding), colour in zip(findings.items(), (BLUE, RED, GREEN, ORANGE, GREY) * len(findings)):
        order = sorted(range(len(finding.steps)), key=finding.steps.__getitem__)
        errors = array(finding.relative_errors[order])
        lines.append(
            go.Scatter(
                x=[finding.steps[k] for k in order],
                y=errors,
                mode="lines+markers",
                name=name,
                line={"color": colour, "width": 2},
                marker={"size": 6},
            )
        )
    fig = figure(
        lines,
        title="Error of the kernel's prediction",
        x="steps of gradient descent",
        y="error over movement",
        height=400,
        showlegend=True,
    )
    shown = sorted({k for finding in findings.values() for k in finding.steps})
    fig.update_xaxes(type="log", tickvals=shown, ticktext=[f"{k:,}" for k in shown])
    marks = [m * 10.0**e for e in range(-7, 2) for m in (1, 3)]
    fig.update_yaxes(type="log", tickvals=marks, ticktext=[f"{100 * m:g} %" for m in marks])
    return fig
