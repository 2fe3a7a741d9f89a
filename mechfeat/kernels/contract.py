"""The contractions in torch: reference and CPU path.

Index letters: n, m samples of the two sides; o, p outputs; t, s positions; c output channels; k input channels.
"""

from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

Outputs = Literal["full", "trace", "diagonal"]
Right = Float[Tensor, "n t k"] | Int[Tensor, "n t"]
Other = Float[Tensor, "m s k"] | Int[Tensor, "m s"]  # the same of the second side

CHUNK_BYTES = 128 << 20  # largest temporary of one contraction; chosen to bound memory, not tuned for speed


def kernel_shape(n1: int, n2: int, o: int, outputs: Outputs) -> tuple[int, ...]:
    """Shape of a kernel.

    Args:
        n1: Samples of the first side.
        n2: Samples of the second side.
        o: Outputs of the model.
        outputs: What is kept of them.

    Returns:
        ``[n1 o n2 o]`` for full, ``[n1 n2]`` for trace, ``[n1 n2 o]`` for diagonal.
    """
    return {"full": (n1, o, n2, o), "trace": (n1, n2), "diagonal": (n1, n2, o)}[outputs]


def dense(J1: Float[Tensor, "n o p"], J2: Float[Tensor, "m o p"], outputs: Outputs) -> Float[Tensor, "..."]:
    r"""Kernel of gradients that are there as vectors.

    .. math:: Θ_{no,mp} = \langle J_{no}, J'_{mp} \rangle

    Args:
        J1: Gradients of the first side.
        J2: Gradients of the second side.
        outputs: ``full``, ``trace`` (sum over equal outputs) or ``diagonal`` (equal outputs, kept apart).

    Returns:
        The kernel, shaped as :func:`kernel_shape` says. Half-precision input is accumulated and returned in float32.

    Cost:
        ``n m o² p`` multiply-adds for full, ``n m o p`` otherwise.

    Example:
        >>> J = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> dense(J, J, "trace")
        tensor([[5.]])
    """
    J1, J2 = widen(J1), widen(J2)
    (n, o, _), m = J1.shape, len(J2)
    if outputs == "full":
        return (J1.flatten(0, 1) @ J2.flatten(0, 1).T).view(n, o, m, o)
    if outputs == "trace":
        return J1.flatten(1) @ J2.flatten(1).T
    return torch.bmm(J1.transpose(0, 1), J2.permute(1, 2, 0)).permute(1, 2, 0)


def block(
    left1: Float[Tensor, "n o t c"], right1: Right, left2: Float[Tensor, "m o s c"], right2: Other, outputs: Outputs
) -> Float[Tensor, "..."]:
    """Kernel by way of each sample's weight gradient, a few output channels at a time.

    Best where there are many positions and the weight is small: early convolutions, long sequences.

    Args:
        left1: Gradients at the layer's output, first side.
        right1: The layer's inputs; integers stand for one-hot rows (an embedding's token ids).
        left2: Gradients at the layer's output, second side.
        right2: The layer's inputs, second side.
        outputs: As for :func:`dense`.

    Returns:
        The kernel.

    Cost:
        ``(n + m) o t k c + n m o² k c`` multiply-adds (full), ``o`` times fewer in the second term otherwise; at most
        128 MiB of gradients are held at a time, or one channel's if that is more.
    """
    left1, left2 = widen(left1), widen(left2)
    right1, right2 = _rows(right1, right2, left1.dtype)
    (n, o, _, c), m, k = left1.shape, len(left2), right1.shape[-1]
    step = max(1, CHUNK_BYTES // max(1, (n + m) * o * k * left1.element_size()))
    same = left1 is left2 and right1 is right2
    kernel = left1.new_zeros(kernel_shape(n, m, o, outputs))
    for i in range(0, c, step):
        J1 = einsum(left1[..., i : i + step], right1, "n o t c, n t k -> n o c k").flatten(2)
        J2 = J1 if same else einsum(left2[..., i : i + step], right2, "n o t c, n t k -> n o c k").flatten(2)
        kernel += dense(J1, J2, outputs)
    return kernel


def gram(
    left1: Float[Tensor, "n o t c"], right1: Right, left2: Float[Tensor, "m o s c"], right2: Other, outputs: Outputs
) -> Float[Tensor, "..."]:
    r"""Kernel by way of the Gram matrices of both factors; no weight gradient is ever formed.

    .. math:: Θ_{no,mp} = \textstyle\sum_{ts} \langle r_{nt}, r'_{ms} \rangle \langle l_{not}, l'_{mps} \rangle

    Best at a single position, always; and where positions are few against the size of the weight.

    Args:
        left1: Gradients at the layer's output, first side.
        right1: The layer's inputs; integers stand for one-hot rows (an embedding's token ids).
        left2: Gradients at the layer's output, second side.
        right2: The layer's inputs, second side.
        outputs: As for :func:`dense`.

    Returns:
        The kernel.

    Cost:
        ``n m (t s k + o² t s (c + 1))`` multiply-adds (full), ``o`` times fewer in the second term otherwise; at most 128 MiB
        of Gram entries are held at a time, or one sample's if that is more.
    """
    left1, left2 = widen(left1), widen(left2)
    (n, o, t, _), (m, _, s, _) = left1.shape, left2.shape
    if t == s == 1:
        A = _right_gram(right1, right2, left1.dtype)[:, 0, :, 0]
        if outputs == "full":
            return dense(left1[:, :, 0], left2[:, :, 0], "full").mul_(A[:, None, :, None])
        G = dense(left1[:, :, 0], left2[:, :, 0], outputs)
        return G.mul_(A if outputs == "trace" else A[..., None])
    kernel = left1.new_empty(kernel_shape(n, m, o, outputs))
    per_sample = t * m * s * left1.element_size() * (1 + (o * o if outputs == "full" else 1))
    step = max(1, CHUNK_BYTES // max(1, per_sample))
    for i in range(0, n, step):
        rows = slice(i, i + step)
        A = _right_gram(right1[rows], right2, left1.dtype)
        if outputs == "full":
            G = einsum(left1[rows], left2, "n o t c, m p s c -> n o t m p s")
            kernel[rows] = einsum(G, A, "n o t m p s, n t m s -> n o m p")
        elif outputs == "trace":
            G = einsum(left1[rows], left2, "n o t c, m o s c -> n t m s")
            kernel[rows] = einsum(G, A, "n t m s, n t m s -> n m")
        else:
            for j in range(o):
                G = einsum(left1[rows, j], left2[:, j], "n t c, m s c -> n t m s")
                kernel[rows, :, j] = einsum(G, A, "n t m s, n t m s -> n m")
    return kernel


def widen(x: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is.

    Args:
        x: Factors or gradients.

    Returns:
        A tensor to accumulate in.
    """
    # A Gram of 4096 half-precision products overflows, and sums of thousands of them lose three digits.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _right_gram(right1: Right, right2: Other, dtype: torch.dtype) -> Float[Tensor, "n t m s"]:
    if right1.is_floating_point():
        return einsum(widen(right1), widen(right2), "n t k, m s k -> n t m s")
    return (right1[:, :, None, None] == right2).to(dtype)


def _rows(right1: Right, right2: Other, dtype: torch.dtype) -> tuple[Float[Tensor, "n t k"], Float[Tensor, "m s k"]]:
    """One-hot rows over the ids that occur; the others have no gradient."""
    if right1.is_floating_point():
        return widen(right1), widen(right2)
    ids, where = torch.cat([right1.flatten(), right2.flatten()]).unique(return_inverse=True)
    hot = torch.nn.functional.one_hot(where, max(1, len(ids))).to(dtype)
    first = hot[: right1.numel()].view(*right1.shape, hot.shape[1])
    same = right1 is right2
    return first, first if same else hot[right1.numel() :].view(*right2.shape, hot.shape[1])
