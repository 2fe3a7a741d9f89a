"""Inputs of toy models: their frequencies, their limits, and lists that expectations are sums over."""

import math

import pytest
import torch

from mechfeat.data import (
    AnticorrelatedSets,
    CorrelatedSets,
    Exact,
    FiniteSample,
    OneHot,
    PowerLaw,
    SparseUniform,
    absolute,
    ands,
    identity,
    universal_and,
)
from mechfeat.errors import OptionError, ShapeError, UnsupportedModelError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_share(found, p):
    """A share of independent trials is within five standard errors of its probability."""
    error = math.sqrt(p * (1 - p) / found.numel())
    assert abs(float(found.double().mean()) - p) <= 5 * error + 1e-12


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (6, 3), (4, 4)])
def test_one_hot_lists_every_input_once(n, k):
    found = OneHot(n, k=k).exact()
    assert found.x.shape == (math.comb(n, k), n)
    assert len({tuple(row) for row in found.x.tolist()}) == math.comb(n, k)
    assert bool((found.x.sum(1) == k).all())
    assert set(found.x.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(found.weight.sum(), torch.tensor(1.0))


def test_normalised_inputs_have_length_one():
    assert torch.allclose(torch.linalg.vector_norm(OneHot(6, k=3, normalise=True).exact().x, dim=1), torch.tensor(1.0))
    x = SparseUniform(5, density=0.3, normalise=True).sample(generator(), 200)
    norms = torch.linalg.vector_norm(x, dim=1)
    assert bool((((norms - 1).abs() < 1e-12) | (norms == 0)).all())
    assert bool((norms == 0).any())


def test_lists_are_drawn_in_rounds():
    x = OneHot(7).sample(generator(), 21)
    for part in x.split(7):
        assert torch.equal(part.sum(0), torch.ones(7))
    assert not torch.equal(x[:7], x[7:14])


def test_many_hot_inputs_are_drawn_without_listing_them():
    data = OneHot(60, k=10)
    x = data.sample(generator(), 500)
    assert bool((x.sum(1) == 10).all())
    assert_share(x[:, 3] > 0, 1 / 6)
    with pytest.raises(ShapeError, match=r"^There are 75394027566 inputs with 10 of 60 features active\. Give batch=… to draw some\.$"):
        data.exact()


@pytest.mark.parametrize("density", [0.003, 0.05, 0.0999, 0.1, 0.4, 0.9])
def test_sparse_uniform_frequencies_and_values(density):
    data = SparseUniform(40, density=density, low=-1.0, high=3.0)
    x = data.sample(generator(), 5000)
    assert x.shape == (5000, 40)
    assert_share(x != 0, density)
    assert_share(x[:, -1] != 0, density)
    assert_share(x[-100:] != 0, density)
    active = x[x != 0]
    for level in (-0.5, 1.0, 2.5):
        assert_share(active < level, (level + 1) / 4)
    both = (x[:, 0] != 0) & (x[:, 1] != 0)
    assert_share(both, density**2)


def test_rare_features_take_the_positions_of_independent_trials():
    """Gaps between values are geometric: the share of neighbours that follow at once is the density."""
    x = SparseUniform(1000, density=0.02).sample(generator(), 300).flatten()
    places = (x != 0).nonzero().flatten()
    for gap in (1, 2, 3):
        assert_share(places.diff() == gap, 0.02 * 0.98 ** (gap - 1))


def test_density_zero_and_one_are_limits():
    assert not SparseUniform(5, density=0.0).sample(generator(), 50).any()
    assert bool((SparseUniform(5, density=1.0, low=0.5).sample(generator(), 50) >= 0.5).all())
    assert not CorrelatedSets(4, set_size=2, density=0.0).sample(generator(), 50).any()
    assert bool((CorrelatedSets(4, set_size=2, density=1.0, low=0.5).sample(generator(), 50) >= 0.5).all())
    assert bool(((AnticorrelatedSets(4, set_size=2, density=1.0).sample(generator(), 50) > 0).view(50, 2, 2).sum(2) == 1).all())


def test_densities_of_instances_and_features():
    data = SparseUniform(4, density=torch.tensor([0.0, 0.3, 1.0]))
    assert data.n_instances == 3
    assert [bool((data.at(i).sample(generator(), 100) > 0).all()) for i in range(3)] == [False, False, True]
    assert not data.at(0).sample(generator(), 100).any()
    features = SparseUniform(3, density=torch.tensor([[0.0, 0.2, 1.0]]))
    assert features.n_instances is None
    x = features.sample(generator(), 4000)
    assert not x[:, 0].any()
    assert_share(x[:, 1] > 0, 0.2)
    assert bool((x[:, 2] > 0).all())
    assert_share(x[:, 1][x[:, 1] > 0] < 0.25, 0.25)


def test_expectations_are_sums():
    data = SparseUniform(3, density=0.3, low=-1.0, high=2.0)
    exact = data.expectation(max_active=3, points=3)
    assert exact.dropped <= 1e-12
    mean, square = 0.3 * 0.5, 0.3 * 1.0  # of U(-1, 2): mean 1/2, mean square 1
    torch.testing.assert_close(exact.weight @ exact.x, torch.full((3,), mean))
    second = torch.einsum("s,si,sj->ij", exact.weight, exact.x, exact.x)
    torch.testing.assert_close(second, torch.full((3, 3), mean**2) + torch.eye(3) * (square - mean**2))
    fifth = exact.weight @ exact.x[:, 0] ** 5
    torch.testing.assert_close(fifth, torch.tensor(0.3 * (2**6 - 1) / 18))


def test_expectations_say_what_they_drop():
    data = SparseUniform(4, density=torch.tensor([0.1, 0.5]))
    exact = data.expectation(max_active=1, points=2)
    assert exact.weight.shape == (2, 1 + 4 * 2)
    torch.testing.assert_close(exact.weight.sum(1), torch.ones(2))
    assert exact.dropped == pytest.approx(1 - 0.5**4 - 4 * 0.5**4)
    none = SparseUniform(4, density=0.0).expectation(max_active=2, points=2)
    assert float(none.weight[0]) == 1.0


def test_correlated_sets_are_on_together():
    x = CorrelatedSets(6, set_size=3, density=0.25).sample(generator(), 4000).view(-1, 2, 3)
    on = x > 0
    assert bool((on.all(2) == on.any(2)).all())
    assert_share(on[:, 0, 0], 0.25)
    assert_share(on[:, 0, 0] & on[:, 1, 0], 0.25**2)
    assert_share((x[:, 0, 0] < x[:, 0, 1])[on[:, 0, 0]], 0.5)


def test_anticorrelated_sets_hold_at_most_one():
    on = AnticorrelatedSets(6, set_size=3, density=0.6).sample(generator(), 4000).view(-1, 2, 3) > 0
    assert int(on.sum(2).max()) == 1
    for i in range(3):
        assert_share(on[:, 0, i], 0.2)
    assert_share(on[:, 0, 0] & on[:, 1, 1], 0.04)


def test_a_power_law():
    data = PowerLaw(20, alpha=1.0, active=1.5)
    p = data.probabilities()
    torch.testing.assert_close(p.sum(), torch.tensor(1.5))
    torch.testing.assert_close(p[9], p[0] / 10)
    x = data.sample(generator(), 20000)
    assert_share(x[:, 0] > 0, float(p[0]))
    assert_share(x[:, 9] > 0, float(p[9]))
    assert_share(x[:, 0][x[:, 0] > 0] < 0.5, 0.25)


def test_a_finite_sample_is_fixed():
    data = FiniteSample.draw(SparseUniform(9, density=0.5), 4, generator=generator())
    assert data.exact().x.shape == (4, 9)
    x = data.sample(generator(1), 8)
    assert {tuple(r) for r in x.tolist()} == {tuple(r) for r in data.x.tolist()}


def test_a_weighted_list_is_drawn_by_its_weights():
    data = Exact(2, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.25, 0.75]))
    assert_share(data.sample(generator(), 4000)[:, 0] > 0, 0.75)
    assert data.exact() is data


def test_the_generator_alone_decides():
    data = SparseUniform(9, density=0.05)
    assert torch.equal(data.sample(generator(3), 50), data.sample(generator(3), 50))
    assert not torch.equal(data.sample(generator(3), 50), data.sample(generator(4), 50))
    assert data.sample(generator(), 2, dtype=torch.float32).dtype == torch.float32


def test_tasks():
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])
    assert identity()(x) is x
    assert torch.equal(absolute()(x), x.abs())
    assert ands([(0, 2), (1, 2)])(x).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert universal_and(4).pairs == ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    assert universal_and(4).n_outputs(4) == 6
    assert identity().n_outputs(4) == 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OneHot(0), ShapeError, "OneHot was asked for 0 features. Data has at least one."),
        (lambda: OneHot(3, k=4), ShapeError, "OneHot was asked for 4 active of 3 features. It takes 1 to 3."),
        (lambda: OneHot(3, k=0), ShapeError, "OneHot was asked for 0 active of 3 features. It takes 1 to 3."),
        (
            lambda: SparseUniform(3, density=1.5),
            OptionError,
            "density=1.5 is not known. It can be 'a probability between 0 and 1'.",
        ),
        (
            lambda: SparseUniform(3, density=torch.tensor([0.5, -0.25])),
            OptionError,
            "density=-0.25 is not known. It can be 'a probability between 0 and 1'.",
        ),
        (
            lambda: SparseUniform(3, density=0.5, low=1.0),
            OptionError,
            "low=1.0 is not known. It can be 'a number below high=1.0'.",
        ),
        (
            lambda: SparseUniform(3, density=torch.zeros(2, 4)),
            ShapeError,
            "density has shape [2, 4]. It is a number, [instance], or [instance 3] ([1 3] for all instances).",
        ),
        (
            lambda: SparseUniform(3, density=torch.zeros(2)).sample(generator(), 4),
            ShapeError,
            "This data holds 2 distributions, one for each instance. `data.at(i)` is that of one, to be drawn from.",
        ),
        (
            lambda: SparseUniform(3, density=0.5).exact(),
            UnsupportedModelError,
            "SparseUniform has infinitely many inputs. Train on samples with batch=…, or take an approximation where the class offers one: "
            "SparseUniform.expectation(max_active=…, points=…).",
        ),
        (
            lambda: SparseUniform(30, density=0.5).expectation(max_active=30, points=2),
            ShapeError,
            "max_active=30 of 30 features on points=2 makes 205891132094649 inputs. It takes at least one point, and at most a million "
            "inputs: fewer points or fewer active features.",
        ),
        (
            lambda: CorrelatedSets(5, set_size=2, density=0.5),
            ShapeError,
            "5 features do not divide into sets of 2. The number of features is a multiple of set_size.",
        ),
        (
            lambda: AnticorrelatedSets(4, set_size=2, density=torch.zeros(2, 2)),
            ShapeError,
            "density has shape [2, 2]. It is a number, or [instance].",
        ),
        (
            lambda: PowerLaw(3, alpha=0.0, active=6.0),
            OptionError,
            "active=6.0 is not known. It can be 'a number between 0 and 3, where the first feature is certain'.",
        ),
        (
            lambda: FiniteSample(3, torch.zeros(2, 4)),
            ShapeError,
            "x has shape [2, 4]. A finite sample is [sample 3], with at least one input.",
        ),
        (
            lambda: Exact(3, torch.zeros(2, 3), torch.zeros(4)),
            ShapeError,
            "x has shape [2, 3] and weight [4]. Inputs are [sample 3], at least one, and weights [sample] or [instance sample].",
        ),
        (
            lambda: Exact(2, torch.eye(2), torch.tensor([3.0, 4.0])),
            OptionError,
            "weight=7.0 is not known. It can be 'numbers of at least 0 that sum to 1, for each instance'.",
        ),
        (
            lambda: Exact(2, torch.eye(2), torch.tensor([[0.5, 0.5], [2.0, -1.0]])),
            OptionError,
            "weight=-1.0 is not known. It can be 'numbers of at least 0 that sum to 1, for each instance'.",
        ),
        (
            lambda: SparseUniform(4, density=torch.tensor([0.5, 1.0])).expectation(max_active=2, points=2),
            ShapeError,
            "At density 1 no input has as few as max_active=2 of 4 features active. Give more.",
        ),
        (lambda: ands([]), ShapeError, "No pair was given. Pairs are of two different features, numbered from 0."),
        (lambda: ands([(0, 1), (2, 2)]), ShapeError, "(2, 2) was given. Pairs are of two different features, numbered from 0."),
    ],
)
def test_what_is_refused(unchecked, make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message
