"""20,000 samples under a memory cap of 2 GB, and the largest eigenvalues without the kernel.

    python benchmarks/bench_ntk_capped.py

The trace kernel of a network of some 94,000 parameters, whose store alone is 1.6 GB; then the 20 largest eigenvalues of a kernel of 2,000
samples, by products alone, against those of the kernel itself. One thread, process seconds. Appends to ``results/ntk_capped.jsonl``.
"""

import argparse
import datetime
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mechfeat.bench.harness import commit, write_rows
from mechfeat.bench.memory import high_water
from mechfeat.models import mlp
from mechfeat.ntk import NTKOperator, empirical_ntk

RESULTS = Path(__file__).parent / "results" / "ntk_capped.jsonl"


@dataclass(frozen=True)
class CappedRow:
    """Bytes beyond the model and its input, seconds, and the largest relative errors: of a block of the kernel, and of 20 eigenvalues."""

    problem: str
    n: int
    cap_bytes: int
    kernel_bytes: int
    peak_bytes: int | None
    seconds: float
    error: float
    eigenvalues_of: int
    eigenvalues_error: float
    threads: int
    device: str
    torch: str
    commit: str
    date: str


def measure(n: int, cap: int, few: int) -> CappedRow:
    """Both parts, in a process that did nothing else."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = mlp([100, 256, 256, 10], nn.Tanh), torch.randn(n, 100)
    empirical_ntk(net, x[:64], outputs="trace")  # what a process loads once
    Path("/proc/self/clear_refs").write_text("5")
    before, start = high_water(), time.process_time()
    K = empirical_ntk(net, x, outputs="trace", max_memory=cap).kernel
    seconds, after = time.process_time() - start, high_water()
    rows, columns = torch.randint(0, n, (2, 25))
    want = empirical_ntk(net.double(), x[rows].double(), x[columns].double(), outputs="trace").kernel
    error = float((K[rows][:, columns].double() - want).abs().max() / want.abs().max())
    one, xs = mlp([100, 256, 256, 1], nn.Tanh).double(), x[:few].double()
    dense = torch.linalg.eigvalsh(empirical_ntk(one, xs).matrix()).flip(0)[:20]
    found = NTKOperator(one, xs).eigenvalues(20, generator=torch.Generator().manual_seed(0)).values
    return CappedRow(
        problem=f"mlp-100-256-256-10 n{n}, trace",
        n=n,
        cap_bytes=cap,
        kernel_bytes=K.numel() * K.element_size(),
        peak_bytes=None if before is None or after is None else after - before,
        seconds=seconds,
        error=error,
        eigenvalues_of=few,
        eigenvalues_error=float(((found - dense) / dense).abs().max()),
        threads=1,
        device=f"{platform.machine()} CPU",
        torch=torch.__version__,
        commit=commit(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--cap", type=int, default=2_000_000_000, help="bytes")
    parser.add_argument("--eigenvalues-of", type=int, default=2000, help="samples")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    row = measure(args.samples, args.cap, args.eigenvalues_of)
    print(row)
    write_rows([row], args.out)


if __name__ == "__main__":
    main()
