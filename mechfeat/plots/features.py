"""Directions: how they separate inputs, and what removing them does."""

import plotly.graph_objects as go

from mechfeat.evidence import AblationFinding
from mechfeat.plots.finding import null_distribution
from mechfeat.plots.style import GREY, ORANGE, RED, array, figure
from mechfeat.probes import DirectionFinding


def projection(finding: DirectionFinding) -> go.Figure:
    """Held-out samples along the direction, those with the property apart from those without.

    Args:
        finding: From a probe.

    Returns:
        The figure.
    """
    groups = ((False, "without the property", GREY), (True, "with the property", ORANGE))
    low, high = float(finding.scores.min()), float(finding.scores.max())
    bins = {"start": low, "end": high + 1e-9 * abs(high), "size": (high - low) / 40 or 1.0}  # the same for both groups
    bars = [
        go.Histogram(
            x=array(finding.scores[finding.labels == kind]), name=name, marker_color=colour, opacity=0.7, xbins=bins, histnorm="probability"
        )
        for kind, name, colour in groups
    ]
    name = finding.feature.name or "the feature"
    return figure(
        bars,
        title=f"Held-out inputs along {name} at {finding.feature.hook}: AUROC {finding.value:.3f}",
        x="projection [activation units]",
        y="share of group",
        barmode="overlay",
    )


def ablation(finding: AblationFinding, *, metric: str = "metric") -> go.Figure:
    """Mean effect of removing the feature against removing random directions.

    Args:
        finding: From :func:`mechfeat.evidence.ablation_effect`.
        metric: What fell, with its unit.

    Returns:
        The figure.
    """
    name = finding.feature.name or "the feature"
    title = f"Removing {name}: {metric} falls by {finding.value:.3g}"
    if finding.null is not None:
        title += f"; random directions by {float(finding.null.median()):.3g}"
    fig = null_distribution(finding, label=f"fall of {metric}", title=title)
    fig.update_traces(marker_color=GREY)
    fig.update_shapes(line_color=RED, selector={"type": "line"})
    return fig
