"""Dual activations against integration that shares nothing with them, Price's theorem, and what is refused."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import nn

from mechfeat.errors import DtypeError, NonFiniteError, OptionError, QuadratureError, ShapeError
from mechfeat.models.text.activations import FUNCTIONS, LeakyReLU, activation
from mechfeat.ntk import Activation

CLOSED = ("linear", "relu", "leaky_relu", "erf", "gelu", "quadratic", "sin", "cos", "exp")
SMOOTH = ("tanh", "silu", "softplus", "sigmoid")
KINKED = ((F.hardtanh, (-1.0, 1.0)), (F.elu, (0.0,)), (F.selu, (0.0,)), (F.hardswish, (-3.0, 3.0)), (torch.abs, (0.0,)))
PLACES = ((1.0, 1.0, 0.5), (0.5, 1.5, -0.7), (2.0, 0.3, 0.2), (3.9, 4.0, -0.95), (1.0, 1.0, 0.0), (0.01, 4.0, 0.9))


def places(rows=PLACES):
    a, b, rho = torch.tensor(rows).T
    return a, b, rho * (a * b).sqrt()


# --- oracle: SciPy's adaptive rule in polar coordinates, where a kink at 0 is a ray, on functions written out in math

SCALAR = {
    "linear": (lambda x: x, lambda x: 1.0),
    "relu": (lambda x: max(x, 0.0), lambda x: float(x > 0)),
    "leaky_relu": (lambda x: x if x > 0 else 0.01 * x, lambda x: 1.0 if x > 0 else 0.01),
    "erf": (math.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x)),
    "gelu": (
        lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
        lambda x: (1 + math.erf(x / math.sqrt(2))) / 2 + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "quadratic": (lambda x: x * x, lambda x: 2 * x),
    "sin": (math.sin, math.cos),
    "cos": (math.cos, lambda x: -math.sin(x)),
    "exp": (math.exp, math.exp),
}


def polar(f, a, b, c):
    """E f(u) f(v), u = √a r cos θ, v = √b r cos(θ - ψ), cos ψ = ρ."""
    psi = math.acos(max(-1.0, min(1.0, c / math.sqrt(a * b))))
    rays = sorted({x % (2 * math.pi) for x in (math.pi / 2, -math.pi / 2, psi + math.pi / 2, psi - math.pi / 2)})

    def along(theta):
        s, t = math.sqrt(a) * math.cos(theta), math.sqrt(b) * math.cos(theta - psi)
        # The radial rule is a sum over fixed panels: cheap, and the integrand is smooth along a ray.
        return sum(w * r * math.exp(-r * r / 2) * f(s * r) * f(t * r) for r, w in RADII)

    ends = [*rays, rays[0] + 2 * math.pi]
    total = sum(integrate.quad(along, x, y, epsabs=1e-13, epsrel=1e-13, limit=200)[0] for x, y in itertools.pairwise(ends) if y - x > 1e-12)
    return total / (2 * math.pi)


def radii():
    from numpy.polynomial.legendre import leggauss

    x, w = leggauss(16)
    return [(n + (1 + float(p)) / 2, float(q) / 2) for n in range(14) for p, q in zip(x, w)]


RADII = radii()


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_match_integration_in_polar_coordinates(name):
    a, b, c = places(PLACES[:4])
    found = Activation.of(name)
    assert found.method == "closed"
    for which, f in zip(("k", "k1"), SCALAR[name]):
        expected = torch.tensor([polar(f, *row) for row in torch.stack([a, b, c], -1).tolist()])
        # 1e-10 as the check asks; exp reaches 3000, and is held to that many digits
        torch.testing.assert_close(getattr(found, which)(a, b, c), expected, rtol=1e-11, atol=1e-10)


def test_the_oracle_notices_a_wrong_closed_form():
    a, b, c = PLACES[0]
    assert abs(polar(SCALAR["relu"][0], a, b, c) - float(Activation.of("gelu").k(a, b, c))) > 1e-3


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_match_the_library_s_own_quadrature(name):
    a, b, c = places()
    closed, found = Activation.of(name), Activation.of(name, method="quadrature", tolerance=1e-4)
    assert found.method == "quadrature"
    for which in ("k", "k1", "k2"):
        torch.testing.assert_close(getattr(found, which)(a, b, c), getattr(closed, which)(a, b, c), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mean(a), closed.mean(a), rtol=1e-12, atol=1e-12)


# --- Price's theorem


def slope(dual, a, b, c, h=2e-3):
    """Derivative along c by central differences of sixth order."""
    weights = ((1, 45 / 60), (2, -9 / 60), (3, 1 / 60))
    return sum(w * (dual(a, b, c + n * h) - dual(a, b, c - n * h)) for n, w in weights) / h


EVERY = [*((name, ()) for name in (*CLOSED, *SMOOTH)), *KINKED]


@pytest.mark.parametrize(("phi", "kinks"), EVERY, ids=lambda p: getattr(p, "__name__", None) or str(p))
def test_each_dual_is_the_derivative_of_the_one_before(phi, kinks):
    found = Activation.of(phi, kinks=kinks, tolerance=1e-5, nodes=256 if phi in SMOOTH else 128)
    a, b, c = places(PLACES[:3] if kinks else PLACES[:5])
    for lower, upper in (("k", "k1"), ("k1", "k2")):
        expected = getattr(found, upper)(a, b, c)
        torch.testing.assert_close(slope(getattr(found, lower), a, b, c), expected, rtol=1e-6, atol=1e-9)


def test_price_s_theorem_notices_a_missing_term():
    a, b, c = places(PLACES[:3])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(slope(Activation.of("relu").k, a, b, c), Activation.of("gelu").k1(a, b, c), rtol=1e-6, atol=1e-9)


# --- quadrature


@pytest.mark.parametrize("name", SMOOTH)
def test_quadrature_of_smooth_functions_has_converged(name):
    rows = ((1.0, 1.0, 0.5), (0.5, 1.5, -0.7), (2.0, 0.3, 0.2), (4.0, 4.0, 0.9), (4.0, 4.0, -0.9))
    a, b, c = places(rows)
    small, large = (Activation.of(name, nodes=n, tolerance=1.0) for n in (64, 125))  # the values are of 128 and of 250 nodes
    scale = (large.k(a, a, a) * large.k(b, b, b)).sqrt()
    assert float(((small.k(a, b, c) - large.k(a, b, c)).abs() / scale).max()) <= 1e-6
    assert 0 < Activation.of(name).error <= 1e-6


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("derivative", [0, 1])
def test_the_expansion_agrees_with_a_product_of_two_rules(name, derivative):
    """Literal double sums over the nodes of u and v."""
    from scipy.special import roots_hermitenorm

    x, w = (torch.as_tensor(t) for t in roots_hermitenorm(200))
    w = w / w.sum()
    phi = FUNCTIONS[name] if derivative == 0 else torch.func.vmap(torch.func.grad(FUNCTIONS[name]))
    a, b, c = places(((1.0, 1.0, 0.5), (0.5, 1.5, -0.7), (1.0, 0.3, 0.99)))
    expected = []
    for p, q, r in torch.stack([a, b, c], -1).tolist():
        u = (math.sqrt(p) * x)[:, None].expand(200, 200)
        v = r / math.sqrt(p) * x[:, None] + math.sqrt(q - r * r / p) * x
        expected.append((w[:, None] * w * (phi(u.flatten()) * phi(v.flatten())).reshape(200, 200)).sum())
    found = getattr(Activation.of(name, tolerance=1.0), ("k", "k1")[derivative])(a, b, c)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-7, atol=1e-9)


def test_tanh_against_one_dimensional_integration():
    # E tanh² and E sech⁴ of a standard Gaussian, by SciPy
    def expected(f):
        return integrate.quad(lambda x: f(x) * math.exp(-x * x / 2) / math.sqrt(2 * math.pi), -12, 12, epsabs=1e-13)[0]

    tanh = Activation.of("tanh")
    assert float(tanh.k(1.0, 1.0, 1.0)) == pytest.approx(expected(lambda x: math.tanh(x) ** 2), abs=1e-11)
    assert float(tanh.k1(1.0, 1.0, 1.0)) == pytest.approx(expected(lambda x: (1 - math.tanh(x) ** 2) ** 2), abs=1e-9)


def test_steep_functions_get_more_nodes_and_are_refused_beyond_them():
    tanh = Activation.of("tanh", nodes=32)
    sure = Activation.of("tanh", nodes=400, tolerance=1e-3)
    torch.testing.assert_close(tanh.k(4.0, 4.0, 2.0), sure.k(4.0, 4.0, 2.0), rtol=1e-6, atol=0)
    with pytest.raises(QuadratureError) as error:
        Activation.of("tanh", nodes=16).k1(400.0, 400.0, 390.0)
    text = str(error.value)
    assert text.startswith("k1 of tanh is known to a relative ")
    assert text.endswith(
        " only, by the difference of 128 and 256 nodes, and tolerance=1e-06. Give more nodes, or allow a larger tolerance."
    )


@pytest.mark.parametrize("width", [1 / 200, 1 / 400])
def test_a_function_between_the_nodes_is_refused(width):
    """Every node sees zero, and so do twice as many: no difference, and no evidence either."""
    bump = Activation.of(lambda x: torch.exp(-((x / width) ** 2)))
    for call in (lambda: bump.k(1.0, 1.0, 0.5), lambda: bump.k1(4.0, 1.0, 0.5), lambda: bump.mean(1.0)):
        with pytest.raises(QuadratureError, match="is known to a relative inf only"):
            call()
    assert float(Activation.of(torch.zeros_like).k(1.0, 1.0, 0.5)) == 0


@pytest.mark.parametrize("name", ["tanh", "silu"])
def test_the_error_estimate_is_the_difference_of_two_rules(name):
    """Of 32 and of 64 nodes, over the root mean squares of the two factors; and the error of the latter is below it."""
    rows = tuple((a, b, r) for a, b in ((0.25, 0.25), (1.0, 1.0), (4.0, 1.0), (4.0, 4.0)) for r in (0.0, 0.5, 1.0))
    a, b, c = places(rows)
    rough, found, sure = (Activation.of(name, nodes=n, tolerance=1.0) for n in (16, 32, 256))
    estimated, actual = [], []
    for which in ("k", "k1"):
        of_rough, of_found, of_sure = (getattr(each, which) for each in (rough, found, sure))
        scale = (of_sure(a, a, a) * of_sure(b, b, b)).sqrt()
        estimated.append(float(((of_found(a, b, c) - of_rough(a, b, c)).abs() / scale).max()))
        actual.append(float(((of_found(a, b, c) - of_sure(a, b, c)).abs() / scale).max()))
    assert found.error == pytest.approx(max(estimated), rel=0.01)
    assert 0 < max(actual) < found.error


def halves(f, kinks, a, b, rho):
    """E f(u) f(v) by SciPy's adaptive rule, in one dimension for ρ = ±1, as an iterated integral otherwise."""

    def gaussian(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    s, t = math.sqrt(a), math.sqrt(b)
    if abs(rho) == 1:
        cuts = [-12.0, *sorted([k / s for k in kinks] + [k / (t * rho) for k in kinks]), 12.0]
        return sum(
            integrate.quad(lambda x: f(s * x) * f(t * rho * x) * gaussian(x), lo, hi, epsabs=1e-13)[0]
            for lo, hi in itertools.pairwise(cuts)
        )
    rest = math.sqrt(1 - rho * rho)

    def inner(x):
        cuts = [-12.0, *sorted(min(12.0, max(-12.0, (k / t - rho * x) / rest)) for k in kinks), 12.0]
        return sum(
            integrate.quad(lambda y: f(t * (rho * x + rest * y)) * gaussian(y), lo, hi, epsabs=1e-12)[0]
            for lo, hi in itertools.pairwise(cuts)
        )

    cuts = [-12.0, *sorted(k / s for k in kinks), 12.0]
    return sum(
        integrate.quad(lambda x: f(s * x) * inner(x) * gaussian(x), lo, hi, epsabs=1e-11, limit=200)[0]
        for lo, hi in itertools.pairwise(cuts)
    )


HARD = (lambda x: max(-1.0, min(1.0, x)), lambda x: float(-1 < x < 1))


@pytest.mark.parametrize("rho", [0.4, -0.999, 1.0])
@pytest.mark.parametrize("order", [0, 1])
def test_declared_kinks_are_integrated_between(rho, order):
    a, b = 1.7, 0.6
    found = Activation.of(F.hardtanh, kinks=(-1, 1))
    value = getattr(found, ("k", "k1")[order])(a, b, rho * math.sqrt(a * b))
    assert float(value) == pytest.approx(halves(HARD[order], (-1.0, 1.0), a, b, rho), abs=1e-9)
    assert 0 < found.error <= 1e-9


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("sign", [1, -1])
def test_kinks_are_integrated_at_nearly_perfect_correlation(gap, sign):
    """The panels have to follow the width √(1-ρ²) in which the inner integral turns."""
    a, b = torch.tensor([1.7]), torch.tensor([0.6])
    c = sign * (1 - gap) * (a * b).sqrt()
    closed, found = Activation.of("relu"), Activation.of("relu", method="quadrature")
    torch.testing.assert_close(found.k(a, b, c), closed.k(a, b, c), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.k1(a, b, c), closed.k1(a, b, c), rtol=0, atol=1e-10)


def test_the_plain_rule_is_wrong_across_a_kink_and_the_split_rule_is_not():
    from mechfeat.ntk.dual import quadrature

    one = torch.tensor([1.0])
    plain = quadrature.smooth(torch.relu, one, one, one / 2, 256)
    cut = quadrature.split(torch.relu, (0.0,), one, one, one / 2, 16)
    exact = Activation.of("relu").k(one, one, one / 2)
    assert float((cut - exact).abs()) < 1e-13
    assert float((plain - exact).abs()) > 1e-5


@pytest.mark.parametrize(
    ("phi", "found"),
    [
        (F.hardtanh, "-1, 1"),
        (F.elu, "0"),
        (F.relu6, "0, 6"),
        (F.hardswish, "-3, 3"),
        (torch.sign, "0"),
        (lambda x: torch.where(x > 0.3, x, x**2), "0.3"),
        (lambda x: x * x.abs(), "0"),  # only its curvature jumps
    ],
)
def test_kinks_are_found(phi, found):
    with pytest.raises(QuadratureError, match=f"is not smooth at {found}, and kinks="):
        Activation.of(phi)


def test_the_message_about_a_kink():
    with pytest.raises(QuadratureError) as error:
        Activation.of(F.relu6, kinks=(0,))
    assert str(error.value) == (
        "relu6 is not smooth at 6, and kinks=(0.0,) does not say so; quadrature across a kink is wrong by an unknown amount. Give "
        "kinks=(0, 6,), exactly, and it is integrated between them."
    )


def test_a_jump_of_the_curvature_alone():
    """relu², whose second derivative is twice a step: k2 is four times the probability of a quadrant (Sheppard)."""
    square = Activation.of(lambda x: torch.relu(x).square(), kinks=(0,))
    a, b, rho = torch.tensor([1.0, 2.0, 0.3]), torch.tensor([1.0, 0.5, 0.3]), torch.tensor([0.5, -0.9, 1.0])
    expected = 4 * (0.25 + torch.asin(rho) / (2 * math.pi))
    torch.testing.assert_close(square.k2(a, b, rho * (a * b).sqrt()), expected, rtol=1e-7, atol=0)  # asin doubles the error near 1


@pytest.mark.parametrize("phi", [lambda x: torch.tanh(100 * x), lambda x: torch.sin(50 * x), F.mish, F.logsigmoid, torch.square, torch.exp])
def test_steep_and_growing_functions_are_no_kinks(phi):
    assert Activation.of(phi, method="quadrature", tolerance=math.inf).kinks == ()


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_pass_for_smooth(name):
    steep = FUNCTIONS[name]
    assert Activation.of(lambda x: steep(5 * x), tolerance=1.0).kinks == ()


def test_a_jump_leaves_k_alone():
    step = Activation.of(torch.sign, kinks=(0,))
    assert step.jumps == (0.0,)
    assert float(step.k(2.0, 3.0, 0.5 * math.sqrt(6))) == pytest.approx(2 / math.pi * math.asin(0.5), abs=1e-12)  # Sheppard
    with pytest.raises(QuadratureError) as error:
        step.k1(1.0, 1.0, 0.0)
    assert str(error.value) == "sign jumps at 0, so that k1 does not exist. Its k and mean do."


# --- limits


@pytest.mark.parametrize("name", [*CLOSED, *SMOOTH])
def test_a_variance_of_zero_leaves_the_value_at_zero(name):
    found = Activation.of(name)
    at_zero = float(FUNCTIONS[name](torch.zeros(())))
    b = torch.tensor([0.0, 0.7])
    torch.testing.assert_close(found.k(torch.zeros(2), b, torch.zeros(2)), at_zero * found.mean(b), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.mean(0.0), torch.tensor(at_zero), rtol=0, atol=1e-12)


def test_a_kink_at_a_variance_of_zero_counts_half():
    for method in ("closed", "quadrature"):
        relu = Activation.of("relu", method=method)
        assert [float(relu.k1(a, b, 0.0)) for a, b in ((0.0, 0.0), (0.0, 2.0), (2.0, 0.0))] == pytest.approx([0.25] * 3, abs=1e-12)


def test_k2_of_relu_is_a_density_and_infinite_where_two_deltas_meet():
    for method in ("closed", "quadrature"):
        relu = Activation.of("relu", method=method)
        assert float(relu.k2(2.0, 1.0, 1.0)) == pytest.approx(1 / (2 * math.pi), abs=1e-12)
        with pytest.raises(NonFiniteError) as error:
            relu.k2(1.0, 1.0, 1.0)
        assert str(error.value) == (
            "k2 of relu is not finite at a=1, b=1, c=1: two delta functions of the second derivative meet there. It is finite for c² < ab."
        )


def test_correlations_beyond_one_by_rounding_are_clipped():
    relu = Activation.of("relu")
    assert float(relu.k1(1.0, 1.0, 1 + 1e-12)) == 0.5
    assert float(relu.k1(1.0, 1.0, -1 - 1e-12)) == 0.0
    assert float(relu.k(1.0, 1.0, 1 + 1e-12)) == 0.5
    with pytest.raises(ShapeError):
        relu.k1(1.0, 1.0, 1 + 1e-5)


@pytest.mark.parametrize(("name", "which"), [("sin", "k"), ("sin", "k2"), ("cos", "k1")])
def test_small_covariances_keep_their_digits(name, which):
    """e^{-(a+b)/2} sinh c, and not a difference of two exponentials."""
    found = getattr(Activation.of(name), which)(1.0, 2.0, 1e-9)
    assert float(found) == pytest.approx(math.exp(-1.5) * 1e-9, rel=1e-12)


# --- bias strengths, check 7


def test_relu_bias_strengths():
    relu = Activation.of("relu")

    def ratio(s_v):
        k, k1 = relu.k(1.0, 1.0, 1.0), relu.k1(1.0, 1.0, 1.0)
        return float(relu.k(1.0, 1.0, 0.0) / (k + s_v**2 * 2 * k1))

    assert ratio(1.0) == pytest.approx(0.10610, abs=1e-5)
    assert ratio(1e-6) == pytest.approx(1 / math.pi, abs=1e-10)
    assert ratio(1e4) < 1e-8


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0, 3.0])
def test_gelu_bias_is_that_of_relu_times_a_factor(tau):
    q = tau**2
    ratio = Activation.of("gelu").k(q, q, 0.0) / Activation.of("relu").k(q, q, 0.0)
    assert abs(float(ratio) - q / (1 + q)) <= 1e-12


@pytest.mark.parametrize(
    ("name", "strengths"),
    [
        ("gelu", (6.4e-5, 6.2e-3, 0.187, 0.290)),
        ("silu", (2.5e-5, 2.5e-3, 0.120, 0.251)),
        ("relu", (1 / math.pi,) * 4),
        ("tanh", (0.0,) * 4),
    ],
)
def test_bias_strengths_of_the_reference(name, strengths):
    found = Activation.of(name)
    for tau, expected in zip((0.01, 0.1, 1.0, 3.0), strengths):
        q = tau**2
        assert float(found.k(q, q, 0.0) / found.k(q, q, q)) == pytest.approx(expected, rel=2e-2, abs=1e-12)  # two digits are given


# --- properties


@given(st.floats(0.0, 5.0), st.floats(0.0, 5.0), st.floats(-1.0, 1.0), st.sampled_from((*CLOSED[:7], "silu", "softplus")))
def test_symmetric_and_within_cauchy_schwarz(a, b, rho, name):
    found = Activation.of(name)
    c = rho * math.sqrt(a) * math.sqrt(b)
    k = float(found.k(a, b, c))
    assert k == pytest.approx(float(found.k(b, a, c)), rel=1e-13, abs=1e-15)
    assert k**2 <= float(found.k(a, a, a) * found.k(b, b, b)) * (1 + 1e-9) + 1e-20


def test_elementwise_and_each_distinct_triple_once(monkeypatch):
    from mechfeat.ntk.dual import quadrature

    tanh = Activation.of("tanh", tolerance=1.0)
    rows, real = [], quadrature.smooth
    monkeypatch.setattr(quadrature, "smooth", lambda f, a, *rest: rows.append(len(a)) or real(f, a, *rest))
    a = torch.tensor([1.0, 2.0]).repeat(500)[:, None]
    k = tanh.k(a, a.T, torch.full((1000, 1000), 0.5))
    assert k.shape == (1000, 1000)
    assert rows == [3, 3]  # {1,1}, {1,2}, {2,2}, with two rules
    torch.testing.assert_close(k[:2, :2], torch.stack([torch.stack([tanh.k(x, y, 0.5) for y in (1.0, 2.0)]) for x in (1.0, 2.0)]))
    assert torch.equal(k, k.T)


def test_no_gradient_leaves():
    a = torch.ones(2, requires_grad=True)
    assert not Activation.of("gelu").k(a, a, a).requires_grad
    assert not Activation.of("tanh").k1(a, a, a).requires_grad


# --- names and refusals


@pytest.mark.parametrize(
    ("phi", "name"),
    [
        (F.relu, "relu"),
        (nn.ReLU(), "relu"),
        (nn.GELU(), "gelu"),
        (torch.special.erf, "erf"),
        (torch.tanh, "tanh"),
        (nn.Identity(), "linear"),
        (nn.Softplus(), "softplus"),
    ],
)
def test_functions_and_modules_go_by_their_name(phi, name):
    found = Activation.of(phi)
    assert found.name == name
    assert found.function is FUNCTIONS[name]
    assert Activation.of(found) is found


def test_slopes_and_approximations_are_kept():
    assert float(Activation.of(LeakyReLU(0.5)).mean(1.0)) == pytest.approx(0.5 / math.sqrt(2 * math.pi))
    assert Activation.of(nn.LeakyReLU(0.5)) == Activation.of(LeakyReLU(0.5))
    approximate = Activation.of(nn.GELU(approximate="tanh"))
    assert approximate.method == "quadrature"
    gap = abs(float(approximate.k(1.0, 1.0, 0.5) - Activation.of("gelu").k(1.0, 1.0, 0.5)))
    assert 1e-8 < gap < 1e-3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Activation.of("mish"),
            OptionError,
            "activation='mish' is not known. It can be 'linear', 'relu', 'leaky_relu', 'erf', 'gelu', 'quadratic', 'sin', 'cos', 'exp', "
            "'tanh', 'silu', 'softplus', 'sigmoid', 'a function of a tensor'.",
        ),
        (
            lambda: Activation.of("tanh", method="closed"),
            OptionError,
            "method='closed' is not known. It can be 'auto', 'quadrature'.",
        ),
        (lambda: Activation.of("tanh", nodes=4), OptionError, "nodes=4 is not known. It can be '16 or more'."),
        (
            lambda: Activation.of(lambda x: F.softmax(x, -1)),
            OptionError,
            "activation='<lambda>' is not known. It can be 'a function that acts on each entry of a tensor alone'.",
        ),
        (
            lambda: Activation.of(lambda x: x.float()),
            DtypeError,
            "<lambda> returns torch.float32 for torch.float64, and dual activations are computed in float64. Keep the dtype.",
        ),
        (
            lambda: Activation.of("relu").k(torch.ones(2, dtype=torch.float32), 1.0, 0.0),
            DtypeError,
            "a has dtype torch.float32. Dual activations take torch.float64; `a.double()` makes one.",
        ),
        (
            lambda: Activation.of("relu").k(1.0, -1.0, 0.0),
            ShapeError,
            "b holds the negative variance -1. Variances are 0 or more.",
        ),
        (
            lambda: Activation.of("relu").k(1.0, torch.tensor([4.0, 1.0]), 1.5),
            ShapeError,
            "At [1], c=1.5 exceeds √(ab)=1 of a=1, b=1: no Gaussian pair has such a covariance. Check which variances go with it.",
        ),
        (
            lambda: Activation.of("relu").k(torch.ones(2), torch.ones(3), 0.0),
            ShapeError,
            "The shapes do not broadcast: a [2], b [3], c []. Give a, b and c shapes that do.",
        ),
        (
            lambda: Activation.of("relu").mean(math.nan),
            NonFiniteError,
            "q holds NaN or infinity. Variances and covariances of the activation relu must be finite.",
        ),
        (
            lambda: Activation.of("exp").mean(2000.0),
            NonFiniteError,
            "mean of exp is not finite at a=2000, b=2000, c=2000: the function grows too fast for these variances. Take smaller ones.",
        ),
        (
            lambda: Activation.of("exp", method="quadrature").k(1e5, 1e5, 0.0),
            NonFiniteError,
            "k of exp is not finite at a=100000, b=100000, c=0: the function grows too fast for these variances. Take smaller ones.",
        ),
        (
            lambda: Activation.of("exp").k(1000.0, 1000.0, 0.0),
            NonFiniteError,
            "k of exp is not finite at a=1000, b=1000, c=0: the function grows too fast for these variances. Take smaller ones.",
        ),
    ],
)
def test_refusals_say_what_would_be_right(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_parameters_that_train_are_no_part_of_an_infinite_kernel():
    """Their gradients would be missing from it; what does not train is a function like any other."""
    slope = nn.PReLU(init=0.5)
    with pytest.raises(OptionError) as caught:
        Activation.of(slope, kinks=(0,))
    assert str(caught.value) == (
        "activation='PReLU' is not known. It can be 'one without parameters that train: infinite-width kernels do not have their "
        "gradients'."
    )
    fixed = Activation.of(slope.requires_grad_(False), kinks=(0,))
    torch.testing.assert_close(fixed.k(1.0, 2.0, 0.5), Activation.of(LeakyReLU(0.5)).k(1.0, 2.0, 0.5))


def test_activation_by_name_is_the_function_that_models_use():
    assert activation("gelu") is F.gelu
    assert activation(torch.sin) is torch.sin
