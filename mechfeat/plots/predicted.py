"""Predicted features against those that training found."""

from collections.abc import Sequence

import plotly.graph_objects as go
import torch

from mechfeat.errors import OptionError
from mechfeat.ntk import FeatureComparison, FeaturePrediction, LanguageFinding, MovementFinding
from mechfeat.plots.style import BLUE, GREEN, GREY, ORANGE, RED, array, figure


def score_curves(
    prediction: FeaturePrediction, comparisons: Sequence[FeatureComparison] = (), *, ngrams: Sequence[int] | None = None, output: int = 0
) -> go.Figure:
    """Scores of tokens over training: predicted as lines, measured as points with their cross-talk.

    Args:
        prediction: Scores at several numbers of steps.
        comparisons: Measured scores at some of them.
        ngrams: Which n-grams; by default the eight with the largest scores after the last step.
        output: Which class.

    Returns:
        A line for each n-gram.

    Raises:
        OptionError: There is no such class, or no such n-gram.
    """
    if not 0 <= output < prediction.scores.shape[2]:
        raise OptionError("output", output, tuple(range(prediction.scores.shape[2])))
    n = prediction.scores.shape[1]
    unknown = [i for i in ngrams or () if not 0 <= i < n]
    if unknown:
        raise OptionError("ngrams", unknown[0], (f"numbers from 0 to {n - 1}",))
    last = prediction.scores[-1, :, output]
    chosen = last.abs().sort(descending=True, stable=True).indices[:8].tolist() if ngrams is None else list(ngrams)
    order = sorted(range(len(prediction.steps)), key=prediction.steps.__getitem__)
    traces = []
    for i in sorted(chosen, key=lambda i: -float(last[i])):
        colour = GREY if not bool(prediction.seen[i]) else BLUE if last[i] > 0 else RED
        traces.append(
            go.Scatter(
                x=[prediction.steps[k] for k in order],
                y=array(prediction.scores[order, i, output]),
                mode="lines",
                name=prediction.name(i),
                line={"color": colour, "width": 2},
            )
        )
        for one in comparisons:
            traces.append(
                go.Scatter(
                    x=[one.step],
                    y=[float(one.measured[i, output])],
                    error_y={"array": [0.0 if one.cross_talk is None else float(one.cross_talk[i, output])], "thickness": 1},
                    mode="markers",
                    name=f"{prediction.name(i)}, network",
                    marker={"size": 7, "color": colour},
                    showlegend=False,
                )
            )
    what = "steps of gradient descent" if prediction.settings.get("time") == "descent" else "time"
    title = "Predicted scores (lines)" + (" and the network's (points, ± cross-talk)" if comparisons else "")
    return figure(traces, title=title, x=what, y="score", height=440, showlegend=True)


def predicted_scores(comparison: FeatureComparison) -> go.Figure:
    """Measured against predicted score of each n-gram, with the cross-talk that a network of this width has, and the line of equality.

    Args:
        comparison: Both.

    Returns:
        A point for each n-gram and class; the title has the correlation and the verdict.
    """
    p, a = comparison.predicted.flatten(), comparison.measured.flatten()
    names = comparison.names or tuple(str(i) for i in range(len(comparison.predicted)))
    classes = comparison.predicted.shape[1]
    points = go.Scatter(
        x=array(p),
        y=array(a),
        error_y=None
        if comparison.cross_talk is None
        else {"array": array(comparison.cross_talk.flatten()), "thickness": 1, "width": 0, "color": "rgba(0,114,178,0.35)"},
        mode="markers",
        name="n-gram",
        text=[f"{name}, class {c}" if classes > 1 else name for name in names for c in range(classes)],
        marker={"size": 5, "color": BLUE},
    )
    title = f"Step {comparison.step:g}: Pearson {comparison.value:.3f}, {comparison.regime}"
    return _equal(points, title, "predicted score", "score of the network", p, a)


def unseen_bias(prediction: FeaturePrediction, comparisons: Sequence[FeatureComparison] = ()) -> go.Figure:
    """The score that training gives tokens which no document has: what the activation function adds to every token.

    Args:
        prediction: Scores at several numbers of steps.
        comparisons: Measured scores at some of them.

    Returns:
        A line for each class, and a point where the network was measured, with the cross-talk of one token.

    Raises:
        OptionError: No n-gram of the prediction is unseen.
    """
    unseen = ~prediction.seen & (prediction.ngrams >= 0).any(1).cpu()
    if not bool(unseen.any()):
        raise OptionError("prediction", "one without unseen n-grams", ("one with an n-gram that no document has",))
    order = sorted(range(len(prediction.steps)), key=prediction.steps.__getitem__)
    traces = []
    colours = (BLUE, RED, GREEN, ORANGE, GREY) * prediction.scores.shape[2]
    for c in range(prediction.scores.shape[2]):
        label = f"class {c}" if prediction.scores.shape[2] > 1 else "predicted"
        values = prediction.scores[:, unseen, c].mean(1)[order]
        line = {"color": colours[c], "width": 2}
        traces.append(go.Scatter(x=[prediction.steps[k] for k in order], y=array(values), mode="lines", name=label, line=line))
        talk = [0.0 if one.cross_talk is None else float(one.cross_talk[unseen, c].mean()) for one in comparisons]
        traces.append(
            go.Scatter(
                x=[one.step for one in comparisons],
                y=[float(one.measured[unseen, c].mean()) for one in comparisons],
                error_y={"array": talk, "thickness": 1},
                mode="markers",
                name=f"{label}, network" if prediction.scores.shape[2] > 1 else "network",
                marker={"size": 7, "color": colours[c]},
            )
        )
    what = "steps of gradient descent" if prediction.settings.get("time") == "descent" else "time"
    return figure(traces, title="Score of tokens that no document has", x=what, y="score", showlegend=True)


def cooccurrence_logits(finding: LanguageFinding, *, names: Sequence[str] = ()) -> go.Figure:
    """Logits of the next tokens that occur most and least often with each token, as boxes.

    Args:
        finding: What :func:`mechfeat.ntk.compare_language` found.
        names: What the tokens are called.

    Returns:
        Two boxes for each token.
    """
    labels = list(names) or [str(int(t)) for t in finding.tokens]
    boxes = []
    for name, rows, colour in (("most co-occurring", finding.top, BLUE), ("least co-occurring", finding.bottom, ORANGE)):
        real = ~torch.isnan(rows)
        where = [labels[i] for i, row in enumerate(real) for _ in range(int(row.sum()))]
        boxes.append(go.Box(x=where, y=array(rows[real]), name=name, marker={"color": colour, "size": 3}, line={"width": 1}))
    title = f"{int(finding.ordered.sum())} of {finding.n} tokens in order; mean AUC {finding.value:.2f}"
    return figure(boxes, title=title, x="token", y="logit of the next token", height=420, boxmode="group", showlegend=True)


def movement(finding: MovementFinding, *, step: int | None = None) -> go.Figure:
    """Actual against predicted movement of each probe, with the line of equality.

    Args:
        finding: Both.
        step: At which of its numbers of steps; by default the last one given.

    Returns:
        A point for each probe; the title has the verdict.

    Raises:
        OptionError: There is no such number of steps.
    """
    at = finding.steps[-1] if step is None else step
    if at not in finding.steps:
        raise OptionError("step", step, finding.steps)
    i = finding.steps.index(at)
    p, a = finding.predicted[i], finding.actual[i]
    points = go.Scatter(x=array(p), y=array(a), mode="markers", name="probe", text=list(finding.names), marker={"size": 6, "color": BLUE})
    r = float(torch.corrcoef(torch.stack([p, a]))[0, 1]) if len(p) > 1 else float("nan")
    title = f"After {at} step{'s' * (at != 1)}: Pearson {r:.3f}, {finding.regime}"
    return _equal(points, title, "predicted movement", "actual movement", p, a)


def _equal(points: go.Scatter, title: str, x: str, y: str, p: torch.Tensor, a: torch.Tensor) -> go.Figure:
    """A scatter with its diagonal."""
    low, high = float(torch.minimum(p.min(), a.min())), float(torch.maximum(p.max(), a.max()))
    same = go.Scatter(x=[low, high], y=[low, high], mode="lines", name="equal", line={"color": ORANGE, "width": 1.5})
    fig = figure([points, same], title=title, x=x, y=y, height=440)
    fig.update_xaxes(constrain="domain")
    fig.update_yaxes(scaleanchor="x", scaleratio=1, constrain="domain")
    return fig
