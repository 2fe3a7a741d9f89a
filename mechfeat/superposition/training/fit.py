"""Training a bank: every instance in one batched step, in chunks that stay in the cache."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mechfeat.data import Task, ToyData
from mechfeat.data import identity as identity_task
from mechfeat.errors import OptionError, ResumeError
from mechfeat.models import ToyBank
from mechfeat.superposition.training.batches import FullBatch, Sampled, steps_of_block
from mechfeat.superposition.training.checks import check
from mechfeat.superposition.training.gradients import Gradients, is_closed
from mechfeat.superposition.training.losses import Loss, mse
from mechfeat.superposition.training.optimizers import Optimizer
from mechfeat.superposition.training.run import Run, State
from mechfeat.superposition.training.schedule import Record, Schedule

CACHE = 2**22  # bytes that a chunk may take: between the second-level cache of a core and the third of the machine


def fit(
    bank: ToyBank,
    data: ToyData,
    *,
    steps: int,
    lr: int | float | Schedule,
    task: Task | None = None,
    loss: Loss | None = None,
    optimizer: str | Optimizer = "sgd",
    batch: int | None = None,
    record: Record | None = None,
    chunk: int | Literal["auto"] = "auto",
    gradients: Literal["auto", "closed", "autograd"] = "auto",
    checkpoint: str | Path | None = None,
    every: int | None = None,
    progress: bool = False,
) -> Run:
    """Train all instances of a bank.

    Each instance follows the trajectory it has alone: its data comes from its own seed, and its gradient is that of its own loss.

    Args:
        bank: The bank; its parameters are changed.
        data: Inputs. With densities of each instance, ``bank.along("density")`` has them.
        steps: Steps.
        lr: Learning rate, or a schedule.
        task: What is to be computed; the input itself if None.
        loss: The loss; the mean squared error if None.
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``, or one with other settings.
        batch: Inputs of a step. All of them if None, for data with finitely many; such data is otherwise drawn in rounds.
        record: What is kept; 100 frames and 1,000 losses if None.
        chunk: Instances computed together; ``"auto"`` for as many as keep their activations in four mebibytes, at least 1.
        gradients: ``"closed"``: written out, fast; ``"autograd"``: for every model; ``"auto"``: the former where it exists.
        checkpoint: A file that the run is saved to. If it exists, training goes on from there, bit for bit.
        every: Steps between checkpoints; a tenth of the run if None.
        progress: Show a progress bar.

    Returns:
        The run.

    Raises:
        ShapeError: Sizes of data, task, importance and bank differ, or ``steps``, ``batch``, ``chunk`` or ``every`` is not positive.
        OptionError: An option is not known, ``lr`` is no rate, ``batch`` is missing, a parameter is frozen, or gradients are not written
            out for this model.
        ResumeError: The checkpoint is that of another run.

    Cost:
        For one-hot data of f features in m dimensions about 6 f² m operations a step and instance.

    Example:
        >>> from mechfeat.data import OneHot
        >>> from mechfeat.models import ToyBank, ToySpec
        >>> run = fit(ToyBank(ToySpec(6, 2, out_bias=False), 3), OneHot(6), steps=200, lr=1.0)
        >>> run.weights.shape, run.losses.shape
        (torch.Size([100, 3, 6, 2]), torch.Size([201, 3]))
    """
    task, loss, record, optimizer = task or identity_task(), loss or mse(), record or Record(), Optimizer.of(optimizer)
    check(bank, data, task, loss, steps=steps, lr=lr, batch=batch, chunk=chunk, every=every, gradients=gradients)
    closed = gradients != "autograd" and is_closed(bank.spec)
    if gradients == "closed" and not closed:
        raise OptionError("gradients", gradients, ["'auto'", "'autograd' for unit rows, MLPs and activations of your own"])
    width = min(len(bank), chunk if isinstance(chunk, int) else _chunk(bank, data, batch))
    config = {
        "data": data,
        "task": task,
        "loss": loss,
        "optimizer": optimizer,
        "lr": lr if isinstance(lr, Schedule) else float(lr),
        "steps": steps,
        "batch": batch,
        "record": record,
        "gradients": "closed" if closed else "autograd",
        "device": bank.W.device.type,
    }
    return advance(bank, _begun(bank, config, checkpoint, width), checkpoint, every=every, progress=progress)


def advance(bank: ToyBank, run: Run, checkpoint: str | Path | None, *, every: int | None, progress: bool) -> Run:
    """Train to the end from where a run stands.

    Args:
        bank: The bank; its parameters are set to those of the run, and changed.
        run: The run.
        checkpoint: A file to save to on the way.
        every: Steps between checkpoints; a tenth of the run if None.
        progress: Show a progress bar.

    Returns:
        The completed run.
    """
    from tqdm.auto import tqdm

    steps, width = run.config["steps"], run.config["chunk"]
    every = min(every or max(1, steps // 10), steps) if checkpoint is not None else steps
    values = {name: p.detach() for name, p in bank.named_parameters()}
    for name, p in values.items():
        p.copy_(run.state.parameters[name])
    state = {name: v.to(bank.W.device, copy=True) for name, v in run.state.optimizer.items()}
    with tqdm(total=steps * len(bank), initial=run.state.step * len(bank), desc="fit", unit="step", disable=not progress) as bar:
        while (start := run.state.step) < steps:
            stop = min(steps, (start // every + 1) * every)
            for first in range(0, len(bank), width):
                _segment(bank, values, state, run, (first, min(first + width, len(bank))), start, stop, bar)
            run = dataclasses.replace(
                run, state=State(stop, {k: v.clone() for k, v in values.items()}, {k: v.clone() for k, v in state.items()})
            )
            if checkpoint is not None:
                run.save(checkpoint)
    return run


def _segment(
    bank: ToyBank,
    values: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    run: Run,
    chunk: tuple[int, int],
    start: int,
    stop: int,
    bar: Any,
) -> None:
    """Train one chunk for some steps, and record; parameters and state change in place."""
    a, b = chunk
    data, task, loss, batch, steps = (run.config[k] for k in ("data", "task", "loss", "batch", "steps"))
    optimizer, lr = run.config["optimizer"], run.config["lr"]
    own = {name: v[a:b] for name, v in values.items()}
    memory = {name: v[a:b] for name, v in state.items()}
    like = own["W"]
    stream = FullBatch(data, task, a, b, like) if batch is None else Sampled(data, task, bank.seeds[a:b], a, batch, like)
    engine = Gradients(bank.spec, loss, _importance(loss, like, a, b), closed=run.config["gradients"] == "closed")
    tick = max(1, (stop - start) // 50)
    frames = {int(t): k for k, t in enumerate(run.steps)}
    records = {int(t): k for k, t in enumerate(run.loss_steps)}
    with torch.no_grad():
        for t in range(start, stop):
            if t in frames:
                for name, v in own.items():
                    run.parameters[name][frames[t], a:b] = v
            wanted = t in records
            gradient, found = engine(own, stream(t), losses=wanted)
            if wanted and found is not None:
                run.losses[records[t], a:b] = found
            optimizer.step_(own, gradient, memory, t, lr if isinstance(lr, float) else lr(t, steps))
            if (t + 1 - start) % tick == 0:
                bar.update(tick * (b - a))
        bar.update((stop - start) % tick * (b - a))
        if stop == steps:
            for name, v in own.items():
                run.parameters[name][frames[steps], a:b] = v
            run.losses[records[steps], a:b] = engine.losses(own, stream(steps))


def _importance(loss: Loss, like: Tensor, a: int, b: int) -> Tensor | None:
    if loss.importance is None:
        return None
    own = loss.importance.to(like)
    return own[None, None] if own.ndim == 1 else own[a:b, None]


def _begun(bank: ToyBank, config: dict[str, Any], checkpoint: str | Path | None, width: int) -> Run:
    """The run at its start, or as a checkpoint left it."""
    record: Record = config["record"]
    steps = record.steps_of("frames", config["steps"])
    loss_steps = record.steps_of("losses", config["steps"])
    if checkpoint is not None and Path(checkpoint).exists():
        run = Run.load(checkpoint)
        here = {"spec": bank.spec, "seeds": bank.seeds, "axes": bank.axes, "dtype": str(bank.W.dtype)} | config
        there = {"spec": run.spec, "seeds": run.seeds, "axes": run.axes, "dtype": str(run.weights.dtype), "device": "cpu"}
        there |= run.config
        initial = run.config["initial"]
        mine = _fingerprint(bank)
        differ = {k: (_text(there[k]), _text(v)) for k, v in here.items() if _text(there[k]) != _text(v)}
        if not differ and initial != mine:
            differ["initial weights"] = (initial, mine)
        if differ:
            raise ResumeError(checkpoint, differ, holds="a training run with other settings", place="file")
        return run
    device = bank.W.device
    values = {name: p.detach().clone() for name, p in bank.named_parameters()}
    return Run(
        bank.spec,
        bank.seeds,
        bank.axes,
        torch.tensor(steps),
        {name: torch.zeros(len(steps), *p.shape, dtype=p.dtype, device=device) for name, p in values.items()},
        torch.tensor(loss_steps),
        torch.zeros(len(loss_steps), len(bank), dtype=bank.W.dtype, device=device),
        {**config, "chunk": width, "initial": _fingerprint(bank)},
        State(0, values, config["optimizer"].state(values)),
    )


def _fingerprint(bank: ToyBank) -> str:
    """A short text that differs where initial weights do."""
    import hashlib

    digest = hashlib.sha256()
    for name, p in bank.named_parameters():
        digest.update(name.encode() + p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _text(value: object) -> str:
    """A setting as text that two runs can compare, tensors included."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {json.dumps(value.tolist())}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{f.name}={_text(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _chunk(bank: ToyBank, data: ToyData, batch: int | None) -> int:
    samples, spec = batch or data.n_inputs or 1, bank.spec
    numbers = samples * 2 * (spec.outputs + spec.n_hidden + spec.d_mlp)
    if batch is not None:
        numbers += steps_of_block(data, batch) * batch * spec.n_features // 8  # drawn ahead, and read once
    return max(1, CACHE // (numbers * bank.W.element_size()))
