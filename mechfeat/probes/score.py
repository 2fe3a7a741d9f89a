"""How well a score separates two groups."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechfeat.errors import ShapeError


def auroc(scores: Float[Tensor, "*draw sample"], labels: Bool[Tensor, "*draw sample"]) -> Float[Tensor, "*draw"]:
    """Area under the receiver operating characteristic.

    The probability that a random positive scores above a random negative, ties counted half.

    Args:
        scores: One score a sample.
        labels: True for positives.

    Returns:
        Values in [0, 1], dimensionless; 0.5 where the score says nothing.

    Raises:
        ShapeError: A draw has no positives or no negatives.

    Source:
        Hanley and McNeil 1982, by way of the rank sum of Mann and Whitney 1947.

    Example:
        >>> auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
        tensor(0.7500)
    """
    from scipy.stats import rankdata

    positives = labels.sum(-1)
    negatives = labels.shape[-1] - positives
    if bool((positives == 0).any()) or bool((negatives == 0).any()):
        raise ShapeError(
            f"An AUROC needs positives and negatives; the labels hold {int(positives.min())} to {int(positives.max())} positives of"
            f" {labels.shape[-1]}."
        )
    ranks = torch.as_tensor(rankdata(scores.detach().cpu().numpy(), axis=-1)).to(scores)
    rank_sum = (ranks * labels).sum(-1)
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
