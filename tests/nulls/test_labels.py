import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.errors import ShapeError
from mechfeat.nulls import permuted_labels
from tests.strategies import seeds


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9), st.integers(1, 5), seeds())
def test_every_draw_has_the_same_labels(labels, n_draws, generator):
    labels = torch.tensor(labels)
    draws = permuted_labels(labels, n_draws, generator=generator)
    assert draws.shape == (n_draws, len(labels))
    assert torch.equal(draws.sort(-1).values, labels.sort().values.expand_as(draws))


def test_dtype_is_kept():
    labels = torch.tensor([True, False, True])
    assert permuted_labels(labels, 2, generator=torch.Generator()).dtype == torch.bool


def test_every_label_reaches_every_input_equally_often():
    draws = permuted_labels(torch.arange(4), 2000, generator=torch.Generator().manual_seed(0))
    for label in range(4):
        # Expected 500 an input; standard deviation 19.4.
        assert ((draws == label).sum(0) - 500).abs().max() < 90


def test_draws_are_independent():
    draws = permuted_labels(torch.arange(30), 20, generator=torch.Generator().manual_seed(0))
    assert len(draws.unique(dim=0)) == 20


@pytest.mark.parametrize("shape", [(2, 2), (1,), (0,)])
def test_two_labels_at_least(shape, unchecked):
    with pytest.raises(ShapeError) as error:
        permuted_labels(torch.zeros(shape, dtype=torch.long), 1, generator=torch.Generator())
    assert str(error.value) == f"labels has shape {list(shape)}. Permutations need one axis with one label for each of two or more inputs."


def test_one_draw_at_least():
    with pytest.raises(ShapeError) as error:
        permuted_labels(torch.zeros(3, dtype=torch.long), 0, generator=torch.Generator())
    assert str(error.value) == "n_draws=0 leaves the null empty. Ask for at least one; 199 reach p = 0.005."
