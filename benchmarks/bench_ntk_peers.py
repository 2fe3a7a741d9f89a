"""The empirical NTK against the structured derivatives of neural-tangents, on the problems of ``mechfeat.bench``.

    python benchmarks/bench_ntk_peers.py --python PEER/bin/python

``PEER`` is an environment with jax 0.4.25 and neural-tangents 0.6.5 (``benchmarks/peers/README.md``). Both get the same parameters and
inputs; both kernels must agree with the float64 oracle before anything is timed; runs take turns, one thread, process seconds. A problem
on which the peer dies is a row without time. Appends to ``results/ntk_peers.jsonl``.
"""

import argparse
import datetime
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mechfeat.bench import METHODS, PROBLEMS
from mechfeat.bench.harness import TOLERANCE, commit, oracle_kernel, peak_bytes, write_rows

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ntk_peers.jsonl"
KINDS = {
    "mlp-784-1024-1024-10 n32": "mlp-relu",
    "mlp-784-1024-1024-10 n256": "mlp-relu",
    "toy-16-128-128-1 n4096": "mlp-tanh",
    "vgg-like n64": "vgg",
    "resnet-18 n12": "resnet",
}


@dataclass(frozen=True)
class PeerRow:
    """One tool on one problem: process seconds, bytes beyond the model, largest relative error of eight samples; None where it failed."""

    problem: str
    method: str
    median: float | None
    iqr: float | None
    peak_bytes: int | None
    error: float | None
    failure: str
    runs: int
    dtype: str
    device: str
    threads: int
    versions: dict[str, str]
    commit: str
    date: str


class Peer:
    """A worker in another environment, asked line by line."""

    def __init__(self, python: str, path: Path) -> None:
        command = [python, str(HERE / "peers" / "neural_tangents_worker.py"), str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.answer()

    def answer(self) -> str:
        line = self.process.stdout.readline().strip()
        if not line:
            raise ChildProcessError(f"the peer ended with code {self.process.wait()}")
        return line

    def ask(self, request: str) -> str:
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(name: str, kind: str, python: str, runs: int) -> list[PeerRow]:
    """Verify both, then time them in turn."""
    problem = PROBLEMS[name]
    module, x = problem.build()
    few = [*range(4), *range(len(x) - 4, len(x))]  # of which the oracle's kernel is computed
    exact, x64 = problem.build(torch.float64)
    want = oracle_kernel(exact, x64[few])
    ours = METHODS["mechfeat"]
    errors = {"mechfeat": _error(ours.run(module, x), want, few)}
    seconds: dict[str, list[float]] = {"mechfeat": [], "neural-tangents structured": []}
    peaks: dict[str, int | None] = {"mechfeat": peak_bytes(problem, ours)}
    failure = ""
    with tempfile.TemporaryDirectory() as folder:
        values = {f"p{i:04d}": v.numpy() for i, v in enumerate(module.state_dict().values())}
        np.savez(Path(folder) / "problem.npz", kind=kind, x=x.numpy(), **values)
        peer = Peer(python, Path(folder) / "problem.npz")
        try:
            peaks["neural-tangents structured"] = int(peer.ask("peak structured"))
            peer.ask(f"save structured {folder}/theta.npy")
            errors["neural-tangents structured"] = _error(torch.from_numpy(np.load(f"{folder}/theta.npy")), want, few)
            for method, error in errors.items():
                if error > TOLERANCE[x.dtype]:
                    raise SystemExit(f"{method} is wrong by {error:g} on {name!r} and is not timed")
            for _ in range(runs):
                start = time.process_time()
                ours.run(module, x)
                seconds["mechfeat"].append(time.process_time() - start)
                seconds["neural-tangents structured"].append(float(peer.ask("time structured").split()[0]))
        except (ChildProcessError, BrokenPipeError) as e:
            failure = str(e)
        finally:
            peer.close()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    tools = {"torch": torch.__version__, "neural-tangents": "0.6.5", "jax": "0.4.25"}
    facts = (runs, "float32", f"{platform.machine()} CPU", torch.get_num_threads(), tools, commit(), now)
    rows = []
    for method, t in seconds.items():
        low, _, high = statistics.quantiles(t, n=4) if len(t) > 1 else (0.0, 0.0, 0.0)
        timed = (statistics.median(t), high - low) if t else (None, None)
        rows.append(PeerRow(name, method, *timed, peaks.get(method), errors.get(method), failure if not t else "", *facts))
    return rows


def _error(have: torch.Tensor, want: torch.Tensor, few: list[int]) -> float:
    return float((have[few][:, :, few].double() - want).abs().max() / want.abs().max())


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="of the environment with neural-tangents")
    parser.add_argument("--problem", action="append", choices=list(KINDS))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.problem or KINDS:
        rows = measure(name, KINDS[name], args.python, args.runs)
        for r in rows:
            text = f"{r.median:.4f} s ± {r.iqr:.4f}" if r.median is not None else f"failed: {r.failure}"
            peak = "–" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.0f} MiB"
            print(f"{name:28s} {r.method:28s} {text}  {peak}  error {r.error if r.error is None else format(r.error, '.0e')}")
        write_rows(rows, args.out)


if __name__ == "__main__":
    main()
