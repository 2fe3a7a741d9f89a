"""A kernel put together from the tiles between blocks of samples."""

import torch
from torch import Tensor

from mechfeat.kernels import Outputs, kernel_shape
from mechfeat.ntk.total import Total


class Whole:
    """The kernel, and what the proof needs to know of each parameter, as tiles arrive.

    Args:
        sides: Samples of the two sides.
        outputs: What is kept of the outputs.
        same: Both sides are one batch: tiles on and below the diagonal arrive, and those above are their transposes, bit for bit.
        samples: Proof samples of each side.

    Attributes:
        kernel: The kernel.
        layers: Parameter → its part, if kept.
        parts: Parameter → its part on the proof samples.
    """

    def __init__(self, sides: tuple[int, int], outputs: Outputs, *, same: bool, samples: list[list[int]]) -> None:
        self._sides, self._outputs, self._same, self._samples = sides, outputs, same, samples
        self.kernel = torch.empty(0)
        self.layers: dict[str, Tensor] = {}
        self.parts: dict[str, Tensor] = {}

    def local(self, side: int, block: slice) -> list[int]:
        """Proof samples within a block.

        Args:
            side: 0 or 1.
            block: The block.

        Returns:
            Their places in the block.
        """
        return [i - block.start for i in self._samples[side] if block.start <= i < block.stop]

    def put(self, tile: Total, rows: slice, columns: slice, o: int) -> None:
        """Take a finished tile.

        Args:
            tile: The tile.
            rows: Its samples of the first side.
            columns: Its samples of the second side.
            o: Outputs.
        """
        kernel = tile.finish()
        if rows.stop - rows.start == self._sides[0] and columns.stop - columns.start == self._sides[1]:
            self.kernel, self.layers, self.parts = kernel, tile.layers, tile.parts
            return
        if not self.kernel.numel():
            self.kernel = kernel.new_empty(kernel_shape(*self._sides, o, self._outputs))
        self._place(self.kernel, kernel, rows, columns)
        for name, layer in tile.layers.items():
            if name not in self.layers:
                self.layers[name] = torch.zeros_like(self.kernel)
            self._place(self.layers[name], layer, rows, columns)
        a, b = self._among(0, rows), self._among(1, columns)
        for name, part in tile.parts.items():
            if name not in self.parts:
                shape = kernel_shape(len(self._samples[0]), len(self._samples[1]), o, self._outputs)
                self.parts[name] = part.new_zeros(shape)
            self._place(self.parts[name], part, a, b)

    def _place(self, whole: Tensor, tile: Tensor, rows: slice, columns: slice) -> None:
        full = self._outputs == "full"
        view = whole[rows, :, columns] if full else whole[rows, columns]
        view.copy_(tile)
        if self._same and rows != columns:
            other = whole[columns, :, rows] if full else whole[columns, rows]
            other.copy_(tile.permute(2, 3, 0, 1) if full else tile.transpose(0, 1))

    def _among(self, side: int, block: slice) -> slice:
        """The proof samples of a block among all proof samples, which are sorted."""
        inside = [i for i, s in enumerate(self._samples[side]) if block.start <= s < block.stop]
        return slice(inside[0], inside[-1] + 1) if inside else slice(0, 0)
