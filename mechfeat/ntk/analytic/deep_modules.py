r"""Layers of finite width in NTK parameterisation: standard Gaussian parameters, scaled in the forward pass."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.models.text.activations import Function
from mechfeat.ntk.analytic.deep_covariance import Padding, extent


class NTKLinear(nn.Module):
    r"""A linear layer :math:`σ_w W x / \sqrt{\text{fan-in}} + σ_b b`.

    Args:
        fan_in: Inputs.
        fan_out: Outputs.
        W_std: :math:`σ_w`.
        b_std: :math:`σ_b`; without a bias at 0.
        generator: Source of the weights.
    """

    def __init__(self, fan_in: int, fan_out: int, W_std: float, b_std: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.scale, self.b_std = W_std / fan_in**0.5, b_std
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, generator=generator))
        self.bias = nn.Parameter(torch.randn(fan_out, generator=generator)) if b_std else None

    def forward(self, x: Float[Tensor, "sample fan_in"]) -> Float[Tensor, "sample fan_out"]:
        """Outputs.

        Args:
            x: Inputs.

        Returns:
            Pre-activations.
        """
        # Biases enter inside, where the library's rules for their kernel see them, rather than as a product of parameters.
        unit = self.b_std or 1.0
        return F.linear(x * (self.scale / unit), self.weight, self.bias) * unit


class NTKConv(nn.Module):
    r"""A convolution in one or two dimensions, :math:`σ_w (W * x) / \sqrt{\text{fan-in}} + σ_b b`, fan-in being channels times window.

    Args:
        fan_in: Input channels.
        fan_out: Output channels.
        kernel: Size of the window along each axis.
        stride: Distance of windows along each axis.
        padding: ``"valid"``, ``"same"`` or ``"circular"``.
        W_std: :math:`σ_w`.
        b_std: :math:`σ_b`; without a bias at 0.
        generator: Source of the weights.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Padding,
        W_std: float,
        b_std: float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = tuple(kernel), tuple(stride), padding
        self.scale, self.b_std = W_std / (fan_in * torch.Size(kernel).numel()) ** 0.5, b_std
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, *kernel, generator=generator))
        self.bias = nn.Parameter(torch.randn(fan_out, generator=generator)) if b_std else None

    def forward(self, x: Float[Tensor, "sample fan_in *position"]) -> Float[Tensor, "sample fan_out *window"]:
        """Outputs.

        Args:
            x: Inputs.

        Returns:
            Pre-activations.
        """
        sides: list[int] = []
        for size, k, step in reversed(list(zip(x.shape[2:], self.kernel, self.stride))):
            low, high, _ = extent(size, k, step, self.padding)
            sides += [low, high]
        unit = self.b_std or 1.0
        x = x * (self.scale / unit)
        if any(sides):
            x = F.pad(x, sides, mode="circular") if self.padding == "circular" else F.pad(x, sides)
        return (F.conv1d if len(self.kernel) == 1 else F.conv2d)(x, self.weight, self.bias, stride=self.stride) * unit


class Elementwise(nn.Module):
    """An activation function.

    Args:
        function: The function.
    """

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Values.

        Args:
            x: Pre-activations.

        Returns:
            The function of each.
        """
        return self.function(x)


class MeanOverPositions(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Float[Tensor, "sample channel *position"]) -> Float[Tensor, "sample channel"]:
        """Means.

        Args:
            x: Activations.

        Returns:
            Their means.
        """
        return x.flatten(2).mean(-1)


class Branches(nn.Module):
    """The sum of branches that read the same input.

    Args:
        branches: The branches.
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum.

        Args:
            x: What all of them read.

        Returns:
            The sum of what they give.
        """
        first, *rest = (branch(x) for branch in self.branches)
        for one in rest:
            first = first + one
        return first
