"""The two ways to predict scores: the exact sparse linear model of a kernel, and the kernel itself."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import ShapeError, StepSizeError
from mechfeat.ntk.analytic import AnalyticKernel
from mechfeat.ntk.analytic.features import token_counts
from mechfeat.ntk.dynamics import KernelDynamics, Time
from mechfeat.ntk.dynamics.layout import blocks, kernel_of, times
from mechfeat.ntk.dynamics.losses import CURVATURE, Loss, Reduction, gradient
from mechfeat.ntk.empirical import empirical_ntk
from mechfeat.ntk.predict.cross_talk import PairNoise, pair_noise, score_noise, smallest_deviation
from mechfeat.ntk.predict.descent import largest_eigenvalue, train_sparse
from mechfeat.ntk.predict.prediction import fresh
from mechfeat.ntk.predict.sparse import is_bag, is_counts, sparse_map, top_id

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Task:
    """What is to be learnt and how.

    Attributes:
        Y: Targets as :func:`~mechfeat.ntk.dynamics.losses.targets` gives them.
        orders: For each draw of the null, which document's target each document gets; None for no null.
        stops: Steps or times.
        loss: The loss.
        lr: Learning rate.
        reduction: Mean or sum over documents.
        time: Descent or flow.
        n_tokens: Size of the vocabulary, if there is one.
        networks: Random networks whose spread is the cross-talk; none for its closed form.
        width: Their width.
    """

    Y: Float[Tensor, "doc o"]
    orders: Int[Tensor, "draw doc"] | None
    stops: tuple[int | float, ...]
    loss: Loss
    lr: float
    reduction: Reduction
    time: Time
    n_tokens: int | None
    networks: tuple[nn.Module, ...] = ()
    width: int = 0


def by_features(kernel: Kernel, docs: Any, ngrams: Int[Tensor, "ngram position"], task: Task) -> dict[str, Any]:
    """Scores by training the sparse linear model whose kernel this is.

    Args:
        kernel: One with sparse features.
        docs: Documents.
        ngrams: What to score.
        task: What is to be learnt.

    Returns:
        Fields of the prediction.
    """
    import numpy as np

    phi = sparse_map(kernel, docs, ngrams)
    rate = task.lr / (len(task.Y) if task.reduction == "mean" else 1)
    _check_rate(phi.docs, rate, task)
    flow = task.time == "flow"
    y = task.Y.numpy()[:, None]
    thetas = [theta[:, 0] for theta in train_sparse(phi.docs, y, task.stops, loss=task.loss, rate=rate, flow=flow)]
    first = train_sparse(phi.docs, y, [1], loss=task.loss, rate=rate, flow=False)[0][:, 0]

    def parts(theta: Any) -> tuple[Tensor, Tensor]:
        whole = phi.ngrams @ theta
        shared = np.zeros_like(whole) if phi.bias is None else phi.ngrams[:, [phi.bias]] @ theta[[phi.bias]]
        return torch.from_numpy(whole), torch.from_numpy(shared)

    scores, bias = (torch.stack(part) for part in zip(*(parts(theta) for theta in thetas)))
    null = None
    if task.orders is not None:
        shuffled = y[:, 0][task.orders.numpy().T]
        (drawn,) = train_sparse(phi.docs, shuffled, task.stops[-1:], loss=task.loss, rate=rate, flow=flow)
        flat = phi.ngrams @ drawn.reshape(len(drawn), -1)
        null = torch.from_numpy(np.ascontiguousarray(flat.reshape(len(flat), *drawn.shape[1:]).transpose(1, 0, 2)))
    lengths = [float(np.linalg.norm(theta)) for theta in thetas]
    noise, pairs = None, pair_noise(kernel) if is_bag(kernel) else None
    columns = phi.docs.shape[1] - 1
    if pairs is not None and phi.scale[:columns].min(initial=1.0) > 0:
        # θ is √(ρ - μ) Δ on the tokens.
        deltas = [theta[:columns] / phi.scale[:columns, None] for theta in thetas]
        noise = _noise(pairs, deltas, token_counts(ngrams, columns))
    return _fields(kernel, (scores, bias), parts(first), null, lengths, noise)


def by_kernel(kernel: Kernel, docs: Any, ngrams: Int[Tensor, "ngram position"], task: Task) -> dict[str, Any]:
    """Scores by the documents × documents kernel.

    Args:
        kernel: Any kernel of padded ids.
        docs: Documents.
        ngrams: What to score.
        task: What is to be learnt.

    Returns:
        Fields of the prediction.

    Raises:
        ShapeError: Documents are given as counts, networks have another number of outputs, or the kernel refuses tokens that no document
            has.
    """
    if is_counts(docs):
        raise ShapeError("docs are token counts, and method='kernel' needs padded ids [doc position].")
    theta, cross = kernel_of(kernel(docs), "kernel(docs)"), kernel_of(kernel(ngrams, docs), "kernel(ngrams, docs)")
    y = (task.Y.argmax(1) if task.loss == "softmax" else task.Y).to(theta.device)
    f0 = torch.zeros(task.Y.shape, dtype=torch.float64, device=theta.device)
    options: dict[str, Any] = {"loss": task.loss, "lr": task.lr, "reduction": task.reduction, "f0": f0}
    training = KernelDynamics(theta, y, time=task.time, **options)
    scale = task.lr / (len(task.Y) if task.reduction == "mean" else 1)
    pull = -scale * gradient(torch.zeros_like(task.Y), task.Y, task.loss)[None].to(theta.device)
    top = max(top_id(docs), top_id(ngrams))
    unseen = fresh(ngrams, top + 1)
    if isinstance(kernel, AnalyticKernel):
        kernel = _unbounded(kernel)
    known = isinstance(kernel, AnalyticKernel) or task.n_tokens is None or top_id(unseen) < task.n_tokens
    other = _of_unseen(kernel, unseen, docs, task.n_tokens) if known else None

    stops = list(task.stops)

    def parts(outputs: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        whole = outputs(cross).double().cpu()
        return whole, torch.full_like(whole, torch.nan) if other is None else outputs(other).double().cpu()

    def first(K: Tensor) -> Tensor:
        return times(blocks(K), pull, K.ndim)[0]

    scores = parts(lambda K: training.at(stops, K))
    null = None if task.orders is None else training.shuffled(task.orders, stops[-1], cross).double().cpu()
    alphas = training.coefficients(stops).double().cpu()
    squares = (alphas * training.at(stops).double().cpu()).sum((1, 2)).clamp(min=0)
    pairs, noise = pair_noise(kernel) if is_bag(kernel) else None, None
    if task.networks:
        noise = _spread(task, docs, ngrams, alphas)
    elif pairs is not None:
        counts = token_counts(docs, top + 1)
        noise = _noise(pairs, [counts.T @ alpha.numpy() for alpha in alphas], token_counts(ngrams, top + 1))
    return _fields(kernel, scores, parts(first), null, squares.sqrt().tolist(), noise)


def _of_unseen(kernel: Kernel, unseen: Tensor, docs: Tensor, n_tokens: int | None) -> Tensor:
    try:
        found = kernel(unseen, docs)
    except (ShapeError, IndexError) as error:
        if n_tokens is not None:
            raise
        first = int(unseen[unseen >= 0].min())
        raise ShapeError(
            f"The bias part is the score of tokens that no document has, here {first} and up, and the kernel refuses "
            f"them ({error}). Give n_tokens, the size of its vocabulary: without room for such tokens the bias part is NaN."
        ) from error
    return kernel_of(found, "kernel(ngrams, docs)")


def _unbounded(kernel: AnalyticKernel) -> AnalyticKernel:
    """The same kernel for any vocabulary: it matches tokens, and has none of its own; and so do the kernels it is made of."""
    parts = {f.name: getattr(kernel, f.name) for f in fields(kernel)}
    inner: dict[str, Any] = {name: _unbounded(part) for name, part in parts.items() if isinstance(part, AnalyticKernel)}
    return replace(kernel, n_tokens=None, **inner)


def _fields(
    kernel: Kernel,
    scores: tuple[Tensor, Tensor],
    rate: tuple[Tensor, Tensor],
    null: Tensor | None,
    lengths: list[float],
    noise: Tensor | None,
) -> dict[str, Any]:
    deviation = smallest_deviation(kernel)
    return {
        "scores": scores[0],
        "bias": scores[1],
        "rate": rate[0],
        "rate_bias": rate[1],
        "null_scores": null,
        "noise": noise,
        "length": None if deviation is None else torch.tensor(lengths, dtype=torch.float64) / deviation,
    }


def _noise(pairs: PairNoise, deltas: list[Any], counts: Any) -> Tensor:
    return torch.stack([torch.from_numpy(score_noise(pairs, delta, counts)) for delta in deltas], 1)


def _spread(task: Task, docs: Tensor, ngrams: Tensor, alphas: Float[Tensor, "step doc o"]) -> Tensor:
    """Variance over networks of what their own kernels make of the coefficients, times the width; all of it under the hidden layer.

    Raises:
        ShapeError: The networks have another number of outputs than the labels need.
    """
    found = []
    for net in task.networks:
        theta = empirical_ntk(net, ngrams, docs).kernel.double().cpu()  # [ngram o doc o]
        if theta.shape[1] != alphas.shape[2]:
            raise ShapeError(
                f"networks holds one with {theta.shape[1]} outputs, and {task.loss} loss of these labels takes {alphas.shape[2]}. Give "
                "networks like the one that is predicted for."
            )
        found.append(torch.einsum("gpno,sno->sgp", theta, alphas))
    variance = torch.stack(found).var(0) * task.width
    return torch.stack([torch.zeros_like(variance), variance])


def _check_rate(X: Any, rate: float, task: Task) -> None:
    """The checks of :class:`KernelDynamics`, from the largest eigenvalue of the features."""
    if task.time == "flow":
        return
    edge = largest_eigenvalue(X) * CURVATURE[task.loss]
    if not edge or rate * edge < 2:
        return
    limit = task.lr * 2 / (rate * edge)
    if task.loss == "squared":
        raise StepSizeError(task.lr, limit)
    warnings.warn(
        f"lr={task.lr:g} is above {limit:.6g}, up to which each step of gradient descent with this kernel is sure to lower the "
        f"{task.loss} loss. The steps are computed as asked for.",
        stacklevel=4,
    )
