"""Activation functions by name: the one list that finite networks and infinite-width kernels both read, so that they mean the same.

A name stands for the function it has in the literature: ``gelu`` is :math:`x Φ(x)` without approximation, ``erf`` is not rescaled.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mechfeat.errors import OptionError

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LeakyReLU:
    """The function that is x for positive x and ``slope`` times x for negative x.

    Args:
        slope: Slope of the negative half.

    Example:
        >>> LeakyReLU(0.5)(torch.tensor([-2.0, 3.0]))
        tensor([-1.,  3.])
    """

    slope: int | float = 0.01

    def __call__(self, x: Tensor) -> Tensor:
        """The function's values.

        Args:
            x: Where.

        Returns:
            Values of the same shape.
        """
        return F.leaky_relu(x, float(self.slope))


def linear(x: Tensor) -> Tensor:
    """The identity.

    Args:
        x: Where.

    Returns:
        ``x`` itself.
    """
    return x


FUNCTIONS: dict[str, Function] = {
    "linear": linear,
    "relu": torch.relu,
    "leaky_relu": LeakyReLU(),
    "erf": torch.erf,
    "gelu": F.gelu,
    "quadratic": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": torch.exp,
    "tanh": torch.tanh,
    "silu": F.silu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
}


def activation(phi: str | Function) -> Function:
    """The elementwise torch function of a name.

    Args:
        phi: One of ``FUNCTIONS``, or a function, which is returned as it is. ``LeakyReLU(slope)`` is one with a slope of its own.

    Returns:
        The function.

    Raises:
        OptionError: The name is unknown.

    Example:
        >>> activation("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if callable(phi):
        return phi
    if phi not in FUNCTIONS:
        raise OptionError("activation", phi, (*FUNCTIONS, "a function of a tensor"))
    return FUNCTIONS[phi]
