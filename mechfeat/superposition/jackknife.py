"""Jackknife intervals: what a statistic becomes without some of its rows."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_GROUPS = 256


def pseudo_values(rows: Tensor, statistic: Callable[[Tensor], Tensor], value: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Jackknife pseudo-values of a statistic.

    Args:
        rows: What the statistic is taken of; at most 256 groups of rows are left out in turn.
        statistic: A number, from rows.
        value: The statistic of all rows.
        generator: Draws the groups.

    Returns:
        One value a group, whose mean estimates the statistic, and the standard error.

    Source:
        Miller 1974, *The jackknife: a review*.
    """
    n = len(rows)
    size = -(-n // MAX_GROUPS)
    # Groups of unequal size would differ by the metric's shift with n, not by their features: a remainder is never
    # deleted.
    groups = torch.randperm(n, generator=generator)[: n // size * size].view(-1, size).to(rows.device)
    kept = torch.ones(len(groups), n, dtype=torch.bool, device=rows.device).scatter_(1, groups, False)
    without = torch.stack([statistic(rows[keep]) for keep in kept])
    g = len(without)
    error = ((g - 1) / g * (without - without.mean()).square().sum()).sqrt().item()
    return value + (g - 1) * (without.mean() - without), error
