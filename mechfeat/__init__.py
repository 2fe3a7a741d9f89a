"""Which features a neural network computes, where, from which weights, and which features theory predicts.

The names of the quick start live here; the rest is one module deeper and loaded on first use: ``mf.probes``, ``mf.circuits``,
``mf.superposition``, ``mf.ntk``, ``mf.evidence``, ``mf.nulls``, ``mf.models``, ``mf.data``, ``mf.plots``, ``mf.report``.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from mechfeat.features import Feature, FeatureSet, Finding, Samples
from mechfeat.hooks import Ablate, ActivationCache, HookedModel, Patch, ProjectOut, Replace, Scale, Steer, Weights
from mechfeat.points import point

if TYPE_CHECKING:
    from mechfeat import (
        bench,
        circuits,
        data,
        errors,
        evidence,
        features,
        hooks,
        kernels,
        models,
        ntk,
        nulls,
        plots,
        probes,
        report,
        superposition,
    )

__version__ = "0.1.0"

__all__ = [
    "Ablate",
    "ActivationCache",
    "Feature",
    "FeatureSet",
    "Finding",
    "HookedModel",
    "Patch",
    "ProjectOut",
    "Replace",
    "Samples",
    "Scale",
    "Steer",
    "Weights",
    "__version__",
    "bench",
    "circuits",
    "data",
    "errors",
    "evidence",
    "features",
    "hooks",
    "kernels",
    "models",
    "ntk",
    "nulls",
    "plots",
    "point",
    "probes",
    "report",
    "superposition",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:  # what is not bound above is a package
        return importlib.import_module(f"mechfeat.{name}")
    raise AttributeError(f"module 'mechfeat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
