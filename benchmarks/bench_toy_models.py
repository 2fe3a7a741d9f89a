"""Toy models at full size: the saddle, the hysteresis loops, the phase diagram of the reference figures.

``saddle``: seed 2 of the Hessian notebook, n = 40, m = 2, ReLU(z + 1), float64: eigenvalues that the growth of the difference between the
merged features 12 and 24 implies, against the Hessian's, in three windows of 1,000 steps.
``hysteresis``: seed 12 of the bias notebook, n = 40, m = 2, untied: feature 11, free between 1 and 18, which are turned apart and together,
from the unlearned and from the learned state, with the control without memory; at several numbers of steps a level. (Rows named ``learned``
without an angle went to -22 only, where the feature has begun to switch: whether it then comes back depends on the steps.)
``bias``: the second form: one fixed bias swept 0 → 3 → 0 in a tied model, all weights free.
``phase``: two features in one dimension, 16 x 16 cells of 6 models.
``pentagon``, ``directions``, ``census``: bias-free one-hot models: 100 features in two dimensions; directions and effective features for
2 to 10 dimensions; directions of GELU models over many seeds (``--seeds``, 1,000 by default).
``softmax``, ``batches``, ``notebooks``: cross-entropy with and without bias; half against full batches; 2d-bias and 2d-untied-nobias.
``computation``, ``correlation``: absolute values and ANDs; correlated and anticorrelated sets of features.
``geometry``, ``basics``: dimensionalities against sparsity with negative controls, in the settings of the authors' notebook and
annealed; which features are represented at which density.
``dynamics``: falls of the loss with the dimensionalities that change, and the shapes that two sets of three pass through.
``studies``: GELU with a bias, L_p losses, the notebook computation as committed, 250 features in nine dimensions. ``further``: one rare
feature among five, a hundred absolute values, a privileged basis (a thousand models a density), losses under a power law.
``memorisation``: a thousand features in two dimensions, trained on 3 to 2,000 inputs: whose dimensions they are, and the test loss.
``kgons``: regular polygons of six features as critical points, the plateaus of SGD, and local learning coefficients there.
Appends to ``results/toy_models.jsonl``, each case when it is done. Rows of the newest commit that are already there are not computed
again, so that a run that was killed goes on where it was.
"""

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from toy_checks.case import Case
from toy_checks.kgons import kgons
from toy_checks.learning import dynamics
from toy_checks.memorisation import memorisation
from toy_checks.one_hot import census, directions, pentagon
from toy_checks.paper import basics, geometry
from toy_checks.paper_more import further
from toy_checks.small import batches, notebooks, softmax
from toy_checks.studies import studies
from toy_checks.tasks import computation, correlation

from mechfeat.bench.harness import commit
from mechfeat.data import OneHot
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import (
    GREEDY_ANGLE,
    Record,
    Run,
    Schedule,
    count_directions,
    escape_rates,
    fit,
    hysteresis,
    phase_diagram,
    quasi_static,
    run_spectrum,
    widen_gap,
)

RESULTS = Path(__file__).parent / "results" / "toy_models.jsonl"


@dataclass(frozen=True)
class ToyRow:
    """One result at full size."""

    check: str
    case: str
    settings: dict[str, Any]
    found: dict[str, Any]
    seconds: float
    threads: int
    dtype: str
    torch: str
    commit: str
    date: str


def saddle(smoke: bool) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Check 7."""
    first, last = (14_000, 22_000) if not smoke else (40, 80)
    window = 1000 if not smoke else 10
    marks = [first + k * window // 2 for k in range(7)]
    losses = tuple(range(0, last + 1, last // 22))
    schedule = Schedule(0.001, 4.0, 1.0, steps=300_000)
    bank = ToyBank(ToySpec(40, 2, shift=1.0), seeds=[2], dtype=torch.float64)
    run = fit(bank, OneHot(40), steps=last, lr=schedule, record=Record(frames=(*marks, last), losses=losses))
    steps = torch.tensor(marks[::2])
    at = {int(t): i for i, t in enumerate(run.steps)}
    apart = torch.stack([(run.weights[at[int(t)], 0, 12] - run.weights[at[int(t)], 0, 24]).norm() for t in steps])
    rates = escape_rates(apart, steps, torch.tensor([schedule(t, 0) for t in range(last)], dtype=torch.float64))
    spectrum = run_spectrum(run, at=[*marks, last])
    middle = spectrum.smallest[1:6:2]
    at_loss = {int(t): i for i, t in enumerate(run.loss_steps)}
    falls = 1 - run.losses[3:, 0] / run.losses[:-3, 0]  # a record is a thousand steps
    return [
        (
            "seed 2",
            {"n": 40, "m": 2, "seed": 2, "steps": last, "windows": steps.tolist()},
            {
                "implied": rates.eigenvalues.tolist(),
                "hessian": middle.tolist(),
                "relative_errors": rates.relative_errors(middle).tolist(),
                "negative_before": spectrum.n_negative()[:-1].tolist(),
                "negative_after": int(spectrum.n_negative()[-1]),
                "loss_before": float(run.losses[at_loss[first], 0]) if first in at_loss else None,
                "loss_after": float(run.final_loss[0]),
                "largest_fall_in_3000_steps": float(falls[12:].max()),
            },
        )
    ]


def trained(smoke: bool) -> Run:
    """Seed 12 of the bias notebook, unlearned and learned."""
    frames = (95_000, 150_000) if not smoke else (95, 150)
    bank = ToyBank(ToySpec(40, 2, tied=False), seeds=[12], dtype=torch.float64)
    return fit(bank, OneHot(40), steps=frames[1], lr=Schedule(0.001, 5.0, 2.0, steps=250_000), record=Record(frames=frames, losses=frames))


def loops(smoke: bool) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Check 8."""
    run = trained(smoke)
    row = torch.zeros(40, dtype=torch.bool)
    row[11] = True
    free = {"W": row[:, None], "U": row[:, None], "b": row}
    eye = torch.eye(40, dtype=torch.float64)
    found = []
    for steps in (3000, 4000, 12_000) if not smoke else (3,):
        for frame, name, levels in ((0, "unlearned", list(range(0, 21, 2))), (1, "learned to -26", list(range(0, -27, -2)))):
            loop = hysteresis(
                run.bank(frame),
                lambda start, level: widen_gap(start, 1, 18, level),
                levels,
                free=free,
                observe=lambda sweep: sweep.outputs(eye)[:, :, 11, 11],
                steps=steps,
            )
            rounded = {
                k: [round(v, 4) for v in getattr(loop, k).tolist()] for k in ("levels", "out", "back", "control_out", "control_back")
            }
            results = {
                "comes_back": math.isfinite(loop.width),
                "width": loop.width if math.isfinite(loop.width) else None,  # JSON knows no infinity
                "control_width": loop.control_width if math.isfinite(loop.control_width) else None,
                "switches": [v if math.isfinite(v) else None for v in loop.switches],
                **rounded,
            }
            found.append((f"{name}, {steps} steps a level", {"seed": 12, "lr": 3.0, "steps": steps, "degrees": 2}, results))
    return found


def bias(smoke: bool) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The second form of hysteresis: the levels at which way out and way back differ, and the control."""
    steps = 6000 if not smoke else 3
    start = ToyBank(ToySpec(20, 2), 6, dtype=torch.float64)
    with torch.no_grad():
        start.b.zero_()

    def push(values: dict[str, torch.Tensor], level: float) -> dict[str, torch.Tensor]:
        return {"b": torch.full_like(values["b"], -level)}

    levels = [round(0.3 * k, 1) for k in range(11)]
    free = {"W": torch.tensor(True)}
    begun = quasi_static(start, push, [0.0], free=free, steps=4 * steps, lr=0.3)
    rested = ToyBank(start.spec, seeds=start.seeds, init={k: v[0] for k, v in begun.parameters.items()}, dtype=torch.float64)
    found = []
    for memory in (True, False):
        sweep = quasi_static(rested, push, [*levels, *levels[-2::-1]], free=free, steps=steps, lr=0.3, memory=memory)
        out, back = sweep.losses[:11], sweep.losses[10:].flip(0)
        gap = (out - back).abs() / out
        widest = gap.argmax(0)
        counts = count_directions(sweep.parameters["W"], GREEDY_ANGLE, rule="complete", min_norm=0.05)
        seen = {
            "largest_relative_gap": gap.amax(0).tolist(),
            "gap_at_ends": gap[[0, -1]].amax(0).tolist(),
            "level": [levels[int(i)] for i in widest],
            "directions_out": counts[:11].gather(0, widest[None])[0].tolist(),
            "directions_back": counts[10:].flip(0).gather(0, widest[None])[0].tolist(),
            "k_eff_start": (20 - 400 * out[0]).tolist(),
        }
        found.append(("memory" if memory else "control", {"n": 20, "m": 2, "seeds": list(start.seeds), "steps": steps, "lr": 0.3}, seen))
    return found


def phase(smoke: bool) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Check 11."""
    side = 16 if not smoke else 3
    diagram = phase_diagram(
        importance=torch.logspace(-1, 1, side, dtype=torch.float64),
        density=torch.logspace(0, -2, side, dtype=torch.float64),
        steps=1500 if not smoke else 20,
    )
    settings = {"cells": side**2, "models": side**2 * diagram.n_models}
    return [
        (
            f"{side} x {side}",
            settings,
            {"agreement": diagram.agreement, "agreement_away": diagram.agreement_away, "cells_away": int(diagram.away.sum())},
        )
    ]


CHECKS = {"saddle": saddle, "hysteresis": loops, "bias": bias, "phase": phase}
CASES: dict[str, Callable[[bool], Iterable[Case]]] = {
    "pentagon": pentagon,
    "directions": directions,
    "softmax": softmax,
    "batches": batches,
    "notebooks": notebooks,
    "computation": computation,
    "correlation": correlation,
    "basics": basics,
    "geometry": geometry,
    "dynamics": dynamics,
    "studies": studies,
    "further": further,
    "memorisation": memorisation,
    "kgons": kgons,
    "census": census,
}


def cases_of(name: str, args: argparse.Namespace) -> Iterable[Case]:
    """The cases of a check, each computed when it is asked for."""
    if name == "census":
        return census(args.smoke, seeds=args.seeds)
    return CASES[name](args.smoke)


def append(rows: list[ToyRow], out: Path | None) -> None:
    """Print rows, and write them at once, so that what was computed is kept."""
    for row in rows:
        print(row.check, row.case, row.found, f"{row.seconds:.1f} s", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.writelines(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)


def main() -> None:
    """Compute, print and append."""
    from tqdm.auto import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", nargs="*", choices=[*CHECKS, *CASES, []], help="which; all by default")
    parser.add_argument(
        "--smoke", action="store_true", help="small sizes, for a run of seconds; nothing is appended unless --out says where"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this, of the checks that have several")
    parser.add_argument("--seeds", type=int, default=1000, help="of the census")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or (None if args.smoke else RESULTS)
    here = commit()  # of the code that is loaded now
    done = set()
    if out is not None and out.exists():
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        done = {(r["check"], r["case"]) for r in rows if r["commit"] == here}

    def row(name: str, case: str, settings: dict[str, Any], found: dict[str, Any], seconds: float, dtype: str) -> ToyRow:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return ToyRow(name, case, settings, found, seconds, torch.get_num_threads(), dtype, torch.__version__, here, now)

    for name in args.check or [*CHECKS, *CASES]:
        start = time.process_time()
        if name in CASES:
            for case in tqdm([case for case in cases_of(name, args) if args.only in case.name], desc=name, unit="case"):
                if (name, case.name) in done:
                    print(f"{name} {case.name}: already there")
                    continue
                start = time.process_time()
                found = case.compute()
                append([row(name, case.name, case.settings, found, time.process_time() - start, case.dtype)], out)
        elif any(check == name for check, _ in done):
            print(f"{name}: already there")
        else:
            results = CHECKS[name](args.smoke)
            seconds = time.process_time() - start
            append([row(name, case, settings, found, seconds, "float64") for case, settings, found in results], out)


if __name__ == "__main__":
    main()
