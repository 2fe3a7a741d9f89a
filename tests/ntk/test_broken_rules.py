"""Every deliberately broken rule is caught where the proof sees all samples, most where it sees a few, and nothing right is."""

import pytest
import torch

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import ProofError
from mechfeat.ntk import empirical_ntk
from mechfeat.ntk.rules import registry
from tests.ntk.broken import BROKEN, MODELS, RIGHT, model
from tests.ntk.layers import LAYERS
from tests.ntk.test_exact import OUTPUTS, assert_exact, reduced
from tests.ntk.zoo import ZOO

FEW = 4  # samples that are all looked at
every_break = pytest.mark.parametrize("name", BROKEN)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
]


def literal(net, x1, x2):
    return sum(oracle.empirical_ntk(net, x1, x2).values())


def caught(parameter, want, net, x1, x2, outputs, seed=0):
    """Whether a broken rule is found out; if so, the kernel has to be right all the same."""
    try:
        result = empirical_ntk(net, x1, x2, outputs=outputs, prove="always", seed=seed)
    except ProofError:
        return True
    row = {c.parameter: c for c in result.coverage}[parameter]
    if row.path == "rule":
        return False
    assert row.path == "exact"
    assert row.detail.startswith("its rule failed the proof (relative gap ")
    assert_exact(result.kernel, reduced(want, outputs), 1e-12 if want.dtype == torch.float64 else 5e-6)
    return True


def draw(name, seed, dtype, n=8):
    """A model and batches of it, its kernel, and one choice of outputs and sides."""
    net, x1, x2 = model(BROKEN[name][0], n, seed, dtype)
    x2 = x2 if seed % 2 else None
    return literal(net, x1, x2), net, x1, x2, OUTPUTS[seed % 3]


def test_there_are_fifty():
    assert len(BROKEN) == 50
    assert {key for key, _, _ in BROKEN.values()} == set(MODELS)


@every_break
def test_every_one_is_caught_on_all_samples(name, monkeypatch):
    key, parameter, break_it = BROKEN[name]
    net, x1, x2 = model(key, FEW)
    wants = {other: literal(net, x1, other) for other in (None, x2)}
    break_it(monkeypatch)
    for other, want in wants.items():
        for outputs in OUTPUTS:
            assert caught(parameter, want, net, x1, other, outputs), (outputs, other is None)


@every_break
def test_they_are_wrong_without_the_proof(name, monkeypatch):
    # else the others would hold for want of an error
    net, x1, x2 = model(BROKEN[name][0])
    wants = {other: literal(net, x1, other) for other in (None, x2)}
    BROKEN[name][2](monkeypatch)
    for other, want in wants.items():
        for outputs in OUTPUTS:
            found = empirical_ntk(net, x1, other, outputs=outputs, prove="never").kernel
            gap, scale = (found - reduced(want, outputs)).abs().max(), want.abs().max()
            assert not gap <= 1e-9 * scale


@pytest.mark.parametrize("key", RIGHT)
def test_rules_written_here_are_right_until_broken(key, monkeypatch):
    net, x1, x2 = model(key)
    RIGHT[key](monkeypatch)
    for other in (None, x2):
        result = empirical_ntk(net, x1, other, prove="always", strict=True)
        assert {c.path for c in result.coverage} == {"rule"}
        assert_exact(result.kernel, literal(net, x1, other))


def rates(seeds, dtype, patch):
    """Share of the draws in which each broken rule is caught by the default proof: four of eight samples, and one form of all."""
    found = {}
    for name, (_, parameter, break_it) in BROKEN.items():
        drawn = [draw(name, seed, dtype) for seed in seeds]
        with patch.context() as inside:
            inside.setattr(registry, "_RULES", dict(registry._RULES))
            break_it(inside)
            found[name] = sum(caught(parameter, *d, seed=seed) for seed, d in zip(seeds, drawn)) / len(seeds)
    return found


def assert_nine_in_ten(found):
    mean = sum(found.values()) / len(found)
    if mean < 0.9:
        missed = ", ".join(f"{name} ({rate:.0%})" for name, rate in found.items() if rate < 1)
        raise AssertionError(f"the default proof caught {mean:.1%} of the draws; missed: {missed}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_most_are_caught_by_the_default_proof(dtype, monkeypatch):
    assert_nine_in_ten(rates(range(2), dtype, monkeypatch))


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_most_are_caught_by_the_default_proof_in_many_draws(dtype, monkeypatch):
    assert_nine_in_ten(rates(range(20), dtype, monkeypatch))


# Right rules

CONTRACT = {**ZOO, **{f"layer: {name}": case for name, case in LAYERS.items()}}


def assert_no_alarm(case, seed, dtype):
    net, x1, x2 = case.build(seed)
    net, x1, x2 = net.to(dtype), *(x.to(dtype) if x.is_floating_point() else x for x in (x1, x2))
    result = empirical_ntk(net, x1, x2 if seed % 2 else None, outputs=OUTPUTS[seed % 3], prove="always", seed=seed)
    assert [c for c in result.coverage if c.detail.startswith("its rule failed")] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("key", MODELS)
def test_no_false_alarm(key, dtype, monkeypatch):
    RIGHT.get(key, lambda patch: None)(monkeypatch)
    for seed in range(6):
        net, x1, x2 = model(key, 7, seed, dtype)
        result = empirical_ntk(net, x1, x2 if seed % 2 else None, outputs=OUTPUTS[seed % 3], prove="always", seed=seed)
        assert [c for c in result.coverage if c.path == "exact" and c.detail.startswith("its rule failed")] == []


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CONTRACT)
def test_no_false_alarm_in_many_draws(name, dtype):
    for seed in range(7):  # over all models more than 700 draws, for each dtype
        assert_no_alarm(CONTRACT[name], seed, dtype)


def test_many_draws_are_many():
    assert 7 * len(CONTRACT) >= 700
