"""What an experiment leaves: one JSON line with its settings, its numbers and its environment."""

import datetime
import os
import platform
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mechfeat.bench.harness import commit, write_rows

RESULTS = Path(__file__).parents[1] / "results" / "text_features.jsonl"


@dataclass(frozen=True)
class TextRow:
    """One experiment with one model.

    Attributes:
        experiment: ``sst``, ``imdb``, ``agnews``, ``ptb``, ``wikitext2``, ``xor`` or ``bias``.
        model: The network, in words.
        settings: Everything that was chosen.
        result: The numbers at the end.
        curve: The numbers on the way, one entry an epoch (or another unit that it names).
        seconds: Process seconds of the experiment, over all of its runs where it was resumed.
    """

    experiment: str
    model: str
    settings: dict[str, Any]
    result: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = field(default_factory=lambda: f"{platform.machine()} CPU")
    versions: dict[str, str] = field(
        default_factory=lambda: {"python": platform.python_version(), "torch": torch.__version__, "system": sys.platform}
    )
    commit: str = field(default_factory=commit)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def save(row: TextRow, out: Path) -> None:
    """Append a row, its numbers to six digits, and print it."""
    row = replace(row, settings=rounded(row.settings), result=rounded(row.result), curve=rounded(row.curve), seconds=rounded(row.seconds))
    write_rows([row], out)
    print(
        f"{row.experiment} {row.model}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.result.items())
    )


def rounded(value: Any) -> Any:
    """Numbers to six significant digits, wherever they are."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def data_folder(name: str) -> Path:
    """The folder of a data set under ``MECHFEAT_DATA``."""
    root = os.environ.get("MECHFEAT_DATA")
    if not root or not (Path(root) / name).is_dir():
        raise SystemExit(f"MECHFEAT_DATA={root!r} holds no folder {name!r}. Set it to the folder that holds the data sets.")
    return Path(root) / name


def pearson(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of two vectors."""
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])
