"""Result 2.13: regular k-gons are critical points, and stochastic gradient descent rests at them one after another."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from mechfeat.data import AnticorrelatedSets
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Record, fit, local_learning_coefficient
from toy_checks.case import Case
from toy_checks.one_active import N, gradient, kinds, loss, polish, spectrum

SCALES = (0.001, 0.1, 1.0)
SAMPLING = {"n": 1000, "inverse_temperature": "1/ln n", "chains": 64, "localisation": 100.0, "step_size": 4e-4, "burn": 500, "steps": 2000}


def critical_points() -> dict[str, Any]:
    """Loss, gradient and curvature of every regular k-gon."""
    found = {}
    for name, p in kinds().items():
        k, values = int(name[0]), spectrum(p)[0]
        corners = p[: 2 * k].view(k, 2)
        turned = (corners.roll(-1, 0) * corners).sum(-1) / corners.square().sum(-1)  # cosines between neighbours, if lengths agree
        off = torch.cat([turned - math.cos(2 * math.pi / max(k, 1)), corners.norm(dim=-1) - corners[:1].norm()])
        found[name] = {
            "loss": float(loss(p)),
            "gradient_norm": float(gradient(p).norm()),
            "length": float(corners[:1].norm()),
            "off_regular": float(off.abs().sum()),
            "bias": float(p[2 * N]) if k else None,
            "negative_eigenvalues": int((values < -1e-6).sum()),
            "smallest_eigenvalue": float(values[0]),
        }
    return found


def plateaus(losses: torch.Tensor) -> list[tuple[int, int]]:
    """First and last frames between which the loss stays within 2 % of its median, for at least 3 % of the run."""
    found, first = [], 0
    for stop in range(1, len(losses) + 1):
        middle = losses[first:stop].median()
        if stop == len(losses) or abs(losses[stop] - middle) > 0.02 * middle:
            if stop - first >= 0.03 * len(losses):
                found.append((first, stop - 1))
            first = stop
    return found


def named(value: float, known: dict[str, float]) -> str:
    """A polygon by its loss; a saddle that is none by the loss itself."""
    near = min(known, key=lambda name: abs(known[name] - value))
    return near if abs(known[near] - value) < 1e-6 else f"saddle {value:.5f}"


def descent(scale: float, smoke: bool) -> dict[str, Any]:
    """Plateaus of 32 runs, each with the critical point that Newton's method finds from its frame of smallest gradient."""
    models, steps = (32, 20_000) if not smoke else (2, 800)
    init = scale * torch.randn(models, N, 2, generator=torch.Generator().manual_seed(0))
    bank = ToyBank(ToySpec(N, 2), models, init={"W": init, "b": torch.zeros(models, N)})
    data = AnticorrelatedSets(N, set_size=N, density=1.0)
    run = fit(bank, data, steps=steps, lr=0.1, batch=32, record=Record(401, 2), progress=True)
    frames = torch.cat([run.weights.flatten(-2), run.parameters["b"]], -1).double()
    losses, slopes = loss(frames), gradient(frames).norm(dim=-1)
    known = {name: float(loss(p)) for name, p in kinds().items()}
    points: dict[str, torch.Tensor] = {}
    sequences: list[list[dict[str, Any]]] = []
    for i in range(models):
        seen: list[dict[str, Any]] = []
        for first, last in plateaus(losses[:, i]):
            at = first + int(slopes[first : last + 1, i].argmin())
            point = polish(frames[at, i])
            name, middle = named(float(loss(point)), known), float(losses[first : last + 1, i].median())
            points.setdefault(name, point)
            if seen and seen[-1]["point"] == name:
                seen[-1]["to"] = int(run.steps[last])
            else:
                seen.append({"point": name, "from": int(run.steps[first]), "to": int(run.steps[last]), "loss": middle})
        sequences.append(seen)
    counts = Counter(" > ".join(s["point"] for s in seen) for seen in sequences)
    return {"counts": dict(counts), "points": {name: described(p, smoke) for name, p in points.items()}, "sequences": sequences}


def described(point: torch.Tensor, smoke: bool) -> dict[str, Any]:
    """A critical point, with its learning coefficient as stated, with the step size halved and with the localisation halved and a tenth."""
    estimates, values = {}, spectrum(point)[0]
    knobs = (
        ("stated", 4e-4, 100.0, 500, 2000),
        ("half step size", 2e-4, 100.0, 1000, 4000),
        ("half localisation", 4e-4, 50.0, 500, 2000),
        ("localisation 10", 4e-4, 10.0, 1500, 3000),
    )
    for label, eps, gamma, burn, steps in knobs:
        if smoke:
            burn = steps = 5
        options = {"n_chains": 64, "n_burn": burn, "n_steps": steps, "seed": 0}
        found = local_learning_coefficient(loss, point, n=1000, step_size=eps, localisation=gamma, **options)
        estimates[label] = {"value": found.value, "standard_error": found.standard_error, "acceptable": found.acceptable}
    return {
        "loss": float(loss(point)),
        "gradient_norm": float(gradient(point).norm()),
        "negative_eigenvalues": int((values < -1e-6).sum()),
        "smallest_eigenvalue": float(values[0]),
        "lengths": point[: 2 * N].view(N, 2).norm(dim=-1).tolist(),
        "biases": point[2 * N :].tolist(),
        "coefficient": estimates,
    }


def kgons(smoke: bool) -> Iterator[Case]:
    """Six features in two dimensions, one of them active, with a value uniform on [0, 1]; exact expectation in float64."""
    model = {"n": N, "m": 2, "loss": "exact, summed over outputs"}
    yield Case("critical points", {**model, "polished_by": "Newton"}, critical_points, dtype="float64")
    for scale in SCALES if not smoke else SCALES[:1]:
        training = {"initial_weights": scale, "models": 32, "steps": 20_000, "lr": 0.1, "batch": 32, "trained_in": "float32"}
        settings = {**model, **training, "coefficient": SAMPLING}
        yield Case(f"plateaus from {scale:g}", settings, lambda scale=scale: descent(scale, smoke), dtype="float64")
