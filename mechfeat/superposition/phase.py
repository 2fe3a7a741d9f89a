r"""The phase diagram of two features in one dimension, with the boundary that can be derived.

The important feature has importance 1, the other :math:`I`; both are active with probability :math:`p`, independently, and then uniform
on [0, 1]. Either one feature owns the dimension, or both share it as an antipodal pair. Giving feature 2 the dimension's other end
saves :math:`I (p/3 - p^2/4)`, its variance, and costs :math:`p^2 (1 + I) / 6`, the expected squared minimum of the two where both are
active. With :math:`J = \min(I, 1/I)` the pair is better where

.. math:: p < \frac{4 J}{5 J + 2}.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored

NOTHING, FIRST, SECOND, SUPERPOSITION = 0, 1, 2, 3
PHASES = ("neither", "the first owns the dimension", "the second owns the dimension", "superposition")
_NODES = 8


def superposition_boundary(importance: Float[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    r"""Density below which two features share one dimension.

    .. math:: p = \frac{4 J}{5 J + 2}, \qquad J = \min(I, 1/I)

    Args:
        importance: Importance of the second feature, of the first as 1; above 0.

    Returns:
        Densities in (0, 4/7].

    Raises:
        OptionError: An importance is not above 0.

    Example:
        >>> superposition_boundary(torch.tensor([1.0, 0.1, 10.0]))
        tensor([0.5714, 0.1600, 0.1600])
    """
    if not bool((importance > 0).all()):
        raise OptionError("importance", float(importance.min()), ("numbers above 0",))
    J = torch.minimum(importance, 1 / importance)
    return 4 * J / (5 * J + 2)


@storable
@dataclass(frozen=True, eq=False)
class PhaseDiagram(Stored):
    """What two features in one dimension do, trained and predicted.

    Attributes:
        importance: Of the second feature, one a column.
        density: Of both features, one a row.
        W: Weights of the best model of each cell.
        b: Its biases.
        loss: Its exact loss.
        phase: Trained phase, an index into ``PHASES``.
        predicted: Phase by the derived boundary.
        n_models: Models trained in each cell.
        seed: Seed of their initial weights.
    """

    importance: Float[Tensor, " column"]
    density: Float[Tensor, " row"]
    W: Float[Tensor, "row column 2"]
    b: Float[Tensor, "row column 2"]
    loss: Float[Tensor, "row column"]
    phase: Int[Tensor, "row column"]
    predicted: Int[Tensor, "row column"]
    n_models: int
    seed: int

    @property
    def agrees(self) -> Bool[Tensor, "row column"]:
        """Whether the trained phase is the predicted one; at importance 1 either feature may own the dimension."""
        either = (self.importance == 1) & (self.phase != SUPERPOSITION) & (self.phase != NOTHING) & (self.predicted != SUPERPOSITION)
        return (self.phase == self.predicted) | either

    @property
    def away(self) -> Bool[Tensor, "row column"]:
        """Whether a cell and its four neighbours have the same predicted phase."""
        shares = self.predicted == SUPERPOSITION
        padded = torch.nn.functional.pad(shares[None].double(), (1, 1, 1, 1), mode="replicate")[0] > 0
        rows, columns = shares.shape
        moves = ((0, 1), (2, 1), (1, 0), (1, 2))
        return torch.stack([padded[y : y + rows, x : x + columns] == shares for y, x in moves]).all(0)

    @property
    def agreement(self) -> float:
        """Share of cells in the predicted phase, in [0, 1]."""
        return float(self.agrees.double().mean())

    @property
    def agreement_away(self) -> float:
        """The same over cells that are not beside the boundary; NaN where there are none."""
        return float(self.agrees[self.away].double().mean())


def two_feature_loss(
    W: Float[Tensor, "*instance 2"],
    b: Float[Tensor, "*instance 2"],
    *,
    density: Float[Tensor, "*instance"],
    importance: Float[Tensor, "*instance"],
) -> Float[Tensor, "*instance"]:
    r"""Expected loss of two features in one dimension, by quadrature.

    .. math:: \mathbb E \big[ (x_1 - \operatorname{ReLU}(W_1 h + b_1))^2 + I (x_2 - \operatorname{ReLU}(W_2 h + b_2))^2 \big],
              \qquad h = W_1 x_1 + W_2 x_2

    Gauss–Legendre on the two axes, and on each side of the diagonal :math:`x_1 = x_2`; exact for the arrangements that the boundary
    compares, whose kinks lie there. Elsewhere kinks cost about 1e-3 of the loss.

    Args:
        W: Weight of each feature.
        b: Bias of each output.
        density: Probability that a feature is active.
        importance: Importance of the second feature.

    Returns:
        Losses ≥ 0.

    Example:
        >>> pair, none = torch.tensor([1.0, -1.0]), torch.zeros(2)
        >>> p, one = torch.tensor(0.3), torch.tensor(1.0)
        >>> two_feature_loss(pair, none, density=p, importance=one)  # 0.3² (1 + 1) / 6
        tensor(0.0300)
    """
    x, parts = _points(W)
    loss, _, _ = _loss_and_gradients(W, b, x, _weights(parts, density), importance)
    return loss.to(W.dtype)


def phase_diagram(
    *,
    importance: Float[Tensor, " column"],
    density: Float[Tensor, " row"],
    n_models: int = 6,
    steps: int = 1500,
    lr: int | float = 0.03,
    seed: int = 0,
) -> PhaseDiagram:
    """Train two features in one dimension in each cell, keep the best of several models, and compare with the boundary.

    Training uses expectations instead of samples, so that a cell has one loss, and the best model is the best. A feature is represented
    where its weight is above 1/2.

    Toy models only.

    Args:
        importance: Of the second feature, above 0; of the first it is 1.
        density: Probability that a feature is active, above 0 and at most 1.
        n_models: Models in each cell, from random weights.
        steps: Steps of Adam, with a rate that falls to 0 by a cosine.
        lr: Its first rate.
        seed: Seed of the initial weights.

    Returns:
        The diagram.

    Raises:
        ShapeError: There is no cell, model or step.
        OptionError: An importance or a density is out of range.

    Cost:
        About 160 points a model and step: 16 × 16 cells of 6 models take some ten seconds of one core.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "Superposition as a Phase Change".

    Example:
        >>> found = phase_diagram(importance=torch.tensor([0.5]), density=torch.tensor([0.9, 0.05]), steps=400)
        >>> [PHASES[k] for k in found.phase[:, 0]], found.agreement
        (['the first owns the dimension', 'superposition'], 1.0)
    """
    if not len(importance) or not len(density) or n_models < 1 or steps < 1:
        raise ShapeError(
            f"{len(density)} x {len(importance)} cells, n_models={n_models} and steps={steps}: at least one of each is needed."
        )
    boundary = superposition_boundary(importance.double())
    if not bool(((density > 0) & (density <= 1)).all()):
        wrong = density[~((density > 0) & (density <= 1))][0]
        raise OptionError("density", float(wrong), ("probabilities above 0, up to 1",))
    rows, columns = len(density), len(importance)
    shape = (rows, columns, n_models)
    p = density.double()[:, None, None].expand(shape).reshape(-1)
    weight = importance.double()[None, :, None].expand(shape).reshape(-1)
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(p.shape[0], 2, generator=generator, dtype=torch.float64).to(p.device)
    b = torch.zeros_like(W)
    x, parts = _points(W)
    mass = _weights(parts, p)
    state = [torch.zeros_like(W) for _ in range(4)]
    for t in range(1, steps + 1):
        _, gW, gb = _loss_and_gradients(W, b, x, mass, weight)
        rate = float(lr) * (1 + math.cos(math.pi * t / steps)) / 2
        # A loss in proportion to p has gradients in proportion to p, which Adam divides out.
        for value, g, m, v in ((W, gW, state[0], state[1]), (b, gb, state[2], state[3])):
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            value.addcdiv_(m / (1 - 0.9**t), (v / (1 - 0.999**t)).sqrt_().add_(1e-12), value=-rate)
    loss = _loss_and_gradients(W, b, x, mass, weight)[0].view(shape)
    best = loss.argmin(-1)
    pick = best[..., None, None].expand(rows, columns, 1, 2)
    W_best, b_best = (v.view(*shape, 2).gather(2, pick).squeeze(2) for v in (W, b))
    there = W_best.abs() > 0.5
    phase = there[..., 0].long() * FIRST + there[..., 1].long() * SECOND  # 1 + 2 is superposition
    owner = torch.where(importance > 1, SECOND, FIRST)
    predicted = torch.where(density.double()[:, None] < boundary, SUPERPOSITION, owner[None])
    return PhaseDiagram(importance, density, W_best, b_best, loss.amin(-1), phase, predicted, n_models, seed)


def _points(like: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Inputs ``[point 2]``, and weights of none, one and both features active, each 0 at the other points."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    t, w = (torch.as_tensor(v, dtype=torch.float64) / 2 for v in (nodes + 1, weights))
    zero = torch.zeros_like(t)
    axes = torch.cat([torch.stack([t, zero], -1), torch.stack([zero, t], -1)])
    # The triangle below the diagonal is (s, s r) for s, r in [0, 1], with area element s.
    s, r = torch.meshgrid(t, t, indexing="ij")
    area = (w[:, None] * w * s).flatten()
    low = torch.stack([s, s * r], -1).view(-1, 2)
    x = torch.cat([torch.zeros(1, 2, dtype=torch.float64), axes, low, low.flip(-1)])
    none, one, both = (torch.zeros(len(x), dtype=torch.float64) for _ in range(3))
    none[0] = 1
    one[1 : 1 + 2 * _NODES] = torch.cat([w, w])
    both[1 + 2 * _NODES :] = torch.cat([area, area])
    return x.to(like.device), (none.to(like.device), one.to(like.device), both.to(like.device))


def _weights(parts: tuple[Tensor, Tensor, Tensor], density: Tensor) -> Tensor:
    p = density.double()[..., None]
    none, one, both = parts
    return (1 - p) ** 2 * none + p * (1 - p) * one + p**2 * both


def _loss_and_gradients(W: Tensor, b: Tensor, x: Tensor, mass: Tensor, importance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = W.double() @ x.mT  # [*instance point]
    loss = torch.zeros_like(h[..., 0])
    dh = torch.zeros_like(h)
    gW, gb = [], []
    for j, scale in enumerate((torch.ones_like(importance), importance)):
        w, bias = W[..., j, None].double(), b[..., j, None].double()
        pre = h * w + bias
        residual = torch.relu(pre) - x[:, j]
        G = 2 * scale.double()[..., None] * mass * residual
        loss = loss + (G * residual).sum(-1) / 2
        G = G * (pre > 0)
        dh = dh + G * w
        gW.append((G * h).sum(-1))
        gb.append(G.sum(-1))
    return loss, torch.stack(gW, -1) + dh @ x, torch.stack(gb, -1)
