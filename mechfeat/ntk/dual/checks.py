"""What dual activations ask of functions, variances and covariances."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mechfeat.errors import DeviceError, DtypeError, NonFiniteError, OptionError, ShapeError
from mechfeat.models.text.activations import Function


def check_elementwise(name: str, function: Function) -> None:
    """Raise where a function is not elementwise, trains, or leaves float64.

    Args:
        name: Its name.
        function: The function.

    Raises:
        DtypeError: It returns another dtype for float64.
        OptionError: Its value at an entry depends on the other entries, or it is a module with parameters that train.
    """
    if isinstance(function, nn.Module) and any(p.requires_grad for p in function.parameters()):
        raise OptionError("activation", name, ("one without parameters that train: infinite-width kernels do not have their gradients",))
    x = torch.linspace(-1.5, 2.0, 6, dtype=torch.float64).reshape(2, 3)
    y = function(x)
    if y.dtype != torch.float64:
        raise DtypeError(f"{name} returns {y.dtype} for torch.float64, and dual activations are computed in float64. Keep the dtype.")
    if y.shape != x.shape or not torch.allclose(function(x.flip(0)[:1, 1:]), y.flip(0)[:1, 1:], rtol=1e-12, atol=1e-12):
        raise OptionError("activation", name, ("a function that acts on each entry of a tensor alone",))


def undeclared(name: str, missed: list[float], declared: tuple[float, ...]) -> str:
    """The message about kinks that were not declared.

    Args:
        name: Name of the function.
        missed: Where they are.
        declared: Where they were said to be.

    Returns:
        The message.
    """
    everything = ", ".join(f"{k:g}" for k in sorted({*missed, *declared}))
    return (
        f"{name} is not smooth at {listed(missed)}, and kinks={declared} does not say so; quadrature across a kink is wrong by an unknown "
        f"amount. Give kinks=({everything},), exactly, and it is integrated between them."
    )


def listed(places: Sequence[float]) -> str:
    """Numbers as text.

    Args:
        places: The numbers.

    Returns:
        The text.
    """
    return ", ".join(f"{place:g}" for place in places)


def checked(name: str, **given: Tensor | float | int) -> tuple[Tensor, ...]:
    """Variances, and a covariance ``c``, as float64 tensors that fit, the covariance clipped.

    Args:
        name: Name of the activation function.
        given: Tensors or numbers by symbol, the first of them variances.

    Returns:
        The tensors.

    Raises:
        DtypeError: A tensor is not float64.
        DeviceError: Tensors are on different devices.
        NonFiniteError: One holds NaN or infinity.
        ShapeError: They do not broadcast, a variance is negative, or a covariance is too large for its variances.
    """
    device = next((v.device for v in given.values() if isinstance(v, Tensor)), torch.device("cpu"))
    values = {}
    for symbol, v in given.items():
        v = v.detach() if isinstance(v, Tensor) else torch.tensor(float(v), dtype=torch.float64, device=device)
        if v.dtype != torch.float64:
            raise DtypeError(f"{symbol} has dtype {v.dtype}. Dual activations take torch.float64; `{symbol}.double()` makes one.")
        if v.device != device:
            raise DeviceError(f"{symbol} is on {v.device}, and another argument on {device}. Move them to one device.")
        if not bool(torch.isfinite(v).all()):
            raise NonFiniteError(f"{symbol} holds NaN or infinity. Variances and covariances of the activation {name} must be finite.")
        values[symbol] = v
    for symbol, v in values.items():
        if symbol != "c" and bool((v < 0).any()):
            raise ShapeError(f"{symbol} holds the negative variance {float(v.min()):g}. Variances are 0 or more.")
    if "c" not in values:
        return tuple(values.values())
    try:
        a, b, c = torch.broadcast_tensors(*values.values())
    except RuntimeError:
        shapes = ", ".join(f"{s} {list(v.shape)}" for s, v in values.items())
        raise ShapeError(f"The shapes do not broadcast: {shapes}. Give a, b and c shapes that do.") from None
    limit = a.sqrt() * b.sqrt()
    beyond = c.abs() > limit * (1 + 1e-6) + 1e-300
    if bool(beyond.any()):
        i = beyond.nonzero()[0].tolist()
        at = tuple(i)
        raise ShapeError(
            f"At {i}, c={float(c[at]):g} exceeds √(ab)={float(limit[at]):g} of a={float(a[at]):g}, b={float(b[at]):g}: no Gaussian pair "
            "has such a covariance. Check which variances go with it."
        )
    # By ab, not by its root: where a = b = c the covariance must stay what it is.
    return a, b, torch.where(c * c > a * b, torch.copysign(limit, c), c)


def check_found(name: str, which: str, value: Tensor, at: tuple[Tensor, ...]) -> None:
    """Raise where a dual activation is not finite.

    Args:
        name: Name of the activation function.
        which: Name of the dual activation.
        value: Its values.
        at: The a, b and c that they are at.

    Raises:
        NonFiniteError: A value is NaN or infinite.
    """
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        a, b, c = (float(t.expand(value.shape)[bad][0]) for t in at)
        if which == "k2" and c * c >= a * b:
            why = "two delta functions of the second derivative meet there. It is finite for c² < ab."
        else:
            why = "the function grows too fast for these variances. Take smaller ones."
        raise NonFiniteError(f"{which} of {name} is not finite at a={a:g}, b={b:g}, c={c:g}: {why}")
