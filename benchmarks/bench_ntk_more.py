"""More rows of the empirical NTK: two batches, growing batches, all threads, products with vectors, and nngeometry.

    python benchmarks/bench_ntk_more.py two sweep products threads
    PEER/bin/python benchmarks/bench_ntk_more.py nngeometry

``PEER`` is an environment with nngeometry (``benchmarks/peers/README.md``). Every method is compared with a float64 oracle before it is
timed, and methods take turns. Appends to ``results/ntk_more.jsonl``.
"""

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mechfeat.bench import METHODS, PROBLEMS, compare, write_rows
from mechfeat.bench.harness import table
from mechfeat.bench.methods import Method, jacobian_contraction, ntk_vector_products
from mechfeat.bench.problems import Problem
from mechfeat.models import mlp
from mechfeat.ntk import empirical_ntk

RESULTS = Path(__file__).parent / "results" / "ntk_more.jsonl"
OURS, TORCH = METHODS["mechfeat"], METHODS["torch.func jacobian contraction"]
FIVE = (
    "mlp-784-1024-1024-10 n32",
    "toy-16-128-128-1 n4096",
    "vgg-like n64",
    "resnet-18 n12",
    "transformer-256 n32",
)


def _ours_between(module: nn.Module, x: Tensor) -> Tensor:
    return empirical_ntk(module, *x.chunk(2)).kernel


def _theirs_between(module: nn.Module, x: Tensor) -> Tensor:
    return jacobian_contraction(module, *x.chunk(2))


def two() -> list[tuple[Problem, list[Method]]]:
    """The first half of a batch against the second."""
    methods = [Method("mechfeat, two batches", _ours_between, "halves"), Method("torch.func, two batches", _theirs_between, "halves", True)]
    return [(PROBLEMS[name], methods) for name in ("mlp-784-1024-1024-10 n32", "vgg-like n64", "resnet-18 n12", "transformer-256 n32")]


def sweep() -> list[tuple[Problem, list[Method]]]:
    """One network, batches of 8 to 512."""
    return [(Problem(f"mlp-784-1024-1024-10 n{n}", partial(_mlp, n), peers=n <= 64), [OURS, TORCH]) for n in (8, 16, 32, 64, 128, 256, 512)]


def _mlp(n: int) -> tuple[nn.Module, Tensor]:
    return mlp([784, 1024, 1024, 10]), torch.randn(n, 784)


def products() -> list[tuple[Problem, list[Method]]]:
    """Against products of the kernel with unit vectors."""
    method = Method("torch.func ntk-vector products", ntk_vector_products, jacobian=True)
    return [(PROBLEMS[name], [OURS, method]) for name in ("mlp-784-1024-1024-10 n32", "digits-cnn n64")]


def threads() -> list[tuple[Problem, list[Method]]]:
    """All threads of the machine, wall-clock seconds."""
    return [(PROBLEMS[name], [OURS, TORCH]) for name in FIVE]


def nngeometry() -> list[tuple[Problem, list[Method]]]:
    """The dense Gram matrix of nngeometry."""
    method = Method("nngeometry dense Gram matrix", _nngeometry, jacobian=True)
    names = ("mlp-784-1024-1024-10 n32", "toy-16-128-128-1 n4096", "vgg-like n64")
    return [(PROBLEMS[name], [OURS, method]) for name in names]


def _nngeometry(module: nn.Module, x: Tensor) -> Tensor:
    from nngeometry.gram import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x), batch_size=len(x))
    return GramMatrix(module, loader, function=lambda *d: module(d[0])).data.permute(1, 0, 3, 2)  # outputs are outermost there


SECTIONS = {f.__name__: f for f in (two, sweep, products, threads, nngeometry)}


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for section in args.section:
        torch.set_num_threads((os.cpu_count() or 1) if section == "threads" else 1)
        for problem, methods in SECTIONS[section]():
            here = problem.name in PROBLEMS and section != "two"
            rows = compare(problem, methods, repeats=args.repeats, memory=here and section in ("threads",), progress=False)
            print(table(rows), end="\n\n", flush=True)
            write_rows([replace(r, problem=f"{r.problem}, {section}") for r in rows], args.out)


if __name__ == "__main__":
    main()
