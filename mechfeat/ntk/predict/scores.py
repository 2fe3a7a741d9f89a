"""From labelled documents to the scores that training is predicted to give each token and n-gram."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import DtypeError, OptionError, ShapeError
from mechfeat.ntk.dynamics import Time
from mechfeat.ntk.dynamics.losses import Loss, Reduction, check_options, targets
from mechfeat.ntk.predict.cross_talk import widths
from mechfeat.ntk.predict.prediction import FeaturePrediction
from mechfeat.ntk.predict.sparse import check_documents, has_sparse_map, is_counts
from mechfeat.ntk.predict.ways import Task, by_features, by_kernel
from mechfeat.nulls import permuted_labels

Kernel = Callable[..., Any]
Way = Literal["auto", "features", "kernel"]


def predict_features(
    kernel: Kernel,
    docs: Any,
    labels: Int[Tensor, " doc"] | Float[Tensor, " doc"],
    ngrams: Int[Tensor, "ngram position"],
    *,
    steps: int | float | Sequence[int | float],
    lr: int | float,
    loss: Loss = "logistic",
    reduction: Reduction = "mean",
    time: Time = "descent",
    n_classes: int | None = None,
    n_tokens: int | None = None,
    width: int | tuple[int, int] | None = None,
    names: Sequence[str] = (),
    method: Way = "auto",
    networks: Sequence[nn.Module] = (),
    n_null: int = 20,
    seed: int = 0,
) -> FeaturePrediction:
    r"""Which tokens and n-grams a network will take for evidence of which label, from its kernel alone.

    The score of an n-gram is the network's output on the n-gram fed in alone, less what it was before training,

    .. math:: s_g(t) = \sum_i Θ(g, x_i)\, α_i(t) , \qquad \dot α_i = -η\, ∂ℓ_i/∂f ,

    where the kernel Θ of one output is shared by all classes, as at infinite width, or couples them, as an empirical one does. Its
    **bias part** is the score of the same n-gram made of tokens that no document has; the rest is its **co-occurrence part**. For a bag of
    tokens under binary labels ±1 the first step adds

    .. math:: \tfrac{η}{2}\, [ (ρ - μ)(n_g^+ - n_g^-) + μ (T^+ - T^-) ]

    to the score of a token: co-occurrence with the label, and a bias that unseen tokens have as well; with C classes
    :math:`η\,[(ρ-μ)(n_{g,c} - n_g/C) + μ(T_c - T/C)]`.

    Args:
        kernel: ``kernel(x1, x2=None) -> [n1 n2]`` on padded ids, as those of :mod:`mechfeat.ntk.analytic`; results of
            :func:`empirical_ntk` will do.
        docs: Training documents as padded ids ``[doc position]``, -1 after their ends; for a bag also a SciPy matrix of token counts. An
            empty document adds nothing, but counts in a mean.
        labels: Class indices, 0 and 1 for logistic loss; real targets for squared loss.
        ngrams: What to score, as padded ids; a token that no document has gets the bias.
        steps: Steps of full-batch descent, or times of flow; several give an axis of them.
        lr: Learning rate.
        loss: ``"logistic"`` for two classes with one output, ``"softmax"`` for C outputs, ``"squared"``.
        reduction: Mean or sum over documents.
        time: ``"descent"`` or ``"flow"``.
        n_classes: Number of classes for softmax; by default one more than the largest label.
        n_tokens: Size of the vocabulary, by default the kernel's. Ids beyond it are refused; an empirical kernel has a bias part only
            where it leaves room for tokens that no document has.
        width: Of the network to be compared with, for the printed cross-talk: one number, or embedding size and hidden width.
        names: What the n-grams are called.
        method: ``"features"`` trains the exact sparse linear model of a kernel that has one, in O(non-zeros) a step and without a
            documents × documents matrix; ``"kernel"`` forms that matrix, for any kernel; ``"auto"`` takes the first where it can.
        networks: Networks of this width with different random weights, two or more. For a kernel whose cross-talk has no known form it is
            then measured, as the spread over their empirical kernels; ``method`` is ``"kernel"``.
        n_null: Predictions from permuted labels, for :func:`compare`: each costs as much as the prediction. 0 for none.
        seed: Seed of the permutations.

    Returns:
        Scores with their parts. Where all labels are equal there is no null.

    Raises:
        OptionError: An option is unknown, or a label out of range.
        ShapeError: Numbers of documents, labels or names do not fit, ids are outside the vocabulary, networks have another number of
            outputs, or the sparse features were asked of a kernel that has none.
        DtypeError: Labels are no tensor.
        StepSizeError: Descent on squared loss would not converge.

    What :class:`KernelDynamics` and the kernel raise is raised as well.

    Cost:
        With sparse features O((1 + n_null) · classes · non-zeros) a step; else the kernel, and what :class:`KernelDynamics` costs.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*: label scores; the closed forms are derived in
        the theory pages.

    Example:
        >>> from mechfeat.ntk.analytic import BagKernel
        >>> from mechfeat.ntk.dual import Activation
        >>> docs, labels = torch.tensor([[0, 2], [1, 2], [0, -1]]), torch.tensor([1, 0, 1])
        >>> kernel = BagKernel(activation=Activation.of("linear"))
        >>> found = predict_features(kernel, docs, labels, torch.tensor([[0], [1], [2]]), steps=1, lr=0.2, reduction="sum")
        >>> found.scores[0, :, 0]  # η/2 · 3 (n+ - n-)
        tensor([ 0.6000, -0.3000,  0.0000], dtype=torch.float64)
    """
    check_options(loss, reduction)
    for option, value, allowed in (("time", time, ("descent", "flow")), ("method", method, ("auto", "features", "kernel"))):
        if value not in allowed:
            raise OptionError(option, value, allowed)
    if not (isinstance(lr, int | float) and 0 < lr < float("inf")):
        raise OptionError("lr", lr, ("a positive number",))
    if not (isinstance(n_null, int) and n_null >= 0):
        raise OptionError("n_null", n_null, ("a number of draws, 0 for none",))
    stops = _stops(steps, time)
    n_tokens = getattr(kernel, "n_tokens", None) if n_tokens is None else n_tokens
    if not isinstance(labels, Tensor):
        raise DtypeError(f"labels is of {type(labels).__name__}. Give a tensor with one entry a document.")
    n, count = check_documents(docs, "docs", n_tokens), check_documents(ngrams, "ngrams", n_tokens)
    if len(labels) != n:
        raise ShapeError(f"labels has {len(labels)} entries, and there are {n} documents. Each document needs one label.")
    if names and len(names) != count:
        raise ShapeError(f"names has {len(names)} entries, and there are {count} n-grams. Give one name an n-gram, or none.")
    o = _outputs(labels, loss, n_classes)
    Y = targets(labels.cpu(), loss, n, o)
    reason = "n_null is 0" if not n_null else "all labels are equal" if n < 2 or bool((Y[0] == Y).all()) else None
    orders = None
    if reason is None:
        orders = permuted_labels(torch.arange(n), n_null, generator=torch.Generator().manual_seed(seed))
    if networks and (len(networks) < 2 or width is None or method == "features"):
        raise ShapeError(
            f"networks holds {len(networks)} networks, with width={width} and method={method!r}. A spread needs two or more of one width, "
            "given as width=, and method='kernel'."
        )
    sparse = has_sparse_map(kernel) and not networks if method == "auto" else method == "features"
    if sparse and not has_sparse_map(kernel):
        raise ShapeError(f"{type(kernel).__name__} has no sparse features (feature_map). Use method='kernel'.")
    task = Task(Y, orders, stops, loss, float(lr), reduction, time, n_tokens, tuple(networks), widths(width)[1] if width else 0)
    found = (by_features if sparse else by_kernel)(kernel, docs, ngrams, task)
    settings = {
        "kernel": type(kernel).__name__,
        "loss": loss,
        "lr": float(lr),
        "reduction": reduction,
        "time": time,
        "method": "features" if sparse else "kernel",
        "n_docs": n,
        "n_classes": o,
        "width": None if width is None else list(widths(width)),
        "cross_talk": f"spread over {len(networks)} networks" if networks else "closed form" if found["noise"] is not None else "unknown",
        "null": "permuted_labels",
        "n_null": n_null,
        "seed": seed,
        **({"no null because": reason} if reason else {}),
    }
    return FeaturePrediction(ngrams=ngrams, steps=stops, names=tuple(names), seen=_seen(docs, ngrams), settings=settings, **found)


def _stops(steps: int | float | Sequence[int | float], time: str) -> tuple[int | float, ...]:
    stops = tuple(steps) if isinstance(steps, Sequence) else (steps,)
    every: tuple[Any, ...] = stops
    for one in every:
        number = isinstance(one, Real) and 0 <= float(one) < float("inf")
        if not number or (time == "descent" and not float(one).is_integer()):
            raise OptionError(
                "steps", steps, ("a time, 0 or more" if time == "flow" else "a number of steps, 0 or more", "several of them")
            )
    if not stops:
        raise OptionError("steps", steps, ("a number of steps, 0 or more", "several of them"))
    return stops


def _outputs(labels: Tensor, loss: Loss, n_classes: int | None) -> int:
    if loss != "softmax":
        if n_classes is not None and not (loss == "logistic" and n_classes == 2):
            raise OptionError("n_classes", n_classes, (2, None) if loss == "logistic" else (None,))
        return 1
    if n_classes is None:
        return max(2, int(labels.max()) + 1) if len(labels) else 2
    if not (isinstance(n_classes, int) and n_classes >= 2):
        raise OptionError("n_classes", n_classes, ("a number of classes, at least 2",))
    return n_classes


def _seen(docs: Any, ngrams: Tensor) -> Tensor:
    top = int(ngrams.max()) + 1 if ngrams.numel() else 0
    if is_counts(docs):
        present = torch.zeros(max(top, docs.shape[1]), dtype=torch.bool)
        present[torch.from_numpy(docs.nonzero()[1].astype("int64"))] = True
    else:
        present = torch.zeros(max(top, int(docs.max()) + 1 if docs.numel() else 0), dtype=torch.bool)
        present[docs[docs >= 0].cpu()] = True
    ngrams = ngrams.cpu()
    real = ngrams >= 0
    return (present[ngrams.clamp(min=0)] & real).any(1) if len(present) else torch.zeros(len(ngrams), dtype=torch.bool)
