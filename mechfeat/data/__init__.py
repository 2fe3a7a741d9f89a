"""Inputs: the handwritten digits that scikit-learn ships, and generated ones."""

from mechfeat.data.digits import Digits, digits

__all__ = ["Digits", "digits"]
