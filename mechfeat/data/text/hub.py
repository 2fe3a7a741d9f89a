"""Texts of Hugging Face data sets, through the optional package ``datasets``, from the local cache or a local folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechfeat.data.text.texts import LabelMap, Row, Texts, joined, texts_of
from mechfeat.errors import MissingPackageError, NotCachedError, SchemaError


def load_hub(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    text: str | Sequence[str] = "text",
    label: str | None = "label",
    labels: LabelMap | None = None,
    cache_dir: str | Path | None = None,
) -> Texts:
    """Texts and labels of a data set by its Hugging Face name. Nothing is downloaded: it must be in the local cache, or be a local folder.

    Args:
        name: Name of the data set such as ``"stanfordnlp/sst2"``, or a local folder.
        split: Which part.
        config: Which configuration, where a data set has several.
        text: The column of the text; several are joined by a space.
        label: The column of the label; None for texts without labels.
        labels: Class index of each label as it is written. Without it labels must be class indices already, and 3 stays 3.
        cache_dir: The cache; that of ``datasets`` if None.

    Returns:
        Texts and labels.

    Raises:
        MissingPackageError: ``datasets`` is not installed.
        NotCachedError: The data set is not in the cache, or has no such configuration or split there.
        SchemaError: A column or a label is not what was said, or a text is null.
    """
    try:
        import datasets
    except ImportError:
        raise MissingPackageError("datasets", "load_hub", "data") from None
    with _offline(datasets):
        try:
            found: Any = datasets.load_dataset(name, config, split=split, cache_dir=None if cache_dir is None else str(cache_dir))
        except (OSError, ValueError, RuntimeError) as error:
            raise NotCachedError(name, config, split) from error
    wanted = (text,) if isinstance(text, str) else tuple(text)
    columns = wanted if label is None else (*wanted, label)
    if any(c not in found.column_names for c in columns):
        there, need = (", ".join(map(repr, names)) for names in (found.column_names, columns))
        raise SchemaError(f"{name}[{split}]", None, f"the columns are {there}", f"the columns {need}")
    rows = [
        Row(
            i,
            joined([None if found_row[c] is None else str(found_row[c]) for c in wanted], f"{name}[{split}]", i),
            None if label is None else str(found_row[label]),
        )
        for i, found_row in enumerate(found)
    ]
    return texts_of(rows, labels, f"{name}[{split}]")


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """The switch that the package's environment variable sets when it is imported, for a while."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
