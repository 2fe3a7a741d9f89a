"""The values that analyses exchange: features, samples, findings, and how they are saved."""

from mechfeat.features.feature import Feature, FeatureSet
from mechfeat.features.finding import Finding, signal_share
from mechfeat.features.samples import Samples
from mechfeat.features.storage import load, save, storable

__all__ = ["Feature", "FeatureSet", "Finding", "Samples", "load", "save", "signal_share", "storable"]
