"""Saving values: one safetensors file, tensors as tensors and everything else as JSON in its header.

No pickle: loading builds only classes registered with :func:`storable`, and runs no code from the file.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from mechfeat.errors import DtypeError, FileFormatError

_FORMAT = "mechfeat/1"
_CLASSES: dict[str, type] = {}
T = TypeVar("T", bound=type)
S = TypeVar("S", bound="Stored")  # not typing.Self: runtime checkers of single methods cannot resolve it


def storable(cls: T) -> T:
    """Register a dataclass, so that values of it can be saved inside others and loaded again.

    Args:
        cls: The dataclass. Its name is its tag in the file.

    Returns:
        ``cls`` itself.
    """
    _CLASSES[cls.__name__] = cls
    return cls


class Stored:
    """Gives a registered dataclass ``save`` and ``load``."""

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file; an existing file is replaced only after the new one is complete.

        Args:
            path: File name, by custom ending in ``.safetensors``.
        """
        save(self, path)

    @classmethod
    def load(cls: type[S], path: str | Path) -> S:
        """Read what :meth:`save` wrote. Tensors come back on the CPU, bit for bit.

        Args:
            path: The file.

        Returns:
            A value of this class or a subclass.

        Raises:
            FileFormatError: The file holds something else.
        """
        value = load(path)
        if not isinstance(value, cls):
            raise FileFormatError(
                f"{str(path)!r} holds a {type(value).__name__}, not a {cls.__name__}. Load it with {type(value).__name__}.load."
            )
        return value


def save(value: Any, path: str | Path) -> None:
    """Write a value made of registered dataclasses, tensors and JSON types to one file.

    Args:
        value: What to write.
        path: File name.

    Raises:
        DtypeError: A part of the value is of a type that cannot be written.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _encode(value, tensors, "value")
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": _FORMAT, "value": json.dumps(tree)})
    partial.replace(path)


def load(path: str | Path) -> Any:
    """Read what :func:`save` wrote.

    Args:
        path: The file.

    Returns:
        The value, tensors on the CPU.

    Raises:
        FileFormatError: The file is damaged, or was not written by mechfeat.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise FileFormatError(
                    f"{str(path)!r} has format {metadata.get('format')!r}, and this version reads {_FORMAT!r}. It was written by something"
                    " else or by another version."
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise FileFormatError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
    try:
        return _decode(json.loads(metadata["value"]), tensors)
    except FileFormatError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{str(path)!r} has a header that does not describe its tensors ({type(error).__name__}: {error}). "
            "It is damaged, or a class in it has changed since."
        ) from error


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if isinstance(value, Tensor):
        while where in tensors:  # the keys {"a": {"b"}} and "a.b" meet at one path
            where += "'"
        tensors[where] = value.detach().cpu().contiguous().clone()  # views that share storage are refused by safetensors
        return {"$tensor": where}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        if _CLASSES.get(name) is not type(value):
            raise DtypeError(
                f"{where} is a {name}, which is not registered for saving. Decorate the class with `mechfeat.features.storable`."
            )
        fields = {f.name: _encode(getattr(value, f.name), tensors, f"{where}.{f.name}") for f in dataclasses.fields(value) if f.init}
        return {"$type": name, "fields": fields}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(v, tensors, f"{where}.{i}") for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(v, tensors, f"{where}.{i}") for i, v in enumerate(value)]
    if hasattr(value, "keys"):
        wrong = [k for k in value if not isinstance(k, str)]
        if wrong:
            raise DtypeError(f"{where} has the key {wrong[0]!r} of type {type(wrong[0]).__name__}; only text keys can be saved.")
        return {"$dict": {k: _encode(v, tensors, f"{where}.{k}") for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DtypeError(
        f"{where} is a {type(value).__name__}, which cannot be saved. Tensors, numbers, text, lists, tuples, mappings and registered"
        " dataclasses can."
    )


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$tuple" in tree:
        return tuple(_decode(v, tensors) for v in tree["$tuple"])
    if "$dict" in tree:
        return {k: _decode(v, tensors) for k, v in tree["$dict"].items()}
    cls = _CLASSES.get(tree["$type"])
    if cls is None:
        raise FileFormatError(f"The file holds a {tree['$type']!r}, which is not known here. Import the module that defines it first.")
    return cls(**{k: _decode(v, tensors) for k, v in tree["fields"].items()})
