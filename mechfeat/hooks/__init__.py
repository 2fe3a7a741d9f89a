"""The hooked model: hook points by name, recording, editing, weights."""

from mechfeat.hooks.cache import ActivationCache
from mechfeat.hooks.description import Description, PointRow
from mechfeat.hooks.edits import Ablate, Edit, ProjectOut, Replace, Steer
from mechfeat.hooks.folding import fold_batch_norm
from mechfeat.hooks.lowrank import LowRank
from mechfeat.hooks.model import HookedModel, HookRef, hooked, unwrap
from mechfeat.hooks.names import HookName
from mechfeat.hooks.weights import Weights

__all__ = [
    "Ablate",
    "ActivationCache",
    "Description",
    "Edit",
    "HookName",
    "HookRef",
    "HookedModel",
    "LowRank",
    "PointRow",
    "ProjectOut",
    "Replace",
    "Steer",
    "Weights",
    "fold_batch_norm",
    "hooked",
    "unwrap",
]
