"""The result of a prediction: scores, the parts they are made of, and how far a real network may be from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechfeat.errors import OptionError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.ntk.predict.cross_talk import widths
from mechfeat.ntk.predict.regime import DRIFT_LIMIT


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class FeaturePrediction(Stored):
    r"""What training is predicted to add to a network's outputs on tokens and n-grams fed in alone.

    Attributes:
        ngrams: The n-grams as padded ids.
        steps: Numbers of steps, or times for flow.
        scores: Label scores, in nats for logistic and softmax loss; one class axis entry for one output.
        bias: The part that each n-gram would get if no document had its tokens: what all tokens share.
        rate: Score that the first step adds, the statistical feature: proportional to counts.
        rate_bias: Its bias part.
        seen: Whether a document has a token of the n-gram.
        null_scores: Scores after the last step where documents have each other's labels, one row a permutation; None if there are none.
        noise: Variance of scores by cross-talk at finite width, times d (first) and times m (second), see :meth:`cross_talk`; None
            where its form is not known.
        length: Distance in parameters, in units of the smallest initial standard deviation; None where the kernel does not say.
        names: What the n-grams are called.
        settings: The options that produced it.
    """

    ngrams: Int[Tensor, "ngram position"]
    steps: tuple[int | float, ...]
    scores: Float[Tensor, "step ngram class"]
    bias: Float[Tensor, "step ngram class"]
    rate: Float[Tensor, "ngram class"]
    rate_bias: Float[Tensor, "ngram class"]
    seen: Bool[Tensor, " ngram"]
    null_scores: Float[Tensor, "draw ngram class"] | None = None
    noise: Float[Tensor, "2 step ngram class"] | None = None
    length: Float[Tensor, " step"] | None = None
    names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cooccurrence(self) -> Float[Tensor, "step ngram class"]:
        """The part of the scores that comes from documents which have the n-gram's tokens: ``scores - bias``."""
        return self.scores - self.bias

    def at(self, step: int | float | None) -> int:
        """Index of a number of steps.

        Args:
            step: One of ``steps``; the last by default.

        Returns:
            Its place.

        Raises:
            OptionError: There is no such number of steps.
        """
        if step is None:
            return len(self.steps) - 1
        if step not in self.steps:
            raise OptionError("step", step, self.steps)
        return self.steps.index(step)

    def first_order(self, step: int | float | None = None) -> Float[Tensor, "ngram class"]:
        """Scores if all steps were like the first: counts, without what training takes back as it fits.

        Args:
            step: One of ``steps``; the last by default.

        Returns:
            ``step`` times :attr:`rate`.

        What :meth:`at` raises is raised as well.
        """
        return self.rate * self.steps[self.at(step)]

    def cross_talk(
        self, width: int | tuple[int, int] | None = None, step: int | float | None = None
    ) -> Float[Tensor, "ngram class"] | None:
        r"""Standard deviation, over networks, of what other tokens add to a score by overlapping with it.

        It holds the coefficients of training at their predicted values; a network that fits its documents takes some of it back.

        Args:
            width: Of the network: one number, or embedding size d and hidden width m; by default the one that was predicted for.
            step: One of ``steps``; the last by default.

        Returns:
            In units of the scores; None where its form or the width is not known.

        What :meth:`at` raises is raised as well.
        """
        i, known = self.at(step), self._width(width)
        if self.noise is None or known is None:
            return None
        d, m = known
        return (self.noise[0, i] / d + self.noise[1, i] / m).sqrt()

    def expected_movement(self, width: int | tuple[int, int] | None = None, step: int | float | None = None) -> float | None:
        r"""How far parameters have to move, relative to what they were: below 0.1 the kernel stays where it is, far above 1 it does not.

        .. math:: \sqrt{α^\top Θ α} \,\big/\, (s \sqrt m)

        with s the smallest initial standard deviation. What a trained network did is measured by :func:`compare`.

        Args:
            width: Of the network; by default the one that was predicted for.
            step: One of ``steps``; the last by default.

        Returns:
            Dimensionless, 0 or more; None where the kernel or the width is not known.

        What :meth:`at` raises is raised as well.
        """
        i, known = self.at(step), self._width(width)
        return None if self.length is None or known is None else float(self.length[i]) / min(known) ** 0.5

    def verdict(self, width: int | tuple[int, int] | None = None, step: int | float | None = None) -> str:
        """The regime to expect, in words.

        Args:
            width: Of the network; by default the one that was predicted for.
            step: One of ``steps``; the last by default.

        Returns:
            A sentence without its full stop.

        What :meth:`at` raises is raised as well.
        """
        drift = self.expected_movement(width, step)
        if drift is None:
            return "regime unknown: give width=, or measure the drift with compare"
        expected = "kernel regime" if drift < DRIFT_LIMIT else "edge of the kernel regime" if drift < 1 else "rich"
        return (
            f"{expected} expected: parameters move by about {drift:.2g} of their size (limit {DRIFT_LIMIT:g}); compare measures the drift"
        )

    def table(self, step: int | float | None = None, rows: int | None = 20) -> str:
        """Scores as text, each with its cross-talk, and the verdict on the regime.

        Args:
            step: One of ``steps``; the last by default.
            rows: At most this many n-grams, those with the largest scores; None for all.

        Returns:
            A table.

        What :meth:`at` raises is raised as well.
        """
        i = self.at(step)
        scores, bias, noise = self.scores[i], self.bias[i], self.cross_talk(step=self.steps[i])
        unit = ""
        if noise is None and self.noise is not None:
            noise, unit = self.cross_talk(1, step=self.steps[i]), "/√width"
        order = scores.abs().amax(1).sort(descending=True, stable=True).indices.tolist()
        shown = order if rows is None else order[:rows]
        head = ("n-gram", "class", "score", "cross-talk", "co-occurrence", "bias")
        cells = [head]
        for g in shown:
            for c in range(scores.shape[1]):
                talk = "unknown" if noise is None else f"± {float(noise[g, c]):.3g}{unit}"
                part = scores[g, c] - bias[g, c]
                cells.append((self.name(g), str(c), f"{scores[g, c]:+.4g}", talk, f"{part:+.4g}", f"{bias[g, c]:+.4g}"))
        if scores.shape[1] == 1:
            cells = [(row[0], *row[2:]) for row in cells]  # type: ignore[misc]
        size = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
        lines = ["  ".join(cell.rjust(n) if k else cell.ljust(n) for k, (cell, n) in enumerate(zip(row, size))).rstrip() for row in cells]
        left = [f"({len(order) - len(shown)} more)"] if len(shown) < len(order) else []
        loss, what = self.settings.get("loss"), "steps" if self.settings.get("time") == "descent" else "time"
        return "\n".join([f"Predicted scores at {what} {self.steps[i]:g}, {loss} loss", *lines, *left, self.verdict(step=self.steps[i])])

    def name(self, i: int) -> str:
        """What an n-gram is called.

        Args:
            i: Which.

        Returns:
            Its name, or its ids.
        """
        return self.names[i] if self.names else " ".join(str(t) for t in self.ngrams[i].tolist() if t >= 0) or "(empty)"

    def _width(self, width: int | tuple[int, int] | None) -> tuple[int, int] | None:
        if width is not None:
            return widths(width)
        told = self.settings.get("width")
        return None if told is None else (int(told[0]), int(told[1]))

    def __str__(self) -> str:
        return self.table()


def fresh(ngrams: Int[Tensor, "ngram position"], first: int) -> Int[Tensor, "ngram position"]:
    """The same n-grams made of tokens that no document has: equal tokens stay equal, others stay different.

    Args:
        ngrams: Padded ids.
        first: Smallest id that no document has.

    Returns:
        Padded ids from ``first`` on.

    Example:
        >>> fresh(torch.tensor([[4, 2, 4], [3, -1, -1]]), 10)
        tensor([[10, 11, 10],
                [10, -1, -1]])
    """
    same = ngrams[:, :, None] == ngrams[:, None, :]
    earliest = same.to(torch.int64).argmax(2)  # position at which each token was first seen
    is_new = earliest == torch.arange(ngrams.shape[1], device=ngrams.device)
    order = (is_new & (ngrams >= 0)).cumsum(1) - 1
    return torch.where(ngrams >= 0, first + order.gather(1, earliest), ngrams)
