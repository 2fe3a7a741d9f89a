"""How many features share how many dimensions.

``metrics``, ``frames``, ``units``, ``activations``, ``onehot`` and ``adversarial`` hold the formulas, as functions of tensors alone;
``directions`` and ``geometry`` say which arrangement features have taken; ``measure`` and ``report`` turn metrics into findings,
with nulls and intervals. ``training`` trains banks of toy models, whose superposition is known; ``dynamics`` and its neighbours
say how they got there.
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
from mechfeat.superposition.dynamics import EscapeRates, HessianSpectrum, escape_rates, hessian_spectrum
from mechfeat.superposition.dynamics_toy import run_spectrum
from mechfeat.superposition.frames import coherence, frame_potential, mean_squared_overlap, relu_energy, tightness, welch_bound, welch_gap
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
from mechfeat.superposition.hysteresis import Hysteresis, hysteresis, widen_gap
from mechfeat.superposition.llc import LearningCoefficient, local_learning_coefficient
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
from mechfeat.superposition.one_active import one_active_loss
from mechfeat.superposition.onehot import k_eff, one_hot_loss
from mechfeat.superposition.phase import PHASES, PhaseDiagram, phase_diagram, superposition_boundary, two_feature_loss
from mechfeat.superposition.reading import read_directions, write_directions
from mechfeat.superposition.report import ActivationFinding, SuperpositionReport, superposition_report
from mechfeat.superposition.sweep import QuasiStatic, quasi_static
from mechfeat.superposition.training import Event, Loss, Optimizer, Record, Run, Schedule, cross_entropy, fit, grid, lp, mse
from mechfeat.superposition.units import features_per_unit, monosemantic, polysemanticity
from mechfeat.superposition.units_finding import UnitFinding, concept_responses, unit_polysemanticity, unit_separability

__all__ = [
    "GREEDY_ANGLE",
    "NAMED_FRACTIONS",
    "PHASES",
    "POLYTOPES",
    "ActivationFinding",
    "DirectionCurve",
    "EscapeRates",
    "Event",
    "Factor",
    "FeatureGraph",
    "HessianSpectrum",
    "Hysteresis",
    "LearningCoefficient",
    "Loss",
    "Optimizer",
    "PhaseDiagram",
    "QuasiStatic",
    "Record",
    "Run",
    "Schedule",
    "SuperpositionFinding",
    "SuperpositionReport",
    "UnitFinding",
    "adversarial_vulnerability",
    "canonicalise",
    "capacity",
    "coherence",
    "concept_responses",
    "concept_separability",
    "count_directions",
    "cross_entropy",
    "direction_curve",
    "effective_features",
    "effective_rank",
    "escape_rates",
    "feature_dimensionality",
    "feature_graph",
    "feature_norm",
    "features_per_dimension",
    "features_per_unit",
    "fit",
    "frame_potential",
    "grid",
    "group_directions",
    "hessian_spectrum",
    "hysteresis",
    "identify",
    "interference",
    "interference_matrix",
    "k_eff",
    "local_learning_coefficient",
    "lp",
    "mean_squared_overlap",
    "measure",
    "merge_directions",
    "monosemantic",
    "mse",
    "one_active_loss",
    "one_hot_loss",
    "participation_ratio",
    "phase_diagram",
    "polysemanticity",
    "polytope",
    "quasi_static",
    "read_directions",
    "relu_energy",
    "run_spectrum",
    "superposition_boundary",
    "superposition_ratio",
    "superposition_report",
    "tightness",
    "two_feature_loss",
    "unit_polysemanticity",
    "unit_separability",
    "welch_bound",
    "welch_gap",
    "widen_gap",
    "write_directions",
]
