"""Random features: without bias, with the error they state, of every kind of factor."""

import math

import pytest
import torch
from torch import nn

from mechfeat.errors import DeviceError, NondeterministicModelError, OptionError, SampleInteractionError, ShapeError
from mechfeat.models import DigitsCNN, mlp
from mechfeat.ntk import NTKSketch, empirical_ntk, sketch
from tests.ntk.test_exact import every_model
from tests.ntk.zoo import ZOO, Net, P

SEEDS = range(60)


def reduced(full, outputs):
    if outputs == "full":
        return full
    return full.sum((1, 3)) if outputs == "pseudo" else full.diagonal(dim1=1, dim2=3).sum(-1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@every_model
def test_without_bias(name):
    # 1024 features are 1024 independent estimates, and nine seeds more; a bias would stay, and their mean errs by less than three times
    # the error it states, divided by three by the seeds.
    net, x, x2 = ZOO[name].build()
    want = empirical_ntk(net, x, x2).kernel
    total = torch.zeros_like(want)
    for seed in range(9):
        a, b = (sketch(net, batch, n_features=1024, rank=2, seed=seed, chunk_size=4) for batch in (x, x2))
        total += a.kernel(b) / 9
    error = float((total - want).norm() / want.norm())
    assert error < 3 * sketch(net, torch.cat([x, x2]), n_features=1024, rank=2).relative_error() / 3


@pytest.mark.parametrize("outputs", ["full", "trace", "pseudo"])
@pytest.mark.parametrize("make", [lambda: (mlp([6, 16, 3]), torch.randn(9, 6)), lambda: (DigitsCNN((4, 8), 16, 2), torch.rand(5, 1, 8, 8))])
def test_stated_error_is_the_error(make, outputs):
    net, x = make()
    want = reduced(empirical_ntk(net, x).kernel, outputs)
    squared, stated, within = [], [], 0
    for seed in SEEDS:
        found = sketch(net, x, n_features=512, seed=seed)
        error = float((found.kernel(outputs=outputs) - want).norm() / want.norm())
        squared.append(error**2)
        stated.append(found.relative_error(outputs=outputs))
        within += error <= found.error_bound(0.9, outputs=outputs)
    # 60 squared errors of heavy tail have a mean within 30 %
    assert sum(stated) / len(stated) == pytest.approx(math.sqrt(sum(squared) / len(squared)), rel=0.3)
    assert within >= 0.9 * len(SEEDS)


@pytest.mark.parametrize("outputs", ["full", "trace", "pseudo"])
def test_stated_error_from_its_definition(outputs):
    net, x = mlp([5, 4, 2]), torch.randn(4, 5)
    found = sketch(net, x, n_features=7)
    F = found.features * math.sqrt(7)
    each = torch.stack([reduced(torch.einsum("no,mp->nomp", F[..., j], F[..., j]), outputs) for j in range(7)])
    torch.testing.assert_close(each.mean(0), found.kernel(outputs=outputs))
    error = each.var(0).sum() / 7
    norm = each.mean(0).square().sum() - error
    assert found.relative_error(outputs=outputs) == pytest.approx(float((error / norm).sqrt()) if norm > 0 else math.inf)


def test_tends_to_a_dense_projection():
    # Dense normal projections err by sqrt((1 + ρ²) / r) for two gradients with cosine ρ; low rank by little more.
    net, x = mlp([16, 64, 64, 1]), torch.randn(12, 16)
    K = empirical_ntk(net, x).matrix()
    d = K.diagonal().sqrt()
    rho, off = K / d[:, None] / d, ~torch.eye(12, dtype=torch.bool)
    squared = torch.stack([((sketch(net, x, n_features=1024, seed=s).kernel().view(12, 12) - K) / d[:, None] / d).square() for s in SEEDS])
    ratio = float((squared.mean(0)[off].mean() / ((1 + rho.square()) / 1024)[off].mean()).sqrt())
    assert 0.8 < ratio < 1.2


def test_error_falls_with_the_root():
    net, x = mlp([6, 16, 3]), torch.randn(9, 6)
    few, many = (sketch(net, x, n_features=r).relative_error() for r in (256, 4096))
    assert few / many == pytest.approx(4, rel=0.3)


def test_seeds_and_chunks():
    net, x = mlp([6, 16, 3]), torch.randn(9, 6)
    a, b, c = (sketch(net, x, n_features=32, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.features, b.features)
    assert not torch.allclose(a.features, c.features)
    torch.testing.assert_close(sketch(net, x, n_features=32, seed=1, chunk_size=2).features, a.features)


def test_an_axis_as_long_as_a_chunk():
    # Four positions of a constant look like four samples, in chunks of four alone.
    net = Net(lambda s, x: torch.tanh(x[:, None] * (s.p @ torch.eye(4))[:4]).flatten(1), p=P(4, 4))
    x = torch.randn(9, 4)
    want = sketch(net, x, n_features=32, chunk_size=3).features
    for chunk_size in (4, 5, 64):
        torch.testing.assert_close(sketch(net, x, n_features=32, chunk_size=chunk_size).features, want)


def test_float32_and_half():
    net, x = mlp([6, 16, 3]), torch.randn(9, 6)
    want = sketch(net, x, n_features=64).features
    found = sketch(net.float(), x.float(), n_features=64).features
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4)
    assert sketch(net.bfloat16(), x.bfloat16(), n_features=64).features.dtype == torch.float32


def test_round_trip(tmp_path):
    found = sketch(mlp([6, 16, 3]), torch.randn(9, 6), n_features=32, seed=3)
    found.save(tmp_path / "sketch.safetensors")
    after = NTKSketch.load(tmp_path / "sketch.safetensors")
    assert torch.equal(after.features, found.features)
    assert (after.seed, after.rank) == (3, found.rank)


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    net, x = mlp([6, 16, 3]), torch.randn(9, 6)
    a, b = (sketch(net, x, n_features=8, seed=s) for s in (0, 1))
    for error, message, f in (
        (
            ShapeError,
            (
                "The sketches have seeds 0 and 1, ranks 4 and 4, and [o, feature] [3, 8] and [3, 8]. Inner products need equal projections:"
                " sketch both batches with the same options."
            ),
            lambda: a.kernel(b),
        ),
        (ShapeError, "n_features=0, rank=4 and chunk_size=64: each must be at least 1.", lambda: sketch(net, x, n_features=0)),
        (
            OptionError,
            "outputs='diagonal' is not known. It can be 'full', 'trace', 'pseudo'.",
            lambda: a.kernel(outputs="diagonal"),
        ),
        (OptionError, "confidence=1 is not known. It can be 'a number between 0 and 1'.", lambda: a.error_bound(1)),
        (DeviceError, "x is on meta and the model on cpu. Move one of them: x.to('cpu').", lambda: sketch(net, x.to("meta"))),
    ):
        with pytest.raises(error) as caught:
            f()
        assert str(caught.value) == message
    with pytest.raises(SampleInteractionError):
        sketch(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), x)
    with pytest.raises(NondeterministicModelError):
        sketch(nn.Sequential(nn.Linear(6, 3), nn.Dropout()), x)
    assert math.isnan(sketch(net, x, n_features=1).relative_error())
