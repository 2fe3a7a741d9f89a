"""Labels that have lost their inputs."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.nulls.generators import as_generator, permutations


def permuted_labels(
    labels: Bool[Tensor, " input"] | Int[Tensor, " input"], n_draws: int, *, generator: torch.Generator
) -> Bool[Tensor, "draw input"] | Int[Tensor, "draw input"]:
    """The labels in ``n_draws`` uniformly random orders.

    Kept: how many inputs have each label. Destroyed: which. One label stands for one input: permuting the positions of
    an input separately would count them as independent, and make the null too narrow.

    Args:
        labels: One label an input.
        n_draws: Number of permutations. The smallest p-value that they can give is ``1 / (n_draws + 1)``.
        generator: Source of the draws; None, torch's global one, is a ``DtypeError``.

    Returns:
        One permutation of ``labels`` a row, in its dtype and on its device.

    Raises:
        ShapeError: There is more than one axis, fewer than two inputs, or no draw is asked for.

    Source:
        Fisher 1935, *The Design of Experiments* (the permutation test).

    Example:
        >>> labels = torch.tensor([True, False, False, True, False])
        >>> permuted_labels(labels, 3, generator=torch.Generator().manual_seed(0)).sum(-1)
        tensor([2, 2, 2])
    """
    generator = as_generator(generator)
    if labels.ndim != 1 or len(labels) < 2:
        raise ShapeError(
            f"labels has shape {list(labels.shape)}. Permutations need one axis with one label for each of two or more inputs."
        )
    if n_draws < 1:
        raise ShapeError(f"n_draws={n_draws} leaves the null empty. Ask for at least one; 199 reach p = 0.005.")
    return labels[permutations(n_draws, len(labels), generator).to(labels.device)]
