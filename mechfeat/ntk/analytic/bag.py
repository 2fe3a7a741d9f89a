"""The bag of tokens at infinite width: a linear model of counts, and one feature that all tokens share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import NonFiniteError, ShapeError
from mechfeat.models.text.bag import BagMLP
from mechfeat.ntk.analytic.base import init_of
from mechfeat.ntk.analytic.features import FeatureBlock, FeatureKernel, FeatureMap, Sparse, gram, length_column, token_counts
from mechfeat.ntk.analytic.hidden import hidden_layer
from mechfeat.ntk.dual import Activation
from mechfeat.ntk.dual.activation import check_activation


@dataclass(frozen=True, kw_only=True)
class BagKernel(FeatureKernel):
    r"""Kernel of :class:`~mechfeat.models.text.BagMLP`.

    .. math:: Θ(x, x') = (ρ - μ) \sum_w n_w(x)\, n_w(x') + μ\, T(x)\, T(x')

    with :math:`ρ = k(τ^2, τ^2, τ^2) + s_v^2 (s_e^2 + s_w^2)\, k_1(τ^2, τ^2, τ^2)` for two equal tokens and
    :math:`μ = k(τ^2, τ^2, 0) = (E\, φ(τ z))^2` for two different ones.

    Attributes:
        activation: φ.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks* (the model); the kernel is derived in the guide.

    Example:
        >>> kernel = BagKernel(activation=Activation.of("relu"))
        >>> kernel.rho, round(kernel.mu, 4)
        (1.5, 0.1592)
        >>> kernel(torch.tensor([[0, 1], [2, -1]]))
        tensor([[3.3183, 0.3183],
                [0.3183, 1.5000]], dtype=torch.float64)
    """

    activation: Activation

    def __post_init__(self) -> None:
        check_activation(self.activation)

    @classmethod
    def of(cls, module: BagMLP) -> "BagKernel":
        """The kernel of a bag of tokens.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(activation=Activation.of(module.activation), init=init_of(module), n_tokens=module.n_tokens)

    @cached_property
    def rho(self) -> float:
        """Kernel of a token with itself."""
        one = torch.ones((), dtype=torch.float64)
        return float(hidden_layer(self.activation, self.init, one, one, one))

    @cached_property
    def mu(self) -> float:
        """Kernel of two different tokens: what a token's score moves with every token seen, the bias of the activation."""
        mean, rms = float(self.activation.mean(self.init.tau_sq)), self._power() ** 0.5
        # The mean of an odd function is zero, and quadrature's rounding of it is not.
        return self.init.trains("readout") * (mean**2 if abs(mean) > 1e-12 * rms else 0.0)

    def _power(self) -> float:
        return float(self.activation.k(*[self.init.tau_sq] * 3))

    def feature_map(self) -> FeatureMap:
        r"""Counts of tokens with weight :math:`ρ - μ`, and the length with weight μ.

        Returns:
            Two kinds of features.
        """
        return FeatureMap((FeatureBlock("tokens", self.rho - self.mu, token_counts), FeatureBlock("length", self.mu, length_column)))

    def on_counts(self, n1: Any, n2: Any = None) -> Float[Tensor, "n1 n2"]:
        """The kernel of documents that are given as counts.

        Args:
            n1: ``[doc token]``: a SciPy sparse array, or anything that one can be made of.
            n2: Other documents; by default ``n1``.

        Returns:
            float64.

        Raises:
            ShapeError: Counts are not ``[doc token]``, of one vocabulary, and of the kernel's where it has one.
            NonFiniteError: A count is negative, NaN or infinite.

        Example:
            >>> BagKernel(activation=Activation.of("tanh")).on_counts([[2, 0, 1]]) / BagKernel(activation=Activation.of("tanh")).rho
            tensor([[5.]], dtype=torch.float64)
        """
        C1 = self._counts("n1", n1)
        C2 = C1 if n2 is None else self._counts("n2", n2)
        if C1.shape[1] != C2.shape[1]:
            raise ShapeError(f"n1 counts {C1.shape[1]} tokens, and n2 {C2.shape[1]}. Count both over one vocabulary.")
        T1, T2 = (torch.from_numpy(C.sum(1)).double() for C in (C1, C2))
        return (self.rho - self.mu) * torch.from_numpy(gram(C1, C2)) + self.mu * T1[:, None] * T2

    def _counts(self, what: str, n: Any) -> Sparse:
        import numpy as np
        from scipy import sparse

        C = sparse.csr_array(n, dtype=float)
        if C.ndim != 2 or (self.n_tokens is not None and C.shape[1] != self.n_tokens):
            right = "[doc token]" if self.n_tokens is None else f"[doc {self.n_tokens}] for this kernel's vocabulary"
            raise ShapeError(f"{what} has shape {list(C.shape)}. Counts are {right}.")
        if not bool((np.isfinite(C.data) & (C.data >= 0)).all()):
            raise NonFiniteError(f"{what} holds a count that is negative, NaN or infinite. Counts are finite numbers of at least 0.")
        return C
