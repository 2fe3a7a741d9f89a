r"""Dual activations in closed form.

For a centred Gaussian pair (u, v) with variances a, b and covariance c, :math:`k = E[φ(u)φ(v)]`, :math:`k_1 = E[φ'(u)φ'(v)]`,
:math:`k_2 = E[φ''(u)φ''(v)]`, and :math:`E[φ(\sqrt q\, z)]` for one standard Gaussian z. Functions here take float64 tensors that have been
checked: a, b ≥ 0 and :math:`c^2 ≤ ab`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mechfeat.models.text.activations import LeakyReLU

Dual = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Closed:
    """The four closed forms of an activation function.

    Args:
        k: Of the function.
        k1: Of its derivative.
        k2: Of its second derivative. Where the derivative jumps, its delta functions included: infinite for perfectly correlated pairs.
        mean: Expected value, of one variance.
    """

    k: Dual
    k1: Dual
    k2: Dual
    mean: Callable[[Tensor], Tensor]


def leaky_relu(slope: float) -> Closed:
    """Closed forms of the leaky ReLU, and of ReLU with slope 0.

    Args:
        slope: Slope of the negative half.

    Returns:
        Closed forms. ``k1`` at a variance of 0, where the derivative does not exist, takes the mean of its two sides.

    Source:
        Cho & Saul 2009, *Kernel Methods for Deep Learning*, section 2, for slope 0; the rest follows from
        φ = (1 - slope) relu + slope · identity.
    """
    part = (1 - slope) ** 2

    def k(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        # sin θ and cos θ times √(ab), so that nothing is divided by a variance of 0
        sin = _sin(a, b, c)
        return part / (2 * math.pi) * (sin + (math.pi - torch.atan2(sin, c)) * c) + slope * c

    def k1(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        # Where a variance is 0 the pair counts as orthogonal.
        angle = torch.where(a * b == 0, math.pi / 2, torch.atan2(_sin(a, b, c), c))
        return part / (2 * math.pi) * (math.pi - angle) + slope

    def k2(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        # φ'' is (1 - slope) δ, so this is the density of the pair at the origin.
        return part / (2 * math.pi * _sin(a, b, c))

    return Closed(k, k1, k2, lambda q: (1 - slope) * (q / (2 * math.pi)).sqrt())


def _sin(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    # ab - c² is exactly 0 for a = b = c, which (√a√b - c)(√a√b + c) is not. The arctangent with it keeps the digits of the angle that the
    # arccosine loses near 0 and π.
    return (a * b - c * c).clamp_min(0).sqrt()


def _ones(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.ones_like(a + b + c)


def _zeros(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.zeros_like(a + b + c)


def _erf_spread(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (1 + 2 * a) * (1 + 2 * b) - 4 * c * c


def _erf(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return 2 / math.pi * torch.asin(2 * c / ((1 + 2 * a) * (1 + 2 * b)).sqrt())


def _gelu_terms(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P, Q, D and 1/(1+a) + 1/(1+b): Φ(u)Φ(v) is the probability of a quadrant of a pair with variances 1+a, 1+b."""
    product = (1 + a) * (1 + b)
    D = product - c * c
    return 1 / (2 * math.pi * D.sqrt()), 0.25 + torch.asin(c / product.sqrt()) / (2 * math.pi), D, 1 / (1 + a) + 1 / (1 + b)


def _gelu(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    P, Q, _, A = _gelu_terms(a, b, c)
    return c * Q + P * (a * b - c * c + c * c * A)


def _gelu1(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    P, Q, D, A = _gelu_terms(a, b, c)
    return Q + P * c * (A + 1 / D)


def _gelu2(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    P, _, D, A = _gelu_terms(a, b, c)
    # by Price's theorem from k1, with dQ/dc = P and dP/dc = Pc/D
    return P * (1 + (A + 1 / D) * (1 + c * c / D) + 2 * c * c / D.square())


def _sinh(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    # exp(-(a+b)/2) sinh c: for large c the second factor overflows where the product is small, for small c a difference loses its digits.
    near = (-(a + b) / 2).exp() * c.clamp(-1, 1).sinh()
    return torch.where(c.abs() < 1, near, ((c - (a + b) / 2).exp() - (-c - (a + b) / 2).exp()) / 2)


def _cosh(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return ((c - (a + b) / 2).exp() + (-c - (a + b) / 2).exp()) / 2


def _exp(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return ((a + b) / 2 + c).exp()


_FORMS: dict[str, Closed] = {
    "linear": Closed(lambda a, b, c: c + _zeros(a, b, c), _ones, _zeros, torch.zeros_like),
    "relu": leaky_relu(0.0),
    "erf": Closed(
        _erf,
        lambda a, b, c: 4 / math.pi / _erf_spread(a, b, c).sqrt(),
        lambda a, b, c: 16 / math.pi * c / _erf_spread(a, b, c).pow(1.5),
        torch.zeros_like,
    ),
    "gelu": Closed(_gelu, _gelu1, _gelu2, lambda q: q / (2 * math.pi * (1 + q)).sqrt()),
    "quadratic": Closed(
        lambda a, b, c: a * b + 2 * c * c, lambda a, b, c: 4 * c + _zeros(a, b, c), lambda a, b, c: 4 * _ones(a, b, c), torch.clone
    ),
    "sin": Closed(_sinh, _cosh, _sinh, torch.zeros_like),
    "cos": Closed(_cosh, _sinh, _cosh, lambda q: (-q / 2).exp()),
    "exp": Closed(_exp, _exp, _exp, lambda q: (q / 2).exp()),
}


def closed_form(name: str, function: object) -> Closed | None:
    """The closed forms of an activation function.

    Args:
        name: Its name.
        function: The function itself, for the slope of a leaky ReLU.

    Returns:
        Closed forms, or None where there are none.
    """
    return leaky_relu(float(function.slope)) if isinstance(function, LeakyReLU) else _FORMS.get(name)
