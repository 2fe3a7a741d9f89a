import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.bench.oracles import superposition as oracle
from mechfeat.errors import NonFiniteError, ShapeError
from mechfeat.nulls import random_directions
from mechfeat.superposition import (
    effective_rank,
    feature_dimensionality,
    features_per_dimension,
    interference,
    participation_ratio,
)
from tests.strategies import batched_matrices, matrices, orthogonal

METRICS = {f.__name__: f for f in (feature_dimensionality, interference, features_per_dimension, effective_rank, participation_ratio)}
PER_FEATURE = ("feature_dimensionality", "interference")
SCALE_FREE = ("feature_dimensionality", "effective_rank", "participation_ratio")
every_metric = pytest.mark.parametrize("name", METRICS)


def polygon(k):
    angles = torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)


# Agreement with the literal forms


@every_metric
@given(W=matrices())
def test_matches_the_definition(name, W):
    expected = getattr(oracle, name)(W).to(W.device)
    # Rounding of 6 features and 5 dimensions is a few 1e-16 of the value, or of the largest term where terms cancel.
    scale = W.abs().max().item() ** 2 if name not in SCALE_FREE else 1.0
    torch.testing.assert_close(METRICS[name](W), expected, rtol=1e-11, atol=1e-14 * scale)


@every_metric
@given(W=batched_matrices())
def test_instances_are_independent(name, W):
    flat = W.reshape(-1, *W.shape[-2:])
    found = METRICS[name](W)
    assert found.shape == W.shape[: -1 if name in PER_FEATURE else -2]
    for one, w in zip(found.reshape(len(flat), *found.shape[W.ndim - 2 :]), flat):
        torch.testing.assert_close(one, METRICS[name](w), rtol=1e-12, atol=0)


def test_singular_values_of_the_oracle():
    # diag(3, 2) between two rotations; torch agrees with the values that went in, and so must the oracle.
    W = polygon(8)[1:3] @ torch.diag(torch.tensor([3.0, 2.0])) @ polygon(12)[[1, 4]]
    expected = torch.linalg.svdvals(W).tolist()
    assert oracle.singular_values(W) == pytest.approx(expected, rel=1e-13)


# Properties


@every_metric
@given(data=st.data())
def test_rotating_the_hidden_space_changes_nothing(name, data):
    W = data.draw(matrices(scales=False))
    Q = data.draw(orthogonal(W.shape[-1]))
    torch.testing.assert_close(METRICS[name](W @ Q), METRICS[name](W), rtol=1e-9, atol=1e-11)


@every_metric
@given(data=st.data())
def test_permuting_features_permutes_the_result(name, data):
    W = data.draw(matrices(scales=False))
    order = torch.tensor(data.draw(st.permutations(range(len(W)))))
    expected = METRICS[name](W)[order] if name in PER_FEATURE else METRICS[name](W)
    torch.testing.assert_close(METRICS[name](W[order]), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SCALE_FREE)
@given(W=matrices(scales=False), exponent=st.sampled_from([-1000, -500, 500, 1000]))
def test_scale_free_at_any_scale(name, W, exponent):
    # Powers of two scale without rounding, so the results are equal to the last bit.
    assert torch.equal(METRICS[name](W * 2.0**exponent), METRICS[name](W))


@pytest.mark.parametrize("name", ["interference", "features_per_dimension"])
@given(W=matrices(scales=False), exponent=st.sampled_from([-400, 400]))
def test_quadratic_in_the_scale(name, W, exponent):
    assert torch.equal(METRICS[name](W * 2.0**exponent), METRICS[name](W) * 4.0**exponent)


@given(matrices())
def test_dimensionality_is_a_fraction_and_totals_at_most_the_rank(W):
    D = feature_dimensionality(W)
    assert (D >= 0).all()
    assert (D <= 1 + 1e-12).all()
    assert D.sum() <= torch.linalg.matrix_rank(W) + 1e-9


@pytest.mark.parametrize("name", ["effective_rank", "participation_ratio"])
@given(W=matrices())
def test_ranks_lie_between_one_and_the_rank(name, W):
    rank = torch.linalg.matrix_rank(W)
    assert min(1, rank) - 1e-9 <= METRICS[name](W) <= rank + 1e-9


@given(matrices(scales=False))
def test_effective_rank_is_at_least_the_participation_ratio_of_the_singular_values(W):
    # Rényi entropies fall with their order: exp(H₁(p)) ≥ 1/Σp² = (Σσ)²/Σσ².
    sigma = torch.linalg.svdvals(W)
    assert effective_rank(W) * sigma.square().sum() >= sigma.sum().square() * (1 - 1e-9)


@given(matrices(zeros=False))
def test_dimensionality_and_interference_say_the_same_of_own_norm(W):
    norm_sq = (W / W.abs().max()).square().sum(-1)
    shared = interference(W / W.abs().max())
    torch.testing.assert_close(feature_dimensionality(W), norm_sq / (norm_sq + shared))


@given(matrices(zeros=False))
def test_participation_ratio_of_unit_rows_is_given_by_interference(W):
    unit = torch.nn.functional.normalize(W, dim=-1, eps=1e-300)
    torch.testing.assert_close(participation_ratio(unit), len(unit) / (1 + interference(unit).mean()))


# Known cases


@pytest.mark.parametrize(
    ("W", "dimensionality"),
    [
        (torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), 1 / 2),
        (polygon(3), 2 / 3),
        (polygon(5), 2 / 5),
        (TETRAHEDRON, 3 / 4),
        (torch.eye(4, dtype=torch.float64), 1.0),
    ],
    ids=["antipodal pair", "triangle", "pentagon", "tetrahedron", "basis"],
)
def test_polytopes(W, dimensionality):
    W = W.to(torch.get_default_device())
    torch.testing.assert_close(feature_dimensionality(W), torch.full((len(W),), dimensionality), rtol=1e-12, atol=1e-12)


def test_orthogonal_rows_of_one_length_have_full_rank():
    W = 3 * torch.eye(4, 7)
    for metric in (effective_rank, participation_ratio):
        torch.testing.assert_close(metric(W), torch.tensor(4.0))
    torch.testing.assert_close(features_per_dimension(W), torch.tensor(36 / 7))
    assert torch.equal(interference(W), torch.zeros(4))


def test_two_singular_values_by_hand():
    W = torch.diag(torch.tensor([3.0, 1.0]))
    # p = (3/4, 1/4): exp(H) = 4 / 3^(3/4). λ = (9, 1): 100/82.
    torch.testing.assert_close(effective_rank(W), torch.tensor(4 / 3**0.75))
    torch.testing.assert_close(participation_ratio(W), torch.tensor(100 / 82))


def test_random_directions_interfere_by_one_over_m():
    W = random_directions(400, 20, generator=torch.Generator().manual_seed(0))
    # (n-1)/m = 19.95; 79,800 pairs of variance 2·19/(20²·22) make the standard error of the mean 0.093.
    assert interference(W).mean() == pytest.approx(399 / 20, abs=0.4)


# Zero rows, short rows, gradients


@every_metric
def test_zero_matrix_gives_zero(name):
    assert torch.equal(METRICS[name](torch.zeros(3, 2)), torch.zeros(3) if name in PER_FEATURE else torch.tensor(0.0))


@every_metric
def test_zero_rows_change_nothing_for_the_others(name):
    W = torch.randn(4, 3)
    padded = torch.cat([W, torch.zeros(2, 3)])
    found, expected = METRICS[name](padded), METRICS[name](W)
    if name in PER_FEATURE:
        assert torch.equal(found[4:], torch.zeros(2))
        found = found[:4]
    torch.testing.assert_close(found, expected)


@every_metric
@given(W=matrices(scales=False))
def test_gradient_is_finite(name, W):
    W = W.requires_grad_()
    METRICS[name](W).sum().backward()
    assert torch.isfinite(W.grad).all()


@every_metric
@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e-80])
def test_gradient_is_finite_beside_zero_and_short_rows(name, scale):
    W = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [scale, -scale, scale]], requires_grad=True)
    METRICS[name](W).sum().backward()
    assert torch.isfinite(W.grad).all()


@every_metric
def test_gradient_is_the_slope(name):
    W = torch.randn(2, 4, 3, requires_grad=True)
    assert torch.autograd.gradcheck(METRICS[name], W)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_too_short_for_their_squares_own_nothing(dtype):
    # In float32, squares of 3e-23 round to multiples of 1.4e-45, and the quotient of two such numbers can be 2.
    for exponent in range(-40, -10):
        W = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=dtype)
        W[1] *= 3 * 10.0**exponent
        D = feature_dimensionality(W)
        assert (1 + 4 * torch.finfo(dtype).eps >= D).all()
    assert feature_dimensionality(torch.tensor([[1.0, 0.0], [0.0, 1e-30]], dtype=torch.float32)).tolist() == [1.0, 0.0]


def test_interference_along_a_short_row():
    W = torch.tensor([[1.0, 0.0], [1e-200, 1e-200]])
    assert interference(W).tolist() == pytest.approx([0.0, 0.5], abs=1e-15)


@every_metric
def test_nan_is_not_hidden(name):
    W = torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    if name == "effective_rank":
        with pytest.raises(NonFiniteError) as error:
            effective_rank(W)
        assert (
            str(error.value)
            == "W, of shape [2, 2], holds NaN or infinity, and its singular values do not exist. `torch.isfinite(W)` shows where."
        )
    else:
        assert METRICS[name](W).isnan().all()


# float32, bfloat16, layout


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_follows_the_oracle(name, dtype):
    W = torch.randn(6, 4).to(dtype)
    found = METRICS[name](W)
    assert found.dtype == dtype
    # Sums of squares of six and four terms: a few roundings each, in eps; torch adds up bfloat16 in float32.
    expected = getattr(oracle, name)(W).to(found.device)
    torch.testing.assert_close(found.double(), expected, rtol=16 * torch.finfo(dtype).eps, atol=0)


@every_metric
def test_strides_do_not_matter(name):
    W = torch.randn(5, 3, 2).permute(2, 1, 0)
    torch.testing.assert_close(METRICS[name](W), METRICS[name](W.contiguous()), rtol=1e-13, atol=0)


@every_metric
@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 0)])
def test_no_features_or_no_dimensions(name, shape, unchecked):
    with pytest.raises(ShapeError) as error:
        METRICS[name](torch.ones(shape))
    assert (
        str(error.value) == f"W has shape {list(shape)}. Superposition is measured on [feature hidden], after any instance axes, with at "
        "least one feature and one hidden dimension."
    )
