"""What a kernel will cost, and which contraction each parameter gets.

Counts are multiply-adds of what runs. The block order forms each sample's weight gradient, the gram order multiplies the Gram
matrices of both factors, the mixed order carries gradients through the Gram of the inputs. None is best everywhere: with one position
the gram order always wins, with many positions and a small weight the block order does, the mixed order between.
"""

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.kernels import Outputs
from mechfeat.kernels.contract import CHUNK_BYTES, block_steps, gram_tiles, mixed_step
from mechfeat.kernels.products import onednn_is_faster
from mechfeat.kernels.symmetric import area
from mechfeat.ntk.factors import Contraction, Shape


def block_macs(s: Shape, outputs: Outputs) -> int:
    """Multiply-adds of the block order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        The count; with one position the gradients are formed by products that no sum follows, which are counted too.
    """
    sides = s.n1 * s.t if s.same else s.n1 * s.t + s.n2 * s.s
    return sides * s.o * s.k * s.c + dense_macs((s.n1, s.n2), s.o, s.k * s.c, outputs, s.same)


def dense_macs(sides: tuple[int, int], o: int, size: int, outputs: Outputs, same: bool) -> int:
    """Multiply-adds of gradients that are there.

    Args:
        sides: Samples of the two sides.
        o: Outputs.
        size: Entries of the parameter.
        outputs: What is kept of the outputs.
        same: Both sides are one batch.

    Returns:
        The count.
    """
    n, m = sides
    return area(n * o, m * o, same) * size if outputs == "full" else area(n, m, same) * o * size


def gram_macs(s: Shape, outputs: Outputs) -> int:
    """Multiply-adds of the gram order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        The count. Comparing token ids counts one an entry; weighting one Gram by the other is counted as one product more.
    """
    pairs = s.o * s.o if outputs == "full" else s.o
    extra = s.o * s.o if outputs == "full" else s.o if outputs == "diagonal" else 1
    met = sum((a.stop - a.start) * (b.stop - b.start) for a, b in gram_tiles(s.n1, s.n2, s.o, s.t, s.s, outputs, s.itemsize, s.same))
    return met * (right_macs(s) + s.t * s.s * (pairs * s.c + extra))


def mixed_macs(s: Shape, outputs: Outputs) -> int:
    """Multiply-adds of the mixed order.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        The count.
    """
    met = s.n1 * (s.n1 + 1) // 2 if s.same else s.n1 * s.n2
    pairs = s.o * s.o if outputs == "full" else s.o
    return met * (right_macs(s) + s.t * s.s * s.o * s.c + pairs * s.t * s.c)


def right_macs(s: Shape) -> int:
    """Multiply-adds of one pair of samples' right Gram matrix.

    Args:
        s: Sizes.

    Returns:
        The count; of patches that share their pixels, that of the pixels.
    """
    return s.pixel_macs or s.t * s.s * (1 if s.one_hot else s.k)


MACS = {"block": block_macs, "gram": gram_macs, "mixed": mixed_macs}


def choose(s: Shape, outputs: Outputs) -> Contraction:
    """The cheapest order for one parameter.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.

    Returns:
        ``block``, ``gram`` or ``mixed``; ``output`` for the last layer.
    """
    if s.unit and s.t == s.s == 1:
        return "output"
    costs: dict[Contraction, float] = {
        "gram": gram_macs(s, outputs),
        "block": block_macs(s, outputs),
        # What is carried is written to memory and read back, which costs as much as some products; as more of them where they are fast.
        "mixed": mixed_macs(s, outputs) * (2.0 if s.itemsize == 4 and onednn_is_faster(torch.get_num_threads()) else 1.3),
    }
    return min(costs, key=lambda how: costs[how])


def workspace_bytes(s: Shape, outputs: Outputs, method: str, itemsize: int) -> int:
    """Largest temporary of a contraction, beside its factors and its result.

    Args:
        s: Sizes.
        outputs: What is kept of the outputs.
        method: ``block``, ``gram``, ``mixed`` or ``output``.
        itemsize: Bytes a number.

    Returns:
        Bytes.
    """
    n = s.n1 if s.same else s.n1 + s.n2
    if method == "block":
        step, step_o = block_steps(n, s.o, s.c, s.k, outputs, itemsize, s.taps)
        rows = (s.n1 * s.t + (0 if s.same else s.n2 * s.s)) * step if s.taps > 1 else 0
        return (n * step_o * step * s.c + rows) * itemsize
    if method == "mixed":
        step = mixed_step(s.n1, s.o, s.t, s.c, itemsize)
        return step * s.t * (2 * s.o * s.c + 2 * s.s) * itemsize
    if method == "output":
        return s.n1 * s.n2 * itemsize
    pair = s.t * s.s * itemsize * (1 + (s.o**2 if outputs == "full" else 1))
    tiles = gram_tiles(s.n1, s.n2, s.o, s.t, s.s, outputs, itemsize, s.same)
    return max(((a.stop - a.start) * (b.stop - b.start) for a, b in tiles), default=0) * pair


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
    """

    parameter: str
    function: str
    contraction: str
    positions: int
    macs: int
    bytes: int


@storable
@dataclass(frozen=True)
class Plan(Stored):
    """What a kernel costs. Prints as a table.

    Attributes:
        rows: One a parameter.
        kernel_shape: Shape of the kernel.
        kernel_bytes: Its size.
        outputs: What is kept of the outputs.
        macs_per_second: Rate the prediction is based on, measured once per process.
    """

    rows: tuple[PlanRow, ...]
    kernel_shape: tuple[int, ...]
    kernel_bytes: int
    outputs: str
    macs_per_second: float

    @property
    def macs(self) -> int:
        """Multiply-adds of all contractions. The forward and the backward over activations come on top."""
        return sum(r.macs for r in self.rows)

    @property
    def seconds(self) -> float:
        """Predicted seconds of the contractions at the measured rate of a large matrix product."""
        return self.macs / self.macs_per_second

    @property
    def peak_bytes(self) -> int:
        """Kernel, one parameter's part of it, and the largest temporary. Factors of one layer come on top."""
        return 2 * self.kernel_bytes + max((r.bytes for r in self.rows), default=0)

    def __str__(self) -> str:
        cells = [("parameter", "function", "contraction", "positions", "MMAC", "MiB")]
        cells += [
            (r.parameter, r.function, r.contraction, str(r.positions), f"{r.macs / 1e6:.3g}", f"{r.bytes / 2**20:.3g}") for r in self.rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(6)]
        lines = ["  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip() for row in cells]
        lines.append(
            f"kernel {list(self.kernel_shape)} ({self.outputs}), {self.kernel_bytes / 2**20:.3g} MiB; contractions "
            f"{self.macs / 1e9:.3g} GMAC, "
            f"{self.seconds:.2g} s at {self.macs_per_second / 1e9:.3g} GMAC/s; peak {self.peak_bytes / 2**20:.3g} MiB "
            "beside the factors of one layer"
        )
        return "\n".join(lines)


@lru_cache(maxsize=16)
def machine_rate(device: str, dtype: torch.dtype, threads: int) -> float:
    """Multiply-adds a second of a 512 × 512 matrix product, measured for some milliseconds and remembered for the process.

    Args:
        device: Device type.
        dtype: Dtype.
        threads: Number of threads, part of what is remembered.

    Returns:
        The rate.
    """
    a = torch.ones(512, 512, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 512**3 / best


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

    Returns:
        The line.
    """
    n1, n2 = sides
    if method in ("unused", "folded"):
        return PlanRow(parameter, function, method, 0, 0, 0)
    if shape is not None and method in MACS:
        return PlanRow(
            parameter, function, method, shape.t, MACS[method](shape, outputs), workspace_bytes(shape, outputs, method, itemsize)
        )
    if shape is not None and method == "output":
        return PlanRow(parameter, function, method, 1, n1 * n2 * shape.k, workspace_bytes(shape, outputs, method, itemsize))
    held = (n1 if same else n1 + n2) * o * size * itemsize
    return PlanRow(
        parameter,
        function,
        method,
        1,
        dense_macs(sides, o, size, outputs, same),
        held if method == "exact" else min(held, max(CHUNK_BYTES, held // max(size, 1))),
    )
