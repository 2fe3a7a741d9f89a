"""Patches of a map as a right factor: their rows are formed a few channels at a time, and their Gram matrix without them.

The inner product of two patches is a sum over the kernel's entries of inner products of pixels,
``⟨patch_t, patch_s⟩ = Σ_d ⟨pixel_{t+d}, pixel_{s+d}⟩``. So one Gram matrix of pixels, added to itself shifted, replaces one of rows that
are as many times longer as the kernel has entries. A sum over a box is a sum along one axis after the other.
"""

import math
from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechfeat.kernels.layout import widen
from mechfeat.kernels.products import product

CHANNELS = 48  # below it the shifted sums cost more than the longer rows


@dataclass(frozen=True)
class Patches:
    """What a convolution sees, one row an output position: channel, then place in the kernel, then a one if there is a bias.

    Attributes:
        maps: Input of the convolution, with one, two or three axes of space.
        size: Size of the kernel.
        stride: Step between patches.
        padding: Zeros before and after each axis of space.
        dilation: Step inside a patch.
        ones: Whether each row ends with a one.
    """

    maps: Float[Tensor, "n channel *space"]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    ones: bool = False

    def __getitem__(self, samples: slice | list[int]) -> "Patches":
        """The patches of some samples."""
        return replace(self, maps=self.maps[samples])

    @property
    def taps(self) -> int:
        """Entries of the kernel, for one pair of channels."""
        return math.prod(self.size)

    @property
    def out(self) -> tuple[int, ...]:
        """Sizes of the convolution's output."""
        axes = zip(self.maps.shape[2:], self.padding, self.dilation, self.size, self.stride)
        return tuple((x + a + b - d * (k - 1) - 1) // s + 1 for x, (a, b), d, k, s in axes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Samples, positions, and length of a row."""
        return len(self.maps), math.prod(self.out), self.maps.shape[1] * self.taps + self.ones

    @property
    def pixels(self) -> int:
        """Positions of the input."""
        return math.prod(self.maps.shape[2:])

    @property
    def shares(self) -> bool:
        """Whether the Gram matrix of pixels is the cheaper way to that of patches.

        With a stride most of its shifted entries are not used.
        """
        return self.taps > 1 and self.maps.shape[1] >= CHANNELS and all(s == d == 1 for s, d in zip(self.stride, self.dilation))

    def rows(self, part: slice = slice(None)) -> Float[Tensor, "n t k"]:
        """Rows, or some of their columns.

        Args:
            part: Which columns.

        Returns:
            A tensor whose columns are contiguous.

        Example:
            >>> import torch
            >>> x = torch.arange(4.0).view(1, 1, 2, 2)
            >>> Patches(x, (1, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), ones=True).rows()
            tensor([[[0., 1., 1.],
                     [2., 3., 1.]]])
        """
        n, t, k = self.shape
        start, stop, _ = part.indices(k)
        first = min(start // self.taps, self.maps.shape[1])
        last = max(first, min(-(-stop // self.taps), self.maps.shape[1]))
        x = F.pad(self.maps[:, first:last], [side for pair in reversed(self.padding) for side in pair])
        steps = x.stride()[2:]
        windows = x.as_strided(
            (*x.shape[:2], *self.size, *self.out),
            (*x.stride()[:2], *(a * d for a, d in zip(steps, self.dilation)), *(a * s for a, s in zip(steps, self.stride))),
            x.storage_offset(),
        )
        made = (last - first) * self.taps
        out = x.new_empty(n, made + self.ones, t)
        out[:, :made].view(windows.shape).copy_(windows)
        if self.ones:
            out[:, made] = 1
        return out[:, start - first * self.taps : stop - first * self.taps].mT

    def channels_last(self) -> "Patches":
        """The same with pixels contiguous, in float32 at least, as :meth:`gram` multiplies them.

        Returns:
            Patches, of a copy where needed.
        """
        return replace(self, maps=widen(self.maps).movedim(1, -1).contiguous().movedim(-1, 1))

    def gram(self, other: "Patches") -> Float[Tensor, "n t m s"]:
        """Inner products of all patches, by way of pixels.

        Args:
            other: Patches of the second side, of a kernel of the same size.

        Returns:
            The Gram matrix of the rows.

        Cost:
            ``n m pixels² channel`` multiply-adds, and an addition an entry for each step along each axis of the kernel.
        """
        pixels = [p.maps.movedim(1, -1).flatten(0, -2) for p in (self, other)]
        axes = len(self.size)
        n, m = len(self.maps), len(other.maps)
        G = product(*pixels).view(n, *self.maps.shape[2:], m, *other.maps.shape[2:])
        for i in reversed(range(axes)):
            G = self._summed(G, i, (1 + i, 2 + axes + i), other)
        if self.ones:
            G += 1
        return G.view(n, -1, m, math.prod(other.out))

    def _summed(self, G: Tensor, axis: int, at: tuple[int, int], other: "Patches") -> Tensor:
        """Sum over the kernel's places along one axis; what lies in the padding is zero and is not visited."""
        shape = list(G.shape)
        shape[at[0]], shape[at[1]] = self.out[axis], other.out[axis]
        # The place at which every patch meets a pixel needs no addition.
        middle = self.padding[axis][0] if shape == list(G.shape) and self.stride[axis] == self.dilation[axis] == 1 else -1
        out = G.clone() if 0 <= middle < self.size[axis] else G.new_zeros(shape)
        for place in range(self.size[axis]):
            if place == middle:
                continue
            into, of = out, G
            for a, side in zip(at, (self, other)):
                to, where = side._met(axis, place)
                into, of = into[(slice(None),) * a + (to,)], of[(slice(None),) * a + (where,)]
            into += of
        return out

    def _met(self, axis: int, place: int) -> tuple[slice, slice]:
        """Positions whose patches have a pixel at a place, and those pixels."""
        step, shift = self.stride[axis], place * self.dilation[axis] - self.padding[axis][0]
        first = max(0, -(shift // step))  # rounded up
        count = min(self.out[axis], -(-(self.maps.shape[2 + axis] - shift) // step)) - first
        start = first * step + shift
        return slice(first, first + max(0, count)), slice(start, start + max(0, count - 1) * step + (count > 0), step)
