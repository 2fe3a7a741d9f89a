r"""One feature active at a time, with a uniform value: a loss in closed form, kinks of the ReLU included."""

import torch
from jaxtyping import Float
from torch import Tensor


def _moments(slope: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\int_0^1 \operatorname{ReLU}(g\mu + b)^2 d\mu` and :math:`\int_0^1 \mu \operatorname{ReLU}(g\mu + b) d\mu`."""
    end = slope + bias
    inside, crosses = (end > 0) & (bias > 0), (end > 0) != (bias > 0)
    # Divided differences need no slope where there is no kink; where there is one the slope is not 0, and 1 stands in for it elsewhere.
    g = torch.where(crosses, slope, 1.0)
    last, first = end.clamp_min(0), bias.clamp_min(0)
    cubes, squares = last**3 - first**3, last.square() - first.square()
    smooth = (end.square() + end * bias + bias.square()) / 3
    second = torch.where(inside, smooth, torch.where(crosses, cubes / (3 * g), 0.0))
    mixed = torch.where(inside, slope / 3 + bias / 2, torch.where(crosses, (cubes / 3 - bias * squares / 2) / g.square(), 0.0))
    return second, mixed


def one_active_loss(W: Float[Tensor, "*instance feature hidden"], b: Float[Tensor, "*#instance feature"]) -> Float[Tensor, "*instance"]:
    r"""Expected squared error of a tied ReLU autoencoder where one feature is active, with a value uniform on [0, 1].

    .. math:: L = \frac1n \sum_i \int_0^1 \big\| \operatorname{ReLU}(\mu W w_i + b) - \mu e_i \big\|^2 d\mu

    It is summed over outputs, so that it is n times the loss of training on
    ``AnticorrelatedSets(n, set_size=n, density=1.0)``. Its gradient is continuous; second derivatives jump at kinks.

    Toy models only.

    Args:
        W: Embedding, one row per feature.
        b: Bias of each output.

    Returns:
        Values ≥ 0; 1/3 for zero weights and biases.

    Source:
        The setting of Chen et al. 2023, *Dynamical versus Bayesian Phase Transitions in a Toy Model of Superposition*; the integrals are
        elementary.

    Example:
        >>> square = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
        >>> one_active_loss(square, torch.zeros(6))  # two of six features are missed, a third each
        tensor(0.1111)
    """
    gram = W @ W.mT
    second, mixed = _moments(gram, b[..., None, :].expand_as(gram))  # [input output]
    return (second.sum(-1) + 1 / 3 - 2 * mixed.diagonal(dim1=-2, dim2=-1)).mean(-1)
