"""Small models of the FeatureFinding notebooks: softmax outputs, half batches, the two-dimensional models with bias or untied."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from mechfeat.data import OneHot
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import GREEDY_ANGLE, Record, Run, Schedule, count_directions, cross_entropy, fit, k_eff
from toy_checks.case import Case


def _softmax(spec: ToySpec, seeds: list[int], k: int, steps: int, lr: Schedule) -> dict[str, Any]:
    run = fit(
        ToyBank(spec, seeds=seeds), OneHot(spec.n_features, k), steps=steps, lr=lr, loss=cross_entropy(), record=Record(1, 3), progress=True
    )
    found: dict[str, Any] = {"loss": run.final_loss.tolist(), "loss_before": run.losses[0].tolist()}
    bank = run.bank()
    if k == 1:
        with torch.no_grad():
            out = bank(torch.eye(spec.n_features))
        right = out.argmax(-1) == torch.arange(spec.n_features)
        found["top1"] = right.double().mean(-1).tolist()
    if spec.out_bias:
        w, b = bank.W.detach().double().square().sum(-1), bank.b.detach().double()
        found["corr_norm_bias"] = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(w, b)]
    return found


def softmax(smoke: bool) -> Iterator[Case]:
    """Check 10: a softmax reads features that differ in length alone, if it has a bias or an unembedding of its own."""
    part = 1 if not smoke else 1000
    rates = Schedule(0.2, 0.8, 0.2)
    bare = Schedule(0.005, 2.0, 0.1)
    linear = {"activation": "identity"}
    plan = [
        ("a: f=20 m=1", ToySpec(20, 1, **linear), 1, 100_000, rates),
        ("b: f=20 m=1, two active", ToySpec(20, 1, **linear), 2, 50_000, rates),
        ("c: f=50 m=2", ToySpec(50, 2, **linear), 1, 50_000, rates),
        ("tied without bias: f=40 m=2", ToySpec(40, 2, out_bias=False, **linear), 1, 30_000, bare),
        ("untied without bias: f=40 m=2", ToySpec(40, 2, out_bias=False, tied=False, **linear), 1, 30_000, bare),
    ]
    for name, spec, k, steps, lr in plan:
        seeds = [12, 1, 2, 3]
        settings = {"seeds": seeds, "steps": steps, "lr": [lr.base, lr.peak, lr.final]}
        yield Case(name, settings, lambda spec=spec, k=k, steps=steps, lr=lr: _softmax(spec, [12, 1, 2, 3], k, steps // part, lr))


def batches(smoke: bool) -> Iterator[Case]:
    """Check 9: half batches reach a lower loss at large steps, and not at small ones."""
    epochs = 40_000 if not smoke else 40
    scheduled = 300_000 if not smoke else 300
    for peak, final in ((20.0, 4.0), (4.0, 1.0)):
        for batch in (None, 20):

            def compute(peak: float = peak, final: float = final, batch: int | None = batch) -> dict[str, Any]:
                per = 1 if batch is None else 2
                bank = ToyBank(ToySpec(40, 2, shift=1.0), 16)
                lr = Schedule(0.001, peak, final, steps=scheduled * per)
                run = fit(bank, OneHot(40), steps=epochs * per, lr=lr, batch=batch, record=Record(1, 1), progress=True)
                with torch.no_grad():
                    found = (run.bank()(torch.eye(40)) - torch.eye(40)).double().square().mean((-2, -1))
                return {
                    "loss": found.tolist(),
                    "median": float(found.median()),
                    "directions": count_directions(run.weights[-1].double(), GREEDY_ANGLE, rule="greedy", min_norm=0.1).tolist(),
                }

            kind = "full batch" if batch is None else "half batches"
            yield Case(f"{kind}, lr {peak:g}", {"f": 40, "m": 2, "seeds": "0-15", "epochs": 40_000, "lr": [0.001, peak, final]}, compute)


def plateaus(run: Run) -> list[float]:
    """k_eff of each instance, in float64, at the end."""
    bank = run.bank().double()
    eye = torch.eye(run.spec.n_features, dtype=torch.float64)
    with torch.no_grad():
        return k_eff((bank(eye) - eye).square().mean((-2, -1)), run.spec.n_features).tolist()


def notebooks(smoke: bool) -> Iterator[Case]:
    """The notebooks 2d-bias (and the ledger on its plateaus, check 4) and 2d-untied-nobias."""
    part = 1 if not smoke else 1000

    def with_bias() -> dict[str, Any]:
        steps = 250_000 // part
        bank = ToyBank(ToySpec(40, 2, tied=False), seeds=[12, 1, 2, 3])
        run = fit(bank, OneHot(40), steps=steps, lr=Schedule(0.001, 5.0, 2.0), record=Record(200, 200), progress=True)
        represented = []
        for frame in range(len(run.steps)):
            with torch.no_grad():
                represented.append((run.bank(frame)(torch.eye(40)).diagonal(dim1=-2, dim2=-1) > 0.5).sum(-1).tolist())
        falls = [sum(b[i] < a[i] for a, b in itertools.pairwise(represented)) for i in range(4)]
        return {"k_eff": plateaus(run), "loss": run.final_loss.tolist(), "represented": represented[-1], "falls_of_the_count": falls}

    yield Case("2d-bias", {"f": 40, "m": 2, "seeds": [12, 1, 2, 3], "steps": 250_000, "lr": [0.001, 5.0, 2.0]}, with_bias)

    def untied(f: int, m: int, steps: int, lr: Schedule) -> dict[str, Any]:
        run = fit(
            ToyBank(ToySpec(f, m, tied=False, out_bias=False), seeds=range(15)),
            OneHot(f),
            steps=steps // part,
            lr=lr,
            record=Record(1, 1),
            progress=True,
        )
        best = run.best()
        return {"k_eff": plateaus(run), "best": plateaus(best)[0]}

    yield Case(
        "2d-untied-nobias f=6",
        {"f": 6, "m": 2, "seeds": "0-14", "steps": 20_000, "lr": [0.02, 0.08, 0.02]},
        lambda: untied(6, 2, 20_000, Schedule(0.02, 0.08, 0.02)),
    )
    yield Case(
        "2d-untied-nobias f=40 m=3",
        {"f": 40, "m": 3, "seeds": "0-14", "steps": 50_000, "lr": [0.1, 2.0, 0.5]},
        lambda: untied(40, 3, 50_000, Schedule(0.1, 2.0, 0.5)),
    )
