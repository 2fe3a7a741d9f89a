"""Inputs of a model: how they are handed to it, and what kind they are."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from mechfeat.errors import OptionError

_OWN = ("names_filter", "grad", "clone", "fwd_hooks", "edits", "positions", "reduce")
_INSTEAD = {  # options of TransformerLens
    "incl_bwd": "run_with_cache(..., grad=True) keeps the graph, and cache.gradients(scalar) gives gradients",
    "bwd_hooks": "run_with_cache(..., grad=True) keeps the graph, and cache.gradients(scalar) gives gradients",
    "stop_at_layer": "model.record(x, names) stops after the last requested hook point",
    "remove_batch_dim": "cache[name][0] is the first sample",
    "pos_slice": "cache.samples(name, positions=...) selects positions",
    "reset_hooks_end": "hooks exist inside a run or block only",
    "clear_contexts": "hooks exist inside a run or block only",
}


def call(module: nn.Module, x: Any, kwargs: Mapping[str, Any]) -> Any:
    """Call a model.

    Args:
        module: The model.
        x: Its input; a tuple is spread over the arguments, a mapping over the keyword arguments, None is left out.
        kwargs: Further keyword arguments.

    Returns:
        Its output.

    Raises:
        OptionError: A keyword argument is meant for a tool, and a model that takes any would swallow it.
    """
    if kwargs:
        _refuse_options(module, kwargs)
    if isinstance(x, tuple):
        return module(*x, **kwargs)
    if isinstance(x, Mapping):
        return module(**x, **kwargs)
    return module(**kwargs) if x is None else module(x, **kwargs)


def signature(value: Any) -> object:
    """Kind of an input: shapes and dtypes of its tensors, and the values of what is no tensor.

    Args:
        value: The input.

    Returns:
        Something that can be compared and hashed.
    """
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple | list):
        return tuple(signature(v) for v in value)
    if isinstance(value, Mapping):
        return tuple((k, signature(v)) for k, v in value.items())
    return value if isinstance(value, bool | int | float | str | None) else type(value)


def _refuse_options(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Many models take ``**kwargs`` and ignore what they do not know, so an option that is misspelt or not ours would do nothing."""
    named = {n for n, p in inspect.signature(module.forward).parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for name in kwargs.keys() - named:
        near = get_close_matches(name, _OWN, n=1, cutoff=0.85)
        if name in _INSTEAD:
            advice = f"Here, {_INSTEAD[name]}."
        elif name in _OWN:
            advice = "It is an option of other calls."
        elif near:
            advice = f"The nearest option is {near[0]}."
        else:
            continue
        error = OptionError(name, kwargs[name], near)
        where = f"neither an option of this call nor an argument that the forward of {type(module).__name__} names"
        error.args = (f"{name}={kwargs[name]!r} is {where}. {advice}",)
        raise error
