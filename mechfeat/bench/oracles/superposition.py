"""Literal forms of the metrics of superposition: Python floats, one loop a sum sign.

Written from the papers' formulas, for comparison only. ``W`` is ``[feature hidden]``; entries should stay within
1e±60, since nothing is rescaled.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def feature_dimensionality(W: Float[Tensor, "feature hidden"]) -> Float[Tensor, " feature"]:
    """Squared norm of each row over the summed squared projections of all rows on its direction.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values in [0, 1], float64; 0 for a zero row.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*.
    """
    rows = W.double().tolist()
    found = []
    for w_i in rows:
        norm = math.sqrt(sum(x * x for x in w_i))
        if norm == 0:
            found.append(0.0)
            continue
        denominator = 0.0
        for w_j in rows:
            denominator += (sum(x * y for x, y in zip(w_i, w_j, strict=True)) / norm) ** 2
        found.append(norm**2 / denominator)
    return torch.tensor(found, dtype=torch.float64)


def interference(W: Float[Tensor, "feature hidden"]) -> Float[Tensor, " feature"]:
    """Summed squared projections of the other rows on the direction of each row.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        Values ≥ 0, float64, in squared units of ``W``; 0 for a zero row.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*.
    """
    rows = W.double().tolist()
    found = []
    for i, w_i in enumerate(rows):
        norm = math.sqrt(sum(x * x for x in w_i))
        total = 0.0
        for j, w_j in enumerate(rows):
            if j != i and norm > 0:
                total += (sum(x * y for x, y in zip(w_i, w_j, strict=True)) / norm) ** 2
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def features_per_dimension(W: Float[Tensor, "feature hidden"]) -> Float[Tensor, ""]:
    """Squared Frobenius norm over the number of hidden dimensions.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        A value ≥ 0, float64.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "The Geometry of Superposition".
    """
    total = 0.0
    for row in W.double().tolist():
        for x in row:
            total += x**2
    return torch.tensor(total / W.shape[-1], dtype=torch.float64)


def singular_values(W: Float[Tensor, "feature hidden"]) -> list[float]:
    """Singular values by one-sided Jacobi rotations: columns are rotated in pairs until all are orthogonal.

    Args:
        W: Any matrix.

    Returns:
        One value per column, largest first, in the unit of ``W``.

    Source:
        Hestenes 1958, *Inversion of matrices by biorthogonalization and related results*.
    """
    columns = W.double().T.tolist()
    for _ in range(60):
        rotated = False
        for k in range(len(columns)):
            for l in range(k + 1, len(columns)):
                a, b = columns[k], columns[l]
                aa, bb = sum(x * x for x in a), sum(x * x for x in b)
                ab = sum(x * y for x, y in zip(a, b, strict=True))
                if abs(ab) <= 1e-15 * math.sqrt(aa * bb):
                    continue
                rotated = True
                zeta = (bb - aa) / (2 * ab)
                t = math.copysign(1.0, zeta) / (abs(zeta) + math.hypot(1.0, zeta))
                c = 1 / math.hypot(1.0, t)
                s = c * t
                columns[k] = [c * x - s * y for x, y in zip(a, b, strict=True)]
                columns[l] = [s * x + c * y for x, y in zip(a, b, strict=True)]
        if not rotated:
            break
    return sorted((math.sqrt(sum(x * x for x in column)) for column in columns), reverse=True)


def effective_rank(W: Float[Tensor, "feature hidden"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the singular values, normalised to sum 1, with 0 ln 0 = 0.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        A value in [1, rank], float64; 0 for a zero matrix.

    Source:
        Roy & Vetterli 2007, *The effective rank: a measure of effective dimensionality*, definition 1.
    """
    sigma = singular_values(W)
    total = sum(sigma)
    if total == 0:
        return torch.tensor(0.0, dtype=torch.float64)
    entropy = 0.0
    for s in sigma:
        if s > 0:
            entropy -= s / total * math.log(s / total)
    return torch.tensor(math.exp(entropy), dtype=torch.float64)


def participation_ratio(W: Float[Tensor, "feature hidden"]) -> Float[Tensor, ""]:
    """Squared sum over sum of squares of the eigenvalues of WᵀW.

    Args:
        W: Feature directions, one row per feature.

    Returns:
        A value in [1, rank], float64; 0 for a zero matrix.

    Source:
        Gao et al. 2017, *A theory of multineuronal dimensionality, dynamics and measurement*.
    """
    eigenvalues = [s**2 for s in singular_values(W)]
    total = sum(eigenvalues)
    if total == 0:
        return torch.tensor(0.0, dtype=torch.float64)
    return torch.tensor(total**2 / sum(x**2 for x in eigenvalues), dtype=torch.float64)
