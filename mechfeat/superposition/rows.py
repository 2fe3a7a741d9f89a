"""The rows of W, one a feature: which matrices are refused, and rows at length 1 without under- or overflow."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import ShapeError


def check_rows(W: Tensor) -> None:
    """Refuse what has no features or no hidden dimension.

    Args:
        W: Feature directions, one row a feature.

    Raises:
        ShapeError: There is no feature, or no hidden dimension.
    """
    if W.ndim < 2 or 0 in W.shape[-2:]:
        raise ShapeError(
            f"W has shape {list(W.shape)}. Superposition is measured on [feature hidden], after any instance axes, "
            "with at least one feature and one hidden dimension."
        )


def largest(W: Float[Tensor, "*instance feature hidden"]) -> Float[Tensor, "*instance"]:
    """Largest absolute entry of each instance, for division.

    Args:
        W: Feature directions, one row a feature.

    Returns:
        At least the dtype's smallest normal number.

    Raises:
        ShapeError: There is no feature, or no hidden dimension.
    """
    check_rows(W)
    return W.abs().amax((-2, -1)).clamp_min(torch.finfo(W.dtype).tiny)


def unit_rows(W: Float[Tensor, "*instance hidden"]) -> Float[Tensor, "*instance hidden"]:
    """Rows at length 1.

    Args:
        W: Rows of any length.

    Returns:
        The same directions; zero rows stay zero.
    """
    tiny = torch.finfo(W.dtype).tiny
    # By the row's own largest entry first, since the squares of a short row beside a long one would underflow.
    return F.normalize(W / W.abs().amax(-1, keepdim=True).clamp_min(tiny), dim=-1, eps=tiny)
