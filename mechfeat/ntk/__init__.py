"""Neural tangent kernels: empirical ones, exact and proved, of any model, and those of infinitely wide ones in closed form."""

from mechfeat.ntk import analytic as analytic
from mechfeat.ntk.dual import Activation
from mechfeat.ntk.dynamics import KernelDynamics
from mechfeat.ntk.dynamics_model import TrainingPrediction, linearize, predict_training
from mechfeat.ntk.empirical import PROVED, empirical_ntk, plan
from mechfeat.ntk.krylov import Eigenpairs, Solution, SpectralDensity
from mechfeat.ntk.operator import NTKOperator
from mechfeat.ntk.planner import Plan, PlanRow
from mechfeat.ntk.predict import (
    CoOccurrence,
    Extremes,
    FeatureComparison,
    FeaturePrediction,
    LanguageFinding,
    MovementFinding,
    RichRegimeWarning,
    compare,
    compare_language,
    cooccurrence,
    kernel_drift,
    measured_scores,
    next_token_logits,
    predict_features,
    predict_movement,
)
from mechfeat.ntk.result import Coverage, NTKResult
from mechfeat.ntk.rules import register_rule
from mechfeat.ntk.sketch import NTKSketch, sketch
from mechfeat.ntk.spectrum import AlignmentFinding, Spectrum, label_alignment, spectrum

__all__ = [
    "PROVED",
    "Activation",
    "AlignmentFinding",
    "CoOccurrence",
    "Coverage",
    "Eigenpairs",
    "Extremes",
    "FeatureComparison",
    "FeaturePrediction",
    "KernelDynamics",
    "LanguageFinding",
    "MovementFinding",
    "NTKOperator",
    "NTKResult",
    "NTKSketch",
    "Plan",
    "PlanRow",
    "RichRegimeWarning",
    "Solution",
    "SpectralDensity",
    "Spectrum",
    "TrainingPrediction",
    "compare",
    "compare_language",
    "cooccurrence",
    "empirical_ntk",
    "kernel_drift",
    "label_alignment",
    "linearize",
    "measured_scores",
    "next_token_logits",
    "plan",
    "predict_features",
    "predict_movement",
    "predict_training",
    "register_rule",
    "sketch",
    "spectrum",
]
