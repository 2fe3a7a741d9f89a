"""Products are the same from either library, and long sums in float32 keep their digits."""

import pytest
import torch

from mechfeat.kernels import products, symmetric


@pytest.fixture(params=[False, True])
def library(request, monkeypatch):
    """Both libraries in turn, whichever is the faster here."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda threads: request.param)
    return request.param


@pytest.mark.parametrize("sizes", [(300, 200, 100), (33, 4097, 65), (1, 4099, 300), (1, 3, 2), (0, 4, 3), (700, 0, 300)])
def test_product(library, sizes):
    rows, k, columns = sizes
    A, B = torch.randn(rows, k).float(), torch.randn(columns, k).float()
    want = A.double() @ B.double().T
    # k additions round sums of size √k by 6e-8 each, like a random walk: k · 4e-8, and six times that among a hundred thousand entries.
    torch.testing.assert_close(products.product(A, B).double(), want, atol=3e-7 * k, rtol=0)


def test_what_onednn_is_asked_for(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda threads: True)
    A = torch.randn(256, 4096).float()
    assert products.quick(A, A)
    assert not products.quick(A.double(), A.double())
    assert not products.quick(A[:, 1:], A[:, 1:])  # strided: correct there, and a thousand times slower
    assert not products.quick(A[:2, :8].contiguous(), A[:2, :8].contiguous())
    assert not products.quick(torch.randn(1, (1 << 17) + 1).float(), torch.randn(64, (1 << 17) + 1).float())


def test_the_choice_is_measured_once():
    assert products.onednn_is_faster(1) in (True, False)
    assert products.onednn_is_faster(1) == products.onednn_is_faster(1)
    assert products.onednn_is_faster.cache_info().hits >= 1


@pytest.mark.parametrize("rows", [20, 90, 300])
@pytest.mark.parametrize("k", [5000, 40_000, 140_000])
def test_small_sums_are_not_lost_beside_a_large_entry(library, rows, k):
    # Positive products, the worst case of sums that are rounded to an accumulator: below 1e-6 in a wide one, which a narrow one misses.
    A = (torch.rand(rows, k) * 1e-3).float()
    M = torch.full((rows, rows), 30.0, dtype=torch.float64)
    exact = torch.full_like(M, 30.0) + A.double() @ A.double().T
    for i in range(0, k, 100_000):
        symmetric.add_product(M, A[:, i : i + 100_000], A[:, i : i + 100_000], lower=True)
    part = exact - 30.0
    assert ((M - exact).tril().abs() / part).max() < 2e-6
