"""The exact loss of one active feature: against a fine sum, its gradient, kinks and flat Gram entries, bank axes, training's own loss."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.data import AnticorrelatedSets
from mechfeat.superposition import one_active_loss


def literal(W, b, points=20_000):
    """The definition, by the midpoint rule."""
    mu = (torch.arange(points) + 0.5) / points
    total = 0.0
    for i in range(len(W)):
        x = mu[:, None] * torch.eye(len(W))[i]
        total += (torch.relu(x @ W @ W.T + b) - x).square().sum(-1).mean()
    return total / len(W)


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0]), st.integers(1, 5))
def test_the_loss_matches_the_definition(seed, scale, n):
    generator = torch.Generator().manual_seed(seed)
    W, b = scale * torch.randn(n, 2, generator=generator), scale * torch.randn(n, generator=generator)
    torch.testing.assert_close(one_active_loss(W, b), literal(W, b), rtol=1e-6, atol=1e-7)


@given(st.integers(0, 10_000))
def test_the_gradient_is_that_of_differences(seed):
    generator = torch.Generator().manual_seed(seed)
    W, b = torch.randn(4, 2, generator=generator), torch.randn(4, generator=generator)
    assert torch.autograd.gradcheck(one_active_loss, (W.requires_grad_(True), b.requires_grad_(True)), atol=1e-4)


def test_orthogonal_features_and_kinks_at_the_ends():
    # Gram entries of 0 and biases of 0: the quotients of the closed form would be 0/0.
    for b in (0.0, 0.1, -0.1):
        W, bias = torch.eye(3, 2).requires_grad_(True), torch.full((3,), b).requires_grad_(True)
        found = one_active_loss(W, bias)
        torch.testing.assert_close(found.detach(), literal(W.detach(), bias.detach()), rtol=1e-6, atol=1e-7)
        assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(found, (W, bias)))


def test_zero_weights_and_a_mean():
    # Predicting 0 costs E[μ²] = 1/3, and predicting the mean 1/(2n) takes n/(2n)² off.
    assert math.isclose(one_active_loss(torch.zeros(6, 2), torch.zeros(6)), 1 / 3)
    assert math.isclose(one_active_loss(torch.zeros(6, 2), torch.full((6,), 1 / 12)), 1 / 3 - 6 / 144)


def test_a_bank_is_its_instances():
    generator = torch.Generator().manual_seed(0)
    W, b = torch.randn(3, 5, 2, generator=generator), torch.randn(3, 5, generator=generator)
    torch.testing.assert_close(one_active_loss(W, b), torch.stack([one_active_loss(w, c) for w, c in zip(W, b, strict=True)]))


def test_it_is_the_expectation_of_the_data_named():
    generator = torch.Generator().manual_seed(0)
    W, b = torch.randn(6, 2, generator=generator), 0.3 * torch.randn(6, generator=generator)
    x = AnticorrelatedSets(6, set_size=6, density=1.0).sample(generator, 200_000)
    errors = (torch.relu(x @ W @ W.T + b) - x).square().sum(-1)
    assert abs(float(errors.mean() - one_active_loss(W, b))) < 5 * float(errors.std()) / math.sqrt(len(x))
