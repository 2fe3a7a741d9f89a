"""Quasi-static sweeps: part of a model is moved slowly, the rest is trained to rest after each move."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.data import OneHot, Task, ToyData, identity
from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition.training.batches import FullBatch
from mechfeat.superposition.training.checks import check_sizes
from mechfeat.superposition.training.gradients import Gradients, is_closed
from mechfeat.superposition.training.losses import Loss, mse

Values = dict[str, Tensor]
Control = Callable[[Values, float], Mapping[str, Tensor]]


@storable
@dataclass(frozen=True, eq=False)
class QuasiStatic(Stored):
    """A sweep: what the model came to rest in at each level.

    Attributes:
        spec: The model.
        levels: Levels of the control, in the order visited.
        parameters: At rest, ``[level instance ...]``.
        losses: There.
        unrest: Largest entry of the gradient of the free part there; how far from rest it still is.
        memory: Whether each level began where the one before it ended.
    """

    spec: ToySpec
    levels: Float[Tensor, " level"]
    parameters: Mapping[str, Float[Tensor, "level instance ..."]]
    losses: Float[Tensor, "level instance"]
    unrest: Float[Tensor, "level instance"]
    memory: bool

    def outputs(self, x: Float[Tensor, "sample feature"]) -> Float[Tensor, "level instance sample output"]:
        """Outputs of the model at each level.

        Args:
            x: Inputs.

        Returns:
            Outputs.
        """
        from mechfeat.models.bank import outputs

        return torch.stack([outputs(self.spec, {k: v[i] for k, v in self.parameters.items()}, x) for i in range(len(self.levels))])


def quasi_static(
    bank: ToyBank,
    control: Control,
    path: Sequence[int | float],
    *,
    free: Mapping[str, Tensor],
    steps: int = 3000,
    lr: int | float = 3.0,
    data: ToyData | None = None,
    task: Task | None = None,
    loss: Loss | None = None,
    rest: int | float = 0.0,
    memory: bool = True,
    progress: bool = False,
) -> QuasiStatic:
    """Move part of a model along a path, and train the free part to rest at each level.

    Everything is computed in float64, by full-batch gradient descent.

    Args:
        bank: Starting values; it is not changed.
        control: From the starting values and a level to the values of the parameters that it moves, by name. It is applied to the starting
            values at each level, so that the same level is the same control, whatever came before.
        path: Levels, in order.
        free: Which entries are trained: a mask that broadcasts to ``[instance ...]`` for each parameter that has any. All others
            follow the control.
        steps: Steps at each level, at most.
        lr: Learning rate.
        data: Inputs, finitely many; one-hot by default.
        task: What is to be computed; the input itself by default.
        loss: The loss; the mean squared error by default.
        rest: A level is left once no free entry has a larger gradient.
        memory: False starts the free part from its starting values at every level: the control of a hysteresis experiment.
        progress: Show a progress bar.

    Returns:
        The sweep.

    Raises:
        OptionError: ``free`` or the control names an unknown parameter, or ``free`` none.
        ShapeError: There is no level or step, a mask or a moved parameter does not fit, or the data has another number of features,
            outputs or instances than the bank.

    Cost:
        ``len(path) * steps`` gradients.

    Example:
        >>> from mechfeat.models import ToySpec
        >>> bank = ToyBank(ToySpec(6, 2), 1)
        >>> def push(start, level):
        ...     return {"b": torch.full_like(start["b"], -level)}
        >>> sweep = quasi_static(bank, push, [0.0, 0.5, 0.0], free={"W": torch.tensor(True)}, steps=200, lr=1.0)
        >>> sweep.parameters["b"][:, 0, 0]
        tensor([-0.0000, -0.5000, -0.0000], dtype=torch.float64)
    """
    start = {name: p.detach().double() for name, p in bank.named_parameters()}
    unknown = [name for name in free if name not in start]
    if unknown or not free:
        raise OptionError("free", unknown[0] if unknown else {}, tuple(start))
    if not len(path) or steps < 1:
        raise ShapeError(f"A path of {len(path)} levels with steps={steps}. Give at least one of each.")
    _fits({name: mask.shape for name, mask in free.items()}, start, "The mask of")
    masks = {name: mask.to(start[name].device).expand_as(start[name]) for name, mask in free.items()}
    data, task = OneHot(bank.spec.n_features) if data is None else data, task or identity()
    check_sizes(bank, data, task)
    batch = FullBatch(data, task, 0, len(bank), start["W"]).batch
    engine = Gradients(bank.spec, loss or mse(), None, closed=is_closed(bank.spec))
    from tqdm.auto import tqdm

    values = start
    kept, losses, unrest = [], [], []
    for level in tqdm(path, desc="sweep", unit="level", disable=not progress):
        controlled = control(dict(start), float(level))
        unknown = [name for name in controlled if name not in start]
        if unknown:
            raise OptionError("control", unknown[0], tuple(start))
        _fits({name: v.shape for name, v in controlled.items()}, start, "The control's")
        moved = {**start, **{name: v.to(start[name]).expand_as(start[name]) for name, v in controlled.items()}}
        began = values if memory else start
        values = {k: torch.where(masks[k], began[k], v) if k in masks else v for k, v in moved.items()}
        values = {k: v.clone() for k, v in values.items()}
        for t in range(steps):
            gradients, _ = engine(values, batch, losses=False)
            for name, mask in masks.items():
                values[name].sub_(gradients[name].mul_(mask), alpha=float(lr))
            if rest and t % 50 == 0 and max(float(gradients[name].abs().max()) for name in masks) <= rest:
                break
        gradients, found = engine(values, batch, losses=True)
        assert found is not None  # the losses were asked for
        kept.append({k: v.clone() for k, v in values.items()})
        losses.append(found.clone())
        unrest.append(torch.stack([(gradients[n] * m).abs().flatten(1).amax(1) for n, m in masks.items()]).amax(0))
    return QuasiStatic(
        bank.spec,
        torch.tensor([float(level) for level in path], dtype=torch.float64),
        {name: torch.stack([k[name] for k in kept]) for name in start},
        torch.stack(losses),
        torch.stack(unrest),
        memory,
    )


def _fits(shapes: Mapping[str, Sequence[int]], start: Values, what: str) -> None:
    for name, shape in shapes.items():
        full = list(start[name].shape)
        if len(shape) > len(full) or any(a not in (1, b) for a, b in zip(reversed(shape), reversed(full))):
            raise ShapeError(f"{what} {name!r} has shape {list(shape)}, which does not broadcast to {full}.")
