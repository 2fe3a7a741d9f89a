r"""Units: how many features or concepts one of them takes part in.

Rows of ``W`` are features or concepts, columns are units, and an entry is how much of the feature a unit carries: a
weight, or the response of a neuron to a concept. Every function takes leading instance axes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.superposition.rows import check_rows


def polysemanticity(W: Float[Tensor, "*instance feature unit"]) -> Float[Tensor, "*instance unit"]:
    r"""Share of a unit that does not belong to its strongest feature.

    .. math:: 1 - \max_i W_{iu}^2 \Big/ \textstyle\sum_i W_{iu}^2

    Real networks: yes, where the features are known or concepts are labelled;
    :func:`~mechfeat.superposition.unit_polysemanticity` takes the responses from activations, with a null.

    Args:
        W: Weight of each feature on each unit.

    Returns:
        Values in [0, 1 − 1/n], dimensionless: 0 for a unit with one feature, 1/2 for two equal ones. A unit that no
        feature uses gives 0.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "Superposition in a Privileged Basis"; Jermyn et al. 2022,
        *Engineering Monosemanticity in Toy Models*.

    Example:
        >>> polysemanticity(torch.tensor([[1.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
        tensor([0.0000, 0.5000, 0.0000])
    """
    squares = _squares(W)
    total = squares.sum(-2)
    used = total > 0
    return torch.where(total.isnan(), total, torch.where(used, 1 - squares.amax(-2) / torch.where(used, total, 1.0), 0.0))


def features_per_unit(W: Float[Tensor, "*instance feature unit"]) -> Float[Tensor, "*instance unit"]:
    r"""Participation ratio of the features on a unit: the number of equal features that would spread as much.

    .. math:: \Big(\textstyle\sum_i W_{iu}^2\Big)^2 \Big/ \textstyle\sum_i W_{iu}^4

    Real networks: yes, where the features are known or concepts are labelled.

    Args:
        W: Weight of each feature on each unit.

    Returns:
        Values in [1, n], dimensionless; 0 for a unit that no feature uses.

    Source:
        The participation ratio of Gao et al. 2017, taken of one unit's squared weights.

    Example:
        >>> features_per_unit(torch.tensor([[1.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
        tensor([1., 2., 0.])
    """
    squares = _squares(W).to(torch.promote_types(W.dtype, torch.float32))  # the square of a sum overflows in 16 bits
    fourth = squares.square().sum(-2)
    return (squares.sum(-2).square() / torch.where(fourth == 0, 1.0, fourth)).to(W.dtype)


def monosemantic(W: Float[Tensor, "*instance feature unit"], *, share: int | float = 0.9) -> Float[Tensor, "*instance"]:
    r"""Number of units of which one feature has more than a share.

    Real networks: yes, where the features are known or concepts are labelled; state the share with the number.

    Args:
        W: Weight of each feature on each unit.
        share: Of the unit's summed squared weights.

    Returns:
        Counts from 0 to the number of units. A unit that no feature uses is not counted.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "Computation in Superposition", where the units are coloured so.

    Example:
        >>> monosemantic(torch.tensor([[1.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
        tensor(1.)
    """
    squares = _squares(W)
    total = squares.sum(-2)
    return ((total > 0) & (squares.amax(-2) > share * total)).sum(-1).to(W.dtype)


def _squares(W: Tensor) -> Tensor:
    """Squared weights, each unit scaled to a largest weight of 1, so that fourth powers stay in range."""
    check_rows(W)
    return (W / W.abs().amax(-2, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)).square()
