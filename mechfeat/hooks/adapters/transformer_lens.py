"""Models of TransformerLens, and others made of its ``HookPoint``.

A ``HookPoint`` is an ordinary module, so its name in TransformerLens is its path here. This is the one file that imports
``transformer_lens``, and it does so only where a model's author has imported it already.
"""

import re
import sys
from collections.abc import Mapping

from torch import nn

from mechfeat.hooks.adapters.base import Collected, walk

# Names of HookedTransformer and of modules written by hand, then those under which a bridge keeps the same values.
_ROLE_OF = (
    (r"(?:.*\.)?hook_embed|embed\.hook_out", "embed"),
    (r"(?:.*\.)?hook_pos_embed|pos_embed\.hook_out", "pos_embed"),
    (r"(?:.*\.)?hook_resid_pre|blocks\.\d+\.hook_in", "resid_pre"),
    (r"(?:.*\.)?hook_resid_mid", "resid_mid"),
    (r"(?:.*\.)?hook_resid_post|blocks\.\d+\.hook_out", "resid_post"),
    (r"(?:.*\.)?hook_attn_out|blocks\.\d+\.attn\.hook_out", "attn_out"),
    (r"(?:.*\.)?mlp\.hook_pre|blocks\.\d+\.mlp\.(?:in|gate)\.hook_out", "mlp_pre"),
    (r"(?:.*\.)?mlp\.hook_post|blocks\.\d+\.mlp\.out\.hook_in", "mlp_post"),
    (r"(?:.*\.)?hook_mlp_out|blocks\.\d+\.mlp\.hook_out", "mlp_out"),
    (r"ln_final\.hook_out", "final_norm"),
    (r"(?:.*\.)?hook_unembed|unembed\.hook_out", "logits"),
    (r"hook_pre", "pre"),
    (r"hook_post", "post"),
    (r"(?:.*\.)?hook_hidden", "hidden"),
)
_ORIGINAL = "._original_component"  # how a bridge calls the module it wraps
_LINEAR = {"fc_in": "in", "fc_out": "out"}  # what its native MLP calls the layers


def collect(module: nn.Module, into: Collected) -> bool:
    """Roles of a model made of hook points.

    Args:
        module: The model.
        into: Where the roles go.

    Returns:
        Whether it is one.
    """
    if "transformer_lens" not in sys.modules:  # then no model can be made of its parts
        return False
    from transformer_lens.hook_points import HookPoint

    points = [path for path, m in walk(module) if isinstance(m, HookPoint)]
    for path in points:
        short = ".".join(_LINEAR.get(level, level) for level in path.replace(_ORIGINAL, "").split("."))
        gated = re.sub(r"\.in\.hook_out$", ".gate.hook_out", short)
        for pattern, role in _ROLE_OF:
            # In a gated MLP the nonlinearity reads the gate, and "in" is the other factor.
            if re.fullmatch(pattern, short) and not (gated != short and _has(points, gated)):
                into.role(role, path)
    return bool(points)


def _has(points: list[str], short: str) -> bool:
    return any(p.replace(_ORIGINAL, "") == short for p in points)


def aliases(module: nn.Module, path_of: Mapping[int, str]) -> dict[str, str]:
    """The names that TransformerLens has for the hook points of its bridge, where they are not module paths.

    Args:
        module: The model.
        path_of: Path by identity of the module.

    Returns:
        Name → module path; empty for every other model.
    """
    if not type(module).__module__.startswith("transformer_lens.model_bridge"):
        return {}
    known = getattr(module, "hook_dict", {})
    return {name: path_of[id(point)] for name, point in known.items() if path_of.get(id(point), name) != name}
