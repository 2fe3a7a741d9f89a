import pytest
import torch
from hypothesis import given

from mechfeat.errors import DtypeError, OptionError, ShapeError
from mechfeat.nulls import shuffled_weights
from tests.strategies import matrices, seeds


@given(matrices(min_features=2), seeds())
def test_all_keeps_shape_and_entries(W, generator):
    shuffled = shuffled_weights(W, generator=generator)
    assert shuffled.shape == W.shape
    assert torch.equal(shuffled.flatten().sort().values, W.flatten().sort().values)


@given(matrices(min_hidden=2), seeds())
def test_unit_keeps_the_entries_of_each_row(W, generator):
    shuffled = shuffled_weights(W, generator=generator, within="unit")
    assert torch.equal(shuffled.sort(-1).values, W.sort(-1).values)


def test_unit_is_the_first_axis_of_a_kernel():
    W = torch.arange(3 * 2 * 2 * 2.0).view(3, 2, 2, 2)
    shuffled = shuffled_weights(W, generator=torch.Generator().manual_seed(0), within="unit")
    assert torch.equal(shuffled.flatten(1).sort(-1).values, W.flatten(1))
    assert not torch.equal(shuffled, W)


def test_rows_are_permuted_independently():
    W = torch.arange(20.0).expand(6, 20)
    shuffled = shuffled_weights(W, generator=torch.Generator().manual_seed(0), within="unit")
    assert len(shuffled.unique(dim=0)) == 6


@pytest.mark.parametrize("within", ["all", "unit"])
def test_every_order_is_equally_likely(within):
    generator = torch.Generator().manual_seed(0)
    W = torch.tensor([[0.0, 1.0, 2.0]])
    draws = torch.cat([shuffled_weights(W, generator=generator, within=within) for _ in range(1200)])
    counts = draws.unique(dim=0, return_counts=True)[1]
    # Expected 200 each of 6; standard deviation 12.9, so 60 is more than four of them.
    assert len(counts) == 6
    assert (counts - 200).abs().max() < 60


def test_input_is_left_alone_and_dtype_kept():
    W = torch.arange(6, dtype=torch.float32).view(2, 3)
    before = W.clone()
    shuffled = shuffled_weights(W.T, generator=torch.Generator().manual_seed(0))  # non-contiguous
    assert shuffled.dtype == torch.float32
    assert torch.equal(W, before)


def test_same_seed_same_shuffle():
    W = torch.randn(4, 5)
    first, second = (shuffled_weights(W, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("shape", "within", "message"),
    [
        ((), "all", "W has shape [], and within='all' leaves each of its entries where it is. "
         "A shuffle needs at least two entries in W."),
        ((3, 0), "all", "W has shape [3, 0], and within='all' leaves each of its entries where it is. "
         "A shuffle needs at least two entries in W."),
        ((5,), "unit", "W has shape [5], and within='unit' leaves each of its entries where it is. "
         "A shuffle needs at least two entries in a unit."),
        ((5, 1), "unit", "W has shape [5, 1], and within='unit' leaves each of its entries where it is. "
         "A shuffle needs at least two entries in a unit."),
    ],
)  # fmt: skip
def test_a_shuffle_that_moves_nothing_is_an_error(shape, within, message):
    with pytest.raises(ShapeError) as error:
        shuffled_weights(torch.ones(shape), generator=torch.Generator(), within=within)
    assert str(error.value) == message


def test_unknown_within(unchecked):
    with pytest.raises(OptionError) as error:
        shuffled_weights(torch.ones(2, 2), generator=torch.Generator(), within="row")
    assert str(error.value) == "within='row' is not known. It can be 'all', 'unit'."


def test_the_global_generator_is_refused(unchecked):
    with pytest.raises(DtypeError) as error:
        shuffled_weights(torch.ones(2, 2), generator=None)
    assert (
        str(error.value) == "generator is a NoneType, and a null needs a torch.Generator, so that its draws can be repeated. "
        "`torch.Generator().manual_seed(0)` makes one."
    )
