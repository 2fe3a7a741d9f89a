"""Probes: directions in activations that separate inputs, with the evidence that they do."""

from mechfeat.probes.difference_of_means import DirectionFinding, difference_of_means
from mechfeat.probes.score import auroc

__all__ = ["DirectionFinding", "auroc", "difference_of_means"]
