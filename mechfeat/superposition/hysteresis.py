r"""Hysteresis: where a sweep out and back does not take the same states.

If the state that the free part rests in depends on where it came from, the way out and the way back differ. The control is the same
sweep without memory, in which the free part begins at its starting values at every level; what is left of the loop there is not
hysteresis.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.models import ToyBank
from mechfeat.superposition.sweep import Control, QuasiStatic, Values, quasi_static


@storable
@dataclass(frozen=True, eq=False)
class Hysteresis(Stored):
    """A loop out and back, and the same without memory.

    Attributes:
        levels: Levels on the way out; on the way back they are visited in reverse.
        out: Observable on the way out.
        back: Observable on the way back, in the order of ``levels``.
        control_out: The same without memory.
        control_back: The same without memory.
        threshold: Value of the observable at which a state counts as switched.
    """

    levels: Float[Tensor, " level"]
    out: Float[Tensor, " level"]
    back: Float[Tensor, " level"]
    control_out: Float[Tensor, " level"]
    control_back: Float[Tensor, " level"]
    threshold: float

    @property
    def switches(self) -> tuple[float, float]:
        """Level at which the observable crosses the threshold, on the way out and on the way back; NaN where it does not."""
        return _crossing(self.levels, self.out, self.threshold), _crossing(self.levels, self.back, self.threshold)

    @property
    def width(self) -> float:
        """Distance of the two switches, in units of the level; infinite where the way out switches and the way back never does."""
        return _width(self.levels, self.out, self.back, self.threshold)

    @property
    def control_width(self) -> float:
        """The same without memory."""
        return _width(self.levels, self.control_out, self.control_back, self.threshold)

    @property
    def established(self) -> bool:
        """Whether the loop is open by more than three steps of the level, and the control is not."""
        step = float(self.levels.diff().abs().max())
        return self.width > 3 * step >= 3 * self.control_width


def hysteresis(
    bank: ToyBank,
    control: Control,
    levels: Sequence[int | float],
    *,
    free: Mapping[str, Tensor],
    observe: Callable[[QuasiStatic], Float[Tensor, "level instance"]],
    threshold: int | float = 0.5,
    instance: int = 0,
    steps: int = 3000,
    lr: int | float = 3.0,
    progress: bool = False,
) -> Hysteresis:
    """Sweep a control out and back with memory, and without it.

    Args:
        bank: Starting values, at rest at the first level.
        control: As for :func:`quasi_static`, whose errors it raises.
        levels: The way out, monotone; at least two.
        free: As there.
        observe: From a sweep to one number a level and instance, such as the output of a feature.
        threshold: Value of the observable at which a state counts as switched.
        instance: Which instance of the bank the loop is of.
        steps: As there.
        lr: As there.
        progress: Show progress bars.

    Returns:
        The loop.

    Raises:
        OptionError: ``free`` names an unknown parameter.
        ShapeError: There are fewer than two levels, or they are not monotone.

    Cost:
        ``4 * len(levels) * steps`` gradients.

    Example:
        >>> from mechfeat.models import ToySpec
        >>> def push(start, level):
        ...     return {"b": torch.full_like(start["b"], -level)}
        >>> free = {"W": torch.tensor(True)}
        >>> found = hysteresis(ToyBank(ToySpec(6, 2), 1), push, [0.0, 1.0], free=free, observe=lambda s: s.losses, steps=50, lr=1.0)
        >>> found.control_width, bool((found.control_out == found.control_back).all())
        (0.0, True)
    """
    up = [float(level) for level in levels]
    rising = [b - a for a, b in itertools.pairwise(up)]
    if len(up) < 2 or not (all(d > 0 for d in rising) or all(d < 0 for d in rising)):
        raise ShapeError(f"The levels {up[:6]} are not a way out: give two or more, rising or falling throughout.")
    found = []
    for memory in (True, False):
        sweep = quasi_static(bank, control, [*up, *up[-2::-1]], free=free, steps=steps, lr=lr, memory=memory, progress=progress)
        seen = observe(sweep)[:, instance].double()
        found += [seen[: len(up)], seen[len(up) - 1 :].flip(0)]
    out, back, control_out, control_back = found
    return Hysteresis(torch.tensor(up, dtype=torch.float64), out, back, control_out, control_back, float(threshold))


def widen_gap(values: Mapping[str, Tensor], first: int, second: int, degrees: int | float) -> Values:
    """Turn two features of a two-dimensional model apart, each by half of an angle, in embedding and unembedding alike.

    Args:
        values: Parameters by name, with ``W`` and possibly ``U``, ``[instance feature 2]``.
        first: One feature.
        second: The other.
        degrees: By how much the angle between them grows; negative narrows it.

    Returns:
        ``W`` and ``U`` as they are then.

    Raises:
        ShapeError: The model is not two-dimensional.

    Example:
        >>> found = widen_gap({"W": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])}, 0, 1, 90)["W"]
        >>> round(float((found[0, 0] * found[0, 1]).sum()), 6)
        -1.0
    """
    found = {}
    for name in [n for n in ("W", "U") if n in values]:
        V = values[name].clone()
        if V.shape[-1] != 2:
            raise ShapeError(f"{name} has shape {list(V.shape)}. An angle between features is widened in two hidden dimensions.")
        a, b = V[..., first, :], V[..., second, :]
        turn = torch.sign(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])  # +1 where the second lies counter-clockwise of the first
        for k, sign in ((first, -1), (second, 1)):
            angle = sign * turn * (degrees * torch.pi / 360)
            c, s = angle.cos(), angle.sin()
            x, y = V[..., k, 0].clone(), V[..., k, 1].clone()
            V[..., k, 0], V[..., k, 1] = c * x - s * y, s * x + c * y
        found[name] = V
    return found


def _crossing(levels: Tensor, seen: Tensor, threshold: float) -> float:
    """First crossing in the order of the levels, between the two levels linearly."""
    above = seen >= threshold
    change = (above[1:] != above[:-1]).nonzero()
    if not len(change):
        return float("nan")
    i = int(change[0])
    share = (threshold - seen[i]) / (seen[i + 1] - seen[i])
    return float(levels[i] + share * (levels[i + 1] - levels[i]))


def _width(levels: Tensor, out: Tensor, back: Tensor, threshold: float) -> float:
    one, other = _crossing(levels, out, threshold), _crossing(levels, back, threshold)
    if one != one and other != other:
        return 0.0  # neither way switches
    if one != one or other != other:
        return float("inf")
    return abs(one - other)
