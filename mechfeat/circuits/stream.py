"""The residual stream of a transformer as the sum of what is written to it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import CircuitError, PortError
from mechfeat.hooks import ActivationCache, HookedModel, HookName

_PROJECTIONS = ("o", "out_proj", "c_proj", "o_proj")
_TOLERANCE = 1e-4


class Part(NamedTuple):
    """One summand of the stream.

    Attributes:
        name: Its hook name, with the head where it is one.
        kind: ``embed pos_embed attn head mlp part`` or ``bias``.
        value: What is added at each place; axes of one entry stand for all.
    """

    name: str
    kind: str
    value: Float[Tensor, "..."]


def stream_parts(
    hm: HookedModel, x: Any, parts: Sequence[str] | None, heads: bool, further: Sequence[str]
) -> tuple[Any, list[Part], ActivationCache]:
    """Runs a model and records what is added to its residual stream, in order.

    Args:
        hm: The model.
        x: Inputs.
        parts: Hook names; None for those that have the roles.
        heads: Split attention outputs.
        further: What else to record.

    Returns:
        The model's output, the parts, and the cache with the further points.

    Raises:
        CircuitError: The model has no such roles, or its attention writes to the stream otherwise than as a sum over heads.
    """
    if parts is not None:
        out, cache = hm.run_with_cache(x, [*parts, *further])
        return out, [piece for n in cache if n not in further or n in parts for piece in _pieces(n, cache)], cache
    roles = hm.roles()
    missing = [r for r in ("embed", "resid_pre", "attn_out", "mlp_out") if r not in roles]
    if missing:
        raise CircuitError(
            f"This {type(hm.module).__name__} has no hook points with the role{'s' if len(missing) > 1 else ''} {', '.join(missing)}, so"
            " what is added to its residual stream is not known. Name it: parts=[...]."
        )
    kinds = {name: kind for kind, role in (("attn", "attn_out"), ("mlp", "mlp_out")) for name in roles[role]}
    inner = {name: _head_points(hm, name) for name in roles["attn_out"]} if heads else {}
    asked = ["@embed", "@resid_pre", *(["@pos_embed"] if "pos_embed" in roles else []), *kinds, *inner.values(), *further]
    try:
        out, cache = hm.run_with_cache(x, asked)
    except PortError as error:
        raise CircuitError(
            f"Attention of this {type(hm.module).__name__} cannot be split into heads: {error} Leave heads=False."
        ) from error
    found = _embeddings(hm, cache)
    for name in (n for n in cache if n in kinds):
        found += _heads(hm, name, inner[name], cache) if name in inner else [Part(name, kinds[name], cache[name])]
    return out, found, cache


def _pieces(name: str, cache: ActivationCache) -> list[Part]:
    axes = cache.axes(name)
    if "head" not in axes:
        return [Part(name, "part", cache[name])]
    return [Part(f"{name}[{i}]", "head", value) for i, value in enumerate(cache[name].unbind(axes.index("head")))]


def _embeddings(hm: HookedModel, cache: ActivationCache) -> list[Part]:
    """Token and position embedding, or the first residual stream where they do not make it, as where a model scales them."""
    roles = hm.roles()
    first = roles["resid_pre"][0]
    stream = cache[first if first in cache else first.removesuffix(".0")]
    parts = [Part(name, role, cache[name]) for role in ("embed", "pos_embed") for name in roles.get(role, ())]
    try:
        total = sum((p.value for p in parts), torch.zeros_like(stream))
    except RuntimeError:
        return [Part(first, "embed", stream)]
    near = total.shape == stream.shape and bool((total - stream).abs().amax() <= _TOLERANCE * stream.abs().amax())
    return parts if near else [Part(first, "embed", stream)]


def _attention(hm: HookedModel, name: str) -> tuple[str, nn.Module]:
    path = HookName.parse(name).path
    module = hm.module.get_submodule(path)
    if type(module).__name__ == "HookPoint":
        path = path.rpartition(".")[0]
        module = hm.module.get_submodule(path)
    return path, module


def _head_points(hm: HookedModel, name: str) -> str:
    """Where the heads are seen: at the port, or for a bridge, whose attention is written out, before the output projection."""
    path, module = _attention(hm, name)
    inner = getattr(module, "_original_component", None)
    for child in _PROJECTIONS:
        if inner is not None and hasattr(inner, "n_heads") and isinstance(getattr(inner, child, None), nn.Module):
            return f"{path}._original_component.{child}:in"
    return f"{path}:result"


def _heads(hm: HookedModel, name: str, point: str, cache: ActivationCache) -> list[Part]:
    path, module = _attention(hm, name)
    if point.endswith(":result"):
        result = cache[point]
    else:
        inner: Any = module._original_component
        projection: Any = hm.module.get_submodule(HookName.parse(point).path)
        projection = getattr(projection, "_original_component", projection)
        z, W_O = (t.unflatten(-1, (inner.n_heads, -1)) for t in (cache[point], projection.weight))
        result = torch.einsum("sphe,dhe->sphd", z, W_O)
    rest = cache[name] - result.sum(2)
    size = float(cache[name].abs().amax())
    bias = rest[:1, :1]
    if float((rest - bias).abs().amax()) > _TOLERANCE * size:
        raise CircuitError(
            f"The heads of {path!r} add up to something else than {name!r} and a constant bias, so what it adds to the stream is not a sum"
            " over heads. Leave heads=False."
        )
    parts = [Part(f"{path}:result[{h}]", "head", result[:, :, h]) for h in range(result.shape[2])]
    rounding = 100 * torch.finfo(bias.dtype).eps * size
    return parts if float(bias.abs().amax()) <= rounding else [*parts, Part(f"{path}.b_O", "bias", bias)]
