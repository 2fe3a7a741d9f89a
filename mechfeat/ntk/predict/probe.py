"""Probes of a network as a module of their own, so that they can be differentiated like its outputs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import ShapeError
from mechfeat.features import FeatureSet
from mechfeat.hooks import HookedModel


class Probe(nn.Module):
    """Reads activations along directions, or outputs.

    Args:
        inner: The network, whose parameters these are.
        features: Directions at a hook point; None for the outputs.
        positions: ``"mean"`` or ``"each"``.
    """

    def __init__(self, inner: nn.Module, features: FeatureSet | None, positions: str) -> None:
        super().__init__()
        self.inner, self.positions, self.features = inner, positions, features
        self.unit: Tensor | None = None
        if features is not None:
            rows = features.directions.detach()
            self.unit = nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)

    def forward(self, x: Tensor) -> Float[Tensor, "n value"]:
        """Values for each input.

        Args:
            x: Inputs.

        Returns:
            Activation along each direction (at each position, position by position), or outputs.

        Raises:
            ShapeError: The hook point has another number of channels than the directions.
        """
        if self.features is None or self.unit is None:
            return self.inner(x).reshape(len(x), -1)
        hook = self.features.hook
        _, cache = HookedModel(self.inner).run_with_cache(x, hook, grad=torch.is_grad_enabled())
        samples = cache.samples(hook, positions="mean" if self.positions == "mean" else "all")
        if samples.values.shape[1] != self.unit.shape[1]:
            raise ShapeError(
                f"The directions at {hook!r} have {self.unit.shape[1]} channels, and the activation {samples.values.shape[1]}."
            )
        return (samples.values @ self.unit.T.to(samples.values)).reshape(len(x), -1)

    def reduce(self, values: Float[Tensor, "n value"]) -> Float[Tensor, " probe"]:
        """Probes from values for each input.

        Args:
            values: As :meth:`forward` gives them.

        Returns:
            Mean over inputs for directions; each value by itself for outputs. float64.
        """
        return values.double().flatten() if self.features is None else values.double().mean(0)

    def read(self, x: Tensor) -> Float[Tensor, " probe"]:
        """Values of the probes now.

        Args:
            x: Their inputs.

        Returns:
            float64.
        """
        with torch.no_grad():
            return self.reduce(self(x.clone()))

    def of(self, other: nn.Module) -> "Probe":
        """The same probes of another network.

        Args:
            other: A network of the same architecture.

        Returns:
            Its probes.
        """
        return Probe(other, self.features, self.positions)

    def names(self, n: int, probes: FeatureSet | Tensor) -> tuple[str, ...]:
        """What the probes are called.

        Args:
            n: How many there are.
            probes: What the user gave.

        Returns:
            A name each.
        """
        if isinstance(probes, Tensor):
            outputs = n // len(probes)
            return tuple(f"input {i // outputs}, output {i % outputs}" for i in range(n))
        k = len(probes)
        each = [probes[i].name for i in range(k)]
        return tuple(each) if n == k else tuple(f"{each[i % k]} at position {i // k}" for i in range(n))


def probe_of(module: nn.Module, probes: FeatureSet | Tensor, positions: str) -> Probe:
    """The probes that a user asked for.

    Args:
        module: The network.
        probes: Directions, or inputs.
        positions: ``"mean"`` or ``"each"``.

    Returns:
        A module.

    Raises:
        ShapeError: There are no directions, or one of them is zero.
    """
    if isinstance(probes, Tensor):
        return Probe(module, None, positions)
    if not len(probes) or not bool(probes.directions.any(1).all()):
        raise ShapeError(f"{len(probes)} directions at {probes.hook!r}, of which none may be zero. Give directions with a length.")
    return Probe(module, probes, positions)
