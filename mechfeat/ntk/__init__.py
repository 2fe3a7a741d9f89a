"""Neural tangent kernels: empirical ones, exact and proved, of any model."""

from mechfeat.ntk.dual import Activation
from mechfeat.ntk.dynamics import KernelDynamics
from mechfeat.ntk.dynamics_model import TrainingPrediction, linearize, predict_training
from mechfeat.ntk.empirical import PROVED, empirical_ntk, plan
from mechfeat.ntk.krylov import Eigenpairs, Solution, SpectralDensity
from mechfeat.ntk.operator import NTKOperator
from mechfeat.ntk.planner import Plan, PlanRow
from mechfeat.ntk.predict import (
    FeatureComparison,
    FeaturePrediction,
    RichRegimeWarning,
    compare,
    kernel_drift,
    measured_scores,
    predict_features,
)
from mechfeat.ntk.result import Coverage, NTKResult
from mechfeat.ntk.rules import register_rule
from mechfeat.ntk.sketch import NTKSketch, sketch
from mechfeat.ntk.spectrum import AlignmentFinding, Spectrum, label_alignment, spectrum

__all__ = [
    "PROVED",
    "Activation",
    "AlignmentFinding",
    "Coverage",
    "Eigenpairs",
    "FeatureComparison",
    "FeaturePrediction",
    "KernelDynamics",
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
    "empirical_ntk",
    "kernel_drift",
    "label_alignment",
    "linearize",
    "measured_scores",
    "plan",
    "predict_features",
    "predict_training",
    "register_rule",
    "sketch",
    "spectrum",
]
