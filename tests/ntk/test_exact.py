"""Agreement with the literal kernel, for every model of the contract."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.models import DigitsCNN, mlp
from mechfeat.ntk import empirical_ntk
from tests.ntk.zoo import ZOO, Net

OUTPUTS = ("full", "trace", "diagonal")
every_model = pytest.mark.parametrize("name", ZOO)


def assert_exact(found, want, tolerance=1e-12):
    """Largest difference, in units of the largest entry."""
    assert found.shape == want.shape
    gap, scale = float((found - want).abs().max()), float(want.abs().max())
    if not gap <= tolerance * scale:
        raise AssertionError(f"largest difference {gap:.2e} at scale {scale:.2e}")


def reduced(full, outputs):
    diagonal = full.diagonal(dim1=1, dim2=3)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[outputs]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@every_model
def test_matches_the_definition(name):
    net, x1, x2 = ZOO[name].build()
    for other in (None, x2):
        literal = oracle.empirical_ntk(net, x1, other)
        for outputs in OUTPUTS:
            for method in ("auto", "block", "gram", "mixed", "jacobian"):
                if method == "jacobian" and outputs != "full":
                    continue  # the reduction of a dense kernel is that of the bias, seen by the others
                result = empirical_ntk(
                    net, x1, other, outputs=outputs, method=method, layerwise=True, prove="always" if method == "auto" else "never"
                )
                assert_exact(result.kernel, sum(reduced(part, outputs) for part in literal.values()))
                assert_exact(sum(result.layers.values()), result.kernel)
                for parameter, part in result.layers.items():
                    scale = sum(float(p.abs().max()) for p in literal.values())
                    gap = float((part - reduced(literal[parameter], outputs)).abs().max())
                    assert gap <= 1e-12 * scale, (parameter, method, outputs)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@every_model
def test_paths(name):
    net, x1, _ = ZOO[name].build()
    result = empirical_ntk(net, x1)
    found = {c.parameter: c.path for c in result.coverage}
    assert list(found) == [n for n, p in net.named_parameters() if p.requires_grad]
    assert {p: found[p] for p in ZOO[name].paths} == ZOO[name].paths
    assert all(c.gap is not None and c.gap < 1e-9 for c in result.coverage if c.path != "unused")


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning", "ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", [n for n, case in ZOO.items() if case.vmap])
def test_matches_torch_func(name):
    net, x, _ = ZOO[name].build()
    values = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}

    def outputs(values, sample):
        return torch.func.functional_call(net, values, (sample[None],), tie_weights=True).reshape(-1)

    J = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))(values, x)
    rows = torch.cat([g.detach().flatten(2) for g in J.values()], 2)
    want = torch.einsum("nop,mqp->nomq", rows, rows)
    assert_exact(empirical_ntk(net, x).kernel, want)


@pytest.mark.parametrize("method", ["auto", "block", "gram", "mixed"])
@pytest.mark.parametrize("make", [lambda: mlp([20, 32, 32, 4]), lambda: DigitsCNN((4, 8), 16, 4)])
def test_float32(make, method):
    # Sums of a few hundred products in float32 (unit roundoff 6e-8) leave some 1e-7 of the largest entry; 5e-6 has room for the
    # cancellation in the backward pass.
    net = make()
    x = torch.randn(8, 20) if isinstance(net, nn.Sequential) else torch.randn(8, 1, 8, 8)
    want = sum(oracle.empirical_ntk(net, x).values())
    for outputs in OUTPUTS:
        found = empirical_ntk(net.float(), x.float(), outputs=outputs, method=method).kernel
        assert found.dtype == torch.float32
        assert_exact(found.double(), reduced(want, outputs), 5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "tied embedding", "layer norm over two axes", "bare parameter"])
def test_half_precision_accumulates_in_float32(name, dtype):
    # Activations and gradients carry 8 (bfloat16) or 11 bits and pass a few layers, hence some units of 2^-8 and 2^-11.
    net, x, _ = ZOO[name].build()
    want = sum(oracle.empirical_ntk(net, x).values())
    found = empirical_ntk(net.to(dtype), x if not x.is_floating_point() else x.to(dtype), prove="never").kernel
    assert found.dtype == torch.float32
    assert_exact(found.double(), want, 0.1 if dtype == torch.bfloat16 else 0.0125)


def test_half_precision_does_not_overflow_in_a_tied_table():
    net = Net(lambda s, t: F.linear(300 * torch.tanh(s.e(t)).mean(1), s.e.weight), e=nn.Embedding(7, 4))
    found = empirical_ntk(net.half(), torch.randint(0, 7, (6, 4)), prove="never").kernel
    assert torch.isfinite(found).all()
    assert found.abs().max() > torch.finfo(torch.float16).max
