"""Predicted scores against those of a trained network: does the theory hold here, and how would one know if it did not?"""

import copy
import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import NonFiniteError, OptionError, ShapeError
from mechfeat.features import Finding, signal_share, storable
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.models.text import Centred
from mechfeat.ntk.predict.measured import kernel_drift, measured_scores
from mechfeat.ntk.predict.prediction import FeaturePrediction
from mechfeat.ntk.predict.regime import DRIFT_LIMIT, Regime, RichRegimeWarning, regime, rich_message


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureComparison(Finding):
    """How well predicted scores agree with a trained network's.

    ``value`` is Pearson's correlation over n-grams and classes.

    Attributes:
        step: Number of steps, or time, of the prediction.
        predicted: Predicted scores.
        measured: Scores of the network, less those before training where these are known.
        cross_talk: Standard deviation of each score by cross-talk at the network's width; None where it is not known.
        per_class: Pearson's correlation over n-grams, for each class.
        spearman: Rank correlation over n-grams and classes.
        sign_accuracy: Share of predicted scores other than zero whose sign the network agrees with, in [0, 1].
        relative_error: ‖predicted − measured‖ / ‖measured‖.
        bias_predicted: Mean predicted score of n-grams without a token of the documents, for each class; None if there are none.
        bias_measured: Mean score of the network on them.
        drift: Relative change of the network's kernel; None where it was not measured.
        names: What the n-grams are called.
    """

    step: int | float
    predicted: Float[Tensor, "ngram class"]
    measured: Float[Tensor, "ngram class"]
    cross_talk: Float[Tensor, "ngram class"] | None
    per_class: Float[Tensor, " class"]
    spearman: float
    sign_accuracy: float
    relative_error: float
    bias_predicted: Float[Tensor, " class"] | None
    bias_measured: Float[Tensor, " class"] | None
    drift: float | None
    names: tuple[str, ...] = ()

    @property
    def regime(self) -> Regime:
        """``"kernel regime"`` where the kernel moved by less than 0.1 of its norm, ``"rich"`` where by more, or ``"not measured"``."""
        return regime(self.drift)

    @property
    def excess(self) -> float | None:
        """Root mean square of (measured − predicted) over the cross-talk: about 1 or less where cross-talk explains the difference."""
        if self.cross_talk is None:
            return None
        z = (self.measured - self.predicted) / self.cross_talk
        z = z[self.cross_talk > 0]
        return float(z.square().mean().sqrt()) if z.numel() else None

    def report(self) -> str:
        """All figures as text, the verdict last."""
        lines = [
            f"Predicted against measured scores, {len(self.predicted)} n-grams, step {self.step:g}",
            self.summary(),
            f"Pearson {self.value:.4f}, Spearman {self.spearman:.4f}, same sign {self.sign_accuracy:.1%}, "
            f"relative error {self.relative_error:.3f}",
        ]
        if len(self.per_class) > 1:
            lines.append("Pearson of each class " + " ".join(f"{r:.4f}" for r in self.per_class.tolist()))
        if self.bias_predicted is not None and self.bias_measured is not None:
            pairs = zip(self.bias_predicted.tolist(), self.bias_measured.tolist())
            lines.append("unseen tokens, predicted / measured " + ", ".join(f"{p:+.4g} / {a:+.4g}" for p, a in pairs))
        if self.cross_talk is None or self.excess is None:
            lines.append("cross-talk unknown")
        else:
            size = float(self.cross_talk.square().mean().sqrt())
            lines.append(f"cross-talk ± {size:.3g} (root mean square); the difference is {self.excess:.2g} times that")
        moved = "" if self.drift is None else f": the kernel moved by {self.drift:.2g} of its norm (limit {DRIFT_LIMIT:g})"
        return "\n".join([*lines, f"{self.regime}{moved}"])

    def __str__(self) -> str:
        return self.report()


def compare(
    prediction: FeaturePrediction,
    trained: nn.Module | HookedModel | Float[Tensor, "ngram class"],
    *,
    initial: nn.Module | HookedModel | None = None,
    step: int | float | None = None,
    drift: float | None = None,
    width: int | tuple[int, int] | None = None,
    n_boot: int = 200,
    seed: int = 0,
) -> FeatureComparison:
    r"""Compares predicted label scores with those of a trained network on the same n-grams.

    Args:
        prediction: What was predicted.
        trained: The trained network, or scores that were measured, less those before training.
        initial: The network before training. Its scores are subtracted, and the change of its kernel on the n-grams is measured. A
            :class:`~mechfeat.models.text.Centred` network knows it. For others without it, scores are taken as they are and the regime is
            not measured.
        step: Which of the predicted numbers of steps the network has taken; the last by default.
        drift: Relative change of the kernel where it was measured elsewhere.
        width: Of the network, for the cross-talk; by default read off a text model of the library, or the one that was predicted for.
        n_boot: Bootstrap draws of n-grams.
        seed: Seed of the bootstrap.

    Returns:
        ``value``: Pearson's correlation over n-grams and classes, in [-1, 1]; NaN where one side is constant. ``null``: correlation of the
        network's scores with predictions from permuted labels, which know model and documents but not what was taught; there is one for
        the last predicted step. ``interval``: bootstrap over n-grams, 95 %. ``reliability``: share of signal in the distance to the null.
        ``n``: number of n-grams.

    Raises:
        ShapeError: Scores do not have the shape of the prediction.
        NonFiniteError: A score of the network is NaN or infinite.
        OptionError: ``n_boot`` is negative.

    Warns:
        RichRegimeWarning: The kernel moved by 0.1 of its norm or more, so that the prediction need not hold.

    What :func:`measured_scores` and :func:`kernel_drift` raise is raised as well.

    Cost:
        Two empirical kernels on up to 256 n-grams where ``initial`` is given.

    Source:
        Chizat, Oyallon and Bach 2019, *On Lazy Training in Differentiable Programming*, for the two regimes.

    Example:
        >>> import mechfeat as mf
        >>> def bag(x1, x2=None):  # a linear bag of tokens: the kernel counts matching tokens
        ...     x2 = x1 if x2 is None else x2
        ...     return 3.0 * (x1[:, None, :, None] == x2[None, :, None, :]).double().sum((2, 3))
        >>> docs, labels = torch.tensor([[0, 2], [1, 2], [0, 3]]), torch.tensor([1, 0, 1])
        >>> prediction = mf.ntk.predict_features(bag, docs, labels, torch.arange(4)[:, None], steps=1, lr=1.0, n_null=0)
        >>> found = mf.ntk.compare(prediction, 0.9 * prediction.scores[0])
        >>> round(found.value, 6), round(found.relative_error, 3), found.regime
        (1.0, 0.111, 'not measured')
    """
    if n_boot < 0:
        raise OptionError("n_boot", n_boot, ("a number of draws, 0 for none",))
    i = prediction.at(step)
    predicted = prediction.scores[i]
    if isinstance(trained, Tensor):
        measured = trained.detach().double().cpu()
        if initial is not None:
            raise ShapeError("initial= was given with scores. Give the trained network, or scores less those before training alone.")
    else:
        measured = measured_scores(trained, prediction.ngrams)
        if initial is not None:
            measured = measured - measured_scores(initial, prediction.ngrams)
        ends = _ends(trained, initial)
        if ends is not None and drift is None:
            drift = kernel_drift(*ends, prediction.ngrams)
        width = _width(trained) if width is None else width
    if measured.shape != predicted.shape:
        raise ShapeError(
            f"The measured scores have shape {list(measured.shape)}, and the prediction {list(predicted.shape)} [ngram class]."
        )
    if not bool(torch.isfinite(measured).all()):
        raise NonFiniteError("A measured score is NaN or infinite. Did training diverge?")
    if drift is not None and regime(drift) == "rich":
        warnings.warn(rich_message(drift), RichRegimeWarning, stacklevel=2)

    value, n = pearson(predicted, measured), len(predicted)
    last = i == len(prediction.steps) - 1
    null, interval, reliability = None, None, None
    reason = prediction.settings.get("no null because") if last else "draws were made for the last step alone"
    if prediction.null_scores is not None and last and not reason:
        null = torch.tensor([pearson(draw, measured) for draw in prediction.null_scores], dtype=torch.float64)
    if n_boot and n >= 4:
        rows = torch.randint(n, (n_boot, n), generator=torch.Generator().manual_seed(seed))
        again = torch.tensor([pearson(predicted[r], measured[r]) for r in rows], dtype=torch.float64)
        again = again[again.isfinite()]
        if len(again) >= 2:
            low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            interval = (low, high)
            reliability = None if null is None or not bool(null.isfinite().all()) else signal_share(value, null, float(again.std()))
    unseen = ~prediction.seen & (prediction.ngrams >= 0).any(1).cpu()
    told = predicted != 0
    norm = float(measured.norm())
    return FeatureComparison(
        value=value,
        n=n,
        seed=seed,
        null=null,
        reliability=reliability,
        interval=interval,
        settings={
            **prediction.settings,
            "unit": "n-gram",
            "n_boot": n_boot,
            "centred": "scores before training subtracted" if initial is not None else "scores as given",
            **({"no null because": reason} if null is None and reason else {}),
        },
        step=prediction.steps[i],
        predicted=predicted,
        measured=measured,
        cross_talk=prediction.cross_talk(width, prediction.steps[i]),
        per_class=torch.tensor([pearson(predicted[:, c], measured[:, c]) for c in range(predicted.shape[1])], dtype=torch.float64),
        spearman=_spearman(predicted, measured),
        sign_accuracy=float((predicted.sign() == measured.sign())[told].double().mean()) if bool(told.any()) else math.nan,
        relative_error=float((predicted - measured).norm()) / norm if norm else math.nan,
        bias_predicted=predicted[unseen].mean(0) if bool(unseen.any()) else None,
        bias_measured=measured[unseen].mean(0) if bool(unseen.any()) else None,
        drift=drift,
        names=prediction.names,
    )


def pearson(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """Pearson's correlation over all entries.

    Args:
        a: Values.
        b: Values of the same shape.

    Returns:
        In [-1, 1]; NaN where one side is constant.

    Example:
        >>> pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        1.0
    """
    a, b = (v.double().flatten() for v in (a, b))
    a, b = ((v - v.mean()) / max(float(v.abs().max()), 1e-300) for v in (a, b))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 1e-12 * a.numel() else math.nan


def _spearman(a: Tensor, b: Tensor) -> float:
    from scipy.stats import rankdata

    return pearson(*(torch.from_numpy(rankdata(v.flatten().numpy())) for v in (a, b)))


def _ends(trained: nn.Module | HookedModel, initial: nn.Module | HookedModel | None) -> tuple[nn.Module, nn.Module] | None:
    """The network before and after training; a centred one holds both."""
    after = unwrap(trained)
    if initial is not None:
        return unwrap(initial), after
    if not isinstance(after, Centred):
        return None
    before = copy.deepcopy(after.initial)
    for copied, p in zip(before.parameters(), after.model.parameters()):
        copied.requires_grad_(p.requires_grad)
    return before, after.model


def _width(model: nn.Module | HookedModel) -> tuple[int, int] | None:
    module = unwrap(model)
    module = module.model if isinstance(module, Centred) else module
    d, m = getattr(module, "d_model", None), getattr(module, "width", None)
    return (d, m) if isinstance(d, int) and isinstance(m, int) else None
