"""Literal infinite-width kernels of two documents, as double sums over positions in Python floats.

Written from the formulas, term by term, every part trained, for comparison only. Documents are lists of tokens without padding;
a dual activation is a triple of functions (k, k1, k2) of variances and covariance; ``s`` has the standard deviations ``e w v M h x``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

Doc = Sequence[int]
Dual = tuple[Callable[[float, float, float], float], ...]


class Sd(NamedTuple):
    """Standard deviations."""

    e: float = 1.0
    w: float = 1.0
    v: float = 1.0
    M: float = 1.0
    h: float = 1.0
    x: float = 1.0


def relu() -> Dual:
    """Dual activations of ReLU.

    Returns:
        k and k1.
    """

    def angle(a: float, b: float, c: float) -> float:
        return math.atan2(math.sqrt(max(0.0, a * b - c * c)), c)  # the arccosine loses half of the digits near 0

    def k(a: float, b: float, c: float) -> float:
        th = angle(a, b, c)
        return math.sqrt(a * b) * (math.sin(th) + (math.pi - th) * math.cos(th)) / (2 * math.pi)

    return k, lambda a, b, c: (math.pi - angle(a, b, c)) / (2 * math.pi)


def erf() -> Dual:
    """Dual activations of erf.

    Returns:
        k, k1 and k2.
    """

    def k(a: float, b: float, c: float) -> float:
        return 2 / math.pi * math.asin(2 * c / math.sqrt((1 + 2 * a) * (1 + 2 * b)))

    def k1(a: float, b: float, c: float) -> float:
        return 4 / math.pi / math.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c * c)

    def k2(a: float, b: float, c: float) -> float:
        return 16 * c / math.pi * ((1 + 2 * a) * (1 + 2 * b) - 4 * c * c) ** -1.5

    return k, k1, k2


def _layer(q: float, p: float, o: float, s: Sd, dual: Dual) -> float:
    t2 = s.w**2 * s.e**2
    k, k1 = dual[0](t2 * q, t2 * p, t2 * o), dual[1](t2 * q, t2 * p, t2 * o)
    return k + s.v**2 * s.e**2 * o * k1 + s.v**2 * s.w**2 * o * k1


def bag(x: Doc, y: Doc, s: Sd, dual: Dual) -> float:
    """Bag of tokens.

    Args:
        x: A document.
        y: Another.
        s: Standard deviations.
        dual: Dual activations.

    Returns:
        The kernel.
    """
    return sum(_layer(1.0, 1.0, float(a == b), s, dual) for a in x for b in y)


def conv(x: Doc, y: Doc, s: Sd, dual: Dual, size: int, padding: int) -> float:
    """Text CNN.

    Args:
        x: A document.
        y: Another.
        s: Standard deviations.
        dual: Dual activations.
        size: Tokens of a window.
        padding: Zeros at each end.

    Returns:
        The kernel.
    """

    def windows(d: Doc) -> list[list[int | None]]:
        padded = [None] * padding + list(d) + [None] * padding
        found = [padded[i : i + size] for i in range(len(padded) - size + 1)]
        return [w for w in found if any(t is not None for t in w)]

    total = 0.0
    for A in windows(x):
        for B in windows(y):
            o = float(sum(a is not None and a == b for a, b in zip(A, B)))
            total += _layer(float(sum(a is not None for a in A)), float(sum(b is not None for b in B)), o, s, dual)
    return total


def attention_weights(x: Doc, s: Sd, causal: bool = False) -> list[list[float]]:
    """Deterministic attention with tied queries and keys.

    Args:
        x: A document.
        s: Standard deviations.
        causal: Whether later keys are left out.

    Returns:
        Rows that sum to 1.
    """
    rows = []
    for i, a in enumerate(x):
        row = [math.exp(s.e**2 * (a == b)) * (not causal or j <= i) for j, b in enumerate(x)]
        rows.append([r / sum(row) for r in row])
    return rows


def attention(x: Doc, y: Doc, s: Sd, *, value: bool, residual: bool, uniform: bool = False) -> float:
    """Self-attention without a nonlinearity.

    Args:
        x: A document.
        y: Another.
        s: Standard deviations.
        value: Whether there is a value matrix.
        residual: Whether embeddings are added.
        uniform: Attention that does not look.

    Returns:
        The kernel.
    """

    def received(d: Doc) -> list[float]:
        if uniform:
            return [1.0] * len(d)
        return [sum(column) for column in zip(*attention_weights(d, s))]

    plain = s.e**2 + s.v**2
    valued = s.w**2 * s.e**2 + s.v**2 * s.e**2 + s.v**2 * s.w**2
    total = 0.0
    for a, u in zip(received(x), x):
        for b, w in zip(received(y), y):
            if u == w:
                total += valued * a * b + plain * residual if value else plain * (a + residual) * (b + residual)
    return total


def mixing(x: Doc, y: Doc, A: Sequence[Sequence[float]], B: Sequence[Sequence[float]], s: Sd, dual: Dual, last: bool = False) -> float:
    """Mixed positions and a hidden layer.

    Args:
        x: A document.
        y: Another.
        A: Its mixing.
        B: That of the other.
        s: Standard deviations.
        dual: Dual activations.
        last: Whether only the last positions are read.

    Returns:
        The kernel.
    """

    def overlap(row: Sequence[float], d: Doc, column: Sequence[float], f: Doc) -> float:
        return math.fsum(row[j] * column[l] for j in range(len(d)) for l in range(len(f)) if d[j] == f[l])

    total = 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            if last and (i < len(x) - 1 or j < len(y) - 1):
                continue
            total += _layer(overlap(A[i], x, A[i], x), overlap(B[j], y, B[j], y), overlap(A[i], x, B[j], y), s, dual)
    return total


def bigram(x: Doc, y: Doc, s: Sd, unigram: float) -> float:
    """Matrix-vector model of bigrams.

    Args:
        x: A document.
        y: Another.
        s: Standard deviations.
        unigram: Weight of the part without products.

    Returns:
        The kernel.
    """
    one = sum(a == b for a in x for b in y)
    two = sum(p == q for p in pairwise(x) for q in pairwise(y))
    return unigram**2 * (s.e**2 + s.v**2) * one + (s.M**2 * s.e**2 + s.v**2 * s.e**2 + s.v**2 * s.M**2) * two


def hadamard(x: Doc, y: Doc, s: Sd) -> float:
    """Entry-wise products, of two documents."""
    t2 = s.w**2 * s.e**2
    two = sum(p == q for p in pairwise(x) for q in pairwise(y))
    return (t2**2 + 2 * s.v**2 * t2 * (s.e**2 + s.w**2)) * two


def matrix_vector_rnn(x: Doc, y: Doc, s: Sd) -> float:
    """Matrix-vector recurrent network, read at the end.

    Args:
        x: A document.
        y: Another.
        s: Standard deviations.

    Returns:
        The kernel.
    """

    def K(i: int, j: int) -> float:
        return 0.0 if i == 0 or j == 0 or x[i - 1] != y[j - 1] else s.e**2 + s.M**2 * K(i - 1, j - 1)

    total, B, i, j = K(len(x), len(y)), s.v**2, len(x), len(y)
    while i and j and x[i - 1] == y[j - 1]:
        total += B * (1 + K(i - 1, j - 1))
        B, i, j = B * s.M**2, i - 1, j - 1
    return total


def linear_rnn(x: Doc, y: Doc, s: Sd) -> float:
    """Linear recurrent network, read at the end, as the explicit sum.

    Args:
        x: A document.
        y: Another.
        s: Standard deviations.

    Returns:
        The kernel.
    """
    total = 0.0
    for n in range(min(len(x), len(y))):
        if x[-1 - n] == y[-1 - n]:
            total += (s.e**2 + s.v**2) * s.h ** (2 * n) + (n * s.v**2 * s.e**2 * s.h ** (2 * (n - 1)) if n else 0.0)
    return total


def gated_linear_rnn(x: Doc, y: Doc, s: Sd, dual: Dual) -> float:
    """Gated linear recurrent network, read at the end.

    Args:
        x: A document.
        y: Another.
        s: Standard deviations.
        dual: Dual activations, all three.

    Returns:
        The kernel.
    """
    q = s.x**2 * s.e**2

    def at(f: int, i: int, j: int) -> float:
        return dual[f](q, q, q if x[i - 1] == y[j - 1] else 0.0)

    def K(i: int, j: int) -> float:
        return at(0, i, j) + s.h**2 * at(1, i, j) * K(i - 1, j - 1) if i and j else 0.0

    total, B = K(len(x), len(y)), s.v**2
    for n in range(min(len(x), len(y))):
        i, j = len(x) - n, len(y) - n
        before = K(i - 1, j - 1)
        total += B * at(1, i, j) * before
        if x[i - 1] == y[j - 1]:
            total += B * (s.e**2 + s.x**2) * (at(1, i, j) + s.h**2 * at(2, i, j) * before)
        B *= s.h**2 * at(1, i, j)
    return total


def pooled(last: Callable[[Doc, Doc], float], x: Doc, y: Doc) -> float:
    """The sum over all pairs of prefixes.

    Args:
        last: Kernel of the output at the last token.
        x: A document.
        y: Another.

    Returns:
        The kernel.
    """
    return sum(last(x[:i], y[:j]) for i in range(1, len(x) + 1) for j in range(1, len(y) + 1))
