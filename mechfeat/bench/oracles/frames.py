"""Literal forms of the measures of frames, units and activations: Python floats, one loop a sum sign.

For comparison only. ``W`` is ``[feature hidden]``; rows of zeros are features that are not represented.
"""

import math

from jaxtyping import Float
from torch import Tensor


def cosines(W: Float[Tensor, "feature hidden"]) -> list[list[float]]:
    """Cosine of each two represented rows.

    Args:
        W: Feature directions.

    Returns:
        A square table of the rows other than 0.
    """
    rows = [r for r in W.double().tolist() if any(r)]
    unit = []
    for r in rows:
        top = max(abs(x) for x in r)
        scaled = [x / top for x in r]
        norm = math.sqrt(sum(x * x for x in scaled))
        unit.append([x / norm for x in scaled])
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in unit] for a in unit]


def coherence(W: Float[Tensor, "feature hidden"]) -> float:
    """Largest absolute cosine of two rows.

    Args:
        W: Feature directions.

    Returns:
        A value in [0, 1].
    """
    c = cosines(W)
    return max((abs(c[i][j]) for i in range(len(c)) for j in range(len(c)) if i != j), default=0.0)


def welch_bound(W: Float[Tensor, "feature hidden"]) -> float:
    """The bound of Welch 1974.

    Args:
        W: Feature directions.

    Returns:
        A value in [0, 1).
    """
    n, m = len(cosines(W)), W.shape[1]
    return math.sqrt((n - m) / (m * (n - 1))) if n > m else 0.0


def frame_potential(W: Float[Tensor, "feature hidden"]) -> float:
    """Sum of squared cosines over the least possible, Benedetto & Fickus 2003.

    Args:
        W: Feature directions.

    Returns:
        A value of at least 1; 0 for a zero matrix.
    """
    c = cosines(W)
    n, m = len(c), W.shape[1]
    if n == 0:
        return 0.0
    total = 0.0
    for row in c:
        for x in row:
            total += x * x
    return total / max(n * n / m, n)


def relu_energy(W: Float[Tensor, "feature hidden"]) -> float:
    """Sum of squared positive cosines of two different rows.

    Args:
        W: Feature directions.

    Returns:
        A value of at least 0.
    """
    c = cosines(W)
    return sum((max(c[i][j], 0.0) ** 2 for i in range(len(c)) for j in range(len(c)) if i != j), 0.0)


def mean_squared_overlap(W: Float[Tensor, "feature hidden"]) -> float:
    """Mean squared cosine of two different rows.

    Args:
        W: Feature directions.

    Returns:
        A value in [0, 1]; 0 with fewer than two rows.
    """
    c = cosines(W)
    pairs = [c[i][j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j]
    return sum(pairs) / len(pairs) if pairs else 0.0


def polysemanticity(W: Float[Tensor, "feature unit"]) -> list[float]:
    """One less the largest share of a column's squares.

    Args:
        W: Weights.

    Returns:
        One value a column.
    """
    found = []
    for u in range(W.shape[1]):
        a = [float(x) for x in W[:, u]]
        total = sum(x * x for x in a)
        found.append(1 - max(x * x for x in a) / total if total else 0.0)
    return found


def features_per_unit(W: Float[Tensor, "feature unit"]) -> list[float]:
    """Participation ratio of a column's squares.

    Args:
        W: Weights.

    Returns:
        One value a column.
    """
    found = []
    for u in range(W.shape[1]):
        a = [float(x) ** 2 for x in W[:, u]]
        found.append(sum(a) ** 2 / sum(x * x for x in a) if any(a) else 0.0)
    return found


def effective_features(A: Float[Tensor, "sample feature"]) -> float:
    """Exponential of the entropy of the features' shares of summed absolute activation, Bereska et al. 2025.

    Args:
        A: Activations.

    Returns:
        A value in [1, n]; 0 where nothing is active.
    """
    use = [sum(abs(float(x)) for x in A[:, j]) for j in range(A.shape[1])]
    total = sum(use)
    if total == 0:
        return 0.0
    entropy = 0.0
    for u in use:
        if u > 0:
            entropy -= u / total * math.log(u / total)
    return math.exp(entropy)


def concept_separability(A: Float[Tensor, "sample unit"], labels: list[int], bins: int) -> list[float]:
    """Root of the Jensen–Shannon divergence of the histograms of ranks, one a concept, over its largest value.

    Args:
        A: Activations.
        labels: Concept of each sample.
        bins: Bins.

    Returns:
        One value a unit.
    """
    concepts = sorted(set(labels))
    found = []
    for u in range(A.shape[1]):
        a = [float(x) for x in A[:, u]]
        histograms = {c: [0.0] * bins for c in concepts}
        for x, c in zip(a, labels, strict=True):
            middle = (sum(y < x for y in a) + sum(y <= x for y in a)) / 2  # ranks below it, and half of its equals
            histograms[c][int(bins * middle / len(a))] += 1 / labels.count(c)
        mixture = [sum(h[k] for h in histograms.values()) / len(concepts) for k in range(bins)]

        def entropy(p: list[float]) -> float:
            return -sum(x * math.log(x) for x in p if x > 0)

        divergence = entropy(mixture) - sum(entropy(h) for h in histograms.values()) / len(concepts)
        found.append(math.sqrt(max(divergence, 0.0) / math.log(len(concepts))))
    return found


def one_hot_loss(W: Float[Tensor, "feature hidden"], U: Float[Tensor, "feature hidden"], b: Float[Tensor, " feature"]) -> float:
    """Mean squared error over all one-hot inputs, one input and output at a time.

    Args:
        W: Embedding.
        U: Unembedding.
        b: Output bias.

    Returns:
        A value of at least 0.
    """
    f = len(W)
    total = 0.0
    for i in range(f):
        for j in range(f):
            pre = sum(float(x) * float(y) for x, y in zip(W[i], U[j], strict=True)) + float(b[j])
            total += (max(pre, 0.0) - (1.0 if i == j else 0.0)) ** 2
    return total / f**2


def adversarial_vulnerability(
    W: Float[Tensor, "feature hidden"], b: Float[Tensor, " feature"], x: Float[Tensor, "sample feature"], epsilon: float
) -> float:
    """The worst of the attacks along rows of W Wᵀ, one input and output at a time.

    Args:
        W: Feature directions.
        b: Output bias.
        x: Inputs.
        epsilon: Length of the attack.

    Returns:
        Rise of the loss over the squared length.
    """
    rows = W.tolist()
    n = len(rows)
    gram = [[sum(p * q for p, q in zip(a, c, strict=True)) for c in rows] for a in rows]

    def loss(step: list[float]) -> float:
        total = 0.0
        for sample in x.tolist():
            moved = [s + d for s, d in zip(sample, step, strict=True)]
            for j in range(n):
                pre = sum(moved[i] * gram[i][j] for i in range(n)) + float(b[j])
                total += (sample[j] - max(pre, 0.0)) ** 2
        return total / len(x)

    clean = loss([0.0] * n)
    worst = 0.0
    for g in gram:
        norm = math.sqrt(sum(v * v for v in g))
        if norm > 0:
            worst = max(worst, loss([epsilon * v / norm for v in g]) - clean)
    return worst / epsilon**2
