"""How large a step is at each step, and at which steps a run is recorded."""

import math
from dataclasses import dataclass
from typing import Literal

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable


@storable
@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises linearly from ``base`` to ``peak``, then falls to ``final``.

    Attributes:
        base: Rate at the first step.
        peak: Rate at the end of the warm-up.
        final: Rate at the end.
        warmup: Share of the scheduled steps that the rise takes.
        decay: ``"geometric"``: the same factor at each step. ``"cosine"``: half a period of a cosine, for which ``final`` may be 0.
        steps: Scheduled steps; those of the run if None. A run may end before its schedule does.

    Raises:
        OptionError: A rate is negative, a geometric one is 0, the share is outside [0, 1], no step is scheduled, or the decay is not known.

    Example:
        >>> rates = Schedule(0.001, 5.0, 2.0)
        >>> [round(rates(t, 1000), 4) for t in (0, 25, 50, 1000)]
        [0.001, 2.5005, 5.0, 2.0]
    """

    base: float
    peak: float
    final: float
    warmup: float = 0.05
    decay: Literal["geometric", "cosine"] = "geometric"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.decay not in ("geometric", "cosine"):
            raise OptionError("decay", self.decay, ("geometric", "cosine"))
        for name in ("base", "peak", "final"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (self.decay == "geometric" and name != "base" and not value > 0):
                raise OptionError(name, value, ["a number of at least 0, and above 0 for the peak and end of a geometric decay"])
        if not 0 <= self.warmup <= 1:
            raise OptionError("warmup", self.warmup, ["a share between 0 and 1"])
        if self.steps is not None and self.steps < 1:
            raise OptionError("steps", self.steps, ["a number of at least 1", "None for those of the run"])

    def __call__(self, step: int, total: int) -> float:
        """The rate of one step.

        Args:
            step: Its number, from 0.
            total: Steps of the run, for a schedule that states none.

        Returns:
            The rate; ``final`` after the end.
        """
        total = self.steps or total
        rise = self.warmup * total
        if step < rise:
            return self.base + (self.peak - self.base) * step / rise
        t = min(1.0, (step - rise) / max(total - rise, 1e-9))
        if self.decay == "cosine":
            return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * t)) / 2
        return self.peak * (self.final / self.peak) ** t


@storable
@dataclass(frozen=True)
class Record:
    """What a run keeps.

    Attributes:
        frames: Number of frames of all parameters, the first before training and the last after it; or the steps themselves.
        losses: Number of losses of each instance, likewise; or the steps themselves.
        spacing: ``"linear"`` or ``"log"``: how the steps are spread, where numbers are given.

    Raises:
        OptionError: The spacing is not known.

    Example:
        >>> Record(frames=5).steps_of("frames", 100)
        (0, 25, 50, 75, 100)
    """

    frames: int | tuple[int, ...] = 100
    losses: int | tuple[int, ...] = 1000
    spacing: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        if self.spacing not in ("linear", "log"):
            raise OptionError("spacing", self.spacing, ("linear", "log"))

    def steps_of(self, what: Literal["frames", "losses"], total: int) -> tuple[int, ...]:
        """The steps recorded: a frame at step ``t`` is the state after ``t`` steps.

        Args:
            what: Frames or losses.
            total: Steps of the run.

        Returns:
            Steps in order, without repetition; the last is always ``total``.

        Raises:
            ShapeError: A step given is outside the run, or a number is below 1.
        """
        asked = getattr(self, what)
        if isinstance(asked, int):
            if asked < 1:
                raise ShapeError(f"Record was asked for {what}={asked}. It keeps at least the last.")
            n = min(asked, total + 1)
            if n == 1:
                return (total,)
            if self.spacing == "linear":
                return tuple(sorted({round(i * total / (n - 1)) for i in range(n)}))
            return tuple(sorted({round((total + 1) ** (i / (n - 1))) - 1 for i in range(n)}))
        wrong = [t for t in asked if not 0 <= t <= total]
        if wrong:
            raise ShapeError(f"Record names the step {wrong[0]} for {what}; this run has the steps 0 to {total}.")
        return tuple(sorted({*asked, total}))
