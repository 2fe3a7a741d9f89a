"""Which features training should find, from the kernel alone, and whether it found them."""

from mechfeat.ntk.predict.compare import FeatureComparison, compare
from mechfeat.ntk.predict.cooccurrence import CoOccurrence, Extremes, cooccurrence
from mechfeat.ntk.predict.language import LanguageFinding, compare_language, next_token_logits
from mechfeat.ntk.predict.measured import kernel_drift, measured_scores
from mechfeat.ntk.predict.network import MovementFinding, predict_movement
from mechfeat.ntk.predict.prediction import FeaturePrediction
from mechfeat.ntk.predict.regime import DRIFT_LIMIT, RichRegimeWarning
from mechfeat.ntk.predict.scores import predict_features

__all__ = [
    "DRIFT_LIMIT",
    "CoOccurrence",
    "Extremes",
    "FeatureComparison",
    "FeaturePrediction",
    "LanguageFinding",
    "MovementFinding",
    "RichRegimeWarning",
    "compare",
    "compare_language",
    "cooccurrence",
    "kernel_drift",
    "measured_scores",
    "next_token_logits",
    "predict_features",
    "predict_movement",
]
