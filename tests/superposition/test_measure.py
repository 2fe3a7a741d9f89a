import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechfeat.bench.oracles import frames
from mechfeat.bench.oracles import superposition as oracle
from mechfeat.errors import DegenerateNullError, DtypeError, NonFiniteError, OptionError, ShapeError
from mechfeat.features import FeatureSet
from mechfeat.nulls import random_directions
from mechfeat.superposition import SuperpositionFinding, measure
from mechfeat.superposition.jackknife import pseudo_values
from mechfeat.superposition.measure import METRICS
from tests.features.same import assert_same
from tests.strategies import matrices, orthogonal

DIRECTIONAL = [name for name in METRICS if name != "features_per_dimension"]
COMBINATIONS = [
    *((metric, null) for metric in DIRECTIONAL for null in ("random_directions", "shuffled_weights")),
    ("features_per_dimension", "shuffled_weights"),
]


def normal(n, m, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polygon(k):
    angles = torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def unit_rows(W):
    return W / W.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def literal(metric, W):
    if metric == "features_per_dimension":
        return oracle.features_per_dimension(W / W.norm(dim=-1).max())
    if hasattr(frames, metric):
        return torch.tensor(getattr(frames, metric)(W))
    if metric.startswith("mean_"):
        name = {"mean_dimensionality": "feature_dimensionality", "mean_interference": "interference"}[metric]
        return getattr(oracle, name)(unit_rows(W)).mean()
    return getattr(oracle, metric)(unit_rows(W))


@pytest.mark.parametrize(("metric", "null"), COMBINATIONS)
def test_value_is_the_literal_metric_of_normalised_rows(metric, null):
    W = torch.cat([normal(6, 4), torch.zeros(1, 4)])
    finding = measure(W, metric=metric, null=null, n_null=5, n_boot=5)
    assert finding.value == pytest.approx(literal(metric, W).item(), rel=1e-12)


@pytest.mark.parametrize(("metric", "null"), COMBINATIONS)
@settings(max_examples=10)
@given(exponent=st.sampled_from([-900, -100, 100, 900]))
def test_scale_of_the_weights_does_not_matter(metric, null, exponent):
    W = normal(5, 3)
    scaled, plain = (measure(x, metric=metric, null=null, n_null=5, n_boot=5) for x in (W * 2.0**exponent, W))
    assert_same(scaled, plain)


@pytest.mark.parametrize("metric", DIRECTIONAL)
def test_scale_of_single_rows_does_not_matter(metric):
    W = normal(5, 3)
    stretched = W * torch.tensor([1.0, 2.0, 0.25, 8.0, 1.0])[:, None]
    assert_same(measure(stretched, metric=metric, n_null=5, n_boot=5), measure(W, metric=metric, n_null=5, n_boot=5))


@given(st.data())
def test_rotation_changes_neither_value_nor_interval(data):
    W = normal(6, 3)
    Q = data.draw(orthogonal(3))
    one, other = measure(W @ Q, n_null=3, n_boot=20), measure(W, n_null=3, n_boot=20)
    assert one.value == pytest.approx(other.value, rel=1e-10)
    assert one.interval == pytest.approx(other.interval, rel=1e-9)
    torch.testing.assert_close(one.gram, other.gram)
    torch.testing.assert_close(one.null, other.null)


@given(matrices(min_features=2, min_hidden=2, scales=False))
def test_fields_fit_together(W):
    try:
        finding = measure(W, n_null=19, n_boot=9)
    except DegenerateNullError:
        assert ((W != 0).any(-1)).sum() < 2  # one row or none is represented: nothing can overlap
        return
    assert finding.per_feature.mean().item() == pytest.approx(finding.value, abs=1e-12)
    torch.testing.assert_close(finding.gram.diagonal(), (W != 0).any(-1).double())
    assert (finding.gram.abs() <= 1 + 1e-12).all()
    if len(W) < 3:
        assert finding.reliability is None
        assert finding.interval is None
    else:
        assert 0 <= finding.reliability <= 1
        assert finding.interval[0] <= finding.interval[1]


def test_what_is_recorded():
    features = FeatureSet("blocks.0.mlp:pre", normal(6, 3))
    finding = measure(features, metric="effective_rank", null="shuffled_weights", n_null=7, n_boot=8, seed=3)
    assert (finding.hook, finding.n, finding.seed, finding.tail) == ("blocks.0.mlp:pre", 6, 3, "two-sided")
    assert finding.settings == {
        "metric": "effective_rank", "null": "shuffled_weights", "n_null": 7, "n_boot": 8, "unit": "feature"
    }  # fmt: skip
    assert finding.null.shape == (7,)
    assert_same(dataclasses.replace(finding, hook=""), measure(
        features.directions, metric="effective_rank", null="shuffled_weights", n_null=7, n_boot=8, seed=3
    ))  # fmt: skip


def test_seed_decides_every_draw():
    W = normal(6, 3)
    assert_same(measure(W, n_null=9, n_boot=9, seed=1), measure(W, n_null=9, n_boot=9, seed=1))
    assert not torch.equal(measure(W, n_null=9, seed=1).null, measure(W, n_null=9, seed=2).null)


# The null


@pytest.mark.parametrize(("metric", "null"), COMBINATIONS)
def test_random_weights_are_rarely_established(metric, null):
    # At p ≤ 0.05, 60 sets of random weights give 3 on average; 10 or more have probability 0.1 %.
    established = sum(
        measure(normal(12, 4, seed=100 + k), metric=metric, null=null, n_null=79, n_boot=20, seed=k).established for k in range(60)
    )
    assert established < 10


def test_an_arranged_set_is_established():
    finding = measure(polygon(9), n_null=99, n_boot=50)
    assert finding.value == pytest.approx(2 / 9)
    assert finding.value > finding.null.max()
    assert finding.established


def test_a_clustered_set_is_established_on_the_other_side():
    W = torch.ones(20, 6) + 0.3 * normal(20, 6)
    finding = measure(W, n_null=99, n_boot=50)
    assert finding.value < finding.null.min()
    assert finding.established


def test_norm_in_few_features_is_established():
    W = normal(60, 6) * torch.tensor([5.0] * 2 + [0.5] * 58)[:, None]
    finding = measure(W, metric="features_per_dimension", null="shuffled_weights", n_null=99)
    assert finding.value < finding.null.min()


def test_zero_rows_stay_zero_in_the_null():
    # Two represented features among ten: the mean dimensionality of any arrangement of them is at most 2/10.
    W = torch.cat([normal(2, 3), torch.zeros(8, 3)])
    for null in ("random_directions", "shuffled_weights"):
        assert measure(W, null=null, n_null=20, n_boot=5).null.max() <= 0.2 + 1e-12


# Interval and reliability


@pytest.mark.parametrize("metric", ["mean_interference", "mean_dimensionality", "effective_rank", "participation_ratio"])
def test_standard_error_is_the_spread_over_new_features(metric):
    # 60 sets of 40 features: the spread of their values against the mean of the errors that each set reports.
    values, errors = [], []
    for k in range(60):
        W = normal(40, 5, seed=k) * torch.tensor([3.0, 1, 1, 1, 1])
        finding = measure(W, metric=metric, n_null=2, n_boot=400, seed=k)
        values.append(finding.value)
        errors.append((finding.interval[1] - finding.interval[0]) / (2 * 1.96))
    ratio = torch.tensor(errors).mean() / torch.tensor(values).std()
    # The spread of 60 values is known to 9 %; the jackknife is biased upwards by O(1/n).
    assert 0.75 < ratio < 1.35


@pytest.mark.parametrize("metric", ["mean_dimensionality", "relu_energy"])
def test_pseudo_values_are_those_of_the_delete_one_jackknife(metric):
    W = unit_rows(normal(7, 3))
    value = METRICS[metric](W)
    without = torch.stack([METRICS[metric](W[torch.arange(7) != i]) for i in range(7)])
    pseudo, error = pseudo_values(W, METRICS[metric], value, torch.Generator().manual_seed(0))
    torch.testing.assert_close(pseudo.sort().values, (value + 6 * (without.mean() - without)).sort().values)
    # The standard error of their mean is the jackknife's.
    assert error == pytest.approx(float(pseudo.std() / math.sqrt(7)))


def test_interval_contains_the_value():
    # A bootstrap with replacement fails here: copies of a row have overlap 1, others 1/20.
    finding = measure(normal(40, 20), metric="mean_interference", n_null=5, n_boot=400)
    assert finding.interval[0] < finding.value < finding.interval[1]


def test_reliability_by_hand():
    W = normal(7, 3)
    finding = measure(W, metric="mean_interference", n_null=11, n_boot=5)
    without = torch.tensor([literal("mean_interference", W[torch.arange(7) != i]).item() for i in range(7)])
    error_sq = 6 / 7 * (without - without.mean()).square().sum().item()
    signal_sq = (finding.value - finding.null.median().item()) ** 2
    assert finding.reliability == pytest.approx(signal_sq / (signal_sq + error_sq), rel=1e-10)


def test_more_features_than_groups():
    W = normal(520, 3)
    finding = measure(W, metric="features_per_dimension", null="shuffled_weights", n_null=2, n_boot=400)
    # A sum over features: its standard error is √n times the standard deviation of its terms, for any size of group.
    terms = (W / W.norm(dim=-1).max()).square().sum(-1) / 3
    width = finding.interval[1] - finding.interval[0]
    assert width == pytest.approx(2 * 1.96 * 520**0.5 * terms.std().item(), rel=0.15)


# Storage


def test_round_trip(tmp_path):
    finding = measure(FeatureSet("hidden", normal(5, 3)), n_null=9, n_boot=9)
    finding.save(tmp_path / "finding.safetensors")
    assert_same(SuperpositionFinding.load(tmp_path / "finding.safetensors"), finding)


# Messages


def test_norms_under_a_null_that_keeps_them():
    with pytest.raises(DegenerateNullError) as error:
        measure(normal(4, 3), metric="features_per_dimension", null="random_directions")
    assert (
        str(error.value) == "metric='features_per_dimension' takes one and the same value on every draw of null='random_directions': it "
        "depends on row norms alone, and random directions keep them. Use null='shuffled_weights'."
    )
    assert (error.value.metric, error.value.found, error.value.allowed) == (
        "features_per_dimension", "random_directions", ("shuffled_weights",)
    )  # fmt: skip


def test_weights_that_shuffling_cannot_change():
    with pytest.raises(DegenerateNullError) as error:
        measure(torch.ones(4, 3), null="shuffled_weights", n_null=9)
    assert (
        str(error.value) == "metric='mean_dimensionality' takes one and the same value on every draw of null='shuffled_weights': [4, 3] "
        "weights like these leave it nothing to vary. Use null='random_directions'."
    )


def test_one_represented_feature():
    W = torch.zeros(3, 2)
    W[0] = 1.0
    with pytest.raises(DegenerateNullError):
        measure(W, n_null=9)


@pytest.mark.parametrize(
    ("W", "options", "kind", "message"),
    [
        (torch.ones(3, 2), {"metric": "rank"}, OptionError,
         "metric='rank' is not known. It can be 'features_per_dimension', 'effective_rank', 'participation_ratio', "
         "'mean_dimensionality', 'mean_interference', 'mean_squared_overlap', 'frame_potential', 'relu_energy'."),
        (torch.ones(3, 2), {"null": "none"}, OptionError,
         "null='none' is not known. It can be 'random_directions', 'shuffled_weights'."),
        (torch.ones(3, 2), {"n_null": 0}, ShapeError,
         "n_null=0 and n_boot=200: both count draws, and at least one of each is needed."),
        (torch.ones(3), {}, ShapeError,
         "W has shape [3]. A measure of superposition needs [feature hidden] with at least two of each: one feature "
         "overlaps with none, and in one dimension all directions are one. "
         "Measure the instances of a bank one by one."),
        (FeatureSet("conv1", torch.ones(1, 2)), {}, ShapeError,
         "W at 'conv1' has shape [1, 2]. A measure of superposition needs [feature hidden] with at least two of "
         "each: one feature overlaps with none, and in one dimension all directions are one. "
         "Measure the instances of a bank one by one."),
        (torch.ones(3, 2, dtype=torch.long), {}, DtypeError,
         "W is of torch.int64. A measure of superposition needs a floating tensor [feature hidden]."),
        ([[1.0, 2.0]], {}, DtypeError,
         "W is of list. A measure of superposition needs a floating tensor [feature hidden]."),
        (torch.tensor([[1.0, 2.0], [float("inf"), 1.0]]), {}, NonFiniteError,
         "W holds NaN or infinity. `torch.isfinite(W)` shows where."),
    ],
)  # fmt: skip
def test_bad_input(unchecked, W, options, kind, message):
    with pytest.raises(kind) as error:
        measure(W, **options)
    assert str(error.value) == message


def test_random_unit_rows_are_near_their_null():
    W = random_directions(30, 8, generator=torch.Generator().manual_seed(5))
    finding = measure(W, metric="mean_interference", n_null=50, n_boot=50)
    assert finding.value == pytest.approx(29 / 8, rel=0.1)
    assert finding.p_value > 0.05
