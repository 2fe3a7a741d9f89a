"""What FeatureFinding tries beside its checks: GELU with a bias, other losses, an autoencoder of three active features, 250 in nine."""

from collections.abc import Iterator
from typing import Any

import torch

from mechfeat.data import OneHot
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import GREEDY_ANGLE, Loss, Optimizer, Record, Schedule, count_directions, feature_dimensionality, fit, lp, mse
from toy_checks.case import Case


def _ended(
    spec: ToySpec,
    seeds: list[int],
    k: int,
    steps: int,
    lr: Schedule,
    *,
    loss: Loss | None = None,
    batch: int | None = None,
    optimizer: str | Optimizer = "sgd",
) -> dict[str, Any]:
    """Where models end: loss over all inputs, squared error, directions, and the dimensions that they use."""
    data = OneHot(spec.n_features, k)
    options = {"loss": loss or mse(), "batch": batch, "optimizer": optimizer, "record": Record(1, 1), "progress": True}
    run = fit(ToyBank(spec, seeds=seeds), data, steps=steps, lr=lr, **options)
    x = data.rows()
    with torch.no_grad():
        error = (run.bank()(x) - x).double()
    W = run.weights[-1].double()
    short = {"rule": "greedy", "min_norm": 0.1}
    return {
        "loss": error.abs().pow((loss or mse()).p).mean((-2, -1)).tolist(),
        "squared_error": error.square().mean((-2, -1)).tolist(),
        "directions": {f"{angle:.1f}": count_directions(W, angle, **short).tolist() for angle in (GREEDY_ANGLE, 8.1)},
        "represented": (W.norm(dim=-1) > 0.1 * W.norm(dim=-1).amax(-1, keepdim=True)).sum(-1).tolist(),
        "sum_D": feature_dimensionality(W).sum(-1).tolist(),
    }


def studies(smoke: bool) -> Iterator[Case]:
    """The sandbox, the study of L_p losses, the notebook computation as it is committed, and the rest of symmetric-nd."""
    part = 1 if not smoke else 1000
    bare = {"out_bias": False}
    four = [12, 1, 2, 3]
    plan: list[tuple[str, ToySpec, list[int], int, int, Schedule, dict[str, Any]]] = [
        ("sandbox: GELU with bias", ToySpec(40, 2, activation="gelu"), four, 1, 50_000, Schedule(0.001, 5.0, 2.0), {}),
        ("computation as committed", ToySpec(10, 2, **bare), [3, 4, 5, 6], 3, 40_000, Schedule(0.001, 0.01, 0.003, steps=300_000), {}),
        ("f=100 m=3, L1", ToySpec(100, 3, **bare), [100, 1, 2, 3], 1, 15_000, Schedule(0.02, 0.1, 0.01), {"loss": lp(1)}),
        ("f=250 m=9", ToySpec(250, 9, **bare), [1, 2], 1, 100_000, Schedule(0.02, 8.0, 1.0), {}),
        *(
            (
                f"f=40 m=2, L{p}, half batches",
                ToySpec(40, 2, **bare),
                four,
                1,
                40_000,
                Schedule(0.02, 1.0, 0.2),
                {"loss": lp(p), "batch": 20},
            )
            for p in (2, 4, 6)
        ),
        (
            "f=40 m=3 untied, ReLU(z + 1), L4, Adam",
            ToySpec(40, 3, tied=False, shift=1.0),
            four,
            1,
            20_000,
            Schedule(1e-4, 1e-2, 1e-4),
            {"loss": lp(4), "optimizer": "adam"},
        ),
    ]
    for name, spec, seeds, k, steps, lr, options in plan:
        settings = {
            "f": spec.n_features,
            "m": spec.n_hidden,
            "active": k,
            "seeds": seeds,
            "steps": steps,
            "lr": [lr.base, lr.peak, lr.final],
        }

        def compute(
            spec: ToySpec = spec, seeds: list[int] = seeds, k: int = k, steps: int = steps, lr: Schedule = lr, options: Any = options
        ) -> dict[str, Any]:
            return _ended(spec, seeds, k, steps // part, lr, **options)

        yield Case(name, settings, compute)
