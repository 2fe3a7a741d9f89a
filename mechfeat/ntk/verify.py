"""Proving a computed kernel, and sending to the exact path what its rule got wrong."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import MechfeatError, ProofError
from mechfeat.kernels import Outputs
from mechfeat.ntk import proof
from mechfeat.ntk.bottleneck import ROWS
from mechfeat.ntk.job import Job, State
from mechfeat.ntk.readout import reading


def proved(job: Job, state: State, strict: bool) -> tuple[State, dict[str, float], dict[str, float]]:
    """Prove a computed kernel.

    Args:
        job: What was computed.
        state: What it gave.
        strict: Leave what fails as it is, for the caller to raise, rather than compute it by autograd.

    Returns:
        The state with what failed computed by autograd, the relative gap of each parameter, and the gaps of the rules that failed.

    Raises:
        ProofError: The exact path disagrees too, or the total over the whole batch does.
    """
    gaps, failed = _check_parts(job, state)
    wrong_rules = {n: gaps[n] for n in failed}
    if failed and not strict:
        state = job.run({**state.unfit, **reasons(wrong_rules)})
        again, wrong = _check_parts(job, state)
        gaps = again
        if wrong:
            raise ProofError(
                wrong,
                [again[n] for n in wrong],
                "The exact path disagrees too: is the model deterministic, and differentiable where it is used?",
            )
    if not wrong_rules or not strict:
        _check_total(job, state)
    return state, gaps, wrong_rules


def _check_parts(job: Job, state: State) -> tuple[dict[str, float], list[str]]:
    generator = torch.Generator().manual_seed(job.seed + 1)
    sides = [_side(job, i, state.ys[i], job.samples[i], generator) for i in range(len(job.xs))]
    for x, y in zip(job.xs, state.ys):
        proof.alone(job.module, x, y)
    if state.basis is not None:
        return _check_rows(job, state, state.basis)
    if job.outputs == "full":
        return proof.gaps(state.parts, sides[0], sides[-1], state.ys[0].dtype, state.folded)
    # A reduced kernel has no quadratic form, so a small full one is proved with the contractions that were used, and reduced.
    few = tuple(x[s] for x, s in zip(job.xs, job.samples))
    small = Job(job.module, job.parameters, few, "full", "auto", job.layerwise, job.seed, dict(state.methods))
    try:
        full = small.run(dict(state.unfit))
    except MechfeatError:
        raise
    except Exception:  # the model fixes its batch size
        full = replace(small, xs=job.xs).run(dict(state.unfit))
    found, failed = proof.gaps(full.parts, sides[0], sides[-1], state.ys[0].dtype, full.folded)
    relative, absolute = proof.tolerances(state.ys[0].dtype)
    total = sum(float(_reduced(p, job.outputs).abs().max()) for p in full.parts.values())
    for name in dict.fromkeys([*full.parts, *state.parts]):
        want = _reduced(full.parts[name], job.outputs) if name in full.parts else torch.zeros(())
        have = state.parts.get(name, torch.zeros(()))
        gap, scale = float((have - want).abs().max()), float(want.abs().max())
        if not gap <= relative * scale + 10 * absolute * total and name not in failed:
            for n in (name, *(b for b, w in state.folded.items() if w == name)):
                found[n] = gap / scale if scale else float("inf")
                failed.append(n)
    return found, failed


def _check_rows(job: Job, state: State, basis: Tensor) -> tuple[dict[str, float], list[str]]:
    """Prove the kernel of the first rows that went through the bottleneck, whose trace is summed as that of all."""
    some = basis[:, :ROWS]
    few = tuple(x[s] for x, s in zip(job.xs, job.samples))
    with reading(job.module, lambda y: y @ some):
        small = Job(job.module, job.parameters, few, "trace", "auto", job.layerwise, job.seed)
        try:
            part = small.run(dict(state.unfit))
        except MechfeatError:
            raise
        except Exception:  # the model fixes its batch size
            small = replace(small, xs=job.xs)
            part = small.run(dict(state.unfit))
        return _check_parts(small, part)


def _side(job: Job, i: int, y: Tensor, samples: list[int], generator: torch.Generator) -> proof.Side:
    v = proof.cotangent(len(samples), y.shape[1], y, generator)
    try:
        return proof.reference(job.module, job.xs[i][samples], v, expect=y[samples])
    except MechfeatError:
        raise
    except Exception:
        # The model fixes its batch size: the whole batch, with cotangents that are zero elsewhere.
        whole = torch.zeros_like(y)
        whole[samples] = v
        side = proof.reference(job.module, job.xs[i], whole, expect=y)
        return proof.Side(v, side.gradients)


def _check_total(job: Job, state: State) -> None:
    generator = torch.Generator().manual_seed(job.seed + 2)
    o = state.o
    # Reduced kernels hold equal outputs alone, so the cotangent is put on one output at a time.
    single: list[int | None] = (
        [None]
        if job.outputs == "full"
        else list(range(o))
        if job.outputs == "trace"
        else [int(torch.randint(o, (), generator=generator, device="cpu"))]
    )
    if job.outputs == "trace" and o > 32:
        return  # O more backward passes; the parts were proved on the proof samples
    us = [proof.cotangent(len(x), o if job.outputs == "full" else 1, state.ys[0], generator) for x in job.xs]
    value, want, scale = 0.0, 0.0, 0.0
    for out in single:
        sides = []
        for i, (x, u) in enumerate(zip(job.xs, us)):
            v = u if out is None else torch.zeros_like(state.ys[i]).index_copy_(1, torch.tensor([out], device=u.device), u)
            sides.append(proof.reference(job.module, x, v, expect=state.ys[i]))
        w, s = proof.products(sides[0], sides[-1])
        want, scale = want + w, scale + s
    K = state.kernel.double()
    u1, u2 = us[0].double(), us[-1].double()
    if job.outputs == "full":
        value = float(u1.flatten() @ K.flatten(0, 1).flatten(1) @ u2.flatten())
    else:
        value = float(u1[:, 0] @ (K if job.outputs == "trace" else K[..., single[0]]) @ u2[:, 0])
    gap = abs(value - want)
    if not gap <= proof.tolerances(state.ys[0].dtype)[0] * scale:
        raise ProofError(
            ["the sum over parameters"], [gap / scale if scale else gap], "Every part was right on its own: please report this model."
        )


def reasons(failed: dict[str, float]) -> dict[str, str]:
    """Why parameters go to the exact path.

    Args:
        failed: Parameter name → relative gap of its rule.

    Returns:
        Parameter name → the reason, for the coverage.
    """
    return {n: f"its rule failed the proof (relative gap {gap:.1e})" for n, gap in failed.items()}


def _reduced(part: Float[Tensor, "n o m p"], outputs: Outputs) -> Tensor:
    diagonal = part.diagonal(dim1=1, dim2=3)
    return diagonal.sum(-1) if outputs == "trace" else diagonal
