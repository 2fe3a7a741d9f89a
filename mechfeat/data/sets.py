"""Inputs of toy models with more structure: features that come in sets, frequencies that follow a power law, a finite sample."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.data.sparse import sparse_uniform
from mechfeat.data.toy_data import Listed, ToyData, check_probability, unit_length
from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable


@dataclass(frozen=True)
class _Sets(ToyData):
    set_size: int = field(kw_only=True)
    density: float | Tensor = field(kw_only=True)
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability("density", self.density)
        if self.set_size < 1 or self.n_features % self.set_size:
            raise ShapeError(
                f"{self.n_features} features do not divide into sets of {self.set_size}. The number of features is a multiple of set_size."
            )
        if isinstance(self.density, Tensor) and self.density.ndim != 1:
            raise ShapeError(f"density has shape {list(self.density.shape)}. It is a number, or [instance].")
        if not self.low < self.high:
            raise OptionError("low", self.low, [f"a number below high={self.high!r}"])

    @property
    def n_instances(self) -> int | None:
        """Instances with densities of their own."""
        return len(self.density) if isinstance(self.density, Tensor) else None

    def _sets(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Whether each set is on, and uniform values of all features ``[batch set feature]``."""
        sets = self.n_features // self.set_size
        on = torch.rand(batch, sets, 1, generator=generator, device=generator.device, dtype=dtype) < float(self.density)
        values = torch.rand(batch, sets, self.set_size, generator=generator, device=generator.device, dtype=dtype)
        return on, values.mul_(self.high - self.low).add_(self.low)


@storable
@dataclass(frozen=True)
class CorrelatedSets(_Sets):
    """Sets of neighbouring features that are active together, each feature with its own uniform value.

    Attributes:
        n_features: Features, a multiple of ``set_size``.
        set_size: Features of a set.
        density: Probability that a set is on, a number or ``[instance]``.
        low: Lower end of the values.
        high: Upper end.

    Raises:
        ShapeError: The features do not divide into sets, or ``density`` has another shape.
        OptionError: A density is no probability, or ``low`` is not below ``high``.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, "Correlated and anticorrelated features".

    Example:
        >>> x = CorrelatedSets(4, set_size=2, density=0.5).sample(torch.Generator().manual_seed(0), 50)
        >>> bool(((x[:, 0] > 0) == (x[:, 1] > 0)).all())
        True
    """

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        on, values = self._sets(generator, batch, dtype)
        return values.mul_(on).flatten(1)


@storable
@dataclass(frozen=True)
class AnticorrelatedSets(_Sets):
    """Sets of neighbouring features of which at most one is active: a set is on, and then one of its features, each as likely.

    Attributes:
        n_features: Features, a multiple of ``set_size``.
        set_size: Features of a set.
        density: Probability that a set is on, a number or ``[instance]``; a feature's is this over ``set_size``.
        low: Lower end of the values.
        high: Upper end.

    Raises:
        ShapeError: The features do not divide into sets, or ``density`` has another shape.
        OptionError: A density is no probability, or ``low`` is not below ``high``.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, "Correlated and anticorrelated features".

    Example:
        >>> x = AnticorrelatedSets(4, set_size=2, density=0.9).sample(torch.Generator().manual_seed(0), 50)
        >>> bool((x[:, 0] * x[:, 1] == 0).all())
        True
    """

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        on, values = self._sets(generator, batch, dtype)
        shape = (batch, values.shape[1], 1)
        which = torch.randint(self.set_size, shape, generator=generator, device=generator.device)
        return values.mul_(on & (torch.arange(self.set_size, device=values.device) == which)).flatten(1)


@storable
@dataclass(frozen=True)
class PowerLaw(ToyData):
    r"""Features whose frequencies fall as a power of their rank.

    .. math:: p_i = a\, i^{-\alpha} \Big/ \textstyle\sum_j j^{-\alpha}

    Attributes:
        n_features: Features.
        alpha: Exponent; 0 for equal frequencies.
        active: :math:`a`, expected number of active features.
        low: Lower end of the values of active features.
        high: Upper end.

    Raises:
        OptionError: The most frequent feature would be active with a probability above 1.

    Source:
        Liu et al. 2025, *Superposition Yields Robust Neural Scaling*.

    Example:
        >>> PowerLaw(3, alpha=1.0, active=1.1).probabilities()
        tensor([0.6000, 0.3000, 0.2000])
    """

    alpha: float = field(kw_only=True)
    active: float = field(default=1.0, kw_only=True)
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=2.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        highest = float(self.probabilities().max())
        if not 0 <= highest <= 1:
            raise OptionError(
                "active", self.active, [f"a number between 0 and {self.active / highest:.6g}, where the first feature is certain"]
            )
        if not self.low < self.high:
            raise OptionError("low", self.low, [f"a number below high={self.high!r}"])

    def probabilities(self) -> Float[Tensor, " feature"]:
        """Probability that each feature is active.

        Returns:
            Values in [0, 1], falling.
        """
        p = torch.arange(1, self.n_features + 1, dtype=torch.get_default_dtype()) ** -self.alpha
        return self.active * p / p.sum()

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        x = sparse_uniform(generator, (batch, self.n_features), 1.0, self.low, self.high, dtype)
        on = torch.rand(x.shape, generator=generator, device=x.device, dtype=dtype) < self.probabilities().to(x.device, dtype)
        return x.mul_(on)


@storable
@dataclass(frozen=True)
class FiniteSample(Listed):
    """A fixed list of inputs, equally likely, as a training set is.

    Attributes:
        n_features: Features.
        x: The inputs.
        normalise: Divide each input by its length.

    Raises:
        ShapeError: There is no input, or it has another number of features.

    Source:
        Henighan et al. 2023, *Superposition, Memorization, and Double Descent*.

    Example:
        >>> from mechfeat.data import SparseUniform
        >>> data = FiniteSample.draw(SparseUniform(20, density=0.2), 7, generator=torch.Generator().manual_seed(0))
        >>> data.exact().x.shape
        torch.Size([7, 20])
    """

    x: Float[Tensor, "sample feature"]
    normalise: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x.ndim != 2 or not len(self.x) or self.x.shape[1] != self.n_features:
            raise ShapeError(f"x has shape {list(self.x.shape)}. A finite sample is [sample {self.n_features}], with at least one input.")

    @classmethod
    def draw(cls, data: ToyData, n_samples: int, *, generator: torch.Generator, normalise: bool = False) -> "FiniteSample":
        """Draw the list from other data.

        Args:
            data: Where to draw from.
            n_samples: Number of inputs.
            generator: Source of randomness.
            normalise: Divide each input by its length.

        Returns:
            The sample.
        """
        return cls(data.n_features, data.sample(generator, n_samples), normalise=normalise)

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return len(self.x)

    def rows(self) -> Float[Tensor, "sample feature"]:
        """The inputs.

        Returns:
            One input a row.
        """
        return unit_length(self.x) if self.normalise else self.x
