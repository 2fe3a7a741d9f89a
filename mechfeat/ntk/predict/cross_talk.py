r"""What tokens teach each other by accident in a network of finite width, and how far its parameters have to move.

At infinite width the embeddings of different tokens are orthogonal, and hidden neurons see them independently. In a network with d
embedding channels and m hidden neurons the entry of the kernel between tokens a ≠ b has a random part of order :math:`1/\sqrt d` and
:math:`1/\sqrt m`. Training with coefficients :math:`Δ_b = \sum_i α_i\, n_b(x_i)` adds the sum over all b of these parts to the score of a:
interference between nearly orthogonal directions, the same thing as superposition.

Write :math:`ξ_a = φ(z_a) - M` with :math:`M = E φ`, variance :math:`V`, and :math:`c_{ab} = E_a \cdot E_b / d`. The read-out contributes
:math:`\frac1m \sum_k φ(z_{ak}) φ(z_{bk})` to the entry and the hidden layer :math:`\frac1m \sum_k v_k^2 φ'(z_{ak}) φ'(z_{bk})\, c_{ab}`, so
that to first order in :math:`c_{ab}`, in the norms of embeddings and in :math:`m^{-1/2}`, with :math:`k_1 = (E φ')^2`,

.. math:: \hatΘ_{ab} - μ ≈ k_1 (s_w^2 + s_v^2)\, c_{ab} + \overline{ξ_a ξ_b} + M \bar ξ_a + M \barξ_b .

The first two parts are independent over b and add up to :math:`\|Δ\|^2` times their variances
:math:`k_1^2 (s_w^2 + s_v^2)^2 s_e^4 / d` and :math:`V^2 / m`. The third is the same for all b and meets :math:`D = \sum_b Δ_b`; the fourth
is the same for all a, a shift of all scores. Both mean parts vary by :math:`M^2 V / m + 2 (s_w^2 M M')^2 s_e^4 / d`. For a linear φ and
m = d what is left is :math:`((s_w^2 + s_v^2)^2 s_e^4 + τ^4) \|Δ\|^2 / m`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mechfeat.errors import OptionError
from mechfeat.ntk.analytic import AttentionKernel, BigramKernel, GatedLinearRNNKernel, LinearRNNKernel, MatrixVectorRNNKernel, PooledKernel


@dataclass(frozen=True)
class PairNoise:
    """Variances of the kernel between two different tokens, times the width that divides them.

    Attributes:
        overlap: Of the part that is independent over pairs, by the overlap of embeddings; times d.
        norm: Of the part that one token brings to all its pairs, by the norm of its embedding; times d.
        pair: Of the part that is independent over pairs, by sampling of neurons; times m.
        mean: Of the part that one token brings to all its pairs, by sampling of neurons; times m.
    """

    overlap: float
    norm: float
    pair: float
    mean: float


def pair_noise(kernel: Any) -> PairNoise | None:
    """The variances for a kernel whose tokens meet in one hidden layer.

    Args:
        kernel: The kernel of a bag of tokens, with its ``init`` and ``activation``.

    Returns:
        Variances; None for a kernel of another kind, whose form is not derived.
    """
    init, phi = getattr(kernel, "init", None), getattr(kernel, "activation", None)
    if init is None or phi is None:
        return None
    q, (s_e, s_w, s_v) = init.tau_sq, (float(getattr(init, part)) for part in ("embedding", "hidden", "readout"))
    read, hidden = init.trains("readout"), init.trains("hidden")
    at, zero = torch.tensor([q], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    slope = float(phi.k1(at, at, zero))
    square = float(phi.k(at, at, at))
    M, above, below = (float(phi.mean(at * (1 + step))) for step in (0.0, 1e-4, -1e-4))
    derivative = (above - below) / (2e-4 * q) if q else 0.0
    variance = max(square - M * M, 0.0)
    return PairNoise(
        overlap=(slope * (read * s_w**2 + hidden * s_v**2)) ** 2 * s_e**4,
        norm=2 * (read * s_w**2 * M * derivative) ** 2 * s_e**4,
        pair=read * variance**2,
        mean=read * M**2 * variance,
    )


def score_noise(noise: PairNoise, delta: Any, counts: Any) -> Any:
    r"""Variance of scores by cross-talk, times d (first) and times m (second).

    Args:
        noise: Variances of the kernel.
        delta: Coefficients :math:`Δ` of the tokens, a NumPy array ``[token class]``.
        counts: How often each n-gram has each token, a SciPy matrix ``[ngram token]``.

    Returns:
        What all other tokens add to each n-gram's score, ``[2 ngram class]``: to be divided by the two widths and summed.
    """
    import numpy as np

    square = delta**2
    total, shared = square.sum(0), delta.sum(0) ** 2
    weight = counts.multiply(counts).tocsr()
    own = np.asarray(weight.sum(1)).reshape(-1, 1)
    length = np.asarray(counts.sum(1)).reshape(-1, 1)
    others = np.maximum(own * total - weight @ square, 0)
    common = length**2 * total + own * shared
    return np.stack([noise.overlap * others + noise.norm * common, noise.pair * others + noise.mean * common])


def widths(width: int | tuple[int, int]) -> tuple[int, int]:
    """Embedding size and hidden width.

    Args:
        width: Both in one number, or each.

    Returns:
        d and m.

    Raises:
        OptionError: They are not one or two positive integers.
    """
    both: Any = tuple(width) if isinstance(width, Sequence) else (width, width)
    if len(both) != 2 or not all(isinstance(one, int) and one > 0 for one in both):
        raise OptionError("width", width, ("a positive integer", "two of them, embedding size and hidden width"))
    d, m = both
    return d, m


def smallest_deviation(kernel: Any) -> float | None:
    """Smallest standard deviation among the initial weights that train.

    Args:
        kernel: A kernel with an ``init``.

    Returns:
        It; None where the kernel does not say, or where a part is zero.
    """
    if isinstance(kernel, PooledKernel):
        return smallest_deviation(kernel.last)  # the weights are those of the model whose outputs are pooled
    init = getattr(kernel, "init", None)
    if init is None:
        return None
    found = [float(getattr(init, part)) for part in ("embedding", *_between(kernel), "readout") if init.trains(part)]
    return min(found) if found and min(found) > 0 else None


def _between(kernel: Any) -> tuple[str, ...]:
    """Parts of a model between embedding and read-out: an ``InitSpec`` has those of all models."""
    if isinstance(kernel, AttentionKernel) and not kernel.value:
        return ()
    if isinstance(kernel, BigramKernel | MatrixVectorRNNKernel):
        return ("token_matrix",)
    if isinstance(kernel, GatedLinearRNNKernel):
        return ("inputs", "recurrence")
    return ("recurrence",) if isinstance(kernel, LinearRNNKernel) else ("hidden",)
