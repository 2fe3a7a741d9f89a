"""The toy model of superposition: features through a narrow hidden layer and back."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.points import point


class ToyAutoencoder(nn.Module):
    r"""``x̂ = ReLU(Wᵀ (W x) + b)`` with tied weights, one instance.

    Hook points: ``hidden`` and ``pre``, named by ``mf.point``, since a bare parameter has no module of its own.

    Args:
        n_features: Features.
        n_hidden: Hidden dimensions, usually fewer.
        generator: Source of the initial weights; the default one of torch if None.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, ReLU output model.

    Example:
        >>> ToyAutoencoder(5, 2)(torch.zeros(3, 5)).shape
        torch.Size([3, 5])
    """

    def __init__(self, n_features: int, n_hidden: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(n_features, n_hidden, generator=generator) / n_hidden**0.5)
        self.b = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Float[Tensor, "n feature"]) -> Float[Tensor, "n feature"]:
        """Reconstruction.

        Args:
            x: Feature values.

        Returns:
            Reconstructed feature values, at least 0.
        """
        hidden = point(x @ self.W, "hidden", self)
        return torch.relu(point(hidden @ self.W.T + self.b, "pre", self))
