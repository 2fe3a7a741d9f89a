"""Two features in one dimension: exact expectations, the derived boundary, trained diagrams."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.errors import OptionError, ShapeError
from mechfeat.superposition import PHASES, phase_diagram, superposition_boundary, two_feature_loss


@given(p=st.floats(0.01, 1), weight=st.floats(0.05, 20))
def test_losses_of_the_two_arrangements(p, weight):
    density, importance = torch.tensor(p), torch.tensor(weight)
    pair = two_feature_loss(torch.tensor([1.0, -1.0]), torch.zeros(2), density=density, importance=importance)
    assert pair.item() == pytest.approx(p**2 * (1 + weight) / 6, rel=1e-12)
    owned = two_feature_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, p / 2]), density=density, importance=importance)
    assert owned.item() == pytest.approx(weight * (p / 3 - p**2 / 4), rel=1e-12)


@given(weight=st.floats(0.05, 20))
def test_the_boundary_is_where_the_arrangements_cost_the_same(weight):
    importance = torch.tensor(weight)
    p = superposition_boundary(importance)
    J = min(weight, 1 / weight)
    scale = weight / J  # the feature that is dropped is the less important one
    pair, dropped = p**2 * (1 + importance) / 6, scale * J * (p / 3 - p**2 / 4) if weight <= 1 else p / 3 - p**2 / 4
    assert pair.item() == pytest.approx(float(dropped), rel=1e-9)


def test_expectation_against_samples():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(400_000, 2, generator=g) * (torch.rand(400_000, 2, generator=g) < 0.4)
    W, b = torch.tensor([0.9, -0.6]), torch.tensor([-0.1, 0.2])
    out = torch.relu((x @ W)[:, None] * W + b)
    losses = ((x - out).square() * torch.tensor([1.0, 3.0])).sum(-1)
    found = two_feature_loss(W, b, density=torch.tensor(0.4), importance=torch.tensor(3.0))
    # Four standard errors, and the quadrature's error at kinks off the diagonal.
    assert found.item() == pytest.approx(losses.mean().item(), abs=4 * losses.std().item() / 400_000**0.5 + 1e-3 * found.item())


def test_small_diagram():
    found = phase_diagram(importance=torch.tensor([0.2, 1.0, 5.0]), density=torch.tensor([0.95, 0.1]), n_models=6, steps=1000)
    assert [PHASES[k] for k in found.phase[0, [0, 2]]] == ["the first owns the dimension", "the second owns the dimension"]
    assert (found.phase[1] == PHASES.index("superposition")).all()
    assert found.agreement == 1
    torch.testing.assert_close(
        found.loss,
        two_feature_loss(found.W, found.b, density=found.density[:, None].expand(2, 3), importance=found.importance.expand(2, 3)),
    )
    pair = found.W[1, 1]
    assert pair.prod() < 0
    torch.testing.assert_close(pair[0].abs(), pair[1].abs(), rtol=1e-2, atol=0)


def test_cells_beside_the_boundary():
    found = phase_diagram(importance=torch.tensor([1.0]), density=torch.tensor([0.9, 0.8, 0.3, 0.2]), n_models=1, steps=1)
    assert found.away[:, 0].tolist() == [True, False, False, True]


@pytest.mark.full
def test_the_diagram_of_sixteen_by_sixteen():
    # Check 11, of 1,536 models.
    found = phase_diagram(importance=torch.logspace(-1, 1, 16), density=torch.logspace(0, -2, 16))
    assert found.agreement >= 0.95
    assert found.agreement_away >= 0.99
    assert int(found.away.sum()) == 224


def test_errors(unchecked):
    one = torch.ones(1)
    with pytest.raises(OptionError) as error:
        phase_diagram(importance=-one, density=one)
    assert str(error.value) == "importance=-1.0 is not known. It can be 'numbers above 0'."
    with pytest.raises(OptionError) as error:
        phase_diagram(importance=one, density=0 * one)
    assert str(error.value) == "density=0.0 is not known. It can be 'probabilities above 0, up to 1'."
    with pytest.raises(ShapeError) as error:
        phase_diagram(importance=one, density=torch.ones(0))
    assert str(error.value) == "0 x 1 cells, n_models=6 and steps=1500: at least one of each is needed."
