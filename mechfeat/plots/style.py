"""The look of all figures: one palette that stays apart for the colour-blind, on transparent ground for light and dark pages."""

from typing import Any

import plotly.graph_objects as go
from torch import Tensor

# Okabe and Ito's palette, which keeps apart under the common forms of colour blindness.
BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#8a8f98", "#D55E00"
DIVERGING = [[0.0, "#0072B2"], [0.5, "#f5f5f5"], [1.0, "#D55E00"]]
SEQUENTIAL = "Viridis"


def figure(traces: Any, *, title: str, x: str = "", y: str = "", height: int = 360, **layout: Any) -> go.Figure:
    """A figure in the common look.

    Args:
        traces: Its traces.
        title: What it shows, as a sentence.
        x: Label of the horizontal axis, with unit.
        y: Label of the vertical axis, with unit.
        height: Pixels.
        **layout: Further plotly layout.

    Returns:
        The figure.
    """
    fig = go.Figure(traces)
    fig.update_layout(
        template="plotly_white",
        colorway=[BLUE, ORANGE, GREEN, RED, GREY],
        title={"text": title, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 15}},
        height=height,
        margin={"l": 56, "r": 16, "t": 64, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#4b5563"},
        legend={"orientation": "h", "y": -0.22, "x": 0},
        bargap=0.05,
    )
    axis = {
        "gridcolor": "rgba(128,128,128,0.22)",
        "zerolinecolor": "rgba(128,128,128,0.45)",
        "linecolor": "rgba(128,128,128,0.45)",
        "automargin": True,
    }
    fig.update_xaxes(title=x, **axis)
    fig.update_yaxes(title=y, **axis)
    fig.update_layout(**layout)
    return fig


def array(x: Tensor) -> Any:
    """A tensor as plotly takes it.

    Args:
        x: Any device and dtype.

    Returns:
        A NumPy array in float32 or an integer dtype.
    """
    x = x.detach().cpu()
    return (x.float() if x.is_floating_point() else x).numpy()
