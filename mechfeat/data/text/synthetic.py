"""Corpora whose truth is known: polar tokens with exact log-odds, topics of several classes, negation, and order of word pairs.

Every document is drawn from a distribution that is stated, so that what training should find can be written down before it starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.data.text.corpus import Corpus, padded
from mechfeat.data.text.vocabulary import Vocabulary
from mechfeat.errors import OptionError


@dataclass(frozen=True, eq=False)
class Planted:
    """A corpus and the truth behind it.

    Attributes:
        corpus: The documents.
        groups: Ids of tokens by what they were planted as.
        log_probabilities: Log-probability of each token at any position of a document of each class, in nats; None where tokens of a
            document are not drawn independently. -inf for tokens that never occur.
    """

    corpus: Corpus
    groups: Mapping[str, Int[Tensor, " _"]]
    log_probabilities: Float[Tensor, "class token"] | None = None


def topics(
    n_docs: int,
    *,
    n_classes: int = 4,
    n_topical: int = 5,
    n_neutral: int = 19,
    n_unseen: int = 1,
    strength: int | float = 2.0,
    shares: Sequence[int | float] | None = None,
    length: tuple[int, int] = (5, 15),
    generator: torch.Generator | None = None,
) -> Planted:
    """Documents of several classes, each of which prefers tokens of its own.

    Tokens of a document are drawn independently: those of its class are exp(strength) times as likely as all others.

    Args:
        n_docs: Documents.
        n_classes: Classes.
        n_topical: Tokens that each class prefers.
        n_neutral: Tokens that no class prefers.
        n_unseen: Tokens of the vocabulary that never occur.
        strength: Log-odds of a class's own tokens against others, in nats.
        shares: Share of the documents that each class has, in any unit; equal by default.
        length: Shortest and longest document, drawn uniformly.
        generator: Source of the draws; the default one of torch if None.

    Returns:
        The corpus; groups ``"class 0"``, ``"class 1"``, ..., ``"neutral"`` and ``"unseen"``.

    Raises:
        OptionError: A size is negative, the length is no range, or shares are not one positive number a class.

    Example:
        >>> made = topics(100, n_classes=3, generator=torch.Generator().manual_seed(0))
        >>> made.corpus.n_tokens, made.groups["class 2"]
        (35, tensor([10, 11, 12, 13, 14]))
        >>> int(made.corpus.class_counts[:, 34].sum())
        0
    """
    for option, value, least in (
        ("n_docs", n_docs, 1),
        ("n_classes", n_classes, 2),
        ("n_topical", n_topical, 0),
        ("n_neutral", n_neutral, 0),
        ("n_unseen", n_unseen, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise OptionError(option, value, (f"an integer from {least}",))
    if not 0 <= length[0] <= length[1]:
        raise OptionError("length", length, ("(shortest, longest)",))
    if shares is not None and (len(shares) != n_classes or not all(s > 0 for s in shares)):
        raise OptionError("shares", tuple(shares), (f"{n_classes} positive numbers",))
    names = [f"topic{c}_{i}" for c in range(n_classes) for i in range(n_topical)]
    names += [f"neutral{i}" for i in range(n_neutral)] + [f"unseen{i}" for i in range(n_unseen)]
    topical, seen = n_classes * n_topical, len(names) - n_unseen
    if not seen:
        raise OptionError("n_topical and n_neutral", (n_topical, n_neutral), ("at least one token that occurs",))
    weight = torch.zeros(n_classes, len(names), dtype=torch.float64)
    for c in range(n_classes):
        weight[c, c * n_topical : (c + 1) * n_topical] = float(strength)
    weight[:, seen:] = -torch.inf
    log_probabilities = weight.log_softmax(-1)
    labels = _labels(n_docs, shares or [1] * n_classes, generator)
    sizes = torch.randint(length[0], length[1] + 1, (n_docs,), generator=generator)
    width = max(1, int(sizes.max()))
    ids = torch.multinomial(log_probabilities.exp()[labels], width, replacement=True, generator=generator)
    ids[torch.arange(width) >= sizes[:, None]] = -1
    every = torch.arange(len(names))
    groups = {f"class {c}": every[c * n_topical : (c + 1) * n_topical] for c in range(n_classes)}
    groups |= {"neutral": every[topical:seen], "unseen": every[seen:]}
    corpus = Corpus(ids, Vocabulary(tuple(names)), labels, tuple(f"class {c}" for c in range(n_classes)))
    return Planted(corpus, groups, log_probabilities)


def polarity(
    n_docs: int,
    *,
    n_polar: int = 10,
    n_neutral: int = 29,
    n_unseen: int = 1,
    strength: int | float = 2.0,
    positive_share: float = 0.5,
    length: tuple[int, int] = (5, 15),
    generator: torch.Generator | None = None,
) -> Planted:
    """Documents of two classes with positive, negative and neutral tokens: ``topics`` of two classes, whose shares may be unequal.

    Args:
        n_docs: Documents.
        n_polar: Positive tokens, and negative ones.
        n_neutral: Tokens as likely in both classes.
        n_unseen: Tokens of the vocabulary that never occur.
        strength: Log-odds of a polar token in its own class against a neutral one, in nats.
        positive_share: Share of the documents of class 1, in (0, 1).
        length: Shortest and longest document.
        generator: Source of the draws; the default one of torch if None.

    Returns:
        The corpus; groups ``"positive"``, ``"negative"``, ``"neutral"`` and ``"unseen"``.

    Raises:
        OptionError: The share is not in (0, 1), or as for ``topics``.

    Example:
        >>> made = polarity(300, positive_share=0.79)
        >>> made.corpus.n_tokens, int(made.corpus.labels.sum())
        (50, 237)
        >>> odds = made.log_probabilities[1] - made.log_probabilities[0]
        >>> [round(float(odds[made.groups[name]].mean()), 6) for name in ("negative", "neutral", "positive")]
        [-2.0, 0.0, 2.0]
    """
    if not 0 < positive_share < 1:
        raise OptionError("positive_share", positive_share, ("a number in (0, 1)",))
    made = topics(
        n_docs,
        n_classes=2,
        n_topical=n_polar,
        n_neutral=n_neutral,
        n_unseen=n_unseen,
        strength=strength,
        shares=(1 - positive_share, positive_share),
        length=length,
        generator=generator,
    )
    groups = {"negative": made.groups["class 0"], "positive": made.groups["class 1"]}
    groups |= {name: made.groups[name] for name in ("neutral", "unseen")}
    names = tuple(t.replace("topic0_", "negative").replace("topic1_", "positive") for t in made.corpus.vocabulary.tokens)
    corpus = Corpus(made.corpus.ids, Vocabulary(names), made.corpus.labels, ("negative", "positive"))
    return Planted(corpus, groups, made.log_probabilities)


def negation(n_docs: int, *, n_fillers: int = 20, generator: torch.Generator | None = None) -> Planted:
    """One to three fillers, perhaps ``not``, one of two adjectives, one to three fillers; the label is adjective XOR ``not``.

    No token says anything about the label by itself: what is additive in tokens does no better than chance.

    Args:
        n_docs: Documents.
        n_fillers: Different fillers.
        generator: Source of the draws; the default one of torch if None.

    Returns:
        The corpus; groups ``"adjectives"`` (the one of class 0 when not negated, the one of class 1), ``"not"`` and ``"fillers"``.

    Raises:
        OptionError: A size is not a positive integer.

    Example:
        >>> made = negation(3, generator=torch.Generator().manual_seed(0))
        >>> made.corpus.vocabulary.tokens[:4]
        ('bad', 'good', 'not', 'filler0')
        >>> for i in range(3):
        ...     print([t for t in made.corpus.tokens(i) if "filler" not in t], int(made.corpus.labels[i]))
        ['not', 'bad'] 1
        ['not', 'good'] 0
        ['not', 'bad'] 1
    """
    _positive(n_docs=n_docs, n_fillers=n_fillers)
    rows, labels = [], []
    for _ in range(n_docs):
        good, negated = _draw(0, 1, 2, generator)
        before, after = _draw(1, 3, 2, generator)
        rows.append(
            [*_fillers(before, 3, n_fillers, generator), *([2] if negated else []), good, *_fillers(after, 3, n_fillers, generator)]
        )
        labels.append(good ^ negated)
    return _planted(
        rows, labels, ("bad", "good", "not", *(f"filler{i}" for i in range(n_fillers))), {"adjectives": (0, 2), "not": (2, 3)}, "fillers"
    )


def bigrams(
    n_docs: int, *, n_pairs: int = 2, n_fillers: int = 20, max_fillers: int = 3, generator: torch.Generator | None = None
) -> Planted:
    """A pair of tokens side by side between fillers, whose order is the label: ``a b`` in class 1, ``b a`` in class 0.

    Both classes hold the same tokens equally often.

    Args:
        n_docs: Documents.
        n_pairs: Different pairs.
        n_fillers: Different fillers.
        max_fillers: Fillers before and after the pair at most, drawn uniformly from 0.
        generator: Source of the draws; the default one of torch if None.

    Returns:
        The corpus; groups ``"first"``, ``"second"`` (of pair i the token i of each group) and ``"fillers"``.

    Raises:
        OptionError: A size is not a positive integer.

    Example:
        >>> made = bigrams(2, n_pairs=1, max_fillers=1, generator=torch.Generator().manual_seed(0))
        >>> [(made.corpus.tokens(i), int(made.corpus.labels[i])) for i in range(2)]
        [(['filler3', 'b0', 'a0'], 0), (['filler3', 'a0', 'b0', 'filler1'], 1)]
    """
    _positive(n_docs=n_docs, n_pairs=n_pairs, n_fillers=n_fillers, max_fillers=max_fillers)
    rows, labels = [], []
    for _ in range(n_docs):
        (label,), (pair,) = _draw(0, 1, 1, generator), _draw(0, n_pairs - 1, 1, generator)
        before, after = _draw(0, max_fillers, 2, generator)
        a, b = pair, n_pairs + pair
        start = 2 * n_pairs
        rows.append(
            [
                *_fillers(before, start, n_fillers, generator),
                *((a, b) if label else (b, a)),
                *_fillers(after, start, n_fillers, generator),
            ]
        )
        labels.append(label)
    names = (*(f"a{i}" for i in range(n_pairs)), *(f"b{i}" for i in range(n_pairs)), *(f"filler{i}" for i in range(n_fillers)))
    return _planted(rows, labels, names, {"first": (0, n_pairs), "second": (n_pairs, 2 * n_pairs)}, "fillers")


def _labels(n_docs: int, shares: Sequence[int | float], generator: torch.Generator | None) -> Int[Tensor, " doc"]:
    """Labels with exactly these shares, up to rounding, in random order."""
    share = torch.tensor(shares, dtype=torch.float64)
    ends = (n_docs * share.cumsum(0) / share.sum()).round().long()
    labels = torch.searchsorted(ends, torch.arange(n_docs), right=True)
    return labels[torch.randperm(n_docs, generator=generator)]


def _draw(low: int, high: int, n: int, generator: torch.Generator | None) -> list[int]:
    return torch.randint(low, high + 1, (n,), generator=generator).tolist()


def _fillers(n: int, start: int, n_fillers: int, generator: torch.Generator | None) -> list[int]:
    return _draw(start, start + n_fillers - 1, n, generator)


def _positive(**sizes: int) -> None:
    for option, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise OptionError(option, value, ("a positive integer",))


def _planted(rows: list[list[int]], labels: list[int], names: tuple[str, ...], spans: Mapping[str, tuple[int, int]], rest: str) -> Planted:
    every = torch.arange(len(names))
    groups = {name: every[a:b] for name, (a, b) in spans.items()}
    groups[rest] = every[max(b for _, b in spans.values()) :]
    return Planted(Corpus(padded(rows), Vocabulary(names), torch.tensor(labels), ("class 0", "class 1")), groups)
