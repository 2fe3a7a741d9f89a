"""Banks over all combinations of settings, with labelled axes."""

import itertools
from collections.abc import Mapping, Sequence

import torch

from mechfeat.errors import ShapeError
from mechfeat.models import ToyBank, ToySpec
from mechfeat.models.bank import Init, Label


def grid(
    spec: ToySpec,
    over: Mapping[str, Sequence[Label]],
    *,
    init: Init = "linear",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ToyBank:
    """One instance for each combination of settings.

    Instances with the same seed begin with the same weights and see the same random numbers. Settings other than the seed are labels:
    ``bank.along("density")`` gives them to the data, ``bank.along("importance")`` to the loss.

    Args:
        spec: The model.
        over: Axis → labels, in the order of the instance axis, the last one fastest. Labels of ``"seed"`` are the seeds; without it all
            instances have seed 0. Labels of ``"importance"`` may be tuples, one number a feature.
        init: How initial weights are drawn.
        dtype: Dtype of the parameters.
        device: Device of the parameters.

    Returns:
        The bank, with ``axes``.

    Raises:
        ShapeError: An axis has no label, or there is no axis.

    Example:
        >>> bank = grid(ToySpec(5, 2), over={"density": [0.05, 0.5], "seed": range(3)})
        >>> len(bank), bank.along("density")
        (6, tensor([0.0500, 0.0500, 0.0500, 0.5000, 0.5000, 0.5000]))
    """
    axes = {name: tuple(labels) for name, labels in over.items()}
    if not axes or not all(axes.values()):
        empty = [name for name, labels in axes.items() if not labels]
        raise ShapeError(f"The grid has {f'no label on {empty[0]!r}' if empty else 'no axis'}. Give each axis at least one label.")
    places = list(itertools.product(*axes.values()))
    seed = list(axes).index("seed") if "seed" in axes else None
    seeds = [0 if seed is None else int(place[seed]) for place in places]  # type: ignore[arg-type]
    return ToyBank(spec, seeds=seeds, init=init, axes=axes, dtype=dtype, device=device)
