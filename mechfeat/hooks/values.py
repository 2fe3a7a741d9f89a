"""Tensors inside what modules take and return: tuples, lists, mappings and dataclasses."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The parts of a value, in order, each with its place.

    Args:
        value: A tensor, or tuples, lists, mappings and dataclasses of such, or anything else.
        place: Name of the whole, ``out`` or ``in``.

    Yields:
        Place (``out``, ``out.0``, ``out.logits``) and part; parts that are no tensors included.

    Example:
        >>> [place for place, _ in leaves((1, {"mask": 2}), "in")]
        ['in.0', 'in.1.mask']
    """
    children = _children(value)
    if children is None:
        yield place, value
        return
    for key, child in children:
        yield from leaves(child, f"{place}.{key}")


def substitute(value: Any, new: Mapping[str, Tensor], place: str) -> Any:
    """A copy of a value with some of its tensors exchanged; the original is left as it was.

    Args:
        value: What :func:`leaves` was given.
        new: Place and tensor.
        place: Name of the whole.

    Returns:
        A value of the same type.
    """
    if place in new:
        return new[place]
    children = _children(value)
    if children is None or not any(p.startswith(place + ".") for p in new):
        return value
    parts = {key: substitute(child, new, f"{place}.{key}") for key, child in children}
    if isinstance(value, tuple):
        items = [parts[str(i)] for i in range(len(value))]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [parts[str(i)] for i in range(len(value))]
    # Mappings before dataclasses: the output classes of transformers are both, and only item assignment keeps the two in step.
    if isinstance(value, Mapping):
        twin: Any = copy.copy(value)
        for key in value:
            twin[key] = parts[str(key)]
        return twin
    return dataclasses.replace(value, **parts)


def _children(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, tuple | list):
        return [(str(i), v) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        return [(str(k), v) for k, v in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    return None
