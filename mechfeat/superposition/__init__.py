"""How many features share how many dimensions.

``metrics`` holds the formulas, as functions of weights alone; ``measure`` turns one of them into a finding, with a null
and an interval.
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

__all__ = [
    "SuperpositionFinding",
    "effective_rank",
    "feature_dimensionality",
    "features_per_dimension",
    "interference",
    "measure",
    "participation_ratio",
    "read_directions",
]
