"""Edits: interventions as values.

An edit names a hook point, may select a part of it by axis (``channel=7``, ``pos=-1``, ``sample=[0, 2]``), and maps the
activation to another of the same shape. It never writes into the tensor it is given.

Here are the edits that depend on the activation alone; those that take values from other samples or from another run are in
:mod:`mechfeat.hooks.interchange`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import DeviceError, DtypeError, OptionError, SelectorError, ShapeError
from mechfeat.features import Feature

Index = int | Sequence[int]
Direction = Float[Tensor, " channel"] | Feature


@dataclass(frozen=True, init=False, eq=False)
class Edit:
    """Base of the edits.

    Attributes:
        hook: Hook name or glob. A literal name whose hook point fires more than once needs a call index.
        where: Axis name → index or indices; several axes select their intersection.
    """

    hook: str
    where: dict[str, tuple[int, ...]]

    def __init__(self, hook: str, **where: Index) -> None:
        object.__setattr__(self, "hook", hook)
        object.__setattr__(self, "where", {axis: _indices(axis, index) for axis, index in where.items()})

    def at(self, name: str) -> "Edit":
        """The edit as it applies at one hook point.

        Args:
            name: Hook name, where ``hook`` may be a glob.

        Returns:
            Itself, unless the edit depends on where it is.
        """
        return self

    def changed(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """The activation this edit would put in place of ``x`` everywhere, before the selection.

        Args:
            x: The activation.
            axes: Its axis names.

        Returns:
            A tensor of the same shape.
        """
        raise NotImplementedError

    def apply(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """The edited activation.

        Args:
            x: The activation; it is not written to.
            axes: Its axis names.

        Returns:
            A tensor of the same shape, dtype and device.

        Raises:
            SelectorError: An axis is not there, or an index is out of range.
            ShapeError: The edit gave another shape.
            DtypeError: The edit gave another dtype or no tensor.
            DeviceError: The edit gave a tensor on another device.
        """
        new = self.changed(x, axes)
        if not isinstance(new, Tensor):
            raise DtypeError(f"{self} gave a {type(new).__name__} for an activation. It must give a tensor of shape {tuple(x.shape)}.")
        if new.shape != x.shape:
            raise ShapeError(f"{self} gave shape {tuple(new.shape)} for an activation of shape {tuple(x.shape)}. An edit keeps the shape.")
        if new.dtype != x.dtype:
            raise DtypeError(f"{self} gave {new.dtype} for an activation of {x.dtype}. An edit keeps the dtype; convert with .to(x).")
        if new.device != x.device:
            raise DeviceError(f"{self} gave a tensor on {new.device} for an activation on {x.device}. Move it with .to(x).")
        return torch.where(self._mask(x, axes), new, x) if self.where else new

    def _mask(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        mask = torch.ones((1,) * x.ndim, dtype=torch.bool, device=x.device)
        for axis, indices in self.where.items():
            if axis not in axes:
                raise SelectorError(
                    f"{self} selects by {axis!r}, but the activation at this hook point has axes {dict(zip(axes, x.shape))}."
                )
            i = axes.index(axis)
            wrong = [k for k in indices if not -x.shape[i] <= k < x.shape[i]]
            if wrong:
                raise SelectorError(f"{self} selects {axis}={wrong[0]}, but this hook point has {x.shape[i]} of them, counted from 0.")
            row = torch.zeros(x.shape[i], dtype=torch.bool, device=x.device)
            row[list(indices)] = True
            mask = mask & row.view([-1 if k == i else 1 for k in range(x.ndim)])
        return mask

    def _options(self) -> list[str]:
        return []

    def __str__(self) -> str:
        where = [f"{a}={i[0] if len(i) == 1 else list(i)}" for a, i in self.where.items()]
        return f"{type(self).__name__}({', '.join([repr(self.hook), *self._options(), *where])})"

    __repr__ = __str__


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Steer(Edit):
    """Adds ``scale`` times a direction to every selected position.

    Attributes:
        direction: What is added, in activation units: a tensor as it is, a feature as its unit direction.
        scale: Factor, dimensionless for a tensor, activation units for a feature.
    """

    direction: Float[Tensor, " channel"]
    scale: float

    def __init__(self, hook: str, direction: Direction, scale: float = 1.0, **where: Index) -> None:
        super().__init__(hook, **where)
        object.__setattr__(self, "direction", direction.unit if isinstance(direction, Feature) else direction)
        object.__setattr__(self, "scale", scale)

    def changed(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """The activation plus the scaled direction."""
        return x + self.scale * _along_channels(self, self.direction, x, axes)

    def _options(self) -> list[str]:
        return [f"direction[{len(self.direction)}]", f"scale={self.scale:g}"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class ProjectOut(Edit):
    """Removes the component along a direction from every selected position, or sets it to one level everywhere.

    Attributes:
        direction: The direction; its length does not matter, and a zero direction removes nothing.
        level: What the component becomes, in activation units; its mean over a data set gives mean ablation.
    """

    direction: Float[Tensor, " channel"]
    level: float

    def __init__(self, hook: str, direction: Direction, level: float = 0.0, **where: Index) -> None:
        super().__init__(hook, **where)
        d = direction.direction if isinstance(direction, Feature) else direction
        object.__setattr__(self, "direction", torch.nn.functional.normalize(d, dim=0, eps=torch.finfo(d.dtype).tiny))
        object.__setattr__(self, "level", level)

    def changed(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """The activation with ``level`` along the direction."""
        unit = _along_channels(self, self.direction, x, axes)
        return x - ((x * unit).sum(axes.index("channel"), keepdim=True) - self.level) * unit

    def _options(self) -> list[str]:
        return [f"direction[{len(self.direction)}]", *([f"level={self.level:g}"] if self.level else [])]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Scale(Edit):
    """Multiplies the selected part of an activation by a number.

    Attributes:
        factor: The number, dimensionless; 0 ablates to zero, 1 leaves every bit as it is.

    Example:
        >>> Scale("conv2", 0.5, channel=7).apply(torch.ones(1, 8), ("sample", "channel"))[0, 6:]
        tensor([1.0000, 0.5000])
    """

    factor: float

    def __init__(self, hook: str, factor: float, **where: Index) -> None:
        super().__init__(hook, **where)
        object.__setattr__(self, "factor", factor)

    def changed(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """The activation times the factor."""
        return x * self.factor

    def _options(self) -> list[str]:
        return [f"factor={self.factor:g}"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Replace(Edit):
    """Puts the result of a function in the place of an activation.

    Attributes:
        fn: From activation to activation of the same shape, dtype and device. It gets a copy, which it may change and return.
    """

    fn: Callable[[Tensor], Tensor]

    def __init__(self, hook: str, fn: Callable[[Tensor], Tensor], **where: Index) -> None:
        super().__init__(hook, **where)
        if not callable(fn):
            raise OptionError("fn", fn, ("a function from activation to activation",))
        object.__setattr__(self, "fn", fn)

    def changed(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """What the function gives. It gets a copy, since a function that assigns to its argument would change what other modules read."""
        return self.fn(x.clone())

    def _options(self) -> list[str]:
        return [f"fn={getattr(self.fn, '__name__', type(self.fn).__name__)}"]


def _indices(axis: str, index: Any) -> tuple[int, ...]:
    indices = (index,) if isinstance(index, int) and not isinstance(index, bool) else index
    try:
        found = tuple(int(i) for i in indices)
    except (TypeError, ValueError):
        raise OptionError(axis, index, ("an index", "a sequence of indices")) from None
    if not found:
        raise SelectorError(f"{axis}={index!r} selects nothing. Give an index, or leave the axis out to select all of it.")
    return found


def _along_channels(edit: Edit, direction: Tensor, x: Tensor, axes: tuple[str, ...]) -> Tensor:
    if "channel" not in axes:
        raise SelectorError(
            f"{edit} needs the channel axis, and the axes here are {axes}. "
            f"Name it: HookedModel(net, axes={{{edit.hook!r}: (..., 'channel', ...)}})."
        )
    i = axes.index("channel")
    if len(direction) != x.shape[i]:
        raise ShapeError(
            f"{edit} has {len(direction)} channels, and the activation has {x.shape[i]}. Take the direction at this hook point."
        )
    return direction.to(x).view([-1 if k == i else 1 for k in range(x.ndim)])
