"""Hessian spectra and escape rates: closed forms, and the saddle that a published notebook passes."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechfeat.data import Exact, OneHot, SparseUniform
from mechfeat.errors import NonFiniteError, OptionError, ShapeError, UnsupportedModelError
from mechfeat.features import load
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import (
    Record,
    Schedule,
    escape_rates,
    fit,
    hessian_spectrum,
    k_eff,
    local_learning_coefficient,
    mse,
    one_hot_loss,
    run_spectrum,
)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_a_quadratic_form_has_its_own_spectrum(seed):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(2, 5, 5, generator=g)
    A = A + A.mT
    found = hessian_spectrum(
        lambda v: torch.cat([v["a"], v["b"].flatten()]) @ A[0] @ torch.cat([v["a"], v["b"].flatten()]) / 2,
        {"a": torch.randn(1, generator=g), "b": torch.randn(2, 2, generator=g)},
    )
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(A[0]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(A[0] @ found.escape, found.smallest * found.escape, rtol=0, atol=1e-9)


def test_instances_have_spectra_of_their_own():
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    found = hessian_spectrum(lambda v: (v["x"] ** 4).sum() - v["x"][0] ** 2, {"x": x}, batched=True)
    torch.testing.assert_close(found.eigenvalues, torch.tensor([[-2.0, 0.0], [10.0, 48.0]]))
    assert found.n_negative().tolist() == [1, 0]
    assert found.n_flat().tolist() == [1, 0]


def test_hessian_of_a_toy_model_by_differences():
    run = fit(ToyBank(ToySpec(5, 2, tied=False, activation="gelu"), 2), OneHot(5), steps=30, lr=0.5)
    found = run_spectrum(run, at=[30], instance=1)
    values = torch.cat([run.parameters[n][-1, 1].flatten() for n in run.parameters]).requires_grad_()

    def loss(v):
        W, U, b = v[:10].view(5, 2), v[10:20].view(5, 2), v[20:]
        return (torch.nn.functional.gelu(W @ U.T + b) - torch.eye(5)).square().mean()

    def gradient(v):
        return torch.autograd.grad(loss(v), v)[0]

    h = 1e-5
    H = torch.stack([(gradient(values + h * e) - gradient(values - h * e)) / (2 * h) for e in torch.eye(25)])
    assert list(run.parameters) == ["W", "U", "b"]
    torch.testing.assert_close(found.eigenvalues[0], torch.linalg.eigvalsh((H + H.T) / 2), rtol=0, atol=1e-8)


@given(st.floats(-3, 0.5), st.floats(0.01, 0.3))
def test_growth_gives_the_eigenvalue_back(eigenvalue, lr):
    steps = torch.tensor([0, 3, 4, 20])
    rates = lr * (1 + torch.arange(20) / 20)
    grown = torch.stack([(1 - rates[:t] * eigenvalue).log().sum().exp() for t in steps])
    found = escape_rates(1e-9 * grown, steps, rates)
    torch.testing.assert_close(found.eigenvalues, torch.full((3,), eigenvalue), rtol=1e-8, atol=1e-9)
    assert float(found.relative_errors(torch.full((3,), -2.0))[0]) == pytest.approx(abs(eigenvalue + 2) / 2, rel=1e-6)


@given(st.floats(0.0, 0.999), st.integers(1, 30))
def test_decay_gives_the_eigenvalue_back(share, n):
    """However fast: a step may take all but a thousandth of the difference."""
    rates = 0.2 * (1 + torch.arange(n) / n)
    eigenvalue = share / float(rates.max())
    left = (1 - rates * eigenvalue).log().sum().exp()
    found = escape_rates(torch.stack([torch.ones(()), left]), torch.tensor([0, n]), rates)
    torch.testing.assert_close(found.eigenvalues, torch.tensor([eigenvalue]), rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def saddle():
    """Seed 2 of the notebook: n = 40, m = 2, ReLU(z + 1), in float64."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    frames = (*range(14_000, 17_001, 500), 22_000)
    bank = ToyBank(ToySpec(40, 2, shift=1.0), seeds=[2], dtype=torch.float64)
    schedule = Schedule(0.001, 4.0, 1.0, steps=300_000)
    jaxtyping.config.update("jaxtyping_disable", True)  # 22,000 checked steps take ten times as long
    run = fit(
        bank, OneHot(40), steps=22_000, lr=schedule, record=Record(frames=frames, losses=(14_000, 18_000, 19_000, 20_000, 21_000, 22_000))
    )
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.set_default_dtype(dtype)
    return run, schedule


def test_escape_from_the_saddle(saddle):
    # Check 7. Rates, not steps: when the plateau ends depends on rounding.
    run, schedule = saddle
    steps = torch.tensor([14_000, 15_000, 16_000, 17_000])
    spectrum = run_spectrum(run, at=[*range(14_000, 17_001, 500), 22_000])
    at = {int(t): i for i, t in enumerate(run.steps)}
    difference = torch.stack([(run.weights[at[int(t)], 0, 12] - run.weights[at[int(t)], 0, 24]).norm() for t in steps])
    lr = torch.tensor([schedule(t, 0) for t in range(17_000)])
    rates = escape_rates(difference, steps, lr)
    middle = spectrum.smallest[[1, 3, 5]]
    assert (rates.relative_errors(middle) <= 0.03).all()
    assert (spectrum.n_negative()[:-1] >= 5).all()
    assert spectrum.n_negative()[-1] <= 2
    assert run.losses[0, 0].item() == pytest.approx(0.0203, abs=5e-5)
    assert run.final_loss[0] <= 0.0198
    drops = 1 - run.losses[3, 0] / run.losses[1, 0]  # within two thousand steps
    assert drops >= 0.02


def test_the_ledger_at_rest():
    # Check 4 in small: at rest k_eff is the squared norm of the weights.
    run = fit(ToyBank(ToySpec(20, 3, out_bias=False), 3), OneHot(20), steps=4000, lr=Schedule(0.02, 3.0, 1.0))
    W = run.weights[-1]
    torch.testing.assert_close(k_eff(one_hot_loss(W), 20), W.square().sum((-2, -1)), rtol=3e-3, atol=0)
    torch.testing.assert_close(one_hot_loss(W), run.final_loss, rtol=1e-6, atol=0)


# The local learning coefficient


def test_normal_crossing_of_one_parameter():
    # L = w⁴: λ = 1/4, and nβ E[L] = 1/4 exactly where nothing but the loss holds the chain.
    found = local_learning_coefficient(
        lambda w: (w**4).sum(-1), torch.zeros(1), n=10_000, step_size=2e-4, localisation=0.0, n_chains=800, n_burn=1500, n_steps=1500
    )
    assert found.standard_error < 0.01
    assert found.value == pytest.approx(1 / 4, abs=4 * found.standard_error + 0.005)


def test_normal_crossing_of_two_parameters():
    # L = w₁² w₂² has λ = 1/2 with multiplicity 2, which the estimate approaches like 1/log n. The integral at this n is exact.
    n, gamma = 100_000, 25.0
    nb = n / math.log(n)
    w = torch.linspace(-1.4, 1.4, 2801)
    x, y = w[:, None], w[None]
    loss = x**2 * y**2
    mass = torch.exp(-nb * loss - gamma / 2 * (x**2 + y**2))
    want = float(nb * (loss * mass).sum() / mass.sum())
    found = local_learning_coefficient(
        lambda w: w[:, 0] ** 2 * w[:, 1] ** 2,
        torch.zeros(2),
        n=n,
        step_size=5e-5,
        localisation=gamma,
        n_chains=400,
        n_burn=4000,
        n_steps=4000,
    )
    assert found.value == pytest.approx(want, abs=4 * found.standard_error + 0.01)
    assert 0.3 < want < 0.5  # on its way to 1/2


@pytest.mark.parametrize("d", [1, 6])
def test_regular_minimum_has_half_the_parameters(d):
    found = local_learning_coefficient(lambda w: w.square().sum(-1), torch.zeros(d), n=1000, step_size=2e-4, n_chains=200, n_steps=2000)
    beta = 1 / math.log(1000)
    want = d / 2 * (1000 * beta) / (1000 * beta + 0.5)  # the localisation takes part of the width
    assert found.value == pytest.approx(want, abs=4 * found.standard_error + 0.015 * d)  # ε n β λ_max / 4 = 1.5 %
    assert found.acceptable


# Errors and storage


def test_errors(unchecked):
    run = fit(ToyBank(ToySpec(5, 2), 2), OneHot(5), steps=4, lr=0.5, record=Record(frames=(0, 4)))
    with pytest.raises(OptionError) as error:
        run_spectrum(run, at=[3])
    assert str(error.value) == "at=3 is not known. It can be 'one of the 2 recorded steps [0, 4]...'."
    with pytest.raises(ShapeError) as error:
        run_spectrum(run, instance=2)
    assert str(error.value) == "instance=2, and the run has instances 0 to 1."
    sampled = fit(ToyBank(ToySpec(5, 2), 2), SparseUniform(5, density=0.3), steps=4, lr=0.5, batch=8)
    with pytest.raises(UnsupportedModelError):
        run_spectrum(sampled)
    with pytest.raises(ShapeError) as error:
        hessian_spectrum(lambda v: torch.tensor(0.0), {})
    assert str(error.value) == "hessian_spectrum was given no parameter. It needs at least one entry of one tensor."
    with pytest.raises(NonFiniteError):
        hessian_spectrum(lambda v: v["x"].log().sum(), {"x": torch.zeros(2)})
    with pytest.raises(ShapeError) as error:
        escape_rates(torch.ones(2), torch.tensor([3, 3]), 0.1)
    assert str(error.value) == "2 differences at steps [3, 3]. Give one for each of two or more rising steps."
    with pytest.raises(ShapeError) as error:
        escape_rates(torch.ones(2), torch.tensor([0, 3]), torch.ones(2))
    assert str(error.value) == "lr holds 2 steps, and the last difference is of step 3. Give one rate for each step before it."
    with pytest.raises(NonFiniteError) as error:
        escape_rates(torch.tensor([1.0, 0.0]), torch.tensor([0, 3]), 0.1)
    assert str(error.value) == "A difference is not positive and finite, so its growth has no rate. Leave out the frames where it is 0."
    with pytest.raises(OptionError) as error:
        escape_rates(torch.ones(2), torch.tensor([0, 3]), 0.0)
    assert str(error.value) == "lr=0.0 is not known. It can be 'rates of at least 0, not all 0 between two steps'."
    with pytest.raises(ShapeError):
        local_learning_coefficient(lambda w: w.sum(-1), torch.zeros(1), n=1)
    with pytest.raises(NonFiniteError) as error:
        local_learning_coefficient(lambda w: (w**4).sum(-1), torch.zeros(1), n=1000, step_size=10.0, n_steps=50)
    assert str(error.value).startswith("A chain diverged with step_size=10.")


def test_the_spectrum_of_an_instance_is_that_of_its_own_data_and_importance():
    weight, importance = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), torch.rand(2, 3)
    run = fit(ToyBank(ToySpec(3, 2), 2), Exact(3, torch.eye(3), weight), steps=20, lr=0.5, loss=mse(importance), record=Record(2, 2))
    values = torch.cat([run.weights[-1, 1].flatten(), run.parameters["b"][-1, 1]])

    def loss(v):
        W, b = v[:6].view(3, 2), v[6:]
        errors = (torch.relu(W @ W.T + b) - torch.eye(3)).square() * importance[1] / 3
        return (errors.sum(1) * weight[1]).sum()

    want = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, values))
    for found in (run_spectrum(run, at=[20], instance=1), run_spectrum(run.select(1), at=[20])):
        torch.testing.assert_close(found.eigenvalues[0], want, rtol=0, atol=1e-12)


def test_a_spectrum_is_saved_whole(tmp_path):
    run = fit(ToyBank(ToySpec(4, 2), 1), OneHot(4), steps=4, lr=0.5)
    found = run_spectrum(run, at=[0, 4])
    found.save(tmp_path / "s.safetensors")
    again = load(tmp_path / "s.safetensors")
    assert torch.equal(again.eigenvalues, found.eigenvalues)
    assert torch.equal(again.steps, found.steps)
