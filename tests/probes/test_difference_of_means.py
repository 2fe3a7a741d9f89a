import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mechfeat.errors import DtypeError, NonFiniteError, OptionError, ShapeError
from mechfeat.features import Samples, load
from mechfeat.probes import auroc, difference_of_means


def table(x, positions=1, hook="hidden"):
    n = len(x)
    return Samples(x.repeat_interleave(positions, 0), torch.arange(n).repeat_interleave(positions), hook, n)


def planted(n=80, channels=6, strength=3.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4 == 0
    direction = torch.nn.functional.one_hot(torch.tensor(2), channels).double()
    return torch.randn(n, channels, generator=g, dtype=torch.float64) + strength * labels[:, None] * direction, labels


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_agrees_with_scikit_learn(rows):
    scores = torch.tensor([float(s) for s, _ in rows])
    labels = torch.tensor([k for _, k in rows])
    if labels.all() or not labels.any():
        with pytest.raises(ShapeError):
            auroc(scores, labels)
    else:
        assert float(auroc(scores, labels)) == pytest.approx(roc_auc_score(labels.numpy(), scores.numpy()), abs=1e-12)


def test_direction_is_the_difference_of_the_training_means():
    x, labels = planted()
    found = difference_of_means(table(x), labels, holdout=0.25, n_null=5, n_boot=5)
    # The held-out rows are recovered from their projections, which are distinct.
    projected = x @ found.feature.unit
    held_out = torch.tensor([bool((projected[i] - found.scores).abs().min() < 1e-12) for i in range(len(x))])
    assert int(held_out.sum()) == 20
    want = x[~held_out & labels].mean(0) - x[~held_out & ~labels].mean(0)
    torch.testing.assert_close(found.feature.direction, want)
    assert found.value == pytest.approx(roc_auc_score(labels[held_out].numpy(), projected[held_out].numpy()))


def test_a_planted_direction_is_established_and_noise_is_not():
    x, labels = planted()
    found = difference_of_means(table(x), labels)
    assert found.established
    assert found.feature.unit[2] > 0.8
    assert found.interval[0] <= found.value <= found.interval[1]
    noise = torch.randn(80, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert not difference_of_means(table(noise), labels).established


def test_false_positives_stay_at_the_level_of_the_test():
    labels = torch.arange(40) % 2 == 0
    noise = [torch.randn(40, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(60)]
    p = [difference_of_means(table(x), labels, n_null=60, n_boot=1, seed=s).p_value for s, x in enumerate(noise)]
    # 60 draws at level 0.05 exceed 8 with probability below 1e-2.
    assert sum(v <= 0.05 for v in p) <= 8


def test_positions_of_one_input_are_no_evidence():
    """Copying every row sixteen times must not sharpen the null: permutations go by input."""
    x, labels = planted(strength=0.6, n=40)
    single, copied = (difference_of_means(table(x, k), labels, n_null=100, n_boot=100) for k in (1, 16))
    torch.testing.assert_close(single.null.sort().values, copied.null.sort().values)
    assert single.value == pytest.approx(copied.value)
    assert single.interval == pytest.approx(copied.interval)
    assert single.n == copied.n == 40


def test_same_seed_same_finding_and_other_seed_other_split():
    x, labels = planted(strength=0.5)
    a, b, c = (difference_of_means(table(x), labels, seed=s) for s in (0, 0, 1))
    assert (a.value, a.interval, a.reliability) == (b.value, b.interval, b.reliability)
    assert torch.equal(a.null, b.null)
    assert not torch.equal(a.feature.direction, c.feature.direction)


def test_round_trip(tmp_path):
    found = difference_of_means(table(planted()[0]), planted()[1], name="planted")
    found.save(tmp_path / "finding.safetensors")
    back = load(tmp_path / "finding.safetensors")
    assert type(back) is type(found)
    assert (back.value, back.interval, back.n, back.seed, back.settings, back.feature.name) == (
        found.value,
        found.interval,
        found.n,
        found.seed,
        found.settings,
        "planted",
    )
    assert torch.equal(back.feature.direction, found.feature.direction)
    assert torch.equal(back.null, found.null)


def test_errors(unchecked):
    x, labels = planted(n=12)
    cases = [
        (
            (table(x), labels.long()),
            {},
            DtypeError,
            "labels are torch.int64; they must be boolean, True where the property is present. Compare, for instance digit == 3.",
        ),
        (
            (table(x, 3), labels.repeat_interleave(3)),
            {},
            ShapeError,
            "labels have shape (36,) for 12 inputs at 'hidden'. Give one label an input, not one a row.",
        ),
        ((table(x), labels), {"holdout": 1.0}, OptionError, "holdout=1.0 is not known. It can be 'a share between 0 and 1'."),
        (
            (table(x), torch.arange(12) < 3),
            {},
            ShapeError,
            "3 of 12 inputs are positive. At least four of each kind are needed, to split, permute and halve them.",
        ),
        (
            (table(x.index_fill(0, torch.tensor([1]), torch.nan)), torch.arange(12) < 6),
            {},
            NonFiniteError,
            "The samples of 'hidden' hold NaN or infinity.",
        ),
    ]
    for args, options, kind, message in cases:
        with pytest.raises(kind) as error:
            difference_of_means(*args, **options)
        assert str(error.value) == message
