"""What a kernel will cost: one line a parameter, and the sum."""

from dataclasses import dataclass

from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.kernels import Outputs
from mechfeat.kernels.contract import CHUNK_BYTES
from mechfeat.ntk import cost
from mechfeat.ntk.counts import MACS, dense_macs, workspace_bytes
from mechfeat.ntk.machine import Machine
from mechfeat.ntk.outlines import Shape


@storable
@dataclass(frozen=True)
class PlanRow:
    """What one parameter costs.

    Attributes:
        parameter: Its name.
        function: The torch functions that receive it, or why it goes to the exact path.
        contraction: ``block``, ``gram``, ``mixed``, ``output`` (the last layer), ``folded`` (a bias, in the contraction of its weight),
            ``dense`` (a vector, or uses of different kinds), ``exact`` or ``unused``.
        positions: Positions a sample, all uses together.
        macs: Multiply-adds of the contraction.
        bytes: Largest temporary beside the kernel.
        seconds: Predicted seconds of the contraction on this machine.
    """

    parameter: str
    function: str
    contraction: str
    positions: int
    macs: int
    bytes: int
    seconds: float


@storable
@dataclass(frozen=True)
class Plan(Stored):
    """What a kernel costs. Prints as a table.

    Attributes:
        rows: One a parameter.
        kernel_shape: Shape of the kernel.
        kernel_bytes: Its size.
        outputs: What is kept of the outputs.
        block: Samples that are captured at a time; None for whole batches.
        passes_seconds: Predicted seconds of the passes over activations, from one forward and one backward pass; None in the plan of a
            finished kernel.
        peak_bytes: Predicted peak of memory beside the model and its inputs; None in the plan of a finished kernel.
    """

    rows: tuple[PlanRow, ...]
    kernel_shape: tuple[int, ...]
    kernel_bytes: int
    outputs: str
    block: int | None = None
    passes_seconds: float | None = None
    peak_bytes: int | None = None

    @property
    def macs(self) -> int:
        """Multiply-adds of all contractions. The forward and the backward over activations come on top."""
        return sum(r.macs for r in self.rows)

    @property
    def seconds(self) -> float:
        """Predicted seconds of the contractions, and of the passes over activations where they are known."""
        return sum(r.seconds for r in self.rows) + (self.passes_seconds or 0.0)

    def __str__(self) -> str:
        cells = [("parameter", "function", "contraction", "positions", "MMAC", "MiB", "ms")]
        cells += [
            (
                r.parameter,
                r.function,
                r.contraction,
                str(r.positions),
                f"{r.macs / 1e6:.3g}",
                f"{r.bytes / 2**20:.3g}",
                f"{r.seconds * 1e3:.3g}",
            )
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(7)]
        lines = ["  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip() for row in cells]
        lines.append(
            f"kernel {list(self.kernel_shape)} ({self.outputs}), {self.kernel_bytes / 2**20:.3g} MiB"
            + ("" if self.block is None else f", in blocks of {self.block} samples")
            + f"; contractions {self.macs / 1e9:.3g} GMAC"
            + ("" if self.passes_seconds is None else f", passes over activations {self.passes_seconds:.2g} s")
            + f"; {self.seconds:.2g} s in all"
            + ("" if self.peak_bytes is None else f", peak {self.peak_bytes / 2**20:.3g} MiB beside the model and its inputs")
        )
        return "\n".join(lines)


def row(
    parameter: str,
    function: str,
    shape: Shape | None,
    size: int,
    sides: tuple[int, int],
    o: int,
    outputs: Outputs,
    method: str,
    itemsize: int,
    same: bool,
    m: Machine,
) -> PlanRow:
    """A line of the plan.

    Args:
        parameter: Name of the parameter.
        function: What receives it, or why it goes to the exact path.
        shape: Sizes of the outer-product form, if it has one.
        size: Number of entries of the parameter.
        sides: Samples of the two sides.
        o: Outputs.
        outputs: What is kept of them.
        method: The contraction.
        itemsize: Bytes a number.
        same: Both sides are one batch.
        m: The machine.

    Returns:
        The line.
    """
    n1, n2 = sides
    if method in ("unused", "folded"):
        return PlanRow(parameter, function, method, 0, 0, 0, 0.0)
    if shape is not None and method in MACS:
        room = workspace_bytes(shape, outputs, method, itemsize)
        return PlanRow(parameter, function, method, shape.t, MACS[method](shape, outputs), room, cost.SECONDS[method](shape, outputs, m))
    if shape is not None and method == "output":
        seconds = m.product(n1, shape.k, n2, itemsize) + m.pass_over(n1 * n2 * (o if outputs != "trace" else 1), itemsize)
        return PlanRow(parameter, function, method, 1, n1 * n2 * shape.k, workspace_bytes(shape, outputs, method, itemsize), seconds)
    held = (n1 if same else n1 + n2) * o * size * itemsize
    return PlanRow(
        parameter,
        function,
        method,
        1,
        dense_macs(sides, o, size, outputs, same),
        held if method == "exact" else min(held, max(CHUNK_BYTES, held // max(size, 1))),
        cost.dense_seconds(sides, o, size, outputs, same, itemsize, m),
    )
