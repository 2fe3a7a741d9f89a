"""From memorising data to learning features: toy models trained on few inputs and on many."""

from collections.abc import Iterator
from typing import Any

import torch

from mechfeat.data import FiniteSample, SparseUniform
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Optimizer, Record, Schedule, feature_dimensionality, fit
from toy_checks.case import Case

SIZES = (3, 5, 8, 15, 30, 50, 100, 200, 300, 500, 700, 1000, 2000)
RATE = Schedule(0.0, 0.01, 0.0, warmup=0.05, decay="cosine")


def trained_on(size: int, smoke: bool) -> dict[str, Any]:
    """The best of five models trained on a list of inputs: its losses, and who owns its two dimensions."""
    n, density = (1000, 0.01) if not smoke else (50, 0.1)
    source = SparseUniform(n, density=density)
    data = FiniteSample.draw(source, size, generator=torch.Generator().manual_seed(1), normalise=True)
    new = FiniteSample.draw(source, 5000 if not smoke else 20, generator=torch.Generator().manual_seed(2), normalise=True).rows()
    options = {"optimizer": Optimizer("adamw", weight_decay=0.01), "record": Record(1, 1), "progress": True}
    run = fit(ToyBank(ToySpec(n, 2), 5, init="xavier"), data, steps=10_000 if not smoke else 5, lr=RATE, **options)
    bank = run.bank()
    with torch.no_grad():
        test = [float((bank[i](new)[0] - new).square().sum(-1).mean()) for i in range(5)]
    best = int(run.final_loss.argmin())
    W = run.weights[-1, best]
    of_data, of_features = feature_dimensionality(data.rows() @ W), feature_dimensionality(W).sort(descending=True).values
    return {
        "train_loss": (n * run.final_loss).tolist(),
        "test_loss": test,
        "best": best,
        "test_loss_of_best": test[best],
        "dimensionality_of_data": float(of_data.mean()),
        "largest_of_data": float(of_data.max()),
        "largest_of_features": of_features[:8].tolist(),
        "share_of_five_features": float(of_features[:5].sum() / of_features.sum()),
    }


def memorisation(smoke: bool) -> Iterator[Case]:
    """Result 2.12 of the reference: inputs of length 1, squared errors summed over features."""
    for size in SIZES if not smoke else SIZES[:2]:
        settings = {
            **{"n": 1000, "m": 2, "sparsity": 0.99, "inputs": size, "instances": 5, "kept": "lowest training loss"},
            **{"optimizer": "adamw", "weight_decay": 0.01, "steps": 10_000, "lr": 0.01, "warmup": 500, "decay": "cosine to 0"},
            **{"batch": "all inputs", "test_inputs": 5000},
        }
        yield Case(f"{size} inputs", settings, lambda size=size: trained_on(size, smoke))
