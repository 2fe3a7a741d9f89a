"""One computation of a kernel: capture, contract, sum, and say what was done."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mechfeat.errors import ShapeError
from mechfeat.kernels import Outputs, dense, kernel_shape
from mechfeat.ntk import planner, proof
from mechfeat.ntk.capture import Capture
from mechfeat.ntk.checks import check_output
from mechfeat.ntk.factors import Choose, Factor, Shape, contract, shape_of
from mechfeat.ntk.fallback import jacobian
from mechfeat.ntk.fingerprint import fingerprint
from mechfeat.ntk.planner import Plan, PlanRow
from mechfeat.ntk.result import Coverage


@dataclass
class State:
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
class Job:
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

    def run(self, banned: dict[str, str]) -> State:
        """Capture, contract, sum. ``banned`` parameters take the exact path."""
        captures, ys = self._forward(banned)
        n1, n2, o = len(ys[0]), len(ys[-1]), ys[0].shape[1]
        dtype = torch.float32 if ys[0].dtype in (torch.float16, torch.bfloat16) else ys[0].dtype
        kernel = torch.zeros(kernel_shape(n1, n2, o, self.outputs), dtype=dtype, device=ys[0].device)
        options = (self.outputs, self.method, tuple(sorted(self.forced)))
        key = fingerprint(self.module, self.xs, captures, options)
        state = State(kernel, o, key, tuple(y.detach() for y in ys), dict(captures[0].unfit), self._table([], o), [])
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
            mirror(state.kernel, self.outputs)
            for layer in state.layers.values():
                mirror(layer, self.outputs)
        return state

    def plan(self, banned: dict[str, str]) -> Plan:
        """What :meth:`run` would do, from one forward pass."""
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

    def _add(self, state: State, name: str, part: Tensor, how: str) -> None:
        state.kernel += part
        state.methods[name] = how
        state.parts[name] = on_samples(part, self.samples, self.outputs).clone(memory_format=torch.contiguous_format)
        if len(self.xs) == 1:
            mirror(state.parts[name], self.outputs)  # what is proved is what is handed out
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


def on_samples(part: Tensor, samples: list[list[int]], outputs: Outputs) -> Tensor:
    """The entries of a kernel between some samples.

    Args:
        part: A kernel.
        samples: Their indices on each side.
        outputs: What the kernel keeps of the outputs.

    Returns:
        A smaller kernel of the same layout.
    """
    a, b = (torch.tensor(s, device=part.device) for s in samples)
    return part[a][:, :, b] if outputs == "full" else part[a][:, b]


def mirror(kernel: Tensor, outputs: Outputs) -> None:
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
