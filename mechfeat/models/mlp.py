"""Fully connected networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from mechfeat.errors import ShapeError


def mlp(widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between each two.

    Args:
        widths: Input, hidden and output widths.
        activation: Makes the activation module.

    Returns:
        A sequential module; linear layers have even indices.

    Raises:
        ShapeError: Fewer than two widths.

    Example:
        >>> [type(m).__name__ for m in mlp([4, 8, 2])]
        ['Linear', 'ReLU', 'Linear']
    """
    if len(widths) < 2:
        raise ShapeError(f"mlp needs at least an input and an output width, and was given {list(widths)}.")
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])
