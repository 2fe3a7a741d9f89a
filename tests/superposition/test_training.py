"""Training of banks: each instance goes the way that torch alone takes it, however many there are and however they are computed."""

import math

import jaxtyping
import pytest
import torch

from mechfeat.bench.oracles import toy_training as oracle
from mechfeat.data import (
    CorrelatedSets,
    Exact,
    FiniteSample,
    OneHot,
    SparseUniform,
    absolute,
    ands,
    identity,
    universal_and,
)
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Optimizer, Record, Schedule, cross_entropy, feature_dimensionality, fit, grid, lp, mse
from mechfeat.superposition.training.batches import Sampled, steps_of_block

STEPS = 60
SPECS = {
    "tied": (ToySpec(6, 2), "closed"),
    "tied without bias": (ToySpec(6, 2, out_bias=False), "closed"),
    "shifted gelu": (ToySpec(6, 2, activation="gelu", shift=0.5, scale=0.8), "closed"),
    "untied linear": (ToySpec(6, 2, activation="identity", tied=False), "closed"),
    "untied without bias": (ToySpec(6, 3, tied=False, out_bias=False, scale=1.3, shift=0.1), "closed"),
    "hidden relu": (ToySpec(6, 4, hidden_activation="relu", hidden_bias=True), "closed"),
    "untied hidden gelu": (ToySpec(6, 7, tied=False, hidden_activation="gelu"), "closed"),
    "unit rows": (ToySpec(6, 2, unit_norm=True), "autograd"),
    "residual MLP": (ToySpec(6, 2, d_mlp=5), "autograd"),
    "own activation": (ToySpec(6, 2, activation=torch.tanh), "autograd"),
}
LOSSES = {"mse": mse(), "l1": lp(1), "l4": lp(4), "importance": mse(torch.linspace(1.0, 0.2, 6, dtype=torch.float64))}
each_spec = pytest.mark.parametrize(("spec", "way"), SPECS.values(), ids=SPECS.keys())


def single(bank, i):
    spec = bank.spec
    return oracle.SingleToy(
        {name: p[i] for name, p in bank.named_parameters()},
        activation="tanh" if spec.activation is torch.tanh else spec.activation,
        hidden_activation=spec.hidden_activation,
        shift=spec.shift,
        scale=spec.scale,
        unit_norm=spec.unit_norm,
    )


def assert_same_parameters(model, bank, i, **tolerance):
    for name, p in bank.named_parameters():
        torch.testing.assert_close(p[i], model.values[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_fits_as_torch(bank, data, batches, *, lr=0.1, optimizer="sgd", kind="mse", importance=None, **options):
    """Every instance ends, and has the losses on the way, that the oracle has from the same start."""
    singles = [single(bank, i) for i in range(len(bank))]
    run = fit(bank, data, steps=STEPS, lr=lr, optimizer=optimizer, record=Record(5, 10_000), **options)
    for i, model in enumerate(singles):
        rate = (lambda t: lr(t, STEPS)) if isinstance(lr, Schedule) else (lambda t: lr)
        losses = oracle.train(
            model, lambda t, i=i: batches(i, t), steps=STEPS, lr=rate, optimizer=optimizer, kind=kind, importance=importance
        )
        torch.testing.assert_close(run.losses[:-1, i], torch.tensor(losses), rtol=1e-8, atol=1e-12)
        assert_same_parameters(model, bank, i, rtol=1e-8, atol=1e-10)
    assert torch.equal(run.weights[-1], bank.W)
    return run


@each_spec
@pytest.mark.parametrize("gradients", ["auto", "autograd"])
def test_full_batches_of_one_hot_inputs(spec, way, gradients):
    eye = torch.eye(6)
    run = assert_fits_as_torch(ToyBank(spec, 3), OneHot(6), lambda i, t: (eye, eye), gradients=gradients)
    assert run.config["gradients"] == (way if gradients == "auto" else "autograd")


@each_spec
def test_full_batches_of_other_inputs(spec, way):
    x = OneHot(6, k=2).exact().x
    assert_fits_as_torch(ToyBank(spec, 3), OneHot(6, k=2), lambda i, t: (x, x))


@pytest.mark.parametrize(("loss", "kind"), list(zip(LOSSES.values(), ["mse", "l1", "l4", "mse"])), ids=LOSSES.keys())
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("gradients", ["closed", "autograd"])
def test_losses_and_optimisers(loss, kind, optimizer, gradients):
    eye = torch.eye(6)
    assert_fits_as_torch(
        ToyBank(ToySpec(6, 2), 2),
        OneHot(6),
        lambda i, t: (eye, eye),
        lr=0.03,
        optimizer=optimizer,
        loss=loss,
        gradients=gradients,
        kind=kind,
        importance=loss.importance,
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("gradients", ["closed", "autograd"])
def test_cross_entropy(tied, k, gradients):
    x = OneHot(5, k=k).exact().x
    bank = ToyBank(ToySpec(5, 2, activation="identity", tied=tied), 2)
    options = {"loss": cross_entropy(), "gradients": gradients, "lr": Schedule(0.1, 0.5, 0.1)}
    assert_fits_as_torch(bank, OneHot(5, k=k), lambda i, t: (x, x), kind="cross_entropy", **options)


@pytest.mark.parametrize("gradients", ["closed", "autograd"])
def test_importance_without_a_bias(gradients):
    """Without weights the slope of a tied model without bias is symmetric, and its gradient is taken at once; with them it is not."""
    eye, importance = torch.eye(6), torch.linspace(1.0, 0.2, 6)
    bank = ToyBank(ToySpec(6, 2, out_bias=False), 2)
    assert_fits_as_torch(bank, OneHot(6), lambda i, t: (eye, eye), loss=mse(importance), importance=importance, gradients=gradients)


def test_importance_of_each_instance():
    eye, importance = torch.eye(6), torch.rand(3, 6)
    bank = ToyBank(ToySpec(6, 2), 3)
    singles = [single(bank, i) for i in range(3)]
    fit(bank, OneHot(6), steps=STEPS, lr=0.1, loss=mse(importance), chunk=2)
    for i, model in enumerate(singles):
        oracle.train(model, lambda t: (eye, eye), steps=STEPS, lr=lambda t: 0.1, importance=importance[i])
        assert_same_parameters(model, bank, i)


def test_weights_of_inputs_for_each_instance():
    """Two instances with densities of their own, on a list of inputs, against expectations written as repeated rows."""
    x = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.5, 0.0]])
    weight = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    bank = ToyBank(ToySpec(3, 2), 2)
    singles = [single(bank, i) for i in range(2)]
    fit(bank, Exact(3, x, weight), steps=STEPS, lr=0.1, chunk=1)
    for model, rows in zip(singles, ([0, 0, 0, 1], [0, 1])):
        oracle.train(model, lambda t, rows=rows: (x[rows], x[rows]), steps=STEPS, lr=lambda t: 0.1)
    for i in range(2):
        assert_same_parameters(singles[i], bank, i)


@pytest.mark.parametrize(
    ("data", "task"),
    [
        (SparseUniform(6, density=0.05), identity()),
        (SparseUniform(6, density=0.5, low=-1.0), absolute()),
        (CorrelatedSets(6, set_size=2, density=0.3), identity()),
        (OneHot(6, k=3), ands([(0, 1), (2, 5), (3, 4)])),
        (SparseUniform(6, density=torch.tensor([0.0, 0.3, 1.0])), identity()),
        (FiniteSample.draw(SparseUniform(6, density=0.3), 4, generator=torch.Generator().manual_seed(0)), identity()),
    ],
    ids=["rare", "absolute", "sets", "ands", "densities", "finite"],
)
@pytest.mark.parametrize("gradients", ["closed", "autograd"])
def test_sampled_batches(data, task, gradients):
    spec = ToySpec(6, 7, n_outputs=task.n_outputs(6), tied=False, hidden_activation="relu")
    bank = ToyBank(spec, 3)
    streams = [Sampled(data, task, (seed,), i, 8, bank.W) for i, seed in enumerate(bank.seeds)]

    def batches(i, t):
        found = streams[i](t)
        return found.x[0], found.y[0]

    assert_fits_as_torch(bank, data, batches, optimizer="adam", lr=0.01, task=task, gradients=gradients, batch=8, chunk=2)


@pytest.mark.parametrize("data", [OneHot(20), SparseUniform(20, density=0.05)], ids=["one-hot", "sampled"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("gradients", ["closed", "autograd"])
def test_an_instance_does_not_know_of_its_bank(data, optimizer, gradients):
    """Check 1: instance k within a bank of 100 and alone, 1,000 float64 steps."""
    options = {
        "steps": 1000,
        "lr": Schedule(0.01, 1.0, 0.1) if optimizer == "sgd" else 0.003,
        "optimizer": optimizer,
        "batch": None if isinstance(data, OneHot) else 16,
        "gradients": gradients,
        "record": Record(2, 2),
    }
    many = 100 if gradients == "closed" else 20
    together = fit(ToyBank(ToySpec(20, 3), many), data, **options)
    for seed in (0, 7, many - 1):
        alone = fit(ToyBank(ToySpec(20, 3), seeds=[seed]), data, **options)
        assert (together.weights[-1, seed] - alone.weights[-1, 0]).abs().max() <= 1e-6
        assert (alone.weights[-1] - alone.weights[0]).abs().max() > 0.1


@pytest.mark.parametrize("batch", [None, 8])
@pytest.mark.parametrize("spec", [ToySpec(6, 2), ToySpec(6, 2, d_mlp=3)], ids=["closed", "autograd"])
def test_chunks_change_nothing(spec, batch):
    runs = [fit(ToyBank(spec, 11), OneHot(6), steps=100, lr=0.5, batch=batch, chunk=chunk) for chunk in (1, 4, 11, "auto")]
    for run in runs[1:]:
        for name, value in run.parameters.items():
            torch.testing.assert_close(value, runs[0].parameters[name], rtol=0, atol=1e-13)
        torch.testing.assert_close(run.losses, runs[0].losses, rtol=0, atol=1e-13)
    assert [run.config["chunk"] for run in runs] == [1, 4, 11, 11]


def test_streams_hold_whole_rounds_and_differ_between_instances():
    data = OneHot(20)
    assert steps_of_block(data, 8) % 5 == 0
    stream = Sampled(data, identity(), (0, 1), 0, 8, torch.zeros(1))
    blocks = torch.stack([stream(t).x.sum(1) for t in range(0, steps_of_block(data, 8) + 5)])
    for first in range(0, len(blocks) - 4, 5):
        assert bool((blocks[first : first + 5].sum(0) == 2).all())
    assert not torch.equal(stream(0).x[0], stream(0).x[1])
    again = stream(3).x.clone()
    stream(steps_of_block(data, 8) + 1)
    assert torch.equal(stream(3).x, again)


def test_long_lists_are_looked_up_and_not_copied(monkeypatch):
    """997 inputs of 300 features in batches of 64 come in rounds of 997 batches: 19 million numbers an instance."""
    data = FiniteSample.draw(SparseUniform(300, density=0.1), 997, generator=torch.Generator().manual_seed(0), normalise=True)
    looked_up = Sampled(data, identity(), (3, 5), 0, 64, torch.zeros(1))
    assert looked_up.drawn.numel() == 997 * 64 * 2
    monkeypatch.setattr("mechfeat.superposition.training.batches.LONG", 2**40)
    copied = Sampled(data, identity(), (3, 5), 0, 64, torch.zeros(1))
    assert all(torch.equal(looked_up(t).x, copied(t).x) for t in (0, 1, 500, 996, 997))


def test_schedules():
    rates = Schedule(0.001, 5.0, 2.0)
    assert rates(0, 1000) == 0.001
    assert rates(25, 1000) == pytest.approx((0.001 + 5) / 2)
    assert rates(50, 1000) == 5.0
    assert rates(525, 1000) == pytest.approx(math.sqrt(10))
    assert rates(1000, 1000) == pytest.approx(2.0)
    assert rates(300, 1000) / rates(299, 1000) == pytest.approx(rates(800, 1000) / rates(799, 1000))
    cosine = Schedule(0.0, 1.0, 0.0, decay="cosine", warmup=0.0, steps=100)
    assert [cosine(t, 1000) for t in (0, 50, 100, 500)] == pytest.approx([1.0, 0.5, 0.0, 0.0])


def directions(W, degrees=15):
    """Number of groups of rows of a plane, a gap of some degrees between one and the next."""
    angles = torch.atan2(W[:, 1], W[:, 0]).sort().values * 180 / math.pi
    gaps = torch.cat([angles.diff(), angles[:1] + 360 - angles[-1:]])
    return int((gaps > degrees).sum())


@pytest.fixture(scope="module")
def pentagons():
    """Final weights ``[instance feature hidden]`` and their losses, in float64. Unchecked, since 40,000 steps of checks take a minute."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    bank = ToyBank(ToySpec(100, 2, out_bias=False), seeds=range(1, 11), dtype=torch.float32)
    run = fit(bank, OneHot(100), steps=40_000, lr=Schedule(0.02, 3.0, 1.0), record=Record(2, 2))
    jaxtyping.config.update("jaxtyping_disable", before)
    W = run.weights.double()
    return W, ((W @ W.mT).relu() - torch.eye(100, dtype=torch.float64)).square().mean((2, 3)), run


def test_ten_seeds_find_the_pentagon(pentagons):
    """Check 3: 100 features in two dimensions end in five directions, with the closed form's effective number of features."""
    weights, losses, run = pentagons
    W, k_eff = weights[-1], 100 - 100**2 * losses[-1]
    assert [directions(w) for w in W] == [5] * 10
    assert (k_eff - 4.1982).abs().max() <= 0.0005
    assert (W.square().sum((1, 2)) / 5 - 4 / (7 - math.sqrt(5))).abs().max() <= 0.001
    torch.testing.assert_close(feature_dimensionality(W).sum(1), torch.full((10,), 2.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(run.final_loss.double(), losses[-1], rtol=1e-6, atol=0)


def test_the_ledger_of_one_hot_data(pentagons):
    """Check 4, in small: the effective number of features is the squared norm of the weights, and it is not before training."""
    weights, losses, _ = pentagons
    k_eff, norms = 100 - 100**2 * losses, weights.square().sum((2, 3))
    assert ((k_eff - norms) / norms)[-1].abs().max() <= 0.003
    assert ((k_eff - norms) / norms)[0].abs().min() > 0.1


K_EFF = {2: 4.198, 3: 6.418, 4: 8.721, 5: 11.349, 6: 13.615, 7: 15.940, 8: 18.291, 9: 20.646, 10: 23.124}


@pytest.mark.full
@pytest.mark.parametrize("d", K_EFF)
def test_the_ledger_in_more_dimensions(unchecked, d):
    """Checks 4 and 5: 100 features, ten seeds, 40,000 steps; the effective numbers are those of an independent run."""
    bank = ToyBank(ToySpec(100, d, out_bias=False), seeds=range(1, 11), dtype=torch.float32)
    run = fit(bank, OneHot(100), steps=40_000, lr=Schedule(0.02, 3.0, 1.0), record=Record(2, 2))
    W = run.weights[-1].double()
    k_eff = 100 - ((W @ W.mT).relu() - torch.eye(100)).square().sum((1, 2))
    norms = W.square().sum((1, 2))
    assert ((k_eff - norms) / norms).abs().max() <= 0.003
    assert abs(float(k_eff.mean()) / K_EFF[d] - 1) <= 0.01
    assert bool(((feature_dimensionality(W).sum(1) - d).abs() <= 0.005 * d).all())


def test_the_absolute_value_takes_one_neuron_for_each_sign():
    """Check 13, in small: three inputs and six hidden neurons, the best of twenty seeds."""
    bank = ToyBank(ToySpec(3, 6, tied=False, hidden_activation="relu"), 20, dtype=torch.float32)
    data = SparseUniform(3, density=0.5, low=-1.0)
    run = fit(bank, data, task=absolute(), steps=3000, batch=128, optimizer="adam", lr=Schedule(0.01, 0.01, 1e-4), record=Record(2, 20))
    assert run.final_loss.min() < 1e-5
    W = run.best().bank().W[0]
    active = W.abs() > 0.1
    assert active.sum(0).tolist() == [1] * 6
    assert (W > 0.1).sum(1).tolist() == [1] * 3
    assert (W < -0.1).sum(1).tolist() == [1] * 3


def test_grids_train_each_setting():
    bank = grid(ToySpec(4, 2), over={"density": [0.0, 0.1, 1.0], "seed": [0, 1]}, dtype=torch.float32)
    data = SparseUniform(4, density=bank.along("density"))
    run = fit(bank, data, steps=50, lr=0.1, batch=32, optimizer=Optimizer("adamw", weight_decay=0.1))
    losses = run.labelled(run.final_loss)
    assert losses.shape == (3, 2)
    assert bool((losses[0] < 1e-3).all())
    assert bool((losses[2] > losses[1]).all())


@pytest.mark.parametrize("optimizer", [Optimizer("sgd", weight_decay=-0.5), Optimizer("adamw", weight_decay=0.5)])
def test_weight_decay_multiplies(optimizer):
    """Where there is no gradient, decay alone acts."""
    bank = ToyBank(ToySpec(3, 2, out_bias=False), 2)
    before = bank.W.detach().clone()
    fit(bank, SparseUniform(3, density=0.0), steps=10, lr=0.1, batch=4, optimizer=optimizer)
    torch.testing.assert_close(bank.W.detach(), before * (1 - 0.1 * optimizer.weight_decay) ** 10)


def test_all_pairs():
    data, task = OneHot(4, k=2), universal_and(4)
    bank = ToyBank(ToySpec(4, 8, n_outputs=6, tied=False, activation="identity", hidden_activation="relu", hidden_bias=True), 5)
    run = fit(bank, data, task=task, steps=1500, lr=0.01, optimizer="adam", record=Record(2, 2))
    assert run.final_loss.min() < 1e-3
