"""Losses of toy models, one number an instance, and their gradients by the output."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable


@storable
@dataclass(frozen=True)
class Loss:
    r"""A loss, averaged over samples and, but for cross-entropy, over outputs.

    .. math:: L_p = \tfrac1o \textstyle\sum_i I_i\, |\hat y_i - y_i|^p, \qquad
              L_{CE} = -\textstyle\sum_i y_i \ln \operatorname{softmax}(\hat y)_i

    Attributes:
        kind: ``"lp"`` or ``"cross_entropy"``.
        p: The exponent; 2 is the mean squared error.
        importance: :math:`I`: ``[output]``, or ``[instance output]``; 1 if None.

    Raises:
        OptionError: The kind is not known, the exponent is below 1, or an importance is negative or not finite.
        ShapeError: The importance has another number of axes.
    """

    kind: Literal["lp", "cross_entropy"]
    p: float = 2.0
    importance: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("lp", "cross_entropy"):
            raise OptionError("kind", self.kind, ("lp", "cross_entropy"))
        if not self.p >= 1:
            raise OptionError("p", self.p, ["a number of at least 1"])
        if self.importance is not None and self.importance.ndim not in (1, 2):
            raise ShapeError(f"importance has shape {list(self.importance.shape)}. It is [output], or [instance output].")
        if self.importance is not None and not bool((torch.isfinite(self.importance) & (self.importance >= 0)).all()):
            raise OptionError("importance", float(self.importance.min()), ["finite numbers of at least 0"])

    def value(self, out: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Loss of each instance.

        Args:
            out: ``[instance sample output]``.
            y: Targets, broadcastable to it.
            weight: Importance times sample weight, broadcastable; includes one over the outputs.

        Returns:
            ``[instance]``.
        """
        if self.kind == "cross_entropy":
            return -(y * torch.log_softmax(out, -1) * weight).sum((-2, -1))
        error = out - y
        error = error.square() if self.p == 2 else error.abs() ** self.p
        return (error * weight).sum((-2, -1))

    def residual_(self, out: Tensor, y: Tensor | None) -> Tensor:
        """Gradient by the output, in its place, up to the weight and the constant :meth:`factor`.

        Args:
            out: ``[instance sample output]``; overwritten.
            y: Targets; None for the identity matrix.

        Returns:
            ``out``.
        """
        if self.kind == "cross_entropy":
            torch.softmax(out, -1, out=out)
            if y is not None:
                out.mul_(y.sum(-1, keepdim=True))
        if y is None:
            out.diagonal(dim1=-2, dim2=-1).sub_(1)
        else:
            out.sub_(y)
        if self.kind == "lp" and self.p == 1:
            torch.sign(out, out=out)
        elif self.kind == "lp" and self.p != 2:
            out.mul_(out.abs().pow_(self.p - 2).nan_to_num_(posinf=0.0))  # at error 0 the slope is 0
        return out

    @property
    def factor(self) -> float:
        """The constant that :meth:`residual_` leaves out."""
        return self.p if self.kind == "lp" else 1.0


def mse(importance: Tensor | None = None) -> Loss:
    """Mean squared error over samples and outputs, weighted.

    Args:
        importance: ``[output]``, or ``[instance output]``; 1 if None.

    Returns:
        The loss.
    """
    return Loss("lp", 2.0, importance)


def lp(p: int | float, importance: Tensor | None = None) -> Loss:
    """Mean absolute error to a power, over samples and outputs, weighted.

    Args:
        p: The power, at least 1.
        importance: ``[output]``, or ``[instance output]``; 1 if None.

    Returns:
        The loss.
    """
    return Loss("lp", float(p), importance)


def cross_entropy() -> Loss:
    """Cross-entropy of the softmax over outputs, in nats, with the targets as they are: two-hot ones sum to 2.

    Returns:
        The loss.
    """
    return Loss("cross_entropy")
