import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.errors import DtypeError, ShapeError
from mechfeat.nulls import random_directions
from tests.strategies import seeds


@given(st.integers(0, 5), st.integers(1, 7), seeds(), st.sampled_from([torch.float64, torch.float32]))
def test_rows_have_length_one(n, n_channels, generator, dtype):
    w = random_directions(n, n_channels, generator=generator, dtype=dtype)
    assert w.shape == (n, n_channels)
    torch.testing.assert_close(w.norm(dim=-1), torch.ones(n, dtype=dtype))


@pytest.mark.parametrize("m", [1, 2, 5, 16])
def test_mean_squared_overlap_is_one_over_m(m):
    w = random_directions(400, m, generator=torch.Generator().manual_seed(0))
    squares = (w @ w.T).square()
    mean = (squares.sum() - 400) / (400 * 399)
    # One overlap has variance 2(m-1)/(m²(m+2)); pairs that share a direction are uncorrelated, so 79,800 pairs count
    # fully.
    error = (2 * (m - 1) / (m**2 * (m + 2)) / 79_800) ** 0.5
    assert abs(mean - 1 / m) <= 4 * error + 1e-12


def test_directions_have_no_preferred_axis():
    w = random_directions(20_000, 3, generator=torch.Generator().manual_seed(0))
    # Mean 0 and second moment I/3; standard errors 0.0041 and at most 0.0021.
    assert w.mean(0).abs().max() < 0.02
    assert (w.T @ w / 20_000 - torch.eye(3) / 3).abs().max() < 0.01
    # E (w·u)⁴ = 3/(m(m+2)) = 1/5 along every u, the corners of the cube included; standard error 0.0019.
    corner = torch.ones(3) / 3**0.5
    assert abs((w @ corner).pow(4).mean() - 0.2) < 0.008
    assert (w.pow(4).mean(0) - 0.2).abs().max() < 0.008


def test_float32_is_the_float64_draw_rounded():
    double, single = (
        random_directions(3, 4, generator=torch.Generator().manual_seed(1), dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    assert torch.equal(double.float(), single)


@pytest.mark.parametrize(("n", "m"), [(-1, 2), (2, 0)])
def test_impossible_sizes(n, m):
    with pytest.raises(ShapeError) as error:
        random_directions(n, m, generator=torch.Generator())
    assert str(error.value) == f"{n} directions in {m} channels do not exist. Ask for zero or more directions in at least one channel."


def test_dtype_without_fractions():
    with pytest.raises(DtypeError) as error:
        random_directions(1, 2, generator=torch.Generator(), dtype=torch.int64)
    assert str(error.value) == "dtype=torch.int64 cannot hold unit vectors. Use a floating dtype such as torch.float32."
