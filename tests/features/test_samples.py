import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.errors import ShapeError
from mechfeat.features import Samples
from tests.strategies import tables


@given(st.data())
def test_of_inputs_is_the_literal_loop(data):
    s = Samples(*data.draw(tables()))
    inputs = data.draw(st.lists(st.integers(0, s.n_inputs - 1), max_size=8))
    rows, origins = [], []
    for new, old in enumerate(inputs):
        for row, origin in zip(s.values, s.inputs.tolist()):
            if origin == old:
                rows.append(row)
                origins.append(new)
    chosen = s.of_inputs(torch.tensor(inputs, dtype=torch.long))
    assert torch.equal(chosen.values, torch.stack(rows) if rows else s.values[:0])
    assert chosen.inputs.tolist() == origins
    assert (chosen.n_inputs, chosen.hook) == (len(inputs), s.hook)


@given(tables())
def test_input_means_is_the_literal_loop(table):
    s = Samples(*table)
    means = s.input_means()
    assert means.shape == (s.n_inputs, s.values.shape[1])
    for i in range(s.n_inputs):
        rows = s.values[s.inputs == i]
        torch.testing.assert_close(means[i], rows.mean(0), equal_nan=True)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (("sample", "channel", "height", "width"), (2, 3, 4, 5)),
        (("sample", "pos", "channel"), (2, 4, 3)),
        (("sample", "channel"), (2, 3)),
        (("sample", "channel", "pos"), (1, 1, 1)),
    ],
)
def test_restore_undoes_the_table(axes, shape):
    activation = torch.arange(float(torch.Size(shape).numel())).view(shape)
    channel = axes.index("channel")
    table = activation.movedim(channel, -1).reshape(-1, shape[channel])
    s = Samples(table, torch.arange(shape[0]).repeat_interleave(len(table) // shape[0]), "conv1", shape[0], axes, shape)
    assert torch.equal(s.restore(), activation)
    strided = Samples(table.T.contiguous().T, s.inputs, "conv1", shape[0], axes, shape)
    assert torch.equal(strided.restore(), activation)


def test_chosen_inputs_cannot_be_restored():
    s = Samples(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), "conv1", 2, ("sample", "pos", "channel"), (2, 2, 2))
    with pytest.raises(ShapeError) as error:
        s.of_inputs(torch.tensor([1])).restore()
    assert (
        str(error.value)
        == "The samples of 'conv1' were averaged or selected over positions. Take them with positions='all' to restore the activation."
    )


def test_rows_and_origins_must_pair(unchecked):
    with pytest.raises(ShapeError) as error:
        Samples(torch.ones(3, 2), torch.tensor([0, 1]), "conv1", 2)
    assert str(error.value) == "3 rows and 2 origins at 'conv1'. Each row needs the index of its input."


@pytest.mark.parametrize("origins", [[0, 2], [-1, 1]])
def test_origins_must_exist(origins):
    with pytest.raises(ShapeError) as error:
        Samples(torch.ones(2, 2), torch.tensor(origins), "conv1", 2)
    assert str(error.value) == f"Origins at 'conv1' span {origins[0]} to {origins[1]}, but there are 2 inputs, counted from 0."
