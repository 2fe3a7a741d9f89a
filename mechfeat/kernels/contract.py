"""The contractions in torch: reference and CPU path.

Each adds to a kernel that is given, or returns a new one. Of one batch with itself only the lower triangle of what is added to is
meant; whoever owns the sum mirrors it once, at the end.

Index letters: n, m samples of the two sides; o, p outputs; t, s positions; c output channels; k input channels.
"""

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.kernels.layout import Outputs, new_kernel, widen
from mechfeat.kernels.patches import Patches
from mechfeat.kernels.products import LONGEST, product, quick
from mechfeat.kernels.symmetric import add_product, band, mirror

Right = Float[Tensor, "n t k"] | Int[Tensor, "n t"] | Patches
Other = Float[Tensor, "m s k"] | Int[Tensor, "m s"] | Patches  # the same of the second side
Sum = Float[Tensor, "..."] | None

TILE_BYTES = 2 << 20  # a tile of Gram entries that stays in the cache between its products and the sum they go to
CUDA_BYTES = 256 << 20  # the same on a GPU, where starting an operation costs more than memory does
CHUNK_BYTES = 32 << 20  # largest temporary of one contraction: near the size of a cache, and fresh pages cost as much as the products


def dense(J1: Float[Tensor, "n o p"], J2: Float[Tensor, "m o p"], outputs: Outputs, into: Sum = None) -> Float[Tensor, "..."]:
    r"""Kernel of gradients that are there as vectors.

    .. math:: Θ_{no,mp} = \langle J_{no}, J'_{mp} \rangle

    Args:
        J1: Gradients of the first side.
        J2: Gradients of the second side.
        outputs: ``full``, ``trace`` (sum over equal outputs) or ``diagonal`` (equal outputs, kept apart).
        into: Kernel to add to; its lower triangle, if both sides are one tensor.

    Returns:
        The kernel, shaped as :func:`kernel_shape` says. Half-precision input is accumulated and returned in float32.

    Cost:
        ``n m o² p`` multiply-adds for full, ``n m o p`` otherwise; little more than half of it for one batch with itself.

    Example:
        >>> J = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> dense(J, J, "trace")
        tensor([[5.]])
    """
    same = J1 is J2
    J1 = widen(J1)
    J2 = J1 if same else widen(J2)
    kernel = new_kernel(J1, len(J1), len(J2), J1.shape[1], outputs) if into is None else into
    if outputs == "full":
        rows, columns = len(J1) * J1.shape[1], len(J2) * J2.shape[1]
        add_product(kernel.view(rows, columns), J1.flatten(0, 1), J2.flatten(0, 1), lower=same)
    elif outputs == "trace":
        add_product(kernel, J1.flatten(1), J2.flatten(1), lower=same)
    else:
        for o in range(J1.shape[1]):
            add_product(kernel[..., o], J1[:, o], J2[:, o], lower=same)
    return _whole(kernel, outputs, same, into)


def block(
    left1: Float[Tensor, "n o t c"],
    right1: Right,
    left2: Float[Tensor, "m o s c"],
    right2: Other,
    outputs: Outputs,
    into: Sum = None,
) -> Float[Tensor, "..."]:
    """Kernel by way of each sample's weight gradient, a few input channels at a time.

    Best where there are many positions and the weight is small: early convolutions, long sequences.

    Args:
        left1: Gradients at the layer's output, first side.
        right1: The layer's inputs; integers stand for one-hot rows (an embedding's token ids), patches for their rows.
        left2: Gradients at the layer's output, second side.
        right2: The layer's inputs, second side.
        outputs: As for :func:`dense`.
        into: As for :func:`dense`.

    Returns:
        The kernel.

    Cost:
        ``(n + m) o t k c + n m o² k c`` multiply-adds (full), ``o`` times fewer in the second term otherwise, about half of it for one
        batch with itself; at most 32 MiB of gradients are held at a time, or one channel's if that is more.
    """
    same = left1 is left2 and right1 is right2
    left1 = widen(left1)
    left2 = left1 if same else widen(left2)
    right1, right2 = _columns(right1, right2, left1.dtype)
    (n, o, _, c), m, k = left1.shape, len(left2), right1.shape[-1]
    kernel = new_kernel(left1, n, m, o, outputs) if into is None else into
    unit = right1.taps if isinstance(right1, Patches) else 1
    step, step_o = block_steps(n if same else n + m, o, c, k, outputs, left1.element_size(), unit)
    room = [left1.new_empty(x * step_o * c * step) for x in ((n,) if same else (n, m))]  # written anew for each chunk
    for i in range(0, k, step):
        part = slice(i, min(i + step, k))
        rows1 = _some(right1, part)
        rows2 = rows1 if same else _some(right2, part)
        for a in range(0, o, step_o):
            J1 = _formed(left1[:, a : a + step_o], rows1, room[0])
            J2 = J1 if same else _formed(left2[:, a : a + step_o], rows2, room[1])
            dense(J1, J2, outputs, kernel[..., a : a + step_o] if outputs == "diagonal" else kernel)
    return _whole(kernel, outputs, same, into)


def block_steps(n: int, o: int, c: int, k: int, outputs: Outputs, itemsize: int, unit: int = 1) -> tuple[int, int]:
    """How many columns and outputs of the gradients :func:`block` forms at a time.

    Args:
        n: Samples of both sides.
        o: Outputs.
        c: Output channels.
        k: Input channels.
        outputs: What is kept of the outputs; only full needs all of them at once.
        itemsize: Bytes a number.
        unit: Columns that are formed together, where there is room for them.

    Returns:
        Input channels, outputs.
    """
    one = max(1, n * c * itemsize)
    step_o = max(1, o) if outputs == "full" else min(max(1, o), max(1, CHUNK_BYTES // (one * max(1, k))))
    step = min(max(1, k), max(1, CHUNK_BYTES // (one * step_o)), max(unit, LONGEST // max(1, c)))
    return (step // unit * unit if unit <= step < k else step), step_o


def _some(right: Float[Tensor, "n t k"] | Patches, part: slice) -> Float[Tensor, "n t j"]:
    return widen(right.rows(part)) if isinstance(right, Patches) else right[..., part]


def _formed(left: Float[Tensor, "n o t c"], right: Float[Tensor, "n t k"], room: Float[Tensor, " size"]) -> Float[Tensor, "n o p"]:
    (n, o, t, c), k = left.shape, right.shape[-1]
    J = room[: n * o * c * k].view(n, o, c, k)
    turned = left.mT
    if t == 1:
        torch.mul(left[:, :, 0, :, None], right[:, :, None], out=J)
    elif n and turned[0].is_contiguous():  # positions innermost, as convolutions have them: one product for all outputs
        rows, columns = turned.flatten(1, 2), right.mT
        if quick(rows[0], columns[0]):
            for i in range(n):
                J[i] = product(rows[i], columns[i]).view(o, c, k)
        else:
            torch.bmm(rows, right, out=J.view(n, o * c, k))
    else:
        for i in range(o):
            torch.bmm(turned[:, i], right, out=J[:, i])
    return J.flatten(2)


def gram(
    left1: Float[Tensor, "n o t c"],
    right1: Right,
    left2: Float[Tensor, "m o s c"],
    right2: Other,
    outputs: Outputs,
    into: Sum = None,
) -> Float[Tensor, "..."]:
    r"""Kernel by way of the Gram matrices of both factors; no weight gradient is ever formed.

    .. math:: Θ_{no,mp} = \textstyle\sum_{ts} \langle r_{nt}, r'_{ms} \rangle \langle l_{not}, l'_{mps} \rangle

    Best at a single position, always; and where positions are few against the size of the weight.

    Args:
        left1: Gradients at the layer's output, first side.
        right1: The layer's inputs; integers stand for one-hot rows (an embedding's token ids), patches for their rows.
        left2: Gradients at the layer's output, second side.
        right2: The layer's inputs, second side.
        outputs: As for :func:`dense`.
        into: As for :func:`dense`.

    Returns:
        The kernel.

    Cost:
        ``n m t s (k + o² c)`` multiply-adds (full), ``o`` times fewer in the second term otherwise; about half of it for one batch with
        itself. At most 2 MiB of Gram entries are held at a time, or one pair's if that is more.
    """
    same = left1 is left2 and right1 is right2
    left1 = widen(left1).contiguous()
    left2 = left1 if same else widen(left2).contiguous()
    right1, right2 = _for_gram(right1, right2)
    (n, o, t, _), (m, _, s, _) = left1.shape, left2.shape
    kernel = new_kernel(left1, n, m, o, outputs) if into is None else into
    for rows, columns in gram_tiles(n, m, o, t, s, outputs, left1.element_size(), same):
        L1, L2 = left1[rows], left2[columns]
        A = _right_gram(right1[rows], right2[columns], left1.dtype)
        if outputs == "full":
            if t == s == 1:
                G = product(L1.flatten(0, 2), L2.flatten(0, 2)).view(len(L1), o, -1)
                # Repeating along the columns alone leaves long rows to multiply; a stride of zero there would not.
                part = G.mul_(A[:, 0, :, 0].repeat_interleave(o, 1)[:, None]).view(len(L1), o, -1, o)
            else:
                G = einsum(L1, L2, "n o t c, m p s c -> n o t m p s")
                part = einsum(G, A, "n o t m p s, n t m s -> n o m p")
            kernel[rows, :, columns] += part
        elif outputs == "trace":
            if t == s == 1:  # one sum over outputs and channels
                kernel[rows, columns] += product(L1.flatten(1), L2.flatten(1)).mul_(A[:, 0, :, 0])
                continue
            G = einsum(L1, L2, "n o t c, m o s c -> n t m s")
            kernel[rows, columns] += G.mul_(A).sum((1, 3))
        else:
            for j in range(o):
                G = einsum(L1[:, j], L2[:, j], "n t c, m s c -> n t m s")
                kernel[rows, columns, j] += G.mul_(A).sum((1, 3))
    return _whole(kernel, outputs, same, into)


def gram_tiles(n: int, m: int, o: int, t: int, s: int, outputs: Outputs, itemsize: int, same: bool) -> list[tuple[slice, slice]]:
    """The tiles that :func:`gram` goes through.

    Args:
        n: Samples of the first side.
        m: Samples of the second side.
        o: Outputs.
        t: Positions of the first side.
        s: Positions of the second side.
        outputs: What is kept of the outputs.
        itemsize: Bytes a number.
        same: Both sides are one batch, whose lower triangle is enough.

    Returns:
        Samples of the first and of the second side.
    """
    if not o * t * s:
        return []
    one = t * (o if outputs == "full" else 1)
    high = max(1, band(n * one, same) // one)
    pair = t * s * itemsize * (1 + (o * o if outputs == "full" else 1))
    wide = max(1, min(m, TILE_BYTES // (pair * high)))
    tiles = []
    for i in range(0, n, high):
        end = min(i + high, n)
        for j in range(0, end if same else m, wide):
            tiles.append((slice(i, end), slice(j, min(j + wide, end if same else m))))
    return tiles


def mixed(
    left1: Float[Tensor, "n o t c"],
    right1: Right,
    left2: Float[Tensor, "m o s c"],
    right2: Other,
    outputs: Outputs,
    into: Sum = None,
) -> Float[Tensor, "..."]:
    r"""Kernel by way of the Gram of the inputs alone, which carries the second side's gradients to the first side's positions.

    .. math:: Θ_{no,mp} = \textstyle\sum_t \Big\langle l_{not}, \sum_s \langle r_{nt}, r'_{ms} \rangle l'_{mps} \Big\rangle

    Best with a few positions and a large weight: late convolutions.

    Args:
        left1: Gradients at the layer's output, first side.
        right1: The layer's inputs; integers stand for one-hot rows (an embedding's token ids), patches for their rows.
        left2: Gradients at the layer's output, second side.
        right2: The layer's inputs, second side.
        outputs: As for :func:`dense`.
        into: As for :func:`dense`.

    Returns:
        The kernel.

    Cost:
        ``n m (t s k + t s o c + o² t c)`` multiply-adds (full), the last term ``o`` times fewer otherwise; about half of it for one batch
        with itself. At most 2 MiB of carried gradients are held at a time, or those of one pair of samples.
    """
    same = left1 is left2 and right1 is right2
    # Positions innermost: the carried gradients then come as they are met.
    left1 = widen(left1).mT.contiguous()
    left2 = left1 if same else widen(left2).mT.contiguous()
    right1, right2 = _for_gram(right1, right2)
    (n, o, c, t), m = left1.shape, len(left2)
    kernel = new_kernel(left1, n, m, o, outputs) if into is None else into
    step = mixed_step(n, o, t, c, left1.element_size(), TILE_BYTES if left1.device.type == "cpu" else CUDA_BYTES)
    for j in range(m if o * t else 0):
        for i in range(j if same else 0, n, step):
            rows = slice(i, i + step)
            A = _right_gram(right1[rows], right2[j : j + 1], left1.dtype)[:, :, 0]
            G = left1[rows].flatten(2)
            carried = _carried(left2[j].flatten(0, 1), A).view(len(G), o, c * t)
            if outputs == "full":
                kernel[rows, :, j] += torch.bmm(G, carried.mT)
            else:
                diagonal = einsum(G, carried, "n o p, n o p -> n o")
                kernel[rows, j] += diagonal.sum(1) if outputs == "trace" else diagonal
    return _whole(kernel, outputs, same, into)


def _carried(left: Float[Tensor, "p s"], A: Float[Tensor, "n t s"]) -> Float[Tensor, "n p t"]:
    columns = A.flatten(0, 1)
    if quick(left, columns):
        return product(left, columns).unflatten(1, A.shape[:2]).transpose(0, 1).contiguous()
    return torch.bmm(left.expand(len(A), *left.shape), A.mT)


def mixed_step(n: int, o: int, t: int, c: int, itemsize: int, room: int | None = None) -> int:
    """Samples of the first side to which :func:`mixed` carries one of the second at a time.

    Args:
        n: Samples of the first side.
        o: Outputs.
        t: Positions of the first side.
        c: Output channels.
        itemsize: Bytes a number.
        room: Bytes of what is carried; by default those on a CPU.

    Returns:
        Their number.
    """
    return min(max(1, n), max(1, (room or TILE_BYTES) // max(1, o * t * c * itemsize)))


def _whole(kernel: Tensor, outputs: Outputs, same: bool, into: Sum) -> Tensor:
    if same and into is None:
        mirror(kernel, outputs)
    return kernel


def _right_gram(right1: Right, right2: Other, dtype: torch.dtype) -> Float[Tensor, "n t m s"]:
    if isinstance(right1, Patches):
        assert isinstance(right2, Patches)
        return right1.gram(right2)
    assert isinstance(right2, Tensor)
    if right1.is_floating_point():
        (n, t, k), (m, s, _) = right1.shape, right2.shape
        return product(widen(right1).reshape(n * t, k), widen(right2).reshape(m * s, k)).view(n, t, m, s)
    return (right1[:, :, None, None] == right2).to(dtype)


def _for_gram(right1: Right, right2: Other) -> tuple[Right, Other]:
    """Patches whose pixels are multiplied stay patches; of others the rows are formed, once."""
    same = right1 is right2
    if isinstance(right1, Patches) and isinstance(right2, Patches) and right1.shares:
        first = right1.channels_last()
        return first, first if same else right2.channels_last()
    first_rows = right1.rows() if isinstance(right1, Patches) else right1
    if same:
        return first_rows, first_rows
    return first_rows, right2.rows() if isinstance(right2, Patches) else right2


def _columns(right1: Right, right2: Other, dtype: torch.dtype) -> tuple[Float[Tensor, "n t k"] | Patches, Float[Tensor, "m s k"] | Patches]:
    """Factors that have columns: token ids as one-hot rows over the ids that occur; the others have no gradient."""
    if isinstance(right1, Patches) or isinstance(right2, Patches):
        return right1, right2
    if right1.is_floating_point():
        return widen(right1), widen(right2)
    ids, where = torch.cat([right1.flatten(), right2.flatten()]).unique(return_inverse=True)
    hot = torch.nn.functional.one_hot(where, max(1, len(ids))).to(dtype)
    first = hot[: right1.numel()].view(*right1.shape, hot.shape[1])
    same = right1 is right2
    return first, first if same else hot[right1.numel() :].view(*right2.shape, hot.shape[1])
