"""Further results of *Toy Models of Superposition* and after: one odd feature, many absolute values, a privileged basis, power laws."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from mechfeat.data import PowerLaw, SparseUniform, absolute
from mechfeat.models import ToySpec
from mechfeat.superposition import (
    Optimizer,
    Record,
    Schedule,
    feature_graph,
    fit,
    grid,
    mean_squared_overlap,
    monosemantic,
    mse,
)
from toy_checks.case import Case

ANNEALED = Schedule(0.01, 0.01, 0.0, warmup=0.0, decay="cosine")
RATIOS = (0.15, 0.2, 0.22, 0.25, 0.27, 0.3, 0.33, 0.36, 0.4, 0.45, 0.6, 1.0)
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.15, 0.12, 0.08, 0.04)


def odd_feature(smoke: bool, max_active: int, points: int) -> dict[str, Any]:
    """Five features in two dimensions, one of them rarer than the others: the arrangement of the best of twelve, without noise."""
    bank = grid(ToySpec(5, 2), over={"ratio": RATIOS, "seed": range(12)}, init="xavier", dtype=torch.float64)
    density = torch.full((len(bank), 5), 0.05, dtype=torch.float64)
    density[:, 0] *= bank.along("ratio")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of the list of inputs
    data = SparseUniform(5, density=density).expectation(max_active=max_active, points=points)
    torch.set_default_dtype(before)
    options = {"optimizer": "adam", "record": Record(1, 1), "progress": True}
    run = fit(bank, data, steps=4000 if not smoke else 10, lr=ANNEALED, **options)
    best = run.best()
    W, b = best.weights[-1], best.parameters["b"][-1]
    found = [feature_graph(w, min_norm=0.2).summary() for w in W]
    pairs = [r for r, name in zip(RATIOS, found) if "digon" in name]
    return {
        "ratios": list(RATIOS),
        "arrangements": found,
        "largest_ratio_with_digons": max(pairs, default=None),
        "smallest_ratio_without_digons": min((r for r, name in zip(RATIOS, found) if "digon" not in name), default=None),
        "norms_at_1": W[-1].norm(dim=-1).tolist(),
        "bias_at_1": b[-1].tolist(),
        "dropped": data.dropped,
    }


def absolute_values(smoke: bool) -> dict[str, Any]:
    """A hundred absolute values by forty neurons, of falling importance: a neuron is one feature's where features are dense."""
    densities = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    spec = ToySpec(100, 40, tied=False, hidden_activation="relu")
    bank = grid(spec, over={"density": densities}, init="xavier")
    data = SparseUniform(100, density=bank.along("density"), low=-1.0)
    importance = 0.8 ** torch.arange(100)
    options = {"batch": 1024, "optimizer": "adamw", "record": Record(1, 1), "loss": mse(importance), "progress": True}
    rate = Schedule(0.003, 0.003, 0.0, warmup=0.0, decay="cosine")
    run = fit(bank, data, task=absolute(), steps=10_000 if not smoke else 3, lr=rate, **options)
    W = run.weights[-1]
    alive = W.norm(dim=-2) > 0.1 * W.norm(dim=-2).amax(-1, keepdim=True)
    single = [int(monosemantic(w[:, a])) for w, a in zip(W, alive)]
    return {"densities": list(densities), "neurons": alive.sum(-1).tolist(), "monosemantic": single}


def privileged(density: float, smoke: bool, models: int = 1000) -> dict[str, Any]:
    """Ten features by five neurons: monosemantic neurons of the best of a thousand models."""
    bank = grid(ToySpec(10, 5, hidden_activation="relu"), over={"seed": range(models if not smoke else 3)}, init="xavier")
    importance = 0.75 ** torch.arange(10)
    data = SparseUniform(10, density=density)
    options = {"batch": 256, "optimizer": "adam", "record": Record(1, 1), "loss": mse(importance), "progress": True}
    run = fit(bank, data, steps=3000 if not smoke else 3, lr=ANNEALED, **options)
    x = data.sample(torch.Generator().manual_seed(99), 50_000)
    trained, losses = run.bank(), []
    with torch.no_grad():
        for first in range(0, len(trained), 20):
            error = trained[first : first + 20](x) - x
            losses.append((error.square() * importance).mean((-2, -1)))
    loss = torch.cat(losses)
    W = run.weights[-1]
    alive = W.norm(dim=-2) > 0.1
    counts = torch.tensor([int(monosemantic(w[:, a])) if bool(a.any()) else 0 for w, a in zip(W, alive)])
    return {
        "monosemantic_of_best": int(counts[loss.argmin()]),
        "monosemantic_of_best_ten": counts[loss.argsort()[:10]].tolist(),
        "models_by_count": torch.bincount(counts, minlength=6).tolist(),
        "loss_of_best": float(loss.min()),
        "median_loss": float(loss.median()),
    }


def power_law(strong: bool, smoke: bool) -> dict[str, Any]:
    """Loss against dimensions: all features at length 1, or as many as a decay of the weights leaves."""
    n, dimensions = 1000, (5, 7, 10, 14, 20)
    losses, overlaps, represented = [], [], []
    for m in dimensions:
        bank = grid(ToySpec(n, m, unit_norm=strong), over={"seed": [0]}, init="xavier")
        data = PowerLaw(n, alpha=1.0, active=1.0)
        optimizer = Optimizer("adamw", weight_decay=0.0 if strong else 1.0)
        options = {"batch": 512, "optimizer": optimizer, "record": Record(1, 1), "progress": True}
        run = fit(bank, data, steps=2000 if not smoke else 3, lr=ANNEALED, **options)
        x = data.sample(torch.Generator().manual_seed(99), 20_000)
        with torch.no_grad():
            losses.append(float((run.bank()(x)[0] - x).square().sum(-1).mean()))
        W = run.weights[-1, 0]
        there = torch.full((n,), True) if strong else W.norm(dim=-1) > 0.5
        represented.append(int(there.sum()))
        overlaps.append(float(mean_squared_overlap(W[there])) if int(there.sum()) > 1 else 0.0)
    logs = torch.tensor([[math.log(m), math.log(v)] for m, v in zip(dimensions, losses)], dtype=torch.float64)
    centred = logs - logs.mean(0)
    return {
        "dimensions": list(dimensions),
        "loss": losses,
        "slope": float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum()),
        "represented": represented,
        "overlap_times_dimensions": [v * m for v, m in zip(overlaps, dimensions)],
    }


def further(smoke: bool) -> Iterator[Case]:
    """Results 2.6, 2.8, 2.9 and 2.14 of the reference."""
    for most, points in ((2, 5), (3, 4)):
        settings = {"n": 5, "m": 2, "density": 0.05, "best_of": 12, "max_active": most, "points": points}

        def odd(most: int = most, points: int = points) -> dict[str, Any]:
            return odd_feature(smoke, most, points)

        yield Case(f"odd feature, up to {most} active", settings, odd, dtype="float64")
    settings = {"n": 100, "m": 40, "importance": "0.8^i", "steps": 10_000, "batch": 1024}
    yield Case("abs n=100 m=40", settings, lambda: absolute_values(smoke))
    for strong in (False, True):
        kind = "rows at length 1" if strong else "weight decay 1"
        settings = {"n": 1000, "alpha": 1.0, "active": 1.0, "weights": kind, "steps": 2000, "batch": 512}
        yield Case(f"power law, {'strong' if strong else 'weak'}", settings, lambda strong=strong: power_law(strong, smoke))
    for density in DENSITIES:
        settings = {"n": 10, "m": 5, "importance": "0.75^i", "density": density, "models": 1000, "steps": 3000, "batch": 256}
        yield Case(f"privileged basis, density {density}", settings, lambda density=density: privileged(density, smoke))
