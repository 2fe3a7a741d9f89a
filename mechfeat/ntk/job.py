"""One computation of a kernel: capture, contract, sum, and say what was done."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mechfeat.errors import ShapeError
from mechfeat.kernels import Outputs, kernel_shape
from mechfeat.ntk import planner, proof
from mechfeat.ntk.bottleneck import ROWS, Head, find
from mechfeat.ntk.capture import Capture
from mechfeat.ntk.checks import check_output
from mechfeat.ntk.factors import Choose, Factor, Shape, pair, shape_of
from mechfeat.ntk.fallback import jacobian
from mechfeat.ntk.fingerprint import fingerprint
from mechfeat.ntk.planner import Plan, PlanRow
from mechfeat.ntk.result import Coverage
from mechfeat.ntk.total import Total

_PATHS = {"exact": "exact", "unused": "unused"}


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
    layers: dict[str, Tensor]
    parts: dict[str, Tensor]
    methods: dict[str, str]
    folded: dict[str, str]
    head: Head | None  # where the outputs went through a bottleneck
    forms: list[float]  # of the sum before each of its passes, and after the last


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
    read: str = ""  # what the model's outputs were made into, for the memory of proofs

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
        same = len(ys) == 1
        options = (self.outputs, self.read, self.method, self.layerwise, tuple(sorted(self.forced.items())))
        key = fingerprint(self.module, self.xs, captures, options)
        total = Total(ys[0], (n1, n2), o, self.outputs, same=same, samples=self.samples, layerwise=self.layerwise)
        unfit, kept = dict(captures[0].unfit), tuple(y.detach() for y in ys)
        rows: dict[str, PlanRow] = {}
        methods: dict[str, str] = {}

        stored: dict[str, list[Factor]] = {}
        head = self._bottleneck(captures)

        def keep(name: str, factors: list[Factor]) -> None:
            stored[name] = factors
            if head is not None:
                head.meet(name, 1, some, factors)

        def sink(name: str, factors: list[Factor]) -> None:
            if head is not None:
                head.meet(name, 0, some, factors)
            other = factors if same else stored.pop(name, None)
            if other is None:  # the second batch does not reach this parameter
                return
            p = self.parameters[name]
            how, shape = total.add(name, factors, other, self._chooser(name), len(p) if p.ndim else 1)
            methods[name] = how
            row = self._row(name, "+".join(captures[0].used[name]), shape, how, n1, n2, sent)
            if head is not None:
                row = replace(row, macs=row.macs + head.meeting_macs(name, factors, other))
            rows[name] = replace(row, macs=row.macs + rows[name].macs, bytes=max(row.bytes, rows[name].bytes)) if name in rows else row

        if head is not None:
            for name, own in head.factors(captures[0].fold).items():
                total.add(name, own[0], own[-1], planner.choose, o)
                rows[name] = self._head_row(name, head, captures[0])
        us, forms = self.cotangents(kept), list[float]()
        for some in (None,) if head is None else head.basis.T.split(ROWS):
            sent = o if some is None else len(some)
            if head is not None:
                forms.append(total.form(us[0], us[-1]))
            if not same:
                captures[1].backward(ys[1], keep, some)
            captures[0].backward(ys[0], sink, some)
            stored.clear()
        if head is not None:
            forms.append(total.form(us[0], us[-1]))
            if head.tied:
                total.add_dense(head.names[0], *head.cross())
            if captures[0].fold and not head.tied:
                captures[0].folded |= dict.fromkeys(head.names[1:], head.names[0])
        ys = ()  # frees the graph before the exact path needs memory
        for bias, weight in captures[0].folded.items():
            if weight in rows:
                rows[bias] = self._row(bias, "+".join(captures[0].used[bias]), None, "folded", n1, n2, o)
        if unfit:
            J1 = jacobian(self.module, self.xs[0], list(unfit), o)
            J2 = J1 if same else jacobian(self.module, self.xs[1], list(unfit), o)
            for name, reason in unfit.items():
                total.add_dense(name, J1[name], J2[name])
                methods[name] = "exact"
                rows[name] = self._row(name, reason, None, "exact", n1, n2, o)
        for name in self.parameters:
            if name not in rows:
                rows[name] = self._row(name, "not used, or not reaching the output", None, "unused", n1, n2, o)
        kernel = total.finish()
        return State(
            kernel,
            o,
            key,
            kept,
            unfit,
            self._table([rows[name] for name in self.parameters], o),
            [Coverage(name, _PATHS.get(rows[name].contraction, "rule"), rows[name].function) for name in self.parameters],
            {name: total.layers[name] for name in self.parameters if name in total.layers},
            total.parts,
            methods,
            {bias: weight for bias, weight in captures[0].folded.items() if rows[bias].contraction == "folded"},
            head,
            forms,
        )

    def cotangents(self, ys: Sequence[Tensor]) -> list[Tensor]:
        """Cotangents over whole batches, the same for all outputs, that a kernel of them is tried with."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return [proof.cotangent(len(y), 1, y, generator)[:, 0] for y in ys]

    def plan(self, banned: dict[str, str]) -> Plan:
        """What :meth:`run` would do, from one forward pass, and one backward pass over activations that shows which positions live."""
        captures, ys = self._forward(banned)
        n1, n2, o = len(ys[0]), len(ys[-1]), ys[0].shape[1]
        head = self._bottleneck(captures)
        factors = [c.factors_of(y, head is not None) for c, y in zip(captures, ys)]
        rows = []
        for name in self.parameters:
            function = "+".join(captures[0].used.get(name, ()))
            if name in captures[0].unfit:
                rows.append(self._row(name, captures[0].unfit[name], None, "exact", n1, n2, o))
            elif head is not None and name in head.names and not (head.ties(name) and all(name in f for f in factors)):
                first = name in head.factors(captures[0].fold)
                rows.append(self._head_row(name, head, captures[0]) if first else self._row(name, function, None, "folded", n1, n2, o))
            elif all(captures[0].folded.get(name) in f for f in factors):
                rows.append(self._row(name, function, None, "folded", n1, n2, o))
            elif any(name not in f for f in factors):
                rows.append(self._row(name, "not used, or not reaching the output", None, "unused", n1, n2, o))
            else:
                found = shape_of(*pair(factors[0][name], factors[-1][name]))  # one object for one batch
                parts = []
                for sent in (o,) if head is None else [len(some) for some in head.basis.T.split(ROWS)]:
                    shape = None if found is None else replace(found, o=sent)
                    how = "dense" if shape is None else self._chooser(name)(shape, self.outputs)
                    part = self._row(name, function, shape, how, n1, n2, sent)
                    if head is not None:
                        part = replace(part, macs=part.macs + sent * head.meeting_macs(name, factors[0][name], factors[-1][name]))
                    parts.append(part)
                own = [self._head_row(name, head, captures[0])] if head is not None and head.ties(name) else []
                rows.append(replace(parts[-1], macs=sum(p.macs for p in parts + own), bytes=max(p.bytes for p in parts + own)))
        return self._table(rows, o)

    def _bottleneck(self, captures: tuple[Capture, ...]) -> Head | None:
        return find(captures) if self.outputs == "trace" and self.method == "auto" and not self.forced else None

    def _head_row(self, name: str, head: Head, capture: Capture) -> PlanRow:
        n1, n2, o = len(head.inputs[0]), len(head.inputs[-1]), len(head.basis)
        k = head.factors(capture.fold)[name][0][0].right.shape[2]
        shape = Shape(n1, n2, o, 1, 1, o, k, same=len(self.xs) == 1, unit=True)
        row = self._row(name, "+".join(capture.used[name]), shape, "output", n1, n2, o)
        return replace(row, macs=row.macs + 2 * n1 * n2 * k * head.ties(name))

    def _forward(self, banned: dict[str, str]) -> tuple[tuple[Capture, ...], tuple[Tensor, ...]]:
        # A part of its own is asked for each parameter, or a bias goes with its weight.
        captures = tuple(Capture(self.module, len(x), banned, fold=not self.layerwise) for x in self.xs)
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
        if len({tuple(sorted(c.foldable().items())) for c in captures}) > 1:
            for c in captures:
                c.fold = False
        return captures, ys

    def _chooser(self, name: str) -> Choose:
        forced = self.forced.get(name, self.method)
        if forced in ("block", "gram", "mixed"):
            return lambda shape, outputs: forced  # type: ignore[return-value]
        return planner.choose

    def _row(self, name: str, function: str, shape: Shape | None, how: str, n1: int, n2: int, o: int) -> PlanRow:
        p = self.parameters[name]
        return planner.row(name, function, shape, p.numel(), (n1, n2), o, self.outputs, how, p.element_size(), len(self.xs) == 1)

    def _table(self, rows: Sequence[PlanRow], o: int) -> Plan:
        one = next(iter(self.parameters.values()))
        shape = kernel_shape(len(self.xs[0]), len(self.xs[-1]), o, self.outputs)
        rate = planner.machine_rate(one.device.type, one.dtype, torch.get_num_threads())
        return Plan(tuple(rows), shape, torch.Size(shape).numel() * max(4, one.element_size()), self.outputs, rate)
