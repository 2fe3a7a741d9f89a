"""Layers of deep networks, as descriptions: what each does to covariances at infinite width, and the module it is at a finite one."""

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mechfeat.errors import OptionError, ShapeError, UnsupportedModelError
from mechfeat.models.text.activations import Function
from mechfeat.ntk.analytic.deep_covariance import Covariance, Padding, extent, pooled, windows
from mechfeat.ntk.analytic.deep_modules import Elementwise, MeanOverPositions, NTKConv, NTKLinear
from mechfeat.ntk.dual import Activation

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """What is known of values without running anything.

    Args:
        gaussian: Whether they are Gaussian at infinite width, as an activation function needs them.
        fresh: Whether weights that nothing else uses made them, so that they are independent of every other branch.
    """

    gaussian: bool = False
    fresh: bool = False


@runtime_checkable
class Layer(Protocol):
    """What a layer can say of itself."""

    def kind(self, before: Kind) -> Kind:
        """What its outputs are.

        Args:
            before: What its inputs are.

        Returns:
            What its outputs are.
        """
        ...

    def needs_pairs(self) -> bool:
        """Whether it needs the covariances of all pairs of positions.

        Returns:
            True if it averages over positions.
        """
        ...

    def infinite(self, K: Covariance) -> Covariance:
        """What it does at infinite width.

        Args:
            K: The covariance of its inputs.

        Returns:
            The covariance of its outputs.
        """
        ...

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """What it is at a finite width.

        Args:
            shape: Shape ``(channel, *position)`` of an input.
            width: Channels of its outputs, where it has weights.
            generator: Source of the weights.

        Returns:
            A module, and the shape of an output.
        """
        ...


class _Plain:
    """A layer that can stand anywhere and looks at one position of a pair at a time."""

    def kind(self, before: Kind) -> Kind:
        """What its outputs are: what its inputs were."""
        return before

    def needs_pairs(self) -> bool:
        """Whether it needs the covariances of all pairs of positions: no."""
        return False


@dataclass(frozen=True)
class Dense(_Plain):
    r"""A fully connected layer :math:`σ_w W x / \sqrt{\text{fan-in}} + σ_b b` with standard Gaussian W and b.

    Args:
        W_std: :math:`σ_w`.
        b_std: :math:`σ_b`.

    Raises:
        OptionError: A standard deviation is negative or not finite.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*, section 2 and theorem 1.
    """

    W_std: int | float = 1.0
    b_std: int | float = 0.0

    def __post_init__(self) -> None:
        _check_std(self.W_std, self.b_std)

    def kind(self, before: Kind) -> Kind:
        """What its outputs are: Gaussian, and independent of other branches."""
        return Kind(gaussian=True, fresh=True)

    def infinite(self, K: Covariance) -> Covariance:
        """The covariance after it."""
        if K.space:
            raise ShapeError(
                f"Dense was given inputs with {K.space} axes of positions, {list(K.cov1.shape[1 : 1 + K.space])}. Put Flatten() or "
                "GlobalAvgPool() before it, or take Conv(1) for a layer at each position."
            )
        return K.affine(float(self.W_std), float(self.b_std))

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """The module of finite width, and the shape of what it gives."""
        return NTKLinear(shape[0], width, float(self.W_std), float(self.b_std), generator), (width,)


@dataclass(frozen=True)
class Conv(_Plain):
    r"""A convolution over one or two axes of positions; its fan-in is channels times window, also where padding stands in the window.

    Args:
        kernel: Size of the window, of all axes or of each.
        W_std: :math:`σ_w`, of weights.
        b_std: :math:`σ_b`, of biases.
        stride: Distance of windows, of all axes or of each.
        padding: ``"same"`` pads with zeros to as many windows as positions (divided by the stride, rounded up; an odd zero goes after
            the last position), ``"circular"`` as far around, ``"valid"`` not at all.

    Raises:
        OptionError: An option has an unknown value.

    Source:
        Arora et al. 2019, *On Exact Computation with an Infinitely Wide Neural Net*, section 4.
    """

    kernel: Size
    W_std: int | float = 1.0
    b_std: int | float = 0.0
    stride: Size = 1
    padding: Padding = "same"

    def __post_init__(self) -> None:
        _check_std(self.W_std, self.b_std)
        _check_size("kernel", self.kernel)
        _check_size("stride", self.stride)
        if self.padding not in ("valid", "same", "circular"):
            raise OptionError("padding", self.padding, ("valid", "same", "circular"))

    def kind(self, before: Kind) -> Kind:
        """What its outputs are: Gaussian, and independent of other branches."""
        return Kind(gaussian=True, fresh=True)

    def infinite(self, K: Covariance) -> Covariance:
        """The covariance after it."""
        kernel, stride = _sizes("Conv", "kernel", self.kernel, K.space), _sizes("Conv", "stride", self.stride, K.space)
        moved = K.map(lambda t: windows(t, kernel, stride, self.padding, pairs=K.pairs))
        return moved.affine(float(self.W_std), float(self.b_std))

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """The module of finite width, and the shape of what it gives."""
        D = len(shape) - 1
        kernel, stride = _sizes("Conv", "kernel", self.kernel, D), _sizes("Conv", "stride", self.stride, D)
        out = tuple(extent(size, k, step, self.padding)[2] for size, k, step in zip(shape[1:], kernel, stride))
        module = NTKConv(shape[0], width, kernel, stride, self.padding, float(self.W_std), float(self.b_std), generator)
        return module, (width, *out)


@dataclass(frozen=True)
class Nonlinearity(_Plain):
    """An activation function.

    Args:
        phi: A name, a torch function or an :class:`mechfeat.ntk.Activation`.
        activation: Its dual activations, found from ``phi``.
    """

    phi: str | Function | Activation
    activation: Activation = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", Activation.of(self.phi))

    def kind(self, before: Kind) -> Kind:
        """What its outputs are: neither Gaussian nor, their mean being another, independent of other branches."""
        if not before.gaussian:
            raise UnsupportedModelError(
                f"{self} stands where its inputs are not Gaussian at infinite width: after another activation function or Flatten, on "
                "the inputs of the network, or on a sum with one of these. Put Dense or Conv before it; `mechfeat.ntk.empirical_ntk` "
                "serves any network."
            )
        return Kind()

    def infinite(self, K: Covariance) -> Covariance:
        """The covariance after it."""
        return K.activate(self.activation)

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """The module, and the shape of what it gives."""
        return Elementwise(self.activation.function), shape


@dataclass(frozen=True)
class AvgPool(_Plain):
    """Means over windows of positions, without padding.

    Args:
        window: Size of the window, of all axes or of each.
        stride: Distance of windows; the size of the window by default.

    Raises:
        OptionError: A size is not a positive number.
    """

    window: Size
    stride: Size | None = None

    def __post_init__(self) -> None:
        _check_size("window", self.window)
        if self.stride is not None:
            _check_size("stride", self.stride)

    def needs_pairs(self) -> bool:
        """Whether it needs the covariances of all pairs of positions: yes."""
        return True

    def infinite(self, K: Covariance) -> Covariance:
        """The covariance after it."""
        window, stride = self._both(K.space)
        return K.map(lambda t: pooled(t, window, stride, pairs=True))

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """The module, and the shape of what it gives."""
        window, stride = self._both(len(shape) - 1)
        pool: type[nn.Module] = nn.AvgPool1d if len(window) == 1 else nn.AvgPool2d
        return pool(window, stride), (shape[0], *(extent(size, k, s, "valid")[2] for size, k, s in zip(shape[1:], window, stride)))

    def _both(self, space: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        stride = self.window if self.stride is None else self.stride
        return _sizes("AvgPool", "window", self.window, space), _sizes("AvgPool", "stride", stride, space)


@dataclass(frozen=True)
class GlobalAvgPool(_Plain):
    """The mean over all positions."""

    def needs_pairs(self) -> bool:
        """Whether it needs the covariances of all pairs of positions: yes."""
        return True

    def infinite(self, K: Covariance) -> Covariance:
        """The covariance after it."""
        _sizes("GlobalAvgPool", "window", 1, K.space)
        return K.map(lambda t: t.flatten(t.ndim - 2 * K.space).mean(-1), space=0)

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """The module, and the shape of what it gives."""
        return MeanOverPositions(), shape[:1]


@dataclass(frozen=True)
class Flatten(_Plain):
    """All channels of all positions as the channels of none. Of the covariances only those of a position with itself matter."""

    def kind(self, before: Kind) -> Kind:
        """What its outputs are: channels that differ by position, of which the mean covariance is all that a read-out needs."""
        return Kind(gaussian=False, fresh=before.fresh)

    def infinite(self, K: Covariance) -> Covariance:
        """The covariance after it."""
        if not K.space:
            return K
        return K.map(lambda t: _trace(t, K.space, pairs=K.pairs), space=0)

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """The module, and the shape of what it gives."""
        return nn.Flatten(), (math.prod(shape),)


def _trace(t: Tensor, space: int, *, pairs: bool) -> Tensor:
    flat = t.flatten(t.ndim - space)
    if not pairs:
        return flat.mean(-1)
    return flat.flatten(flat.ndim - 1 - space, -2).diagonal(dim1=-2, dim2=-1).mean(-1)


def _check_std(W_std: float, b_std: float) -> None:
    for option, value in (("W_std", W_std), ("b_std", b_std)):
        if not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise OptionError(option, value, ("a finite number of at least 0",))


def _check_size(option: str, size: Size) -> None:
    every = size if isinstance(size, tuple) else (size,)
    if not every or len(every) > 2 or any(not isinstance(n, int) or n < 1 for n in every):
        raise OptionError(option, size, ("a positive integer", "one for each of one or two axes"))


def _sizes(layer: str, option: str, size: Size, space: int) -> tuple[int, ...]:
    if not space:
        raise ShapeError(f"{layer} needs axes of positions, and was given inputs [sample channel]. Give [sample channel position ...].")
    every = size if isinstance(size, tuple) else (size,) * space
    if len(every) != space:
        raise ShapeError(f"{layer} has {option}={size} for {len(every)} axes, and its inputs have {space}. Give one number, or {space}.")
    return every
