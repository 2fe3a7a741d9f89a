"""A thousand toy models at once against one at a time: microseconds of one step of one model.

    python benchmarks/bench_toy_bank.py [--smoke]

Methods: ``bank closed`` and ``bank autograd`` are ``mf.superposition.fit`` on many instances; ``single loop`` is a ``ToyBank`` of one
instance under autograd and ``torch.optim``, with tensors and no loader; ``single fit`` and ``single fit autograd`` are ``fit`` on that
bank; ``loader loop`` is one ``nn.Module`` with a ``DataLoader``, ``MSELoss``, a scheduler step and ``.item()`` at every step, as
experiments with such models are commonly written. Every method is compared with the oracle before anything is timed; runs take turns;
one thread, process seconds. Appends to ``results/toy_bank.jsonl``.
"""

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mechfeat.bench.harness import commit, write_rows
from mechfeat.bench.oracles import toy_training as oracle
from mechfeat.data import OneHot, SparseUniform, ToyData, identity
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Record, fit
from mechfeat.superposition.training.batches import Sampled

RESULTS = Path(__file__).parent / "results" / "toy_bank.jsonl"
LR = 0.001
RECORD = Record(2, 2)
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


@dataclass(frozen=True)
class Problem:
    """Sizes; ``batch`` is None for all one-hot inputs."""

    n: int
    m: int
    batch: int | None
    instances: int
    optimizer: str
    out_bias: bool = True

    @property
    def name(self) -> str:
        inputs = "one-hot" if self.batch is None else f"sparse B={self.batch}"
        return f"{inputs} n={self.n} m={self.m} {self.optimizer}" + ("" if self.out_bias else " no bias")

    @property
    def spec(self) -> ToySpec:
        return ToySpec(self.n, self.m, out_bias=self.out_bias)

    @property
    def data(self) -> ToyData:
        return OneHot(self.n) if self.batch is None else SparseUniform(self.n, density=0.05)


@dataclass(frozen=True)
class ToyBankRow:
    """One method on one problem: median seconds of one step of one model."""

    problem: str
    method: str
    instances: int
    steps: int
    seconds: float
    iqr: float
    runs: int
    error: float | None
    dtype: str
    threads: int
    device: str
    torch: str
    commit: str
    date: str


def by_fit(problem: Problem, instances: int, gradients: str, steps: int) -> ToyBank:
    """Train by the library."""
    bank = ToyBank(problem.spec, instances)
    options = {"batch": problem.batch, "optimizer": problem.optimizer, "gradients": gradients, "record": RECORD}
    fit(bank, problem.data, steps=steps, lr=LR, **options)
    return bank


def by_loop(problem: Problem, steps: int, batches: Callable[[int], Tensor] | None = None) -> ToyBank:
    """Train one instance by torch, the data as a tensor."""
    bank, data = ToyBank(problem.spec, 1), problem.data
    optimiser = OPTIMIZERS[problem.optimizer](bank.parameters(), lr=LR)
    generator, x = torch.Generator().manual_seed(0), torch.eye(problem.n)
    for t in range(steps):
        if problem.batch is not None:
            x = data.sample(generator, problem.batch) if batches is None else batches(t)
        loss = (bank(x) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return bank


class Linears(nn.Module):
    """The same model with ``nn.Linear``, as a user would write it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        bank = ToyBank(problem.spec, 1)
        self.embedding = nn.Linear(problem.n, problem.m, bias=False)
        self.embedding.weight.data = bank.W.detach()[0].T.clone()
        self.bias = nn.Parameter(bank.b.detach()[0].clone()) if problem.out_bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.linear(self.embedding(x), self.embedding.weight.T, self.bias)
        return torch.relu(out)


def by_loader(problem: Problem, steps: int) -> Linears:
    """Train one model from a loader, with a scheduler and the loss read at each step."""
    model, data = Linears(problem), problem.data
    rows = torch.eye(problem.n) if problem.batch is None else data.sample(torch.Generator().manual_seed(0), 16 * problem.batch)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, rows), batch_size=problem.batch or problem.n, shuffle=True)
    optimiser = OPTIMIZERS[problem.optimizer](model.parameters(), lr=LR)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: 1.0)
    criterion, losses, t = nn.MSELoss(), [], 0
    while t < steps:
        for x, y in loader:
            optimiser.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimiser.step()
            scheduler.step()
            losses.append(loss.item())
            t += 1
            if t == steps:
                break
    return model


def cpu() -> str:
    """The model of the processor, where the system says it; else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} CPU"


METHODS: dict[str, Callable[[Problem, int], tuple[int, object]]] = {
    "bank closed": lambda p, steps: (p.instances, by_fit(p, p.instances, "closed", steps)),
    "bank autograd": lambda p, steps: (p.instances, by_fit(p, p.instances, "autograd", steps)),
    "single loop": lambda p, steps: (1, by_loop(p, steps)),
    "single fit": lambda p, steps: (1, by_fit(p, 1, "closed", steps)),
    "single fit autograd": lambda p, steps: (1, by_fit(p, 1, "autograd", steps)),
    "loader loop": lambda p, steps: (1, by_loader(p, steps)),
}


def error_of(problem: Problem, method: str, steps: int = 20) -> float | None:
    """Largest difference of instance 0's weights from the oracle after some steps; None for a loader's own order of samples."""
    start = ToyBank(problem.spec, 1)
    model = oracle.SingleToy({name: p[0] for name, p in start.named_parameters()})
    stream = None if problem.batch is None else Sampled(problem.data, identity(), (0,), 0, problem.batch, start.W)

    def batch(t: int) -> Tensor:
        return torch.eye(problem.n) if stream is None else stream(t).x[0]

    oracle.train(model, lambda t: (batch(t), batch(t)), steps=steps, lr=lambda t: LR, optimizer=problem.optimizer)
    if method == "loader loop":
        if problem.batch is not None:
            return None
        return float((by_loader(problem, steps).embedding.weight.detach().T - model.values["W"].detach()).abs().max())
    bank = by_loop(problem, steps, batch) if method == "single loop" else METHODS[method](problem, steps)[1]
    return float((bank.W.detach()[0] - model.values["W"].detach()).abs().max())


def measure(problem: Problem, runs: int, seconds: float) -> list[ToyBankRow]:
    """Verify, then time in turn."""
    errors = {method: error_of(problem, method) for method in METHODS}
    wrong = {method: e for method, e in errors.items() if e is not None and not e <= 1e-5}
    if wrong:
        raise SystemExit(f"{problem.name}: {wrong} away from the oracle; nothing is timed")
    steps = {}
    for method, run in METHODS.items():
        start = time.process_time()
        run(problem, 3)
        steps[method] = max(3, min(5000, int(3 * seconds / max(time.process_time() - start, 1e-4))))
        start = time.process_time()  # once more: the first call pays for what is set up once
        run(problem, steps[method])
        steps[method] = max(3, min(20_000, int(steps[method] * seconds / max(time.process_time() - start, 1e-4))))
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    counts: dict[str, int] = {}
    for _ in range(runs):
        for method, run in METHODS.items():
            start = time.process_time()
            counts[method], _ = run(problem, steps[method])
            found[method].append((time.process_time() - start) / (counts[method] * steps[method]))
    rows = []
    for method, times in found.items():
        quartiles = statistics.quantiles(times, n=4) if runs > 1 else [0.0] * 3
        rows.append(
            ToyBankRow(
                problem.name,
                method,
                counts[method],
                steps[method],
                statistics.median(times),
                quartiles[2] - quartiles[0],
                runs,
                errors[method],
                str(torch.get_default_dtype()).removeprefix("torch."),
                torch.get_num_threads(),
                cpu(),
                torch.__version__,
                commit(),
                datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        )
    return rows


def problems(smoke: bool) -> list[Problem]:
    """What is measured."""
    if smoke:
        return [Problem(5, 2, None, 50, "sgd"), Problem(5, 2, 16, 20, "adam")]
    one_hot = [
        Problem(n, m, None, 1000, optimizer, bias)
        for n, m in ((5, 2), (20, 2), (40, 2), (100, 10))
        for optimizer, bias in (("sgd", True), ("adam", True), ("sgd", False))
    ]
    sparse = [(5, 2, 64, 1000), (5, 2, 1024, 100), (20, 5, 256, 100), (100, 20, 1024, 30)]
    return one_hot + [Problem(n, m, batch, instances, "adam") for n, m, batch, instances in sparse]


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one run of one method")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--smoke", action="store_true", help="small problems, few steps, nothing written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu()}, 1 thread, {torch.get_default_dtype()}, torch {torch.__version__}")
    for problem in problems(args.smoke):
        if args.only not in problem.name:
            continue
        rows = measure(problem, 2 if args.smoke else args.runs, 0.02 if args.smoke else args.seconds)
        base = next(r.seconds for r in rows if r.method == "single loop")
        print(problem.name)
        for r in rows:
            print(
                f"  {r.method:20s} {r.seconds * 1e6:9.2f} µs ± {r.iqr * 1e6:.2f}   {base / r.seconds:8.1f}x of the single loop", flush=True
            )
        if not args.smoke:
            write_rows(rows, args.out)


if __name__ == "__main__":
    main()
