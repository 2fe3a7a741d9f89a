"""The empirical neural tangent kernel: exact, proved, planned.

One forward pass, one backward pass over activations for all outputs at once; each parameter's gradient factors are contracted
inside the backward pass and dropped. No Jacobian of the network ever exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import MechfeatError, OptionError, ProofError, ShapeError, UnsupportedLayerError
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.kernels import Outputs, dense, kernel_shape
from mechfeat.ntk import planner, proof
from mechfeat.ntk.capture import Capture
from mechfeat.ntk.checks import check_input, check_model, check_output
from mechfeat.ntk.factors import Choose, Factor, Shape, contract, shape_of
from mechfeat.ntk.fallback import jacobian
from mechfeat.ntk.fingerprint import Proved, fingerprint, repeatable
from mechfeat.ntk.planner import Plan, PlanRow
from mechfeat.ntk.result import Coverage, NTKResult

Method = Literal["auto", "block", "gram", "jacobian"]
Prove = Literal["once", "always", "never"]
PROVED = Proved()


def empirical_ntk(
    model: nn.Module | HookedModel,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Outputs = "full",
    layerwise: bool = False,
    method: Method = "auto",
    strict: bool = False,
    prove: Prove = "once",
    seed: int = 0,
) -> NTKResult:
    r"""Kernel of the gradients of a model's outputs with respect to its trainable parameters.

    .. math:: Θ_{no,mp} = \sum_θ \Big\langle \frac{∂ f_o(x_n)}{∂θ}, \frac{∂ f_p(x'_m)}{∂θ} \Big\rangle

    Exact up to rounding. Parameters that no rule covers, or whose part fails the completeness proof, are computed by
    autograd; the result says which. A model output with several axes counts as one axis of outputs.

    Args:
        model: The model, in the mode it shall be used in. Frozen parameters do not count.
        x1: A batch, samples along the first axis.
        x2: Another batch; by default the kernel is that of ``x1`` with itself, and equals its transpose bit for bit.
        outputs: ``"full"`` for all pairs of outputs, ``"trace"`` for the sum over equal outputs, ``"diagonal"`` for equal
            outputs kept apart.
        layerwise: Keep each parameter's part; they take as much memory again, for each parameter.
        method: ``"auto"`` takes the cheaper contraction for each parameter. ``"block"`` forms each sample's weight gradient,
            ``"gram"`` multiplies Gram matrices, ``"jacobian"`` takes autograd for every parameter; all are exact.
        strict: Raise where a parameter would be computed by autograd, rather than compute it so.
        prove: ``"once"`` checks every parameter's part against an independent gradient the first time this kind of model,
            input and options is met in the process, ``"always"`` each time, ``"never"`` not at all (then models whose samples
            interact, or that are random, are not detected either).
        seed: Seed of the proof's cotangents and samples. Nothing else is random.

    Returns:
        Kernel, plan and coverage. The dtype is that of the model; float32 for half precision.

    Raises:
        OptionError: An option has an unknown value.
        UnsupportedLayerError: ``strict``, and a parameter is not covered by a rule.
        ProofError: ``strict``, and a parameter's part failed the proof; or the total failed, which autograd does not mend.
        ShapeError: The two batches give different numbers of outputs.

    Cost:
        ``(1 + o) n`` forward passes, and the contractions of :func:`plan`. The first call adds a forward and a backward
        on four samples and on the batch.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*; Novak et al. 2022, *Fast Finite Width Neural Tangent Kernel*.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> empirical_ntk(net, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), outputs="trace").kernel
        tensor([[1., 1.],
                [1., 2.]])
    """
    module = unwrap(model)
    _check_options(outputs, method, prove)
    parameters = check_model(module)
    one = next(iter(parameters.values()))
    xs = (check_input(x1, "x1", one),) if x2 is None else (check_input(x1, "x1", one), check_input(x2, "x2", one))
    job = _Job(module, parameters, xs, outputs, method, layerwise, seed)
    with torch.inference_mode(False):
        state = job.run(dict.fromkeys(parameters, "method='jacobian'") if method == "jacobian" else {})
        remember = repeatable(module)
        known = PROVED.get(state.key) if prove == "once" and remember else None
        failed: dict[str, float] = {}
        if known:
            state, failed = job.run(_reasons(known)), known
        found: dict[str, float] = {}
        if prove == "always" or (prove == "once" and known is None):
            key = state.key
            state, found, failed = job.proved(state, strict)
            if remember and not (strict and failed):  # a strict call stops before what failed was computed by autograd and proved
                PROVED.put(key, failed)
    unfit = {n: r for n, r in state.unfit.items() if n not in failed and method != "jacobian"}
    if strict and unfit:
        raise UnsupportedLayerError(
            "strict=True, and no rule covers "
            + ", ".join(f"{n!r} ({r})" for n, r in unfit.items())
            + ". Leave strict off to compute these parameters by autograd, or register a rule with mechfeat.ntk.register_rule."
        )
    if strict and failed:
        raise ProofError(list(failed), list(failed.values()), "Leave strict off to compute these parameters by autograd.")
    coverage = tuple(replace(c, gap=found.get(c.parameter)) for c in state.coverage)
    settings = {
        "method": method,
        "prove": prove,
        "seed": seed,
        "dtype": str(one.dtype),
        "device": str(one.device),
        "n_outputs": state.o,
        "tf32": _tf32(),
    }
    return NTKResult(state.kernel, outputs, state.layers if layerwise else None, state.plan, coverage, prove != "never", settings)


def plan(
    model: nn.Module | HookedModel, x1: Tensor, x2: Tensor | None = None, *, outputs: Outputs = "full", method: Method = "auto"
) -> Plan:
    """What a kernel would cost: contraction, multiply-adds and memory of each parameter. The kernel is not computed.

    Args:
        model: The model.
        x1: A batch; the model is run forward on it once.
        x2: Another batch.
        outputs: As for :func:`empirical_ntk`.
        method: As for :func:`empirical_ntk`.

    Returns:
        A plan, which prints as a table.

    Raises what :func:`empirical_ntk` raises before it computes.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> [(r.parameter, r.contraction, r.macs) for r in plan(net, torch.ones(4, 8)).rows]
        [('0.weight', 'gram', 1216), ('0.bias', 'dense', 1024), ('2.weight', 'gram', 448), ('2.bias', 'dense', 128)]
    """
    module = unwrap(model)
    _check_options(outputs, method, "never")
    parameters = check_model(module)
    one = next(iter(parameters.values()))
    xs = (check_input(x1, "x1", one),) if x2 is None else (check_input(x1, "x1", one), check_input(x2, "x2", one))
    job = _Job(module, parameters, xs, outputs, method, False, 0)
    with torch.inference_mode(False):
        return job.plan(dict.fromkeys(parameters, "method='jacobian'") if method == "jacobian" else {})


def _check_options(outputs: str, method: str, prove: str) -> None:
    for option, value, allowed in (
        ("outputs", outputs, ("full", "trace", "diagonal")),
        ("method", method, ("auto", "block", "gram", "jacobian")),
        ("prove", prove, ("once", "always", "never")),
    ):
        if value not in allowed:
            raise OptionError(option, value, allowed)


@dataclass
class _State:
    """What one run of the computation gave."""

    kernel: Tensor
    o: int
    key: int
    ys: tuple[Tensor, ...]
    unfit: dict[str, str]
    plan: Plan
    coverage: list[Coverage]
    layers: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)


@dataclass
class _Job:
    """One kernel: the model, its batches, and what is wanted."""

    module: nn.Module
    parameters: dict[str, nn.Parameter]
    xs: tuple[Tensor, ...]
    outputs: Outputs
    method: str
    layerwise: bool
    seed: int
    forced: dict[str, str] = field(default_factory=dict)  # parameter → contraction, to repeat one on fewer samples

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.samples = [proof.proof_samples(len(x), generator) for x in self.xs]
        if len(self.samples) == 1:
            self.samples *= 2

    # --- computing

    def run(self, banned: dict[str, str]) -> _State:
        """Capture, contract, sum. ``banned`` parameters take the exact path."""
        captures, ys = self._forward(banned)
        n1, n2, o = len(ys[0]), len(ys[-1]), ys[0].shape[1]
        dtype = torch.float32 if ys[0].dtype in (torch.float16, torch.bfloat16) else ys[0].dtype
        kernel = torch.zeros(kernel_shape(n1, n2, o, self.outputs), dtype=dtype, device=ys[0].device)
        options = (self.outputs, self.method, tuple(sorted(self.forced)))
        key = fingerprint(self.module, self.xs, captures, options)
        state = _State(kernel, o, key, tuple(y.detach() for y in ys), dict(captures[0].unfit), self._table([], o), [])
        rows: dict[str, PlanRow] = {}

        stored: dict[str, list[Factor]] = {}
        if len(ys) == 2:
            captures[1].backward(ys[1], stored.__setitem__)

        def sink(name: str, factors: list[Factor]) -> None:
            other = factors if len(ys) == 1 else stored.pop(name, None)
            if other is None:  # the second batch does not reach this parameter
                return
            part, how = contract(
                factors, other, self.outputs, self._chooser(name), len(self.parameters[name]) if self.parameters[name].ndim else 1
            )
            rows[name] = self._row(name, "+".join(captures[0].used[name]), shape_of(factors, other), how, n1, n2, o)
            self._add(state, name, part, how)

        captures[0].backward(ys[0], sink)
        ys = ()  # frees the graph before the exact path needs memory
        if state.unfit:
            J1 = jacobian(self.module, self.xs[0], list(state.unfit), o)
            J2 = J1 if len(self.xs) == 1 else jacobian(self.module, self.xs[1], list(state.unfit), o)
            for name, reason in state.unfit.items():
                self._add(state, name, dense(J1[name], J2[name], self.outputs), "exact")
                rows[name] = self._row(name, reason, None, "exact", n1, n2, o)
        for name in self.parameters:
            if name not in rows:
                rows[name] = self._row(name, "not used, or not reaching the output", None, "unused", n1, n2, o)
            r = rows[name]
            path = {"exact": "exact", "unused": "unused"}.get(r.contraction, "rule")
            state.coverage.append(Coverage(name, path, r.function))
        state.plan = self._table([rows[name] for name in self.parameters], o)
        state.layers = {name: state.layers[name] for name in self.parameters if name in state.layers}
        if len(self.xs) == 1:
            _mirror(state.kernel, self.outputs)
            for layer in state.layers.values():
                _mirror(layer, self.outputs)
        return state

    def plan(self, banned: dict[str, str]) -> Plan:
        captures, ys = self._forward(banned)
        n1, n2, o = len(ys[0]), len(ys[-1]), ys[0].shape[1]
        factors = [c.factors_of_zero(y) for c, y in zip(captures, ys)]
        rows = []
        for name in self.parameters:
            if name in captures[0].unfit:
                rows.append(self._row(name, captures[0].unfit[name], None, "exact", n1, n2, o))
            elif any(name not in f for f in factors):
                rows.append(self._row(name, "not used, or not reaching the output", None, "unused", n1, n2, o))
            else:
                shape = shape_of(factors[0][name], factors[-1][name])  # one object for one batch
                shape = None if shape is None else replace(shape, o=o)
                how = "dense" if shape is None else self._chooser(name)(shape, self.outputs)
                rows.append(self._row(name, "+".join(captures[0].used[name]), shape, how, n1, n2, o))
        return self._table(rows, o)

    def _forward(self, banned: dict[str, str]) -> tuple[tuple[Capture, ...], tuple[Tensor, ...]]:
        captures = tuple(Capture(self.module, len(x), banned) for x in self.xs)
        ys = tuple(check_output(c.forward(x), len(x), f"x{i + 1}") for i, (c, x) in enumerate(zip(captures, self.xs)))
        if len({y.shape[1] for y in ys}) > 1:
            raise ShapeError(
                f"The model gives {ys[0].shape[1]} outputs a sample for x1 and {ys[1].shape[1]} for x2. A kernel between them "
                "needs the same outputs."
            )
        for c, y in zip(captures, ys):
            c.find_hidden(y)
        unfit = {name: reason for c in captures for name, reason in c.unfit.items()}
        for c in captures:  # a parameter takes the same path on both sides
            c.unfit = dict(unfit)
        return captures, ys

    def _add(self, state: _State, name: str, part: Tensor, how: str) -> None:
        state.kernel += part
        state.methods[name] = how
        state.parts[name] = _on_samples(part, self.samples, self.outputs).clone(memory_format=torch.contiguous_format)
        if len(self.xs) == 1:
            _mirror(state.parts[name], self.outputs)  # what is proved is what is handed out
        if self.layerwise:
            state.layers[name] = part

    def _chooser(self, name: str) -> Choose:
        forced = self.forced.get(name, self.method)
        if forced in ("block", "gram"):
            return lambda shape, outputs: forced  # type: ignore[return-value]
        return planner.choose

    def _row(self, name: str, function: str, shape: Shape | None, how: str, n1: int, n2: int, o: int) -> PlanRow:
        p = self.parameters[name]
        return planner.row(name, function, shape, p.numel(), (n1, n2), o, self.outputs, how, p.element_size())

    def _table(self, rows: Sequence[PlanRow], o: int) -> Plan:
        one = next(iter(self.parameters.values()))
        shape = kernel_shape(len(self.xs[0]), len(self.xs[-1]), o, self.outputs)
        rate = planner.machine_rate(one.device.type, one.dtype, torch.get_num_threads())
        return Plan(tuple(rows), shape, torch.Size(shape).numel() * max(4, one.element_size()), self.outputs, rate)

    # --- proving

    def proved(self, state: _State, strict: bool) -> tuple[_State, dict[str, float], dict[str, float]]:
        """Prove, and send what fails to the exact path; gives the state, gaps, and what failed."""
        gaps, failed = self._check_parts(state)
        wrong_rules = {n: gaps[n] for n in failed}
        if failed and not strict:
            state = self.run({**state.unfit, **_reasons(wrong_rules)})
            again, wrong = self._check_parts(state)
            gaps = again
            if wrong:
                raise ProofError(
                    wrong,
                    [again[n] for n in wrong],
                    "The exact path disagrees too: is the model deterministic, and differentiable where it is used?",
                )
        if not wrong_rules or not strict:
            self._check_total(state)
        return state, gaps, wrong_rules

    def _check_parts(self, state: _State) -> tuple[dict[str, float], list[str]]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        sides = [self._side(i, state.ys[i], self.samples[i], generator) for i in range(len(self.xs))]
        for x, y in zip(self.xs, state.ys):
            proof.alone(self.module, x, y)
        if self.outputs == "full":
            return proof.gaps(state.parts, sides[0], sides[-1], state.ys[0].dtype)
        # A reduced kernel has no quadratic form, so a small full one is proved with the contractions that were used, and reduced.
        few = tuple(x[s] for x, s in zip(self.xs, self.samples))
        small = _Job(self.module, self.parameters, few, "full", "auto", False, self.seed, dict(state.methods))
        try:
            full = small.run(dict(state.unfit))
        except MechfeatError:
            raise
        except Exception:  # the model fixes its batch size
            full = replace(small, xs=self.xs).run(dict(state.unfit))
        found, failed = proof.gaps(full.parts, sides[0], sides[-1], state.ys[0].dtype)
        relative, absolute = proof.tolerances(state.ys[0].dtype)
        total = sum(float(_reduced(p, self.outputs).abs().max()) for p in full.parts.values())
        for name in dict.fromkeys([*full.parts, *state.parts]):
            want = _reduced(full.parts[name], self.outputs) if name in full.parts else torch.zeros(())
            have = state.parts.get(name, torch.zeros(()))
            gap, scale = float((have - want).abs().max()), float(want.abs().max())
            if not gap <= relative * scale + 10 * absolute * total and name not in failed:
                found[name] = gap / scale if scale else float("inf")
                failed.append(name)
        return found, failed

    def _side(self, i: int, y: Tensor, samples: list[int], generator: torch.Generator) -> proof.Side:
        v = proof.cotangent(len(samples), y.shape[1], y, generator)
        try:
            return proof.reference(self.module, self.xs[i][samples], v, expect=y[samples])
        except MechfeatError:
            raise
        except Exception:
            # The model fixes its batch size: the whole batch, with cotangents that are zero elsewhere.
            whole = torch.zeros_like(y)
            whole[samples] = v
            side = proof.reference(self.module, self.xs[i], whole, expect=y)
            return proof.Side(v, side.gradients)

    def _check_total(self, state: _State) -> None:
        generator = torch.Generator().manual_seed(self.seed + 2)
        o = state.o
        # Reduced kernels hold equal outputs alone, so the cotangent is put on one output at a time.
        single: list[int | None] = (
            [None]
            if self.outputs == "full"
            else list(range(o))
            if self.outputs == "trace"
            else [int(torch.randint(o, (), generator=generator))]
        )
        if self.outputs == "trace" and o > 32:
            return  # O more backward passes; the parts were proved on the proof samples
        us = [proof.cotangent(len(x), o if self.outputs == "full" else 1, state.ys[0], generator) for x in self.xs]
        value, want, scale = 0.0, 0.0, 0.0
        for out in single:
            sides = []
            for i, (x, u) in enumerate(zip(self.xs, us)):
                v = u if out is None else torch.zeros_like(state.ys[i]).index_copy_(1, torch.tensor([out], device=u.device), u)
                sides.append(proof.reference(self.module, x, v, expect=state.ys[i]))
            w, s = proof.products(sides[0], sides[-1])
            want, scale = want + w, scale + s
        K = state.kernel.double()
        u1, u2 = us[0].double(), us[-1].double()
        if self.outputs == "full":
            value = float(u1.flatten() @ K.flatten(0, 1).flatten(1) @ u2.flatten())
        else:
            value = float(u1[:, 0] @ (K if self.outputs == "trace" else K[..., single[0]]) @ u2[:, 0])
        gap = abs(value - want)
        if not gap <= proof.tolerances(state.ys[0].dtype)[0] * scale:
            raise ProofError(
                ["the sum over parameters"], [gap / scale if scale else gap], "Every part was right on its own: please report this model."
            )


def _reasons(failed: dict[str, float]) -> dict[str, str]:
    return {n: f"its rule failed the proof (relative gap {gap:.1e})" for n, gap in failed.items()}


def _on_samples(part: Tensor, samples: list[list[int]], outputs: Outputs) -> Tensor:
    a, b = (torch.tensor(s, device=part.device) for s in samples)
    return part[a][:, :, b] if outputs == "full" else part[a][:, b]


def _reduced(part: Float[Tensor, "n o m p"], outputs: Outputs) -> Tensor:
    diagonal = part.diagonal(dim1=1, dim2=3)
    return diagonal.sum(-1) if outputs == "trace" else diagonal


def _mirror(kernel: Tensor, outputs: Outputs) -> None:
    """Copy the lower triangle to the upper: two orders of one sum differ in their last bits, and a kernel equals its transpose."""
    if outputs == "full":
        size = kernel.shape[0] * kernel.shape[1]
        stack = [kernel.view(size, size)]
    else:
        stack = [kernel] if outputs == "trace" else list(kernel.unbind(-1))
    tile = 512
    for M in stack:
        for i in range(0, len(M), tile):
            d = M[i : i + tile, i : i + tile]
            d.copy_(d.tril() + d.tril(-1).T)
            M[:i, i : i + tile].copy_(M[i : i + tile, :i].T)


def _tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"
