"""Edits as text: a list of edits to JSON and back, every bit of every tensor kept.

A tensor is written as dtype, shape and its bytes (little-endian) in base64, so that no decimal rounding can come between. Reading
builds only the edits of this library, and runs no code from the text.
"""

import base64
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mechfeat.errors import DtypeError, FileFormatError, MechfeatError
from mechfeat.hooks.cache import ActivationCache, Capture
from mechfeat.hooks.edits import Edit, ProjectOut, Scale, Steer
from mechfeat.hooks.index import CacheIndex
from mechfeat.hooks.interchange import Ablate, Patch
from mechfeat.hooks.names import HookName

_FORMAT = "mechfeat-edits/1"
_CLASSES: dict[str, type[Edit]] = {cls.__name__: cls for cls in (Ablate, Patch, ProjectOut, Scale, Steer)}


def edits_to_json(edits: Sequence[Edit]) -> str:
    """A list of edits as JSON text.

    Args:
        edits: The edits, in the order of their application. Of a patch from a cache, the whole cache is written: record what is needed.

    Returns:
        The text. Tensors are detached and lose their device.

    Raises:
        DtypeError: An edit holds a Python function, or its class is not one of this library.

    Example:
        >>> text = edits_to_json([Ablate("conv2", channel=7), Scale("fc", 0.1)])
        >>> edits_from_json(text)
        [Ablate('conv2', channel=7), Scale('fc', factor=0.1)]
    """
    wrong = [str(edit) for edit in edits if _CLASSES.get(type(edit).__name__) is not type(edit)]
    if wrong:
        raise DtypeError(
            f"{'; '.join(wrong)} cannot be written as JSON, which holds no Python functions or classes of your own. "
            f"{', '.join(_CLASSES)} can."
        )
    return json.dumps({"format": _FORMAT, "edits": [_record(edit) for edit in edits]}, indent=1)


def edits_from_json(text: str) -> list[Edit]:
    """The edits that :func:`edits_to_json` wrote.

    Args:
        text: The JSON text.

    Returns:
        The edits in order, tensors on the CPU, bit for bit.

    Raises:
        FileFormatError: The text is not JSON, was written by something else, or is damaged.
    """
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"The text is not JSON: {error}. Give what edits_to_json wrote.") from error
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != _FORMAT:
        raise FileFormatError(f"The text has format {found!r}, and this version reads {_FORMAT!r}. Give what edits_to_json wrote.")
    edits = []
    for i, record in enumerate(tree.get("edits", ())):
        try:
            edits.append(_edit(record))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MechfeatError) as error:
            raise FileFormatError(
                f"Edit {i} of the text is not as edits_to_json writes it ({type(error).__name__}: {error}). "
                "It is damaged, or of another version."
            ) from error
    return edits


def _options(cls: type[Edit]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.name not in ("hook", "where")]


def _record(edit: Edit) -> dict[str, Any]:
    options = {name: _encode(getattr(edit, name)) for name in _options(type(edit))}
    return {"type": type(edit).__name__, "hook": edit.hook, "where": {a: list(i) for a, i in edit.where.items()}, "options": options}


def _edit(record: dict[str, Any]) -> Edit:
    cls = _CLASSES[record["type"]]
    options = {name: _decode(value) for name, value in record["options"].items()}
    if set(options) != set(_options(cls)):
        raise ValueError(f"{cls.__name__} has the options {_options(cls)}, and the text {list(options)}")
    edit = cls(record["hook"], **options, **record["where"])
    for name, value in options.items():  # the constructor checks, and normalises a direction once more, which would change its last bit
        object.__setattr__(edit, name, value)
    return edit


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        data = base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode()
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "base64": data}
    if isinstance(value, ActivationCache):
        return {"cache": {name: {"axes": list(value.axes(name)), "value": _encode(value[name])} for name in value}}
    return {"tuple": list(value)} if isinstance(value, tuple) else value


def _decode(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tuple" in tree:
        return tuple(tree["tuple"])
    if "cache" in tree:
        entries = {HookName.parse(name): entry for name, entry in tree["cache"].items()}
        # A name without call index fired once; one that shows it fired more often, also where a single call was recorded.
        fired = {(n.path, n.side): n.call + 2 for n in entries if n.call is not None}
        index = CacheIndex([HookName(n.path, n.port, n.call or 0) for n in entries], fired)
        captures = [Capture(_decode(e["value"]), None) for e in entries.values()]
        named = {(n.path, n.port): tuple(e["axes"]) for n, e in entries.items()}
        return ActivationCache(index, captures, axes=lambda name, ndim: named[name.path, name.port])
    dtype = getattr(torch, tree["dtype"])
    raw = base64.b64decode(tree["base64"], validate=True)
    data = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return data.view(dtype).reshape(tree["shape"]).clone()
