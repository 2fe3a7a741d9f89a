"""Sparse inputs of toy models: one-hot and k-hot, sparse uniform, sets that switch together or exclude each other, finite samples."""

import itertools
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.data.toy_data import Exact, Listed, ToyData, check_probability, unit_length
from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable

RARE = 0.1  # below this density, positions of active features are drawn, and not a mask
MANY = 1_000_000
LISTED = 100_000  # up to so many inputs, batches are drawn in rounds of all of them


@storable
@dataclass(frozen=True)
class OneHot(Listed):
    """All inputs with exactly ``k`` active features, each of value 1.

    Attributes:
        n_features: Features.
        k: Active features of an input.
        normalise: Divide each input by its length, the root of ``k``.

    Raises:
        ShapeError: There are fewer than ``k`` features, or ``k`` is not positive.

    Example:
        >>> OneHot(3, k=2).exact().x
        tensor([[1., 1., 0.], [1., 0., 1.], [0., 1., 1.]])
    """

    k: int = 1
    normalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.n_features:
            raise ShapeError(f"OneHot was asked for {self.k} active of {self.n_features} features. It takes 1 to {self.n_features}.")

    @property
    def n_inputs(self) -> int:
        """Number of inputs: the binomial coefficient."""
        return math.comb(self.n_features, self.k)

    def rows(self) -> Float[Tensor, "sample feature"]:
        """The inputs, in the order of :func:`itertools.combinations`.

        Returns:
            One input a row.

        Raises:
            ShapeError: There are more than a million.
        """
        if self.n_inputs > MANY:
            raise ShapeError(
                f"There are {self.n_inputs} inputs with {self.k} of {self.n_features} features active. Give batch=… to draw some."
            )
        active = torch.tensor(list(itertools.combinations(range(self.n_features), self.k)))
        return self._hot(active, torch.get_default_dtype())

    def _hot(self, active: Tensor, dtype: torch.dtype) -> Tensor:
        value = 1 / math.sqrt(self.k) if self.normalise else 1.0
        return torch.zeros(len(active), self.n_features, dtype=dtype, device=active.device).scatter_(1, active, value)

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        if self.n_inputs <= LISTED:
            return super()._sample(generator, batch, dtype)
        draw = torch.rand(batch, self.n_features, generator=generator, device=generator.device)
        return self._hot(draw.topk(self.k, dim=1).indices, dtype)


@storable
@dataclass(frozen=True)
class SparseUniform(ToyData):
    """Each feature is active with a probability, independently, and then uniform.

    Attributes:
        n_features: Features.
        density: Probability that a feature is active: a number; ``[instance]``; or ``[instance feature]``, where one row serves all
            instances. 0 gives zeros, 1 dense inputs.
        low: Lower end of the values of active features.
        high: Upper end.
        normalise: Divide each input by its length.

    Raises:
        OptionError: A density is no probability, or ``low`` is not below ``high``.
        ShapeError: ``density`` has another shape.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, whose sparsity is 1 − density.

    Example:
        >>> x = SparseUniform(1000, density=0.05).sample(torch.Generator().manual_seed(0), 100)
        >>> round(float((x > 0).double().mean()), 2)
        0.05
    """

    density: float | Tensor = field(kw_only=True)
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=1.0, kw_only=True)
    normalise: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability("density", self.density)
        if not self.low < self.high:
            raise OptionError("low", self.low, [f"a number below high={self.high!r}"])
        if isinstance(self.density, Tensor) and (
            self.density.ndim not in (1, 2) or (self.density.ndim == 2 and self.density.shape[1] != self.n_features)
        ):
            raise ShapeError(
                f"density has shape {list(self.density.shape)}. It is a number, [instance], or [instance {self.n_features}] "
                f"([1 {self.n_features}] for all instances)."
            )

    @property
    def n_instances(self) -> int | None:
        """Instances with densities of their own."""
        per_instance = isinstance(self.density, Tensor) and (self.density.ndim == 1 or len(self.density) > 1)
        return len(self.density) if per_instance and isinstance(self.density, Tensor) else None

    def _sample(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> Tensor:
        if isinstance(self.density, Tensor) and self.density.ndim == 2:
            density = self.density.to(generator.device, dtype)
            u = torch.rand(batch, self.n_features, generator=generator, device=generator.device, dtype=dtype)
            # Given that u is below the density, u over the density is uniform: one draw is mask and value.
            x = torch.where(u < density, self.low + (self.high - self.low) * u / density, 0.0)
        else:
            x = sparse_uniform(generator, (batch, self.n_features), float(self.density), self.low, self.high, dtype)
        return unit_length(x) if self.normalise else x

    def expectation(self, *, max_active: int, points: int) -> Exact:
        """A list of inputs whose weighted sum approximates the expectation: up to some active features, on quadrature points.

        Exact for polynomials of degree ``2 points − 1`` in each feature, up to the inputs with more active features, whose probability is
        ``dropped``; no closed form is used at kinks.

        Args:
            max_active: Largest number of active features; with all of them nothing is dropped.
            points: Gauss–Legendre points for the value of an active feature.

        Returns:
            Inputs, and weights for each instance if densities differ between instances.

        Raises:
            ShapeError: There would be more than a million inputs, or none, or none of those that an instance has.
        """
        from numpy.polynomial.legendre import leggauss

        n, most = self.n_features, min(max_active, self.n_features)
        count = sum(math.comb(n, a) * points**a for a in range(most + 1))
        if count > MANY or points < 1 or max_active < 0:
            raise ShapeError(
                f"max_active={max_active} of {n} features on points={points} makes {count} inputs. It takes at least one point, and at "
                "most a million inputs: fewer points or fewer active features."
            )
        nodes, masses = (torch.tensor(v, dtype=torch.get_default_dtype()) for v in leggauss(points))
        values, masses = self.low + (self.high - self.low) * (nodes + 1) / 2, masses / 2
        xs, mass, mask = [], [], []
        for a in range(most + 1):
            active = torch.tensor(list(itertools.combinations(range(n), a)), dtype=torch.long).reshape(math.comb(n, a), a)
            grid = torch.cartesian_prod(*[torch.arange(points)] * a).view(-1, a) if a else torch.zeros(1, 0, dtype=torch.long)
            rows, cells = active.repeat_interleave(len(grid), 0), grid.repeat(len(active), 1)
            xs.append(torch.zeros(len(rows), n).scatter_(1, rows, values[cells]))
            mask.append(torch.zeros(len(rows), n).scatter_(1, rows, 1.0))
            mass.append(masses[cells].prod(1))
        x, on = torch.cat(xs), torch.cat(mask)
        density = torch.as_tensor(self.density, dtype=x.dtype, device="cpu")
        p = density.reshape(-1, 1, 1) if density.ndim < 2 else density[:, None]
        weight = torch.cat(mass) * torch.where(on > 0, p, 1 - p).prod(-1)
        total = weight.sum(1, keepdim=True)
        if not bool((total > 0).all()):
            raise ShapeError(
                f"At density {float(density.max()):g} no input has as few as max_active={max_active} of {n} features active. Give more."
            )
        weight = weight / total
        return Exact(
            n, unit_length(x) if self.normalise else x, weight if self.n_instances else weight[0], max(0.0, float((1 - total).max()))
        )


def sparse_uniform(
    generator: torch.Generator, shape: tuple[int, int], density: float, low: float, high: float, dtype: torch.dtype
) -> Float[Tensor, "batch feature"]:
    """Zeros with uniform values at random places.

    Args:
        generator: Source of randomness.
        shape: Inputs and features.
        density: Probability of a value at each place. Below 0.1 the gaps between values are drawn, which are geometric; otherwise a mask.
        low: Lower end of the values.
        high: Upper end.
        dtype: Dtype.

    Returns:
        The inputs, on the generator's device.
    """
    device, size = generator.device, shape[0] * shape[1]
    if density >= RARE:
        u = torch.rand(shape, generator=generator, device=device, dtype=dtype)
        kept = u < density
        return u.mul_((high - low) / density).add_(low).mul_(kept)
    x = torch.zeros(size, device=device, dtype=dtype)
    if density <= 0 or not size:
        return x.view(shape)
    # Enough gaps to pass the end but once in 10^9 draws; what is missing is drawn then.
    count = int(size * density + 6 * math.sqrt(size * density) + 8)
    last, places = -1, []
    while last < size:
        u = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        gaps = (torch.log1p(-u) / math.log1p(-density)).floor_().clamp_(max=size).long() + 1
        found = gaps.cumsum(0) + last
        places.append(found)
        last = int(found[-1])
    at = torch.cat(places)
    at = at[at < size]
    x[at] = low + (high - low) * torch.rand(len(at), generator=generator, device=device, dtype=dtype)
    return x.view(shape)
