"""Results of *Toy Models of Superposition*: geometry with its controls, the annealed band, vulnerability, the basic result."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechfeat.data import SparseUniform
from mechfeat.models import ToySpec
from mechfeat.superposition import NAMED_FRACTIONS, Record, Schedule, adversarial_vulnerability, feature_dimensionality, fit, grid, mse
from toy_checks.case import Case

LINES = (3 / 4, 2 / 3, 1 / 2, 2 / 5, 3 / 8)


def lines(D: Tensor) -> list[float]:
    """Fractions at which dimensionalities pile up: ten or more within 0.005, and at least twice either flank 0.0125 away."""

    def near(at: float) -> int:
        return int(((D - at).abs() <= 0.005).sum())

    return [at for at in LINES if near(at) >= 10 and near(at) >= 2 * max(near(at - 0.0125), near(at + 0.0125))]


def notebook(smoke: bool) -> dict[str, Any]:
    """200 features in 20 dimensions, 20 densities from 1 to 1/20, settings of the authors' notebook."""
    densities = [20 ** -(k / 19) for k in range(20)]
    bank = grid(ToySpec(200, 20), over={"density": densities}, init="xavier")
    untrained = feature_dimensionality(bank.W.detach().double())
    steps, file = (10_000, Path(tempfile.gettempdir()) / "mechfeat-toy-geometry.safetensors") if not smoke else (3, None)
    options = {"batch": 1024, "optimizer": "adamw", "record": Record(1, 1), "checkpoint": file, "every": 500, "progress": True}
    run = fit(bank, SparseUniform(200, density=bank.along("density")), steps=steps, lr=1e-3, **options)
    if file is not None:
        file.unlink(missing_ok=True)
    W = run.weights[-1].double()
    D, norm = feature_dimensionality(W), W.square().sum((-2, -1))
    stars = 20 / norm
    pooled = D[stars < 0.95].flatten()
    generator = torch.Generator().manual_seed(0)
    blurred = pooled + 0.1 * (torch.rand(pooled.shape, generator=generator, dtype=torch.float64) - 0.5)
    return {
        "D_star": stars.tolist(),
        "near_half": int(((stars - 0.5).abs() <= 0.03).sum()),
        "lines": lines(pooled),
        "lines_untrained": lines(untrained.flatten()),
        "lines_blurred": lines(blurred),
        "lines_uniform": lines(torch.rand(pooled.shape, generator=generator, dtype=torch.float64)),
        "counts": {f"{at:.4f}": [int(((pooled - a).abs() <= 0.005).sum()) for a in (at - 0.0125, at, at + 0.0125)] for at in LINES},
        "features": len(pooled),
    }


def annealed(smoke: bool) -> dict[str, Any]:
    """100 features in 10 dimensions, 14 densities from 1 to 1/200, the learning rate annealed; with vulnerability."""
    densities = [200 ** -(k / 13) for k in range(14)]
    bank = grid(ToySpec(100, 10), over={"density": densities}, init="xavier")
    options = {"batch": 512, "optimizer": "adamw", "record": Record(1, 1), "progress": True}
    rate = Schedule(0.003, 0.003, 0.0, warmup=0.0, decay="cosine")
    run = fit(bank, SparseUniform(100, density=bank.along("density")), steps=8000 if not smoke else 3, lr=rate, **options)
    W, b = run.weights[-1].double(), run.parameters["b"][-1].double()
    D = feature_dimensionality(W)
    named = torch.tensor(list(NAMED_FRACTIONS.values()), dtype=torch.float64)
    shares, represented, attack = [], [], []
    for k, density in enumerate(densities):
        there = W[k].norm(dim=-1) > 0.5
        off = (D[k][there, None] - named).abs().amin(-1)
        represented.append(int(there.sum()))
        shares.append(float((off <= 0.02).double().mean()))
        x = SparseUniform(100, density=density).sample(torch.Generator().manual_seed(k), 4096, dtype=torch.float64)
        attack.append(float(adversarial_vulnerability(W[k], b[k], x)))
    per = W.square().sum((-2, -1)) / 10
    few = per <= 5
    rise = torch.tensor(attack) / attack[0]
    return {
        "levels": [1 / p for p in densities],
        "D_star": (1 / per).tolist(),
        "sum_D": D.sum(-1).tolist(),
        "represented": represented,
        "share_named": shares,
        "vulnerability": rise.tolist(),
        "features_per_dimension": per.tolist(),
        "correlation_up_to_5": float(torch.corrcoef(torch.stack([rise[few].double(), per[few]]))[0, 1]),
        "correlation_all": float(torch.corrcoef(torch.stack([rise.double(), per]))[0, 1]),
    }


def geometry(smoke: bool) -> Iterator[Case]:
    """Check 12."""
    settings = {"n": 100, "m": 10, "levels": 14, "batch": 512, "steps": 8000, "lr": "0.003, cosine to 0", "optimizer": "adamw"}
    yield Case("100-10 annealed", settings, lambda: annealed(smoke))
    settings = {"n": 200, "m": 20, "levels": 20, "batch": 1024, "steps": 10_000, "lr": 1e-3, "optimizer": "adamw"}
    yield Case("200-20 notebook", settings, lambda: notebook(smoke))


def basics(smoke: bool) -> Iterator[Case]:
    """Which features are represented: 20 of falling importance in 5 dimensions, linear and ReLU, at seven densities."""
    for name in ("identity", "relu"):

        def compute(name: str = name) -> dict[str, Any]:
            bank = grid(ToySpec(20, 5, activation=name), over={"density": [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]}, init="xavier")
            importance = 0.7 ** torch.arange(20)
            options = {"batch": 1024, "optimizer": "adam", "record": Record(1, 1), "loss": mse(importance), "progress": True}
            data = SparseUniform(20, density=bank.along("density"))
            rate = Schedule(0.003, 0.003, 0.0, warmup=0.0, decay="cosine")
            run = fit(bank, data, steps=10_000 if not smoke else 3, lr=rate, **options)
            W, b = run.weights[-1], run.parameters["b"][-1]
            there = W.norm(dim=-1) > 0.5
            mean = bank.along("density")[:, None] / 2
            return {
                "represented": there.sum(-1).tolist(),
                "bias_of_represented": [float(v[t].abs().max()) for v, t in zip(b, there)],
                "bias_off_mean_of_rest": [
                    float((v[~t] / m - 1).abs().max()) if bool((~t).any()) else 0.0 for v, t, m in zip(b, there, mean)
                ],
            }

        yield Case(f"20-5 {name}", {"importance": "0.7^i", "densities": "1 to 0.001", "steps": 10_000, "batch": 1024}, compute)
