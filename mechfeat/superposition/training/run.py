"""What training leaves: the recorded weights and losses, the settings, and the state to go on from."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition.training.events import Event, find_events


@storable
@dataclass(frozen=True)
class State:
    """Where training stands.

    Attributes:
        step: Steps done.
        parameters: Parameters by name.
        optimizer: What the optimiser remembers, by name.
    """

    step: int
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@storable
@dataclass(frozen=True)
class Run(Stored):
    """A trained bank with its history.

    Attributes:
        spec: The model.
        seeds: Seed of each instance.
        axes: Labels of the instance axis, which is their product.
        steps: Step of each frame: the number of steps before it.
        parameters: Parameters of each frame, ``[frame instance ...]``, in the bank's dtype.
        loss_steps: Step of each recorded loss.
        losses: Loss of each instance at the weights it had there, on the inputs of that step.
        config: The settings: data, task, loss, optimiser, learning rate, batch, record, chunk, gradients.
        state: Where training stands.
    """

    spec: ToySpec
    seeds: tuple[int, ...]
    axes: Mapping[str, tuple[Any, ...]]
    steps: Int[Tensor, " frame"]
    parameters: Mapping[str, Float[Tensor, "frame instance ..."]]
    loss_steps: Int[Tensor, " record"]
    losses: Float[Tensor, "record instance"]
    config: Mapping[str, Any]
    state: State

    @property
    def weights(self) -> Float[Tensor, "frame instance feature hidden"]:
        """``W`` of each frame."""
        return self.parameters["W"]

    @property
    def final_loss(self) -> Float[Tensor, " instance"]:
        """The last recorded loss of each instance."""
        return self.losses[-1]

    def bank(self, frame: int = -1) -> ToyBank:
        """The bank as it was at a frame.

        Args:
            frame: Its number.

        Returns:
            A new bank, on the device of the frames.
        """
        values = {name: value[frame] for name, value in self.parameters.items()}
        return ToyBank(self.spec, seeds=self.seeds, init=values, axes=self.axes, dtype=self.weights.dtype, device=self.weights.device)

    def select(self, instances: Tensor | list[int] | int, *, axes: Mapping[str, tuple[Any, ...]] | None = None) -> "Run":
        """The run of some instances.

        Args:
            instances: Their numbers, or a mask of all instances.
            axes: Labels of the new instance axis; their seeds if None.

        Returns:
            Their run, as if they alone had been trained: data and importance that differ between instances are those of the chosen.

        Raises:
            ShapeError: A number is outside the run, none is left, or a mask has another length.
        """
        rows = torch.as_tensor(instances)
        n = len(self.seeds)
        if rows.dtype == torch.bool:
            if rows.shape != (n,):
                raise ShapeError(f"A mask of shape {list(rows.shape)} selects of {n} instances. Give one entry an instance.")
            rows = rows.nonzero()
        rows = rows.reshape(-1).to(self.weights.device, torch.long)
        wrong = rows[(rows < -n) | (rows >= n)]
        if len(wrong) or not len(rows):
            raise ShapeError(f"Instance {int(wrong[0])} was asked for, of {n}." if len(wrong) else "No instance of the run was selected.")
        rows = rows % n
        seeds = tuple(self.seeds[int(i)] for i in rows)
        return Run(
            self.spec,
            seeds,
            dict(axes or {"seed": seeds}),
            self.steps,
            {name: value[:, rows] for name, value in self.parameters.items()},
            self.loss_steps,
            self.losses[:, rows.to(self.losses.device)],
            self.config_of(rows.tolist()),
            State(
                self.state.step,
                {name: v[rows.to(v.device)] for name, v in self.state.parameters.items()},
                {name: v[rows.to(v.device)] for name, v in self.state.optimizer.items()},
            ),
        )

    def config_of(self, instances: list[int]) -> dict[str, Any]:
        """The settings of some instances.

        Args:
            instances: Their numbers.

        Returns:
            The settings, with their data and importance where these differ between instances.
        """
        loss = self.config["loss"]
        if loss.importance is not None and loss.importance.ndim == 2:
            loss = dataclasses.replace(loss, importance=loss.importance[instances])
        return {**self.config, "data": self.config["data"].of(instances), "loss": loss}

    def labelled(self, values: Shaped[Tensor, "instance ..."]) -> Tensor:
        """Values of instances, laid out on the labelled axes.

        Args:
            values: One entry for each instance.

        Returns:
            ``[*axes ...]``.

        Raises:
            ShapeError: There is another number of entries than instances.
        """
        if len(values) != len(self.seeds):
            raise ShapeError(f"values has {len(values)} entries, and the run {len(self.seeds)} instances.")
        return values.reshape(*(len(labels) for labels in self.axes.values()), *values.shape[1:])

    def best(self, over: str = "seed") -> "Run":
        """The instance of lowest final loss along one axis, at each place of the others.

        Args:
            over: Name of the axis.

        Returns:
            The run of those instances, with the other axes. NaN losses lose.

        Raises:
            OptionError: There is no such axis.
        """
        place = self._axis(over)
        losses = self.labelled(torch.nan_to_num(self.final_loss, nan=math.inf))
        index = self.labelled(torch.arange(len(self.seeds), device=losses.device))
        chosen = index.gather(place, losses.argmin(place, keepdim=True)).reshape(-1)
        rest = {name: labels for name, labels in self.axes.items() if name != over}
        return self.select(chosen, axes=rest or {"best": (0,)})

    def distribution(self, values: Float[Tensor, " instance"] | None = None, *, over: str = "seed") -> Float[Tensor, "*axes quantile"]:
        """Quantiles of a value along one axis, at each place of the others: what best-of-many hides.

        Args:
            values: One number for each instance; the final losses if None.
            over: Name of the axis.

        Returns:
            Minimum, quartiles and maximum, ``[*other axes, 5]``.

        Raises:
            OptionError: There is no such axis.
        """
        place = self._axis(over)
        table = self.labelled(self.final_loss if values is None else values)
        levels = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=table.dtype, device=table.device)
        return torch.quantile(table, levels, dim=place).movedim(0, -1)

    def events(self, *, drop: int | float = 0.02, moved: int | float = 0.2) -> list[Event]:
        """Sudden falls of the loss, each with the features whose dimensionality changed.

        Losses of random batches are noisy: record few of them, or ask for a larger ``drop``.

        Args:
            drop: Share of the loss that is lost within a hundredth of the steps.
            moved: Change of a feature's dimensionality that counts, between the recorded frames around the fall.

        Returns:
            Events by instance, then by step.
        """
        return find_events(self.weights, self.steps, self.losses, self.loss_steps, drop=drop, moved=moved)

    def resume(self, *, checkpoint: str | Path | None = None, every: int | None = None, progress: bool = False) -> "Run":
        """Go on where training stands, with the same settings, bit for bit. This run stays as it is.

        Args:
            checkpoint: A file to save to on the way; give that of the interrupted run to continue it.
            every: Steps between checkpoints; a tenth of the run if None.
            progress: Show a progress bar.

        Returns:
            The completed run; itself if it was complete.

        Raises:
            OptionError: It was trained on another kind of device than there is here, whose random numbers are others.
        """
        from mechfeat.superposition.training.fit import advance

        if self.state.step >= self.config["steps"]:
            return self
        device = torch.device(self.config.get("device", "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise OptionError("device", "cpu", ["cuda, where this run was begun: other kinds of device draw other random numbers"])
        state = self.state.parameters
        bank = ToyBank(self.spec, seeds=self.seeds, init=state, axes=self.axes, dtype=self.weights.dtype, device=device)
        own = dataclasses.replace(self, parameters={name: v.clone() for name, v in self.parameters.items()}, losses=self.losses.clone())
        return advance(bank, own, checkpoint, every=every, progress=progress)

    def _axis(self, name: str) -> int:
        if name not in self.axes:
            raise OptionError("over", name, tuple(self.axes))
        return list(self.axes).index(name)

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Read what :meth:`save` wrote, bit for bit, on the CPU.

        Args:
            path: The file.

        Returns:
            The run.
        """
        return super().load(path)
