"""Toy models: their weights as they train, how features overlap, which features units hold."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.plots.style import DIVERGING, GREY, SEQUENTIAL, array, figure
from mechfeat.superposition import FeatureGraph, Run, feature_norm, interference, interference_matrix

INTERFERENCE = {"cmin": 0, "cmax": 1, "colorscale": SEQUENTIAL, "colorbar": {"title": "interference", "thickness": 12}}


def movie(fig: go.Figure, frames: Sequence[Any], labels: Sequence[str], *, prefix: str, indices: Sequence[int]) -> go.Figure:
    """Give a figure a slider and a play button.

    Args:
        fig: The figure, showing the first frame.
        frames: Traces of each frame.
        labels: Text of each frame.
        prefix: What the labels count.
        indices: Which traces of the figure the frames replace.

    Returns:
        The figure.
    """
    fig.frames = [go.Frame(data=list(traces), name=label, traces=list(indices)) for traces, label in zip(frames, labels)]
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": label, "method": "animate", "args": [[label], still]} for label in labels]
    play = {"mode": "immediate", "fromcurrent": True, "frame": {"duration": 80, "redraw": True}, "transition": {"duration": 0}}
    button = {"label": "play", "method": "animate", "args": [None, play]}
    fig.update_layout(
        sliders=[{"steps": steps, "currentvalue": {"prefix": f"{prefix} "}, "pad": {"t": 44}, "x": 0.12, "len": 0.86}],
        updatemenus=[{"type": "buttons", "buttons": [button], "x": 0.0, "y": -0.13, "xanchor": "left", "yanchor": "top", "pad": {"t": 28}}],
        margin={"b": 110},
        showlegend=False,
    )
    return fig


def weights_movie(run: Run, *, instance: int = 0) -> go.Figure:
    """The feature directions of one instance over training, coloured by interference, with a slider.

    Args:
        run: A run.
        instance: Which instance.

    Returns:
        Rays from the origin in two or three hidden dimensions; overlaps as a heat map in more.

    Raises:
        ShapeError: There is no such instance, or there is one hidden dimension only.
    """
    if not 0 <= instance < len(run.seeds) or run.spec.n_hidden < 2:
        raise ShapeError(
            f"instance={instance} of {len(run.seeds)}, in {run.spec.n_hidden} hidden dimensions. Give an instance of the run, "
            "with two dimensions or more."
        )
    W = run.weights[:, instance]
    labels = [f"{t:,}" for t in run.steps.tolist()]
    title = f"Directions of {W.shape[1]} features, seed {run.seeds[instance]}"
    if W.shape[-1] > 3:
        frames = [[_gram_trace(w)] for w in W]
        fig = figure(frames[0], title=title, x="feature", y="feature", height=560)
        fig.update_xaxes(constrain="domain")
        fig.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
        return movie(fig, frames, labels, prefix="step", indices=[0])
    reach = 1.08 * (float(W.abs().max()) or 1.0)
    shade = interference(W)
    frames = [_rays(w, s) for w, s in zip(W, shade)]
    axis = {"range": [-reach, reach], "zeroline": True}
    fig = figure(frames[0], title=title, height=640)
    if W.shape[-1] == 2:
        fig.update_xaxes(title="hidden dimension 0", constrain="domain", **axis)
        fig.update_yaxes(title="hidden dimension 1", scaleanchor="x", constrain="domain", **axis)
    else:
        walls = {**axis, "backgroundcolor": "rgba(0,0,0,0)"}  # for light and dark pages
        fig.update_layout(scene={**{f"{k}axis": {**walls, "title": f"h{i}"} for i, k in enumerate("xyz")}, "aspectmode": "cube"})
    return movie(fig, frames, labels, prefix="step", indices=[0, 1])


def _rays(W: Tensor, shade: Tensor) -> list[Any]:
    """Lines from the origin, and their ends."""
    kind = go.Scatter if W.shape[1] == 2 else go.Scatter3d
    gap = torch.full_like(W, torch.nan)
    lines = array(torch.stack([torch.zeros_like(W), W, gap], 1).flatten(0, 1))
    ends = array(W)
    names = [f"feature {i}: interference {s:.2f}" for i, s in enumerate(shade.tolist())]
    marker = {"size": 8 if W.shape[1] == 2 else 4, "color": array(shade), **INTERFERENCE}
    at = {k: lines[:, i] for i, k in enumerate("xyz"[: W.shape[1]])}
    ends_at = {k: ends[:, i] for i, k in enumerate("xyz"[: W.shape[1]])}
    return [
        kind(**at, mode="lines", line={"color": GREY, "width": 1.5}, hoverinfo="skip"),
        kind(**ends_at, mode="markers", marker=marker, text=names, hoverinfo="text"),
    ]


def gram(
    W: Float[Tensor, "feature hidden"], b: Float[Tensor, " feature"] | None = None, *, title: str = "What each output hears of each feature"
) -> go.Figure:
    r"""The matrix :math:`W W^\top`, with the output bias beside it.

    Args:
        W: Feature directions.
        b: Output bias.
        title: Title of the figure.

    Returns:
        A heat map, and a column for the bias.
    """
    product = W @ W.T
    bound = max(float(product.abs().max()), float(b.abs().max()) if b is not None else 0.0) or 1.0
    if b is None:
        fig = figure([go.Heatmap(z=array(product), coloraxis="coloraxis")], title=title, x="feature", y="output", height=480)
    else:
        grid = make_subplots(1, 2, column_widths=[0.93, 0.07], horizontal_spacing=0.03, shared_yaxes=True)
        fig = figure(grid, title=title, height=480)
        fig.add_trace(go.Heatmap(z=array(product), coloraxis="coloraxis"), row=1, col=1)
        fig.add_trace(go.Heatmap(z=array(b[:, None]), coloraxis="coloraxis"), row=1, col=2)
        fig.update_xaxes(title="feature", row=1, col=1)
        fig.update_xaxes(title="b", showticklabels=False, row=1, col=2)
        fig.update_yaxes(title="output", row=1, col=1)
    fig.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -bound, "cmax": bound, "colorbar": {"title": "weight", "thickness": 12}})
    fig.update_yaxes(autorange="reversed")
    if b is None:
        fig.update_xaxes(constrain="domain")
        fig.update_yaxes(scaleanchor="x", constrain="domain")
    return fig


def _gram_trace(W: Tensor) -> go.Heatmap:
    heat = array(interference_matrix(W / W.norm(dim=-1).amax().clamp_min(torch.finfo(W.dtype).tiny)))
    return go.Heatmap(z=heat, colorscale=DIVERGING, zmin=-1, zmax=1, colorbar={"title": "overlap", "thickness": 12})


def norm_bars(W: Float[Tensor, "feature hidden"], *, title: str = "Which features are represented, and who shares") -> go.Figure:
    """Length of each feature, coloured by its interference: 0 has a dimension to itself, 1 and more is drowned.

    Args:
        W: Feature directions.
        title: Title of the figure.

    Returns:
        Bars in the order of the features.
    """
    shade = interference(W)
    marker = {"color": array(shade), **INTERFERENCE}
    names = [f"interference {s:.2f}" for s in shade.tolist()]
    bars = go.Bar(y=array(feature_norm(W)), marker=marker, text=names, textposition="none", hovertemplate="feature %{x}: %{y:.2f}, %{text}")
    return figure([bars], title=title, x="feature", y="norm", height=320)


def stack_plot(W: Float[Tensor, "feature unit"], *, title: str = "Which features each unit holds") -> go.Figure:
    """Weights of the features on each unit, stacked by size: a unit in one piece is monosemantic.

    Args:
        W: Weight of each feature on each unit.
        title: Title of the figure.

    Returns:
        Stacked bars, positive weights above and negative ones below; the largest of each unit lies next to the axis.
    """
    order = W.abs().argsort(0, descending=True)
    traces = []
    for rank in range(len(W)):
        which = order[rank]
        values = W.gather(0, which[None])[0]
        if not bool((values.abs() > 1e-3 * W.abs().max()).any()):
            break
        marker = {
            "color": array(which),
            "colorscale": "Turbo",
            "cmin": 0,
            "cmax": max(len(W) - 1, 1),
            "line": {"width": 0.6, "color": "rgba(255,255,255,0.9)"},
            "showscale": rank == 0,
            "colorbar": {"title": "feature", "thickness": 12},
        }
        names = [f"feature {i}" for i in which.tolist()]
        traces.append(go.Bar(y=array(values), marker=marker, text=names, textposition="none", hovertemplate="unit %{x}, %{text}: %{y:.2f}"))
    return figure(traces, title=title, x="unit", y="weight", height=420, barmode="relative", showlegend=False)


def feature_graph_plot(graph: FeatureGraph, *, title: str | None = None) -> go.Figure:
    """The features that overlap, one polygon a tegum factor; lines are thicker where the overlap is larger.

    Args:
        graph: From :func:`mechfeat.superposition.feature_graph`.
        title: Title of the figure; the arrangement by default.

    Returns:
        Factors side by side, each in a circle in the order of the angle between its features, with its name.
    """
    factors = graph.factors
    columns = max(1, min(6, len(factors)))
    place = torch.zeros(len(graph.W), 2)
    notes = []
    for k, f in enumerate(factors):
        centre = torch.tensor([3.0 * (k % columns), -3.6 * (k // columns)])
        ring = torch.arange(len(f.features)) * (2 * torch.pi / len(f.features)) if len(f.features) > 1 else torch.zeros(1)
        radius = 0.0 if len(f.features) == 1 else 1.0
        for i, a in zip(_round(graph.W, f.features), ring):
            place[i] = centre + radius * torch.stack([a.sin(), a.cos()]).to(centre)
        value = float(f.dimensionality.mean())
        notes.append({"x": float(centre[0]), "y": float(centre[1]) - 1.35, "text": f"{f.name}<br>D = {value:.3g}", "showarrow": False})
    traces: list[Any] = []
    for (i, j), c in zip(graph.edges.tolist(), graph.cosines.tolist()):
        colour = "#D55E00" if c > 0 else "#0072B2"
        traces.append(
            go.Scatter(
                x=array(place[[i, j], 0]),
                y=array(place[[i, j], 1]),
                mode="lines",
                line={"color": colour, "width": 0.5 + 3.5 * abs(c)},
                opacity=0.25 + 0.7 * abs(c),
                hoverinfo="skip",
            )
        )
    shown = graph.component >= 0
    names = [f"feature {i}" for i in shown.nonzero()[:, 0].tolist()]
    marker = {"size": 10, "color": "#374151"}
    traces.append(
        go.Scatter(x=array(place[shown, 0]), y=array(place[shown, 1]), mode="markers", marker=marker, text=names, hoverinfo="text")
    )
    rows = -(-max(1, len(factors)) // columns)
    fig = figure(traces, title=title or graph.summary(), height=120 + 250 * rows, showlegend=False, annotations=notes)
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False, scaleanchor="x")
    return fig


def _round(W: Tensor, members: tuple[int, ...]) -> list[int]:
    """Members in the order of their angle in the plane that holds most of them."""
    rows = W[list(members)].double()
    if len(members) < 3:
        return list(members)
    plane = torch.linalg.svd(rows, full_matrices=False).Vh[:2]
    if len(plane) < 2:
        return list(members)
    at = rows @ plane.T
    order = torch.atan2(at[:, 1], at[:, 0]).argsort()
    return [members[int(k)] for k in order]
