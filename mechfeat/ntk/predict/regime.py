"""Kernel regime or rich: did the kernel that the prediction rests on stay where it was?"""

import math
from typing import Literal

Regime = Literal["kernel regime", "rich", "not measured"]
#: Relative change of the kernel up to which a network counts as in the kernel regime.
DRIFT_LIMIT = 0.1


class RichRegimeWarning(UserWarning):
    """The tangent kernel has moved so far that a prediction from the initial one need not hold."""


def regime(drift: float | None) -> Regime:
    """The verdict.

    Args:
        drift: Relative change of the kernel; None where it was not measured.

    Returns:
        ``"kernel regime"`` below :data:`DRIFT_LIMIT`, ``"rich"`` from there on and for a drift that is no number.

    Example:
        >>> regime(0.01), regime(16.0), regime(None)
        ('kernel regime', 'rich', 'not measured')
    """
    if drift is None:
        return "not measured"
    return "kernel regime" if not math.isnan(drift) and drift < DRIFT_LIMIT else "rich"


def rich_message(drift: float) -> str:
    """What to say of a kernel that has moved.

    Args:
        drift: Its relative change.

    Returns:
        A sentence or two.
    """
    return (
        f"The kernel moved by {drift:.3g} of its initial norm during training, and a prediction from the initial kernel rests on a change "
        f"below {DRIFT_LIMIT:g}: the network is in the rich regime. Ranks of scores may survive, magnitudes do not. A wider network, "
        "larger initial weights in NTK parameterisation or fewer steps come closer to the kernel regime."
    )
