"""N-gram capacity: the XOR ratio of each configuration, and what kernel ridge regression makes of negation."""

import math

import pytest
import torch

from mechfeat.errors import OptionError
from mechfeat.models.text import BagMLP, InitSpec, pad
from mechfeat.ntk import empirical_ntk
from mechfeat.ntk.analytic import (
    AttentionKernel,
    BagKernel,
    BigramKernel,
    ConvKernel,
    GatedLinearRNNKernel,
    LinearRNNKernel,
    MatrixVectorRNNKernel,
    MixingKernel,
    kernel_of,
    xor_ratio,
)
from mechfeat.ntk.dual import Activation

KERNELS = {
    **{f"bag {n}": lambda i, n=n: BagKernel(activation=Activation.of(n), init=i) for n in ("relu", "tanh")},
    **{f"cnn {n}": lambda i, n=n: ConvKernel(activation=Activation.of(n), init=i) for n in ("linear", "tanh", "gelu", "relu")},
    "attention": lambda i: AttentionKernel(init=i),
    "attention residual": lambda i: AttentionKernel(residual=True, init=i),
    **{f"block {n}": lambda i, n=n: MixingKernel(activation=Activation.of(n), init=i) for n in ("relu", "tanh")},
    "bigram": lambda i: BigramKernel(init=i),
    "mv-rnn": lambda i: MatrixVectorRNNKernel(readout="sum", init=i),
    "linear rnn": lambda i: LinearRNNKernel(readout="sum", init=i),
    "gated rnn": lambda i: GatedLinearRNNKernel(activation=Activation.of("tanh"), readout="sum", init=i),
}
ADDITIVE = ("bag relu", "bag tanh", "cnn linear", "attention", "attention residual", "linear rnn")
# The ratio at standard deviation 1 and at 0.1, to three digits.
RATIOS = {
    **dict.fromkeys(ADDITIVE, (0.0, 0.0)),
    "cnn tanh": (0.140, 0.0),
    "cnn gelu": (0.173, 0.0001),
    "cnn relu": (0.191, 0.191),
    "block relu": (0.064, 0.141),
    "block tanh": (0.041, 0.0),
    "bigram": (0.429, 0.0074),
    "mv-rnn": (0.429, 0.0074),
    "gated rnn": (0.110, 0.0),
}
NOT, GOOD, BAD, FILLERS = 0, 1, 2, 20


def at(name, sd):
    """All standard deviations the same, but for the recurrence of the gated network, which stays at 1."""
    everything = dict.fromkeys(("embedding", "hidden", "readout", "token_matrix", "inputs"), sd)
    return KERNELS[name](InitSpec(**everything, recurrence=1.0 if name == "gated rnn" else sd))


@pytest.mark.parametrize("name", RATIOS)
def test_xor_ratio(name):
    one, tenth = RATIOS[name]
    assert xor_ratio(at(name, 1.0)) == pytest.approx(one, abs=0.002)
    assert xor_ratio(at(name, 0.1)) == pytest.approx(tenth, abs=0.002)


@pytest.mark.parametrize("name", ADDITIVE)
def test_additive_models_have_none(name):
    for sd in (1.0, 0.3):
        assert abs(xor_ratio(at(name, sd))) < 1e-12


def negation(n, generator):
    """[1-3 fillers] (not) adjective [1-3 fillers]; the label is +1 where the adjective is as it stands, -1 where it is negated or bad."""

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    docs, labels = [], []
    for _ in range(n):
        negated, bad = draw(0, 2), draw(0, 2)
        before, after = ([3 + draw(0, FILLERS) for _ in range(draw(1, 4))] for _ in range(2))
        docs.append([*before, *([NOT] if negated else []), BAD if bad else GOOD, *after])
        labels.append(1.0 - 2 * (negated ^ bad))
    return pad(docs, length=8), torch.tensor(labels)


def accuracy(kernel, n, seeds=3):
    """Of kernel ridge regression on as many documents as are tested, ridge a thousandth of the mean diagonal; mean over seeds."""
    found = []
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        (x, y), (x_test, y_test) = negation(n, g), negation(n, g)
        K = kernel(x)
        ridge = 1e-3 * K.diagonal().mean() * torch.eye(n, dtype=K.dtype)
        prediction = kernel(x_test, x) @ torch.linalg.solve(K + ridge, y.double())
        found.append(float((prediction.sign() == y_test).double().mean()))
    return sum(found) / seeds


@pytest.mark.parametrize("name", ADDITIVE)
def test_additive_models_cannot_learn_negation(name):
    assert accuracy(at(name, 1.0), 160) <= 0.6


@pytest.mark.parametrize("name", ["bigram", "mv-rnn"])
def test_multiplicative_models_learn_negation(name):
    assert accuracy(at(name, 1.0), 160) >= 0.99


@pytest.mark.parametrize("name", ["cnn relu", "cnn tanh", "cnn gelu", "gated rnn"])
def test_so_do_windows_and_gates_at_standard_deviation_one(name):
    assert accuracy(at(name, 1.0), 160, seeds=1) >= 0.97


def test_a_hidden_layer_after_attention_learns_most_of_it():
    assert accuracy(at("block relu", 1.0), 160, seeds=1) >= 0.9
    assert accuracy(at("attention residual", 1.0), 160, seeds=1) <= 0.6


def test_small_variance_takes_negation_from_tanh_and_leaves_it_to_relu():
    assert accuracy(at("cnn tanh", 0.1), 100) <= 0.65
    assert accuracy(at("gated rnn", 0.1), 100) <= 0.65
    assert accuracy(at("cnn relu", 0.1), 100) >= 0.95


def test_ratio_of_a_finite_network():
    """Additive at every width, up to rounding: the bag's output is a sum over tokens, and so is its gradient."""
    model = BagMLP(5, 32, 32, generator=torch.Generator().manual_seed(0))
    assert abs(xor_ratio(lambda ids: empirical_ntk(model, ids, outputs="trace").kernel)) < 1e-12
    assert xor_ratio(kernel_of(model), (4, 2, 0, 1)) == pytest.approx(0, abs=1e-12)


def test_ratio_needs_four_tokens(unchecked):
    with pytest.raises(OptionError) as error:
        xor_ratio(BigramKernel(), (0, 1, 1, 2))
    assert str(error.value) == "tokens=(0, 1, 1, 2) is not known. It can be \"four different tokens a, a', b, b'\"."


def test_ratio_of_a_kernel_that_tells_nothing_apart_is_refused(unchecked):
    with pytest.raises(OptionError, match="one that tells tokens apart"):
        xor_ratio(lambda ids: torch.ones(4, 4))
    assert math.isfinite(xor_ratio(BigramKernel()))
