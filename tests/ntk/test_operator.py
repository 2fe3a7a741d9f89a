"""The operator against the kernel it stands for."""

import numpy as np
import pytest
import torch
from torch import nn

from mechfeat import Ablate, HookedModel
from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import (
    DeviceError,
    DtypeError,
    NondeterministicModelError,
    NonFiniteError,
    OptionError,
    ProofError,
    SampleInteractionError,
    ShapeError,
    UnsupportedLayerError,
)
from mechfeat.models import mlp
from mechfeat.ntk import NTKOperator
from tests.ntk.test_exact import assert_exact, every_model
from tests.ntk.zoo import ZOO, Net


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(net, x1, x2=None, outputs="full"):
    full = sum(oracle.empirical_ntk(net, x1, x2).values())
    if outputs == "pseudo":
        return full.sum((1, 3))
    return full.flatten(0, 1).flatten(1) if outputs == "full" else full.diagonal(dim1=1, dim2=3).sum(-1)


def small(n=7, o=3):
    return mlp([5, 6, o], nn.Tanh), torch.randn(n, 5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@every_model
def test_matches_the_definition(name):
    net, x1, x2 = ZOO[name].build()
    want = dense(net, x1, x2)
    op = NTKOperator(net, x1, x2, chunk_size=4)
    assert op.shape == want.shape
    v, u = torch.randn(op.shape[1], 2), torch.randn(op.shape[0])
    assert_exact(op @ v, want @ v)
    assert_exact(op.T @ u, want.T @ u)


def test_ways():
    # torch 2.13 gives the wrong forward-mode derivative for a padding token, and has none for weight_norm
    ways = {name: NTKOperator(*ZOO[name].build()[:2]).way for name in ("mlp", "transformer, padding", "weight norm", "lstm")}
    assert ways == {"mlp": "forward", "transformer, padding": "double backward", "weight norm": "double backward", "lstm": "forward"}


def test_a_derivative_that_is_wrong_for_one_sample():
    net = Net(lambda s, t: s.o(s.e(t).mean(1)), e=nn.Embedding(7, 4, padding_idx=2), o=nn.Linear(4, 2))
    for at in range(12):
        tokens = torch.randint(3, 7, (12, 3))
        tokens[at, 1] = 2
        v = torch.randn(24)
        assert_exact(NTKOperator(net, tokens, chunk_size=5) @ v, dense(net, tokens) @ v)


@pytest.mark.parametrize("outputs", ["full", "trace", "pseudo"])
@pytest.mark.parametrize("two", [False, True])
def test_outputs(outputs, two):
    net, x1 = small()
    x2 = torch.randn(4, 5) if two else None
    want = dense(net, x1, x2, outputs)
    op = NTKOperator(net, x1, x2, outputs=outputs)
    v = torch.randn(op.shape[1], 3)
    assert_exact(op @ v, want @ v)
    if not two:
        assert_exact(op.diagonal(), want.diagonal())


def test_layouts():
    net, x = small()
    op, v = NTKOperator(net, x), torch.randn(7, 3)
    flat = op @ v.flatten()
    assert flat.shape == (21,)
    assert torch.equal(op @ v, flat.view(7, 3))
    assert torch.equal(op @ v.view(21, 1), flat[:, None])
    assert (op @ torch.empty(21, 0)).shape == (21, 0)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_chunks_change_nothing(chunk_size):
    net, x = small()
    v = torch.randn(21)
    assert_exact(NTKOperator(net, x, chunk_size=chunk_size) @ v, NTKOperator(net, x) @ v, 1e-14)


def test_diagonal_of_many_samples():
    net, x = small(35)
    assert_exact(NTKOperator(net, x).diagonal(), dense(net, x).diagonal())


def test_follows_the_model():
    net, x = small()
    op, v = NTKOperator(net, x), torch.randn(21)
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert_exact(op @ v, dense(net, x) @ v)
    net[0].requires_grad_(False)
    assert_exact(op @ v, dense(net, x) @ v)
    model = HookedModel(net)
    with model.hooks(Ablate("0", channel=1)):
        want = dense(net, x) @ v
        assert_exact(NTKOperator(model, x) @ v, want)


def test_leaves_the_model_alone():
    net = nn.Sequential(nn.Linear(5, 6), nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 2))
    net = Net(lambda s, x: s.c(s.b(h := s.a(x)[:, None], h, h)[0][:, 0]), a=net[0], b=net[1], c=net[2])
    x = torch.randn(4, 5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    flags = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.is_grad_enabled()
    with torch.no_grad():
        NTKOperator(net, x) @ torch.randn(8)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert flags == (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.is_grad_enabled())
    want = dense(net, x) @ torch.ones(8)
    with torch.inference_mode():
        assert_exact(NTKOperator(net, x.clone()) @ torch.ones(8), want)


def test_float32_and_half():
    # float32 rounding of two passes over a few layers, and bfloat16 with its 8 bits
    net, x = small()
    v = torch.randn(21)
    want = dense(net, x) @ v
    found = NTKOperator(net.float(), x.float()) @ v.float()
    assert found.dtype == torch.float32
    assert_exact(found.double(), want, 5e-6)
    found = NTKOperator(net.bfloat16(), x.bfloat16()) @ v.float()
    assert found.dtype == torch.float32
    assert_exact(found.double(), want, 0.1)


# Eigenvalues


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_eigenvalues(outputs, which):
    net, x = small(30, 4)
    theta = dense(net, x, outputs=outputs)
    want = torch.linalg.eigvalsh(theta)
    found = NTKOperator(net, x, outputs=outputs).eigenvalues(5, which=which, generator=generator())
    assert found.converged
    gap = (found.values - (want.flip(0)[:5] if which == "largest" else want[:5])).abs().max()
    assert float(gap) <= 1e-9 * float(want[-1])
    assert float((found.vectors.T @ found.vectors - torch.eye(5)).abs().max()) < 1e-10
    torch.testing.assert_close((theta @ found.vectors - found.vectors * found.values).norm(dim=0), found.residuals, rtol=1e-3, atol=1e-12)


def test_repeated_eigenvalues_are_found_as_often():
    # a linear model has one kernel for each output: every eigenvalue of x xᵀ + 1 occurs three times
    net, x = nn.Linear(5, 3), torch.randn(8, 5)
    want = torch.linalg.eigvalsh(x @ x.T + 1).flip(0).repeat_interleave(3)
    found = NTKOperator(net, x).eigenvalues(8, generator=generator())
    assert_exact(found.values, want[:8], 1e-9)
    everything = NTKOperator(net, x).eigenvalues(24, generator=generator())
    assert_exact(everything.values, want, 1e-9)
    assert everything.converged


def test_too_few_products_are_said():
    net, x = small(30)
    found = NTKOperator(net, x).eigenvalues(5, generator=generator(), max_products=4)
    assert not found.converged


def test_draws_are_those_of_the_generator():
    net, x = small(30)
    op = NTKOperator(net, x)
    a, b, c = (op.spectral_density(n_probes=2, steps=5, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(a.nodes, b.nodes)
    assert not torch.equal(a.nodes, c.nodes)
    a, b = (op.eigenvalues(3, generator=generator(s)) for s in (1, 1))
    assert torch.equal(a.vectors, b.vectors)


def test_density():
    net, x = small(20, 2)
    theta = dense(net, x)
    eigenvalues = torch.linalg.eigvalsh(theta)
    found = NTKOperator(net, x).spectral_density(n_probes=40, steps=12, generator=generator())
    assert float(found.weights.sum()) == pytest.approx(1)
    for f in (lambda t: t, torch.square, lambda t: 1 / (1 + t)):
        mean, error = found.mean(f)
        assert abs(mean - float(f(eigenvalues).mean())) < 4 * error
    points = torch.linspace(-200, 400, 5001) * float(eigenvalues.mean())
    width = float(eigenvalues.mean())
    assert float(torch.trapezoid(found.smoothed(points, width), points)) == pytest.approx(1, abs=1e-6)


def test_density_is_exact_for_polynomials():
    # for signs s the quadrature of a polynomial of degree below 2·steps is sᵀ f(Θ) s / size itself, whose mean over all signs is the trace
    net, x = small(3, 1)
    theta = dense(net, x)
    found = NTKOperator(net, x).spectral_density(n_probes=1, steps=2, generator=generator(5))
    s = torch.randint(0, 2, (3,), generator=generator(5)).double() * 2 - 1
    for power in (1, 2, 3):
        want = float(s @ torch.linalg.matrix_power(theta, power) @ s) / 3
        assert found.mean(lambda t, power=power: t**power)[0] == pytest.approx(want, rel=1e-10)


# Linear systems


def test_solve():
    net, x = small(20, 2)
    theta, b = dense(net, x), torch.randn(40, 2)
    found = NTKOperator(net, x).solve(b, ridge=0.5)
    assert_exact(found.x, torch.linalg.solve(theta + 0.5 * torch.eye(40), b), 1e-9)
    assert found.converged
    left = ((b - theta @ found.x - 0.5 * found.x).norm(dim=0) / b.norm(dim=0)).max()
    assert found.residual == pytest.approx(float(left), rel=1e-2, abs=1e-14)
    assert len(found.history) == found.steps
    by_samples = NTKOperator(net, x).solve(b[:, 0].view(20, 2), ridge=0.5)
    torch.testing.assert_close(by_samples.x, found.x[:, 0].view(20, 2))


def test_a_system_without_solution_is_said():
    net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = NTKOperator(net, x).solve(torch.tensor([1.0, -1.0]))
    assert not found.converged
    assert found.residual == pytest.approx(1)


def test_zero_right_hand_side():
    net, x = small()
    found = NTKOperator(net, x).solve(torch.zeros(21))
    assert (found.converged, found.steps, found.residual, bool(found.x.any())) == (True, 0, 0.0, False)


def test_scipy():
    from scipy.sparse.linalg import LinearOperator, eigsh, svds

    net, x = small(20, 2)
    theta = dense(net, x).numpy()
    op = NTKOperator(net, x).as_scipy()
    assert isinstance(op, LinearOperator)
    np.testing.assert_allclose(eigsh(op, k=3, v0=np.ones(40))[0], np.linalg.eigvalsh(theta)[-3:], rtol=1e-9)
    V = np.random.default_rng(0).normal(size=(40, 2))
    np.testing.assert_allclose(op @ V, theta @ V, rtol=1e-10, atol=1e-10)
    x2 = torch.randn(5, 5)
    across = NTKOperator(net, x, x2).as_scipy()
    want = dense(net, x, x2).numpy()
    np.testing.assert_allclose(svds(across, k=2, v0=np.ones(10))[1], np.linalg.svd(want)[1][:2][::-1], rtol=1e-9)
    np.testing.assert_allclose(across.rmatvec(V[:, 0]), want.T @ V[:, 0], rtol=1e-10, atol=1e-10)


# Refusals


class Doubled(torch.autograd.Function):
    """No forward mode, and a backward that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class Wrong(torch.autograd.Function):
    """A forward mode and a second derivative that disagree with the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g.detach()

    @staticmethod
    def jvp(ctx, t):
        return 3 * t


@pytest.mark.usefixtures("unchecked")
class TestRefusals:
    def refused(self, error, message, f):
        with pytest.raises(error) as caught:
            f()
        assert str(caught.value) == message

    def test_no_derivative(self):
        net = Net(lambda s, x: Doubled.apply(s.a(x)), a=nn.Linear(5, 2))
        with pytest.raises(UnsupportedLayerError) as caught:
            NTKOperator(net, torch.randn(4, 5))
        text = str(caught.value)
        assert text.startswith("This model has no product with its Jacobian (forward: ")
        assert "; double backward: " in text
        assert text.endswith(
            "). Compute the kernel itself with mechfeat.ntk.empirical_ntk, or give the operation a `jvp` or a differentiable backward."
        )

    def test_wrong_derivative(self):
        net = Net(lambda s, x: Wrong.apply(s.a(x)), a=nn.Linear(5, 2))
        with pytest.raises(ProofError) as caught:
            NTKOperator(net, torch.randn(4, 5))
        assert caught.value.parameters == ("the derivative along a direction",)
        assert caught.value.gaps[0] > 1e-3

    def test_model(self):
        x = torch.randn(6, 5)
        with pytest.raises(SampleInteractionError):
            NTKOperator(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), x)
        with pytest.raises(SampleInteractionError):
            NTKOperator(Net(lambda s, x: s.a(x) - s.a(x).mean(0), a=nn.Linear(5, 2)), x)
        with pytest.raises(NondeterministicModelError):
            NTKOperator(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)), x)
        with pytest.raises(NondeterministicModelError):
            NTKOperator(Net(lambda s, x: s.a(x) + torch.rand(2), a=nn.Linear(5, 2)), x)

    def test_a_later_change_of_mode(self):
        net = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)).eval()
        op = NTKOperator(net, torch.randn(6, 5))
        net.train()
        with pytest.raises(NondeterministicModelError):
            op @ torch.ones(18)

    def test_options(self):
        net, x = small()
        self.refused(
            OptionError,
            "outputs='diagonal' is not known. It can be 'full', 'trace', 'pseudo'.",
            lambda: NTKOperator(net, x, outputs="diagonal"),
        )
        self.refused(ShapeError, "chunk_size=0 runs no samples. It must be at least 1.", lambda: NTKOperator(net, x, chunk_size=0))
        op = NTKOperator(net, x)
        self.refused(
            OptionError,
            "which='middle' is not known. It can be 'largest', 'smallest'.",
            lambda: op.eigenvalues(which="middle", generator=generator()),
        )
        self.refused(
            ShapeError,
            "k=22 eigenvalues of a kernel with 21 rows do not exist. Ask for 1 to 21.",
            lambda: op.eigenvalues(22, generator=generator()),
        )
        self.refused(
            ShapeError,
            "n_probes=0 and steps=30: both count vectors, and at least one of each is needed.",
            lambda: op.spectral_density(n_probes=0, generator=generator()),
        )
        self.refused(
            OptionError, "ridge=-1.0 is not known. It can be 'a number of at least 0'.", lambda: op.solve(torch.ones(21), ridge=-1.0)
        )
        with pytest.raises(DtypeError, match=r"a null needs a torch\.Generator"):
            op.eigenvalues(generator=None)

    def test_vectors(self):
        net, x = small()
        op = NTKOperator(net, x)
        self.refused(DtypeError, "The vector is of list. A product with a kernel needs a floating tensor.", lambda: op @ [1.0])
        self.refused(
            DtypeError, "The vector is of torch.int64. A product with a kernel needs a floating tensor.", lambda: op @ torch.ones(21).long()
        )
        self.refused(
            ShapeError,
            "The vector has shape [7], and this kernel has 21 columns. Give [21], [21, k] or [7, 3].",
            lambda: op @ torch.ones(7),
        )
        self.refused(
            ShapeError,
            "The vector has shape [21], and this kernel has 7 columns. Give [7], [7, k].",
            lambda: NTKOperator(net, x, outputs="trace") @ torch.ones(21),
        )
        self.refused(
            DeviceError, "The vector is on meta and the model on cpu. Move one of them.", lambda: op @ torch.ones(21, device="meta")
        )
        self.refused(NonFiniteError, "The vector holds NaN or infinity.", lambda: op @ torch.full((21,), float("nan")))

    def test_two_batches(self):
        net, x = small()
        op = NTKOperator(net, x, torch.randn(7, 5))
        message = "{} needs the kernel of a batch with itself; this operator is between x1 and x2. Make it without x2."
        self.refused(ShapeError, message.format("A diagonal"), op.diagonal)
        self.refused(ShapeError, message.format("Eigenvalues"), lambda: op.eigenvalues(generator=generator()))
        self.refused(ShapeError, message.format("A density of eigenvalues"), lambda: op.spectral_density(generator=generator()))
        self.refused(ShapeError, message.format("A linear system"), lambda: op.solve(torch.ones(21)))
        self.refused(
            ShapeError,
            "The model gives 2 outputs a sample for x1 and 4 for x2. A kernel between them needs the same outputs.",
            lambda: NTKOperator(Net(lambda s, t: s.a(t)[..., 0], a=nn.Linear(5, 3)), torch.ones(3, 2, 5), torch.ones(3, 4, 5)),
        )


def test_scalar_parameter():
    net, x = Net(lambda s, x: x * s.w, w=nn.Parameter(torch.tensor(2.0))), torch.randn(4, 1)
    assert_exact(NTKOperator(net, x) @ torch.ones(4), (x @ x.T).sum(1))
