"""How many features share how many dimensions.

``metrics``, ``frames``, ``units``, ``activations``, ``onehot`` and ``adversarial`` hold the formulas, as functions of tensors alone;
``directions`` and ``geometry`` say which arrangement features have taken; ``measure`` turns a metric into a finding, with a null
and an interval.
"""

from mechfeat.superposition.activations import concept_separability, effective_features, superposition_ratio
from mechfeat.superposition.adversarial import adversarial_vulnerability
from mechfeat.superposition.directions import (
    GREEDY_ANGLE,
    DirectionCurve,
    count_directions,
    direction_curve,
    group_directions,
    merge_directions,
)
from mechfeat.superposition.frames import (
    coherence,
    frame_potential,
    mean_squared_overlap,
    relu_energy,
    tightness,
    welch_bound,
    welch_gap,
)
from mechfeat.superposition.geometry import (
    NAMED_FRACTIONS,
    POLYTOPES,
    Factor,
    FeatureGraph,
    canonicalise,
    feature_graph,
    identify,
    polytope,
)
from mechfeat.superposition.measure import SuperpositionFinding, measure
from mechfeat.superposition.metrics import (
    capacity,
    effective_rank,
    feature_dimensionality,
    feature_norm,
    features_per_dimension,
    interference,
    interference_matrix,
    participation_ratio,
)
from mechfeat.superposition.onehot import k_eff, one_hot_loss
from mechfeat.superposition.reading import read_directions
from mechfeat.superposition.units import features_per_unit, monosemantic, polysemanticity

__all__ = [
    "GREEDY_ANGLE",
    "NAMED_FRACTIONS",
    "POLYTOPES",
    "DirectionCurve",
    "Factor",
    "FeatureGraph",
    "SuperpositionFinding",
    "adversarial_vulnerability",
    "canonicalise",
    "capacity",
    "coherence",
    "concept_separability",
    "count_directions",
    "direction_curve",
    "effective_features",
    "effective_rank",
    "feature_dimensionality",
    "feature_graph",
    "feature_norm",
    "features_per_dimension",
    "features_per_unit",
    "frame_potential",
    "group_directions",
    "identify",
    "interference",
    "interference_matrix",
    "k_eff",
    "mean_squared_overlap",
    "measure",
    "merge_directions",
    "monosemantic",
    "one_hot_loss",
    "participation_ratio",
    "polysemanticity",
    "polytope",
    "read_directions",
    "relu_energy",
    "superposition_ratio",
    "tightness",
    "welch_bound",
    "welch_gap",
]
