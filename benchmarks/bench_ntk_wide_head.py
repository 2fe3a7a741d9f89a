"""The trace over all outputs of a language-model head: time, memory, and error against a float64 run of the same sums.

    python benchmarks/bench_ntk_wide_head.py

A GPT-2-shaped decoder of width 256 with four blocks and 50,257 outputs, on 16 texts of 64 tokens, one thread. The peak is that of a fresh
process, beside the model. Appends to ``results/ntk_wide_head.jsonl``.
"""

import argparse
import contextlib
import datetime
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mechfeat.bench.harness import commit, write_rows
from mechfeat.bench.memory import high_water
from mechfeat.bench.workloads import Decoder
from mechfeat.ntk import empirical_ntk

RESULTS = Path(__file__).parent / "results" / "ntk_wide_head.jsonl"


@dataclass(frozen=True)
class WideHeadRow:
    """One run: process seconds, bytes beside the model, and the largest error relative to the largest entry."""

    outputs: int
    samples: int
    positions: int
    width: int
    seconds: float
    peak_bytes: int | None
    error: float
    dtype: str
    threads: int
    torch: str
    commit: str
    date: str


def build(outputs: int, samples: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """The model and its texts."""
    torch.manual_seed(0)
    net = Decoder(n_blocks=4, n_vocab=outputs, n_outputs=outputs).eval().to(dtype)
    return net, torch.randint(0, outputs, (samples, 64))


def run(outputs: int, samples: int, dtype: torch.dtype, prove: str) -> tuple[Tensor, float, int | None]:
    """The kernel, its process seconds, and bytes beside the model."""
    net, x = build(outputs, samples, dtype)
    empirical_ntk(*build(300, 2, dtype), outputs="trace", prove="never")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before, start = high_water(), time.process_time()
    kernel = empirical_ntk(net, x, outputs="trace", prove=prove).kernel
    seconds, after = time.process_time() - start, high_water()
    return kernel, seconds, None if before is None or after is None else after - before


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=int, default=50257)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.save is not None:
        kernel, seconds, peak = run(args.outputs, args.samples, torch.float32, "never")
        torch.save((kernel, seconds, peak), args.save)
        return
    file = args.out.with_suffix(".tmp.pt")
    command = [sys.executable, __file__, "--outputs", str(args.outputs), "--samples", str(args.samples), "--save", str(file)]
    subprocess.run(command, check=True)
    have, seconds, peak = torch.load(file)
    file.unlink()
    want, _, _ = run(args.outputs, args.samples, torch.float64, "never")
    error = float((have.double() - want).abs().max() / want.abs().max())
    row = WideHeadRow(
        args.outputs,
        args.samples,
        64,
        256,
        seconds,
        peak,
        error,
        "float32",
        torch.get_num_threads(),
        torch.__version__,
        commit(),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    print(f"{seconds:.1f} s, peak {'–' if peak is None else f'{peak / 2**20:.0f} MiB'} beside the model, error {error:.1e}")
    write_rows([row], args.out)


if __name__ == "__main__":
    main()
