"""Closed forms against networks of finite width: few seeds here, more in the long tests, and 48 at width 1024 in the committed rows."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechfeat.bench.token_models import FORMS, IDS, INIT, MODELS, build
from mechfeat.errors import UnsupportedModelError
from mechfeat.models.text import BagMLP, Centred, GatedLinearRNN, InitSpec, SelfAttention, pad
from mechfeat.ntk import empirical_ntk
from mechfeat.ntk.analytic import AttentionKernel, kernel_of

ROWS = Path(__file__).parents[3] / "benchmarks" / "results" / "text_kernels.jsonl"


def relative(a, b):
    return float((a - b).norm() / b.norm())


def finite(make, width, seeds, ids=IDS, **options):
    """Results of a few seeds, in float32."""
    torch.set_default_dtype(torch.float32)
    found = [empirical_ntk(make(width, seed), ids, **{"outputs": "trace", "prove": "never", **options}) for seed in range(seeds)]
    torch.set_default_dtype(torch.float64)
    return found


def mean_kernel(make, width, seeds, ids=IDS):
    return torch.stack([r.kernel.double() for r in finite(make, width, seeds, ids)]).mean(0)


def frozen(kernel, *parts):
    return replace(kernel, init=replace(kernel.init, frozen=frozenset(parts)))


PARTS = {
    "embedding": ("W_E",),
    "hidden": ("W_in", "W_V", "W_1", "W_2"),
    "readout": ("W_U",),
    "token_matrix": ("M",),
    "recurrence": ("W_h",),
    "inputs": ("W_x",),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_part_of_a_wide_network_has_its_closed_form(name):
    """At width 512 four seeds are a few hundredths away, a tenth at most, in each parameter's part of the kernel and in their sum."""
    kernel = kernel_of(build(name, 4))
    found = finite(lambda width, seed: build(name, width, seed), 512, 4, layerwise=True)
    assert relative(sum(r.kernel.double() for r in found) / 4, kernel(IDS)) <= 0.12
    for part, names in PARTS.items():
        owned = [layer.double() / 4 for r in found for n, layer in r.layers.items() if n in names]
        if owned:
            assert relative(sum(owned), frozen(kernel, *(PARTS.keys() - {part}))(IDS)) <= 0.2, part


def test_frozen_parts_do_not_train():
    model = build("gated rnn erf", 8, init=replace(INIT, frozen=frozenset({"embedding", "inputs"})))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"W_E", "W_x"}


@pytest.mark.parametrize("name", ["bag relu", "attention", "linear rnn"])
def test_outputs_are_independent_copies(name):
    """Three read-out rows: the kernel is that of one output on the diagonal, and nothing beside it."""
    found = finite(lambda width, seed: build(name, width, seed, n_outputs=3), 512, 4, outputs="full")
    K = torch.stack([r.kernel.double() for r in found]).mean(0)
    want = torch.einsum("op,nm->nomp", torch.eye(3), kernel_of(build(name, 4))(IDS))
    assert relative(K, want) <= 0.08


def test_centring_keeps_the_kernel():
    model = build("bag relu", 16)
    centred = Centred(model)
    assert not centred(IDS).any()
    assert torch.equal(empirical_ntk(centred, IDS).kernel, empirical_ntk(model, IDS).kernel)
    assert kernel_of(centred).rho == kernel_of(model).rho
    with torch.no_grad():
        model.W_U.mul_(2)
    torch.testing.assert_close(centred(IDS), model(IDS) / 2)


# Honesty about attention


@pytest.mark.parametrize("query_key", ["tied", "separate"])
def test_random_attention_is_refused(query_key, unchecked):
    why = {
        "separate": "with queries and keys of their own, scores keep a variance of order 1 at every width",
        "tied": "with scores E·E/√d, those of different tokens keep a variance of order 1 and those of equal tokens grow with √d",
    }[query_key]
    with pytest.raises(UnsupportedModelError) as error:
        kernel_of(SelfAttention(5, 8, scaling="1/sqrt(d)", query_key=query_key))
    assert str(error.value) == (
        f"scaling='1/sqrt(d)' has no deterministic kernel: {why}, so that the kernel stays a random variable. Average"
        " mechfeat.ntk.empirical_ntk(SelfAttention(...), ids) over several seeds and report its spread, or take scaling='1/d'."
    )
    with pytest.raises(UnsupportedModelError):
        AttentionKernel(scaling="1/sqrt(d)", query_key=query_key)


def test_its_kernel_is_indeed_random_and_that_of_scores_over_d_is_not():
    """Standard deviation over seeds, relative to the mean, at d = 1024."""
    ids = IDS[[0, 2, 3]]

    def spread(scaling):
        def make(width, seed):
            generator = torch.Generator().manual_seed(seed)
            return SelfAttention(6, width, query_key="separate", scaling=scaling, init=InitSpec(), generator=generator)

        kernels = torch.stack([r.kernel.double() for r in finite(make, 1024, 6, ids)])
        return float((kernels.std(0).diagonal() / kernels.mean(0).diagonal()).max()), kernels.mean(0)

    random, _ = spread("1/sqrt(d)")
    steady, mean = spread("1/d")
    assert random > 0.1
    assert steady < 0.1
    assert relative(mean, AttentionKernel(query_key="separate")(ids)) <= 0.05


def test_a_gate_with_a_jump_is_refused(unchecked):
    with pytest.raises(UnsupportedModelError) as error:
        kernel_of(GatedLinearRNN(5, 8, 8, activation="relu"))(pad([[0, 1]]))
    assert str(error.value).startswith("A gated linear RNN with relu has no kernel: k2 of relu is not finite at a=1, b=1, c=1")
    assert str(error.value).endswith(
        "Its gate φ' jumps, which no gradient sees. Take a smooth activation (tanh, gelu, erf), or mechfeat.ntk.empirical_ntk of the finite"
        " network."
    )


@pytest.mark.parametrize("name", FORMS)
def test_parameters_that_train_against_their_init_are_refused(name, unchecked):
    """Frozen or freed by hand, after the model is made: the closed form would have the wrong gradients."""
    for p in (names := dict(build(name, 4).named_parameters())):
        model = build(name, 4)
        dict(model.named_parameters())[p].requires_grad_(False)
        with pytest.raises(UnsupportedModelError, match=f"^{p} does not train, and the model's init says otherwise of its part"):
            kernel_of(model)
    assert {"W_E", "W_U"} <= set(names)
    frozen = build(name, 4, init=replace(INIT, frozen=frozenset({"embedding"})))
    kernel_of(frozen)
    frozen.W_E.requires_grad_()
    with pytest.raises(UnsupportedModelError) as error:
        kernel_of(frozen)
    assert str(error.value) == (
        "W_E trains, and the model's init says otherwise of its part 'embedding'; the kernel would have the wrong gradients. Say what does"
        " not train when the model is made: init=InitSpec(frozen=frozenset({'embedding'}))."
    )


def test_other_modules_are_refused(unchecked):
    with pytest.raises(UnsupportedModelError) as error:
        kernel_of(torch.nn.Linear(2, 2))
    assert str(error.value) == (
        "Linear has no closed-form kernel here; BagMLP, TextCNN, SelfAttention, MixingBlock, BigramMatrixVector, HadamardBigram,"
        " MatrixVectorRNN, LinearRNN, GatedLinearRNN have. Take mechfeat.ntk.empirical_ntk of the network itself."
    )


def test_own_activations_have_one_meaning_on_both_sides():
    def twice(x):
        return torch.tanh(2 * x)

    def make(width, seed):
        return BagMLP(6, width, width, activation=twice, init=INIT, generator=torch.Generator().manual_seed(seed))

    assert relative(mean_kernel(make, 512, 4), kernel_of(make(4, 0))(IDS)) <= 0.06


# The committed rows


def rows(width, seeds):
    """The newest row of each model with as many seeds at least."""
    found = map(json.loads, ROWS.read_text().splitlines())
    return {r["problem"]: r for r in found if r["width"] == width and r["seeds"] >= seeds}


@pytest.mark.parametrize("name", MODELS)
def test_rows_at_width_1024(name):
    row = rows(1024, 48)[name]
    assert row["relative_frobenius"] <= 0.02
    assert row["pearson"] >= 0.999
    assert row["without_embedding"] >= 0.1
    assert row["seconds"] > 0


@pytest.mark.parametrize("name", ["bag relu", "bag gelu", "bag silu"])
def test_rows_without_the_shared_feature_do_not_fit(name):
    assert rows(1024, 48)[name]["without_mu"] >= 0.1


@pytest.mark.parametrize("name", ["bag relu", "cnn 3 relu", "attention value", "mixing attention relu", "linear rnn", "gated rnn erf"])
def test_error_of_one_seed_falls_with_the_root_of_the_width(name):
    widths = [256, 1024, 4096]
    found = [
        next(r for r in map(json.loads, ROWS.read_text().splitlines()) if (r["problem"], r["width"], r["seeds"]) == (name, m, 16))
        for m in widths
    ]
    x = torch.tensor([math.log(m) for m in widths])
    y = torch.tensor([math.log(r["single_seed_error"]) for r in found])
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert slope == pytest.approx(-0.5, abs=0.2)


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["bag relu", "bag tanh", "cnn 3 relu", "attention value", "mixing attention relu", "hadamard", "linear rnn", "gated rnn erf"]
)
def test_48_seeds_at_width_1024(name):
    kernel = kernel_of(build(name, 4))
    found = mean_kernel(lambda width, seed: build(name, width, 1000 + seed), 1024, 48)
    assert relative(found, kernel(IDS)) <= 0.02
    assert torch.corrcoef(torch.stack([found.flatten(), kernel(IDS).flatten()]))[0, 1] >= 0.999
    assert relative(found, frozen(kernel, "embedding")(IDS)) >= 0.1
