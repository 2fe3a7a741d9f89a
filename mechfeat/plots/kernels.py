"""Neural tangent kernels."""

import plotly.graph_objects as go
import torch
from jaxtyping import Int
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.ntk import NTKResult
from mechfeat.plots.style import BLUE, SEQUENTIAL, array, figure


def _by_sample(result: NTKResult) -> Tensor:
    """The kernel between samples, summed over equal outputs."""
    if result.outputs == "full":
        return result.kernel.diagonal(dim1=1, dim2=3).sum(-1)
    return result.kernel if result.outputs == "trace" else result.kernel.sum(-1)


def kernel_heatmap(result: NTKResult, *, labels: Int[Tensor, " sample"] | None = None) -> go.Figure:
    """The kernel between samples, summed over outputs.

    Args:
        result: A kernel of a batch with itself or with another.
        labels: Classes of the samples; they are then sorted by class, so that structure by class shows as blocks.

    Returns:
        A heat map.

    Raises:
        ShapeError: There is not one label a sample.
    """
    K = _by_sample(result)
    note = ""
    if labels is not None:
        if labels.shape != (K.shape[0],) or K.shape[0] != K.shape[1]:
            raise ShapeError(
                f"labels have shape {tuple(labels.shape)} for a kernel of {tuple(K.shape)}. Give one label a sample of a square kernel."
            )
        order = labels.argsort(stable=True).to(K.device)
        K, note = K[order][:, order], ", sorted by class"
    heat = go.Heatmap(z=array(K), colorscale=SEQUENTIAL, colorbar={"title": "Θ", "thickness": 12})
    fig = figure([heat], title=f"Empirical NTK, summed over outputs{note}", x="sample", y="sample", height=460)
    fig.update_yaxes(autorange="reversed")
    return fig


def layer_share(result: NTKResult) -> go.Figure:
    """Share of each parameter in the kernel's trace: where the network would learn.

    Args:
        result: Computed with ``layerwise=True``, of a batch with itself.

    Returns:
        Bars.

    Raises:
        ShapeError: The layers were not kept.
    """
    if not result.layers:
        raise ShapeError("This result holds no layer kernels. Compute it with layerwise=True.")
    traces = {n: float(_trace(k, result.outputs)) for n, k in result.layers.items()}
    total = sum(traces.values()) or 1.0
    bars = go.Bar(y=list(traces), x=[v / total for v in traces.values()], orientation="h", marker_color=BLUE)
    fig = figure([bars], title="Share of each parameter in the trace of the kernel", x="share of the trace", height=150 + 26 * len(traces))
    fig.update_yaxes(autorange="reversed")
    fig.update_xaxes(tickformat=".0%")
    return fig


def spectrum(result: NTKResult) -> go.Figure:
    """Eigenvalues of the kernel, largest first.

    Args:
        result: A full or trace kernel of a batch with itself.

    Returns:
        A line on a logarithmic axis; eigenvalues at or below rounding are left out.
    """
    values = result.spectrum()
    values = values[values > values.max() * torch.finfo(values.dtype).eps]
    line = go.Scatter(
        x=list(range(1, len(values) + 1)),
        y=array(values),
        mode="lines+markers",
        marker={"size": 4, "color": BLUE},
        line={"width": 1.5, "color": BLUE},
    )
    fig = figure([line], title="Spectrum of the kernel: directions learnt fast on the left", x="rank", y="eigenvalue")
    fig.update_yaxes(type="log")
    return fig


def _trace(kernel: Tensor, outputs: str) -> Tensor:
    if outputs == "full":
        return torch.einsum("nono->", kernel)
    return kernel.diagonal().sum() if outputs == "trace" else kernel.diagonal(dim1=0, dim2=1).sum()
