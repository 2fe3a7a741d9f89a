"""Result 2.13: regular k-gons are critical points, and stochastic gradient descent rests at them one after another."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from mechfeat.data import AnticorrelatedSets
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Record, fit, local_learning_coefficient
from toy_checks.case import Case
from toy_checks.one_active import N, gradient, kinds, loss, polish, spectrum

SCALES = (0.001, 0.1, 1.0)
VISITED = ("4+-", "4++", "5-", "5+", "6")  # minima at which plateaus of the runs rest
SAMPLING = {"n": 1000, "inverse_temperature": "1/ln n", "chains": 64, "localisation": 10.0, "step_size": 4e-4, "burn": 1500, "steps": 3000}


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


def descent(scale: float, smoke: bool) -> dict[str, Any]:
    """Plateaus of 32 runs, each named by the critical point that Newton's method finds from its frame of smallest gradient."""
    models, steps = (32, 20_000) if not smoke else (2, 800)
    init = scale * torch.randn(models, N, 2, generator=torch.Generator().manual_seed(0))
    bank = ToyBank(ToySpec(N, 2), models, init={"W": init, "b": torch.zeros(models, N)})
    data = AnticorrelatedSets(N, set_size=N, density=1.0)
    run = fit(bank, data, steps=steps, lr=0.1, batch=32, record=Record(401, 2), progress=True)
    frames = torch.cat([run.weights.flatten(-2), run.parameters["b"]], -1).double()
    losses, slopes = loss(frames), gradient(frames).norm(dim=-1)
    known = {name: float(loss(p)) for name, p in kinds().items()}
    sequences, largest = [], 0.0
    for i in range(models):
        seen: list[dict[str, Any]] = []
        for first, last in plateaus(losses[:, i]):
            at = first + int(slopes[first : last + 1, i].argmin())
            point = polish(frames[at, i])
            value, norm = float(loss(point)), float(gradient(point).norm())
            near = min(known, key=lambda name: abs(known[name] - value))
            name = near if abs(known[near] - value) < 1e-6 and norm < 1e-8 else "other"
            if seen and seen[-1]["point"] == name:
                seen[-1]["to"] = int(run.steps[last])
                continue
            largest = max(largest, norm if name != "other" else 0.0)
            plateau_loss = float(losses[first : last + 1, i].median())
            seen.append({"point": name, "from": int(run.steps[first]), "to": int(run.steps[last]), "loss": plateau_loss})
        sequences.append(seen)
    counts: dict[str, int] = {}
    for seen in sequences:
        key = " > ".join(s["point"] for s in seen)
        counts[key] = counts.get(key, 0) + 1
    return {"counts": counts, "sequences": sequences, "largest_gradient_norm": largest}


def coefficient(name: str, smoke: bool) -> dict[str, Any]:
    """Estimates at one critical point: as stated, with the step size halved (and twice the steps), with the localisation halved."""
    point, found = kinds()[name], {}
    for label, eps, gamma, times in (("stated", 4e-4, 10.0, 1), ("half step size", 2e-4, 10.0, 2), ("half localisation", 4e-4, 5.0, 1)):
        burn, steps = (1500 * times, 3000 * times) if not smoke else (5, 5)
        options = {"n_chains": 64, "n_burn": burn, "n_steps": steps, "seed": 0}
        estimate = local_learning_coefficient(loss, point, n=1000, step_size=eps, localisation=gamma, **options)
        found[label] = {"value": estimate.value, "standard_error": estimate.standard_error, "acceptable": estimate.acceptable}
    return {"loss": float(loss(point)), "estimates": found}


def kgons(smoke: bool) -> Iterator[Case]:
    """Six features in two dimensions, one of them active, with a value uniform on [0, 1]; exact expectation in float64."""
    model = {"n": N, "m": 2, "loss": "exact, summed over outputs"}
    yield Case("critical points", {**model, "polished_by": "Newton"}, critical_points, dtype="float64")
    for scale in SCALES if not smoke else SCALES[:1]:
        settings = {**model, "initial_weights": scale, "models": 32, "steps": 20_000, "lr": 0.1, "batch": 32}
        yield Case(f"plateaus from {scale:g}", settings, lambda scale=scale: descent(scale, smoke))
    for name in (*VISITED, "0++++++") if not smoke else VISITED[-1:]:
        yield Case(f"coefficient of {name}", {**model, **SAMPLING}, lambda name=name: coefficient(name, smoke), dtype="float64")
