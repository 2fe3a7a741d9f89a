import pytest
import torch

from mechfeat.errors import ShapeError
from mechfeat.plots import xor_map


def test_values_are_written_at_their_places():
    fig = xor_map(torch.tensor([[0.0, 0.14, float("nan")], [0.0004, 0.1907, 0.43]]), ["tanh", "relu"], [0.1, 1.0, 3])
    (heat,) = fig.data
    assert [list(row) for row in heat.text] == [["0", "0.14", "none"], ["< 0.001", "0.19", "0.43"]]
    assert [list(row) for row in heat.z] == [[0.0, 0.14, None], [0.0004, 0.1907, 0.43]]
    assert list(heat.x) == ["0.1", "1.0", "3"]
    assert list(heat.y) == ["tanh", "relu"]
    assert fig.layout.yaxis.autorange == "reversed"


@pytest.mark.usefixtures("unchecked")
def test_names_must_fit():
    with pytest.raises(ShapeError) as caught:
        xor_map(torch.zeros(2, 3), ["relu"], [1, 2, 3])
    assert str(caught.value) == "ratios has shape [2, 3], and there are 1 names of rows and 3 of columns."
