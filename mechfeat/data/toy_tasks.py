"""What a toy model shall compute of its input: the input itself, its absolute value, or ANDs of pairs of features."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable


@storable
@dataclass(frozen=True)
class Task:
    """A function of feature values that a toy model is trained on.

    Attributes:
        kind: ``"identity"``, ``"absolute"`` or ``"ands"``.
        pairs: Pairs of features, one an output, for ``"ands"``.

    Raises:
        OptionError: The kind is not known.
    """

    kind: Literal["identity", "absolute", "ands"]
    pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("identity", "absolute", "ands"):
            raise OptionError("kind", self.kind, ("identity", "absolute", "ands"))

    def n_outputs(self, n_features: int) -> int:
        """Number of outputs.

        Args:
            n_features: Number of inputs.

        Returns:
            As many as pairs, or as features.
        """
        return len(self.pairs) if self.kind == "ands" else n_features

    def __call__(self, x: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch output"]:
        """Targets of inputs.

        Args:
            x: Inputs.

        Returns:
            Targets; an AND is 1 where both features of its pair are above 0, else 0.
        """
        if self.kind == "identity":
            return x
        if self.kind == "absolute":
            return x.abs()
        first, second = torch.tensor(self.pairs, device=x.device).T
        return ((x[..., first] > 0) & (x[..., second] > 0)).to(x.dtype)


def identity() -> Task:
    """Give back the input.

    Returns:
        The task.
    """
    return Task("identity")


def absolute() -> Task:
    """The absolute value of each feature.

    Returns:
        The task.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, "Computation in superposition".

    Example:
        >>> absolute()(torch.tensor([[1.0, -2.0]]))
        tensor([[1., 2.]])
    """
    return Task("absolute")


def ands(pairs: Iterable[tuple[int, int]]) -> Task:
    """Whether both features of a pair are active, one output for each pair.

    Args:
        pairs: Pairs of different features.

    Returns:
        The task.

    Raises:
        ShapeError: There is no pair, or one names a feature twice or a negative number.

    Example:
        >>> ands([(0, 1), (0, 2)])(torch.tensor([[1.0, 0.0, 1.0]]))
        tensor([[0., 1.]])
    """
    found = tuple((int(a), int(b)) for a, b in pairs)
    wrong = [p for p in found if p[0] == p[1] or min(p) < 0]
    if wrong or not found:
        raise ShapeError(f"{wrong[0] if wrong else 'No pair'} was given. Pairs are of two different features, numbered from 0.")
    return Task("ands", found)


def universal_and(n_features: int) -> Task:
    """The AND of every pair of features.

    Args:
        n_features: Features.

    Returns:
        The task, with ``n_features (n_features − 1) / 2`` outputs.

    Source:
        Hänni et al. 2024, *Mathematical Models of Computation in Superposition*.
    """
    return ands(itertools.combinations(range(n_features), 2))
