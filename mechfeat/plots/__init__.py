"""Figures: pure functions from a finding to a plotly figure. Nothing is shown, nothing is computed that the finding lacks."""

from mechfeat.plots.capacity import xor_map
from mechfeat.plots.dynamics import predicted_outputs, prediction_error
from mechfeat.plots.features import ablation, projection
from mechfeat.plots.finding import null_distribution
from mechfeat.plots.kernels import kernel_heatmap, layer_share, spectrum
from mechfeat.plots.predicted import cooccurrence_logits, movement, predicted_scores, score_curves, unseen_bias
from mechfeat.plots.weights import circuit_weights, contributions, dimensionality, overlaps

__all__ = [
    "ablation",
    "circuit_weights",
    "contributions",
    "cooccurrence_logits",
    "dimensionality",
    "kernel_heatmap",
    "layer_share",
    "movement",
    "null_distribution",
    "overlaps",
    "predicted_outputs",
    "predicted_scores",
    "prediction_error",
    "projection",
    "score_curves",
    "spectrum",
    "unseen_bias",
    "xor_map",
]
