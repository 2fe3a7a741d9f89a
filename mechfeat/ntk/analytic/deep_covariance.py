r"""Covariances of two batches in an infinitely wide network, and the linear operations that layers apply to them.

With positions p, q of inputs x, x' a layer's outputs have covariance :math:`K_{pq}(x, x')` in each channel. A read-out that flattens needs
p = q alone; one that averages over positions needs all pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.ntk.dual import Activation

Padding = Literal["valid", "same", "circular"]


@dataclass(frozen=True)
class Covariance:
    """What is known after a layer.

    Args:
        nngp: Covariance of the outputs of the two batches, ``[n1 n2 *position]`` or, for all pairs of positions,
            ``[n1 n2 *position *position]``.
        ntk: Tangent kernel of the layers so far, in the same layout.
        cov1: Covariance of the outputs of each input of the first batch with themselves, without the axis ``n2``.
        cov2: The same for the second batch.
        space: Number of axes of positions.
        pairs: Whether all pairs of positions are kept.
        same: Whether both batches are one; then entries of an input with itself are those of ``cov1``, bit for bit.
    """

    nngp: Tensor
    ntk: Tensor
    cov1: Tensor
    cov2: Tensor
    space: int
    pairs: bool
    same: bool

    @classmethod
    def of(cls, x1: Tensor, x2: Tensor, *, pairs: bool, same: bool) -> "Covariance":
        """Covariance of inputs: products over channels, divided by their number.

        Args:
            x1: A batch ``[n channel *position]``, float64.
            x2: Another one.
            pairs: Whether to keep all pairs of positions.
            same: Whether both are one batch.

        Returns:
            The covariance, with a tangent kernel of 0.
        """
        space, channels = x1.ndim - 2, x1.shape[1]
        p, q = ("pr", "qs") if space == 2 else ("p", "q") if space else ("", "")
        q = q if pairs else p
        out = p + q if pairs else p
        nngp = torch.einsum(f"nc{p},mc{q}->nm{out}", x1, x2) / channels
        cov1, cov2 = (torch.einsum(f"nc{p},nc{q}->n{out}", x, x) / channels for x in (x1, x2))
        return cls(nngp, torch.zeros_like(nngp), cov1, cov2, space, pairs and space > 0, same)._tied()

    def map(self, f: Callable[[Tensor], Tensor], *, space: int | None = None) -> "Covariance":
        """Apply a linear operation on positions to all of them.

        Args:
            f: The operation, on the last axes.
            space: Number of axes of positions afterwards, where it changes.

        Returns:
            The covariance.
        """
        nngp, ntk, cov1, cov2 = (f(t) for t in (self.nngp, self.ntk, self.cov1, self.cov2))
        space = self.space if space is None else space
        return replace(self, nngp=nngp, ntk=ntk, cov1=cov1, cov2=cov2, space=space, pairs=self.pairs and space > 0)._tied()

    def affine(self, W_std: float, b_std: float) -> "Covariance":
        """Multiply by Gaussian weights and add Gaussian biases, both trained.

        Args:
            W_std: Standard deviation of the weights, times the root of their fan-in.
            b_std: Standard deviation of the biases.

        Returns:
            The covariance.
        """
        nngp, cov1, cov2 = (W_std**2 * t + b_std**2 for t in (self.nngp, self.cov1, self.cov2))
        # The gradients of these weights and biases give W² K + b² again; those of earlier parameters pass through the weights.
        return replace(self, nngp=nngp, ntk=nngp + W_std**2 * self.ntk, cov1=cov1, cov2=cov2)

    def activate(self, phi: Activation) -> "Covariance":
        """Apply an activation function to Gaussian outputs.

        Args:
            phi: Its dual activations.

        Returns:
            The covariance.
        """
        one, two = self._variances(self.cov1), self._variances(self.cov2)
        a, b = self._left(one)[:, None], self._right(two)[None]
        return replace(
            self,
            nngp=phi.unchecked(0, a, b, self.nngp),
            ntk=self.ntk * phi.unchecked(1, a, b, self.nngp),
            cov1=phi.unchecked(0, self._left(one), self._right(one), self.cov1),
            cov2=phi.unchecked(0, self._left(two), self._right(two), self.cov2),
        )._tied()

    def __add__(self, other: "Covariance") -> "Covariance":
        """Sum of two branches that are independent given their common input."""
        if self.nngp.shape != other.nngp.shape:
            raise ShapeError(
                f"The branches of a residual block end with positions {list(self.nngp.shape[2:])} and {list(other.nngp.shape[2:])}. Give "
                "the shortcut a layer with the same stride and padding."
            )
        parts = {name: getattr(self, name) + getattr(other, name) for name in ("nngp", "ntk", "cov1", "cov2")}
        return replace(self, **parts)

    def _variances(self, cov: Tensor) -> Tensor:
        """``[n *position]``."""
        if not self.pairs:
            return cov
        size = cov.shape[1 : 1 + self.space]
        return cov.reshape(len(cov), size.numel(), -1).diagonal(dim1=1, dim2=2).reshape(len(cov), *size)

    def _left(self, variances: Tensor) -> Tensor:
        return variances[(..., *[None] * self.space)] if self.pairs else variances

    def _right(self, variances: Tensor) -> Tensor:
        return variances[(slice(None), *[None] * self.space)] if self.pairs else variances

    def _tied(self) -> "Covariance":
        if not self.same:
            return self
        # Rounded apart, an input and itself would seem to differ by an angle of 1e-8, which ReLU's k1 sees.
        nngp, here = self.nngp.clone(), torch.arange(len(self.cov1), device=self.nngp.device)
        nngp[here, here] = self.cov1
        return replace(self, nngp=nngp)


def windows(t: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Padding, *, pairs: bool) -> Tensor:
    """Means over the windows of a convolution, both positions of a pair moving together.

    Args:
        t: Covariances, positions last.
        kernel: Size of the window along each axis of positions.
        stride: Distance of windows along each axis.
        padding: ``"valid"``, zeros to keep the ``"same"`` size, or ``"circular"``.
        pairs: Whether all pairs of positions are given.

    Returns:
        Covariances of the new positions.
    """
    D = len(kernel)
    for d, (k, step) in enumerate(zip(kernel, stride)):
        axes = (d - 2 * D, d - D) if pairs else (d - D,)
        size = t.shape[axes[0]]
        low, high, out = extent(size, k, step, padding)
        for axis in axes:
            index = torch.arange(-low, size + high, device=t.device)
            t = t.index_select(axis, index % size)
            if padding != "circular" and low + high:
                inside = ((index >= 0) & (index < size)).to(t.dtype)
                t = t * inside[(..., *[None] * (-axis - 1))]
        total = torch.zeros((), dtype=t.dtype, device=t.device)
        for offset in range(k):
            part = t
            for axis in axes:
                part = part.narrow(axis, offset, step * (out - 1) + 1)
                part = part.index_select(axis, torch.arange(0, part.shape[axis], step, device=t.device)) if step > 1 else part
            total = total + part
        t = total / k
    return t


def pooled(t: Tensor, window: Sequence[int], stride: Sequence[int], *, pairs: bool) -> Tensor:
    """Means over windows of each position of a pair on its own.

    Args:
        t: Covariances of all pairs of positions, which are last.
        window: Size of the window along each axis of positions.
        stride: Distance of windows along each axis.
        pairs: Whether all pairs of positions are given.

    Returns:
        Covariances of the new positions.
    """
    D = len(window)
    for d, (k, step) in enumerate(zip(window, stride)):
        for axis in (d - 2 * D, d - D) if pairs else (d - D,):
            extent(t.shape[axis], k, step, "valid")
            t = t.unfold(axis, k, step).mean(-1)
    return t


def extent(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int, int]:
    """How far a convolution reaches over both ends of an axis, and how many windows it has.

    Args:
        size: Number of positions.
        kernel: Size of the window.
        stride: Distance of windows.
        padding: ``"valid"``, or one that keeps the size, up to the stride.

    Returns:
        Positions before the first, after the last, and the number of windows. An odd one goes after the last.

    Raises:
        ShapeError: No window fits.
    """
    if padding == "valid":
        if size < kernel:
            raise ShapeError(
                f"A window of {kernel} does not fit in {size} positions. Take padding='same', a smaller window or larger inputs."
            )
        return 0, 0, (size - kernel) // stride + 1
    out = -(-size // stride)
    missing = max((out - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2, out
