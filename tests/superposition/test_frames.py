"""Frames, units, activations and the ledger: literal forms, bounds, known cases, zero rows."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat import superposition
from mechfeat.bench.oracles import frames as oracle
from mechfeat.errors import OptionError, ShapeError
from mechfeat.nulls import random_directions
from mechfeat.superposition import (
    adversarial_vulnerability,
    capacity,
    coherence,
    concept_separability,
    effective_features,
    feature_dimensionality,
    feature_norm,
    features_per_dimension,
    features_per_unit,
    frame_potential,
    interference,
    interference_matrix,
    k_eff,
    mean_squared_overlap,
    monosemantic,
    one_hot_loss,
    polysemanticity,
    polytope,
    relu_energy,
    superposition_ratio,
    tightness,
    welch_bound,
    welch_gap,
)
from tests.strategies import batched_matrices, matrices, orthogonal

FRAMES = {f.__name__: f for f in (coherence, welch_bound, frame_potential, relu_energy, mean_squared_overlap)}
ROTATION_FREE = (*FRAMES.values(), welch_gap, tightness)
UNITS = {f.__name__: f for f in (polysemanticity, features_per_unit)}


def polygon(k):
    angles = torch.arange(k) * (2 * math.pi / k)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


# The literal forms


@pytest.mark.parametrize(
    "metric", [*ROTATION_FREE, superposition.participation_ratio, features_per_dimension, features_per_unit, polysemanticity]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_features_in_sixteen_bits(metric, dtype):
    """Sums over pairs of 1,500 features pass the largest float16; the measures do not."""
    W = torch.randn(1500, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = metric(W)
    assert found.dtype == dtype
    # The entries of the unit rows carry a rounding each, and so does the result.
    torch.testing.assert_close(found.double(), metric(W.double()), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", FRAMES)
@given(W=matrices())
def test_frames_match_the_definition(name, W):
    assert FRAMES[name](W).item() == pytest.approx(getattr(oracle, name)(W), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("name", UNITS)
@given(W=matrices())
def test_units_match_the_definition(name, W):
    assert UNITS[name](W).tolist() == pytest.approx(getattr(oracle, name)(W), rel=1e-11, abs=1e-13)


@given(A=matrices())
def test_effective_features_match_the_definition(A):
    assert effective_features(A).item() == pytest.approx(oracle.effective_features(A), rel=1e-11)


@given(W=matrices(max_features=4, max_hidden=3, scales=False))
def test_the_attack_matches_the_definition(W):
    x = torch.rand(3, len(W))
    b = torch.randn(len(W)) / 5
    assert adversarial_vulnerability(W, b, x, epsilon=0.3).item() == pytest.approx(
        oracle.adversarial_vulnerability(W, b, x, 0.3), rel=1e-9, abs=1e-9
    )


@given(W=matrices(scales=False))
def test_the_one_hot_loss_matches_the_definition(W):
    U, b = torch.randn_like(W), torch.randn(len(W))
    assert one_hot_loss(W, U=U, b=b).item() == pytest.approx(oracle.one_hot_loss(W, U, b), rel=1e-11)
    assert one_hot_loss(W, shift=0.5).item() == pytest.approx(oracle.one_hot_loss(W, W, torch.full((len(W),), 0.5)), rel=1e-11)


@given(W=matrices(max_features=5))
def test_singular_values_give_the_tightness(W):
    unit = torch.nn.functional.normalize(W / W.abs().max().clamp_min(1e-300), dim=-1, eps=1e-300)
    sigma = torch.linalg.svdvals(unit)
    filled = len(W) >= W.shape[1] and sigma[0] > 0 and sigma[-1] > 1e-7 * sigma[0]
    assert tightness(W).item() == pytest.approx((sigma[-1] / sigma[0]).square().item() if filled else 0.0, abs=1e-12)


# Properties


@pytest.mark.parametrize("metric", [*ROTATION_FREE, *UNITS.values(), monosemantic, effective_features, feature_norm, capacity])
@given(W=batched_matrices())
def test_instances_are_independent(metric, W):
    flat = W.reshape(-1, *W.shape[-2:])
    found = metric(W)
    for one, w in zip(found.reshape(len(flat), *found.shape[W.ndim - 2 :]), flat):
        torch.testing.assert_close(one, metric(w), rtol=1e-11, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("metric", ROTATION_FREE)
@given(data=st.data())
def test_neither_rotation_nor_scale_nor_order_matters(metric, data):
    W = data.draw(matrices(scales=False))
    Q = data.draw(orthogonal(W.shape[-1]))
    order = torch.tensor(data.draw(st.permutations(range(len(W)))))
    lengths = torch.rand(len(W), 1) + 0.5
    found, want = metric((W * lengths)[order] @ Q), metric(W)
    if metric is welch_gap and welch_bound(W) == 0:  # infinity or 1, and rounding decides between them
        return
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@given(matrices())
def test_bounds(W):
    n = int((W != 0).any(-1).sum())
    m = W.shape[-1]
    assert 0 <= coherence(W) <= 1
    assert coherence(W) >= welch_bound(W) - 1e-12
    assert n == 0 or frame_potential(W) >= 1 - 1e-12
    assert frame_potential(W) <= min(n, m) + 1e-12
    assert 0 <= tightness(W) <= 1 + 1e-12
    assert 0 <= relu_energy(W) <= n * (n - 1) + 1e-9
    assert n <= m or mean_squared_overlap(W) >= (n - m) / (m * (n - 1)) - 1e-12
    assert ((polysemanticity(W) >= 0) & (polysemanticity(W) <= 1 - 1 / len(W) + 1e-12)).all()
    assert (features_per_unit(W) <= len(W) + 1e-9).all()


@given(matrices())
def test_capacity_is_dimensionality(W):
    # Check 2: the formula of Scherlis et al., literally.
    rows = W / W.abs().max().clamp_min(1e-300)
    gram = rows @ rows.T
    own = gram.diagonal().square()
    want = torch.where(own > 0, own / gram.square().sum(-1).clamp_min(1e-300), 0.0)
    torch.testing.assert_close(capacity(W), want, rtol=0, atol=1e-12)
    assert torch.equal(capacity(W), feature_dimensionality(W))


@given(matrices(scales=False))
def test_interference_is_a_row_of_its_matrix(W):
    matrix = interference_matrix(W)
    torch.testing.assert_close(matrix.diagonal(), feature_norm(W))
    off = matrix - torch.diag(matrix.diagonal())
    torch.testing.assert_close(off.square().sum(-1), interference(W), rtol=1e-9, atol=1e-9)


# Known cases


@pytest.mark.parametrize("name", ["digon", "triangle", "tetrahedron", "4-simplex"])
def test_a_simplex_meets_the_welch_bound(name):
    assert welch_gap(polytope(name)).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ["digon", "triangle", "tetrahedron", "pentagon", "square antiprism", "square"])
def test_polytopes_are_tight_frames(name):
    W = polytope(name)
    assert frame_potential(W).item() == pytest.approx(1, abs=1e-12)
    assert tightness(W).item() == pytest.approx(1, abs=1e-12)


def test_random_directions_overlap_by_one_over_m():
    W = random_directions(800, 12, generator=torch.Generator().manual_seed(0))
    # (ŵ·ŵ')² has variance 2(m−1)/(m²(m+2)) = 0.011, and there are 320,000 pairs: 1 % is 4.5 standard errors.
    assert mean_squared_overlap(W).item() == pytest.approx(1 / 12, rel=0.01)


@pytest.mark.parametrize(("k", "count"), [(4, 4.0000), (5, 4.1982), (6, 4.0000), (7, 3.9382), (8, 4.0000), (9, 4.0287)])
def test_effective_count_of_polygons(k, count):
    # The closed form: every corner of length s^(1/2) with s = 1 / (1 + E/k) is at rest, and k s features are recovered.
    s = 1 / (1 + relu_energy(polygon(k)) / k)
    assert (k * s).item() == pytest.approx(count, abs=5e-5)
    W = torch.cat([polygon(k) * s.sqrt(), torch.zeros(13, 2)])
    assert k_eff(one_hot_loss(W), len(W)).item() == pytest.approx((k * s).item(), abs=1e-12)
    assert W.square().sum().item() == pytest.approx((k * s).item(), abs=1e-12)


def test_the_pentagon_in_closed_form():
    s = 4 / (7 - math.sqrt(5))
    W = polygon(5) * math.sqrt(s)
    assert k_eff(one_hot_loss(W), 5).item() == pytest.approx(5 * s, abs=1e-12)
    # Sharing a direction among features changes nothing: the loss sees the summed squared norm alone.
    shared = torch.cat([W * 0.6, W * 0.8])
    assert k_eff(one_hot_loss(shared), 10).item() == pytest.approx(5 * s, abs=1e-12)


def test_loss_of_a_perfect_and_of_an_absent_model():
    assert k_eff(one_hot_loss(torch.eye(6)), 6) == 6
    assert k_eff(one_hot_loss(torch.zeros(6, 2)), 6).item() == pytest.approx(0, abs=1e-12)
    assert one_hot_loss(torch.zeros(3, 6, 2)).shape == (3,)


def test_separability_of_two_known_distributions():
    # Concept 0 is below, concept 1 is above in half of its samples: JSD = ln 2 − ..., by hand from the two histograms.
    A = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1])[:, None]
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])

    def H(*p):
        return -sum(x * math.log(x) for x in p if x)

    want = math.sqrt((H(0.75, 0.25) - 0.5 * H(1.0) - 0.5 * H(0.5, 0.5)) / math.log(2))
    assert concept_separability(A, labels, bins=2).item() == pytest.approx(want, abs=1e-12)


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(2, 4))
def test_separability_matches_the_definition(seed, bins, concepts):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(24) % concepts
    A = torch.relu(torch.randn(24, 2, generator=g) + labels[:, None] / 2)  # many equal zeros
    want = oracle.concept_separability(A, labels.tolist(), bins)
    assert concept_separability(A, labels, bins=bins).tolist() == pytest.approx(want, abs=1e-7)


@given(st.integers(0, 1000))
def test_separability_of_relabelled_and_rescaled_units(seed):
    g = torch.Generator().manual_seed(seed)
    A, labels = torch.randn(30, 3, generator=g), torch.randint(0, 3, (30,), generator=g)
    labels[:3] = torch.arange(3)
    found = concept_separability(A, labels, bins=5)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(concept_separability(A.exp(), 7 - 2 * labels, bins=5), found)  # any rising function, any names
    order = torch.randperm(30, generator=g)
    torch.testing.assert_close(concept_separability(A[order], labels[order], bins=5), found)


def test_ratio_of_features_to_neurons():
    assert superposition_ratio(torch.eye(8), 2).item() == pytest.approx(4, abs=1e-12)


# Zero rows, NaN, layout, gradients


def test_zero_rows_do_not_count():
    W = polytope("triangle")
    padded = torch.cat([W, torch.zeros(3, 2)])
    for metric in ROTATION_FREE:
        torch.testing.assert_close(metric(padded), metric(W), rtol=1e-12, atol=1e-13)
    assert [metric(torch.zeros(3, 2)).item() for metric in ROTATION_FREE] == [0, 0, 0, 0, 0, 1, 0]
    assert polysemanticity(torch.zeros(3, 2)).tolist() == [0, 0]
    assert effective_features(torch.zeros(3, 2)) == 0
    assert capacity(torch.zeros(3, 2)).tolist() == [0, 0, 0]


def test_orthogonal_and_not():
    assert welch_gap(torch.eye(3)) == 1
    assert welch_gap(torch.tensor([[1.0, 0.0], [1.0, 1.0]])) == math.inf


@pytest.mark.parametrize("metric", [coherence, frame_potential, relu_energy, mean_squared_overlap, welch_gap, polysemanticity])
def test_nan_is_not_hidden(metric):
    assert metric(torch.tensor([[1.0, 0.0], [float("nan"), 1.0], [0.5, 0.5]])).isnan().any()


@pytest.mark.parametrize(
    "metric", [frame_potential, relu_energy, mean_squared_overlap, effective_features, features_per_unit, feature_norm]
)
def test_gradients_are_finite_beside_a_zero_row(metric):
    W = torch.tensor([[1.0, 0.2], [0.0, 0.0], [-0.5, 0.9]], requires_grad=True)
    (grad,) = torch.autograd.grad(metric(W).sum(), W)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("metric", [*ROTATION_FREE, *UNITS.values(), capacity])
def test_float32_follows_float64(metric):
    W = torch.randn(7, 3)
    # Cosines carry a few roundings, and the eigenvalues of a 3 × 3 matrix as many.
    torch.testing.assert_close(metric(W.float()).double(), metric(W), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", [*ROTATION_FREE, *UNITS.values(), monosemantic])
def test_no_features_or_no_dimensions(metric, unchecked):
    with pytest.raises(ShapeError) as error:
        metric(torch.ones(0, 2))
    assert (
        str(error.value) == "W has shape [0, 2]. Superposition is measured on [feature hidden], after any instance axes, with at "
        "least one feature and one hidden dimension."
    )


def test_errors_say_what_is_right(unchecked):
    with pytest.raises(ShapeError) as error:
        concept_separability(torch.ones(3, 2), torch.tensor([0, 1]))
    assert str(error.value) == "2 labels for 3 samples. Give one concept a sample."
    with pytest.raises(ShapeError) as error:
        concept_separability(torch.ones(3, 2), torch.tensor([1, 1, 1]))
    assert str(error.value) == "1 concepts and bins=16. Separability compares at least two concepts over at least two bins."
    with pytest.raises(ShapeError) as error:
        effective_features(torch.ones(0, 2))
    assert str(error.value) == "A has shape [0, 2]. Activations are [sample feature], with at least one of each."
    with pytest.raises(ShapeError) as error:
        superposition_ratio(torch.ones(2, 2), 0)
    assert str(error.value) == "n_dimensions=0. Give the number of neurons or channels of the layer, at least 1."
    with pytest.raises(ShapeError) as error:
        k_eff(torch.tensor(0.1), 0)
    assert str(error.value) == "n_features=0. Give the number of features, at least 1."
    with pytest.raises(OptionError) as error:
        adversarial_vulnerability(torch.eye(2), torch.zeros(2), torch.zeros(1, 2))
    assert str(error.value) == "epsilon=0.0 is not known. It can be 'a positive length'."


METRICS = [
    *FRAMES.values(), *UNITS.values(), welch_gap, tightness, monosemantic, effective_features, superposition_ratio, concept_separability,
    adversarial_vulnerability, capacity, feature_norm, interference, interference_matrix, feature_dimensionality,
    features_per_dimension, superposition.effective_rank, superposition.participation_ratio, superposition.count_directions,
    superposition.direction_curve, superposition.feature_graph,
]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS, ids=lambda f: f.__name__)
def test_each_metric_says_whether_it_is_for_real_networks(metric):
    assert "Real networks:" in inspect.getdoc(metric)
    assert "Returns:" in inspect.getdoc(metric)


@pytest.mark.parametrize("metric", [k_eff, one_hot_loss])
def test_toy_metrics_say_so(metric):
    assert "Toy models only" in inspect.getdoc(metric)
