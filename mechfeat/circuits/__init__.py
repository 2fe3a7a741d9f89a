"""Circuits: which weights connect which features, and which activations carry an answer."""

from mechfeat.circuits.attribution import Attribution, attribution_patching, gradient_times_activation, integrated_gradients
from mechfeat.circuits.direct import CircuitFinding, direct_weights
from mechfeat.circuits.patching import PatchingFinding, activation_patching

__all__ = [
    "Attribution",
    "CircuitFinding",
    "PatchingFinding",
    "activation_patching",
    "attribution_patching",
    "direct_weights",
    "gradient_times_activation",
    "integrated_gradients",
]
