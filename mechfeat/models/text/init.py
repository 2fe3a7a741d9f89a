"""Initial standard deviations of a text model: one object that the finite network and its infinite-width kernel both read."""

import math
from dataclasses import dataclass, fields

from mechfeat.errors import OptionError


@dataclass(frozen=True)
class InitSpec:
    r"""Standard deviations of the initial weights in NTK parameterisation, and which parts stay as they are drawn.

    Entries are drawn with these standard deviations, and each matrix product is divided by :math:`\sqrt{\text{fan-in}}` in the forward
    pass, so that all of them are of order 1 at every width. A model reads those of the parts it has.

    Attributes:
        embedding: :math:`s_e`, of token embeddings.
        hidden: :math:`s_w`, of hidden layers, filters and value matrices.
        readout: :math:`s_v`, of the read-out.
        token_matrix: :math:`s_M`, of the matrices that tokens own in matrix-vector models.
        recurrence: :math:`s_h`, of the matrix of a recurrent network.
        inputs: :math:`s_x`, of the input matrix of a gated recurrent network, and of query and key matrices.
        frozen: Names among those above of parts that do not train.

    Raises:
        OptionError: A standard deviation is not a finite number of at least 0, or a frozen part is unknown.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*, section 2 (the parameterisation).

    Example:
        >>> InitSpec(embedding=2.0, hidden=0.5).tau_sq
        1.0
    """

    embedding: int | float = 1.0
    hidden: int | float = 1.0
    readout: int | float = 1.0
    token_matrix: int | float = 1.0
    recurrence: int | float = 1.0
    inputs: int | float = 1.0
    frozen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for part in PARTS:
            value = getattr(self, part)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise OptionError(part, value, ("a finite number of at least 0",))
        for part in self.frozen:
            if part not in PARTS:
                raise OptionError("frozen", part, PARTS)

    @property
    def tau_sq(self) -> float:
        r"""Variance :math:`τ^2 = s_w^2 s_e^2` of a pre-activation caused by one token."""
        return float(self.hidden**2 * self.embedding**2)

    def trains(self, part: str) -> float:
        """Whether a part trains, as a factor of its gradient's inner products.

        Args:
            part: Name of the part.

        Returns:
            1 or 0.

        Raises:
            OptionError: The part is unknown.
        """
        if part not in PARTS:
            raise OptionError("part", part, PARTS)
        return float(part not in self.frozen)

    @classmethod
    def uniform(cls, sd: int | float, *, frozen: frozenset[str] = frozenset()) -> "InitSpec":
        """The same standard deviation for all parts.

        Args:
            sd: The standard deviation.
            frozen: Parts that do not train.

        Returns:
            The specification.

        Example:
            >>> InitSpec.uniform(0.1).readout
            0.1
        """
        return cls(**dict.fromkeys(PARTS, sd), frozen=frozen)


PARTS: tuple[str, ...] = tuple(f.name for f in fields(InitSpec) if f.name != "frozen")
