"""A value against its null."""

import plotly.graph_objects as go

from mechfeat.errors import ShapeError
from mechfeat.features import Finding
from mechfeat.plots.style import BLUE, GREY, array, figure


def null_distribution(finding: Finding, *, label: str = "value", title: str | None = None) -> go.Figure:
    """Histogram of the null with the value and its interval.

    Args:
        finding: Any finding with a null.
        label: What the value is, with its unit.
        title: Title; by default the verdict.

    Returns:
        The figure.

    Raises:
        ShapeError: The finding has no null.
    """
    if finding.null is None:
        raise ShapeError("This finding has no null distribution to draw. Compute it with n_null > 0.")
    fig = figure(
        [go.Histogram(x=array(finding.null), nbinsx=40, name="null", marker_color=GREY, opacity=0.75)],
        title=title
        or f"{'Established' if finding.established else 'Not established'}: {label} {finding.value:.3g}, p {finding.p_value:.2g}",
        x=label,
        y="draws of the null",
        showlegend=False,
    )
    if finding.interval is not None:
        fig.add_vrect(x0=finding.interval[0], x1=finding.interval[1], fillcolor=BLUE, opacity=0.18, line_width=0)
    fig.add_vline(x=finding.value, line_color=BLUE, line_width=3)
    fig.add_annotation(x=finding.value, y=1, yref="paper", text="value", showarrow=False, xanchor="left", xshift=5, font_color=BLUE)
    return fig
