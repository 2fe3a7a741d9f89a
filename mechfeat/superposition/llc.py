r"""Local learning coefficient: an estimate of how degenerate a minimum is, by sampling around it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import NonFiniteError, ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored


@storable
@dataclass(frozen=True, eq=False)
class LearningCoefficient(Stored):
    """An estimate of the local learning coefficient.

    Attributes:
        value: Mean over chains.
        per_chain: One estimate a chain.
        standard_error: Of the mean, from the spread of chains; NaN with one chain.
        acceptable: Whether no chain left the point for a lower loss: all estimates are above 0.
    """

    value: float
    per_chain: Float[Tensor, " chain"]
    standard_error: float
    acceptable: bool


def local_learning_coefficient(
    loss: Callable[[Float[Tensor, "chain parameter"]], Float[Tensor, " chain"]],
    at: Float[Tensor, " parameter"],
    *,
    n: int,
    inverse_temperature: int | float | None = None,
    step_size: int | float = 1e-5,
    localisation: int | float = 1.0,
    n_chains: int = 64,
    n_burn: int = 500,
    n_steps: int = 2000,
    seed: int = 0,
) -> LearningCoefficient:
    r"""Estimate the local learning coefficient by Langevin sampling.

    .. math:: \hat\lambda = n \beta \big( \mathbb E_w [L(w)] - L(w^*) \big), \qquad
              p(w) \propto \exp\big(-n \beta L(w) - \tfrac{\gamma}{2} \|w - w^*\|^2\big), \qquad \beta = 1 / \ln n

    At a regular minimum it is half the number of parameters; each degenerate direction lowers it. For the normal crossing
    :math:`L = \prod_i w_i^{2 k_i}` it is :math:`\min_i 1 / (2 k_i)`. This is an estimate with knobs: state step size, localisation and
    inverse temperature with it, halve the step size to see that it stays, and read differences rather than values. Steps are taken with
    the whole loss, without minibatches and without a test of acceptance, so that the step size biases it (by about
    ε n β λ_max / 4 of the value).

    Real networks: possible with a loss over minibatches; the choice of step size is then more art than science.

    Args:
        loss: Mean loss, for a batch of parameter vectors at once.
        at: The point :math:`w^*`, a minimum.
        n: Number of samples that the loss is a mean of.
        inverse_temperature: β; 1/ln n by default.
        step_size: ε of the step :math:`w \leftarrow w - \tfrac\epsilon2 \nabla + \sqrt\epsilon\,\xi`. The fastest direction must stay
            stable: below ``2 / (n β λ_max + γ)``.
        localisation: γ, which keeps chains near the point.
        n_chains: Independent chains, run as one batch.
        n_burn: Steps before the mean.
        n_steps: Steps of the mean.
        seed: Seed of the noise.

    Returns:
        The estimate.

    Raises:
        ShapeError: A number of samples, chains or steps is too small.
        NonFiniteError: A chain diverged.

    Cost:
        ``n_burn + n_steps`` gradients of the batched loss.

    Source:
        Lau et al. 2023, *Quantifying Degeneracy in Singular Models via the Learning Coefficient*; Chen et al. 2023, *Dynamical versus
        Bayesian Phase Transitions in a Toy Model of Superposition*.

    Example:
        >>> found = local_learning_coefficient(
        ...     lambda w: w.square().sum(-1), torch.zeros(4), n=1000, step_size=2e-4, n_steps=1000, seed=1)
        >>> abs(found.value - 2) < 0.2
        True
    """
    if n < 2 or n_chains < 1 or n_steps < 1 or n_burn < 0:
        raise ShapeError(
            f"n={n}, n_chains={n_chains}, n_burn={n_burn} and n_steps={n_steps}. At least 2 samples, one chain and one step are needed."
        )
    beta = 1 / math.log(n) if inverse_temperature is None else float(inverse_temperature)
    generator = torch.Generator().manual_seed(seed)
    centre = at.detach().double()
    w = centre.expand(n_chains, -1).clone()
    with torch.no_grad():
        floor = loss(centre[None])
    total = torch.zeros(n_chains, dtype=torch.float64, device=centre.device)
    for t in range(n_burn + n_steps):
        with torch.enable_grad():
            leaf = w.requires_grad_(True)
            found = loss(leaf)
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
        if t >= n_burn:
            total += found.detach()
        drift = n * beta * gradient + localisation * (leaf.detach() - centre)
        noise = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device)
        w = leaf.detach() - step_size / 2 * drift + math.sqrt(step_size) * noise
    if not bool(torch.isfinite(w).all()):
        raise NonFiniteError(f"A chain diverged with step_size={step_size:g}. Take a smaller one: below 2 / (n β λ_max + localisation).")
    estimates = n * beta * (total / n_steps - floor)
    error = float(estimates.std() / math.sqrt(n_chains)) if n_chains > 1 else math.nan
    return LearningCoefficient(float(estimates.mean()), estimates, error, bool((estimates > 0).all()))
