"""One tile of a kernel: two blocks of samples, captured and contracted."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mechfeat.kernels import Outputs
from mechfeat.ntk import planner
from mechfeat.ntk.bottleneck import ROWS, Head, against_macs, find
from mechfeat.ntk.capture import Capture
from mechfeat.ntk.checks import check_output
from mechfeat.ntk.factors import Factor
from mechfeat.ntk.fallback import jacobian
from mechfeat.ntk.machine import Machine
from mechfeat.ntk.outlines import Choose, Formed, Outline, Shape, foresee, outlines
from mechfeat.ntk.planner import PlanRow
from mechfeat.ntk.total import Total


class Clock:
    """Seconds since it was made.

    Args:
        device: What is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()

    def seconds(self) -> float:
        """Seconds until now."""
        return self._now() - self._start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Conflict(Exception):
    """Two blocks want a parameter to take different paths.

    Attributes:
        unfit: Parameters that some block's rules do not cover.
        fold: Whether biases may be folded.
    """

    def __init__(self, unfit: dict[str, str], fold: bool) -> None:
        super().__init__()
        self.unfit, self.fold = unfit, fold


@dataclass
class Side:
    """A block of samples after its forward pass.

    Attributes:
        x: The block.
        capture: Its taps.
        y: Its outputs, with the graph while backward passes are still to come.
        values: Its outputs.
        seconds: Of its forward pass.
        factors: What a backward pass gave, for the second side of a tile.
        exact: Gradients of parameters that no rule covers, once asked for.
    """

    x: Tensor
    capture: Capture
    y: Tensor | None
    values: Tensor
    seconds: float
    factors: dict[str, list[Factor]] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)

    def sent(self, rows: Tensor | None) -> None:
        """Send the outputs back, and keep the factors.

        Args:
            rows: Combinations of the outputs, past the head; None for each of them, once and for all.
        """
        assert self.y is not None
        self.factors.clear()
        self.capture.backward(self.y, self.factors.__setitem__, rows)
        if rows is None:
            self.y = None  # the graph is as large as the factors

    def jacobian(self, module: nn.Module, names: list[str]) -> dict[str, Tensor]:
        """Gradients of whole parameters by autograd."""
        if not self.exact:
            self.exact = jacobian(module, self.x, names, self.values.shape[1])
        return self.exact


def captured(module: nn.Module, x: Tensor, name: str, banned: dict[str, str], fold: bool) -> Side:
    """Run a block forward with taps.

    Args:
        module: The model.
        x: The block.
        name: ``x1`` or ``x2``, for messages.
        banned: Parameters that rules shall leave alone, with the reason.
        fold: Contract a bias with its weight where that is possible.

    Returns:
        The block, ready to be sent back.
    """
    capture, clock = Capture(module, len(x), banned, fold=fold), Clock(x.device)
    y = check_output(capture.forward(x), len(x), name)
    capture.find_hidden(y)
    return Side(x, capture, y, y.detach(), clock.seconds())


@dataclass(frozen=True)
class Foreseen:
    """What a plan knows of a block.

    Attributes:
        n: Samples.
        o: Outputs.
        capture: Its taps, which hold no graph any more.
        outlines: Parameter → outlines of its gradient, one for each part that is used. Missing where no gradient arrives.
        sizes: Bytes of one output's gradient at each tap, and what is kept of them.
        seconds: Of the backward pass, and of making factors of what arrived.
        meeting: Multiply-adds with which a wide head meets its weight's other uses, for one row.
    """

    n: int
    o: int
    capture: Capture
    outlines: dict[str, list[Outline | Formed]]
    sizes: list[tuple[int, int]]
    seconds: tuple[float, float]
    meeting: int


def foreseen(side: Side, past_head: bool) -> Foreseen:
    """Send one random combination of a block's outputs back, to see what arrives.

    Args:
        side: The block; its graph is given up.
        past_head: Leave out the use of a wide head.

    Returns:
        What was seen.
    """
    assert side.y is not None
    ends, sizes = side.capture.head, side.capture.sizes()  # while its taps are there
    clock = Clock(side.x.device)
    found = side.capture.factors_of(side.y, past_head)
    whole, made = clock.seconds(), side.capture.building
    side.y = None
    meeting = 0 if ends is None else sum(against_macs(f, len(ends[1])) for f in found.get(ends[0][0], ()))
    return Foreseen(
        len(side.x),
        side.values.shape[1],
        side.capture,
        {name: outlines(f) for name, f in found.items()},
        sizes,
        (whole - made, made),
        meeting,
    )


@dataclass
class Contraction:
    """How tiles are contracted, and what it came to, all tiles together.

    Attributes:
        module: The model.
        parameters: Its trainable parameters.
        outputs: What is kept of the outputs.
        layerwise: Keep each parameter's part.
        bottleneck: Send back the columns of a wide head rather than its outputs.
        symmetric: The kernel is of a batch with itself.
        chooser: Decides between the orders, for a parameter.
        machine: What predicted seconds are based on.
        rows: Lines of the plan.
        methods: Parameter → contraction.
        folded: Bias → weight.
        head: The wide head, if one was met.
        forms: With a wide head, bilinear forms of the sum before each of its passes, and after the last.
    """

    module: nn.Module
    parameters: dict[str, nn.Parameter]
    outputs: Outputs
    layerwise: bool
    bottleneck: bool
    symmetric: bool
    chooser: Callable[[str], Choose]
    machine: Machine
    rows: dict[str, PlanRow] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    head: Head | None = None
    forms: list[float] = field(default_factory=list)

    def tile(self, left: Side, right: Side, samples: list[list[int]], tried: tuple[Tensor, Tensor], *, last: bool) -> Total:
        """Contract two blocks.

        Args:
            left: Rows of the tile; sent back here.
            right: Columns of the tile, sent back already unless there is a wide head; ``left`` itself for a block with itself.
            samples: Proof samples of each, by their place in the block.
            tried: Cotangents of each, the same for all outputs.
            last: The factors of ``right`` are not needed again.

        Returns:
            The tile, to be finished.
        """
        same = right is left
        n1, n2, o = len(left.x), len(right.x), left.values.shape[1]
        total = Total(left.values, (n1, n2), o, self.outputs, same=same, samples=samples, layerwise=self.layerwise)
        capture, unfit = left.capture, left.capture.unfit
        head = self.find(left, right)
        rows: dict[str, PlanRow] = {}
        keep: dict[str, list[Factor]] = {}

        def sink(name: str, factors: list[Factor]) -> None:
            if head is not None:
                head.meet(name, 0, some, factors)
            if same and not last:
                keep[name] = factors
            other = factors if same else right.factors.pop(name, None) if last else right.factors.get(name)
            if other is None:  # the second batch does not reach this parameter
                return
            p = self.parameters[name]
            for piece in total.add(name, factors, other, self.chooser(name), len(p) if p.ndim else 1):
                row = self.row(name, "+".join(capture.used[name]), piece.shape, piece.how, n1, n2, sent, same, piece.entries)
                rows[name] = together(rows[name], row) if name in rows else row
            if head is not None and name in rows:
                rows[name] = replace(rows[name], macs=rows[name].macs + head.meeting_macs(name, factors, other))

        if head is not None:
            self.head = head
            for name, own in head.factors(capture.fold).items():
                total.add(name, own[0], own[-1], self.chooser(name), o)
                rows[name] = self.head_row(name, head, capture.used[name], capture.fold)
        forms: list[float] = []
        assert left.y is not None
        for some in (None,) if head is None else head.basis.T.split(ROWS):
            sent = o if some is None else len(some)
            if head is not None:
                forms.append(total.form(*tried))
                if not same:
                    right.sent(some)
                    for name, factors in right.factors.items():
                        head.meet(name, 1, some, factors)
            capture.backward(left.y, sink, some)
        folded = dict(capture.folded)
        if head is not None:
            forms.append(total.form(*tried))
            if head.tied:
                total.add_dense(head.names[0], *head.cross())
            elif capture.fold:
                folded |= dict.fromkeys(head.names[1:], head.names[0])
            times = 1 if same or not self.symmetric else 2  # for the tile above the diagonal
            known = self.forms or [0.0] * len(forms)
            self.forms = [f + times * g for f, g in zip(known, forms)]
        if same:
            left.factors = keep
        if head is None or not same or last:
            left.y = None  # frees the graph before the exact path needs memory
            left.capture.release()
        if last and not same:
            right.y = None
            right.capture.release()
        for bias, weight in folded.items():
            if weight in rows:
                rows[bias] = self.row(bias, "+".join(capture.used[bias]), None, "folded", n1, n2, o, same)
        if unfit:
            J1, J2 = (side.jacobian(self.module, list(unfit)) for side in (left, right))
            for name, reason in unfit.items():
                total.add_dense(name, J1[name], J2[name])
                rows[name] = self.row(name, reason, None, "exact", n1, n2, o, same)
            if not same or last:
                left.exact = {}
        for row in rows.values():
            self.note(row)
        self.folded |= {bias: weight for bias, weight in folded.items() if rows.get(bias) and rows[bias].contraction == "folded"}
        return total

    def foresee(self, left: Foreseen, right: Foreseen) -> None:
        """Note what :meth:`tile` would do.

        Args:
            left: Rows of the tile.
            right: Columns of the tile; ``left`` itself for a block with itself.
        """
        same, o, capture = right is left, left.o, left.capture
        sizes = left.n, right.n, o, same
        head = self.head = self.find(left, right)
        for name in self.parameters:
            function = "+".join(capture.used.get(name, ()))
            if name in capture.unfit:
                self.note(self.row(name, capture.unfit[name], None, "exact", *sizes))
            elif head is not None and name in head.names and not (head.ties(name) and all(name in s.outlines for s in (left, right))):
                own = name in head.factors(capture.fold)
                self.note(
                    self.head_row(name, head, capture.used[name], capture.fold) if own else self.row(name, function, None, "folded", *sizes)
                )
            elif all(capture.folded.get(name) in s.outlines for s in (left, right)):
                self.note(self.row(name, function, None, "folded", *sizes))
            elif name in left.outlines and name in right.outlines:
                tied = head is not None and head.ties(name)
                row = self.head_row(name, head, capture.used[name], capture.fold) if tied and head is not None else None
                for sent in (o,) if head is None else [len(some) for some in head.basis.T.split(ROWS)]:
                    for found, entries in foresee(left.outlines[name], right.outlines[name], self.parameters[name].numel()):
                        shape = None if found is None else replace(found, o=sent)
                        how = "dense" if shape is None else self.chooser(name)(shape, self.outputs)
                        part = self.row(name, function, shape, how, left.n, right.n, sent, same, entries)
                        row = part if row is None else together(row, part)
                    if tied and row is not None:
                        row = replace(row, macs=row.macs + sent * (left.meeting + (0 if same else right.meeting)))
                if row is not None:
                    self.note(row)

    def note(self, row: PlanRow) -> None:
        """Add a tile's line of the plan to that of all tiles; the contraction named is that of the most products.

        Args:
            row: The line.
        """
        name, known = row.parameter, self.rows.get(row.parameter)
        if row.contraction not in ("folded", "unused") and (known is None or row.macs >= known.macs):
            self.methods[name] = row.contraction
        self.rows[name] = row if known is None else together(known, row)

    def find(self, left: Side | Foreseen, right: Side | Foreseen) -> Head | None:
        """The wide head of two blocks, if going through its bottleneck saves backward passes."""
        if not self.bottleneck:
            return None
        captures = (left.capture,) if right is left else (left.capture, right.capture)
        return find(captures, None if self.head is None else self.head.basis)

    def row(
        self, name: str, function: str, shape: Shape | None, how: str, n1: int, n2: int, o: int, same: bool, entries: int | None = None
    ) -> PlanRow:
        """A line of the plan; ``entries`` of the gradients that are formed are all of the parameter's by default."""
        p = self.parameters[name]
        size = p.numel() if entries is None else entries
        return planner.row(name, function, shape, size, (n1, n2), o, self.outputs, how, p.element_size(), same, self.machine)

    def head_row(self, name: str, head: Head, used: list[str], fold: bool) -> PlanRow:
        """The line of a wide head's own parameter."""
        n1, n2, o = len(head.inputs[0]), len(head.inputs[-1]), len(head.basis)
        same = len(head.inputs) == 1
        k = head.factors(fold)[name][0][0].right.shape[2]
        shape = Shape(n1, n2, o, 1, 1, o, k, same=same, unit=True)
        row = self.row(name, "+".join(used), shape, "output", n1, n2, o, same)
        return replace(row, macs=row.macs + 2 * n1 * n2 * k * head.ties(name))


def together(a: PlanRow, b: PlanRow) -> PlanRow:
    """Two contractions of one parameter, one after the other.

    Args:
        a: A line of the plan.
        b: Another.

    Returns:
        One line for both, with the sum of products and the larger memory.
    """
    first = a if a.macs > b.macs else b
    return replace(first, macs=a.macs + b.macs, bytes=max(a.bytes, b.bytes), seconds=a.seconds + b.seconds)
