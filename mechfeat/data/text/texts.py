"""Texts and labels as they were read, before tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mechfeat.errors import SchemaError

LabelMap = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts and the classes they belong to.

    Attributes:
        texts: The texts.
        labels: Class index of each; None if there are none.
        classes: Names of the classes, by index.

    Example:
        >>> Texts(("a good film", "a bad one"), torch.tensor([1, 0]), ("negative", "positive")).classes
        ('negative', 'positive')
    """

    texts: tuple[str, ...]
    labels: Int[Tensor, " doc"] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Row:
    """A row as it was read: where it stood, its text, and its label as text."""

    line: int
    text: str
    label: str | None


def joined(fields: Sequence[str | None], source: str, line: int) -> str:
    """The text of a row, from the columns it is spread over.

    Args:
        fields: What each column holds; None where it holds nothing.
        source: Where the row is from, for messages.
        line: Where it stands there.

    Returns:
        The fields, joined by a space.

    Raises:
        SchemaError: A field is missing, which is no empty text.
    """
    if any(field is None for field in fields):
        raise SchemaError(source, line, "the text is null", "a string, empty for an empty text")
    return " ".join(map(str, fields))


def texts_of(rows: Sequence[Row], labels: LabelMap | None, source: str) -> Texts:
    """Texts and class indices of rows.

    Without a map, labels are class indices already: whole numbers from 0, which stay what they are.

    Args:
        rows: The rows.
        labels: Class index of each label as it is written.
        source: Where the rows are from, for messages.

    Returns:
        The texts.

    Raises:
        SchemaError: A label is not in the map, or without one no whole number from 0.
    """
    texts = tuple(r.text for r in rows)
    if all(r.label is None for r in rows):
        return Texts(texts)
    found: list[int] = []
    for r in rows:
        written = "" if r.label is None else r.label.strip()
        if labels is not None:
            if written not in labels:
                raise SchemaError(source, r.line, f"the label is {written!r}", f"one of {', '.join(map(repr, labels))}")
            found.append(int(labels[written]))
        elif written.isdecimal():
            found.append(int(written))
        else:
            values = sorted({str(other.label).strip() for other in rows})
            several = ", ".join(map(repr, values[:8])) + (", ..." if len(values) > 8 else "")
            raise SchemaError(
                source,
                r.line,
                f"the label is {written!r}, among {several}",
                "a class index from 0, or labels={'...': 0, '...': 1} saying which index each label has",
            )
    return Texts(texts, torch.tensor(found, dtype=torch.int64), _names(found, labels))


def _names(found: Sequence[int], labels: LabelMap | None) -> tuple[str, ...]:
    """Names of the classes 0 to the largest index: as the map writes them, several names of a class joined."""
    count = 1 + max(*found, *(labels or {"": 0}).values())
    written: dict[int, list[str]] = {}
    for name, index in (labels or {}).items():
        written.setdefault(int(index), []).append(name)
    return tuple("/".join(written.get(c, [str(c)])) for c in range(count))
