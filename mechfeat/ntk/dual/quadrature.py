r"""Dual activations by quadrature.

A smooth function of a Gaussian is expanded in Hermite polynomials, with coefficients by Gauss–Hermite quadrature, and Mehler's formula
:math:`E[h_m(x)\,h_n(y)] = δ_{mn} ρ^n` gives the expectation for every correlation ρ at once. The coefficients of a function with a kink
fall too slowly for that. There the pair is written :math:`u = \sqrt a\, x`, :math:`v = \sqrt b\,(ρ x + \sqrt{1-ρ^2}\, y)` with
independent standard x and y, and each half-line between kinks is cut into panels that shrink towards the kinks, with a Gauss–Legendre rule
in each, inside over y and outside over x.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

Values = Callable[[Tensor], Tensor]
_REACH = 12.0  # a standard Gaussian lies outside with probability 4e-33
_NOTHING = 1e-20  # a root mean square that only a function of narrow support has, or one that is zero
_BLOCK = 1 << 22  # points evaluated at a time
_INNER = 5  # halvings towards the kinks of the inner integral


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


@lru_cache
def _polynomials(nodes: int) -> Tensor:
    """Orthonormal Hermite polynomials at the nodes, times the root of the weights, ``[node degree]``."""
    x, w = _hermite(nodes)
    columns = [w.sqrt(), x * w.sqrt()]
    for n in range(1, nodes - 1):
        columns.append((x * columns[-1] - math.sqrt(n) * columns[-2]) / math.sqrt(n + 1))
    return torch.stack(columns, -1)


def smooth(f: Values, a: Tensor, b: Tensor, c: Tensor, nodes: int) -> Tensor:
    """E[f(u) f(v)] of a smooth function by its Hermite expansion, as many terms as nodes.

    Args:
        f: The function.
        a: Variances of u, on one axis.
        b: Variances of v.
        c: Covariances.
        nodes: Number of nodes of the Gauss–Hermite rule for the coefficients.

    Returns:
        Expectations.
    """
    variances, where = torch.cat([a, b]).unique(return_inverse=True)
    x, w = (t.to(a.device) for t in _hermite(nodes))
    coefficients = (f(variances.sqrt()[:, None] * x) * w.sqrt()) @ _polynomials(nodes).to(a.device)
    rho, _ = _correlation(a, b, c)
    total = torch.zeros_like(rho)
    # Horner's rule, from the highest degree down.
    for column in coefficients.T.flip(0):
        total = total * rho + column[where[: len(a)]] * column[where[len(a) :]]
    return total


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
    rho, rest = _correlation(a, b, c)
    # The inner integral, a function of x, changes within √(1-ρ²)/|ρ| of the places where the mean of v passes a kink; at ρ = ±1 it is cut
    # there.
    layer = torch.where(rest > 0, (rest / rho.abs()).clamp(1e-12, 1.0), 1.0)
    levels = (_REACH / layer).log2().ceil().long() + 2
    found = torch.empty_like(a)
    for level in levels.unique().tolist():
        these = (levels == level).nonzero()[:, 0]
        points = (4 * level * len(kinks) + 12) * (2 * _INNER * len(kinks) + 12) * nodes**2
        for here in these.split(max(1, _BLOCK // points)):
            found[here] = _split(f, kinks, a[here], b[here], rho[here], rest[here], level, nodes)
    return found


def _split(f: Values, kinks: tuple[float, ...], a: Tensor, b: Tensor, rho: Tensor, rest: Tensor, level: int, nodes: int) -> Tensor:
    at = torch.tensor(kinks, dtype=a.dtype, device=a.device)
    of_v = at / b.sqrt()[:, None]
    x, wx = _panels(torch.cat([at / a.sqrt()[:, None], of_v / rho[:, None]], 1), level, nodes)
    y, wy = _panels((of_v[:, None, :] - (rho[:, None] * x)[..., None]) / rest[:, None, None], _INNER, nodes)
    inner = (f(b.sqrt()[:, None, None] * (rho[:, None, None] * x[..., None] + rest[:, None, None] * y)) * wy * _density(y)).sum(-1)
    return (f(a.sqrt()[:, None] * x) * inner * wx * _density(x)).sum(-1)


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
    x, w = _panels((at - mean[:, None]) / spread, 2 * _INNER, nodes)
    return (f(mean[:, None] + spread * x) * w * _density(x)).sum(-1)


def missed(f: Values, variance: Tensor, square: Tensor) -> Tensor:
    """Where a rule found next to nothing of a function that is not next to nothing.

    Args:
        f: The function.
        variance: Variances, on one axis.
        square: E f² of each, by the rule.

    Returns:
        Booleans.
    """
    empty = square < _NOTHING**2
    if bool(empty.any()):
        z = torch.linspace(-_REACH, _REACH, 4097, dtype=variance.dtype, device=variance.device)
        weighted = f(variance[empty].sqrt()[:, None] * z).abs() * _density(z).sqrt()
        empty[empty.clone()] = weighted.amax(1) > _NOTHING
    return empty


def _density(x: Tensor) -> Tensor:
    return (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


def _correlation(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """ρ and √(1-ρ²), from ab - c², which is exact for equal variances."""
    size = a * b
    safe = torch.where(size > 0, size, 1.0)
    rho = torch.where(size > 0, c / safe.sqrt(), 0.0).clamp(-1, 1)
    return rho, torch.where(size > 0, ((size - c * c) / safe).clamp(0, 1).sqrt(), 1.0)


def _panels(centers: Tensor, levels: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-12, 12], cut at the centers and in halves towards them, so many times.

    Args:
        centers: Along the last axis; those that are outside or no number count as the end of the interval.
        levels: Number of halvings.
        nodes: Number of nodes on each panel.

    Returns:
        Nodes and weights along the last axis.
    """
    centers = torch.nan_to_num(centers, nan=_REACH, posinf=_REACH, neginf=-_REACH).clamp(-_REACH, _REACH)
    steps = _REACH * 0.5 ** torch.arange(levels, dtype=centers.dtype, device=centers.device)
    offsets = torch.cat([-steps, steps.new_zeros(1), steps])
    base = torch.arange(-_REACH, _REACH + 1, 2.0, dtype=centers.dtype, device=centers.device).expand(*centers.shape[:-1], -1)
    edges = torch.cat([(centers[..., None] + offsets).flatten(-2), base], -1).clamp(-_REACH, _REACH).sort(-1).values
    half = edges.diff(dim=-1) / 2
    x, w = (t.to(centers.device) for t in _legendre(nodes))
    middle = edges[..., :-1] + half
    return (middle[..., None] + half[..., None] * x).flatten(-2), (half[..., None] * w).flatten(-2)
