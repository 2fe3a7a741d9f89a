"""How many features share how many dimensions.

``metrics`` holds the formulas, as functions of weights alone; ``measure`` turns one of them into a finding, with a null
and an interval. ``training`` trains banks of toy models, whose superposition is known.
"""

from mechfeat.superposition.measure import SuperpositionFinding, measure
from mechfeat.superposition.metrics import (
    effective_rank,
    feature_dimensionality,
    features_per_dimension,
    interference,
    participation_ratio,
)
from mechfeat.superposition.reading import read_directions
from mechfeat.superposition.training import Event, Loss, Optimizer, Record, Run, Schedule, cross_entropy, fit, grid, lp, mse

__all__ = [
    "Event",
    "Loss",
    "Optimizer",
    "Record",
    "Run",
    "Schedule",
    "SuperpositionFinding",
    "cross_entropy",
    "effective_rank",
    "feature_dimensionality",
    "features_per_dimension",
    "fit",
    "grid",
    "interference",
    "lp",
    "measure",
    "mse",
    "participation_ratio",
    "read_directions",
]
