"""Features: directions at a hook point."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import NonFiniteError, ShapeError
from mechfeat.features.samples import Samples
from mechfeat.features.storage import Stored, storable


@storable
@dataclass(frozen=True, eq=False)
class Feature(Stored):
    """One direction in the activations of a hook point.

    Attributes:
        hook: Hook name.
        direction: Weights over the channels, in the scale its finder gave it (difference of means: activation units).
        name: What it is called in tables and figures.
        settings: How it was found.

    Raises:
        NonFiniteError: The direction holds NaN or infinity.

    Example:
        >>> f = Feature("conv1", torch.tensor([3.0, 4.0]), name="edge")
        >>> f.unit
        tensor([0.6000, 0.8000])
    """

    hook: str
    direction: Float[Tensor, " channel"]
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.direction).all()):
            raise NonFiniteError(
                f"The direction of feature {self.name!r} at {self.hook!r} holds NaN or infinity. A feature needs finite weights."
            )

    @classmethod
    def neuron(cls, hook: str, channel: int, n_channels: int, *, name: str = "") -> "Feature":
        """The basis direction of one channel.

        Args:
            hook: Hook name.
            channel: Which channel, from 0.
            n_channels: How many the hook point has.
            name: What it is called; by default ``hook[channel]``.

        Returns:
            A feature whose direction is 1 at ``channel`` and 0 elsewhere.

        Raises:
            ShapeError: There is no such channel.
        """
        if not 0 <= channel < n_channels:
            raise ShapeError(f"Channel {channel} does not exist at {hook!r}, which has channels 0 to {n_channels - 1}.")
        return cls(
            hook, torch.nn.functional.one_hot(torch.tensor(channel), n_channels).to(torch.get_default_dtype()), name or f"{hook}[{channel}]"
        )

    @property
    def unit(self) -> Float[Tensor, " channel"]:
        """The direction with length 1; a zero direction stays zero."""
        return torch.nn.functional.normalize(self.direction, dim=0, eps=torch.finfo(self.direction.dtype).tiny)

    def project(self, samples: Samples) -> Float[Tensor, " sample"]:
        """Length of each activation along the feature.

        Args:
            samples: Activations at the feature's hook point.

        Returns:
            ``values @ unit``, in activation units.

        Raises:
            ShapeError: The number of channels differs.
        """
        if samples.values.shape[-1] != len(self.direction):
            raise ShapeError(
                f"Feature {self.name!r} has {len(self.direction)} channels ({self.hook!r}), the samples of {samples.hook!r} have "
                f"{samples.values.shape[-1]}. Take the samples at the feature's hook point."
            )
        return samples.values @ self.unit.to(samples.values)


@storable
@dataclass(frozen=True, eq=False)
class FeatureSet(Stored):
    """Many directions at one hook point: a dictionary, a basis, the rows of a weight.

    Attributes:
        hook: Hook name.
        directions: One feature a row.
        names: One name a feature; empty for unnamed.

    Raises:
        ShapeError: The number of names is neither zero nor the number of features.

    Example:
        >>> dictionary = FeatureSet("hidden", torch.eye(3), ("a", "b", "c"))
        >>> len(dictionary), dictionary[1].name
        (3, 'b')
    """

    hook: str
    directions: Float[Tensor, "feature channel"]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.directions):
            raise ShapeError(
                f"{len(self.names)} names for {len(self.directions)} features at {self.hook!r}. Give one name a feature, or none."
            )

    def __len__(self) -> int:
        return len(self.directions)

    def __getitem__(self, i: int) -> Feature:
        if not -len(self) <= i < len(self):
            raise IndexError(f"Feature {i} of a set of {len(self)} at {self.hook!r}.")
        return Feature(self.hook, self.directions[i], self.names[i] if self.names else f"{self.hook}[{i % len(self)}]")
