"""What data for toy models is: inputs to draw from a generator, and, where there are few, all of them with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError, UnsupportedModelError
from mechfeat.features import storable

D = TypeVar("D", bound="ToyData")  # not typing.Self: runtime checkers of single methods cannot resolve it


@storable
@dataclass(frozen=True)
class ToyData:
    """Inputs of toy models, each a vector of feature values.

    Attributes:
        n_features: Features.
    """

    n_features: int

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise ShapeError(f"{type(self).__name__} was asked for {self.n_features} features. Data has at least one.")

    @property
    def n_instances(self) -> int | None:
        """Instances that the data is made for, each with its own distribution; None for the same distribution everywhere."""
        return None

    @property
    def n_inputs(self) -> int | None:
        """Number of different inputs; None where they are not finitely many."""
        return None

    def at(self: D, instance: int) -> D:
        """The data of one instance.

        Args:
            instance: Its place in the bank.

        Returns:
            Data with the distribution of that instance alone.
        """
        return self.of([instance])

    def of(self: D, instances: Sequence[int]) -> D:
        """The data of some instances, in their order.

        Args:
            instances: Their places in the bank.

        Returns:
            Data with the distributions of those instances.
        """
        if self.n_instances is None:
            return self
        own: dict[str, Any] = {f.name: self._of(f.name, list(instances)) for f in fields(self)}
        return replace(self, **own)

    def _of(self, name: str, instances: list[int]) -> object:
        value = getattr(self, name)
        return value[instances] if isinstance(value, Tensor) and len(value) == self.n_instances else value

    def sample(self, generator: torch.Generator, batch: int, *, dtype: torch.dtype | None = None) -> Float[Tensor, "batch feature"]:
        """Draw inputs, on the generator's device.

        Args:
            generator: Source of randomness.
            batch: Number of inputs.
            dtype: Dtype; torch's default if None.

        Returns:
            Inputs, one a row.

        Raises:
            ShapeError: The data has a distribution for each of several instances.
        """
        if self.n_instances not in (None, 1):
            raise ShapeError(
                f"This data holds {self.n_instances} distributions, one for each instance. `data.at(i)` is that of one, to be drawn from."
            )
        return self._sample(generator, batch, dtype or torch.get_default_dtype())

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def exact(self) -> "Exact":
        """All inputs with their weights, so that expectations over them are sums.

        Returns:
            The inputs, each with its probability.

        Raises:
            UnsupportedModelError: There are infinitely many.
        """
        found = self._exact()
        if found is None:
            raise UnsupportedModelError(
                f"{type(self).__name__} has infinitely many inputs. Train on samples with batch=…, or take an approximation where the "
                "class offers one: SparseUniform.expectation(max_active=…, points=…)."
            )
        return found

    def _exact(self) -> "Exact | None":
        return None


@storable
@dataclass(frozen=True)
class Exact(ToyData):
    """A list of inputs with weights: data whose expectations are sums.

    Attributes:
        n_features: Features.
        x: The inputs.
        weight: Weight of each input, for all instances or for each; sums to 1.
        dropped: Largest probability of an instance that the list leaves out; the weights were divided by the rest.

    Raises:
        ShapeError: There is no input, or the weights are of another number.
        OptionError: A weight is negative or not finite, or those of an instance do not sum to 1.
    """

    x: Float[Tensor, "sample feature"]
    weight: Float[Tensor, "*instance sample"]
    dropped: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x.ndim != 2 or not len(self.x) or self.x.shape[1] != self.n_features or self.weight.shape[-1:] != self.x.shape[:1]:
            raise ShapeError(
                f"x has shape {list(self.x.shape)} and weight {list(self.weight.shape)}. Inputs are [sample {self.n_features}], at least "
                "one, and weights [sample] or [instance sample]."
            )
        total = self.weight.double().sum(-1)
        if not bool((self.weight >= 0).all()) or not bool(((total - 1).abs() <= 1e-3).all()):
            wrong = float(self.weight.min()) if not bool((self.weight >= 0).all()) else float(total.reshape(-1)[(total - 1).abs().argmax()])
            raise OptionError("weight", wrong, ["numbers of at least 0 that sum to 1, for each instance"])

    @property
    def n_instances(self) -> int | None:
        """Instances with weights of their own."""
        return len(self.weight) if self.weight.ndim == 2 else None

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return len(self.x)

    def _of(self, name: str, instances: list[int]) -> object:
        return self.weight[instances] if name == "weight" else getattr(self, name)

    def _exact(self) -> "Exact":
        return self

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        weight = self.weight.view(-1).to(generator.device)
        rows = torch.multinomial(weight, batch, replacement=True, generator=generator)
        return self.x.to(generator.device, dtype)[rows]


@dataclass(frozen=True)
class Listed(ToyData):
    """Data of finitely many inputs, equally likely: batches are drawn in rounds, each of which holds every input once."""

    def rows(self) -> Tensor:
        """The inputs, one a row."""
        raise NotImplementedError

    def _exact(self) -> Exact:
        x = self.rows().to(torch.get_default_dtype())
        return Exact(self.n_features, x, torch.full((len(x),), 1 / len(x), dtype=x.dtype))

    def draw_places(self, generator: torch.Generator, batch: int, n: int) -> Int[Tensor, " batch"]:
        """Draw which inputs a batch holds.

        Args:
            generator: Source of randomness.
            batch: Number of inputs.
            n: Number of different inputs.

        Returns:
            Their numbers, on the generator's device.
        """
        rounds = -(-batch // n)
        return torch.rand(rounds, n, generator=generator, device=generator.device, dtype=torch.float64).argsort(1).flatten()[:batch]

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        x = self.rows().to(generator.device, dtype)
        return x[self.draw_places(generator, batch, len(x))]


def check_probability(name: str, value: float | Tensor) -> None:
    """Refuse what is no probability.

    Args:
        name: Its name, for the message.
        value: One or several.

    Raises:
        OptionError: A value is below 0, above 1 or NaN.
    """
    lowest, highest = (float(value.min()), float(value.max())) if isinstance(value, Tensor) else (float(value), float(value))
    if not (lowest >= 0 and highest <= 1):
        raise OptionError(name, lowest if not lowest >= 0 else highest, ["a probability between 0 and 1"])


def unit_length(x: Tensor) -> Tensor:
    """Inputs divided by their lengths; zero inputs stay zero.

    Args:
        x: Inputs.

    Returns:
        Inputs of length 1 or 0.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)
