"""Inputs: the handwritten digits that scikit-learn ships, texts, and generated ones; tasks for toy models."""

from mechfeat.data import text as text
from mechfeat.data.digits import Digits, digits
from mechfeat.data.sets import AnticorrelatedSets, CorrelatedSets, FiniteSample, PowerLaw
from mechfeat.data.sparse import OneHot, SparseUniform
from mechfeat.data.toy_data import Exact, ToyData
from mechfeat.data.toy_tasks import Task, absolute, ands, identity, universal_and

__all__ = [
    "AnticorrelatedSets",
    "CorrelatedSets",
    "Digits",
    "Exact",
    "FiniteSample",
    "OneHot",
    "PowerLaw",
    "SparseUniform",
    "Task",
    "ToyData",
    "absolute",
    "ands",
    "digits",
    "identity",
    "universal_and",
]
