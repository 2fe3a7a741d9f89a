"""Banks: each instance is the model that it would be alone."""

import math

import pytest
import torch

import mechfeat as mf
from mechfeat.bench.oracles.toy_training import SingleToy
from mechfeat.errors import OptionError, ShapeError
from mechfeat.models import ToyBank, ToySpec

SPECS = {
    "tied": ToySpec(5, 2),
    "no bias": ToySpec(5, 2, out_bias=False),
    "shift and scale": ToySpec(5, 2, shift=1.0, scale=0.5),
    "gelu": ToySpec(5, 3, activation="gelu"),
    "untied": ToySpec(5, 2, tied=False, activation="identity"),
    "hidden relu": ToySpec(3, 6, tied=False, hidden_activation="relu", hidden_bias=True),
    "other outputs": ToySpec(4, 3, n_outputs=6, tied=False, hidden_activation="gelu"),
    "unit rows": ToySpec(5, 2, unit_norm=True, scale=0.7),
    "residual MLP": ToySpec(5, 2, d_mlp=7),
    "own activation": ToySpec(5, 2, activation=torch.tanh),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def single(bank, i):
    """The oracle with the weights of one instance."""
    spec = bank.spec
    activation = "tanh" if spec.activation is torch.tanh else spec.activation
    options = {"hidden_activation": spec.hidden_activation, "shift": spec.shift, "scale": spec.scale, "unit_norm": spec.unit_norm}
    return SingleToy({name: p[i] for name, p in bank.named_parameters()}, activation=activation, **options)


@each_spec
def test_outputs_are_those_of_single_models(spec):
    bank = ToyBank(spec, 4)
    shared, own = torch.randn(7, spec.n_features), torch.randn(4, 7, spec.n_features)
    for i in range(4):
        torch.testing.assert_close(bank(shared)[i], single(bank, i)(shared))
        torch.testing.assert_close(bank(own)[i], single(bank, i)(own[i]))


@each_spec
@pytest.mark.parametrize("init", ["linear", "xavier"])
def test_a_seed_means_one_set_of_weights_in_every_bank(spec, init):
    large, small = ToyBank(spec, 50, init=init), ToyBank(spec, seeds=[31, 7], init=init)
    for (name, a), (_, b) in zip(large.named_parameters(), small.named_parameters()):
        assert torch.equal(a[[31, 7]], b), name
        assert not a.any() or not torch.equal(a[0], a[1]), name


def test_a_seed_means_one_set_of_weights_in_every_dtype():
    wide, narrow = ToyBank(ToySpec(5, 2), 3), ToyBank(ToySpec(5, 2), 3, dtype=torch.float32)
    assert torch.equal(wide.W.float(), narrow.W)


def test_linear_initial_weights_are_those_of_nn_linear():
    torch.manual_seed(7)
    embed = torch.nn.Linear(5, 2, bias=False, dtype=torch.float32)
    unembed = torch.nn.Linear(2, 5, dtype=torch.float32)
    bank = ToyBank(ToySpec(5, 2, tied=False), seeds=[7], dtype=torch.float32)
    assert torch.equal(bank.W[0], embed.weight.T)
    assert torch.equal(bank.U[0], unembed.weight)
    assert torch.equal(bank.b[0], unembed.bias)


def test_an_mlp_begins_as_nn_linear_does():
    torch.manual_seed(7)
    layers = [torch.nn.Linear(a, b, dtype=torch.float32) for a, b in ((9, 2), (2, 30), (30, 2))]
    bank = ToyBank(ToySpec(9, 2, hidden_bias=True, d_mlp=30), seeds=[7], dtype=torch.float32)
    values = [(bank.W, bank.b_hidden), (bank.W_in, bank.b_in), (bank.W_out, bank.b_out)]
    for layer, (weight, bias) in zip(layers, values):
        assert torch.equal(weight[0], layer.weight.T)
        assert torch.equal(bias[0], layer.bias)


def test_the_bias_of_a_tied_model_takes_the_features_as_fan_in():
    b = ToyBank(ToySpec(100, 2), 200).b
    assert b.abs().max() <= 1 / math.sqrt(100)
    torch.testing.assert_close(b.std(), torch.tensor(0.1 / math.sqrt(3)), rtol=0.02, atol=0)


def test_the_initial_scale_does_not_depend_on_the_number_of_instances():
    """The trap: xavier_normal_ on three axes gives 0.0226, 0.0218 and 0.0183 for 1, 10 and 100 instances of 200 by 20."""
    for n in (1, 10, 100):
        std = ToyBank(ToySpec(200, 20), seeds=range(100, 100 + n), init="xavier").W.std(dim=(1, 2)).mean()
        torch.testing.assert_close(std, torch.tensor(math.sqrt(2 / 220)), rtol=0.03 if n == 1 else 0.01, atol=0)
    assert not ToyBank(ToySpec(5, 2), init="xavier").b.any()


def test_given_weights():
    W = torch.randn(5, 2)
    bank = ToyBank(ToySpec(5, 2, tied=False), 3, init=W)
    assert torch.equal(bank.W, W.expand(3, 5, 2))
    assert torch.equal(bank.U, bank.W)
    assert not bank.b.any()
    with torch.no_grad():
        bank.W[0] = 0
    assert bool(bank.W[1].any())
    named = ToyBank(ToySpec(5, 2), 3, init={"b": torch.ones(3, 5)})
    assert bool((named.b == 1).all())
    assert not named.W.any()


def test_hook_points():
    bank = ToyBank(ToySpec(5, 2, shift=1.0), 3)
    x = torch.rand(4, 5)
    out, cache = mf.HookedModel(bank).run_with_cache(x)
    assert {"features", "hidden", "pre", "out"} <= set(cache)
    assert torch.equal(cache["features"], x)
    torch.testing.assert_close(cache["hidden"], x @ bank.W)
    torch.testing.assert_close(cache["pre"], x @ bank.W @ bank.W.mT + bank.b[:, None] + 1)
    assert torch.equal(cache["out"], out)
    assert torch.equal(out, cache["pre"].relu())
    with mf.HookedModel(bank).hooks(fwd_hooks=[("hidden", lambda a, hook: a * 0)]) as model:
        torch.testing.assert_close(model(x), (bank.b + 1).relu()[:, None].expand(3, 4, 5))
    assert torch.equal(bank(x), out)


def test_parts_of_a_bank_are_copies():
    bank = ToyBank(ToySpec(5, 2), seeds=[4, 8, 15])
    x = torch.rand(6, 5)
    assert len(bank[1]) == 1
    assert bank[1].seeds == (8,)
    assert torch.equal(bank[-1](x)[0], bank(x)[2])
    assert bank[1:].seeds == (8, 15)
    assert bank[[2, 0]].seeds == (15, 4)
    assert torch.equal(bank[[2, 0]].b, bank.b[[2, 0]])
    with torch.no_grad():
        bank[0].W.zero_()
    assert bool(bank.W[0].any())


def test_labels_of_axes():
    importance = [(1.0, 1.0), (1.0, 0.5), (1.0, 0.1)]
    bank = mf.superposition.grid(ToySpec(2, 1), over={"importance": importance, "density": [0.1, 0.9], "seed": [3, 5]})
    assert len(bank) == 12
    assert bank.seeds == (3, 5) * 6
    assert bank.along("density").tolist() == [0.1, 0.1, 0.9, 0.9] * 3
    assert bank.along("importance")[4:8].tolist() == [[1.0, 0.5]] * 4
    assert mf.superposition.grid(ToySpec(2, 1), over={"density": [0.1, 0.9]}).seeds == (0, 0)


def test_moves_to_another_dtype_with_its_biases():
    bank = ToyBank(ToySpec(5, 2), 2).float()
    assert {p.dtype for p in bank.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ToySpec(0, 2), ShapeError, "ToySpec was asked for n_features=0. A toy model has at least one of each."),
        (lambda: ToySpec(2, 0), ShapeError, "ToySpec was asked for n_hidden=0. A toy model has at least one of each."),
        (
            lambda: ToySpec(2, 1, n_outputs=0, tied=False),
            ShapeError,
            "ToySpec was asked for n_outputs=0. A toy model has at least one of each.",
        ),
        (
            lambda: ToySpec(2, 1, d_mlp=-1),
            ShapeError,
            "ToySpec was asked for d_mlp=-1. It is a number of neurons, 0 for no MLP.",
        ),
        (
            lambda: ToySpec(2, 3),
            ShapeError,
            "n_hidden=3 is more than n_features=2: a linear hidden layer holds every feature in 2 dimensions, and the rest would be idle. "
            "Take n_hidden <= 2, or set hidden_activation for a model that computes in its hidden layer.",
        ),
        (
            lambda: ToySpec(3, 2, n_outputs=4),
            ShapeError,
            "A tied model reads its outputs along the directions of its 3 features, so it cannot have 4 outputs. Set tied=False.",
        ),
        (
            lambda: ToySpec(3, 2, activation="rulu"),
            OptionError,
            "activation='rulu' is not known. It can be 'relu', 'gelu', 'identity', 'a function of a tensor'.",
        ),
        (
            lambda: ToySpec(3, 2, hidden_activation="rulu"),
            OptionError,
            "hidden_activation='rulu' is not known. It can be 'relu', 'gelu', 'identity', 'a function of a tensor'.",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), 0),
            ShapeError,
            "The bank was asked for no instance. Give n_instances of at least 1, or the seeds of at least one.",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), 2, seeds=[1, 2, 3]),
            ShapeError,
            "n_instances=2, and 3 seeds were given. Give one of the two, or as many seeds.",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), 5, axes={"density": (0.1, 0.2), "seed": (0, 1)}),
            ShapeError,
            "The axes (density 2 x seed 2) label another number of instances than the 5 of the bank.",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), init="kaiming"),
            OptionError,
            "init='kaiming' is not known. It can be 'linear', 'xavier', 'a tensor', 'a mapping of names to tensors'.",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), 4, init=torch.zeros(2, 3)),
            ShapeError,
            "The initial W has shape [2, 3]; [3, 2] or [4, 3, 2] would fit.",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), init={"U": torch.zeros(3, 2)}),
            ShapeError,
            "init names ['U'], and this model has the parameters ['W', 'b'].",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), 4)(torch.zeros(5, 4)),
            ShapeError,
            "x has shape [5, 4]. This bank takes [sample 3], the same for all instances, or [4 sample 3].",
        ),
        (
            lambda: ToyBank(ToySpec(3, 2), 4)(torch.zeros(2, 5, 3)),
            ShapeError,
            "x has shape [2, 5, 3]. This bank takes [sample 3], the same for all instances, or [4 sample 3].",
        ),
        (lambda: ToyBank(ToySpec(3, 2), 4)[4], ShapeError, "Instance 4 was asked for, of 4."),
        (lambda: ToyBank(ToySpec(3, 2), 4)[4:], ShapeError, "slice(4, None, None) selects no instance of the bank."),
        (lambda: ToyBank(ToySpec(3, 2), 4).along("density"), OptionError, "axis='density' is not known. It can be 'seed'."),
        (
            lambda: mf.superposition.grid(ToySpec(3, 2), over={"density": []}),
            ShapeError,
            "The grid has no label on 'density'. Give each axis at least one label.",
        ),
        (
            lambda: mf.superposition.grid(ToySpec(3, 2), over={}),
            ShapeError,
            "The grid has no axis. Give each axis at least one label.",
        ),
    ],
)
def test_what_is_refused(unchecked, make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message
