"""How toy models learn: falls of the loss with the features that move, and the shapes that two sets of three pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mechfeat.data import CorrelatedSets, SparseUniform
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Record, feature_dimensionality, feature_graph, fit
from toy_checks.case import Case


def falls(smoke: bool) -> dict[str, Any]:
    """Six features in three dimensions from tiny weights, without noise: falls of the loss, and the dimensionalities that changed."""
    steps = 12_000 if not smoke else 300
    tiny = 0.001 * torch.randn(6, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bank = ToyBank(ToySpec(6, 3), 6, init=tiny, dtype=torch.float64)
    data = SparseUniform(6, density=0.1).expectation(max_active=2, points=4)
    run = fit(bank, data, steps=steps, lr=0.3, record=Record(steps // 10 + 1, steps // 10 + 1))
    events = [e for e in run.events() if e.start > 0]  # at the start biases reach the mean, and no feature is there to move
    return {
        "events": [
            {"instance": e.instance, "start": e.start, "stop": e.stop, "largest_change": float(e.change.abs().max())} for e in events
        ],
        "dimensionality": feature_dimensionality(run.weights[-1]).tolist(),
        "arrangements": [feature_graph(w).summary() for w in run.weights[-1]],
    }


def within_and_across(W: Tensor) -> tuple[float, float]:
    """Mean cosine within sets of three, and the smallest across them, as a mean over features."""
    unit = torch.nn.functional.normalize(W, dim=-1)
    c = unit @ unit.mT
    same = torch.arange(6)[:, None] // 3 == torch.arange(6) // 3
    off = ~torch.eye(6, dtype=torch.bool)
    return float(c[same & off].mean()), float(c.masked_fill(same, 1.0).amin(-1).mean())


def two_sets(smoke: bool) -> dict[str, Any]:
    """Two sets of three features in three dimensions: each set on one ray, then spread, then an octahedron."""
    small = 0.05 * torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(0))
    options = {"lr": 0.003, "batch": 512, "optimizer": "adam", "record": Record(61, 61)}
    run = fit(ToyBank(ToySpec(6, 3), 8, init=small), CorrelatedSets(6, set_size=3, density=0.1), steps=6000 if not smoke else 60, **options)
    marks = (3, 10, 60)
    shapes = [[within_and_across(w) for w in run.weights[k]] for k in marks]
    return {
        "steps": [int(run.steps[k]) for k in marks],
        "cosine_within": [[within for within, _ in row] for row in shapes],
        "smallest_cosine_across": [[across for _, across in row] for row in shapes],
        "arrangements": [feature_graph(w).summary() for w in run.weights[-1]],
    }


def dynamics(smoke: bool) -> Iterator[Case]:
    """Result 2.10 of the reference."""
    yield Case(
        "six features", {"n": 6, "m": 3, "density": 0.1, "seeds": 6, "steps": 12_000, "lr": 0.3}, lambda: falls(smoke), dtype="float64"
    )
    yield Case("two sets of three", {"n": 6, "m": 3, "density": 0.1, "seeds": 8, "steps": 6000, "lr": 0.003}, lambda: two_sets(smoke))
