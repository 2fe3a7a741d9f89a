"""A finding: a number together with the evidence that it means something.

Every analysis returns a finding or a subclass. A number alone is never "established": that takes a null distribution it
stands out from, and a reliability that says it would come out again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import OptionError
from mechfeat.features.storage import Stored, storable

Tail = Literal["greater", "less", "two-sided"]


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class Finding(Stored):
    """A value with its evidence.

    Attributes:
        value: The statistic, in the unit its analysis states.
        n: Number of independent units behind it (inputs, features, weights: ``settings["unit"]`` says which).
        seed: Seed of every random draw that went into it.
        null: The same statistic where nothing is to be found, one entry a draw; None if no null was computed.
        reliability: Agreement with a repetition on independent data, at most 1, dimensionless; None if it was not computed.
        interval: Lower and upper end of the 95 % interval of ``value``; None if it was not computed.
        settings: The options that produced it, by name.
        tail: Side of the null on which a value counts as evidence.

    Example:
        >>> import torch
        >>> f = Finding(value=0.9, n=50, seed=0, null=torch.linspace(0.4, 0.6, 99), reliability=0.8, interval=(0.8, 0.95))
        >>> f.p_value, f.established
        (0.01, True)
        >>> print(Finding(value=0.9, n=50, seed=0).summary())
        value 0.9 | n 50 | no null | no reliability | not established
    """

    alpha: ClassVar[float] = 0.05
    min_reliability: ClassVar[float] = 0.5

    value: float
    n: int
    seed: int
    null: Float[Tensor, " draw"] | None = None
    reliability: float | None = None
    interval: tuple[float, float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tail: Tail = "greater"

    def __post_init__(self) -> None:
        if self.tail not in ("greater", "less", "two-sided"):
            raise OptionError("tail", self.tail, ("greater", "less", "two-sided"))

    @property
    def p_value(self) -> float | None:
        """Share of the null at least as extreme as the value, counting the value itself: in (0, 1], None without a null."""
        if self.null is None or self.null.numel() == 0:
            return None
        draws = self.null.numel()
        # Counting what is not clearly on the harmless side puts NaN, in a draw or in the value, against the finding.
        above = (1 + int((~(self.null < self.value)).sum())) / (1 + draws)
        below = (1 + int((~(self.null > self.value)).sum())) / (1 + draws)
        return {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[self.tail]

    @property
    def established(self) -> bool:
        """True where the value stands out from its null (p ≤ 0.05) and is reliable (≥ 0.5). False where either is missing."""
        p = self.p_value
        # NaN compares False with everything, so a statistic that broke is never established.
        return (
            p is not None
            and self.reliability is not None
            and p <= self.alpha
            and self.reliability >= self.min_reliability
            and self.value == self.value
        )

    def summary(self) -> str:
        """One line: value, interval, n, null, reliability, verdict."""
        parts = [f"value {self.value:.4g}"]
        if self.interval is not None:
            parts.append(f"95 % interval [{self.interval[0]:.4g}, {self.interval[1]:.4g}]")
        parts.append(f"n {self.n}")
        p = self.p_value
        if self.null is None or p is None:
            parts.append("no null")
        else:
            parts.append(f"null median {self.null.median().item():.4g}, p {p:.2g}")
        parts.append("no reliability" if self.reliability is None else f"reliability {self.reliability:.2f}")
        parts.append("established" if self.established else "not established")
        return " | ".join(parts)


def signal_share(value: float, null: Float[Tensor, " draw"], standard_error: float) -> float:
    r"""Reliability of a number: the share of signal in what separates it from its null.

    .. math:: \frac{(v - m)^2}{(v - m)^2 + s^2}

    with m the median of the null and s the standard error. It is 0.5 where the distance is one standard error, and 0.94 at four of them.

    Args:
        value: The statistic.
        null: Draws of its null.
        standard_error: Its standard error over independent repetitions.

    Returns:
        A share in [0, 1], dimensionless; 0 where there is neither distance nor error.

    Example:
        >>> import torch
        >>> signal_share(3.0, torch.tensor([1.0]), 2.0)
        0.5
    """
    distance = (value - float(null.median())) ** 2
    return distance / (distance + standard_error**2) if distance or standard_error else 0.0
