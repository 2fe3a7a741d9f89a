"""Layers one after the other, and residual blocks of them."""

from dataclasses import dataclass

import torch
from torch import nn

from mechfeat.errors import ShapeError, UnsupportedModelError
from mechfeat.ntk.analytic.deep_covariance import Covariance
from mechfeat.ntk.analytic.deep_layers import Kind, Layer
from mechfeat.ntk.analytic.deep_modules import Branches


@dataclass(frozen=True)
class Residual:
    """The sum of two branches that read the same input; made by :func:`mechfeat.ntk.analytic.residual`.

    Args:
        body: One branch.
        shortcut: The other; without layers it is the input itself.
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def kind(self, before: Kind) -> Kind:
        """What its outputs are: Gaussian if both branches are."""
        # Both read one input, which ties them unless fresh weights stand in one of them after all that they share.
        start = Kind(gaussian=before.gaussian, fresh=False)
        body, shortcut = through(self.body, start), through(self.shortcut, start)
        if not (body.fresh or shortcut.fresh):
            raise UnsupportedModelError(
                "Neither branch of a residual block has weights of its own, so that the two are not independent given their input, and "
                "their covariances do not add. Put Dense or Conv into one; `mechfeat.ntk.empirical_ntk` serves any network."
            )
        return Kind(gaussian=body.gaussian and shortcut.gaussian, fresh=body.fresh and shortcut.fresh)

    def needs_pairs(self) -> bool:
        """Whether a layer of it needs the covariances of all pairs of positions."""
        return any(layer.needs_pairs() for layer in (*self.body, *self.shortcut))

    def infinite(self, K: Covariance) -> Covariance:
        """The covariance after it."""
        body, shortcut = K, K
        for layer in self.body:
            body = layer.infinite(body)
        for layer in self.shortcut:
            shortcut = layer.infinite(shortcut)
        return body + shortcut

    def finite(self, shape: tuple[int, ...], width: int, generator: torch.Generator | None) -> tuple[nn.Module, tuple[int, ...]]:
        """The module of finite width, and the shape of what it gives."""
        body, out = chain(self.body, shape, width, generator)
        shortcut, other = chain(self.shortcut, shape, width, generator)
        if out != other:
            raise ShapeError(
                f"At width {width} the branches of a residual block end with shapes {list(out)} and {list(other)}. Give the shortcut a "
                "Dense or Conv of its own, or put one before the block."
            )
        return Branches([nn.Sequential(*body), nn.Sequential(*shortcut)]), out


def through(layers: tuple[Layer, ...], kind: Kind) -> Kind:
    """What comes out of layers, given what goes in.

    Args:
        layers: The layers.
        kind: What goes in.

    Returns:
        What comes out.
    """
    for layer in layers:
        kind = layer.kind(kind)
    return kind


def chain(
    layers: tuple[Layer, ...], shape: tuple[int, ...], width: int, generator: torch.Generator | None
) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Modules of finite width, one after the other.

    Args:
        layers: The layers.
        shape: ``(channel, *position)`` of what goes in.
        width: Channels of each layer with weights.
        generator: Source of the weights.

    Returns:
        The modules, and the shape of what comes out.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        module, shape = layer.finite(shape, width, generator)
        modules.append(module)
    return modules, shape
