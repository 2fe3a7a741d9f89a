"""Directions that mean nothing."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import DtypeError, ShapeError
from mechfeat.nulls.generators import as_generator


def random_directions(
    n: int,
    n_channels: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "n channel"]:
    r"""Unit vectors, independent and uniform on the sphere.

    .. math:: \hat w = g / \|g\|, \quad g \sim N(0, I_m), \qquad
              \mathbb E\,(\hat w_i \cdot \hat w_j)^2 = 1/m \quad (i \ne j)

    Args:
        n: Number of directions.
        n_channels: Dimension :math:`m` of the space.
        generator: Source of the draws; None, torch's global one, is a ``DtypeError``.
        dtype: Floating dtype of the result; by default torch's default dtype.
        device: Where the result goes; by default the generator's device. The draws do not depend on it.

    Returns:
        One direction a row, of length 1, dimensionless.

    Raises:
        ShapeError: ``n`` is negative, or there is no channel.
        DtypeError: ``dtype`` is not a floating one.

    Source:
        Muller 1959, *A note on a method for generating points uniformly on n-dimensional spheres*.

    Example:
        >>> w = random_directions(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> w.square().sum(-1).round(decimals=12)
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    generator = as_generator(generator)
    if n < 0 or n_channels < 1:
        raise ShapeError(f"{n} directions in {n_channels} channels do not exist. Ask for zero or more directions in at least one channel.")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise DtypeError(f"dtype={dtype} cannot hold unit vectors. Use a floating dtype such as torch.float32.")
    # Drawn in float64 whatever the dtype: lengths are then right to the dtype's rounding, and float32 is the float64
    # null rounded.
    g = torch.randn(n, n_channels, generator=generator, device=generator.device, dtype=torch.float64)
    return F.normalize(g, dim=-1, eps=torch.finfo(g.dtype).tiny).to(device=device or generator.device, dtype=dtype)
