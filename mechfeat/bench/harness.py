"""Verify, then time: every method against the oracle on the same input, then interleaved runs, then memory in fresh processes."""

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat.bench.methods import Method
from mechfeat.bench.oracles import ntk as oracle
from mechfeat.bench.problems import Problem
from mechfeat.errors import ProofError

LARGE = 200_000  # parameters beyond which a literal kernel of the whole batch takes minutes
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


@dataclass(frozen=True)
class Row:
    """One case: a method on a problem.

    Attributes:
        problem: Name of the problem.
        method: Name of the method.
        shape: Shape of the kernel.
        dtype: Dtype as text.
        device: Name of the device.
        threads: Threads torch used.
        median: Median seconds of a run.
        iqr: Interquartile range of the seconds.
        runs: Number of timed runs.
        peak_bytes: Growth of the resident high-water mark over the loaded model in a fresh process; None where unknown.
        error: Largest difference from the float64 oracle, relative to its largest entry; of large problems the first and the last four
            samples are compared.
        torch: Version of torch.
        commit: Commit of the code; ``unknown`` outside a checkout.
        date: UTC date and time.
    """

    problem: str
    method: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    threads: int
    median: float
    iqr: float
    runs: int
    peak_bytes: int | None
    error: float
    torch: str
    commit: str
    date: str


def compare(problem: Problem, methods: Sequence[Method], *, repeats: int = 7, memory: bool = True, progress: bool = False) -> list[Row]:
    """Verify and time methods on one problem.

    Args:
        problem: The problem.
        methods: The methods, run in turn within each repeat, so that noise of the machine falls on all alike.
        repeats: Timed runs of each method, after one warm-up.
        memory: Measure peak memory too, each method in a process of its own.
        progress: Show a progress bar.

    Returns:
        One row a method.

    Raises:
        ProofError: A method is wrong beyond rounding; nothing is timed then.
    """
    from tqdm.auto import tqdm

    module, x = problem.build()
    dtype = next(module.parameters()).dtype
    methods = [m for m in methods if problem.peers or not m.jacobian]
    exact, x64 = problem.build(torch.float64)
    large = len(x) > 64 or sum(p.numel() for p in module.parameters()) > LARGE
    few = sorted({*range(min(4, len(x))), *range(max(0, len(x) - 4), len(x))}) if large else list(range(len(x)))
    want = oracle_kernel(exact, x64[few])
    errors, shapes = {}, {}
    for m in methods:
        have = m.run(module, x)  # also the warm-up
        shapes[m.name] = tuple(have.shape)
        part, expect = _compared(have, want, m.reduce, few, len(x))
        errors[m.name] = float((part.double() - expect).abs().max() / expect.abs().max())
        del have
        if not errors[m.name] <= TOLERANCE[dtype]:
            raise ProofError([m.name], [errors[m.name]], f"It is not timed on {problem.name!r}: a wrong answer has no speed.")
    seconds: dict[str, list[float]] = {m.name: [] for m in methods}
    # Of one thread the process's own seconds, which other work on the machine does not lengthen.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in tqdm(range(repeats), desc=problem.name, unit="round", disable=not progress):
        for m in methods:
            start = clock()
            m.run(module, x)
            seconds[m.name].append(clock() - start)
    rows = []
    for m in methods:
        quartiles = statistics.quantiles(seconds[m.name], n=4) if repeats > 1 else [0.0, 0.0, 0.0]
        rows.append(
            Row(
                problem=problem.name,
                method=m.name,
                shape=shapes[m.name],
                dtype=str(dtype).removeprefix("torch."),
                device=f"{platform.machine()} CPU",
                threads=torch.get_num_threads(),
                median=statistics.median(seconds[m.name]),
                iqr=quartiles[2] - quartiles[0],
                runs=repeats,
                peak_bytes=peak_bytes(problem, m) if memory else None,
                error=errors[m.name],
                torch=torch.__version__,
                commit=commit(),
                date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        )
    return rows


def _compared(have: Tensor, want: Tensor, kind: str, few: list[int], n: int) -> tuple[Tensor, Tensor]:
    """What a method found for a few samples, and what the oracle did."""
    if kind == "halves":
        half = -(-n // 2)
        first, second = [i for i in few if i < half], [i - half for i in few if i >= half]
        return have[first][:, :, second], want[: len(first)][:, :, len(first) :]
    return have[few][:, :, few] if kind == "full" else have[few][:, few], reduced(want, kind)


def reduced(full: Tensor, kind: str) -> Tensor:
    """A reduction of a full kernel.

    Args:
        full: ``[n o m o]``.
        kind: ``full``, ``trace``, ``diagonal`` or ``pseudo``.

    Returns:
        The kernel that is left.
    """
    if kind == "pseudo":
        return full.sum((1, 3))
    diagonal = full.diagonal(dim1=1, dim2=3)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[kind]


def oracle_kernel(module: nn.Module, x: Tensor, chunk: int = 8) -> Tensor:
    """The oracle's kernel, in blocks of samples, so that its Jacobians fit in memory.

    Args:
        module: The model, in float64.
        x: A batch.
        chunk: Samples a block.

    Returns:
        ``[n o n o]``.
    """
    parts = x.split(chunk)
    blocks: dict[tuple[int, int], Tensor] = {}
    for i, a in enumerate(parts):
        J = oracle.jacobian(module, a)
        for j, b in enumerate(parts[: i + 1]):
            other = J if i == j else oracle.jacobian(module, b)
            blocks[i, j] = torch.stack([torch.einsum("nap,mbp->namb", J[name], other[name]) for name in J]).sum(0)
            blocks[j, i] = blocks[i, j].permute(2, 3, 0, 1)
    return torch.cat([torch.cat([blocks[i, j] for j in range(len(parts))], 2) for i in range(len(parts))])


def peak_bytes(problem: Problem, method: Method) -> int | None:
    """Peak memory of one run in a fresh process, beyond the loaded model.

    Args:
        problem: The problem.
        method: The method.

    Returns:
        Bytes; None where the system does not tell (only Linux does).
    """
    command = [sys.executable, "-m", "mechfeat.bench.memory", problem.name, method.name, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text = done.stdout.strip().splitlines()[-1]
    return None if text == "unknown" else int(text)


def write_rows(rows: Sequence[Any], path: str | Path) -> None:
    """Append rows to a file of JSON lines.

    Args:
        rows: The rows, dataclasses.
        path: The file; folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(asdict(row)) + "\n")


def table(rows: Sequence[Row]) -> str:
    """Rows as text, with ratios to the first.

    Args:
        rows: Rows of one problem.

    Returns:
        A table.
    """
    first = rows[0]
    cells = [("method", "median s", "iqr s", "× time", "peak MiB", "× memory", "error")]
    for r in rows:
        memory = "–" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.1f}"
        ratio = "–" if r.peak_bytes is None or not first.peak_bytes else f"{r.peak_bytes / first.peak_bytes:.1f}"
        cells.append((r.method, f"{r.median:.4f}", f"{r.iqr:.4f}", f"{r.median / first.median:.1f}", memory, ratio, f"{r.error:.0e}"))
    widths = [max(len(c[i]) for c in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells]
    return "\n".join([f"{first.problem}, {first.dtype}, {first.threads} threads, {first.runs} runs", *lines])


def commit() -> str:
    """The commit of this checkout.

    Returns:
        Its short hash; ``unknown`` where there is no git or no checkout.
    """
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or no checkout
        return "unknown"
