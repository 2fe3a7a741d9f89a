"""Figures: pure functions from a finding to a plotly figure. Nothing is shown, nothing is computed that the finding lacks."""

from mechfeat.plots.capacity import xor_map
from mechfeat.plots.dynamics import predicted_outputs, prediction_error
from mechfeat.plots.features import ablation, projection
from mechfeat.plots.finding import null_distribution
from mechfeat.plots.kernels import kernel_heatmap, layer_share, spectrum
from mechfeat.plots.predicted import cooccurrence_logits, movement, predicted_scores, score_curves, unseen_bias
from mechfeat.plots.toy import feature_graph_plot, gram, norm_bars, stack_plot, weights_movie
from mechfeat.plots.toy_dynamics import hysteresis_loop, loss_events, spectrum_movie
from mechfeat.plots.toy_sweeps import dimensionality_scatter, direction_counts, phase_map
from mechfeat.plots.weights import circuit_weights, contributions, dimensionality, overlaps

__all__ = [
    "ablation",
    "circuit_weights",
    "contributions",
    "cooccurrence_logits",
    "dimensionality",
    "dimensionality_scatter",
    "direction_counts",
    "feature_graph_plot",
    "gram",
    "hysteresis_loop",
    "kernel_heatmap",
    "layer_share",
    "loss_events",
    "movement",
    "norm_bars",
    "null_distribution",
    "overlaps",
    "phase_map",
    "predicted_outputs",
    "predicted_scores",
    "prediction_error",
    "projection",
    "score_curves",
    "spectrum",
    "spectrum_movie",
    "stack_plot",
    "unseen_bias",
    "weights_movie",
    "xor_map",
]
