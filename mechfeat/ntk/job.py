"""One computation of a kernel: blocks of samples, one tile after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mechfeat.errors import ShapeError
from mechfeat.kernels import Outputs, kernel_shape
from mechfeat.ntk import cost, proof
from mechfeat.ntk.bottleneck import ROWS, Head
from mechfeat.ntk.fingerprint import fingerprint
from mechfeat.ntk.footprint import Footprint, Saved, largest_block, peak
from mechfeat.ntk.machine import Machine, machine
from mechfeat.ntk.outlines import Choose
from mechfeat.ntk.planner import Plan
from mechfeat.ntk.result import Coverage
from mechfeat.ntk.tile import Conflict, Contraction, Foreseen, Side, captured, foreseen
from mechfeat.ntk.whole import Whole

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
    block: int | None = None  # samples of a block; all of a batch by default

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.samples = [proof.proof_samples(len(x), generator) for x in self.xs]
        if len(self.samples) == 1:
            self.samples *= 2

    @property
    def same(self) -> bool:
        """Whether the kernel is of a batch with itself."""
        return len(self.xs) == 1

    def blocks(self, side: int) -> list[slice]:
        """Blocks of samples, of equal size but for the last.

        Args:
            side: 0 or 1.

        Returns:
            Their ranges.
        """
        n = len(self.xs[side])
        many = -(-n // (self.block or n))
        step = -(-n // many)
        return [slice(i, min(i + step, n)) for i in range(0, n, step)]

    # --- computing

    def run(self, banned: dict[str, str]) -> State:
        """Capture, contract, sum. ``banned`` parameters take the exact path."""
        fold = not self.layerwise  # a part of its own is asked for each parameter, or a bias goes with its weight
        while True:
            try:
                return self._run(banned, fold)
            except Conflict as conflict:
                banned, fold = {**banned, **conflict.unfit}, conflict.fold

    def _run(self, banned: dict[str, str], fold: bool) -> State:
        work, agreed = self._contraction(), _Agreed()
        whole = Whole((len(self.xs[0]), len(self.xs[-1])), self.outputs, same=self.same, samples=self.samples)
        keys: dict[int, None] = {}
        values: list[list[Tensor]] = [[] for _ in self.xs]
        hidden: list[list[Tensor]] = [[] for _ in self.xs]
        us: list[Tensor] = []

        def side(i: int, block: slice, first: bool) -> Side:
            made = captured(self.module, self.xs[i][block], f"x{i + 1}", banned, fold)
            agreed.check(made, i)
            if first:
                values[i].append(made.values)
                hidden[i] += [made.capture.head[2]] if work.bottleneck and made.capture.head is not None else []
                keys[self._key(made)] = None
            return made

        for columns, met in self._pairs():
            right: Side | None = None
            if not self.same:
                right = side(1, columns, True)
                if work.find(right, right) is None:
                    right.sent(None)
            for rows in met:
                left = side(0, rows, rows == columns if self.same else columns.start == 0)
                right = right or left
                us = us or self.cotangents(left.values)
                tried = us[0][rows], us[-1][columns]
                tile = work.tile(left, right, [whole.local(0, rows), whole.local(1, columns)], tried, last=rows == met[-1])
                whole.put(tile, rows, columns, agreed.o)
        return State(
            whole.kernel,
            agreed.o,
            next(iter(keys)) if len(keys) == 1 else hash(tuple(keys)),
            tuple(torch.cat(v) for v in values),
            agreed.unfit,
            self._table(work, agreed.o),
            [Coverage(name, _PATHS.get(work.rows[name].contraction, "rule"), work.rows[name].function) for name in self.parameters],
            {name: whole.layers[name] for name in self.parameters if name in whole.layers},
            whole.parts,
            work.methods,
            work.folded,
            None if work.head is None else replace(work.head, inputs=tuple(torch.cat(h) for h in hidden)),
            work.forms,
        )

    def cotangents(self, like: Tensor) -> list[Tensor]:
        """Cotangents over whole batches, the same for all outputs, that a kernel of them is tried with.

        Args:
            like: Gives dtype and device.

        Returns:
            One for each batch.
        """
        generator = torch.Generator().manual_seed(self.seed + 2)
        return [proof.cotangent(len(x), 1, like, generator)[:, 0] for x in self.xs]

    def _pairs(self) -> Iterator[tuple[slice, list[slice]]]:
        """Pair the blocks.

        Yields:
            A block of the second side, and those of the first that meet it; of one batch, those from it on.
        """
        rows = self.blocks(0)
        if self.same:
            yield from ((columns, rows[i:]) for i, columns in enumerate(rows))
        else:
            yield from ((columns, rows) for columns in self.blocks(1))

    def _key(self, side: Side) -> int:
        options = (self.outputs, self.read, self.method, self.layerwise, tuple(sorted(self.forced.items())), self.same, self.block)
        return fingerprint(self.module, (side.x,), (side.capture,), options)

    # --- planning

    def plan(self, banned: dict[str, str]) -> Plan:
        """What :meth:`run` would do, from one forward pass of each block, and one backward pass over activations that shows which
        positions live.
        """
        fold = not self.layerwise
        while True:
            try:
                return self._plan(banned, fold)
            except Conflict as conflict:
                banned, fold = {**banned, **conflict.unfit}, conflict.fold

    def _plan(self, banned: dict[str, str], fold: bool) -> Plan:
        work, agreed = self._contraction(), _Agreed()
        seen: list[dict[int, Foreseen]] = []
        prints: list[Footprint] = []
        seconds = [0.0, 0.0, 0.0]  # forward, backward, making factors
        for i in range(len(self.xs)):
            seen.append({})
            for block in self.blocks(i):
                known = self._look(i, block, banned, fold, agreed)
                seen[i][block.start] = known[0]
                seconds = [s + t for s, t in zip(seconds, (known[1].forward, *known[0].seconds))]
                prints += [known[1]] if block.start == 0 else []
        met = [(rows, columns) for columns, many in self._pairs() for rows in many]
        for rows, columns in met:
            work.foresee(seen[0][rows.start], seen[-1][columns.start])
        sent = agreed.o if work.head is None else work.head.basis.shape[1]
        times = len(met) + (0 if self.same else len(self.blocks(1)))  # blocks sent back
        if work.head is not None:
            times += sum(rows != columns for rows, columns in met) if self.same else len(met)
        share = times / sum(len(s) for s in seen)
        forward, backward, made = seconds
        passes = share * (forward + backward * sent + made * (1 if work.head is None else -(-sent // ROWS)))
        return self._table(work, agreed.o, passes, self._peak(tuple(prints), agreed.o, work))

    def _look(self, i: int, block: slice, banned: dict[str, str], fold: bool, agreed: "_Agreed") -> tuple[Foreseen, Footprint]:
        saved = Saved()
        owned = {p.untyped_storage().data_ptr() for p in self.module.parameters()}
        with saved.watching(owned):
            made = captured(self.module, self.xs[i][block], f"x{i + 1}", banned, fold)
        for address, size in made.capture.kept.items():  # what rules read and autograd does not keep
            saved.add(address, size)
        agreed.check(made, i)
        known = foreseen(made, self._contraction().find(made, made) is not None)
        sizes = {name: p.numel() for name, p in self.parameters.items()}
        return known, Footprint.of(known, made.seconds, saved.bytes, sizes, next(iter(self.parameters.values())).element_size())

    def _peak(self, prints: tuple[Footprint, ...], o: int, work: Contraction) -> int:
        n = max(len(x) for x in self.xs)
        return self._peak_of(self.block or n, prints, o, work)

    def _peak_of(self, block: int, prints: tuple[Footprint, ...], o: int, work: Contraction) -> int:
        sides = len(self.xs[0]), len(self.xs[-1])
        itemsize = max(4, next(iter(self.parameters.values())).element_size())
        rows = o if work.head is None else ROWS
        blocks = min(block, sides[0]), min(block, sides[1])
        kept = len(self.parameters) if self.layerwise else 0
        return peak(prints, sides, blocks, o, rows, self.outputs, itemsize, self._chooser, kept)

    def fit(self, cap: int, banned: dict[str, str]) -> None:
        """Set the size of the blocks to the largest that a cap allows, from what two samples of each side take.

        Args:
            cap: Bytes, beside the model and its inputs.
            banned: Parameters that take the exact path.

        Raises:
            MemoryCapError: Not even blocks of one sample are small enough.
        """
        few = replace(self, xs=tuple(x[:2] for x in self.xs), block=None)
        fold = not self.layerwise
        while True:
            try:
                agreed, work = _Agreed(), self._contraction()
                known = [few._look(i, slice(0, len(x)), banned, fold, agreed) for i, x in enumerate(few.xs)]
                break
            except Conflict as conflict:
                banned, fold = {**banned, **conflict.unfit}, conflict.fold
        work.head = work.find(known[0][0], known[-1][0] if len(known) > 1 else known[0][0])
        prints = tuple(p for _, p in known)
        self.block = largest_block(max(len(x) for x in self.xs), lambda b: self._peak_of(b, prints, agreed.o, work), cap)

    def _contraction(self) -> Contraction:
        bottleneck = self.outputs == "trace" and self.method == "auto" and not self.forced
        return Contraction(
            self.module, self.parameters, self.outputs, self.layerwise, bottleneck, self.same, self._chooser, self._machine()
        )

    def _machine(self) -> Machine:
        one = next(iter(self.parameters.values()))
        dtype = one.dtype if one.element_size() >= 4 else torch.float32  # half precision is accumulated, and multiplied, in float32
        return machine(one.device.type, dtype, torch.get_num_threads())

    def _chooser(self, name: str) -> Choose:
        forced = self.forced.get(name, self.method)
        if forced in ("block", "gram", "mixed"):
            return lambda shape, outputs: forced  # type: ignore[return-value]
        m = self._machine()
        return lambda shape, outputs: cost.choose(shape, outputs, m)

    def _table(self, work: Contraction, o: int, seconds: float | None = None, peak: int | None = None) -> Plan:
        one = next(iter(self.parameters.values()))
        n1, n2 = len(self.xs[0]), len(self.xs[-1])
        for name in self.parameters:
            if name not in work.rows:
                work.note(work.row(name, "not used, or not reaching the output", None, "unused", n1, n2, o, self.same))
        shape = kernel_shape(n1, n2, o, self.outputs)
        rows = tuple(work.rows[name] for name in self.parameters)
        size = torch.Size(shape).numel() * max(4, one.element_size())
        return Plan(rows, shape, size, self.outputs, self.block, seconds, peak)


@dataclass
class _Agreed:
    """What all blocks have in common; the first one sets it."""

    o: int = 0
    unfit: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    side: int | None = None

    def check(self, block: Side, side: int) -> None:
        """Compare a block with the first.

        Args:
            block: The block.
            side: 0 or 1.

        Raises:
            ShapeError: They have different numbers of outputs.
            Conflict: They want a parameter to take different paths.
        """
        o, capture = block.values.shape[1], block.capture
        if self.side is None:
            self.o, self.unfit, self.folded, self.side = o, dict(capture.unfit), capture.foldable(), side
            return
        if o != self.o:
            first, second = (o, self.o) if side < self.side else (self.o, o)
            raise ShapeError(
                f"The model gives {first} outputs a sample for x1 and {second} for x2. A kernel between them needs the same outputs."
            )
        if capture.unfit.keys() != self.unfit.keys():
            raise Conflict({**capture.unfit, **self.unfit}, capture.fold)
        if capture.foldable() != self.folded:
            raise Conflict(self.unfit, False)
