"""How much memory a kernel takes, as a function of the size of its blocks, and the largest blocks that a cap allows."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mechfeat.errors import MemoryCapError
from mechfeat.kernels import Outputs, kernel_shape
from mechfeat.ntk.capture import Capture
from mechfeat.ntk.counts import workspace_bytes
from mechfeat.ntk.outlines import Choose, Formed, Outline, foresee
from mechfeat.ntk.tile import Foreseen
from mechfeat.ntk.total import LARGE, widened

SAFETY = 1.2  # a cap is obeyed even where the prediction is too small by so much
MARGIN = 1 << 20  # bytes that torch takes for itself: workspaces of products, pages not given back


@dataclass
class Saved:
    """Counts what a forward pass keeps for its backward pass.

    Attributes:
        bytes: Bytes of tensors that are no parameters, each storage once.
        seen: Addresses of what was counted, and of what is not to be.
    """

    bytes: int = 0
    seen: set[int] = field(default_factory=set)

    def add(self, address: int, size: int) -> None:
        """Count a storage, unless it has been."""
        self.bytes += 0 if address in self.seen else size
        self.seen.add(address)

    @contextmanager
    def watching(self, owned: set[int]) -> Iterator[None]:
        """Count within a block.

        Args:
            owned: Addresses of the storages that are not counted, such as those of parameters.

        Yields:
            Nothing.
        """
        self.seen |= owned

        def pack(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            self.add(storage.data_ptr(), storage.nbytes())
            return t.detach()

        pack.counts = True  # type: ignore[attr-defined]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            yield


@dataclass(frozen=True)
class Footprint:
    """Bytes that one sample takes on one side, and what does not depend on samples.

    Attributes:
        graph: What the forward pass keeps.
        taps: Bytes of one output's gradient at each tap, and what is kept of it while the other outputs are sent.
        outlines: Outlines of the gradients of all parameters, as of one sample and output.
        exact: Entries of the parameters that the exact path computes.
        weights: Bytes of all trainable parameters, which the proof's gradient takes again.
        anew: Bytes of weights that are laid out anew: the largest one by libraries for themselves, those of linear layers here.
        forward: Seconds of the forward pass of the block it was measured on.
    """

    graph: float
    taps: tuple[tuple[float, float], ...]
    outlines: Mapping[str, list[Outline | Formed]]
    exact: int
    weights: int
    anew: int
    forward: float

    @classmethod
    def of(cls, seen: Foreseen, forward: float, graph: int, sizes: Mapping[str, int], itemsize: int) -> "Footprint":
        """The footprint of a block that was captured.

        Args:
            seen: The block.
            forward: Seconds of its forward pass.
            graph: Bytes that its forward pass kept.
            sizes: Entries of each trainable parameter.
            itemsize: Bytes of one.

        Returns:
            The footprint.
        """
        return cls(
            graph / seen.n,
            tuple((whole / seen.n, kept / seen.n) for whole, kept in seen.sizes),
            seen.outlines,
            sum(sizes[name] for name in seen.capture.unfit),
            sum(sizes.values()) * itemsize,
            2 * max(sizes.values()) * itemsize + sum(seen.capture.turned.values()),
            forward,
        )

    def matrices(self) -> Iterator[Outline]:
        """The gradients that are outer products.

        Yields:
            Their outlines.
        """
        for found in self.outlines.values():
            yield from (a for a in found if isinstance(a, Outline))

    def passes(self, b: int, o: int) -> float:
        """Bytes of the gradients that wait for the other outputs, and of those under way.

        Args:
            b: Samples of the block.
            o: Outputs, or rows in their place.

        Returns:
            Bytes.
        """
        largest = max((whole for whole, _ in self.taps), default=0.0)
        step = Capture.at_once(o, [whole * b for whole, _ in self.taps])
        waiting = sum(kept for _, kept in self.taps) * o if step < o else 0.0
        return float((waiting + 3 * step * largest) * b)

    def kept(self, b: int, o: int) -> float:
        """Bytes of a block's factors while other blocks meet it.

        Args:
            b: Samples of the block.
            o: Outputs, or rows in their place.

        Returns:
            Bytes.
        """
        rows = sum(a.t * max(a.k, 1) * a.itemsize for a in self.matrices())
        return float((rows + o * sum(kept for _, kept in self.taps)) * b)


def peak(
    prints: tuple[Footprint, ...],
    sides: tuple[int, int],
    blocks: tuple[int, int],
    o: int,
    rows: int,
    outputs: Outputs,
    itemsize: int,
    choose: Callable[[str], Choose],
    layerwise: int,
) -> int:
    """Predicted peak of a computation, beside the model and the batches.

    Args:
        prints: Footprint of each side.
        sides: Samples of the two sides.
        blocks: Samples of a block of each.
        o: Outputs.
        rows: Rows sent back at a time in their place, with a wide head; otherwise the outputs.
        outputs: What is kept of them.
        itemsize: Bytes of a number of the kernel.
        choose: Decides between the orders, for a parameter.
        layerwise: Kernels of parameters that are kept.

    Returns:
        Bytes.
    """
    same = len(prints) == 1
    left, right = prints[0], prints[-1]
    b1, b2 = blocks
    tiled = b1 < sides[0] or b2 < sides[1]
    kernel = torch.Size(kernel_shape(*sides, o, outputs)).numel() * itemsize * (1 + layerwise)
    part = torch.Size(kernel_shape(b1, b2, o, outputs)).numel() * itemsize
    single = part > LARGE and not layerwise and (outputs == "full" or o == 1)  # parts of single positions are summed last
    wide = 8 / itemsize if outputs == "trace" and itemsize < 8 and not single else 0
    extra = part * (wide + (layerwise > 0) + tiled)
    if not wide and itemsize < 8 and any(widened(a.t, (b1, b2), a.c, o, outputs) for a in left.matrices()):
        wide = 8 / itemsize
        extra += part * wide
    room = held = lent = 0.0
    for name, found in left.outlines.items():
        ours = _sized(found, b1, rows)
        theirs = ours if same and not tiled else _sized(right.outlines.get(name, []), b2, rows)
        for shape, _ in foresee(ours, theirs, 0):
            if shape is None:
                continue
            how = choose(name)(shape, outputs)
            deferred = single and shape.t == shape.s == 1 and how in ("gram", "output")
            held += b1 * (rows * shape.c + shape.k) * shape.itemsize if deferred else 0
            room = max(room, 0 if deferred else workspace_bytes(shape, outputs, how, shape.itemsize))
            formed = not shape.one_hot and (shape.taps == 1 or (how != "block" and not shape.pixel_macs))
            own = b1 * shape.t * shape.k if formed else 0  # of patches the block order forms a few channels at a time
            turned = b1 * rows * shape.t * shape.c if how == "mixed" or (how == "gram" and shape.taps > 1) else 0  # laid out anew
            lent = max(lent, (own + turned) * shape.itemsize)
    mirrored = 3 * min(b1 * (o if outputs == "full" else 1), 512) ** 2 * (8 if wide else itemsize) if same else 0
    J = (b1 + (0 if same and not tiled else b2)) * o * left.exact * itemsize
    other = right.kept(b2, rows) if tiled or not same else 0.0
    run = max(left.graph * b1 + left.passes(b1, rows) + room + lent, J) + other + held + left.anew
    if not same:
        run = max(run, right.graph * b2 + right.passes(b2, rows) + right.kept(b2, rows))
    proof = left.graph * max(b1, min(4, sides[0])) + left.weights * (2 + (not same))
    return int(kernel + extra + mirrored + max(run, proof)) + MARGIN


def _sized(found: list[Outline | Formed], n: int, o: int) -> list[Outline | Formed]:
    return [replace(a, n=n, o=o) if isinstance(a, Outline) else a for a in found]


def largest_block(n: int, at: Callable[[int], int], cap: int) -> int | None:
    """The largest blocks whose peak is within a cap, with a fifth to spare.

    Args:
        n: Samples of the larger side.
        at: Peak of blocks of a size.
        cap: Bytes.

    Returns:
        Samples a block; None for all of them at once.

    Raises:
        MemoryCapError: Not even blocks of one sample are.
    """

    def needs(b: int) -> int:
        return math.ceil(at(b) * SAFETY)

    if needs(n) <= cap:
        return None
    low, high = 1, n
    if needs(low) > cap:
        raise MemoryCapError(cap, min(needs(low), needs(n)))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(middle) <= cap else (low, middle)
    return low
