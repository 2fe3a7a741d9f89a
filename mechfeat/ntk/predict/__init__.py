"""Which features training should find, from the kernel alone, and whether it found them."""

from mechfeat.ntk.predict.compare import FeatureComparison, compare
from mechfeat.ntk.predict.measured import kernel_drift, measured_scores
from mechfeat.ntk.predict.prediction import FeaturePrediction
from mechfeat.ntk.predict.regime import DRIFT_LIMIT, RichRegimeWarning
from mechfeat.ntk.predict.scores import predict_features

__all__ = [
    "DRIFT_LIMIT",
    "FeatureComparison",
    "FeaturePrediction",
    "RichRegimeWarning",
    "compare",
    "kernel_drift",
    "measured_scores",
    "predict_features",
]
