"""Activations as a table: one row a sample, one column a channel, and where each row came from.

Convolutions, attention and MLPs differ in the axes around their channels. Probes need none of that, but they must know
which rows came from the same input: positions of one image are not independent, so splits, permutations and bootstraps go
by input.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.features.storage import Stored, storable


@storable
@dataclass(frozen=True, eq=False)
class Samples(Stored):
    """Rows of activations with their origin.

    Attributes:
        values: Activations, one row a sample.
        inputs: Index of the input that each row came from, in ``[0, n_inputs)``.
        hook: Hook name.
        n_inputs: Number of inputs in the batch.
        axes: Axis names of the activation before it became a table.
        shape: Its shape, where ``positions="all"`` kept every entry; empty otherwise.

    Raises:
        ShapeError: Rows and origins differ in number, or an origin is out of range.

    Example:
        >>> s = Samples(torch.arange(6.0).view(3, 2), torch.tensor([0, 0, 1]), "conv1", 2)
        >>> s.input_means()
        tensor([[1., 2.],
                [4., 5.]])
    """

    values: Float[Tensor, "sample channel"]
    inputs: Int[Tensor, " sample"]
    hook: str
    n_inputs: int
    axes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) != len(self.inputs):
            raise ShapeError(
                f"{len(self.values)} rows and {len(self.inputs)} origins at {self.hook!r}. Each row needs the index of its input."
            )
        if len(self.inputs) and not 0 <= int(self.inputs.min()) <= int(self.inputs.max()) < self.n_inputs:
            raise ShapeError(
                f"Origins at {self.hook!r} span {int(self.inputs.min())} to {int(self.inputs.max())}, but there are {self.n_inputs} inputs,"
                " counted from 0."
            )

    def __len__(self) -> int:
        return len(self.values)

    def of_inputs(self, inputs: Int[Tensor, " chosen"]) -> "Samples":
        """The rows of some inputs, with origins renumbered in the order given (an input named twice counts as two).

        Args:
            inputs: Indices of inputs; repeats are allowed, as a bootstrap draws them.

        Returns:
            Samples with ``n_inputs == len(inputs)``.
        """
        order = torch.argsort(self.inputs, stable=True)
        counts = torch.bincount(self.inputs, minlength=self.n_inputs)
        starts = counts.cumsum(0) - counts
        wanted = counts[inputs]
        origin = torch.repeat_interleave(torch.arange(len(inputs), device=inputs.device), wanted)
        within = torch.arange(len(origin), device=inputs.device) - (wanted.cumsum(0) - wanted)[origin]
        rows = order[starts[inputs][origin] + within]
        return Samples(self.values[rows], origin, self.hook, len(inputs), self.axes)

    def input_means(self) -> Float[Tensor, "input channel"]:
        """Mean activation of each input over its rows; an input without rows gives NaN."""
        total = self.values.new_zeros(self.n_inputs, self.values.shape[1]).index_add_(0, self.inputs, self.values)
        return total / torch.bincount(self.inputs, minlength=self.n_inputs).unsqueeze(1).to(total)

    def restore(self) -> Tensor:
        """The activation in its original shape, every entry in its place.

        Returns:
            A tensor of shape ``shape``.

        Raises:
            ShapeError: Positions were averaged or selected, so the original is not in the table.
        """
        if not self.shape:
            raise ShapeError(
                f"The samples of {self.hook!r} were averaged or selected over positions. Take them with positions='all' to restore the"
                " activation."
            )
        channel = self.axes.index("channel")
        last = [s for i, s in enumerate(self.shape) if i != channel]
        return self.values.view(*last, self.shape[channel]).movedim(-1, channel)
