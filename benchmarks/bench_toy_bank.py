"""A thousand toy models at once against one at a time: microseconds of one step of one model.

    python benchmarks/bench_toy_bank.py [--smoke] [--device cuda]

Methods: ``bank closed`` and ``bank autograd`` are ``mf.superposition.fit`` on many instances; ``single loop`` is a ``ToyBank`` of one
instance under autograd and ``torch.optim``, with tensors and no loader; ``single fit`` and ``single fit autograd`` are ``fit`` on that
bank; ``loader loop`` is one ``nn.Module`` with a ``DataLoader``, ``MSELoss``, a scheduler step and ``.item()`` at every step, as
experiments with such models are commonly written. Every method is compared with the oracle before anything is timed; runs take turns;
one thread, process seconds. Appends to ``results/toy_bank.jsonl``. With ``--device cuda`` models and data are on the GPU, times are wall
seconds between synchronisations, and rows go to ``results/toy_bank_cuda.jsonl``.
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

RESULTS = Path(__file__).parent / "results"
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
    device: str = "cpu"

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
    bank = ToyBank(problem.spec, instances, device=problem.device)
    options = {"batch": problem.batch, "optimizer": problem.optimizer, "gradients": gradients, "record": RECORD}
    fit(bank, problem.data, steps=steps, lr=LR, **options)
    return bank


def by_loop(problem: Problem, steps: int, batches: Callable[[int], Tensor] | None = None) -> ToyBank:
    """Train one instance by torch, the data as a tensor."""
    bank, data = ToyBank(problem.spec, 1, device=problem.device), problem.data
    optimiser = OPTIMIZERS[problem.optimizer](bank.parameters(), lr=LR)
    generator, x = torch.Generator(problem.device).manual_seed(0), torch.eye(problem.n, device=problem.device)
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
    model, data, generator = Linears(problem).to(problem.device), problem.data, torch.Generator(problem.device).manual_seed(0)
    rows = torch.eye(problem.n, device=problem.device) if problem.batch is None else data.sample(generator, 16 * problem.batch)
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


def clock(device: str) -> float:
    """Process seconds; on a GPU wall seconds, once it has done what it was given."""
    if torch.device(device).type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def name_of(device: str) -> str:
    """The model of the GPU, or of the processor where the system says it; else its architecture."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
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
    start = ToyBank(problem.spec, 1, device=problem.device)
    model = oracle.SingleToy({name: p[0] for name, p in start.named_parameters()})
    stream = None if problem.batch is None else Sampled(problem.data, identity(), (0,), 0, problem.batch, start.W)

    def batch(t: int) -> Tensor:
        return torch.eye(problem.n, device=problem.device) if stream is None else stream(t).x[0]

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
        start = clock(problem.device)
        run(problem, 3)
        steps[method] = max(3, min(5000, int(3 * seconds / max(clock(problem.device) - start, 1e-4))))
        start = clock(problem.device)  # once more: the first call pays for what is set up once
        run(problem, steps[method])
        steps[method] = max(3, min(20_000, int(steps[method] * seconds / max(clock(problem.device) - start, 1e-4))))
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    counts: dict[str, int] = {}
    for _ in range(runs):
        for method, run in METHODS.items():
            start = clock(problem.device)
            counts[method], _ = run(problem, steps[method])
            found[method].append((clock(problem.device) - start) / (counts[method] * steps[method]))
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
                name_of(problem.device),
                torch.__version__,
                commit(),
                datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        )
    return rows


def problems(smoke: bool, device: str) -> list[Problem]:
    """What is measured."""
    if smoke:
        return [Problem(5, 2, None, 50, "sgd", device=device), Problem(5, 2, 16, 20, "adam", device=device)]
    one_hot = [
        Problem(n, m, None, 1000, optimizer, bias, device)
        for n, m in ((5, 2), (20, 2), (40, 2), (100, 10))
        for optimizer, bias in (("sgd", True), ("adam", True), ("sgd", False))
    ]
    sparse = [(5, 2, 64, 1000), (5, 2, 1024, 100), (20, 5, 256, 100), (100, 20, 1024, 30)]
    return one_hot + [Problem(n, m, batch, instances, "adam", device=device) for n, m, batch, instances in sparse]


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one run of one method")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--smoke", action="store_true", help="small problems, few steps; nothing is written unless --out says where")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or (None if args.smoke else RESULTS / ("toy_bank.jsonl" if args.device == "cpu" else "toy_bank_cuda.jsonl"))
    print(f"{name_of(args.device)}, 1 thread, {torch.get_default_dtype()}, torch {torch.__version__}")
    for problem in problems(args.smoke, args.device):
        if args.only not in problem.name:
            continue
        rows = measure(problem, 2 if args.smoke else args.runs, 0.02 if args.smoke else args.seconds)
        base = next(r.seconds for r in rows if r.method == "single loop")
        print(problem.name)
        for r in rows:
            print(
                f"  {r.method:20s} {r.seconds * 1e6:9.2f} µs ± {r.iqr * 1e6:.2f}   {base / r.seconds:8.1f}x of the single loop", flush=True
            )
        if out is not None:
            write_rows(rows, out)


if __name__ == "__main__":
    main()
