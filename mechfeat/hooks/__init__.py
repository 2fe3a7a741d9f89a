"""The hooked model: hook points by name, recording, editing, weights."""

from mechfeat.hooks.cache import ActivationCache
from mechfeat.hooks.description import Description, PointRow
from mechfeat.hooks.edits import Edit, ProjectOut, Replace, Scale, Steer
from mechfeat.hooks.edits_json import edits_from_json, edits_to_json
from mechfeat.hooks.folding import fold_batch_norm
from mechfeat.hooks.fwd_hooks import HookRef
from mechfeat.hooks.interchange import Ablate, Patch
from mechfeat.hooks.lowrank import LowRank
from mechfeat.hooks.model import HookedModel, hooked, unwrap
from mechfeat.hooks.names import HookName
from mechfeat.hooks.shards import Shards
from mechfeat.hooks.stream import RunningMean, Session, StreamEstimate
from mechfeat.hooks.verify import Verification, VerifiedPoint
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
    "Patch",
    "PointRow",
    "ProjectOut",
    "Replace",
    "RunningMean",
    "Scale",
    "Session",
    "Shards",
    "Steer",
    "StreamEstimate",
    "Verification",
    "VerifiedPoint",
    "Weights",
    "edits_from_json",
    "edits_to_json",
    "fold_batch_norm",
    "hooked",
    "unwrap",
]
