"""Weights: kernels between channels, contributions, and how features share dimensions."""

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from mechfeat.circuits import CircuitFinding
from mechfeat.errors import CircuitError
from mechfeat.plots.style import BLUE, DIVERGING, GREY, array, figure
from mechfeat.superposition import SuperpositionFinding


def circuit_weights(finding: CircuitFinding, *, unit: int | None = None, k: int = 6) -> go.Figure:
    """The kernels from the strongest channels into a unit, on one colour scale.

    Args:
        finding: From :func:`mechfeat.circuits.direct_weights`.
        unit: Which unit; the first by default.
        k: At most this many channels.

    Returns:
        One heat map a channel; a single row where the weights have no spatial extent.

    Raises:
        CircuitError: The weights have more than two spatial axes.
    """
    unit = finding.units[0] if unit is None else unit
    top = finding.strongest(unit, k)
    W = finding.weights[finding.units.index(unit)]
    if W.ndim == 1:
        maps, names = [W[[c for c, _ in top]].unsqueeze(0)], ["strongest channels"]
    elif W.ndim == 2:
        side = int(W.shape[1] ** 0.5)
        square = side * side == W.shape[1]  # positions that were flattened from a square map are shown as one
        maps = [W[c].view(side, side) if square else W[c].unsqueeze(0) for c, _ in top]
        names = [f"channel {c}, {share:.0%}" for c, share in top]
    elif W.ndim == 3:
        maps, names = [W[c] for c, _ in top], [f"channel {c}, {share:.0%}" for c, share in top]
    else:
        raise CircuitError(f"Weights of shape {tuple(W.shape)} cannot be drawn as maps.")
    bound = float(max(m.abs().max() for m in maps)) or 1.0
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    grid = make_subplots(rows, columns, subplot_titles=names, horizontal_spacing=0.06, vertical_spacing=0.16)
    fig = figure(grid, title=f"Weights from {finding.source} into unit {unit} of {finding.target}", height=130 + 190 * rows)
    for i, m in enumerate(maps):
        fig.add_trace(go.Heatmap(z=array(m), coloraxis="coloraxis"), row=i // columns + 1, col=i % columns + 1)
    fig.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -bound, "cmax": bound, "colorbar": {"title": "weight", "thickness": 12}})
    fig.update_yaxes(autorange="reversed", showticklabels=False, showgrid=False)
    fig.update_xaxes(showticklabels=False, showgrid=False)
    return fig


def contributions(finding: CircuitFinding) -> go.Figure:
    """Share of each channel in the input of each unit.

    Args:
        finding: From :func:`mechfeat.circuits.direct_weights`.

    Returns:
        A heat map, units by channels.
    """
    share = finding.contributions / finding.contributions.sum(1, keepdim=True).clamp_min(torch.finfo(finding.contributions.dtype).tiny)
    heat = go.Heatmap(
        z=array(share), y=[str(u) for u in finding.units], colorscale="Viridis", zmin=0, colorbar={"title": "share", "thickness": 12}
    )
    return figure(
        [heat],
        title=f"Where the units of {finding.target} get their input from",
        x=f"channel of {finding.source}",
        y=f"unit of {finding.target}",
        height=140 + max(220, min(500, 22 * len(finding.units))),
        yaxis_type="category",
    )


def dimensionality(finding: SuperpositionFinding) -> go.Figure:
    """Dimensionality of each feature, largest first: 1 has a dimension to itself, 1/2 shares it with one other.

    Args:
        finding: From :func:`mechfeat.superposition.measure`.

    Returns:
        The figure.
    """
    values = finding.per_feature.sort(descending=True).values
    fig = figure(
        [go.Scatter(y=array(values), mode="lines+markers", marker={"size": 4, "color": BLUE}, line={"width": 1.5, "color": BLUE})],
        title=f"Dimensionality of {len(values)} features at {finding.hook or 'these weights'}",
        x="feature, by rank",
        y="share of a dimension",
    )
    for level, name in ((1.0, "own dimension"), (0.5, "antipodal pair")):
        fig.add_hline(y=level, line_dash="dot", line_color=GREY, annotation_text=name, annotation_font_color=GREY)
    fig.update_yaxes(range=[0, 1.08])
    return fig


def overlaps(finding: SuperpositionFinding) -> go.Figure:
    """Cosine between each two features.

    Args:
        finding: From :func:`mechfeat.superposition.measure`.

    Returns:
        A heat map.
    """
    heat = go.Heatmap(z=array(finding.gram), colorscale=DIVERGING, zmin=-1, zmax=1, colorbar={"title": "cosine", "thickness": 12})
    fig = figure([heat], title=f"Overlap of the features at {finding.hook or 'these weights'}", x="feature", y="feature", height=440)
    fig.update_yaxes(autorange="reversed")
    return fig
