"""What a result offers."""

import pytest
import torch
from torch import nn

from mechfeat.errors import FileFormatError, ShapeError
from mechfeat.models import mlp
from mechfeat.ntk import NTKResult, empirical_ntk, plan
from tests.ntk.test_exact import OUTPUTS
from tests.ntk.zoo import Net


def result(outputs="full", x2=False, layerwise=True):
    torch.manual_seed(0)
    return empirical_ntk(
        mlp([5, 4, 3], nn.Tanh), torch.randn(6, 5), torch.randn(7, 5) if x2 else None, outputs=outputs, layerwise=layerwise
    )


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("layerwise", [False, True])
def test_round_trip(tmp_path, outputs, layerwise):
    before = result(outputs, layerwise=layerwise)
    before.save(tmp_path / "kernel.safetensors")
    after = NTKResult.load(tmp_path / "kernel.safetensors")
    assert torch.equal(after.kernel, before.kernel)
    assert (after.outputs, after.plan, after.coverage, after.proved, after.settings) == (
        before.outputs,
        before.plan,
        before.coverage,
        before.proved,
        before.settings,
    )
    if layerwise:
        assert list(after.layers) == list(before.layers)
        assert all(torch.equal(after.layers[k], before.layers[k]) for k in before.layers)
    else:
        assert after.layers is None


def test_a_plan_is_not_a_result(tmp_path):
    path = tmp_path / "plan.safetensors"
    plan(mlp([4, 2]), torch.randn(5, 4)).save(path)
    with pytest.raises(FileFormatError) as caught:
        NTKResult.load(path)
    assert str(caught.value) == f"{str(path)!r} holds a Plan, not a NTKResult. Load it with Plan.load."


def test_by_module():
    found = result()
    modules = found.by_module()
    assert list(modules) == ["0", "2"]
    torch.testing.assert_close(modules["0"], found.layers["0.weight"] + found.layers["0.bias"])
    torch.testing.assert_close(sum(modules.values()), found.kernel)


def test_by_module_of_bare_parameters():
    net = Net(lambda s, x: x @ s.w + s.a(x), w=nn.Parameter(torch.randn(5, 2)), a=nn.Linear(5, 2))
    assert set(empirical_ntk(net, torch.randn(4, 5), layerwise=True).by_module()) == {"", "a"}


def test_by_module_needs_layers():
    with pytest.raises(ShapeError) as caught:
        result(layerwise=False).by_module()
    assert str(caught.value) == "This result holds no layer kernels. Compute it with layerwise=True."


def test_matrix():
    full = result()
    assert torch.equal(full.matrix(), full.kernel.reshape(18, 18))
    trace = result("trace")
    assert trace.matrix() is trace.kernel
    with pytest.raises(ShapeError) as caught:
        result("diagonal").matrix()
    assert str(caught.value) == "A diagonal kernel is one matrix for each output. Take kernel[..., o]."


def test_spectrum():
    found = result()
    torch.testing.assert_close(found.spectrum().sum(), found.matrix().trace())
    torch.testing.assert_close(found.spectrum()[0], torch.linalg.matrix_norm(found.matrix(), 2))


def test_spectrum_needs_one_batch():
    with pytest.raises(ShapeError) as caught:
        result("trace", x2=True).spectrum()
    assert str(caught.value) == "A spectrum needs a square kernel of a batch with itself; this one is (6, 7)."
    net, x1, x2 = mlp([5, 4, 3]), torch.randn(6, 5), torch.randn(6, 5)
    with pytest.raises(ShapeError) as caught:
        empirical_ntk(net, x1, x2).spectrum()
    assert (
        str(caught.value) == "A spectrum needs a kernel of a batch with itself; this one differs from its transpose. Compute it without x2."
    )


def test_layout_of_neural_tangents():
    full, trace, diagonal = (result(o) for o in OUTPUTS)
    theirs = full.to_neural_tangents()
    assert theirs.shape == (6, 6, 3, 3)
    for n, m, o, p in ((0, 1, 2, 0), (5, 2, 1, 1), (3, 3, 0, 2)):
        assert theirs[n, m, o, p] == full.kernel[n, o, m, p]
    # that library's trace over an axis divides by its size
    torch.testing.assert_close(trace.to_neural_tangents(), theirs.diagonal(dim1=2, dim2=3).mean(-1))
    torch.testing.assert_close(diagonal.to_neural_tangents(), theirs.diagonal(dim1=2, dim2=3))


def test_settings_and_layers():
    found = empirical_ntk(mlp([5, 4, 3]), torch.randn(6, 5), method="gram", prove="always", seed=3)
    assert found.settings == {
        "method": "gram",
        "prove": "always",
        "seed": 3,
        "dtype": "torch.float64",
        "device": "cpu",
        "n_outputs": 3,
        "tf32": torch.get_float32_matmul_precision() != "highest",
    }
    assert found.layers is None


def test_closed_form():
    # f(x) = w · x: the kernel is the Gram matrix of the inputs, and of a bias one everywhere
    x = torch.randn(6, 5)
    torch.testing.assert_close(empirical_ntk(nn.Linear(5, 1), x, outputs="trace").kernel, x @ x.T + 1)
    torch.testing.assert_close(empirical_ntk(nn.Linear(5, 3), x).kernel, torch.einsum("nm,op->nomp", x @ x.T + 1, torch.eye(3)))


def test_foreign_and_damaged_files(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "kernel.safetensors"
    save_file({"kernel": torch.ones(2, 2)}, path)
    with pytest.raises(FileFormatError) as caught:
        NTKResult.load(path)
    assert (
        str(caught.value)
        == f"{str(path)!r} has format None, and this version reads 'mechfeat/1'. It was written by something else or by another version."
    )
    result().save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FileFormatError, match="is not a readable safetensors file"):
        NTKResult.load(path)
