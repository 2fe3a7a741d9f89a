"""Hessian spectra of recorded toy models."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.superposition.dynamics import HessianSpectrum, hessian_spectrum
from mechfeat.superposition.training import Run
from mechfeat.superposition.training.batches import FullBatch
from mechfeat.superposition.training.gradients import Gradients


def run_spectrum(run: Run, *, at: Sequence[int] | None = None, instance: int = 0) -> HessianSpectrum:
    """Hessian spectrum of one instance of a run, at recorded steps.

    The loss is that of training, over all inputs of its data, in float64.

    Toy models; :func:`hessian_spectrum` takes any loss.

    Args:
        run: A run whose data has finitely many inputs.
        at: Recorded steps; all by default.
        instance: Which instance.

    Returns:
        A spectrum for each step, ``[frame parameter]``, with ``steps``.

    Raises:
        OptionError: A step was not recorded.
        ShapeError: There is no such instance.
        UnsupportedModelError: The data has infinitely many inputs.

    Cost:
        As :func:`hessian_spectrum`, for each step.

    Example:
        >>> from mechfeat.data import OneHot
        >>> from mechfeat.models import ToyBank, ToySpec
        >>> from mechfeat.superposition.training import fit
        >>> run = fit(ToyBank(ToySpec(5, 2), 2), OneHot(5), steps=50, lr=0.5)
        >>> run_spectrum(run, at=[0, 50]).eigenvalues.shape
        torch.Size([2, 15])
    """
    recorded = run.steps.tolist()
    chosen = recorded if at is None else list(at)
    missing = [t for t in chosen if t not in recorded]
    if missing or not chosen:
        raise OptionError("at", missing[0] if missing else chosen, (f"one of the {len(recorded)} recorded steps {recorded[:6]}...",))
    if not 0 <= instance < len(run.seeds):
        raise ShapeError(f"instance={instance}, and the run has instances 0 to {len(run.seeds) - 1}.")
    config = run.config_of([instance])
    data, loss = config["data"], config["loss"]
    like = run.weights[0].double()
    batch = FullBatch(data, config["task"], 0, 1, like).batch
    importance = None if loss.importance is None else loss.importance.to(like).reshape(1, 1, -1)
    engine = Gradients(run.spec, loss, importance, closed=False)

    def one(values: dict[str, Tensor]) -> Tensor:
        return engine.losses({name: v[None] for name, v in values.items()}, batch)[0]

    frames = torch.tensor([recorded.index(t) for t in chosen])
    values = {name: p[frames, instance] for name, p in run.parameters.items()}
    found = hessian_spectrum(one, values, batched=True)
    return replace(found, steps=torch.tensor(chosen))
