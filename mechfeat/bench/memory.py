"""Peak memory of one method on one problem: ``python -m mechfeat.bench.memory PROBLEM METHOD THREADS`` prints bytes."""

import sys
from pathlib import Path

import torch

from mechfeat.bench.methods import METHODS
from mechfeat.bench.problems import PROBLEMS


def high_water() -> int | None:
    """Resident high-water mark of this process in bytes, where the system tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def main(problem: str, method: str, threads: int) -> str:
    """Run the method once, after it has run on a tiny problem.

    Args:
        problem: Name of a problem.
        method: Name of a method.
        threads: Threads for torch.

    Returns:
        Bytes beyond the loaded model, or ``unknown``.
    """
    torch.set_num_threads(threads)
    module, x = PROBLEMS[problem].build()
    with torch.no_grad():
        module(x[:2])
    # What a first call loads (half of it sympy, by torch's own autograd) belongs to no problem.
    METHODS[method].run(*PROBLEMS["mlp-16-32-4 n8"].build())
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to what is resident now
    except OSError:
        return "unknown"
    before = high_water()
    METHODS[method].run(module, x)
    after = high_water()
    return "unknown" if before is None or after is None else str(after - before)


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
