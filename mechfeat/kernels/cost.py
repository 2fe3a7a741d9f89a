"""When a fused kernel beats the torch path: counted multiply-adds and bytes, for a device of given speed.

The torch path makes one array after the other, so that its products and its memory traffic take their time in turn. A fused kernel
overlaps the two, but multiplies at a part of the rate of a library's product, on tiles that positions and channels are rounded up to,
and its programs share what they read less well. What a program reads is counted as memory traffic, though most of it comes from the
cache. The torch path starts many small operations, for it was made for tiles that stay in a CPU's cache, and it takes at least the time
of starting them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mechfeat.kernels.contract import CUDA_BYTES, TILE_BYTES, mixed_step
from mechfeat.kernels.layout import Outputs
from mechfeat.kernels.tiles import CUDA_TILE

EFFICIENCY = 0.7  # rate of a product inside a fused kernel over that of a library's large product; assumed, not measured
LAUNCH = 4e-6  # seconds to start an operation; assumed, not measured
POSITIONS = (16, 32, 64)  # tiles of the kernels of pairs
ROWS = (32, 64, 128)  # tiles of the kernel of single positions
CHANNELS = 16  # what sums are rounded up to inside the kernels of pairs
PACKED = 16  # what a layer's columns are rounded up to in the kernel of single positions
OUTPUTS_OF_A_PROGRAM = 16
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Speed:
    """What a device does in a second.

    Attributes:
        bandwidth: Bytes read or written.
        rate: Floating-point operations of a large matrix product, two a multiply-add.
    """

    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Work:
    """What a computation does.

    Attributes:
        flops: Floating-point operations, two a multiply-add.
        bytes: Bytes read and written.
        launches: Operations that are started.
    """

    flops: int
    bytes: int
    launches: int = 1


@dataclass(frozen=True)
class Sizes:
    """The numbers that a contraction of two families depends on.

    Attributes:
        n: Samples of the first side.
        m: Samples of the second side.
        o: Outputs.
        t: Positions of the first side.
        s: Positions of the second side.
        c: Output channels.
        k: Input channels; 1 for token ids, which are compared.
        outputs: What is kept of the outputs.
        same: Both sides are one batch, of which the lower triangle is computed.
    """

    n: int
    m: int
    o: int
    t: int
    s: int
    c: int
    k: int
    outputs: Outputs
    same: bool

    @property
    def pairs(self) -> int:
        """Pairs of samples."""
        return self.n * (self.n + 1) // 2 if self.same else self.n * self.m

    @property
    def met(self) -> int:
        """Pairs of outputs."""
        return self.o**2 if self.outputs == "full" else self.o

    @property
    def blocks(self) -> int:
        """Programs that share a pair of samples; each makes the Gram of the inputs anew."""
        b = _blocks(self.o, OUTPUTS_OF_A_PROGRAM)
        return {"full": b * b, "diagonal": b, "trace": 1}[self.outputs]


def pays(torch: Work, fused: Sequence[Work], speed: Speed) -> bool:
    r"""Whether a fused kernel is expected to be faster.

    .. math:: \min_{\text{tile}} \max\Big(\frac{F'}{ηr}, \frac{B'}{b}\Big) < \max\Big(\frac{F}{r} + \frac{B}{b}, Lτ\Big)

    with F, B, L the operations, bytes and launches of the torch path, F', B' those of the kernel with a tile, r and b rate and bandwidth of
    the device, η = 0.7, τ = 4 µs.

    Args:
        torch: What the torch path does.
        fused: What the kernel does, for each tile it may take.
        speed: The device's.

    Returns:
        The answer.

    Example:
        >>> gpu = Speed(bandwidth=4.8e12, rate=50e12)
        >>> small, large = [(128, 128)], [(2048, 2048)]  # one layer of 16,384 samples with one output
        >>> [pays(singles_torch(16384, 16384, 1, x, True), singles_fused(16384, 16384, 1, x, True), gpu) for x in (small, large)]
        [True, False]
    """
    ours = min(max(w.flops / (EFFICIENCY * speed.rate), w.bytes / speed.bandwidth) for w in fused)
    return ours < max(torch.flops / speed.rate + torch.bytes / speed.bandwidth, torch.launches * LAUNCH)


def gram_torch(x: Sizes) -> Work:
    """The gram order in torch: both Grams are written; that of the gradients is weighted or reordered, and summed.

    Args:
        x: Sizes.

    Returns:
        ``2 pairs t s (k + o² c + o²)`` operations; the larger array passes memory four times, the smaller one twice.
    """
    grams = x.met if x.outputs != "trace" else 1  # a trace sums over outputs in the product
    entries = x.pairs * x.t * x.s
    held = x.t * x.s * (1 + (x.o**2 if x.outputs == "full" else 1)) * FLOAT
    tiles = min(x.pairs, _blocks(x.pairs * held, TILE_BYTES)) * (x.o if x.outputs == "diagonal" else 1)
    return Work(2 * entries * (x.k + x.met * x.c + grams), FLOAT * (entries * (2 + 4 * grams) + 2 * x.pairs * _kept(x)), 6 * tiles)


def gram_fused(x: Sizes) -> list[Work]:
    """The gram order in a fused kernel, for each of its tiles.

    Args:
        x: Sizes.

    Returns:
        Operations on whole tiles; for each of them two strips of ``tile`` rows are read for every product.
    """
    terms = x.blocks * _up(x.k, CHANNELS) + x.met * _up(x.c, CHANNELS)

    def at(tile: int) -> Work:
        area = x.pairs * _up(x.t, tile) * _up(x.s, tile)
        return Work(2 * area * terms, FLOAT * (area // tile**2 * 2 * tile * terms + 2 * x.pairs * _kept(x)))

    return [at(tile) for tile in POSITIONS]


def mixed_torch(x: Sizes) -> Work:
    """The mixed order in torch: the Gram of the inputs and the carried gradients are written and read.

    Args:
        x: Sizes.

    Returns:
        ``2 pairs (t s k + t s o c + o² t c)`` operations; ``pairs t (s + o c)`` entries pass memory twice.
    """
    products = x.t * x.s * (x.k + x.o * x.c) + x.met * x.t * x.c
    calls = x.m * _blocks(x.n, mixed_step(x.n, x.o, x.t, x.c, FLOAT, CUDA_BYTES))
    return Work(2 * x.pairs * products, FLOAT * x.pairs * (2 * x.t * (x.s + x.o * x.c) + 3 * _kept(x)), 5 * calls)


def mixed_fused(x: Sizes) -> list[Work]:
    """The mixed order in a fused kernel, for each of its tiles.

    Args:
        x: Sizes.

    Returns:
        Operations on whole tiles, where the last product is taken for each tile of positions of the second side; both sides' gradients
        are read once for each pair of tiles.
    """
    c, full = _up(x.c, CHANNELS), x.outputs == "full"
    again = _blocks(x.o, OUTPUTS_OF_A_PROGRAM) if full else 1  # carried gradients are made for each block of outputs
    rows = min(OUTPUTS_OF_A_PROGRAM, _power(x.o))
    met = _up(x.o, rows) * x.o if full else x.o

    def at(tile: int) -> Work:
        t, s = _up(x.t, tile), _up(x.s, tile)
        products = t * s * (x.blocks * _up(x.k, CHANNELS) + again * x.o * c) + s // tile * met * t * c
        read = (t // tile) * (s // tile) * 2 * tile * (x.blocks * _up(x.k, CHANNELS) + again * x.o * c)
        return Work(2 * x.pairs * products, FLOAT * x.pairs * (read + 2 * _kept(x)))

    return [at(tile) for tile in POSITIONS]


def singles_torch(n: int, m: int, o: int, layers: Sequence[tuple[int, int]], same: bool) -> Work:
    """Layers with one position in torch: for each, two Grams are written, read, and added to the tile.

    Args:
        n: Samples of the first side.
        m: Samples of the second side.
        o: Outputs.
        layers: Output and input channels of each; 0 output channels for unit gradients.
        same: Both sides are one batch.

    Returns:
        ``2 n m (k + o² c)`` operations a layer, and six passes of the kernel: two products written, both and the sum read, the sum written.
    """
    pairs = n * (n + 1) // 2 if same else n * m
    flops = sum(2 * pairs * (k + o * o * c) for c, k in layers)
    passes = sum(6 if c else 2 for c, _ in layers)
    tiles = _blocks(n * o, CUDA_TILE) * _blocks(m * o, CUDA_TILE)
    return Work(flops, FLOAT * o * o * (pairs * passes + 2 * pairs + n * m), tiles * (3 * len(layers) + 3))


def singles_fused(n: int, m: int, o: int, layers: Sequence[tuple[int, int]], same: bool) -> list[Work]:
    """Layers with one position in one launch, for each of its tiles.

    Args:
        n: Samples of the first side.
        m: Samples of the second side.
        o: Outputs.
        layers: Output and input channels of each; 0 output channels for unit gradients.
        same: Both sides are one batch.

    Returns:
        ``2 n m o² (k + c)`` operations a layer on whole tiles; two strips of ``tile`` rows a tile are read, and the kernel is written once.
    """
    terms = sum(_up(c, PACKED) + _up(k, PACKED) for c, k in layers)
    pack = (n if same else n + m) * sum(2 * (o * c + k) for c, k in layers)  # the factors are copied side by side

    def at(tile: int) -> Work:
        high, wide = _blocks(n * o, tile), _blocks(m * o, tile)
        tiles = high * (high + 1) // 2 if same else high * wide
        return Work(2 * tiles * tile**2 * terms, FLOAT * (tiles * 2 * tile * terms + 2 * n * m * o * o + pack))

    return [at(tile) for tile in ROWS]


def _kept(x: Sizes) -> int:
    return {"full": x.o**2, "diagonal": x.o, "trace": 1}[x.outputs]


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _up(size: int, block: int) -> int:
    return _blocks(size, block) * block


def _power(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
