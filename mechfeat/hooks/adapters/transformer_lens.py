"""Models of TransformerLens, and others made of its ``HookPoint``.

A ``HookPoint`` is an ordinary module, so its name in TransformerLens is its path here. A bridge names its points itself, whatever
the modules of the model inside are called, and its names are the ones that roles and weights follow. ``transformer_lens`` is not
imported: where nobody has loaded it, no model is made of its parts.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mechfeat.hooks.adapters.base import Collected, View, child, join, linear_attention, linear_mlp, out_in, transposed, walk

# The residual stream between attention and MLP is left out for bridges: their hook_resid_mid is what the second norm reads, so that an
# edit there would reach the MLP and not the stream. Their hook_pos_embed may be a rotary embedding, which is no part of the stream.
_NOT_OF_BRIDGES = ("hook_resid_mid", "hook_pos_embed")
_ROLE_OF = (
    (r"(?:.*\.)?hook_embed", "embed"),
    (r"(?:.*\.)?hook_pos_embed|pos_embed\.hook_out", "pos_embed"),
    (r"(?:.*\.)?hook_resid_pre", "resid_pre"),
    (r"(?:.*\.)?hook_resid_mid", "resid_mid"),
    (r"(?:.*\.)?hook_resid_post", "resid_post"),
    (r"(?:.*\.)?hook_attn_out", "attn_out"),
    (r"(?:.*\.)?mlp\.hook_pre", "mlp_pre"),
    (r"(?:.*\.)?mlp\.hook_post", "mlp_post"),
    (r"(?:.*\.)?hook_mlp_out", "mlp_out"),
    (r"ln_final\.hook_out", "final_norm"),
    (r"(?:.*\.)?hook_unembed", "logits"),
    (r"hook_pre", "pre"),
    (r"hook_post", "post"),
    (r"(?:.*\.)?hook_hidden", "hidden"),
)


def collect(module: nn.Module, into: Collected) -> bool:
    """Roles of a model made of hook points, and weights of bridges.

    Args:
        module: The model.
        into: Where they go.

    Returns:
        Whether it is one.
    """
    HookPoint = getattr(sys.modules.get("transformer_lens.hook_points"), "HookPoint", None)
    if HookPoint is None:
        return False
    points = {id(m): path for path, m in walk(module) if isinstance(m, HookPoint)}
    bridges = list(_bridges(module))
    of_bridges: set[int] = set()
    for path, bridge in bridges:
        of_bridges |= {id(m) for m in bridge.modules()}
        _roles(((name, points.get(id(point))) for name, point in bridge.hook_dict.items() if not name.endswith(_NOT_OF_BRIDGES)), into)
        _weights(path, bridge, into)
    _roles(((path, path) for point, path in points.items() if point not in of_bridges), into)
    return bool(points)


def _bridges(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, m in walk(module):
        if type(m).__module__.startswith("transformer_lens.model_bridge") and hasattr(m, "hook_dict"):
            yield path, m


def _roles(names: Any, into: Collected) -> None:
    for name, path in names:
        for pattern, role in _ROLE_OF:
            if path is not None and re.fullmatch(pattern, name):
                into.role(role, path)


def _weights(path: str, bridge: Any, into: Collected) -> None:
    """The names of a bridge's own state, read from the layers that its forward pass calls."""
    embed, positions, unembed = (_inside(getattr(bridge, part, None)) for part in ("embed", "pos_embed", "unembed"))
    if isinstance(embed, nn.Embedding):
        into.views(path, {"W_E": View(embed, "weight", ("d_vocab", "d_model"))})
    if isinstance(positions, nn.Embedding):
        into.views(path, {"W_pos": View(positions, "weight", ("pos", "d_model"))})
    if isinstance(unembed, nn.Linear):
        into.views(path, {"W_U": View(unembed, "weight", ("d_model", "d_vocab"), transposed), "b_U": View(unembed, "bias", ("d_vocab",))})
    d_head = getattr(bridge.cfg, "d_head", None)
    for i, block in enumerate(getattr(bridge, "blocks", ())):
        q, k, v, o = (_inside(child(block, f"attn.{part}")) for part in "qkvo")
        # Queries that carry a gate have more rows than the heads' results: they are no heads of d_head.
        if d_head and _size(q, 0) == _size(o, 1):
            into.views(join(path, f"blocks.{i}.attn"), linear_attention(q, k, v, o, d_head))
        first, last, gate = (_inside(child(block, f"mlp.{part}")) for part in ("in", "out", "gate"))
        into.views(join(path, f"blocks.{i}.mlp"), linear_mlp(first, last, gate))


def _inside(m: Any) -> nn.Module | None:
    """The layer that a part of a bridge stands for."""
    while isinstance(m, nn.Module) and isinstance(getattr(m, "original_component", None), nn.Module):
        m = m.original_component
    return m if isinstance(m, nn.Module) else None


def _size(m: nn.Module | None, dim: int) -> int | None:
    turn = out_in(m)
    return None if m is None or turn is None else turn(m.weight).shape[dim]  # type: ignore[arg-type]


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
