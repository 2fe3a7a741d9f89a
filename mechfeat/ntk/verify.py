"""Proving a computed kernel, and sending to the exact path what its rule got wrong."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import MechfeatError, ProofError
from mechfeat.kernels import Outputs
from mechfeat.ntk import proof
from mechfeat.ntk.bottleneck import ROWS, Head
from mechfeat.ntk.job import Job, State

ALL = 32  # backward passes over the whole batch that the total of a trace may take


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
    if state.head is not None:
        return _check_rows(job, state, state.head)
    want = proof.wanted([(1.0, sides[0], sides[-1])])
    if job.outputs == "full":
        return proof.gaps(_forms(state, sides), want, state.ys[0].dtype, state.folded)
    # A reduced kernel has no quadratic form, so a small full one is proved with the contractions that were used, and reduced.
    found, failed = _check_reduced(job, state, sides, want, 0)
    if failed and any(len(x) > len(s) for x, s in zip(job.xs, job.samples)):
        found, failed = _check_reduced(job, state, sides, want, 1)  # an axis of the model may be as long as there are proof samples
    return found, failed


def _check_reduced(job: Job, state: State, sides: list[proof.Side], want: proof.Wanted, more: int) -> tuple[dict[str, float], list[str]]:
    chosen = [sorted({*s, *_others(len(x), s)[:more]}) for x, s in zip(job.xs, job.samples)]
    few = tuple(x[s] for x, s in zip(job.xs, chosen))
    small = Job(job.module, job.parameters, few, "full", "auto", job.layerwise, job.seed, dict(state.methods), block=job.block)
    small.samples = [[c.index(i) for i in s] for c, s in zip(chosen, job.samples)] * (1 if len(chosen) == 2 else 2)
    try:
        full = small.run(dict(state.unfit))
    except MechfeatError:
        raise
    except Exception:  # the model fixes its batch size
        full = replace(small, xs=job.xs).run(dict(state.unfit))
    found, failed = proof.gaps(_forms(full, sides), want, state.ys[0].dtype, full.folded)
    relative, absolute = proof.tolerances(state.ys[0].dtype)
    total = sum(float(_reduced(p, job.outputs).abs().max()) for p in full.parts.values())
    for name in dict.fromkeys([*full.parts, *state.parts]):
        reduced = _reduced(full.parts[name], job.outputs) if name in full.parts else torch.zeros(())
        have = state.parts.get(name, torch.zeros(()))
        gap, scale = float((have - reduced).abs().max()), float(reduced.abs().max())
        if not gap <= relative * scale + 10 * absolute * total and name not in failed:
            for n in (name, *(b for b, w in state.folded.items() if w == name)):
                found[n] = gap / scale if scale else float("inf")
                failed.append(n)
    return found, failed


def _others(n: int, samples: list[int]) -> list[int]:
    return [i for i in range(n) if i not in samples]


def _forms(state: State, sides: list[proof.Side]) -> dict[str, float]:
    return {name: proof.forms(part, sides[0], sides[-1]) for name, part in state.parts.items()}


def _check_rows(job: Job, state: State, head: Head) -> tuple[dict[str, float], list[str]]:
    """Prove what went through the bottleneck: for the same cotangents on every output the form of a trace is a sum over all of them."""
    generator = torch.Generator().manual_seed(job.seed + 1)
    rows, weights = _orthonormal(job.parameters[head.names[0]], generator)
    vs = [proof.cotangent(len(s), 1, state.ys[0], generator)[:, 0] for s in job.samples[: len(job.xs)]]
    sides = [_sides(job, i, state.ys[i], job.samples[i], v, rows) for i, v in enumerate(vs)]
    want = proof.wanted(zip(weights, *_pair(sides)))
    tries = [proof.Side(v[:, None], {}) for v in vs]
    return proof.gaps(_forms(state, tries), want, state.ys[0].dtype, state.folded)


def _orthonormal(W: Tensor, generator: torch.Generator) -> tuple[Tensor, list[float]]:
    """Another basis of the columns of a weight than the kernel took, and a direction that stands for all that are orthogonal to it.

    Gradients of outputs along the latter belong to the head alone, and have the same norm for each.
    """
    o, k = W.shape
    A = W.detach().double()
    Q = torch.linalg.qr(A @ torch.randn(k, k, generator=generator, dtype=A.dtype).to(A.device))[0]
    r = torch.randn(o, generator=generator, dtype=A.dtype).to(A.device)
    for _ in range(2):  # once more, for what rounding left
        r = r - Q @ (Q.T @ r)
    rows = torch.cat([Q.T, (r / r.norm())[None]])
    return rows.to(W.dtype), [1.0] * k + [float(o - k)]


def _sides(job: Job, i: int, y: Tensor, samples: list[int], v: Tensor, rows: Tensor) -> Iterator[proof.Side]:
    try:
        sides = proof.row_by_row(job.module, job.xs[i][samples], v, rows, expect=y[samples])
        first = next(sides)
    except MechfeatError:
        raise
    except Exception:  # the model fixes its batch size
        sides = proof.row_by_row(
            job.module, job.xs[i], y.new_zeros(len(y)).index_copy_(0, torch.tensor(samples, device=v.device), v), rows, expect=y
        )
        first = next(sides)
    yield first
    yield from sides


def _pair(sides: list[Iterator[proof.Side]]) -> tuple[Iterator[proof.Side], Iterator[proof.Side]]:
    if len(sides) == 2:
        return sides[0], sides[1]
    first, second = itertools.tee(sides[0])  # read together, so that one is held
    return first, second


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
    if state.head is not None:
        _check_total_of_rows(job, state, state.head)
        return
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
    if job.outputs == "trace" and o > ALL:
        return  # O more backward passes; the parts were proved on the proof samples
    us = [proof.cotangent(len(x), o if job.outputs == "full" else 1, state.ys[0], generator) for x in job.xs]

    def pairs() -> Iterator[tuple[float, proof.Side, proof.Side]]:
        for out in single:
            sides = []
            for i, u in enumerate(us):
                v = u if out is None else torch.zeros_like(state.ys[i]).index_copy_(1, torch.tensor([out], device=u.device), u)
                sides.append(_summed(job, i, v, state.ys[i]))
            yield 1.0, sides[0], sides[-1]

    K = state.kernel if job.outputs != "diagonal" else state.kernel[..., single[0]]
    _agree(_form(K, us[0], us[-1]), proof.wanted(pairs()), state)


def _check_total_of_rows(job: Job, state: State, head: Head) -> None:
    """All of a bottleneck's rows over the whole batch where they are few, else the head's own part and what some passes added."""
    us = job.cotangents(state.ys[0])
    generator = torch.Generator().manual_seed(job.seed + 3)

    def pairs(rows: Tensor, weights: list[float]) -> Iterator[tuple[float, proof.Side, proof.Side]]:
        sides = [_whole_rows(job, i, u, rows, y) for i, (u, y) in enumerate(zip(us, state.ys))]
        return zip(weights, *_pair(sides))

    rows, weights = _orthonormal(job.parameters[head.names[0]], generator)
    if head.basis.shape[1] <= ALL:
        _agree(_form(state.kernel, us[0], us[-1]), proof.wanted(pairs(rows, weights)), state)
        return
    own = proof.wanted(pairs(rows[-1:], [float(len(head.basis))]))
    _agree(state.forms[0], _only(own, head.names), state)
    hs = [u @ h for u, h in zip(us, head.inputs)]
    passes = head.basis.T.split(ROWS)
    for i in {0, len(passes) - 1, *torch.randperm(len(passes), generator=generator)[: ALL // ROWS - 2].tolist()}:
        below = (
            (w, _below(side1, row, hs[0], head, state.unfit), _below(side2, row, hs[-1], head, state.unfit))
            for row, (w, side1, side2) in zip(passes[i], pairs(passes[i], [1.0] * ROWS))
        )
        _agree(state.forms[i + 1] - state.forms[i], proof.wanted(below), state)


def _below(side: proof.Side, row: Tensor, h: Tensor, head: Head, unfit: Mapping[str, str]) -> proof.Side:
    """What reaches the parameters past the head."""
    left = {n: g for n, g in side.gradients.items() if n not in unfit and n not in head.names}
    weight = head.names[0]
    if head.tied and weight in side.gradients:
        left[weight] = side.gradients[weight] - torch.outer(row, h)
    return proof.Side(side.v, left)


def _only(want: proof.Wanted, names: Sequence[str]) -> proof.Wanted:
    return proof.Wanted(*({n: v for n, v in values.items() if n in names} for values in (want.values, want.sizes)))


def _agree(value: float, want: proof.Wanted, state: State) -> None:
    gap, scale = abs(value - sum(want.values.values())), sum(want.sizes.values())
    if not gap <= proof.tolerances(state.ys[0].dtype)[0] * scale:
        raise ProofError(
            ["the sum over parameters"], [gap / scale if scale else gap], "Every part was right on its own: please report this model."
        )


def _summed(job: Job, i: int, v: Tensor, expect: Tensor) -> proof.Side:
    """The independent gradient over a batch, block by block."""
    sides = [proof.reference(job.module, job.xs[i][b], v[b], expect=expect[b]) for b in job.blocks(i)]
    total = dict(sides[0].gradients)
    for side in sides[1:]:
        for name, g in side.gradients.items():
            total[name] = total[name] + g if name in total else g
    return proof.Side(v, total)


def _form(K: Tensor, u1: Tensor, u2: Tensor) -> float:
    """The bilinear form, row by row: a whole kernel in float64 would take twice its memory."""
    right = u2.double().flatten()
    return sum(float(u.double().flatten() @ (row.double().reshape(-1, len(right)) @ right)) for row, u in zip(K, u1))


def _whole_rows(job: Job, i: int, u: Tensor, rows: Tensor, y: Tensor) -> Iterator[proof.Side]:
    """Independent gradients over a batch for combinations of the outputs; the graph of all blocks is not held at once."""
    if job.block is None:
        return proof.row_by_row(job.module, job.xs[i], u, rows, expect=y)
    return (_summed(job, i, u[:, None] * row, y) for row in rows)


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
