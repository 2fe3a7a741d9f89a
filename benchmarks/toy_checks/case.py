"""A case of a check: a name, its settings, and how to compute it. Cases that are already rows are not computed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One row to be."""

    name: str
    settings: dict[str, Any]
    compute: Callable[[], dict[str, Any]]
    dtype: str = field(default="float32")
