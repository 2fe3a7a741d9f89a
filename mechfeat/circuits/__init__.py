"""Circuits: which weights connect which features, and which activations carry an answer."""

from mechfeat.circuits.direct import CircuitFinding, direct_weights
from mechfeat.circuits.patching import PatchingFinding, activation_patching

__all__ = ["CircuitFinding", "PatchingFinding", "activation_patching", "direct_weights"]
