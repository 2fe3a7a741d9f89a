"""Kernels beyond the cache are summed in tiles, all layers at once, and proved all the same."""

import pytest
import torch
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import ProofError
from mechfeat.kernels import tiles
from mechfeat.models import mlp
from mechfeat.ntk import capture, empirical_ntk, total
from tests.ntk.test_exact import assert_exact
from tests.ntk.zoo import ZOO


@pytest.fixture
def small_cache(monkeypatch):
    monkeypatch.setattr(total, "LARGE", 0)
    monkeypatch.setattr(capture, "IN_CACHE", 0)  # one output after the other


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_every_model(name, small_cache):
    net, x1, x2 = ZOO[name].build()
    for other in (None, x2):
        want = sum(oracle.empirical_ntk(net, x1, other).values())
        for outputs in ("full", "trace"):
            result = empirical_ntk(net, x1, other, outputs=outputs, prove="always")
            assert_exact(result.kernel, want if outputs == "full" else want.diagonal(dim1=1, dim2=3).sum(-1))
            assert not any("proof" in c.detail for c in result.coverage)
        if other is None:
            kernel = empirical_ntk(net, x1).kernel
            assert torch.equal(kernel, kernel.permute(2, 3, 0, 1))


@pytest.mark.parametrize("width", [1, 3])
def test_without_shrinking_anything(width):
    net, x = mlp([5, 8, 8, width], nn.Tanh), torch.randn(800, 5)
    kernel = empirical_ntk(net, x, prove="always").kernel
    assert kernel.numel() * 8 > total.LARGE
    J = torch.cat([j.flatten(0, 1) for j in oracle.jacobian(net, x[::25]).values()], 1)
    assert_exact(kernel[::25][:, :, ::25].reshape(len(J), -1), J @ J.T)


def test_a_tile_gone_wrong_is_caught(small_cache, monkeypatch):
    right = tiles._add
    monkeypatch.setattr(tiles, "_add", lambda S, *rest: right(S, *rest) or S.mul_(1.01))
    with pytest.raises(ProofError) as error:
        empirical_ntk(mlp([5, 6, 2], nn.Tanh), torch.randn(6, 5))
    assert error.value.parameters == ("the sum over parameters",)
