"""Training of toy models: losses, schedules, optimisers, and :func:`fit`, which trains a bank and returns a :class:`Run`."""

from mechfeat.superposition.training.events import Event
from mechfeat.superposition.training.fit import fit
from mechfeat.superposition.training.grid import grid
from mechfeat.superposition.training.losses import Loss, cross_entropy, lp, mse
from mechfeat.superposition.training.optimizers import Optimizer
from mechfeat.superposition.training.run import Run
from mechfeat.superposition.training.schedule import Record, Schedule

__all__ = ["Event", "Loss", "Optimizer", "Record", "Run", "Schedule", "cross_entropy", "fit", "grid", "lp", "mse"]
