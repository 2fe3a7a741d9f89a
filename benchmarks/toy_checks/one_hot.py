"""One-hot models without bias: the pentagon, directions against dimension with the ledger, the census of GELU models."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from mechfeat.data import OneHot
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import (
    GREEDY_ANGLE,
    Record,
    Schedule,
    count_directions,
    feature_dimensionality,
    fit,
    group_directions,
    k_eff,
    one_hot_loss,
)
from toy_checks.case import Case

ANGLES = (GREEDY_ANGLE, 8.1, 2.6)
CENSUS_SEEDS = 100
FINE_ANGLE = math.degrees(math.acos(1 - 1e-5))  # the tolerance of the notebooks' census
SHORT = 0.1  # of the longest feature: shorter ones have not died out yet, and are not counted
ALIVE = 0.01  # length of the shortest feature that counts as alive; the longest are near 1


def trained(f: int, d: int, smoke: bool) -> torch.Tensor:
    """Weights of ten models, seeds 1 to 10, of the symmetric notebook: ``[seed feature hidden]``, in float64."""
    steps = 40_000 if not smoke else 40
    bank = ToyBank(ToySpec(f, d, out_bias=False), seeds=range(1, 11))
    run = fit(bank, OneHot(f), steps=steps, lr=Schedule(0.02, 3.0, 1.0), record=Record(1, 1), progress=True)
    return run.weights[-1].double()


def pentagon(smoke: bool) -> Iterator[Case]:
    """Check 3: 100 features in 2 dimensions end as a pentagon, whatever the seed."""

    def compute() -> dict[str, Any]:
        W = trained(100, 2, smoke)
        sums = []
        for w in W:
            groups = group_directions(w, GREEDY_ANGLE)
            sums.append([float(w[groups == g].square().sum()) for g in range(int(groups.max()) + 1)])
        return {
            "directions": count_directions(W, GREEDY_ANGLE).tolist(),
            "directions_greedy": count_directions(W, GREEDY_ANGLE, rule="greedy").tolist(),
            "k_eff": k_eff(one_hot_loss(W), 100).tolist(),
            "norm_sq": W.square().sum((-2, -1)).tolist(),
            "norm_sq_of_directions": sums,
        }

    yield Case("f=100 d=2, seeds 1-10", {"f": 100, "d": 2, "steps": 40_000, "lr": [0.02, 3.0, 1.0]}, compute)


def directions(smoke: bool) -> Iterator[Case]:
    """Checks 4 and 5: effective features and directions for 2 to 10 dimensions, ten seeds each."""
    for d in range(2, 11) if not smoke else (2, 3):

        def compute(d: int = d) -> dict[str, Any]:
            W = trained(100, d, smoke)
            counts = {f"{angle:.1f}": count_directions(W, angle, rule="greedy").tolist() for angle in ANGLES}
            return {
                "k_eff": k_eff(one_hot_loss(W), 100).tolist(),
                "norm_sq": W.square().sum((-2, -1)).tolist(),
                "directions": counts,
                "directions_components": {f"{angle:.1f}": count_directions(W, angle).tolist() for angle in ANGLES},
                "sum_D": feature_dimensionality(W).sum(-1).tolist(),
            }

        yield Case(f"d={d}", {"f": 100, "d": d, "seeds": "1-10", "steps": 40_000, "lr": [0.02, 3.0, 1.0]}, compute)


def census(smoke: bool, *, seeds: int = 1000) -> Iterator[Case]:
    """Check 6: how many directions GELU models end in. Each case is a hundred seeds, so that a kill loses no more."""
    seeds = seeds if not smoke else 150
    steps = 40_000 if not smoke else 10
    for first in range(1, seeds + 1, CENSUS_SEEDS):
        last = min(first + CENSUS_SEEDS - 1, seeds)

        def compute(first: int = first, last: int = last) -> dict[str, Any]:
            bank = ToyBank(ToySpec(50, 2, activation="gelu", out_bias=False), seeds=range(first, last + 1))
            run = fit(bank, OneHot(50), steps=steps, lr=Schedule(0.001, 2.0, 0.2), record=Record(1, 1), progress=True)
            W = run.weights[-1].double()
            length = W.norm(dim=-1)
            alive = (length > SHORT * length.amax(-1, keepdim=True)).sum(-1)
            found = count_directions(W, GREEDY_ANGLE, rule="greedy", min_norm=SHORT)
            five = found == 5
            shares = {}
            for angle in (GREEDY_ANGLE, FINE_ANGLE):
                for short in (0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1):
                    same = count_directions(W, angle, rule="greedy", min_norm=short) == 5
                    shares[f"{angle:.2f} degrees, {short:g}"] = int(same.sum())
            long = length > ALIVE
            fine = count_directions(torch.where(long[..., None], W, 0.0), FINE_ANGLE, rule="greedy")
            return {
                "counts_alive": {str(k): v for k, v in sorted(Counter(fine.tolist()).items())},
                "five_alive_in_five_directions": int((long.sum(-1)[fine == 5] == 5).sum()),
                "counts": {str(k): v for k, v in sorted(Counter(found.tolist()).items())},
                "five_with_five_alive": int((alive[five] == 5).sum()),
                "five_by_rule": shares,
                "loss_of_five": [float(run.final_loss[five].min()), float(run.final_loss[five].max())] if bool(five.any()) else None,
            }

        yield Case(f"seeds {first}-{last}", {"f": 50, "d": 2, "steps": 40_000, "lr": [0.001, 2.0, 0.2]}, compute)
