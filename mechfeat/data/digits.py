"""Handwritten digits, 8 × 8, from the set that scikit-learn ships: real data without a download."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Digits:
    """Images and labels, split.

    Attributes:
        x_train: Training images, values in [0, 1].
        y_train: Their digits.
        x_test: Held-out images.
        y_test: Their digits.
    """

    x_train: Float[Tensor, "train 1 8 8"]
    y_train: Int[Tensor, " train"]
    x_test: Float[Tensor, "test 1 8 8"]
    y_test: Int[Tensor, " test"]


def digits(*, n_test: int = 500, seed: int = 0, dtype: torch.dtype | None = None) -> Digits:
    """1,797 handwritten digits by 43 people, in a random split.

    Args:
        n_test: Held-out images.
        seed: Seed of the split.
        dtype: Dtype of the images; torch's default if None.

    Returns:
        The split set.

    Source:
        Alpaydin and Kaynak 1998, *Optical Recognition of Handwritten Digits*, UCI; the test part, as shipped with scikit-learn.

    Example:
        >>> d = digits()
        >>> d.x_train.shape, d.x_test.shape
        (torch.Size([1297, 1, 8, 8]), torch.Size([500, 1, 8, 8]))
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.as_tensor(raw.images, dtype=dtype or torch.get_default_dtype()).unsqueeze(1) / 16
    y = torch.as_tensor(raw.target, dtype=torch.long)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = order[:n_test], order[n_test:]
    return Digits(x[train], y[train], x[test], y[test])
