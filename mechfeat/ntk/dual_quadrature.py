r"""Dual activations by quadrature.

The pair is written :math:`u = \sqrt a\, x`, :math:`v = \sqrt b\,(ρ x + \sqrt{1-ρ^2}\, y)` with independent standard x and y. A smooth
function is integrated by the product of two Gauss–Hermite rules. That converges slowly at a kink; there, each half-line between kinks is
cut into panels that shrink towards the kinks, with a Gauss–Legendre rule in each, inside over y and outside over x.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

Values = Callable[[Tensor], Tensor]
_REACH = 12.0  # a standard Gaussian lies outside with probability 4e-33
_BLOCK = 1 << 22  # points evaluated at a time


@lru_cache
def _hermite(nodes: int) -> tuple[Tensor, Tensor]:
    from scipy.special import roots_hermitenorm

    x, w = roots_hermitenorm(nodes)
    keep = w > 1e-60  # points so far out that only a function of size 1e40 could be seen there
    return torch.as_tensor(x[keep]), torch.as_tensor(w[keep] / math.sqrt(2 * math.pi))


@lru_cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    from scipy.special import roots_legendre

    x, w = roots_legendre(nodes)
    return torch.as_tensor(x), torch.as_tensor(w)


def smooth(f: Values, a: Tensor, b: Tensor, c: Tensor, nodes: int) -> Tensor:
    """E[f(u) f(v)] of a smooth function by Gauss–Hermite quadrature.

    Args:
        f: The function.
        a: Variances of u, on one axis.
        b: Variances of v.
        c: Covariances.
        nodes: Number of nodes of each of the two rules.

    Returns:
        Expectations.
    """
    x, w = (t.to(a.device) for t in _hermite(nodes))
    found = []
    for u, v, r in _blocks(a, b, c, len(x) ** 2):
        rho, rest = _correlation(u, v, r)
        first = f(u.sqrt()[:, None] * x) * w
        second = f(v.sqrt()[:, None, None] * (rho[:, None, None] * x[:, None] + rest[:, None, None] * x))
        found.append((first * (second * w).sum(-1)).sum(-1))
    return torch.cat(found)


def split(f: Values, kinks: tuple[float, ...], a: Tensor, b: Tensor, c: Tensor, nodes: int) -> Tensor:
    """E[f(u) f(v)] of a function that is smooth but for kinks or jumps, by Gauss–Legendre quadrature between them.

    Args:
        f: The function.
        kinks: Where it is not smooth.
        a: Variances of u, on one axis.
        b: Variances of v.
        c: Covariances.
        nodes: Number of nodes on each panel.

    Returns:
        Expectations.
    """
    found = []
    for u, v, r in _blocks(a, b, c, (100 * len(kinks) + 12) * (16 * len(kinks) + 12) * nodes**2):
        rho, rest = _correlation(u, v, r)
        at = torch.tensor(kinks, dtype=u.dtype, device=u.device)
        of_u = at / u.sqrt()[:, None]
        of_v = at / v.sqrt()[:, None]
        # The inner integral, a function of x, changes within √(1-ρ²)/|ρ| of the places where the mean of v passes a kink.
        layer = (rest / rho.abs()).clamp(1e-12, 1.0)
        x, wx = _panels(torch.cat([of_u, of_v / rho[:, None]], 1), float(layer.min()) / 4, nodes)
        wx = wx * (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
        cut = (of_v[:, None, :] - (rho[:, None] * x)[..., None]) / rest[:, None, None]
        y, wy = _panels(cut, 0.1, nodes)
        wy = wy * (-y.square() / 2).exp() / math.sqrt(2 * math.pi)
        inner = (f(v.sqrt()[:, None, None] * (rho[:, None, None] * x[..., None] + rest[:, None, None] * y)) * wy).sum(-1)
        found.append((f(u.sqrt()[:, None] * x) * inner * wx).sum(-1))
    return torch.cat(found)


def single(f: Values, kinks: tuple[float, ...], mean: Tensor, variance: Tensor, nodes: int) -> Tensor:
    """E f(m + √q z) of one Gaussian, by the rule that fits.

    Args:
        f: The function.
        kinks: Where it is not smooth.
        mean: Means m, on one axis.
        variance: Variances q.
        nodes: Number of nodes: of the Gauss–Hermite rule without kinks, on each panel with them.

    Returns:
        Expectations.
    """
    spread = variance.sqrt()[:, None]
    if not kinks:
        x, w = (t.to(mean.device) for t in _hermite(nodes))
        return (f(mean[:, None] + spread * x) * w).sum(-1)
    at = torch.tensor(kinks, dtype=mean.dtype, device=mean.device)
    x, w = _panels((at - mean[:, None]) / spread, 1e-3, nodes)
    return (f(mean[:, None] + spread * x) * w * (-x.square() / 2).exp()).sum(-1) / math.sqrt(2 * math.pi)


def _correlation(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """ρ and √(1-ρ²), from ab - c², which is exact for equal variances."""
    size = a * b
    safe = torch.where(size > 0, size, 1.0)
    rho = torch.where(size > 0, c / safe.sqrt(), 0.0).clamp(-1, 1)
    return rho, torch.where(size > 0, ((size - c * c) / safe).clamp(0, 1).sqrt(), 1.0)


def _panels(centers: Tensor, finest: float, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-12, 12], cut at the centers and in halves towards them, down to the finest width.

    Args:
        centers: Along the last axis; those that are outside or no number count as the end of the interval.
        finest: Width of the narrowest panels.
        nodes: Number of nodes on each panel.

    Returns:
        Nodes and weights along the last axis.
    """
    centers = torch.nan_to_num(centers, nan=_REACH, posinf=_REACH, neginf=-_REACH).clamp(-_REACH, _REACH)
    levels = max(4, math.ceil(math.log2(_REACH / finest)))
    steps = _REACH * 0.5 ** torch.arange(levels, dtype=centers.dtype, device=centers.device)
    offsets = torch.cat([-steps, steps.new_zeros(1), steps])
    base = torch.arange(-_REACH, _REACH + 1, 2.0, dtype=centers.dtype, device=centers.device).expand(*centers.shape[:-1], -1)
    edges = torch.cat([(centers[..., None] + offsets).flatten(-2), base], -1).clamp(-_REACH, _REACH).sort(-1).values
    half = edges.diff(dim=-1) / 2
    x, w = (t.to(centers.device) for t in _legendre(nodes))
    middle = edges[..., :-1] + half
    return (middle[..., None] + half[..., None] * x).flatten(-2), (half[..., None] * w).flatten(-2)


def _blocks(a: Tensor, b: Tensor, c: Tensor, points: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    size = max(1, _BLOCK // points)
    return list(zip(a.split(size), b.split(size), c.split(size)))
