"""The inputs of each step: all of them, or a batch of each instance's own stream.

A stream is a function of the instance's seed and the number of the step. Draws come in blocks of some steps, each from a generator
seeded with both, so that an instance sees the same data alone, in any bank, in chunks of any size and after a restart.
"""

import math

import torch
from torch import Tensor

from mechfeat.data import FiniteSample, OneHot, Task, ToyData
from mechfeat.data.sparse import LISTED
from mechfeat.superposition.training.gradients import Batch

BLOCK = 16_384  # numbers drawn at once for one instance
LONG = 2**20  # numbers of a block beyond which the inputs of a list are not copied


class FullBatch:
    """All inputs at every step, for a chunk of instances.

    Args:
        data: Data with finitely many inputs.
        task: What is to be computed.
        start: First instance of the chunk.
        stop: The one after its last.
        like: A parameter, for dtype and device.
    """

    def __init__(self, data: ToyData, task: Task, start: int, stop: int, like: Tensor) -> None:
        one_hot = isinstance(data, OneHot) and data.k == 1
        if one_hot and task.kind in ("identity", "absolute"):
            self.batch = Batch(None, None, 1 / data.n_features)
            return
        exact = data.exact()
        x = exact.x.to(like)
        weight = exact.weight.to(like)
        even = weight.ndim == 1 and bool((weight == weight[0]).all())
        if weight.ndim == 2:
            weight = weight[start:stop]
        shaped: Tensor | float = 1 / len(x) if even else weight.reshape(-1, len(x), 1)
        self.batch = Batch(None if one_hot else x[None], task(x)[None], shaped)

    def __call__(self, step: int) -> Batch:
        """The inputs of a step.

        Args:
            step: Its number.

        Returns:
            All inputs.
        """
        return self.batch


class Sampled:
    """Batches drawn for each instance of a chunk.

    Args:
        data: Where to draw from.
        task: What is to be computed.
        seeds: Seeds of the instances of the chunk.
        start: First instance of the chunk.
        batch: Inputs of a step.
        like: A parameter, for dtype and device.
    """

    def __init__(self, data: ToyData, task: Task, seeds: tuple[int, ...], start: int, batch: int, like: Tensor) -> None:
        self.task, self.seeds, self.size, self.like = task, seeds, batch, like
        own = [data.at(start + i) for i in range(len(seeds))] if data.n_instances else [data] * len(seeds)
        if isinstance(data, OneHot) and data.n_inputs <= LISTED:
            own = [FiniteSample(data.n_features, data.rows())] * len(seeds)
        self.data = own
        self.block = steps_of_block(data, batch)
        self.generator = torch.Generator(like.device)
        self.number = -1
        # Whole rounds of a long list are many inputs: their numbers are held then, and the inputs are looked up.
        listed = own[0] if isinstance(own[0], FiniteSample) and self.block * batch * data.n_features > LONG else None
        self.rows = None if listed is None else listed.rows().to(like)
        shape = (self.block, len(seeds), batch)
        if self.rows is None:
            self.drawn = like.new_empty(*shape, data.n_features)
        else:
            self.drawn = torch.empty(shape, dtype=torch.long, device=like.device)

    def __call__(self, step: int) -> Batch:
        """The inputs of a step.

        Args:
            step: Its number.

        Returns:
            One batch for each instance.
        """
        number, place = divmod(step, self.block)
        if number != self.number:
            self._draw(number)
        x = self.drawn[place] if self.rows is None else self.rows[self.drawn[place]]
        return Batch(x, self.task(x), 1 / self.size)

    def _draw(self, number: int) -> None:
        rows = self.block * self.size
        for i, (data, seed) in enumerate(zip(self.data, self.seeds)):
            generator = self.generator.manual_seed(_mixed(seed, number))
            if self.rows is not None and isinstance(data, FiniteSample):
                self.drawn[:, i] = data.draw_places(generator, rows, len(self.rows)).view(self.block, self.size)
            else:
                self.drawn[:, i] = data.sample(generator, rows, dtype=self.like.dtype).view(self.block, self.size, -1)
        self.number = number


def steps_of_block(data: ToyData, batch: int) -> int:
    """Steps drawn at once: some thousand numbers, and whole rounds of data that comes in rounds.

    Args:
        data: The data.
        batch: Inputs of a step.

    Returns:
        At least 1. It depends on the data alone, so that the stream does not depend on the bank.
    """
    steps = max(1, BLOCK // (batch * data.n_features))
    if data.n_inputs is None or data.n_inputs > LISTED:
        return steps
    round_trip = data.n_inputs // math.gcd(data.n_inputs, batch)
    return round_trip * max(1, steps // round_trip)


def _mixed(seed: int, number: int) -> int:
    """A seed for a block: splitmix64 of both, since torch's CPU generator looks at 32 bits only and neighbours must differ."""
    z = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) % 2**63
