"""Models that compute, and models whose features are correlated."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mechfeat.data import AnticorrelatedSets, CorrelatedSets, SparseUniform, absolute, ands
from mechfeat.data import universal_and as all_ands
from mechfeat.data.toy_data import Exact
from mechfeat.models import ToyBank, ToySpec, universal_and_bank
from mechfeat.superposition import Record, Schedule, fit
from toy_checks.case import Case

ANNEALED = Schedule(0.01, 0.01, 0.0, warmup=0.0, decay="cosine")


def absolute_value(smoke: bool) -> dict[str, Any]:
    """Absolute values of three features by six neurons."""
    spec = ToySpec(3, 6, tied=False, hidden_activation="relu")
    data = SparseUniform(3, density=1.0, low=-1.0, high=1.0)
    steps = 10_000 if not smoke else 10
    options = {"batch": 256, "optimizer": "adam", "record": Record(1, 1), "progress": True}
    run = fit(ToyBank(spec, 20), data, task=absolute(), steps=steps, lr=ANNEALED, **options)
    x = data.sample(torch.Generator().manual_seed(99), 10_000)
    with torch.no_grad():
        losses = (run.bank()(x) - x.abs()).square().mean((-2, -1))
    W = run.bank().W[int(losses.argmin())].detach()  # [feature neuron]
    # A neuron belongs to the feature and the sign of its largest weight.
    owner = W.abs().argmax(0)
    neurons = sorted((int(f), "+" if W[f, n] > 0 else "-") for n, f in enumerate(owner))
    return {
        "losses": sorted(losses.tolist()),
        "below_1e-5": int((losses < 1e-5).sum()),
        "neurons_of_best": [f"{f}{s}" for f, s in neurons],
        "largest_share_of_best": (W.square().amax(0) / W.square().sum(0)).tolist(),
    }


def few_active(n: int, most: int) -> Tensor:
    """All inputs with 1 to ``most`` of ``n`` features at 1."""
    rows = [c for k in range(1, most + 1) for c in itertools.combinations(range(n), k)]
    return torch.stack([torch.zeros(n).index_fill_(0, torch.tensor(c), 1.0) for c in rows])


def pair_ands(n_hidden: int, smoke: bool) -> dict[str, Any]:
    """Twenty ANDs of ten inputs by one ReLU layer."""
    pairs = random.Random(0).sample(list(itertools.combinations(range(10), 2)), 20)
    x = few_active(10, 3)
    data = Exact(10, x, torch.full((len(x),), 1 / len(x)))
    spec = ToySpec(10, n_hidden, n_outputs=20, tied=False, activation="identity", hidden_activation="relu", hidden_bias=True)
    options = {"optimizer": "adam", "record": Record(1, 1)}
    run = fit(ToyBank(spec, 6), data, task=ands(pairs), steps=2500 if not smoke else 10, lr=ANNEALED, **options)
    best = run.best()
    with torch.no_grad():
        out = best.bank()(x)[0]
    exact = ((out > 0.5) == (ands(pairs)(x) > 0.5)).all(0)
    return {"exact": float(exact.double().mean()), "mse": float(best.final_loss[0]), "inputs": len(x)}


def universal_and(n_neurons: int, n: int = 60, samples: int = 400) -> dict[str, Any]:
    """The construction that computes every AND: neurons that see random sets of features, read where they see both."""
    p = n_neurons ** (-1 / 3)
    active = torch.rand(samples, n, generator=torch.Generator().manual_seed(1)).topk(3, dim=1).indices
    x = torch.zeros(samples, n).scatter_(1, active, 1.0)
    true = all_ands(n)(x)
    with torch.no_grad():
        error = (universal_and_bank(n, n_neurons, probability=p)(x)[0] - true).abs()
    return {"mean_error": float(error.mean()), "error_where_true": float(error[true > 0].mean()), "p": p}


def computation(smoke: bool) -> Iterator[Case]:
    """Check 13: absolute values, ANDs of pairs by few neurons, and the universal AND."""
    yield Case("abs n=3 m=6", {"seeds": 20, "steps": 10_000, "batch": 256}, lambda: absolute_value(smoke))
    for m in (4, 8, 10, 12, 16, 20):
        settings = {"pairs": 20, "inputs": 10, "hidden": m, "steps": 2500, "best_of": 6}
        yield Case(f"and hidden={m}", settings, lambda m=m: pair_ands(m, smoke))
    for m in (100, 300, 1000, 3000) if not smoke else (100, 300):
        yield Case(f"universal and neurons={m}", {"features": 60, "active": 3, "neurons": m}, lambda m=m: universal_and(m))


def _cosines(W: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(W.double(), dim=-1)
    return unit @ unit.mT


def pairs_of(W: Tensor) -> Tensor:
    """Cosine of features 2k and 2k + 1: ``[instance pair]``."""
    c = _cosines(W)
    k = torch.arange(0, W.shape[-2], 2)
    return c[:, k, k + 1]


def _sets(kind: type, n: int, size: int, m: int, density: float, seeds: int, smoke: bool) -> tuple[Tensor, Tensor]:
    # Small initial weights, about those of the authors' batched initialisation: from larger ones some models rest with a dead feature.
    small = 0.2 * torch.randn(seeds, n, m, generator=torch.Generator().manual_seed(0))
    bank = ToyBank(ToySpec(n, m), seeds, init=small)
    options = {"batch": 1024, "optimizer": "adam", "record": Record(1, 1), "progress": True}
    data = kind(n, set_size=size, density=density)
    run = fit(bank, data, steps=4000 if not smoke else 10, lr=ANNEALED, **options)
    x = data.sample(torch.Generator().manual_seed(99), 50_000)
    with torch.no_grad():
        losses = torch.stack([(run.bank()[i](x)[0] - x).square().mean() for i in range(seeds)])
    return run.weights[-1], losses


def correlation(smoke: bool) -> Iterator[Case]:
    """Check 14: correlated pairs are orthogonal, anticorrelated ones antipodal in the best model; pairs collapse as they grow dense."""
    seeds = 16 if not smoke else 2
    for density in (0.05, 0.1):

        def correlated(density: float = density) -> dict[str, Any]:
            W, _ = _sets(CorrelatedSets, 4, 2, 2, density, seeds, smoke)
            return {"largest_abs_cos": pairs_of(W).abs().amax(-1).tolist()}

        yield Case(f"correlated 2x2, density {density}", {"m": 2, "seeds": 16, "density": density}, correlated)

    def anticorrelated() -> dict[str, Any]:
        W, losses = _sets(AnticorrelatedSets, 4, 2, 2, 0.1, seeds, smoke)
        cos = pairs_of(W)
        return {"cos_of_best": cos[int(losses.argmin())].tolist(), "antipodal_models": int((cos < -0.95).all(-1).sum()), "models": seeds}

    yield Case("anticorrelated 2x2", {"m": 2, "seeds": 16, "density": 0.1}, anticorrelated)
    for density in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5):

        def three(density: float = density) -> dict[str, Any]:
            W, losses = _sets(CorrelatedSets, 6, 2, 2, density, 24 if not smoke else 2, smoke)
            cos = pairs_of(W)[int(losses.argmin())]
            return {"cos_of_best": cos.tolist(), "collapsed": int((cos > 0.95).sum())}

        yield Case(f"correlated 3x2, density {density}", {"m": 2, "best_of": 24, "density": density}, three)

    def two_of_ten() -> dict[str, Any]:
        W, losses = _sets(CorrelatedSets, 20, 10, 10, 0.1, 4 if not smoke else 2, smoke)
        cos = _cosines(W).abs()
        same = torch.arange(20)[:, None] // 10 == torch.arange(20) // 10
        off = ~torch.eye(20, dtype=torch.bool)
        within, across = cos[:, same & off].mean(-1), cos[:, ~same].mean(-1)
        best = int(losses.argmin())
        return {
            "within_of_best": float(within[best]),
            "across_of_best": float(across[best]),
            "within": within.tolist(),
            "across": across.tolist(),
        }

    yield Case("correlated 2x10", {"m": 10, "seeds": 4, "density": 0.1}, two_of_ten)
