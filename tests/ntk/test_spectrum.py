"""Effective ranks and alignment against their definitions and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mechfeat.errors import DegenerateNullError, DtypeError, NonFiniteError, ShapeError
from mechfeat.models import mlp
from mechfeat.ntk import AlignmentFinding, Spectrum, empirical_ntk, label_alignment, spectrum
from mechfeat.nulls import permuted_labels


def psd(n, rank, seed=0):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(n, rank, generator=g)
    return A @ A.T


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_spectrum_matches_the_definitions(rank, n, seed):
    K = psd(n, rank, seed)
    found = spectrum(K)
    p = torch.linalg.svdvals(K)[: min(rank, n)]
    p = p / p.sum()
    assert found.rank == min(rank, n)
    assert found.effective_rank == pytest.approx(math.exp(-sum(float(q) * math.log(float(q)) for q in p)))
    assert found.participation_ratio == pytest.approx(float(K.trace() ** 2 / K.square().sum()))
    assert 1 - 1e-12 <= found.participation_ratio <= found.effective_rank * (1 + 1e-12) <= found.rank * (1 + 1e-11)
    if rank >= n:
        assert found.condition_number == pytest.approx(float(torch.linalg.cond(K)), rel=1e-6)
    else:
        assert found.condition_number == math.inf


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_equal_eigenvalues(scale):
    found = spectrum(scale * torch.eye(5))
    assert (found.rank, found.effective_rank, found.participation_ratio, found.condition_number) == pytest.approx((5, 5, 5, 1))


def test_zero_kernel():
    found = spectrum(torch.zeros(3, 3))
    assert (found.rank, found.effective_rank, found.participation_ratio, found.condition_number) == (0, 0.0, 0.0, math.inf)


def test_rounding_of_float32_is_no_rank():
    K = psd(20, 3).float()
    assert spectrum(K).rank == 3
    assert spectrum(K).condition_number == math.inf


def test_of_a_result(tmp_path):
    result = empirical_ntk(mlp([5, 4, 3], nn.Tanh), torch.randn(6, 5))
    found = spectrum(result)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(result.matrix()).flip(0))
    found.save(tmp_path / "spectrum.safetensors")
    after = Spectrum.load(tmp_path / "spectrum.safetensors")
    assert torch.equal(after.eigenvalues, found.eigenvalues)
    assert after.rounding == found.rounding


# Alignment


def literal(K, Y, centred):
    """From the definition: sums over pairs."""
    n = len(K)
    L = Y @ Y.T
    if centred:
        H = torch.eye(n) - 1 / n
        K, L = H @ K @ H, H @ L @ H
    return float((K * L).sum() / (K.square().sum().sqrt() * L.square().sum().sqrt()))


@given(st.integers(4, 9), st.booleans(), st.integers(0, 99))
def test_alignment_matches_the_definition(n, centred, seed):
    K, g = psd(n, 3, seed), torch.Generator().manual_seed(seed + 1)
    y = torch.randn(n, 2, generator=g)
    found = label_alignment(K, y, centred=centred, n_null=3)
    assert found.value == pytest.approx(literal(K, y, centred))
    classes = torch.arange(n) % 3
    one_hot = F.one_hot(classes).double()
    assert label_alignment(K, classes * 5 - 1, centred=centred, n_null=3).value == pytest.approx(literal(K, one_hot, centred))
    without = torch.stack([torch.arange(n) != i for i in range(n)])
    influence = [found.value - literal(K[k][:, k], y[k], centred) for k in without]
    torch.testing.assert_close(found.influence, torch.tensor(influence))


@pytest.mark.parametrize("centred", [True, False])
def test_null_is_the_alignment_of_permuted_labels(centred):
    K, y = psd(8, 4), torch.arange(8) % 3
    found = label_alignment(K, y, centred=centred, n_null=5, seed=4)
    orders = permuted_labels(torch.arange(8), 5, generator=torch.Generator().manual_seed(4))
    want = [literal(K, F.one_hot(y[o]).double(), centred) for o in orders]
    torch.testing.assert_close(found.null, torch.tensor(want))


def test_a_constant_part_hides_in_the_uncentred_value():
    y = torch.arange(30) % 2
    K = psd(30, 30) / 30 + 10.0
    assert label_alignment(K, y, centred=False).value > 0.7  # two classes of equal size: half of Y is constant
    assert not label_alignment(K, y, centred=False).established
    assert abs(label_alignment(K, y).value) < 0.4
    assert not label_alignment(K, y).established


def test_a_kernel_that_knows_the_labels_is_established():
    y = torch.arange(40) % 2
    g = torch.Generator().manual_seed(0)
    features = torch.randn(40, 10, generator=g) + 1.5 * (2 * y[:, None] - 1)
    found = label_alignment(features @ features.T, y)
    assert found.established
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.interval[0] > float(found.null.max())


def test_false_alarms():
    # p ≤ 0.05 in 5 % of independent labels; 200 trials leave a standard error of 1.5 points
    g, alarms = torch.Generator().manual_seed(0), 0
    for trial in range(200):
        A = torch.randn(12, 6, generator=g)
        y = torch.randint(0, 2, (12,), generator=g)
        if int(y.sum()) in (0, 12):
            continue
        alarms += label_alignment(A @ A.T, y, n_null=99, seed=trial).p_value <= 0.05
    assert alarms <= 0.1 * 200


def test_interval_covers():
    # The standard error is that of drawing samples: intervals of draws cover the value of a large draw at about their level.
    g = torch.Generator().manual_seed(0)

    def draw(n):
        y = torch.randint(0, 2, (n,), generator=g)
        A = torch.randn(n, 5, generator=g) + 0.7 * (2 * y[:, None] - 1)
        return A @ A.T, y

    K, y = draw(1500)
    truth = literal(K, F.one_hot(y).double(), True)
    covered = 0
    for _ in range(60):
        low, high = label_alignment(*draw(60), n_null=1).interval
        covered += low <= truth <= high
    assert covered >= 0.85 * 60


def test_groups_of_many_samples():
    y = torch.arange(600) % 2
    features = torch.randn(600, 5) + (2 * y[:, None] - 1)
    found = label_alignment(features @ features.T, y, n_null=19)
    assert found.interval[0] < found.value < found.interval[1]
    assert int(found.influence.isnan().sum()) == 0


def test_of_a_result_of_any_outputs(tmp_path):
    net, x, y = mlp([5, 4, 3], nn.Tanh), torch.randn(9, 5), torch.arange(9) % 3
    values = [label_alignment(empirical_ntk(net, x, outputs=o), y) for o in ("full", "trace", "diagonal")]
    assert values[1].value == pytest.approx(values[0].value)
    assert values[2].value == pytest.approx(values[0].value)
    values[0].save(tmp_path / "f.safetensors")
    after = AlignmentFinding.load(tmp_path / "f.safetensors")
    assert after.summary() == values[0].summary()
    assert torch.equal(after.null, values[0].null)


def test_few_samples():
    found = label_alignment(psd(3, 3), torch.tensor([0, 1, 1]))
    assert (found.interval, found.reliability, found.established) == (None, None, False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("error", "message", "f"),
    [
        (ShapeError, "A spectrum needs a square kernel of a batch with itself; this one is (2, 3).", lambda: spectrum(torch.ones(2, 3))),
        (ShapeError, "A spectrum needs a square kernel of a batch with itself; this one is (0, 0).", lambda: spectrum(torch.ones(0, 0))),
        (
            ShapeError,
            "A spectrum needs a kernel of a batch with itself; this one differs from its transpose. Compute it without x2.",
            lambda: spectrum(torch.ones(3, 3).triu()),
        ),
        (DtypeError, "A spectrum needs a floating kernel; this is of torch.int64.", lambda: spectrum(torch.ones(3, 3).long())),
        (DtypeError, "An alignment needs a floating kernel; this is of list.", lambda: label_alignment([1.0], torch.ones(3))),
        (
            NonFiniteError,
            "A spectrum needs finite numbers; this kernel holds NaN or infinity.",
            lambda: spectrum(torch.full((2, 2), float("nan"))),
        ),
        (NonFiniteError, "y holds NaN or infinity.", lambda: label_alignment(psd(3, 3), torch.full((3,), float("nan")))),
        (
            DtypeError,
            "y is of list. Labels are integers, truth values or real targets.",
            lambda: label_alignment(psd(3, 3), [0, 1, 1]),
        ),
        (
            ShapeError,
            "y has shape [4] and dtype torch.int64. A kernel over 3 samples needs labels [3], or real targets [3, k].",
            lambda: label_alignment(psd(3, 3), torch.arange(4)),
        ),
        (
            ShapeError,
            "n=2 samples and n_null=200. Permuting labels takes at least three samples and one permutation.",
            lambda: label_alignment(psd(2, 2), torch.arange(2)),
        ),
        (
            DegenerateNullError,
            (
                "metric='label_alignment' takes one and the same value on every draw of null='permuted_labels': all labels are equal. "
                "The metric alone, without a null, still exists."
            ),
            lambda: label_alignment(psd(4, 3), torch.ones(4)),
        ),
        (
            DegenerateNullError,
            (
                "metric='label_alignment' takes one and the same value on every draw of null='permuted_labels': the kernel is zero, up to "
                "rounding and centring. The metric alone, without a null, still exists."
            ),
            lambda: label_alignment(torch.ones(4, 4), torch.arange(4) % 2),
        ),
    ],
)
def test_refusals(error, message, f):
    with pytest.raises(error) as caught:
        f()
    assert str(caught.value) == message
