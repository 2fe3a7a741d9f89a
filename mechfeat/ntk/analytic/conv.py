"""The text CNN at infinite width: pairs of windows, by the number of tokens they share in place."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.models.text.conv import TextCNN, has_window, window_options
from mechfeat.models.text.ids import PAD, widened
from mechfeat.ntk.analytic.base import AnalyticKernel, init_of
from mechfeat.ntk.analytic.hidden import hidden_layer
from mechfeat.ntk.dual import Activation
from mechfeat.ntk.dual.activation import check_activation


@dataclass(frozen=True, kw_only=True)
class ConvKernel(AnalyticKernel):
    r"""Kernel of :class:`~mechfeat.models.text.TextCNN`.

    For windows A, B of n and n' tokens, o of which are equal in place,

    .. math:: Θ(A, B) = k(τ^2 n, τ^2 n', τ^2 o) + s_v^2 (s_e^2 + s_w^2)\, o\, k_1(τ^2 n, τ^2 n', τ^2 o) ,

    summed over all pairs of windows.

    Attributes:
        activation: φ.
        kernel_size: Tokens K of a window.
        padding: Places by which windows may stand out at each end; K - 1 for None.

    Raises:
        OptionError: A window would hold no token.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks* (the model); the kernel is derived in the guide.

    Example:
        >>> ConvKernel(activation=Activation.of("linear"), kernel_size=2)(torch.tensor([[0, 1], [1, -1]]))
        tensor([[12.,  6.],
                [ 6.,  6.]], dtype=torch.float64)
    """

    activation: Activation
    kernel_size: int = 3
    padding: int | None = None

    def __post_init__(self) -> None:
        check_activation(self.activation)
        window_options(self.kernel_size, self.padding)

    @classmethod
    def of(cls, module: TextCNN) -> "ConvKernel":
        """The kernel of a text CNN.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(
            activation=Activation.of(module.activation),
            kernel_size=module.kernel_size,
            padding=module.padding,
            init=init_of(module),
            n_tokens=module.n_tokens,
        )

    @cached_property
    def table(self) -> Float[Tensor, "n1 n2 overlap"]:
        """Kernel of two windows by their tokens and overlap, each from 0 to K."""
        K = self.kernel_size
        steps = torch.arange(K + 1, dtype=torch.float64)
        n1, n2, o = torch.meshgrid(steps, steps, steps, indexing="ij")
        o = torch.minimum(o, torch.minimum(n1, n2))  # what no windows have repeats what some have
        found = hidden_layer(self.activation, self.init, n1, n2, o)
        found[0], found[:, 0] = 0.0, 0.0  # no window
        return found

    def _windows(self, ids: Int[Tensor, "doc position"]) -> tuple[Int[Tensor, "doc window place"], Int[Tensor, "doc window"]]:
        """Tokens of each window, and how many; none for windows that are not the document's."""
        K, padding = window_options(self.kernel_size, self.padding)
        ids = widened(ids, K - 2 * padding)
        tokens = F.pad(ids, (padding, padding), value=PAD).unfold(1, K, 1)
        n = (tokens >= 0).sum(-1) * has_window(ids, K, padding)
        return tokens, n

    def _block(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"]) -> Float[Tensor, "n1 n2"]:
        (A, n), (B, m) = self._windows(x1), self._windows(x2)
        # One place at a time, so that the K-fold array of comparisons never exists.
        o = torch.zeros(len(x1), len(x2), A.shape[1], B.shape[1], dtype=torch.int64, device=x1.device)
        for k in range(self.kernel_size):
            a, b = A[..., k], B[..., k]
            o += (a[:, None, :, None] == b[None, :, None, :]) & (a >= 0)[:, None, :, None]
        index = (n[:, None, :, None] * (self.kernel_size + 1) + m[None, :, None, :]) * (self.kernel_size + 1) + o
        return self.table.flatten().to(x1.device)[index].sum((2, 3))

    def _cells(self, T1: int, T2: int) -> int:
        return (T1 + self.kernel_size) * (T2 + self.kernel_size)
