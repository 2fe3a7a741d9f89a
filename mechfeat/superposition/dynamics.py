r"""Where training stands still, and how it leaves: Hessian spectra, and escape rates that they predict.

Near a saddle, gradient descent multiplies the component along an eigenvector by :math:`1 - \eta \lambda` at each step. A negative
eigenvalue therefore shows twice, in the spectrum and in the growth of a difference, and the two must agree. *When* the saddle is left
depends on rounding, since what grows may begin at 1e-16: compare rates, never steps.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import NonFiniteError, OptionError, ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored


@storable
@dataclass(frozen=True, eq=False)
class HessianSpectrum(Stored):
    """Eigenvalues of the Hessian of a loss.

    Attributes:
        eigenvalues: In rising order, ``[*instance parameter]``, in units of the loss over squared parameters; float64.
        escape: Unit eigenvector of the smallest, over all parameters in the order of their names given.
        steps: Step of training that each belongs to, where the first axis is one of steps.
    """

    eigenvalues: Float[Tensor, "*instance parameter"]
    escape: Float[Tensor, "*instance parameter"]
    steps: Int[Tensor, " frame"] | None = None

    @property
    def smallest(self) -> Float[Tensor, "*instance"]:
        """The smallest eigenvalue; negative at a saddle, and then the rate of escape."""
        return self.eigenvalues[..., 0]

    def n_negative(self, epsilon: int | float = 1e-6) -> Int[Tensor, "*instance"]:
        """Number of eigenvalues below ``-epsilon``.

        Args:
            epsilon: What counts as zero.

        Returns:
            Counts; 0 at a minimum.
        """
        return (self.eigenvalues < -epsilon).sum(-1)

    def n_flat(self, epsilon: int | float = 1e-6) -> Int[Tensor, "*instance"]:
        """Number of eigenvalues within ``epsilon`` of zero: rotations of the hidden space among others.

        Args:
            epsilon: What counts as zero.

        Returns:
            Counts.
        """
        return (self.eigenvalues.abs() <= epsilon).sum(-1)


def hessian_spectrum(
    loss: Callable[[dict[str, Tensor]], Tensor], parameters: Mapping[str, Tensor], *, batched: bool = False
) -> HessianSpectrum:
    r"""All eigenvalues of the Hessian of a loss at given parameters, computed in float64.

    The matrix is symmetrised before its eigenvalues are taken. At a kink of a ReLU the Hessian is that of the side that torch's
    gradient takes.

    Real networks: small ones exactly; this forms the whole matrix, so that some thousand parameters are the end.

    Args:
        loss: From parameters by name (without instance axis) to a number; a composition of differentiable torch functions.
        parameters: Where.
        batched: Parameters have a leading instance axis, and every instance has a Hessian of its own.

    Returns:
        The spectrum; ``[instance parameter]`` where batched.

    Raises:
        ShapeError: There is no parameter.
        NonFiniteError: The Hessian holds NaN or infinity.

    Cost:
        With P parameters: P gradients of the loss, 8 P² bytes an instance, and O(P³) time for the eigenvalues.

    Example:
        >>> found = hessian_spectrum(lambda v: v["x"][0] ** 2 - 3 * v["x"][1] ** 2, {"x": torch.zeros(2)})
        >>> found.eigenvalues, int(found.n_negative())
        (tensor([-6.,  2.], dtype=torch.float64), 1)
    """
    values = {name: p.detach().double() for name, p in parameters.items()}
    shapes = {name: p.shape[1:] if batched else p.shape for name, p in values.items()}
    sizes = [shape.numel() for shape in shapes.values()]
    if not sum(sizes):
        raise ShapeError("hessian_spectrum was given no parameter. It needs at least one entry of one tensor.")
    flat = torch.cat([p.reshape(*p.shape[:1], -1) if batched else p.reshape(-1) for p in values.values()], -1)

    def of(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        return loss({name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)})

    # Reverse over reverse: torch's forward mode loads a compiler that it deprecates itself.
    hessian = torch.func.jacrev(torch.func.jacrev(of))
    # One instance at a time: a batch of Hessians would hold P copies of every activation for all of them at once.
    H = torch.stack([hessian(row) for row in flat]) if batched else hessian(flat)
    if not bool(torch.isfinite(H).all()):
        raise NonFiniteError("The Hessian holds NaN or infinity at these parameters. Is the loss finite there, and twice differentiable?")
    found, vectors = torch.linalg.eigh((H + H.mT) / 2)
    return HessianSpectrum(found.detach(), vectors[..., 0].detach())


@storable
@dataclass(frozen=True, eq=False)
class EscapeRates(Stored):
    """Eigenvalue that the growth of a difference implies, in each window.

    Attributes:
        starts: First step of each window.
        stops: Last step of each window.
        growth: Logarithm of the factor by which the difference grew.
        eigenvalues: The eigenvalue under which gradient descent grows so; negative for growth.
    """

    starts: Int[Tensor, " window"]
    stops: Int[Tensor, " window"]
    growth: Float[Tensor, " window"]
    eigenvalues: Float[Tensor, " window"]

    def relative_errors(self, curvature: Float[Tensor, " window"]) -> Float[Tensor, " window"]:
        """How far the implied eigenvalues are from the Hessian's.

        Args:
            curvature: Smallest eigenvalue of the Hessian in each window.

        Returns:
            Absolute differences over the absolute curvature, dimensionless.
        """
        return (self.eigenvalues - curvature).abs() / curvature.abs()


def escape_rates(
    difference: Float[Tensor, " frame"], steps: Int[Tensor, " frame"], lr: int | float | Float[Tensor, " step"]
) -> EscapeRates:
    r"""The eigenvalue that the growth of a difference implies, between each two recorded steps.

    .. math:: \textstyle\sum_{t = t_1}^{t_2 - 1} \ln (1 - \eta_t \lambda) = \ln \frac{d(t_2)}{d(t_1)}

    solved for λ. It holds while the difference is small enough for the loss to be quadratic, and large enough to stand above rounding.

    Args:
        difference: Length of a difference that vanishes at the saddle, such as between two merged features.
        steps: Step at which each was taken, rising.
        lr: Learning rate of gradient descent without momentum: a number, or one for each step from 0.

    Returns:
        One rate a window.

    Raises:
        ShapeError: There are fewer than two steps, they do not rise, or ``lr`` does not reach the last.
        NonFiniteError: A difference is not positive and finite, so it has no logarithm.
        OptionError: A rate is negative or not finite, or all rates of a window are 0.

    Example:
        >>> t = torch.tensor([0, 10, 20])
        >>> escape_rates(1e-6 * (1 + 0.1 * 0.5) ** t.double(), t, 0.1).eigenvalues
        tensor([-0.5000, -0.5000], dtype=torch.float64)
    """
    if len(steps) < 2 or len(steps) != len(difference) or bool((steps.diff() <= 0).any()):
        raise ShapeError(f"{len(difference)} differences at steps {steps.tolist()[:8]}. Give one for each of two or more rising steps.")
    if not bool((torch.isfinite(difference) & (difference > 0)).all()):
        raise NonFiniteError("A difference is not positive and finite, so its growth has no rate. Leave out the frames where it is 0.")
    last = int(steps[-1])
    rates = lr.double() if isinstance(lr, Tensor) else torch.full((last,), float(lr), dtype=torch.float64)
    if len(rates) < last:
        raise ShapeError(f"lr holds {len(rates)} steps, and the last difference is of step {last}. Give one rate for each step before it.")
    windows = [rates[a:b] for a, b in itertools.pairwise(steps.tolist())]
    if not all(bool(torch.isfinite(w).all() and (w >= 0).all() and w.any()) for w in windows):
        raise OptionError("lr", float(rates[:last].min()), ["rates of at least 0, not all 0 between two steps"])
    growth = difference.double().log().diff()
    found = [_implied(w.to(growth.device), g) for w, g in zip(windows, growth, strict=True)]
    return EscapeRates(steps[:-1], steps[1:], growth, torch.stack(found))


def _implied(rates: Tensor, growth: Tensor) -> Tensor:
    """Newton's method; the sum is concave and falls in λ, so that it converges from above."""
    limit = 1 / rates.max()  # beyond it a step would turn the sign
    eigenvalue = -growth / rates.sum()  # the continuous rate, which lies above
    if bool(eigenvalue >= limit):
        eigenvalue = -torch.expm1(growth / len(rates)) * limit  # all steps at the largest rate, which lies below
    for _ in range(100):
        at = 1 - rates * eigenvalue
        step = (at.log().sum() - growth) / (-rates / at).sum()
        following = eigenvalue - step
        eigenvalue = following if bool(following < limit) else (eigenvalue + limit) / 2
        if bool(step.abs() <= 1e-14 * eigenvalue.abs()):
            break
    return eigenvalue
