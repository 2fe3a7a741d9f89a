"""N-gram capacity as a map over activation and initial standard deviation."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.plots.style import SEQUENTIAL, figure


def xor_map(
    ratios: Float[Tensor, "row column"],
    rows: Sequence[str],
    columns: Sequence[str | int | float],
    *,
    title: str = "How fast a model learns what two tokens mean together, over what each means",
    x: str = "initial standard deviation",
) -> go.Figure:
    """XOR ratios of many configurations, with their values written in.

    Args:
        ratios: XOR ratios, such as those of :func:`mechfeat.ntk.analytic.xor_ratio`; NaN where there is no kernel.
        rows: Names of the rows, such as activations.
        columns: Names of the columns, such as standard deviations.
        title: Title of the figure.
        x: Title of the columns.

    Returns:
        A heat map.

    Raises:
        ShapeError: There are not as many names as rows or columns.

    Example:
        >>> import torch
        >>> fig = xor_map(torch.tensor([[0.0, 0.0], [0.19, float("nan")]]), ["linear", "relu"], [0.1, 1.0])
        >>> [list(row) for row in fig.data[0].text]
        [['0', '0'], ['0.19', 'none']]
    """
    if tuple(ratios.shape) != (len(rows), len(columns)):
        raise ShapeError(f"ratios has shape {list(ratios.shape)}, and there are {len(rows)} names of rows and {len(columns)} of columns.")
    values = ratios.detach().cpu().tolist()
    text = tuple(tuple(_written(v) for v in row) for row in values)
    heat: Any = go.Heatmap(
        z=[[None if math.isnan(v) else v for v in row] for row in values],
        x=[str(c) for c in columns],
        y=list(rows),
        text=text,
        texttemplate="%{text}",
        colorscale=SEQUENTIAL,
        zmin=0,
        colorbar={"title": "XOR ratio"},
        hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
    )
    fig = figure([heat], title=title, x=x, height=120 + 40 * len(rows))
    fig.update_xaxes(type="category", showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig


def _written(ratio: float) -> str:
    if math.isnan(ratio):
        return "none"
    return f"{ratio:.2g}" if ratio >= 0.001 or ratio == 0 else "< 0.001"
