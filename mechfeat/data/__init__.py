"""Inputs: the handwritten digits that scikit-learn ships, texts, and generated ones."""

from mechfeat.data import text as text
from mechfeat.data.digits import Digits, digits

__all__ = ["Digits", "digits"]
