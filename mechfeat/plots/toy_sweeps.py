"""Sweeps of toy models: dimensionalities against sparsity, phase maps, how many directions there are."""

from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.plots.style import BLUE, GREEN, GREY, ORANGE, RED, array, figure
from mechfeat.superposition import (
    NAMED_FRACTIONS,
    PHASES,
    DirectionCurve,
    PhaseDiagram,
    feature_dimensionality,
    feature_norm,
    superposition_boundary,
)


def dimensionality_scatter(
    W: Float[Tensor, "level feature hidden"],
    levels: Float[Tensor, " level"],
    *,
    x: str = "1 / (1 − sparsity)",
    min_norm: int | float = 0.5,
) -> go.Figure:
    """Dimensionality of every represented feature against a setting, with the fractions of known polytopes as lines.

    Args:
        W: Weights at each level.
        levels: The setting, above 0.
        x: What it is.
        min_norm: Features shorter than this are not drawn, since they are not represented.

    Returns:
        Points, on a logarithmic axis, with the mean over features as a line.

    Raises:
        ShapeError: There is not one level for each set of weights.
    """
    if len(levels) != len(W):
        raise ShapeError(f"{len(levels)} levels for {len(W)} sets of weights. Give one a set.")
    D, shown = feature_dimensionality(W), feature_norm(W) >= min_norm
    spread = torch.linspace(-0.35, 0.35, W.shape[1], dtype=torch.float64)
    logs = levels.double().log()
    gap = float(logs.diff().abs().min()) if len(levels) > 1 else 0.1
    at = (logs[:, None] + gap * spread).exp()  # features of one level beside each other, in their order
    share = torch.where(shown, D, 0.0).sum(1) / shown.sum(1).clamp_min(1)
    points = go.Scatter(
        x=array(at[shown]), y=array(D[shown]), mode="markers", name="feature", marker={"size": 4, "color": BLUE, "opacity": 0.45}
    )
    mean = go.Scatter(x=array(levels), y=array(share), mode="lines", name="mean", line={"color": ORANGE, "width": 2})
    fig = figure([points, mean], title="Share of a dimension that each feature owns", x=x, y="dimensionality", height=520, showlegend=True)
    for name, value in NAMED_FRACTIONS.items():
        fig.add_hline(y=value, line={"dash": "dot", "width": 1, "color": GREY})
        side = "top" if name == "square antiprism" else "bottom"  # its line lies close below the pentagon's
        font = {"size": 11, "color": GREY}
        fig.add_annotation(xref="paper", x=1.0, y=value, text=name, showarrow=False, xanchor="right", yanchor=side, font=font)
    fig.update_xaxes(type="log")
    fig.update_yaxes(range=[0, 1.08])
    return fig


def phase_map(diagram: PhaseDiagram) -> go.Figure:
    """The trained phase of each cell, with the derived boundary, and a cross where they disagree.

    Args:
        diagram: From :func:`mechfeat.superposition.phase_diagram`.

    Returns:
        A heat map on logarithmic axes.
    """
    colours = ["#d1d5db", "#56B4E9", "#009E73", "#E69F00"]
    scale = [[(k + side) / 4, colours[k]] for k in range(4) for side in (0, 1)]
    heat = go.Heatmap(
        x=array(diagram.importance),
        y=array(diagram.density),
        z=array(diagram.phase),
        zmin=-0.5,
        zmax=3.5,
        colorscale=scale,
        xgap=1,
        ygap=1,
        colorbar={
            "tickvals": [0, 1, 2, 3],
            "ticktext": ["neither", "first alone", "second alone", "both"],
            "thickness": 14,
            "title": "represented",
        },
        hovertemplate="importance %{x:.3g}, density %{y:.3g}: %{z}<extra></extra>",
    )
    low, high = float(diagram.importance.min()), float(diagram.importance.max())
    fine = torch.logspace(torch.tensor(low).log10().item(), torch.tensor(high).log10().item(), 200, dtype=torch.float64)
    line = go.Scatter(
        x=array(fine),
        y=array(superposition_boundary(fine)),
        mode="lines",
        name="p = 4J / (5J + 2)",
        line={"color": "#111827", "width": 2.5},
    )
    row, column = (~diagram.agrees).nonzero(as_tuple=True)
    wrong = go.Scatter(
        x=array(diagram.importance[column]),
        y=array(diagram.density[row]),
        mode="markers",
        name="not as derived",
        marker={"symbol": "x", "size": 9, "color": RED},
    )
    fig = figure(
        [heat, line, wrong],
        title=f"{diagram.agreement:.1%} of {diagram.phase.numel()} cells are as derived; {PHASES[3]} below the line",
        x="importance of the second feature (of the first: 1)",
        y="density",
        height=520,
        showlegend=True,
    )
    fig.update_xaxes(type="log", showgrid=False, dtick=1)
    fig.update_yaxes(type="log", showgrid=False, dtick=1)
    return fig


def direction_counts(curves: DirectionCurve | Mapping[str, DirectionCurve], *, instance: int = 0) -> go.Figure:
    """Number of directions against the angle within which rays count as one. Plateaus are what the weights mean.

    Args:
        curves: From :func:`mechfeat.superposition.direction_curve`; several by name, such as the rule.
        instance: Which instance, where there are several.

    Returns:
        A line a curve.
    """
    named = {curves.rule: curves} if isinstance(curves, DirectionCurve) else curves
    lines = []
    for (name, curve), colour in zip(named.items(), (BLUE, ORANGE, GREEN, RED, GREY) * len(named)):
        counts = curve.counts.reshape(-1, len(curve.angles))[instance]
        lines.append(
            go.Scatter(x=array(curve.angles), y=array(counts), mode="lines", name=name, line={"color": colour, "width": 2, "shape": "hv"})
        )
    fig = figure(
        lines,
        title="How many directions there are depends on what counts as one",
        x="angle within which rays count as one [degrees]",
        y="directions",
        height=400,
        showlegend=True,
    )
    for angle, name in ((25.84, "25.8°"), (8.11, "8.1°"), (2.56, "2.6°")):
        fig.add_vline(x=angle, line={"dash": "dot", "width": 1, "color": GREY}, annotation_text=name, annotation_font_color=GREY)
    fig.update_yaxes(rangemode="tozero")
    return fig
