"""Low-rank products against the dense matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.errors import ShapeError
from mechfeat.hooks import LowRank

size = st.integers(1, 6)


@st.composite
def products(draw, square=False):
    rows, rank = draw(size), draw(size)
    columns = rows if square else draw(size)
    batch = draw(st.sampled_from([(), (3,), (2, 1)]))
    torch.manual_seed(draw(st.integers(0, 99)))
    return LowRank(torch.randn(*batch, rows, rank), torch.randn(*batch, rank, columns))


@given(products())
def test_spectrum_and_norm(M):
    dense = M.A @ M.B
    assert M.shape == dense.shape
    torch.testing.assert_close(M.dense(), dense)
    values = torch.linalg.svdvals(dense)
    found = M.singular_values()
    n = min(M.shape[-2], M.shape[-1], M.A.shape[-1])
    assert found.shape[-1] == n
    torch.testing.assert_close(found, values[..., :n], atol=1e-10, rtol=0)
    assert (values[..., n:] < 1e-10).all()
    torch.testing.assert_close(M.norm(), torch.linalg.matrix_norm(dense))


@given(products(square=True))
def test_eigenvalues(M):
    dense, found = M.dense(), M.eigenvalues()
    assert found.shape[-1] == min(M.shape[-1], M.A.shape[-1])
    for power in (1, 2, 3):  # traces of powers name the eigenvalues, whatever their order
        trace = torch.linalg.matrix_power(dense, power).diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close((found**power).sum(-1).real, trace, atol=1e-8, rtol=1e-8)


@given(products(), size, st.integers(0, 99))
def test_products(M, n, seed):
    torch.manual_seed(seed)
    dense = M.dense()
    rows, columns = M.shape[-2:]
    right, left = torch.randn(columns, n), torch.randn(n, rows)
    torch.testing.assert_close(M @ right, dense @ right)
    torch.testing.assert_close(left @ M, left @ dense)
    torch.testing.assert_close(M @ right[:, 0], (dense * right[:, 0]).sum(-1))
    torch.testing.assert_close(left[0] @ M, (dense * left[0][:, None]).sum(-2))
    for rank in (1, 7):
        N = LowRank(torch.randn(columns, rank), torch.randn(rank, 4))
        both = M @ N
        assert isinstance(both, LowRank)
        assert both.A.shape[-1] == min(rank, M.A.shape[-1])
        torch.testing.assert_close(both.dense(), dense @ N.dense())


@given(products())
def test_transpose(M):
    torch.testing.assert_close(M.T.dense(), M.dense().transpose(-2, -1))
    assert M.T.A.data_ptr() == M.B.data_ptr()


def test_gradients_reach_the_factors():
    A, B = torch.randn(6, 2, requires_grad=True), torch.randn(2, 6)
    pairs = [
        (LowRank.norm, torch.linalg.matrix_norm),
        (lambda M: M.singular_values().sum(), lambda x: torch.linalg.svdvals(x)[:2].sum()),
        (lambda M: M.dense().square().sum(), lambda x: x.square().sum()),
    ]
    for of_factors, of_dense in pairs:
        (found,), (expected,) = (torch.autograd.grad(value, A) for value in (of_factors(LowRank(A, B)), of_dense(A @ B)))
        torch.testing.assert_close(found, expected)


def test_small_norms_keep_their_digits():
    A = torch.tensor([[1.0, 1.0], [0.0, 1e-9]])
    B = torch.tensor([[1.0, 0.0], [-1.0, 1e-9]])
    torch.testing.assert_close(LowRank(A, B).norm(), torch.linalg.matrix_norm(A @ B), rtol=1e-6, atol=0)


def test_repr():
    assert repr(LowRank(torch.zeros(2, 5, 3), torch.zeros(3, 4))) == "LowRank(2×5×4, rank at most 3)"


def test_wrong_shapes(unchecked):
    with pytest.raises(ShapeError) as caught:
        LowRank(torch.zeros(2, 3), torch.zeros(2, 3))
    assert (
        str(caught.value)
        == "LowRank was given A [2, 3] and B [2, 3]. It needs A [... row rank] and B [... rank column], with the same rank."
    )
    with pytest.raises(ShapeError) as caught:
        LowRank(torch.zeros(2, 1), torch.zeros(1, 3)).eigenvalues()
    assert str(caught.value) == "Eigenvalues need a square matrix, and this one is 2×3. `singular_values()` exist for any."
