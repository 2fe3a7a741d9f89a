"""Texts from local files: csv, tsv, jsonl and txt, plain or gzipped, by a schema that is stated and not guessed."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mechfeat.data.text.texts import LabelMap, Row, Texts, joined, texts_of
from mechfeat.errors import OptionError, SchemaError

Column = str | int
Fields = Sequence[str | None]
Reader = Callable[..., Iterator[tuple[int, Fields]]]
FORMATS = ("csv", "tsv", "jsonl", "txt")


def load_texts(
    path: str | Path,
    *,
    text: Column | Sequence[Column] = "text",
    label: Column | None = "label",
    labels: LabelMap | None = None,
    format: str | None = None,
    quoted: bool = True,
) -> Texts:
    r"""Texts and labels of a file.

    Columns that are named are looked up in the header of a csv or tsv file, and in the objects of a jsonl file. Columns that are
    numbered from 0 say that a csv or tsv file has no header. A txt file is one text a line, without labels.

    Args:
        path: The file; ``.gz`` is unpacked on the way.
        text: The column of the text; several are joined by a space.
        label: The column of the label; None for texts without labels.
        labels: Class index of each label as it is written, such as ``{"1": 0, "2": 1}``. Without it labels must be class indices
            already, and 3 stays 3.
        format: ``"csv"``, ``"tsv"``, ``"jsonl"`` or ``"txt"``; by default the file's ending.
        quoted: Whether quote marks around a field of a csv or tsv file enclose it. Where they are part of the text, as in many tsv files,
            it must be False: such a mark at the start of a text would swallow the rows after it.

    Returns:
        Texts and labels.

    Raises:
        OptionError: The format is unknown, or names and numbers of columns are mixed.
        SchemaError: A column or a label is not what was said, or a text is null; file, line and what is there instead are named.
        FileNotFoundError: There is no such file.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.tsv").write_text("sentence\ttopic\na b\tsport\nc\tworld\n")
        ...     read = load_texts(Path(folder, "train.tsv"), text="sentence", label="topic", labels={"world": 0, "sport": 1})
        >>> read.texts, read.labels, read.classes
        (('a b', 'c'), tensor([1, 0]), ('world', 'sport'))
    """
    path = Path(path)
    kind = format or _ending(path)
    if kind not in FORMATS:
        raise OptionError("format", kind, FORMATS)
    wanted: tuple[Column, ...] = (text,) if isinstance(text, str | int) else tuple(text)
    columns: tuple[Column, ...] = wanted if label is None else (*wanted, label)
    if len({type(c) for c in columns}) > 1 or not wanted:
        raise OptionError("text and label", columns, ("names of columns", "numbers of columns of a file without header"))
    separated = partial(_separated, quoted=quoted)
    readers: dict[str, Reader] = {"csv": separated, "tsv": separated, "jsonl": _objects, "txt": _lines}
    with _opened(path) as file:
        rows = [
            Row(line, joined(fields[: len(wanted)], str(path), line), str(fields[-1]) if label is not None and kind != "txt" else None)
            for line, fields in readers[kind](file, columns, str(path), "\t" if kind == "tsv" else ",")
        ]
    return texts_of(rows, labels, str(path))


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.removeprefix(".")


def _opened(path: Path) -> io.TextIOWrapper:
    # Spreadsheets put a byte order mark first, which would become part of the first column's name or of the first token.
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _separated(
    file: io.TextIOWrapper, columns: Sequence[Column], source: str, delimiter: str, *, quoted: bool
) -> Iterator[tuple[int, Fields]]:
    reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    line = 1
    try:
        places = [c for c in columns if isinstance(c, int)]
        if not places:
            header = next(reader, [])
            line = reader.line_num + 1
            missing = [c for c in columns if header.count(str(c)) != 1]
            if missing:
                once = ", each once" if set(missing) & set(header) else ""
                raise SchemaError(source, 1, f"the columns are {_listed(header)}", f"the columns {_listed(columns)}{once}")
            places = [header.index(str(c)) for c in columns]
            width = len(header)
        else:
            width = 0
        for fields in reader:
            if fields:
                if len(fields) <= max(places) or (width and len(fields) != width):
                    need = f"{width} fields, as in the header" if width else f"more than {max(places)} fields"
                    raise SchemaError(source, line, f"the row has {len(fields)} fields", need)
                if delimiter == "\t" and any("\t" in f and "\n" in f for f in fields):
                    found = "a quoted field holds tabs and ends of lines, which looks like several rows"
                    raise SchemaError(source, line, found, "quoted=False where quote marks are part of the text")
                yield line, [fields[i] for i in places]
            line = reader.line_num + 1
    except csv.Error as error:
        raise SchemaError(source, line, f"the row cannot be read ({error})", "quoted fields that end") from None


def _objects(file: io.TextIOWrapper, columns: Sequence[Column], source: str, _: str) -> Iterator[tuple[int, Fields]]:
    for line, written in enumerate(file, 1):
        if not written.strip():
            continue
        try:
            found: Any = json.loads(written)
        except json.JSONDecodeError as error:
            raise SchemaError(source, line, f"the line is no JSON ({error.msg} at column {error.colno})", "one object a line") from None
        if not isinstance(found, dict):
            raise SchemaError(source, line, f"the line is of type {type(found).__name__}", "one object a line")
        if any(c not in found for c in columns):
            raise SchemaError(source, line, f"the keys are {_listed(found)}", f"the keys {_listed(columns)}")
        yield line, [v if v is None or isinstance(v, str) else json.dumps(v) for v in (found[c] for c in columns)]


def _lines(file: io.TextIOWrapper, columns: Sequence[Column], source: str, delimiter: str) -> Iterator[tuple[int, Fields]]:
    for line, written in enumerate(file, 1):
        yield line, [written.rstrip("\r\n")]


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
