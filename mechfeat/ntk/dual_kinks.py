"""Where a function is not smooth, and its derivatives everywhere else."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mechfeat.models.text.activations import Function

Values = Callable[[Tensor], Tensor]
_SIDE = 1e-6  # one-sided values are extrapolated from points at this distance, and at half of it
_SEARCHED = 16.0


def derivatives(phi: Function, kinks: tuple[float, ...]) -> tuple[Values, Values, Values]:
    """A function and its first two derivatives by autograd, away from the deltas that its kinks have in the second.

    Args:
        phi: The function.
        kinks: Where it is not smooth. There each takes the mean of its two sides.

    Returns:
        Three functions of a tensor.
    """
    return _centred(phi, kinks), _centred(lambda x: _slopes(phi, x, 1), kinks), _centred(lambda x: _slopes(phi, x, 2), kinks)


def sides(f: Values, kink: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Limits of a function from below and from above.

    Args:
        f: The function.
        kink: Where.
        like: A tensor with the dtype and device to use.

    Returns:
        The two limits, to about 1e-11 of the function's curvature.
    """
    h = _SIDE * max(1.0, abs(kink))
    values = f(kink + torch.tensor([-h, -h / 2, h / 2, h], dtype=like.dtype, device=like.device))
    return 2 * values[1] - values[0], 2 * values[2] - values[3]


def found_kinks(phi: Function) -> list[tuple[float, int]]:
    """Places where a function, its slope or its curvature jumps, by bisection towards the largest change.

    Args:
        phi: The function.

    Returns:
        Places between -16 and 16, in order, each with the order of the derivative that jumps: 0, 1 or 2.
    """
    found: dict[float, int] = {}
    grid = torch.linspace(-_SEARCHED, _SEARCHED, 2049, dtype=torch.float64) + math.pi * 1e-4  # so that kinks lie within cells
    for order in range(3):
        low, high = grid[:-1].clone(), grid[1:].clone()
        at_low, at_high = _slopes(phi, low, order), _slopes(phi, high, order)
        scale = max(1.0, float(at_low.nan_to_num(0.0, 0.0, 0.0).abs().max()))
        for _ in range(28):  # cells of 2**-6 become 6e-11 wide
            middle = (low + high) / 2
            at = _slopes(phi, middle, order)
            left = (at - at_low).abs() >= (at_high - at).abs()
            low, at_low = torch.where(left, low, middle), torch.where(left, at_low, at)
            high, at_high = torch.where(left, middle, high), torch.where(left, at, at_high)
        # A slope of 1e4 would change by 6e-7 across such a cell.
        for place in ((low + high) / 2)[(at_high - at_low).abs() > 1e-5 * scale].tolist():
            known = next((k for k in found if abs(k - place) < 1e-6), round(place, 9) + 0.0)
            found.setdefault(known, order)
    return sorted(found.items())


def _slopes(phi: Function, x: Tensor, order: int) -> Tensor:
    if order == 0:
        return phi(x.detach()).detach()
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        value = phi(at)
        for left in reversed(range(order)):
            if not value.requires_grad:  # what is constant does not depend on x
                return torch.zeros_like(x)
            (value,) = torch.autograd.grad(value.sum(), at, create_graph=left > 0, materialize_grads=True)
    return value.detach()


def _centred(f: Values, kinks: tuple[float, ...]) -> Values:
    """The function itself, but the mean of its two sides at a kink."""

    def value(x: Tensor) -> Tensor:
        out = f(x)
        for kink in kinks:
            here = x == kink
            if bool(here.any()):
                out = torch.where(here, sum(sides(f, kink, x)) / 2, out)
        return out

    return value
