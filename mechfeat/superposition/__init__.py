"""How many features share how many dimensions.

``metrics`` holds the formulas, as functions of weights alone; ``measure`` turns one of them into a finding, with a null
and an interval.
"""

from mechfeat.superposition.measure import DegenerateNullError, SuperpositionFinding, measure
from mechfeat.superposition.metrics import (
    effective_rank,
    feature_dimensionality,
    features_per_dimension,
    interference,
    participation_ratio,
)

__all__ = [
    "DegenerateNullError",
    "SuperpositionFinding",
    "effective_rank",
    "feature_dimensionality",
    "features_per_dimension",
    "interference",
    "measure",
    "participation_ratio",
]
