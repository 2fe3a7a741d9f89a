"""Sudden falls of the loss, and the features whose dimensionality changed with them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.superposition.metrics import feature_dimensionality


@dataclass(frozen=True)
class Event:
    """A fall of one instance's loss.

    Attributes:
        instance: The instance.
        start: Step of the last recorded loss before the fall.
        stop: Step of the first recorded loss after it.
        before: Loss before.
        after: Loss after.
        moved: Features whose dimensionality changed by more than asked, the largest change first.
        change: Change of each feature's dimensionality, between the frames around the fall.
    """

    instance: int
    start: int
    stop: int
    before: float
    after: float
    moved: tuple[int, ...]
    change: Float[Tensor, " feature"]


def find_events(
    weights: Float[Tensor, "frame instance feature hidden"],
    steps: Int[Tensor, " frame"],
    losses: Float[Tensor, "record instance"],
    loss_steps: Int[Tensor, " record"],
    *,
    drop: int | float,
    moved: int | float,
) -> list[Event]:
    """Falls of the loss, steeper than a share of it in a hundredth of the steps.

    Steep stretches less than a hundredth of the steps apart are one event.

    Args:
        weights: Recorded weights.
        steps: Their steps.
        losses: Recorded losses.
        loss_steps: Their steps.
        drop: Share of the loss that is lost within a hundredth of the steps.
        moved: Change of a dimensionality that counts.

    Returns:
        Events by instance, then by step.
    """
    hundredth = max(1.0, float(loss_steps[-1] - loss_steps[0]) / 100)
    tiny = torch.finfo(losses.dtype).tiny
    # The share lost in a hundredth at the pace of the interval: 1 - ratio^(hundredth / length).
    pace = 1 - (losses[1:].clamp_min(tiny) / losses[:-1].clamp_min(tiny)) ** (hundredth / loss_steps.diff().to(losses)[:, None])
    found = []
    for instance in range(losses.shape[1]):
        steep = (pace[:, instance] >= drop).nonzero().flatten().tolist()
        groups: list[list[int]] = []
        for k in steep:
            if groups and int(loss_steps[k] - loss_steps[groups[-1][-1] + 1]) < hundredth:
                groups[-1].append(k)
            else:
                groups.append([k])
        for group in groups:
            first, last = group[0], group[-1] + 1
            start, stop = int(loss_steps[first]), int(loss_steps[last])
            a = int((steps <= start).nonzero().max()) if bool((steps <= start).any()) else 0
            b = int((steps >= stop).nonzero().min())
            around = feature_dimensionality(weights[[a, b], instance])
            change = around[1] - around[0]
            order = change.abs().argsort(descending=True)
            which = tuple(int(i) for i in order if float(change[i].abs()) > moved)
            found.append(Event(instance, start, stop, float(losses[first, instance]), float(losses[last, instance]), which, change))
    return found
