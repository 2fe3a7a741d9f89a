"""Finite-width kernels of every text model, averaged over seeds, against the closed form, with the time this takes.

    python benchmarks/bench_text_kernels.py                  # m = 1024, 48 seeds of every model
    python benchmarks/bench_text_kernels.py --slope          # m = 256, 1024, 4096 with 16 seeds of a few
    python benchmarks/bench_text_kernels.py --smoke          # two seeds at m = 64, nothing is written

Each seed's kernel is ``mf.ntk.empirical_ntk`` of all eight documents at once, in float32, one thread. Two variants that must not fit are
measured too: the closed form without the gradient of the embeddings, and without the feature that all tokens share. Appends to
``results/text_kernels.jsonl`` as each model is done; what the file has is not computed again.
"""

import argparse
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mechfeat.bench.harness import commit, write_rows
from mechfeat.bench.token_models import IDS, MODELS, build
from mechfeat.ntk import empirical_ntk
from mechfeat.ntk.analytic import AnalyticKernel, BagKernel, kernel_of

RESULTS = Path(__file__).parent / "results" / "text_kernels.jsonl"
SLOPE = ("bag relu", "cnn 3 relu", "attention value", "mixing attention relu", "linear rnn", "gated rnn erf")


@dataclass(frozen=True)
class TextKernelRow:
    """One model at one width: the mean kernel of its seeds against the closed form."""

    problem: str
    method: str
    width: int
    seeds: int
    documents: int
    relative_frobenius: float
    pearson: float
    single_seed_error: float  # mean over seeds
    without_embedding: float  # relative error of the closed form without that gradient: the embeddings' part, which must be seen
    without_mu: float | None  # and without the feature that all tokens share, where there is one
    seconds: float
    dtype: str
    threads: int
    torch: str
    commit: str
    date: str


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def without_embedding(kernel: AnalyticKernel) -> Tensor:
    return replace(kernel, init=replace(kernel.init, frozen=kernel.init.frozen | {"embedding"}))(IDS)


def without_mu(kernel: AnalyticKernel) -> Tensor | None:
    if not isinstance(kernel, BagKernel) or not kernel.mu:
        return None
    lengths = (IDS >= 0).sum(1).double()
    return kernel(IDS) - kernel.mu * lengths[:, None] * lengths


def measure(name: str, width: int, seeds: int) -> TextKernelRow:
    start, kernels = time.process_time(), []
    for seed in range(seeds):
        model = build(name, width, seed)
        kernels.append(empirical_ntk(model, IDS, outputs="trace").kernel.double())
    seconds = time.process_time() - start
    kernel = kernel_of(model)
    theta, mean = kernel(IDS), torch.stack(kernels).mean(0)
    shared = without_mu(kernel)
    return TextKernelRow(
        problem=name,
        method="mechfeat empirical_ntk, mean over seeds",
        width=width,
        seeds=seeds,
        documents=len(IDS),
        relative_frobenius=relative(mean, theta),
        pearson=float(torch.corrcoef(torch.stack([mean.flatten(), theta.flatten()]))[0, 1]),
        single_seed_error=sum(relative(K, theta) for K in kernels) / seeds,
        without_embedding=relative(mean, without_embedding(kernel)),
        without_mu=None if shared is None else relative(mean, shared),
        seconds=seconds,
        dtype="float32",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=commit(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def done(path: Path) -> set[tuple[str, int, int]]:
    if not path.exists():
        return set()
    return {(row["problem"], row["width"], row["seeds"]) for row in map(json.loads, path.read_text().splitlines())}


def run(cases: Sequence[tuple[str, int, int]], out: Path | None) -> None:
    known = done(out) if out else set()
    for case in cases:
        if case in known:
            continue
        row = measure(*case)
        others = f"without embedding {row.without_embedding:.3f}" + (f", without mu {row.without_mu:.3f}" if row.without_mu else "")
        print(
            f"{row.problem:34s} m {row.width:5d} seeds {row.seeds:3d}  rel. F {row.relative_frobenius:.4f}  r {row.pearson:.6f}"
            f"  one seed {row.single_seed_error:.4f}  {others}  {row.seconds:.1f} s",
            flush=True,
        )
        if out:
            write_rows([row], out)


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=None, choices=MODELS)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--slope", action="store_true", help="three widths with 16 seeds")
    parser.add_argument("--smoke", action="store_true", help="two seeds at m = 64, nothing is written")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.smoke:
        run([(name, 64, 2) for name in MODELS], None)
    elif args.slope:
        run([(name, m, 16) for name in args.models or SLOPE for m in (256, 1024, 4096)], args.out)
    else:
        run([(name, args.width, args.seeds) for name in args.models or MODELS], args.out)


if __name__ == "__main__":
    main()
