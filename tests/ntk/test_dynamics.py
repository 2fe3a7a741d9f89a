"""Training in the space of outputs against training the linearised model itself, and against literal integration."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mechfeat.errors import DtypeError, NonFiniteError, OptionError, ShapeError, StepSizeError
from mechfeat.models import mlp
from mechfeat.ntk import KernelDynamics, empirical_ntk

LOSSES = ("squared", "logistic", "softmax")


def psd(n, rank, seed=0):
    A = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed))
    return A @ A.T / rank


def labels(loss, n, o, seed=7):  # another seed than the one tests start from
    g = torch.Generator().manual_seed(seed)
    if loss == "squared":
        return torch.randn(n, o, generator=g)
    return torch.randint(0, 2, (n, o), generator=g) if loss == "logistic" else torch.randint(0, o, (n,), generator=g)


def total_loss(f, y, loss):
    """With torch's own losses, summed over samples."""
    if loss == "squared":
        return 0.5 * F.mse_loss(f, y, reduction="sum")
    if loss == "logistic":
        return F.binary_cross_entropy_with_logits(f, y.to(f), reduction="sum")
    return F.cross_entropy(f, y, reduction="sum")


class Linearised:
    """f(x) + J Δθ with the whole Jacobian, trained by plain gradient descent on Δθ."""

    def __init__(self, net, x, x_test):
        values = {n: p.detach() for n, p in net.named_parameters()}
        self.f, self.J = zip(*(self.expand(net, values, each) for each in (x, x_test)))
        self.change = torch.zeros(self.J[0].shape[-1], requires_grad=True)

    @staticmethod
    def expand(net, values, x):
        def outputs(values):
            return torch.func.functional_call(net, values, (x,))

        f = outputs(values)
        return f, torch.cat([j.flatten(2) for j in torch.func.jacrev(outputs)(values).values()], -1)

    def outputs(self, side):
        return self.f[side] + self.J[side] @ self.change

    def descend(self, y, loss, lr, steps, reduction):
        scale = lr / (len(y) if reduction == "mean" else 1)
        for _ in range(steps):
            (g,) = torch.autograd.grad(total_loss(self.outputs(0), y, loss), self.change)
            self.change.data -= scale * g
        return [self.outputs(side).detach() for side in (0, 1)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [1, 2, 57])
def test_descent_is_that_of_the_linearised_model(loss, reduction, steps):
    net, x, x_test = mlp([4, 7, 3], nn.Tanh), torch.randn(6, 4), torch.randn(5, 4)
    y = labels(loss, 6, 3)
    theta, cross = empirical_ntk(net, x), empirical_ntk(net, x_test, x)
    f0, f0_test = net(x).detach(), net(x_test).detach()
    lr = 0.9 * KernelDynamics(theta, y, loss=loss, lr=1e-9, reduction=reduction).lr_limit
    training = KernelDynamics(theta, y, loss=loss, lr=lr, reduction=reduction, f0=f0)
    want, want_test = Linearised(net, x, x_test).descend(y, loss, lr, steps, reduction)
    torch.testing.assert_close(training.at(steps), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(training.at(steps, cross, f0_test), want_test, rtol=0, atol=1e-10)
    assert float((want_test - f0_test).norm()) > 0.1  # something moved


@pytest.mark.parametrize("loss", LOSSES)
def test_a_singular_kernel_of_more_rows_than_parameters(loss):
    # 20 samples of a model with 4 parameters an output, and every sample twice
    net, x, x_test = nn.Linear(3, 2), torch.randn(10, 3).repeat(2, 1), torch.randn(4, 3)
    y = labels(loss, 20, 2)
    theta, cross = empirical_ntk(net, x), empirical_ntk(net, x_test, x)
    training = KernelDynamics(theta, y, loss=loss, lr=0.1, reduction="mean", f0=net(x).detach())
    want, want_test = Linearised(net, x, x_test).descend(y, loss, 0.1, 300, "mean")
    torch.testing.assert_close(training.at(300), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(training.at(300, cross, net(x_test).detach()), want_test, rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", ["shared", "diagonal"])
def test_kernels_without_coupling_are_full_kernels_with_zeros(loss, layout):
    n, m, o = 5, 4, 3
    joint = [psd(n + m, 12, seed) for seed in range(o)] if layout == "diagonal" else [psd(n + m, 12)] * o
    kernel = torch.stack(joint, -1) if layout == "diagonal" else joint[0]
    full = torch.einsum("nmo,op->nomp", torch.stack(joint, -1), torch.eye(o))
    y, f0, f0_test = labels(loss, n, o), torch.randn(n, o), torch.randn(m, o)
    options = {"loss": loss, "lr": 0.2, "f0": f0}
    short, long = KernelDynamics(kernel[:n, :n], y, **options), KernelDynamics(full[:n, :, :n], y, **options)
    for time in ("descent", "flow"):
        short, long = (KernelDynamics(K, y, time=time, **options) for K in (kernel[:n, :n], full[:n, :, :n]))
        torch.testing.assert_close(short.at([0, 3, 20]), long.at([0, 3, 20]), rtol=0, atol=1e-7 if time == "flow" else 1e-12)
        a, b = short.at(20, kernel[n:, :n], f0_test), long.at(20, full[n:, :, :n], f0_test)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7 if time == "flow" else 1e-12)
        assert short.lr_limit == pytest.approx(long.lr_limit)


@given(st.integers(1, 7), st.integers(1, 8), st.integers(1, 3), st.floats(0.05, 0.98), st.integers(0, 99))
def test_closed_form_of_descent_is_the_recursion(n, rank, o, share, seed):
    K, y, f0 = psd(n, rank, seed), labels("squared", n, o, seed), torch.randn(n, o)
    lr = share * KernelDynamics(K, y, loss="squared", lr=1e-12, reduction="sum").lr_limit
    training = KernelDynamics(K, y, loss="squared", lr=lr, reduction="sum", f0=f0)
    f = f0
    for step in range(40):
        torch.testing.assert_close(training.at(step), f, rtol=0, atol=1e-10)
        f = f - lr * K @ (f - y)


@pytest.mark.parametrize("rank", [2, 6])
@pytest.mark.parametrize("loss", LOSSES)
def test_flow_is_the_limit_of_small_steps(loss, rank):
    K, y, f0 = psd(6, rank), labels(loss, 6, 2), torch.randn(6, 2)
    flow = KernelDynamics(K, y, loss=loss, lr=0.3, reduction="sum", time="flow", f0=f0, tolerance=1e-11)
    # Runge and Kutta's classical method, literally, with steps that leave an error of about h⁴ = 1e-12
    f, h = f0, 1e-3

    def velocity(f):
        f = f.requires_grad_()
        return -0.3 * K @ torch.autograd.grad(total_loss(f, y, loss), f)[0]

    for _ in range(4000):
        k1 = velocity(f)
        k2 = velocity(f + h / 2 * k1)
        k3 = velocity(f + h / 2 * k2)
        k4 = velocity(f + h * k3)
        f = (f + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).detach()
    torch.testing.assert_close(flow.at(4.0), f, rtol=0, atol=1e-10 if loss == "squared" else 1e-9)
    small = KernelDynamics(K, y, loss=loss, lr=0.3e-3, reduction="sum", f0=f0)
    torch.testing.assert_close(small.at(4000), f, rtol=0, atol=3e-3)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_the_solver_keeps_its_tolerance(loss):
    K, y = psd(8, 5), labels(loss, 8, 2)
    exact = KernelDynamics(K, y, loss=loss, lr=1.0, time="flow", tolerance=1e-13, f0=torch.zeros(8, 2)).at([1, 10, 1000])
    for tolerance in (1e-4, 1e-7):
        found = KernelDynamics(K, y, loss=loss, lr=1.0, time="flow", tolerance=tolerance, f0=torch.zeros(8, 2)).at([1, 10, 1000])
        assert float((found - exact).abs().max()) <= 20 * tolerance * float(exact.abs().max())


@pytest.mark.parametrize("time", ["descent", "flow"])
@pytest.mark.parametrize("rank", [3, 9])
def test_infinite_time_interpolates_what_the_kernel_can_reach(time, rank):
    joint = psd(8, rank)
    K, cross, y, f0, g0 = joint[:5, :5], joint[5:, :5], torch.randn(5, 2), torch.randn(5, 2), torch.randn(3, 2)
    training = KernelDynamics(K, y, loss="squared", lr=0.5, time=time, f0=f0)
    inverse = torch.linalg.pinv(K, rtol=1e-10, hermitian=True)
    torch.testing.assert_close(training.at(math.inf), f0 + K @ inverse @ (y - f0), rtol=0, atol=1e-9)
    torch.testing.assert_close(training.at(math.inf, cross, g0), g0 + cross @ inverse @ (y - f0), rtol=0, atol=1e-9)
    torch.testing.assert_close(training.coefficients(math.inf), inverse @ (y - f0), rtol=0, atol=1e-9)  # none along null directions
    if rank == 9:
        torch.testing.assert_close(training.at(math.inf), y, rtol=0, atol=1e-9)
    # and finite times go there, without an end to what rounding adds
    for t in (10**9, 10**15):
        torch.testing.assert_close(training.at(t, cross, g0), training.at(math.inf, cross, g0), rtol=0, atol=1e-9)


def test_infinite_time_does_not_learn_by_the_rounding_of_a_float32_kernel():
    joint = psd(12, 3)
    K, cross, y = joint[:9, :9], joint[9:, :9], torch.randn(9, 1)
    want = cross @ torch.linalg.pinv(K, rtol=1e-10, hermitian=True) @ y
    found = KernelDynamics(K.float(), y.float(), loss="squared", lr=0.1).at(math.inf, cross.float())
    torch.testing.assert_close(found.double(), want, rtol=0, atol=1e-4)


def test_in_finite_time_a_float32_kernel_learns_by_small_eigenvalues_too():
    """The rounding of a large kernel is larger than many of its eigenvalues, which the dtype holds all the same."""
    K = torch.diag(torch.tensor([1.0, 5e-8])).float()
    found = KernelDynamics(K, torch.ones(2), loss="squared", lr=0.5, reduction="sum").at([10**6, 10**10])
    torch.testing.assert_close(found[:, 1, 0].double(), torch.tensor([1 - math.exp(-0.025), 1.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("time", ["descent", "flow"])
def test_time_zero_is_the_start(loss, time):
    joint, f0, g0 = psd(7, 7), torch.randn(4, 2), torch.randn(3, 2)
    training = KernelDynamics(joint[:4, :4], labels(loss, 4, 2), loss=loss, lr=0.1, time=time, f0=f0)
    torch.testing.assert_close(training.at(0), f0, rtol=0, atol=0)
    torch.testing.assert_close(training.at(0, joint[4:, :4], g0), g0, rtol=0, atol=0)
    assert not training.coefficients(0).any()


def test_times_come_in_the_order_asked_for():
    K = psd(3, 3)
    for loss in LOSSES:
        for time in ("descent", "flow"):
            training = KernelDynamics(K, labels(loss, 3, 2), loss=loss, lr=0.1, time=time, f0=torch.zeros(3, 2))
            several = training.at([5, 0, 2, 5])
            torch.testing.assert_close(several, torch.stack([training.at(t) for t in (5, 0, 2, 5)]), rtol=0, atol=1e-7)
            assert training.coefficients([5, 0]).shape == (2, 3, 2)


def test_one_sample_one_output():
    training = KernelDynamics(torch.tensor([[2.0]]), torch.tensor([1.0]), loss="squared", lr=0.25, time="flow")
    assert training.at(3.0).item() == pytest.approx(1 - math.exp(-1.5))
    sigmoid = KernelDynamics(torch.tensor([[2.0]]), torch.tensor([1]), loss="logistic", lr=0.25)
    assert sigmoid.at(1).item() == pytest.approx(0.25)
    assert sigmoid.at(2).item() == pytest.approx(0.25 + 0.5 / (1 + math.exp(0.25)))


def test_a_zero_kernel_learns_nothing():
    for loss in LOSSES:
        for time in ("descent", "flow"):
            training = KernelDynamics(torch.zeros(3, 3), labels(loss, 3, 2), loss=loss, lr=1e3, time=time, f0=torch.ones(3, 2))
            assert torch.equal(training.at(7), torch.ones(3, 2))
            assert training.lr_limit == math.inf
    assert torch.equal(KernelDynamics(torch.zeros(2, 2), torch.ones(2), loss="squared", lr=1.0).at(math.inf), torch.zeros(2, 1))


def test_labels_of_both_kinds_are_one():
    K, y = psd(4, 4), torch.tensor([1, 0, 0, 1])
    found = [KernelDynamics(K, each, loss="logistic", lr=0.1).at(9) for each in (y, 2 * y - 1, y.bool(), y.double())]
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_softmax_of_two_classes_is_logistic_of_their_difference():
    # With a shared kernel the difference of two outputs moves twice as fast as one.
    K, y = psd(5, 5), torch.tensor([0, 1, 1, 0, 1])
    two = KernelDynamics(K, y, loss="softmax", lr=0.3, f0=torch.zeros(5, 2)).at(30)
    one = KernelDynamics(K, y, loss="logistic", lr=0.6).at(30)
    torch.testing.assert_close(two[:, 1:] - two[:, :1], one, rtol=0, atol=1e-12)


def test_a_mean_is_a_sum_at_a_smaller_rate():
    K = psd(4, 4)
    for loss in LOSSES:
        y, f0 = labels(loss, 4, 2), torch.zeros(4, 2)
        mean = KernelDynamics(K, y, loss=loss, lr=0.4, f0=f0)
        whole = KernelDynamics(K, y, loss=loss, lr=0.1, reduction="sum", f0=f0)
        torch.testing.assert_close(mean.at(8), whole.at(8), rtol=0, atol=1e-14)
        assert mean.lr_limit == pytest.approx(4 * whole.lr_limit)


def test_results_are_taken_as_kernels():
    net, x = mlp([3, 5, 2], nn.Tanh), torch.randn(4, 3)
    y = labels("squared", 4, 2)
    for outputs in ("full", "trace", "diagonal"):
        result = empirical_ntk(net, x, outputs=outputs)
        tensor = result.kernel / 2 if outputs == "trace" else result.kernel
        a, b = (KernelDynamics(K, y, loss="squared", lr=0.01).at(30) for K in (result, tensor))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    summed = empirical_ntk(net, x, outputs="pseudo")
    torch.testing.assert_close(KernelDynamics(summed, y[:, 0], loss="squared", lr=0.01).at(3).shape, torch.Size([4, 1]))


def test_dtype_of_the_kernel_comes_out():
    K, y = psd(4, 4), torch.randn(4, 1)
    low = KernelDynamics(K.float(), y.float(), loss="squared", lr=0.1)
    assert low.at(5).dtype == torch.float32
    torch.testing.assert_close(low.at(5).double(), KernelDynamics(K, y, loss="squared", lr=0.1).at(5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [40, 400])  # dense and by products
def test_the_limit_is_where_descent_turns(rows):
    K, y = psd(rows, rows), labels("softmax", rows, 2)
    top = float(torch.linalg.eigvalsh(K).max())
    for loss, curvature in (("squared", 1.0), ("logistic", 0.25), ("softmax", 0.5)):
        y = labels(loss, rows, 2)
        training = KernelDynamics(K, y, loss=loss, lr=1e-6, reduction="sum", f0=torch.zeros(rows, 2))
        assert training.lr_limit == pytest.approx(2 / (top * curvature), rel=1e-9)
    edge = 2 / top
    below = KernelDynamics(K, labels("squared", rows, 1), loss="squared", lr=0.999 * edge, reduction="sum")
    assert float(below.at(10**7).norm()) < 2 * float(below.at(math.inf).norm())
    with pytest.raises(StepSizeError) as error:
        KernelDynamics(K, labels("squared", rows, 1), loss="squared", lr=1.001 * edge, reduction="sum")
    assert (error.value.lr, error.value.limit) == (1.001 * edge, pytest.approx(edge))
    KernelDynamics(K, labels("squared", rows, 1), loss="squared", lr=100 * edge, time="flow").at(1.0)  # flow has no limit


def test_a_large_rate_is_said_where_it_may_converge():
    K, y = torch.eye(2), torch.tensor([0, 1])
    with pytest.warns(UserWarning, match="is sure to lower") as said:
        KernelDynamics(K, y, loss="softmax", lr=10.0, f0=torch.zeros(2, 2))
    assert (
        str(said[0].message)
        == "lr=10 is above 8, up to which each step of gradient descent with this kernel is sure to lower the softmax loss. The steps are "
        "computed as asked for."
    )


@pytest.mark.parametrize("layout", [2, 3, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_given_may_be_written_over(loss, layout):
    """Coefficients are found on first use, which may come after the caller has filled the same tensors anew."""
    K, y, f0 = psd(3, 3), labels(loss, 3, 2), torch.randn(3, 2)
    K = {2: K, 3: torch.stack([K, 2 * K], -1), 4: torch.einsum("nm,op->nomp", K, torch.eye(2))}[layout]
    want = KernelDynamics(K.clone(), y.clone(), loss=loss, lr=0.1, f0=f0.clone()).at([1, 5])
    early, late = (KernelDynamics(K, y, loss=loss, lr=0.1, f0=f0) for _ in range(2))
    torch.testing.assert_close(early.at([1, 5]), want, rtol=0, atol=0)
    K *= 3
    f0 += 1
    y.copy_(1 - y)
    for training in (early, late):
        torch.testing.assert_close(training.at([1, 5]), want, rtol=0, atol=0)


def test_shuffled_targets():
    joint, f0 = psd(7, 7), torch.randn(4, 3)
    orders = torch.stack([torch.randperm(4) for _ in range(3)])
    for loss in LOSSES:
        y = labels(loss, 4, 3)
        for layout in (joint, torch.einsum("nm,op->nomp", joint, psd(3, 3)), torch.stack([joint, 2 * joint, joint], -1)):
            theta, cross = (layout[:4, :4], layout[4:, :4]) if layout.ndim < 4 else (layout[:4, :, :4], layout[4:, :, :4])
            found = KernelDynamics(theta, y, loss=loss, lr=0.1, f0=f0).shuffled(orders, 9, cross)
            want = torch.stack([KernelDynamics(theta, y[order], loss=loss, lr=0.1, f0=f0).at(9, cross) for order in orders])
            torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def make(theta=None, y=None, **options):
    theta = psd(3, 3) if theta is None else theta
    return KernelDynamics(theta, torch.ones(3) if y is None else y, **{"loss": "squared", "lr": 0.1} | options)


SOFT = {"loss": "softmax", "f0": torch.zeros(3, 4)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("error", "message", "f"),
    [
        (OptionError, "loss='mse' is not known. It can be 'squared', 'logistic', 'softmax'.", lambda: make(loss="mse")),
        (OptionError, "reduction='none' is not known. It can be 'mean', 'sum'.", lambda: make(reduction="none")),
        (OptionError, "time='gd' is not known. It can be 'descent', 'flow'.", lambda: make(time="gd")),
        (OptionError, "lr=-0.1 is not known. It can be 'a positive number'.", lambda: make(lr=-0.1)),
        (OptionError, "tolerance=0 is not known. It can be 'a positive number'.", lambda: make(tolerance=0)),
        (OptionError, "t=-1 is not known. It can be 'a number of steps, 0 or more'.", lambda: make().at(-1)),
        (OptionError, "t=2.5 is not known. It can be 'a number of steps, 0 or more'.", lambda: make().at(2.5)),
        (OptionError, "t=-0.5 is not known. It can be 'a time, 0 or more'.", lambda: make(time="flow").at(-0.5)),
        (OptionError, "t=nan is not known. It can be 'a time, 0 or more'.", lambda: make(time="flow").at(math.nan)),
        (OptionError, "t=[] is not known. It can be 'one or more times'.", lambda: make().at([])),
        (
            OptionError,
            "t=tensor([1, 2]) is not known. It can be 'a number', 'a list of numbers, which `t.tolist()` makes of a tensor or an array'.",
            lambda: make().at(torch.tensor([1, 2])),
        ),
        (
            OptionError,
            "t=inf is not known. It can be 'a finite number: the softmax loss has no closed form, and its outputs may grow for ever'.",
            lambda: make(y=torch.tensor([0, 1, 3]), **SOFT).at(math.inf),
        ),
        (
            OptionError,
            "y=0 to 4 is not known. It can be class indices from 0 to 3.",
            lambda: make(y=torch.tensor([0, 1, 4]), **SOFT),
        ),
        (
            OptionError,
            "y=-1 to 3 is not known. It can be class indices from 0 to 3.",
            lambda: make(y=torch.tensor([0, -1, 3]), **SOFT),
        ),
        (
            OptionError,
            "y=-1, 0, 1 is not known. It can be labels of 0 and 1, of -1 and 1.",
            lambda: make(y=torch.tensor([-1, 0, 1]), loss="logistic"),
        ),
        (
            StepSizeError,
            (
                "lr=3, and gradient descent on squared loss with this kernel converges below 2 (2 over the largest eigenvalue, times the "
                "number of samples for a mean over samples). Take a smaller learning rate, or gradient flow: time='flow'."
            ),
            lambda: make(torch.eye(3), lr=3.0, reduction="sum"),
        ),
        (
            DtypeError,
            "y is of torch.float64. loss='softmax' takes class indices, as integers.",
            lambda: make(y=torch.ones(3), **SOFT),
        ),
        (DtypeError, "y is of list. loss='squared' takes real targets.", lambda: make(y=[1.0, 2.0, 3.0])),
        (
            DtypeError,
            "theta is of torch.int64. It must be a floating-point tensor or an NTKResult.",
            lambda: make(torch.eye(3).long()),
        ),
        (DtypeError, "theta is of list. It must be a floating-point tensor or an NTKResult.", lambda: make([[1.0]])),
        (
            ShapeError,
            "theta has shape [3]. A kernel is [n o m o], or [n m] for outputs that share it, or [n m o].",
            lambda: make(torch.ones(3)),
        ),
        (
            ShapeError,
            "theta has shape [0, 0]. A kernel is [n o m o], or [n m] for outputs that share it, or [n m o].",
            lambda: make(torch.ones(0, 0)),
        ),
        (
            ShapeError,
            (
                "theta has 3 rows and 4 columns. Training needs the kernel of the training batch with itself; one between test "
                "and training inputs goes to at(t, cross)."
            ),
            lambda: make(torch.ones(3, 4)),
        ),
        (
            ShapeError,
            "theta has shape [3, 2, 3, 1]. A kernel [n o m o] has the same outputs on both sides.",
            lambda: make(torch.ones(3, 2, 3, 1)),
        ),
        (
            ShapeError,
            "theta differs from its transpose. Training needs the kernel of the training batch with itself, computed without x2.",
            lambda: make(torch.eye(3) + torch.ones(3, 3).triu(1)),
        ),
        (
            ShapeError,
            (
                "theta has the eigenvalue -1, and 1 at most. A tangent kernel has none below zero, and training by it would run away. "
                "Was it centred, rounded, or put together of parts?"
            ),
            lambda: make(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])),
        ),
        (NonFiniteError, "theta holds NaN or infinity.", lambda: make(torch.full((3, 3), math.nan))),
        (NonFiniteError, "y holds NaN or infinity.", lambda: make(y=torch.full((3,), math.inf))),
        (NonFiniteError, "f0 holds NaN or infinity.", lambda: make(f0=torch.full((3, 1), math.nan))),
        (
            ShapeError,
            "y has shape [4]. For 3 samples and 1 output loss='squared' takes real targets, [3, 1].",
            lambda: make(y=torch.ones(4)),
        ),
        (
            ShapeError,
            "y has shape [3, 2]. For 3 samples and 4 outputs loss='squared' takes real targets, [3, 4].",
            lambda: make(y=torch.ones(3, 2), f0=torch.zeros(3, 4)),
        ),
        (
            ShapeError,
            "y has shape [3, 4]. For 3 samples loss='softmax' takes class indices, as integers, [3].",
            lambda: make(y=torch.ones(3, 4).long(), **SOFT),
        ),
        (
            ShapeError,
            "A kernel [n m] does not say how many classes there are. Give f0, the outputs before training, as [3, classes]; zeros will do.",
            lambda: make(y=torch.tensor([0, 1, 2]), loss="softmax"),
        ),
        (
            ShapeError,
            "Softmax of one output is 1 whatever the output. Give two or more outputs, or loss='logistic'.",
            lambda: make(y=torch.tensor([0, 0, 0]), loss="softmax", f0=torch.zeros(3, 1)),
        ),
        (ShapeError, "f0 has shape [2, 1]. The outputs before training are [3, 1].", lambda: make(f0=torch.zeros(2, 1))),
        (
            ShapeError,
            "f0 was given without cross. The training outputs before training belong to KernelDynamics(..., f0=...).",
            lambda: make().at(1, f0=torch.zeros(3, 1)),
        ),
        (
            ShapeError,
            (
                "cross has shape [5, 4], and theta the layout [n m]. Give the kernel of the other inputs with the training inputs, Θ(x, "
                "X), of shape [m, 3]."
            ),
            lambda: make().at(1, torch.ones(5, 4)),
        ),
        (
            ShapeError,
            (
                "cross has shape [5, 3], and theta the layout [n o m o]. Give the kernel of the other inputs with the training inputs, "
                "Θ(x, X), of shape [m, 1, 3, 1]."
            ),
            lambda: make(psd(3, 3)[:, None, :, None]).at(1, torch.ones(5, 3)),
        ),
    ],
)
def test_refusals(error, message, f):
    with pytest.raises(error) as caught:
        f()
    assert str(caught.value) == message


def test_no_more_than_rounding_is_let_through(unchecked):
    """Of the dtype that the kernel was computed in: a millionth below zero, or off the transpose, is none in float64."""
    flat = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    skew = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    for wrong, message in ((flat - 1e-6 * torch.eye(2), "theta has the eigenvalue -1e-06"), (flat + 1e-6 * skew, "theta differs")):
        with pytest.raises(ShapeError) as caught:
            make(wrong, y=torch.ones(2))
        assert str(caught.value).startswith(message)
        make(wrong.float(), y=torch.ones(2)).at(3)
    make(flat - 1e-16 * torch.eye(2), y=torch.ones(2)).at(3)


def test_a_trace_needs_all_its_outputs():
    result = empirical_ntk(nn.Linear(2, 3), torch.randn(4, 2), outputs="trace")
    with pytest.raises(ShapeError) as caught:
        KernelDynamics(result, torch.randn(4, 2), loss="squared", lr=0.1)
    assert str(caught.value) == "theta is the trace over 3 outputs, and y has 2. Give one target an output."
