r"""Tokens that stand with one label, with the other, and with both alike.

With :math:`n_w^\pm` the occurrences of a token in the documents of the two classes, its polarity is
:math:`(n_w^+ - n_w^-) / (n_w^+ + n_w^-)`, from -1 to 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.data.text.corpus import Corpus
from mechfeat.errors import OptionError, ShapeError


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """Tokens by their polarity, the most frequent of each group first.

    Attributes:
        positive: Ids of tokens that stand mostly in documents of class 1.
        negative: Ids of tokens that stand mostly in documents of class 0.
        neutral: Ids of tokens that stand in both alike.
    """

    positive: Int[Tensor, " positive"]
    negative: Int[Tensor, " negative"]
    neutral: Int[Tensor, " neutral"]


def select_tokens(
    corpus: Corpus,
    *,
    rate: int | float = 0.5,
    min_count: int = 5,
    neutral_rate: int | float = 0.1,
    neutral_gap: int = 5,
) -> TokenGroups:
    r"""Positive, negative and neutral tokens of a corpus with two classes.

    A token is positive where its polarity is above ``rate`` and :math:`n_w^+` above ``min_count``, negative likewise on the other side, and
    neutral where its polarity is below ``neutral_rate`` and the difference of counts below ``neutral_gap``, both in absolute value.
    Rare tokens can be neutral: a token that occurs once in each class is.

    Args:
        corpus: Documents with labels 0 and 1.
        rate: Polarity that a polar token exceeds, in [0, 1).
        min_count: Count in its own class that a polar token exceeds.
        neutral_rate: Polarity that a neutral token stays below.
        neutral_gap: Difference of counts that a neutral token stays below.

    Returns:
        The three groups.

    Raises:
        ShapeError: There are not two classes, or only one of them has documents.
        OptionError: There are no labels, or the rate is not in [0, 1).

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*, the polarity analysis of the authors' code.

    Example:
        >>> from mechfeat.data.text.texts import Texts
        >>> texts = Texts(("good film", "good story", "bad film", "bad story"), torch.tensor([1, 1, 0, 0]), ("neg", "pos"))
        >>> corpus = Corpus.build(texts)
        >>> groups = select_tokens(corpus, min_count=1)
        >>> [[corpus.vocabulary.tokens[i] for i in ids] for ids in (groups.positive, groups.negative, groups.neutral)]
        [['good'], ['bad'], ['film', 'story']]
    """
    if not 0 <= rate < 1:
        raise OptionError("rate", rate, ("a number in [0, 1)",))
    negative, positive = two_classes(corpus)
    gap, total = positive - negative, positive + negative
    share = gap / total.clamp(min=1)
    groups = (
        ((share > rate) & (positive > min_count), positive),
        ((share < -rate) & (negative > min_count), negative),
        ((share.abs() < neutral_rate) & (gap.abs() < neutral_gap) & (total > 0), total),
    )
    found = [torch.argsort(torch.where(chosen, count, -1), descending=True, stable=True)[: int(chosen.sum())] for chosen, count in groups]
    return TokenGroups(*found)


def smoothed_log_odds(corpus: Corpus, *, smoothing: int | float = 0.5) -> Float[Tensor, " token"]:
    r"""How much more often each token stands in documents of class 1 than of class 0.

    .. math:: \log \frac{n_w^+ + s}{n_w^- + s}

    Args:
        corpus: Documents with labels 0 and 1.
        smoothing: What is added to both counts.

    Returns:
        Values in nats; 0 for a token that does not occur.

    Raises:
        ShapeError: There are not two classes, or only one of them has documents.
        OptionError: There are no labels, or ``smoothing`` is not positive.
    """
    if not smoothing > 0:
        raise OptionError("smoothing", smoothing, ("a positive number",))
    negative, positive = (n.double() + smoothing for n in two_classes(corpus))
    return (positive / negative).log()


def two_classes(corpus: Corpus) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Counts of each token in the documents of class 0 and of class 1.

    Args:
        corpus: Documents with labels 0 and 1.

    Returns:
        Both counts.

    Raises:
        ShapeError: There are not two classes, or only one of them has documents.
        OptionError: There are no labels.
    """
    labels, n_classes = corpus.labelled()
    documents = torch.bincount(labels, minlength=n_classes).tolist()
    if n_classes != 2 or not all(documents):
        raise ShapeError(
            f"The corpus has {n_classes} classes with {documents} documents. Polarity compares two classes, 0 and 1, that both have some; "
            "Corpus.class_counts holds the counts of any number of classes."
        )
    negative, positive = corpus.class_counts
    return negative, positive
