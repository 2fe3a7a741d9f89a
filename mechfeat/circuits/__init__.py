"""Circuits: which weights connect which features, and which activations carry an answer."""

from mechfeat.circuits.attribution import Attribution, attribution_patching, gradient_times_activation, integrated_gradients
from mechfeat.circuits.direct import CircuitFinding, direct_weights
from mechfeat.circuits.lens import LogitLens, logit_lens
from mechfeat.circuits.logits import LogitAttribution, direct_logit_attribution
from mechfeat.circuits.patching import PatchingFinding, activation_patching

__all__ = [
    "Attribution",
    "CircuitFinding",
    "LogitAttribution",
    "LogitLens",
    "PatchingFinding",
    "activation_patching",
    "attribution_patching",
    "direct_logit_attribution",
    "direct_weights",
    "gradient_times_activation",
    "integrated_gradients",
    "logit_lens",
]
