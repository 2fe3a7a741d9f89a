"""Circuits: which weights connect which features."""

from mechfeat.circuits.direct import CircuitFinding, direct_weights

__all__ = ["CircuitFinding", "direct_weights"]
