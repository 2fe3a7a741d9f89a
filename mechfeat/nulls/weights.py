"""Weights with the same entries in random order."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.nulls.generators import as_generator, permutations


def shuffled_weights(
    W: Float[Tensor, "*shape"], *, generator: torch.Generator, within: Literal["all", "unit"] = "all"
) -> Float[Tensor, "*shape"]:
    """The entries of a weight in uniformly random order.

    Kept: the shape and the multiset of entries. Destroyed: which entries stand together.

    Args:
        W: Weight, with output units on the first axis.
        generator: Source of the draws; None, torch's global one, is a ``DtypeError``.
        within: ``"all"`` permutes over the whole tensor. ``"unit"`` permutes inside each output unit (first axis)
            alone, independently for each, and so also keeps every unit's mean, norm and sparsity.

    Returns:
        A new tensor with the entries of ``W``, in its unit, dtype and device.

    Raises:
        OptionError: ``within`` is something else.
        ShapeError: No entry has another place to go to, so that the "null" would be ``W`` itself.

    Example:
        >>> W = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        >>> shuffled_weights(W, generator=torch.Generator().manual_seed(0), within="unit").sort(-1).values
        tensor([[1., 2., 3.],
                [4., 5., 6.]])
    """
    generator = as_generator(generator)
    if within not in ("all", "unit"):
        raise OptionError("within", within, ("all", "unit"))
    movable = W.numel() if within == "all" else math.prod(W.shape[1:])
    if movable < 2:
        raise ShapeError(
            f"W has shape {list(W.shape)}, and within={within!r} leaves each of its entries where it is. "
            f"A shuffle needs at least two entries {'in W' if within == 'all' else 'in a unit'}."
        )
    rows = W.reshape(-1, movable)
    return rows.gather(-1, permutations(len(rows), movable, generator).to(W.device)).reshape(W.shape)
