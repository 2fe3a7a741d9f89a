"""Inputs of a model: how they are handed to it, and what kind they are."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def call(module: nn.Module, x: Any, kwargs: Mapping[str, Any]) -> Any:
    """Call a model.

    Args:
        module: The model.
        x: Its input; a tuple is spread over the arguments, a mapping over the keyword arguments, None is left out.
        kwargs: Further keyword arguments.

    Returns:
        Its output.
    """
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
