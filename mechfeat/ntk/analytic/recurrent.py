r"""Recurrent models at infinite width: one recursion along the diagonals of pairs of positions.

With K the covariance of two states (i, j) and G the part of the kernel that comes from below the read-out, in units of :math:`s_v^2`,

.. math:: K_{ij} = \mathrm{base} + \mathrm{gain}\, K_{i-1,j-1} , \qquad
    G_{ij} = \mathrm{fresh} + \mathrm{kept}\, K_{i-1,j-1} + \mathrm{gain}\, G_{i-1,j-1} , \qquad
    Θ_{ij} = K_{ij} + s_v^2 G_{ij} ,

where the four numbers depend only on whether the tokens at i and j are equal. A read-out from the last tokens is :math:`Θ_{TT'}`, one from
the sum over states :math:`\sum_{ij} Θ_{ij}`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import NonFiniteError, UnsupportedModelError
from mechfeat.models.text.attention import Readout, check_readout
from mechfeat.models.text.ids import is_real, lengths
from mechfeat.models.text.recurrent import GatedLinearRNN, LinearRNN, MatrixVectorRNN
from mechfeat.ntk.analytic.base import AnalyticKernel, init_of
from mechfeat.ntk.dual import Activation
from mechfeat.ntk.dual.activation import check_activation


class Step(NamedTuple):
    """What a pair of positions adds.

    Attributes:
        base: Covariance of what the tokens put in.
        gain: By how much the covariance of the states before, and the gradient to them, is passed on.
        fresh: Inner product of gradients of what the tokens put in.
        kept: Inner product of gradients of what passes on the states before, in units of their covariance.
    """

    base: float
    gain: float
    fresh: float
    kept: float


@dataclass(frozen=True, kw_only=True)
class RecurrentKernel(AnalyticKernel):
    """A kernel by recursion along diagonals.

    Attributes:
        readout: From the ``"last"`` state, or from the ``"sum"`` over states.
    """

    readout: Readout = "last"

    def __post_init__(self) -> None:
        check_readout(self.readout)

    @abstractmethod
    def steps(self) -> tuple[Step, Step]:
        """The recursion's numbers.

        Returns:
            For different tokens, and for equal ones.
        """

    def _block(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"]) -> Float[Tensor, "n1 n2"]:
        other, equal = (torch.tensor(step, dtype=torch.float64, device=x1.device) for step in self.steps())
        n1, n2, T2 = len(x1), len(x2), x2.shape[1]
        end1, end2 = lengths(x1), lengths(x2)
        # A row of the recursion for all j at once; column 0 is before the first token.
        K = torch.zeros(n1, n2, T2 + 1, dtype=torch.float64, device=x1.device)
        G, theta = torch.zeros_like(K), torch.zeros(n1, n2, dtype=torch.float64, device=x1.device)
        column = torch.arange(T2, device=x1.device)
        at_end = (column == end2[:, None] - 1)[None] if self.readout == "last" else is_real(x2)[None]
        for i in range(x1.shape[1]):
            same = (x1[:, i, None, None] == x2[None])[..., None]
            base, gain, fresh, kept = torch.where(same, equal, other).unbind(-1)
            before, grad = K[..., :-1], G[..., :-1]
            K_row, G_row = base + gain * before, fresh + kept * before + gain * grad
            reads = (end1 == i + 1) if self.readout == "last" else (end1 > i)
            read = reads[:, None, None] & at_end
            values = self.init.trains("readout") * K_row + float(self.init.readout**2) * G_row
            theta += torch.where(read, values, 0.0).sum(-1)
            K, G = torch.nn.functional.pad(K_row, (1, 0)), torch.nn.functional.pad(G_row, (1, 0))
        return theta

    def _cells(self, T1: int, T2: int) -> int:
        return 8 * (T2 + 1)


@dataclass(frozen=True, kw_only=True)
class MatrixVectorRNNKernel(RecurrentKernel):
    r"""Kernel of :class:`~mechfeat.models.text.MatrixVectorRNN`: it vanishes after the first difference counted from the end.

    .. math:: K_{ij} = δ_{ij} (s_e^2 + s_M^2 K_{i-1,j-1}) , \qquad G_{ij} = δ_{ij} (1 + K_{i-1,j-1} + s_M^2 G_{i-1,j-1})

    Source:
        Yang 2020, *Tensor Programs II*, section 3 (gradients as if of independent weights), on this model; derived in the guide.

    Example:
        >>> MatrixVectorRNNKernel()(torch.tensor([[0, 1], [2, 1]]))
        tensor([[5., 2.],
                [2., 5.]], dtype=torch.float64)
    """

    @classmethod
    def of(cls, module: MatrixVectorRNN) -> "MatrixVectorRNNKernel":
        """The kernel of a matrix-vector recurrent network.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(readout=module.readout, init=init_of(module), n_tokens=module.n_tokens)

    def steps(self) -> tuple[Step, Step]:
        """The recursion's numbers.

        Returns:
            For different tokens, and for equal ones.
        """
        s = self.init
        equal = Step(float(s.embedding**2), float(s.token_matrix**2), s.trains("embedding"), s.trains("token_matrix"))
        return Step(0.0, 0.0, 0.0, 0.0), equal


@dataclass(frozen=True, kw_only=True)
class LinearRNNKernel(RecurrentKernel):
    r"""Kernel of :class:`~mechfeat.models.text.LinearRNN`: tokens at equal distances from the end, never n-grams.

    .. math:: Θ = \sum_n δ_{T-n,T'-n} \big[ (s_e^2 + s_v^2) s_h^{2n} + n\, s_v^2 s_e^2 s_h^{2(n-1)} \big]

    Source:
        Alemohammad et al. 2021, *The Recurrent Neural Tangent Kernel*, section 3, with the identity as activation.

    Example:
        >>> LinearRNNKernel()(torch.tensor([[0, 1], [0, 2]]))
        tensor([[5., 3.],
                [3., 5.]], dtype=torch.float64)
    """

    @classmethod
    def of(cls, module: LinearRNN) -> "LinearRNNKernel":
        """The kernel of a linear recurrent network.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(readout=module.readout, init=init_of(module), n_tokens=module.n_tokens)

    def steps(self) -> tuple[Step, Step]:
        """The recursion's numbers.

        Returns:
            For different tokens, and for equal ones.
        """
        s = self.init
        gain, kept = float(s.recurrence**2), s.trains("recurrence")
        return Step(0.0, gain, 0.0, kept), Step(float(s.embedding**2), gain, s.trains("embedding"), kept)


@dataclass(frozen=True, kw_only=True)
class GatedLinearRNNKernel(RecurrentKernel):
    r"""Kernel of :class:`~mechfeat.models.text.GatedLinearRNN`.

    With :math:`q = s_x^2 s_e^2` and k, k₁, k₂ at (q, q, q) for equal tokens and at (q, q, 0) for different ones,

    .. math:: K_{ij} = k + s_h^2 k_1 K_{i-1,j-1} , \qquad
        G_{ij} = k_1 K_{i-1,j-1} + δ_{ij} (s_e^2 + s_x^2) (k_1 + s_h^2 k_2 K_{i-1,j-1}) + s_h^2 k_1 G_{i-1,j-1} .

    Attributes:
        activation: φ, with a second derivative.

    Raises:
        UnsupportedModelError: k₂ of a token with itself is infinite, since φ has a kink.

    Source:
        Alemohammad et al. 2021, *The Recurrent Neural Tangent Kernel*, section 3, on this model; derived in the guide.

    Example:
        >>> gated = GatedLinearRNNKernel(activation=Activation.of("linear"))
        >>> gated(torch.tensor([[0, 1], [0, 2]]))
        tensor([[7., 4.],
                [4., 7.]], dtype=torch.float64)
    """

    activation: Activation

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activation(self.activation)

    @classmethod
    def of(cls, module: GatedLinearRNN) -> "GatedLinearRNNKernel":
        """The kernel of a gated linear recurrent network.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        phi = Activation.of(module.activation)
        return cls(activation=phi, readout=module.readout, init=init_of(module), n_tokens=module.n_tokens)

    def steps(self) -> tuple[Step, Step]:
        """The recursion's numbers.

        Returns:
            For different tokens, and for equal ones.

        Raises:
            UnsupportedModelError: k₂ of a token with itself is infinite.
        """
        s, phi = self.init, self.activation
        q, h = float(s.inputs**2 * s.embedding**2), float(s.recurrence**2)
        k, k1 = ([float(f(q, q, c)) for c in (0.0, q)] for f in (phi.k, phi.k1))
        below = s.trains("embedding") * s.inputs**2 + s.trains("inputs") * s.embedding**2
        kept = s.trains("recurrence")
        other = Step(k[0], h * k1[0], 0.0, kept * k1[0])
        equal = Step(k[1], h * k1[1], below * k1[1], kept * k1[1] + below * h * self._curvature(q))
        return other, equal

    def _curvature(self, q: float) -> float:
        try:
            return float(self.activation.k2(q, q, q))
        except NonFiniteError as error:
            raise UnsupportedModelError(
                f"A gated linear RNN with {self.activation.name} has no kernel: {error} Its gate φ' jumps, which no gradient sees. Take"
                " a smooth activation (tanh, gelu, erf), or mechfeat.ntk.empirical_ntk of the finite network."
            ) from error
