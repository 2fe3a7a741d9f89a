"""Dual activations: closed forms, quadrature, and the kinks between which it is done."""

from mechfeat.ntk.dual.activation import Activation

__all__ = ["Activation"]
