r"""Training with a constant tangent kernel: gradient descent and gradient flow of a linearised model, in the space of outputs.

A model that is linear in its parameters moves its outputs by the kernel alone. With :math:`g_t` the gradient of the loss in the training
outputs, a step of descent changes the outputs on any input x by :math:`-η\, Θ(x, X)\, g_t`, so that

.. math:: f_t(x) = f_0(x) + Θ(x, X)\, α_t, \qquad α_t = -η \sum_{s<t} g_s ,

and one set of coefficients α, found on the training inputs, gives the outputs everywhere.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import DeviceError, NonFiniteError, OptionError, ShapeError, StepSizeError
from mechfeat.ntk.dynamics.layout import FORMS, Kernel, blocks, check_symmetric, kernel_of, largest, pack, rounding, times, unpack
from mechfeat.ntk.dynamics.losses import CURVATURE, Loss, Reduction, check_options, gradient, targets
from mechfeat.ntk.result import NTKResult

Time = Literal["descent", "flow"]


class KernelDynamics:
    r"""Training of a linearised model by full-batch gradient descent, or by gradient flow.

    A sample's loss, summed over outputs, is

    - ``"squared"``: :math:`\tfrac12 (f - y)^2`,
    - ``"logistic"``: :math:`\log(1 + e^{-yf})` with labels ±1, or 0 for -1 (each output is a question of its own),
    - ``"softmax"``: :math:`-\log \mathrm{softmax}(f)_y`.

    ``reduction="mean"`` divides by the number of **samples**, ``"sum"`` by nothing. With ``"mean"`` softmax is ``F.cross_entropy``; with
    o outputs logistic is o times ``F.binary_cross_entropy_with_logits`` and squared o/2 times ``F.mse_loss``, which divide by outputs
    as well.

    Squared loss has a closed form by one eigendecomposition, for descent and for flow, with singular kernels and ``t=math.inf``. The others
    are stepped: descent step by step as it is defined, flow by an adaptive Runge–Kutta method.

    Args:
        theta: Kernel of the training inputs with themselves. ``[n o m o]`` couples outputs; ``[n m]`` is shared by all outputs, each of
            which learns by it alone; ``[n m o]`` has one for each output. Of an ``NTKResult`` with ``outputs="trace"``, a sum over
            outputs, the mean over outputs is shared.
        y: Targets: real ``[n o]`` for squared loss, labels ``[n o]`` of 0 and 1 or of -1 and 1 for logistic, class indices ``[n]`` for
            softmax. For one output ``[n]`` will do.
        loss: The loss.
        lr: Learning rate η. Flow for a time t is the limit of t/s steps at rate s·η.
        reduction: Mean or sum over samples.
        time: ``"descent"`` counts steps, ``"flow"`` is continuous.
        f0: Outputs on the training inputs before training, ``[n o]``; zeros by default.
        tolerance: For flow without a closed form: error allowed to a step of the solver in the training outputs, absolute (in their
            unit), and relative to the largest eigenvalue times the coefficients.

    Raises:
        StepSizeError: Descent on squared loss would not converge: ``lr`` is at least :attr:`lr_limit`.
        ShapeError: The kernel is not square, symmetric and without negative eigenvalues, or shapes do not fit.
        OptionError: An option or a label has an unknown value.
        DtypeError: The kernel or the targets have a dtype that does not fit.
        DeviceError: Tensors are on different devices.
        NonFiniteError: Something holds NaN or infinity.

    Everything is computed in float64; outputs have the dtype and device of the kernel. Kernel, targets and start are copied.

    Cost:
        With R rows (n·o for ``[n o m o]``): O(R³) time once for squared loss, then O(R²) a time; O(R²) a step for the others.

    Source:
        Lee et al. 2019, *Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent*, equations 8 to 11.

    Example:
        >>> theta = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> training = KernelDynamics(theta, torch.tensor([1.0, 1.0]), loss="squared", lr=0.5, reduction="sum")
        >>> training.at([0, 1, 2, math.inf]).squeeze(-1)
        tensor([[0.0000, 0.0000],
                [1.0000, 0.5000],
                [1.0000, 0.7500],
                [1.0000, 1.0000]])
        >>> training.lr_limit
        1.0
    """

    def __init__(
        self,
        theta: Kernel,
        y: Tensor,
        *,
        loss: Loss,
        lr: int | float,
        reduction: Reduction = "mean",
        time: Time = "descent",
        f0: Float[Tensor, "n o"] | Float[Tensor, " n"] | None = None,
        tolerance: float = 1e-8,
    ) -> None:
        check_options(loss, reduction)
        if time not in ("descent", "flow"):
            raise OptionError("time", time, ("descent", "flow"))
        for option, value in (("lr", lr), ("tolerance", tolerance)):
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise OptionError(option, value, ("a positive number",))
        K = kernel_of(theta, "theta")
        self.loss, self.lr, self.reduction, self.time, self.tolerance = loss, float(lr), reduction, time, tolerance
        self.dtype, self.device, self.ndim = K.dtype, K.device, K.ndim
        self.n = K.shape[0]
        # Copies: coefficients are found when they are asked for, and the caller's tensors may have changed by then.
        self._blocks = blocks(K.detach().to(torch.float64, copy=True))
        known = _outputs(theta, K, f0)
        check_symmetric(self._blocks, K.dtype)
        self._Y = targets(self._here(y, "y"), loss, self.n, known)[None].clone()
        self.o = self._Y.shape[-1]
        if isinstance(theta, NTKResult) and theta.outputs == "trace" and theta.settings["n_outputs"] != self.o:
            raise ShapeError(
                f"theta is the trace over {theta.settings['n_outputs']} outputs, and y has {self.o}. Give one target an output."
            )
        self._f0 = self._start(f0, self.n, "f0")
        self._scale = self.lr / (self.n if reduction == "mean" else 1)
        if time == "descent":
            self._check_rate()

    @cached_property
    def largest_eigenvalue(self) -> float:
        """Largest eigenvalue of the kernel."""
        return float(self._eigen[0].max()) if self.loss == "squared" else largest(self._blocks)

    @property
    def lr_limit(self) -> float:
        r"""Learning rate up to which each step is sure to lower the loss: :math:`2 / (c\, λ_{max})`, times n for ``reduction="mean"``.

        c bounds the curvature of a sample's loss: 1 for squared, 1/4 for logistic, 1/2 for softmax. Above it squared loss diverges; the
        others, whose curvature falls as they are fitted, may still be learnt.
        """
        edge = self.largest_eigenvalue * CURVATURE[self.loss]
        return 2 * (self.n if self.reduction == "mean" else 1) / edge if edge > 0 else math.inf

    def at(
        self,
        t: int | float | Sequence[int | float],
        cross: Kernel | None = None,
        f0: Float[Tensor, "m o"] | Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "*time m o"]:
        """Outputs after training.

        Args:
            t: Number of steps, or time for flow; ``math.inf`` for squared loss. Several give an axis of times.
            cross: Kernel of other inputs with the training inputs, ``Θ(x, X)`` in the layout of ``theta``, for the outputs there; by
                default the training outputs.
            f0: Outputs on those other inputs before training; zeros by default.

        Returns:
            Outputs.

        Raises:
            ShapeError: ``cross`` does not fit the training kernel, or ``f0`` is given without it.
            OptionError: A time is negative, or for descent not whole, or infinite where there is no closed form.
            DtypeError: ``cross`` is not floating-point.
            DeviceError: Tensors are on different devices.
            NonFiniteError: Something holds NaN or infinity.
        """
        if cross is None:
            if f0 is not None:
                raise ShapeError("f0 was given without cross. The training outputs before training belong to KernelDynamics(..., f0=...).")
            B, start = self._blocks, self._f0
        else:
            B = self._cross(cross)
            start = self._start(f0, B.shape[1] // (self.o if self.ndim == 4 else 1), "f0")
        found = torch.stack([start + times(B, a, self.ndim)[0] for a in self._coefficients(_times(t, self))]).to(self.dtype)
        return found if isinstance(t, Sequence) else found[0]

    def coefficients(self, t: int | float | Sequence[int | float]) -> Float[Tensor, "*time n o"]:
        """The α of ``f_t(x) = f_0(x) + Θ(x, X) α_t``: what each training sample and output adds to the outputs elsewhere.

        Args:
            t: As for :meth:`at`, whose errors it raises.

        Returns:
            Coefficients, zero before training.
        """
        found = torch.cat(self._coefficients(_times(t, self))).to(self.dtype)
        return found if isinstance(t, Sequence) else found[0]

    def shuffled(self, orders: Int[Tensor, "draw n"], t: int | float, cross: Kernel) -> Float[Tensor, "draw m o"]:
        """What training on targets in another order would add to the outputs of other inputs: the null of a prediction.

        Args:
            orders: For each draw, which sample's target each sample gets.
            t: Number of steps, or time for flow.
            cross: As for :meth:`at`, whose errors it raises.

        Returns:
            ``f_t - f_0`` of each draw.
        """
        (alpha,) = self._coefficients(_times(t, self), self._Y[0][orders.to(self.device)])
        return times(self._cross(cross), alpha, self.ndim).to(self.dtype)

    # Coefficients

    def _coefficients(self, ts: Sequence[int | float], Y: Float[Tensor, "draw n o"] | None = None) -> list[Tensor]:
        Y = self._Y if Y is None else Y
        if self.loss == "squared":
            return [self._closed(t, Y) for t in ts]
        return self._descended(ts, Y) if self.time == "descent" else self._flowed(ts, Y)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._blocks)
        return values, vectors

    def _closed(self, t: int | float, Y: Float[Tensor, "draw n o"]) -> Tensor:
        r"""Squared loss: :math:`α_t = -U\, q_t(λ)\, U^\top (f_0 - y)` with :math:`q_t = (1 - e^{-ηλt})/λ`, or :math:`(1 - (1-ηλ)^t)/λ`."""
        values, U = self._eigen
        top = float(values.max())
        # A direction without eigenvalue moves no output, in the training set or outside. Its coefficient would grow with t, and the
        # rounding of the kernel with it. What counts as none is the rounding of the eigenvalues; in infinite time, that of the kernel.
        kept = values > top * rounding(values.shape[-1], self.dtype if t == math.inf else torch.float64)
        lam = torch.where(kept, values, 1.0)
        a = self._scale * lam
        if t == math.inf:
            q = 1 / lam
        elif self.time == "flow":
            q = -torch.expm1(-a * t) / lam
        else:  # expm1 and log1p, for (1 - a)^t near 1; above 1 the power itself, whose sign alternates
            small = -torch.expm1(t * torch.log1p(-a.clamp(max=0.5)))
            q = torch.where(a < 0.5, small, 1 - (1 - a) ** int(t)) / lam
        C = U.mT @ pack(self._f0 - Y, self.ndim)
        return -unpack(U @ (torch.where(kept, q, 0.0)[..., None] * C), self.ndim, self.o)

    def _descended(self, ts: Sequence[int | float], Y: Float[Tensor, "draw n o"]) -> list[Tensor]:
        alpha, found = torch.zeros_like(Y), dict[float, Tensor]()
        for step in range(int(max(ts)) + 1):
            if step in ts:
                found[step] = alpha
            if step < max(ts):
                f = self._f0 + times(self._blocks, alpha, self.ndim)
                alpha = alpha - self._scale * gradient(f, Y, self.loss)
        return [found[int(t)] for t in ts]

    def _flowed(self, ts: Sequence[int | float], Y: Float[Tensor, "draw n o"]) -> list[Tensor]:
        from scipy.integrate import solve_ivp

        # In units of the largest eigenvalue an error in the coefficients is at least as large as that in the training outputs.
        unit = self.largest_eigenvalue or 1.0
        B = self._blocks / unit

        def velocity(_: float, beta: Any) -> Any:
            now = torch.as_tensor(beta, dtype=torch.float64, device=self.device).reshape(Y.shape)
            g = gradient(self._f0 + times(B, now, self.ndim), Y, self.loss)
            return (-self._scale * unit * g).flatten().cpu().numpy()

        last = max(ts)
        stops = sorted({float(t) for t in ts})
        if not last:
            return [torch.zeros_like(Y) for _ in ts]
        solved = solve_ivp(
            velocity,
            (0.0, last),
            torch.zeros(Y.numel(), dtype=torch.float64, device="cpu").numpy(),
            method="DOP853",
            t_eval=stops,
            rtol=max(self.tolerance, 1e-13),
            atol=self.tolerance,
        )
        if not solved.success:
            raise NonFiniteError(f"Gradient flow was not solved up to t={last:g}: {solved.message}")
        rows = {t: torch.as_tensor(solved.y[:, i].copy(), device=self.device).reshape(Y.shape) / unit for i, t in enumerate(stops)}
        return [rows[float(t)] for t in ts]

    # Checks

    def _check_rate(self) -> None:
        limit = self.lr_limit
        if self.lr >= limit and self.loss == "squared":
            raise StepSizeError(self.lr, limit)
        if self.lr > limit:
            warnings.warn(
                f"lr={self.lr:g} is above {limit:.6g}, up to which each step of gradient descent with this kernel is sure to lower the "
                f"{self.loss} loss. The steps are computed as asked for.",
                stacklevel=3,
            )

    def _cross(self, cross: Kernel) -> Tensor:
        K = kernel_of(cross, "cross")
        want = {4: ("m", self.o, self.n, self.o), 2: ("m", self.n), 3: ("m", self.n, self.o)}[self.ndim]
        if K.ndim != self.ndim or tuple(K.shape)[1:] != want[1:]:
            raise ShapeError(
                f"cross has shape {list(K.shape)}, and theta the layout {FORMS[self.ndim]}. Give the kernel of the other inputs with the "
                f"training inputs, Θ(x, X), of shape [{', '.join(map(str, want))}]."
            )
        return blocks(self._here(K, "cross"))

    def _here(self, x: Any, what: str) -> Any:
        if isinstance(x, Tensor) and x.device != self.device:
            raise DeviceError(f"{what} is on {x.device} and theta on {self.device}. Move one of them.")
        return x

    def _start(self, f0: Tensor | None, n: int, what: str) -> Tensor:
        if f0 is None:
            return torch.zeros(n, self.o, dtype=torch.float64, device=self.device)
        if tuple(f0.shape) not in ((n, self.o), *(((n,),) if self.o == 1 else ())):
            raise ShapeError(f"{what} has shape {list(f0.shape)}. The outputs before training are [{n}, {self.o}].")
        if not bool(torch.isfinite(f0).all()):
            raise NonFiniteError(f"{what} holds NaN or infinity.")
        return self._here(f0, what).detach().to(torch.float64, copy=True).reshape(n, self.o)


def _outputs(theta: Kernel, K: Tensor, f0: Tensor | None) -> int | None:
    """Number of outputs, as far as kernel and start tell."""
    if K.ndim == 4 and K.shape[1] != K.shape[3]:
        raise ShapeError(f"theta has shape {list(K.shape)}. A kernel [n o m o] has the same outputs on both sides.")
    if K.ndim > 2:
        return K.shape[1] if K.ndim == 4 else K.shape[2]
    if isinstance(theta, NTKResult) and theta.outputs != "trace":
        return 1  # of one number a sample
    return None if f0 is None else 1 if f0.ndim == 1 else f0.shape[-1]


def _times(t: int | float | Sequence[int | float], training: KernelDynamics) -> list[int | float]:
    ts = list(t) if isinstance(t, Sequence) else [t]
    for one in ts:
        if getattr(one, "ndim", 0):
            raise OptionError("t", one, ("a number", "a list of numbers, which `t.tolist()` makes of a tensor or an array"))
        whole = training.time == "flow" or one == math.inf or float(one).is_integer()
        if not (one >= 0 and whole) or not ts:
            raise OptionError("t", one, ("a time, 0 or more" if training.time == "flow" else "a number of steps, 0 or more",))
        if one == math.inf and training.loss != "squared":
            raise OptionError(
                "t", one, (f"a finite number: the {training.loss} loss has no closed form, and its outputs may grow for ever",)
            )
    if not ts:
        raise OptionError("t", t, ("one or more times",))
    return ts
