"""Three losses as training in function space needs them: checked targets, gradient in the outputs, bound of the curvature."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import DtypeError, NonFiniteError, OptionError, ShapeError

Loss = Literal["squared", "logistic", "softmax"]
Reduction = Literal["mean", "sum"]
#: Largest second derivative of a sample's loss in its outputs.
CURVATURE = {"squared": 1.0, "logistic": 0.25, "softmax": 0.5}


def check_options(loss: str, reduction: str) -> None:
    """Check names.

    Args:
        loss: The loss.
        reduction: How samples are put together.

    Raises:
        OptionError: One of them is not known.
    """
    for option, value, allowed in (("loss", loss, tuple(CURVATURE)), ("reduction", reduction, ("mean", "sum"))):
        if value not in allowed:
            raise OptionError(option, value, allowed)


def gradient(f: Float[Tensor, "*draw n o"], Y: Float[Tensor, "*draw n o"], loss: Loss) -> Float[Tensor, "*draw n o"]:
    """Derivative of each sample's loss in its outputs.

    Args:
        f: Outputs.
        Y: Targets as :func:`targets` gives them.
        loss: The loss.

    Returns:
        The negative residual.

    Example:
        >>> gradient(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), "softmax")
        tensor([[-0.5000,  0.5000]])
    """
    if loss == "squared":
        return f - Y
    return -Y * torch.sigmoid(-Y * f) if loss == "logistic" else F.softmax(f, -1) - Y


def targets(y: Any, loss: Loss, n: int, o: int | None) -> Float[Tensor, "n o"]:
    """Targets in float64, one row a sample: real for squared loss, ±1 for logistic, one-hot for softmax.

    Args:
        y: As the user gave them.
        loss: The loss.
        n: Number of samples.
        o: Number of outputs; None where only the targets can tell.

    Returns:
        Targets.

    Raises:
        DtypeError: They are no tensor, or of a kind that the loss does not take.
        ShapeError: There is not one row a sample, or one column an output.
        OptionError: A label is out of range.
        NonFiniteError: A target is NaN or infinite.
    """
    kind = {
        "squared": "real targets",
        "logistic": "labels of 0 and 1, or of -1 and 1",
        "softmax": "class indices, as integers",
    }[loss]
    if not isinstance(y, Tensor) or y.is_complex():
        raise DtypeError(f"y is of {y.dtype if isinstance(y, Tensor) else type(y).__name__}. loss={loss!r} takes {kind}.")
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        raise NonFiniteError("y holds NaN or infinity.")
    y = y.detach()
    if loss == "softmax":
        return _one_hot(y, n, o)
    o = o or (1 if y.ndim == 1 else y.shape[-1])
    if tuple(y.shape) not in ((n, o), *(((n,),) if o == 1 else ())):
        raise ShapeError(
            f"y has shape {list(y.shape)}. For {n} samples and {o} output{'s' * (o > 1)} loss={loss!r} takes {kind}, [{n}, {o}]."
        )
    Y = y.double().reshape(n, o)
    if loss == "logistic":
        found = set(Y.unique().tolist())
        if not (found <= {0.0, 1.0} or found <= {-1.0, 1.0}):
            shown = ", ".join(f"{v:g}" for v in sorted(found)[:5]) + (", ..." if len(found) > 5 else "")
            raise OptionError("y", _Shown(shown), (_Shown("labels of 0 and 1"), _Shown("of -1 and 1")))
        Y = torch.where(Y > 0, 1.0, -1.0).to(Y)
    return Y


def _one_hot(y: Tensor, n: int, o: int | None) -> Tensor:
    if y.is_floating_point() or y.dtype == torch.bool:
        raise DtypeError(f"y is of {y.dtype}. loss='softmax' takes class indices, as integers.")
    if tuple(y.shape) != (n,):
        raise ShapeError(f"y has shape {list(y.shape)}. For {n} samples loss='softmax' takes class indices, as integers, [{n}].")
    if o is None:
        raise ShapeError(
            f"A kernel {'[n m]'} does not say how many classes there are. Give f0, the outputs before training, as [{n}, classes]; zeros "
            "will do."
        )
    if o == 1:
        raise ShapeError("Softmax of one output is 1 whatever the output. Give two or more outputs, or loss='logistic'.")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= o:
        raise OptionError("y", _Shown(f"{low} to {high}"), (_Shown(f"class indices from 0 to {o - 1}"),))
    return F.one_hot(y.long(), o).double()


class _Shown(str):
    """Words that a message shows without quotes."""

    def __repr__(self) -> str:
        return str(self)
