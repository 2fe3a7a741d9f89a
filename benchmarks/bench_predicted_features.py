"""What predicting features costs: sparse features against the documents × documents kernel, on generated text and on real corpora.

    MECHFEAT_DATA=... python benchmarks/bench_predicted_features.py [--smoke]

Each case is first verified on 200 of its documents: both routes must agree to 1e-10. Then predictions of every token's score by 100 steps
of logistic descent are timed, one thread, process seconds, once with and once without the 20 predictions of the null. Appends to
``results/predicted_features.jsonl``. Without ``MECHFEAT_DATA`` generated text of the same size takes the place of SST; IMDB is left out.
"""

import argparse
import csv
import datetime
import gzip
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechfeat.bench.harness import commit, write_rows
from mechfeat.models.text import pad
from mechfeat.ntk import predict_features
from mechfeat.ntk.analytic import BagKernel
from mechfeat.ntk.dual import Activation

RESULTS = Path(__file__).parent / "results" / "predicted_features.jsonl"
STEPS = 100


@dataclass(frozen=True)
class Row:
    """One corpus and one number of draws of the null."""

    corpus: str
    documents: int
    tokens: int
    positions: int
    steps: int
    n_null: int
    median: float
    runs: int
    agreement: float
    device: str
    threads: int
    versions: dict[str, str]
    commit: str
    date: str


def encoded(texts: list[str]) -> tuple[Tensor, int]:
    """Whitespace tokens as padded ids, numbered by first occurrence."""
    known: dict[str, int] = {}
    return pad([[known.setdefault(word, len(known)) for word in text.split()] for text in texts]), len(known)


def corpora(smoke: bool) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Name, documents, labels and size of the vocabulary."""
    g = torch.Generator().manual_seed(0)
    n, v = (300, 500) if smoke else (6920, 13822)
    frequency = 1 / torch.arange(1.0, v + 1)
    ids = torch.multinomial(frequency, n * 30, replacement=True, generator=g).view(n, 30)
    ids = torch.where(torch.arange(30) < torch.randint(5, 31, (n, 1), generator=g), ids, -1)
    yield "generated", ids, torch.randint(0, 2, (n,), generator=g), v
    root = os.environ.get("MECHFEAT_DATA")
    if smoke or not root:
        return
    with (Path(root) / "sst" / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    docs, v = encoded([row["text"] for row in rows])
    yield "sst", docs, torch.tensor([int(row["label"]) for row in rows]), v
    with gzip.open(Path(root) / "imdb" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    docs, v = encoded([row["text"].lower() for row in found])
    yield "imdb", docs, torch.tensor([row["label"] for row in found]), v


def measure(name: str, docs: Tensor, labels: Tensor, v: int, n_null: int, runs: int) -> Row:
    """Verify on a part, then time."""
    kernel, grams = BagKernel(activation=Activation.of("relu")), torch.arange(v)[:, None]
    some = torch.randperm(len(docs), generator=torch.Generator().manual_seed(1))[:200]
    lr = 0.01 / float((docs >= 0).sum(1).double().square().mean())
    few = [
        predict_features(kernel, docs[some], labels[some], grams[:300], steps=STEPS, lr=1e3 * lr, method=way, n_null=0).scores
        for way in ("features", "kernel")
    ]
    agreement = float((few[0] - few[1]).abs().max())
    if not agreement <= 1e-10:
        raise SystemExit(f"The two routes differ by {agreement:g} on {name}: nothing is timed")
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        predict_features(kernel, docs, labels, grams, steps=STEPS, lr=lr, width=64, n_null=n_null)
        seconds.append(time.process_time() - start)
    return Row(
        name,
        len(docs),
        v,
        int((docs >= 0).sum()),
        STEPS,
        n_null,
        statistics.median(seconds),
        runs,
        agreement,
        f"{platform.machine()} CPU",
        torch.get_num_threads(),
        {"torch": torch.__version__},
        commit(),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a small generated corpus alone, and nothing is written")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, docs, labels, v in corpora(args.smoke):
        for n_null in (0, 20):
            row = measure(name, docs, labels, v, n_null, args.runs)
            print(
                f"{name:10s} {row.documents:6d} documents {row.tokens:7d} tokens, {n_null:2d} draws of the null:"
                f" {row.median:8.3f} s, routes agree to {row.agreement:.0e}",
                flush=True,
            )
            if not args.smoke:
                write_rows([row], args.out)


if __name__ == "__main__":
    main()
