r"""Dual activations: what an activation function does to the covariance of a Gaussian pair, which is all that infinite width keeps of it.

For a centred Gaussian pair (u, v) with variances a, b and covariance c,

.. math:: k(a, b, c) = E[φ(u)\,φ(v)], \qquad k_1 = E[φ'(u)\,φ'(v)], \qquad k_2 = E[φ''(u)\,φ''(v)],

and Price's theorem makes each the derivative of the one before: :math:`∂k/∂c = k_1`, :math:`∂k_1/∂c = k_2`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import DtypeError, OptionError, QuadratureError
from mechfeat.models.text.activations import Function, LeakyReLU
from mechfeat.ntk.dual import quadrature
from mechfeat.ntk.dual.checks import check_elementwise, check_found, checked, listed, undeclared
from mechfeat.ntk.dual.closed import closed_form
from mechfeat.ntk.dual.kinks import derivatives, found_kinks, sides
from mechfeat.ntk.dual.names import resolved

_PANEL = 16  # a rule on a panel has this many times fewer nodes than one over the whole line
_DOUBLINGS = 3


@dataclass(frozen=True)
class Activation:
    r"""An activation function with its dual activations k, k1 and k2; made by :meth:`of`.

    ``a``, ``b`` and ``c`` are float64 tensors that broadcast, or numbers; values are elementwise, float64, and carry no gradient, which
    at c² = ab would be infinite. A covariance beyond :math:`\sqrt{ab}` by rounding counts as :math:`\sqrt{ab}`. A derivative at a kink is
    the mean of its two sides.

    Args:
        name: Name of the function, for messages.
        function: The elementwise torch function; models use this one.
        method: ``"closed"`` forms, or ``"quadrature"``: of each distinct (a, b, c) once, with ``nodes`` and with twice as many. The
            latter is the value, the difference of both its error estimate; where that exceeds the tolerance, nodes are doubled up to
            three times.
        kinks: Where the function, its slope or its curvature jumps.
        jumps: Those where the function itself jumps; it then has k alone.
        nodes: Nodes of the smallest Gauss–Hermite rule, and terms of the expansion; with kinks, sixteen times those of the rule on each
            panel between and around them.
        tolerance: Largest error estimate that is let through, relative to the root mean squares of the two factors.

    Example:
        >>> relu = Activation.of("relu")
        >>> float(relu.k(1.0, 1.0, 1.0)), float(relu.k1(1.0, 1.0, 0.0)), relu.error
        (0.5, 0.25, 0.0)
        >>> round(float(Activation.of(torch.tanh).k(1.0, 1.0, 0.5)), 4)
        0.1863
    """

    name: str
    function: Function = field(repr=False)
    method: Literal["closed", "quadrature"]
    kinks: tuple[float, ...] = ()
    jumps: tuple[float, ...] = ()
    nodes: int = 128
    tolerance: float = 1e-6

    @classmethod
    def of(
        cls,
        phi: "str | Function | Activation",
        *,
        kinks: Sequence[int | float] = (),
        method: Literal["auto", "closed", "quadrature"] = "auto",
        nodes: int = 128,
        tolerance: float = 1e-6,
    ) -> "Activation":
        """The dual activations of a function.

        Args:
            phi: A name (``linear``, ``relu``, ``leaky_relu``, ``erf``, ``gelu``, ``quadratic``, ``sin``, ``cos``, ``exp``, ``tanh``,
                ``silu``, ``softplus``, ``sigmoid``), the torch function or module that goes by it, ``LeakyReLU(slope)``, or any
                elementwise function of a tensor.
            kinks: Where a function that is neither smooth nor known by name has a kink or a jump.
            method: ``"closed"`` and ``"quadrature"`` insist; ``"auto"`` takes a closed form where there is one.
            nodes: As for the class, at least 16.
            tolerance: As for the class.

        Returns:
            The activation; an ``Activation`` is returned as it is.

        Raises:
            OptionError: A name, or an option, is unknown; there is no closed form and one was asked for; the function is not elementwise,
                or has parameters that train.
            QuadratureError: The function has a kink that was not declared. The error names the place.
            DtypeError: The function does not return float64 for float64.
        """
        if isinstance(phi, Activation):
            return phi
        function, name = resolved(phi)
        if method not in ("auto", "closed", "quadrature"):
            raise OptionError("method", method, ("auto", "closed", "quadrature"))
        if nodes < 16:
            raise OptionError("nodes", nodes, ("16 or more",))
        if method != "quadrature" and closed_form(name, function):
            return cls(name, function, "closed")
        if method == "closed":
            raise OptionError("method", method, ("auto", "quadrature"))
        check_elementwise(name, function)
        bends = (0.0,) if name == "relu" or isinstance(function, LeakyReLU) else tuple(sorted(float(k) for k in kinks))
        found = found_kinks(function)
        missed = [place for place, _ in found if all(abs(place - k) > 1e-6 * max(1.0, abs(k)) for k in bends)]
        if missed:
            raise QuadratureError(undeclared(name, missed, bends))
        jumps = tuple(k for k in bends if any(order == 0 and abs(place - k) <= 1e-6 * max(1.0, abs(k)) for place, order in found))
        return cls(name, function, "quadrature", bends, jumps, nodes, tolerance)

    def k(self, a: Tensor | float | int, b: Tensor | float | int, c: Tensor | float | int) -> Float[Tensor, "..."]:
        """E[φ(u)φ(v)].

        Args:
            a: Variances of u.
            b: Variances of v.
            c: Covariances.

        Returns:
            Values, in squared units of φ.

        Raises:
            DtypeError: A tensor is not float64.
            DeviceError: Tensors are on different devices.
            ShapeError: They do not broadcast, a variance is negative, or c² exceeds ab by more than rounding.
            NonFiniteError: A value, given or found, is NaN or infinite.
            QuadratureError: The error estimate exceeds ``tolerance``.
        """
        return self._dual(0, a, b, c)

    def k1(self, a: Tensor | float | int, b: Tensor | float | int, c: Tensor | float | int) -> Float[Tensor, "..."]:
        """E[φ'(u)φ'(v)].

        Args:
            a: As for :meth:`k`, whose errors it raises.
            b: As for :meth:`k`.
            c: As for :meth:`k`.

        Returns:
            Values.
        """
        return self._dual(1, a, b, c)

    def k2(self, a: Tensor | float | int, b: Tensor | float | int, c: Tensor | float | int) -> Float[Tensor, "..."]:
        r"""E[φ''(u)φ''(v)], with a delta function in φ'' where φ' jumps, so that it stays the derivative of :meth:`k1`.

        For ReLU that is the density of the pair at the origin, :math:`1/(2π\sqrt{ab-c^2})`.

        Args:
            a: As for :meth:`k`, whose errors it raises.
            b: As for :meth:`k`.
            c: As for :meth:`k`.

        Returns:
            Values.

        Raises:
            NonFiniteError: As for :meth:`k`; or two deltas meet, as those of ReLU do at c² = ab, where k2 is infinite.
        """
        return self._dual(2, a, b, c)

    @torch.no_grad()
    def mean(self, q: Tensor | float | int) -> Float[Tensor, "..."]:
        r"""Expected value :math:`E\,φ(\sqrt q\, z)` for a standard Gaussian z.

        Args:
            q: Variances.

        Returns:
            Values, in units of φ.

        Raises:
            DtypeError: ``q`` is not float64.
            ShapeError: A variance is negative.
            NonFiniteError: A value, given or found, is NaN or infinite.
            QuadratureError: The error estimate exceeds ``tolerance``.
        """
        (q,) = checked(self.name, q=q)
        closed = closed_form(self.name, self.function) if self.method == "closed" else None
        if closed:
            value = closed.mean(q)
            check_found(self.name, "mean", value, (q, q, q))
            return value
        distinct, where = q.flatten().unique(return_inverse=True)
        f = derivatives(self.function, self.kinks)[0]
        size = self._size(f, distinct).sqrt()
        value, error = self._refined(lambda n, q: quadrature.single(f, self.kinks, torch.zeros_like(q), q, n), size, distinct)
        check_found(self.name, "mean", value, (distinct, distinct, distinct))
        self._accept("mean", error)
        return value[where].reshape(q.shape)

    @cached_property
    def error(self) -> float:
        """Largest error estimate of k and k1 at variances up to 4, relative to the root mean squares of the factors; 0 for closed forms."""
        if self.method == "closed":
            return 0.0
        a, b, rho = (
            torch.tensor([(a, b, r) for a, b in ((0.25, 0.25), (1.0, 1.0), (4.0, 1.0), (4.0, 4.0)) for r in (0.0, 0.5, 1.0)]).double().T
        )
        orders = (0,) if self.jumps else (0, 1)
        return max(float(self._quadrature(order, a, b, rho * (a * b).sqrt())[1].max()) for order in orders)

    def _dual(self, order: Literal[0, 1, 2], a: Tensor | float | int, b: Tensor | float | int, c: Tensor | float | int) -> Tensor:
        at = checked(self.name, a=a, b=b, c=c)
        value = self.unchecked(order, *at)
        check_found(self.name, ("k", "k1", "k2")[order], value, at)
        return value

    @torch.no_grad()
    def unchecked(
        self, order: Literal[0, 1, 2], a: Float[Tensor, "..."], b: Float[Tensor, "..."], c: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """k, k1 or k2 of float64 tensors that are known to be variances and covariances of pairs, up to rounding.

        Args:
            order: 0 for k, 1 for k1, 2 for k2.
            a: As for :meth:`k`.
            b: As for :meth:`k`.
            c: As for :meth:`k`.

        Returns:
            Values. Closed forms may be infinite.

        Raises:
            QuadratureError: As for :meth:`k`.
            NonFiniteError: As for :meth:`k`, by quadrature.
        """
        which = ("k", "k1", "k2")[order]
        closed = closed_form(self.name, self.function) if self.method == "closed" else None
        if closed:
            value: Tensor = getattr(closed, which)(a, b, c)
            return value
        if order and self.jumps:
            raise QuadratureError(f"{self.name} jumps at {listed(self.jumps)}, so that {which} does not exist. Its k and mean do.")
        # Ordered by size, (a, b) and (b, a) give the same bits and count once.
        rows = torch.stack(torch.broadcast_tensors(torch.maximum(a, b), torch.minimum(a, b), c), -1)
        distinct, where = rows.reshape(-1, 3).unique(dim=0, return_inverse=True)
        value, error = self._quadrature(order, *distinct.T)
        check_found(self.name, which, value, tuple(distinct.T))
        self._accept(which, error)
        return value[where].reshape(rows.shape[:-1])

    def _quadrature(self, order: int, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Values on one axis, and relative error estimates."""
        f = derivatives(self.function, self.kinks)[order]

        def rule(n: int, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return quadrature.split(f, self.kinks, a, b, c, n) if self.kinks else quadrature.smooth(f, a, b, c, n)

        value, error = self._refined(rule, (self._size(f, a) * self._size(f, b)).sqrt(), a, b, c)
        return value + (self._deltas(f, a, b, c) if order == 2 else 0.0), error

    @property
    def _nodes(self) -> int:
        return max(2, self.nodes // _PANEL) if self.kinks else self.nodes

    def _size(self, f: Function, q: Tensor) -> Tensor:
        """E f(u)² of the variances q; NaN where f lies between the nodes, so that they find nothing to differ about."""
        size = quadrature.single(lambda x: f(x).square(), self.kinks, torch.zeros_like(q), q, 2 * self._nodes)
        return torch.where(quadrature.missed(f, q, size), math.nan, size)

    def _refined(self, rule: Callable[..., Tensor], size: Tensor, *at: Tensor) -> tuple[Tensor, Tensor]:
        """Values by a rule with enough nodes at each place, and their error estimates relative to a size."""
        n, lost, size = self._nodes, size.isnan(), torch.where(size > 0, size, 1.0)
        rough, value = rule(n, *at), rule(2 * n, *at)
        error = ((value - rough).abs() / size).nan_to_num(math.inf)
        for _ in range(_DOUBLINGS):
            n, left = 2 * n, error > self.tolerance
            if not bool(left.any()):
                break
            finer = rule(2 * n, *(t[left] for t in at))
            error[left] = (finer - value[left]).abs() / size[left]
            value[left] = finer
        return value, torch.where(lost, math.inf, error)

    def _deltas(self, curvature: Function, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """What the jumps J of φ' at the kinks add to k2: J times the density at the kink, times what the other factor is there."""
        slope = derivatives(self.function, ())[1]
        steps = [(kink, float(up - down)) for kink in self.kinks for down, up in [sides(slope, kink, a)]]
        steps = [(kink, step) for kink, step in steps if abs(step) > 1e-9]
        total = torch.zeros_like(a)
        for p, q in ((a, b), (b, a)):
            for kink, step in steps:
                density = step * (-(kink**2) / (2 * p)).exp() / (2 * math.pi * p).sqrt()
                rest = (q - c * c / p).clamp_min(0)
                total = total + density * quadrature.single(curvature, self.kinks, c * kink / p, rest, 2 * self._nodes)
        D = (a * b - c * c).clamp_min(0)
        for x, step in steps:
            for y, other in steps:
                form = (b * x * x - 2 * c * x * y + a * y * y) / (2 * D)
                meet = torch.where(D > 0, (-form).exp() / (2 * math.pi * D.sqrt()), torch.where(a * y * y == b * x * x, math.inf, 0.0))
                total = total + step * other * meet
        return total

    def _accept(self, which: str, error: Tensor) -> None:
        worst = float(error.max()) if error.numel() else 0.0
        if worst > self.tolerance:
            raise QuadratureError(
                f"{which} of {self.name} is known to a relative {worst:.1e} only, by the difference of {self._nodes << _DOUBLINGS} and "
                f"{2 * self._nodes << _DOUBLINGS} nodes, and tolerance={self.tolerance:g}. Give more nodes, or allow a larger tolerance."
            )


def check_activation(phi: object) -> None:
    """Refuse a function where its dual activations are needed.

    Args:
        phi: What was given as activation of a kernel.

    Raises:
        DtypeError: It is not an :class:`Activation`.
    """
    if not isinstance(phi, Activation):
        raise DtypeError(f"activation={phi!r} is of {type(phi).__name__}. A kernel needs its dual activations: Activation.of({phi!r}).")
