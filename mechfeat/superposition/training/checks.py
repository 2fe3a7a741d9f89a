"""What can be trained: sizes of data, task, loss and bank that fit each other."""

import math

from mechfeat.data import Task, ToyData
from mechfeat.errors import OptionError, ShapeError
from mechfeat.models import ToyBank
from mechfeat.superposition.training.losses import Loss
from mechfeat.superposition.training.schedule import Schedule


def check(
    bank: ToyBank,
    data: ToyData,
    task: Task,
    loss: Loss,
    *,
    steps: int,
    lr: int | float | Schedule,
    batch: int | None,
    chunk: int | str,
    every: int | None,
    gradients: str,
) -> None:
    """Refuse what cannot be trained, before anything is.

    Args:
        bank: The bank.
        data: Inputs.
        task: What is to be computed.
        loss: The loss.
        steps: Steps.
        lr: Learning rate, or a schedule.
        batch: Inputs of a step.
        chunk: Instances computed together.
        every: Steps between checkpoints.
        gradients: How gradients are computed.

    Raises:
        ShapeError: Sizes differ, or a number is not positive.
        OptionError: An option is not known, ``lr`` is no rate, ``batch`` is missing, a parameter of the bank is frozen, or the loss does
            not go with the model.
    """
    spec = bank.spec
    if gradients not in ("auto", "closed", "autograd"):
        raise OptionError("gradients", gradients, ("auto", "closed", "autograd"))
    if isinstance(chunk, str) and chunk != "auto":
        raise OptionError("chunk", chunk, ["auto", "a number of instances"])
    for name, value in (("steps", steps), ("batch", batch), ("chunk", chunk), ("every", every)):
        if isinstance(value, int) and value < 1:
            raise ShapeError(f"{name}={value}. It is at least 1.")
    if not isinstance(lr, Schedule) and not 0 <= lr < math.inf:
        raise OptionError("lr", lr, ["a finite number of at least 0", "a Schedule"])
    frozen = [name for name, p in bank.named_parameters() if not p.requires_grad]
    if frozen:
        raise OptionError(f"{frozen[0]}.requires_grad", False, ["True: fit trains every parameter; quasi_static holds what is not free"])
    check_sizes(bank, data, task)
    importance = loss.importance
    if importance is not None and tuple(importance.shape) not in ((spec.outputs,), (len(bank), spec.outputs)):
        raise ShapeError(
            f"importance has shape {list(importance.shape)}. For this bank it is [{spec.outputs}], or [{len(bank)} {spec.outputs}] "
            "for each instance."
        )
    if loss.kind == "cross_entropy" and (spec.activation != "identity" or importance is not None):
        raise OptionError("loss", "cross_entropy", ["another loss; cross-entropy takes activation='identity', and no importance"])
    if batch is None and data.n_inputs is None:
        raise OptionError("batch", batch, [f"a number of inputs: {type(data).__name__} has infinitely many"])


def check_sizes(bank: ToyBank, data: ToyData, task: Task) -> None:
    """Refuse data and tasks of other sizes than the bank's.

    Args:
        bank: The bank.
        data: Inputs.
        task: What is to be computed of them.

    Raises:
        ShapeError: The number of features, outputs or instances differs.
    """
    spec = bank.spec
    if data.n_features != spec.n_features:
        raise ShapeError(f"The data has {data.n_features} features and the bank {spec.n_features}. They must agree.")
    if data.n_instances not in (None, len(bank)):
        raise ShapeError(f"The data has distributions for {data.n_instances} instances, and the bank has {len(bank)}.")
    if task.n_outputs(data.n_features) != spec.outputs:
        raise ShapeError(
            f"The task {task.kind!r} has {task.n_outputs(data.n_features)} outputs and the bank {spec.outputs}. "
            f"Make it with ToySpec(..., n_outputs={task.n_outputs(data.n_features)})."
        )
    if task.kind == "ands" and max(max(pair) for pair in task.pairs) >= data.n_features:
        raise ShapeError(f"The task names feature {max(max(p) for p in task.pairs)}, and there are {data.n_features}, numbered from 0.")
