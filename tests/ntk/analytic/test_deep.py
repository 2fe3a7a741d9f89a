"""Deep kernels against neural-tangents, against Monte Carlo of the networks themselves, and what has no kernel."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mechfeat.errors import DtypeError, NonFiniteError, OptionError, ShapeError, UnsupportedModelError
from mechfeat.models.text.activations import LeakyReLU
from mechfeat.ntk import Activation, empirical_ntk
from mechfeat.ntk.analytic import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Nonlinearity,
    Residual,
    residual,
    serial,
)

DATA = json.loads((Path(__file__).parent / "neural_tangents.json").read_text(encoding="utf-8"))
LAYERS = {layer.__name__: layer for layer in (AvgPool, Conv, Dense, Flatten, GlobalAvgPool, Nonlinearity)}
RELU, ERF, GELU = (Nonlinearity(name) for name in ("relu", "erf", "gelu"))


def inputs(shape, n, start=0):
    """The inputs of ``benchmarks/peers/deep_kernels.py``, exact in binary."""
    size = math.prod(shape)
    i = start * size + torch.arange(n * size)
    return (((i * i * 37 + 11 * i) % 101 - 50) / 32.0).double().reshape(n, *shape)


def layer(description):
    name, options = description
    if name == "Residual":
        return Residual(*(tuple(map(layer, options[side])) for side in ("body", "shortcut")))
    return LAYERS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def described(name):
    return serial(*map(layer, DATA["networks"][name]["layers"]))


# --- oracle: neural-tangents 0.6.5


def test_the_data_name_the_versions_they_come_from():
    assert DATA["versions"] == {"neural-tangents": "0.6.5", "jax": "0.4.25"}


@pytest.mark.parametrize("name", DATA["networks"])
def test_kernels_equal_those_of_neural_tangents(name):
    row = DATA["networks"][name]
    x1, x2 = inputs(row["shape"], 3), inputs(row["shape"], 2, 5)
    for other, key in ((None, "same"), (x2, "other")):
        found = described(name).kernels(x1, other)
        for which in ("nngp", "ntk"):
            torch.testing.assert_close(getattr(found, which), torch.tensor(row[key][which]), rtol=1e-10, atol=0)


def changed(layers, old, new):
    return serial(*(new if one == old else one for one in layers))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("four hidden layers, relu", Dense(1.1, 0.3), Dense(1.1)),
        ("four hidden layers, erf", Dense(1.4, 0.3), Dense(1.4001, 0.3)),
        ("image, same, flatten", Flatten(), GlobalAvgPool()),
        ("image, strides, circular, mean", Conv(3, 1.3, 0.2, stride=2, padding="circular"), Conv(3, 1.3, 0.2, stride=2)),
        ("image, pooled, hidden layer", AvgPool(2), AvgPool(2, 1)),
    ],
)
def test_a_changed_network_differs_from_neural_tangents(name, old, new):
    row = DATA["networks"][name]
    x = inputs(row["shape"], 3)
    layers = described(name).layers
    assert old in layers
    expected = torch.tensor(row["same"]["ntk"])
    assert float((changed(layers, old, new)(x) - expected).abs().max() / expected.abs().max()) > 1e-5


# --- the same description at a finite width


FINITE = {
    "two hidden layers": (serial(Dense(1.4, 0.3), RELU, Dense(1.2, 0.1), Nonlinearity("tanh"), Dense(1.1, 0.5)), (6,), 512, 12),
    "residual": (serial(Dense(1.4, 0.3), residual(RELU, Dense(1.2, 0.1)), GELU, Dense(1.1)), (6,), 512, 16),
    "image, flatten": (serial(Conv(3, 1.4, 0.3, stride=2), RELU, Conv(2, 1.2, 0.1), ERF, Flatten(), Dense()), (3, 6, 5), 128, 16),
    "image, mean": (
        serial(Conv((3, 2), 1.4, 0.3, padding="circular"), RELU, AvgPool(2), Conv(2, 1.2), ERF, GlobalAvgPool(), Dense()),
        (3, 6, 5),
        128,
        16,
    ),
    "line, residual": (
        serial(
            Conv(3, 1.4, 0.3),
            residual(RELU, Conv(3, 1.2, padding="circular", stride=2), shortcut=[Conv(1, 0.5, stride=2)]),
            RELU,
            AvgPool(2, 1),
            Flatten(),
            Dense(1.1),
        ),
        (3, 7),
        256,
        16,
    ),
}
MUTATIONS = {  # each is off by one thing: biases, the stride of what is averaged, a shortcut
    "two hidden layers": serial(Dense(1.4, 0.3), RELU, Dense(1.2, 0.1), Nonlinearity("tanh"), Dense(1.1)),
    "residual": serial(Dense(1.4, 0.3), RELU, Dense(1.2, 0.1), GELU, Dense(1.1)),
    "image, flatten": serial(Conv(3, 1.4, 0.3, stride=2), RELU, Conv(2, 1.2, 0.1), ERF, GlobalAvgPool(), Dense()),
    "image, mean": serial(Conv((3, 2), 1.4, 0.3, padding="circular"), RELU, AvgPool(2), Conv(2, 1.2), ERF, Flatten(), Dense()),
    "line, residual": serial(
        Conv(3, 1.4, 0.3), RELU, Conv(3, 1.2, padding="circular", stride=2), RELU, AvgPool(2, 1), Flatten(), Dense(1.1)
    ),
}


def empirical(network, x, width, seeds):
    total = torch.zeros(len(x), len(x))
    for seed in range(seeds):
        module = network.module(width, x.shape[1:], n_outputs=2, generator=torch.Generator().manual_seed(seed))
        total += empirical_ntk(module, x, outputs="trace", strict=True).kernel / (2 * seeds)
    return total


@pytest.mark.parametrize("name", FINITE)
def test_the_module_tends_to_the_kernel(name):
    network, shape, width, seeds = FINITE[name]
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    theta = empirical(network, x, width, seeds)

    def gap(kernel):
        return float((theta - kernel(x)).norm() / kernel(x).norm())

    assert gap(network) <= 0.03  # means over these seeds spread by 1 to 2 % at these widths
    assert gap(MUTATIONS[name]) >= 0.1


@pytest.mark.full
@pytest.mark.parametrize("name", ["two hidden layers", "image, mean"])
def test_the_error_falls_with_width(name):
    """A single network's error falls as the inverse root of the width, -0.5 in the logarithm."""
    network, shape, width, _ = FINITE[name]
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    closed = network(x)
    widths = (width // 8, width // 2, 2 * width)
    errors = []
    for w in widths:
        gaps = [
            empirical_ntk(network.module(w, shape, generator=torch.Generator().manual_seed(s)), x, strict=True).kernel[:, 0, :, 0] - closed
            for s in range(32)
        ]
        errors.append(math.log(sum(float(g.norm() / closed.norm()) for g in gaps) / len(gaps)))
    slope = (errors[-1] - errors[0]) / math.log(widths[-1] / widths[0])
    assert slope == pytest.approx(-0.5, abs=0.2)


def test_nngp_is_the_covariance_of_outputs():
    network, shape, *_ = FINITE["image, mean"]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    # Outputs are independent draws given the hidden layers, and hidden layers are few: 400 of the one in 24 of the other.
    outputs = torch.cat(
        [network.module(96, shape, n_outputs=400, generator=torch.Generator().manual_seed(s))(x).detach() for s in range(24)], 1
    )
    found = network.kernels(x).nngp
    assert float((outputs @ outputs.T / outputs.shape[1] - found).norm() / found.norm()) <= 0.05


def test_the_module_draws_from_its_generator_and_follows_the_activation():
    network = serial(Dense(), Nonlinearity(torch.sin), Dense())
    one, two, other = (network.module(8, (3,), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters()))
    assert not torch.equal(one[0].weight, other[0].weight)
    x = torch.randn(4, 3)
    by_hand = torch.sin(x @ one[0].weight.T / 3**0.5) @ one[2].weight.T / 8**0.5
    torch.testing.assert_close(one(x), by_hand)


# --- known cases


def test_one_hidden_layer_by_hand():
    x = torch.tensor([[1.0, 2.0], [-0.5, 1.0]])
    K = 1.5**2 * x @ x.T / 2 + 0.2**2
    relu, a = Activation.of("relu"), K.diagonal()
    k, k1 = relu.k(a[:, None], a, K), relu.k1(a[:, None], a, K)
    found = serial(Dense(1.5, 0.2), RELU, Dense(0.7, 0.1)).kernels(x)
    nngp = 0.7**2 * k + 0.1**2
    torch.testing.assert_close(found.nngp, nngp, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.ntk, nngp + 0.7**2 * k1 * K, rtol=1e-13, atol=0)


def test_one_convolution_by_hand():
    """Literal sums over windows, for a line with zeros at both ends."""
    x = inputs((2, 4), 2)
    padded = F.pad(x, (1, 1))
    S = torch.tensor(
        [
            [[sum(float(padded[i, :, p + o] @ padded[j, :, q + o]) for o in range(3)) / 6 for q in range(4)] for p in range(4)]
            for i in range(2)
            for j in range(2)
        ]
    )
    S = S.reshape(2, 2, 4, 4)
    a = torch.stack([S[i, i].diagonal() for i in range(2)])
    erf = Activation.of("erf")
    k = erf.k(a[:, None, :, None], a[None, :, None, :], S)
    theta = k + erf.k1(a[:, None, :, None], a[None, :, None, :], S) * S
    at = torch.arange(4)
    torch.testing.assert_close(serial(Conv(3), ERF, GlobalAvgPool(), Dense())(x), theta.mean((2, 3)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(serial(Conv(3), ERF, Flatten(), Dense())(x), theta[:, :, at, at].mean(2), rtol=1e-12, atol=1e-14)


def test_a_window_of_one_is_a_dense_layer():
    x = inputs((5,), 4)
    dense = serial(Dense(1.2, 0.1), GELU, Dense())
    conv = serial(Conv(1, 1.2, 0.1), GELU, Flatten(), Dense())
    torch.testing.assert_close(conv(x[:, :, None, None]), dense(x), rtol=1e-13, atol=0)


def test_flattening_with_and_without_pairs_of_positions_is_one():
    x = inputs((3, 6, 5), 3)
    few = serial(Conv(3, 1.2, 0.1), RELU, Conv(3, stride=2), ERF, Flatten(), Dense())
    all_pairs = serial(Conv(3, 1.2, 0.1), RELU, AvgPool(1), Conv(3, stride=2), ERF, Flatten(), Dense())
    torch.testing.assert_close(all_pairs(x), few(x), rtol=1e-13, atol=0)


def test_circular_networks_do_not_see_shifts():
    x = inputs((3, 6, 4), 2)
    network = serial(Conv(3, 1.2, 0.1, padding="circular"), RELU, Conv(2, padding="circular"), ERF, GlobalAvgPool(), Dense())
    torch.testing.assert_close(network(x, x.roll((2, 1), (2, 3))), network(x, x.clone()), rtol=1e-7, atol=0)
    zeros = serial(Conv(3, 1.2, 0.1), RELU, Conv(2), ERF, GlobalAvgPool(), Dense())
    assert float((zeros(x, x.roll((2, 1), (2, 3))) - zeros(x, x.clone())).abs().max()) > 1e-3


def test_an_empty_patch_has_the_kernel_of_its_biases():
    x = torch.zeros(2, 3, 4, 4)
    x[1, :, 0, 0] = 1.0
    for bias in (0.0, 0.3):
        found = serial(Conv(3, 1.4, bias), RELU, Conv(3, 1.4, bias), RELU, GlobalAvgPool(), Dense()).kernels(x)
        assert bool(torch.isfinite(found.ntk).all())
        assert bool((found.ntk[0] > 0).all()) == (bias > 0)


# --- properties


@settings(max_examples=15)
@given(st.integers(1, 3), st.sampled_from(["relu", "erf", "gelu", "leaky_relu"]), st.sampled_from(["same", "circular"]), st.integers(0, 99))
def test_symmetric_positive_and_equal_to_its_blocks(depth, phi, padding, seed):
    x = torch.randn(5, 2, 4, 3, generator=torch.Generator().manual_seed(seed))
    layers = [piece for _ in range(depth) for piece in (Conv(2, 1.3, 0.2, padding=padding), Nonlinearity(phi))]
    network = serial(*layers, GlobalAvgPool(), Dense())
    found = network.kernels(x)
    for K in (found.nngp, found.ntk):
        assert torch.equal(K, K.T)
        assert float(torch.linalg.eigvalsh(K)[0]) >= -1e-12 * float(K.trace())
    assert bool((found.ntk.diagonal() >= found.nngp.diagonal()).all())
    blocks = type(network)(network.layers, max_memory=8 * 6 * 12**2 * 4)  # two samples by two
    torch.testing.assert_close(blocks(x), found.ntk, rtol=1e-12, atol=0)
    torch.testing.assert_close(network(x[:3], x[3:]), found.ntk[:3, 3:], rtol=1e-12, atol=0)
    torch.testing.assert_close(blocks(x[:3], x[3:]), found.ntk[:3, 3:], rtol=1e-12, atol=0)


def test_blocks_are_smaller_than_the_batch(monkeypatch):
    from mechfeat.ntk.analytic.deep_covariance import Covariance

    sizes, real = [], Covariance.of.__func__
    monkeypatch.setattr(Covariance, "of", classmethod(lambda cls, x1, x2, **o: sizes.append((len(x1), len(x2))) or real(cls, x1, x2, **o)))
    network = serial(Conv(2), RELU, GlobalAvgPool(), Dense())
    type(network)(network.layers, max_memory=8 * 6 * 16 * 4)(torch.randn(5, 1, 4))
    assert sorted(sizes) == sorted([(2, 2), (2, 2), (2, 2), (1, 2), (1, 2), (1, 1)])


def test_empty_batches_and_single_inputs():
    network = serial(Conv(2), RELU, Flatten(), Dense())
    x = inputs((2, 4), 3)
    assert network(x[:0]).shape == (0, 0)
    assert network(x, x[:0]).shape == (3, 0)
    torch.testing.assert_close(network(x[:1]), network(x)[:1, :1])


def test_float32_inputs_give_float64_kernels():
    network = serial(Dense(), ERF, Dense())
    x = inputs((4,), 3)
    assert torch.equal(network(x.float()), network(x))  # these inputs are exact in float32 too


# --- refusals

X, LINE = torch.zeros(2, 3), torch.zeros(2, 3, 4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: serial(), OptionError, "layers=() is not known. It can be 'one layer or more'."),
        (lambda: residual(), OptionError, "body=() is not known. It can be 'one layer or more'."),
        (lambda: Dense(-1.0), OptionError, "W_std=-1.0 is not known. It can be 'a finite number of at least 0'."),
        (lambda: Conv(0), OptionError, "kernel=0 is not known. It can be 'a positive integer', 'one for each of one or two axes'."),
        (
            lambda: AvgPool((1, 2, 3)),
            OptionError,
            "window=(1, 2, 3) is not known. It can be 'a positive integer', 'one for each of one or two axes'.",
        ),
        (lambda: Conv(2, padding="full"), OptionError, "padding='full' is not known. It can be 'valid', 'same', 'circular'."),
        (lambda: serial(Dense(), Dense()).module(0, (3,)), OptionError, "width=0 is not known. It can be 'a positive integer'."),
        (
            lambda: serial(Dense(), RELU),
            UnsupportedModelError,
            "The network ends with Nonlinearity(phi='relu'), and its outputs are no linear read-out. End it with Dense(), after "
            "Flatten() or "
            "GlobalAvgPool() where there are positions.",
        ),
        (
            lambda: serial(Dense(), RELU, ERF, Dense()),
            UnsupportedModelError,
            "Nonlinearity(phi='erf') stands where its inputs are not Gaussian at infinite width: after another activation function "
            "or Flatten, on "
            "the inputs of the network, or on a sum with one of these. Put Dense or Conv before it; `mechfeat.ntk.empirical_ntk` "
            "serves any "
            "network.",
        ),
        (
            lambda: serial(Dense(), residual(RELU), Dense()),
            UnsupportedModelError,
            "Neither branch of a residual block has weights of its own, so that the two are not independent given their input, and their "
            "covariances do not add. Put Dense or Conv into one; `mechfeat.ntk.empirical_ntk` serves any network.",
        ),
        (
            lambda: serial(Dense())(LINE),
            ShapeError,
            "Dense was given inputs with 1 axes of positions, [4]. Put Flatten() or GlobalAvgPool() before it, or take Conv(1) for "
            "a layer at "
            "each position.",
        ),
        (
            lambda: serial(Conv(2), Dense()).module(4, (3, 4)),
            ShapeError,
            "Dense was given inputs with 1 axes of positions, [4]. Put Flatten() or GlobalAvgPool() before it, or take Conv(1) for "
            "a layer at "
            "each position.",
        ),
        (
            lambda: serial(Conv(2), Flatten(), Dense())(X),
            ShapeError,
            "Conv needs axes of positions, and was given inputs [sample channel]. Give [sample channel position ...].",
        ),
        (
            lambda: serial(Conv((2, 2)), Flatten(), Dense())(LINE),
            ShapeError,
            "Conv has kernel=(2, 2) for 2 axes, and its inputs have 1. Give one number, or 1.",
        ),
        (
            lambda: serial(Conv(5, padding="valid"), Flatten(), Dense())(LINE),
            ShapeError,
            "A window of 5 does not fit in 4 positions. Take padding='same', a smaller window or larger inputs.",
        ),
        (
            lambda: serial(Conv(1), residual(RELU, Conv(2, stride=2)), Flatten(), Dense())(LINE),
            ShapeError,
            "The branches of a residual block end with positions [2] and [4]. Give the shortcut a layer with the same stride and padding.",
        ),
        (
            lambda: serial(residual(Dense()), Dense()).module(5, (3,)),
            ShapeError,
            "At width 5 the branches of a residual block end with shapes [5] and [3]. Give the shortcut a Dense or Conv of its own, "
            "or put one "
            "before the block.",
        ),
        (
            lambda: serial(Dense())(X, torch.zeros(2, 4)),
            ShapeError,
            "Inputs of x1 have shape [3], and those of x2 [4]. Give inputs of one shape.",
        ),
        (
            lambda: serial(Dense())(torch.zeros(2, 3, 4, 5, 6)),
            ShapeError,
            "x1 has shape [2, 3, 4, 5, 6]. Give [sample channel], then at most two axes of positions, none empty.",
        ),
        (
            lambda: serial(Dense())(torch.zeros(2, 3, dtype=torch.long)),
            DtypeError,
            "x1 has dtype torch.int64. Inputs of a network are floating-point; `x1.double()` makes them so.",
        ),
        (
            lambda: serial(Dense(30.0), Nonlinearity("exp"), Dense())(X + 10),
            NonFiniteError,
            "The kernel of this network is not finite for these inputs: its covariances grow beyond float64 from layer to layer. Take a "
            "smaller W_std, or inputs of a smaller norm.",
        ),
        (
            lambda: serial(Dense())(X, X / 0),
            NonFiniteError,
            "x2 holds NaN or infinity. `torch.isfinite(x2)` shows where.",
        ),
    ],
)
def test_refusals_say_what_would_be_right(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_branches_that_share_their_weights_are_refused_however_deep():
    inner = residual(RELU, Dense())  # its output holds its input
    with pytest.raises(UnsupportedModelError):
        serial(Dense(), residual(inner), Dense())
    assert serial(Dense(), residual(inner, RELU, Dense()), RELU, Dense())(inputs((3,), 2)).shape == (2, 2)


def test_an_activation_with_a_slope_of_its_own():
    x = inputs((4,), 3)
    flat = serial(Dense(1.2, 0.1), Nonlinearity(LeakyReLU(1.0)), Dense())
    torch.testing.assert_close(flat(x), serial(Dense(1.2, 0.1), Nonlinearity("linear"), Dense())(x), rtol=1e-12, atol=0)
