"""The null of effects that are measured input by input: its level where there is nothing, and what each half of it is for."""

import pytest
import torch

from mechfeat.circuits.evidence import MIN_INPUTS, partners, relabelled, split_half_agreement


def rate(draw, trials=2000, n_draws=99):
    """How often the largest mean effect, divided by the mean difference as a score is, stands out."""
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(trials):
        effects, control, difference = draw(generator)
        null = relabelled(effects / difference, None if control is None else control / difference, n_draws, generator)
        value = (effects / difference).mean(1).max()
        hits += (1 + int((null >= value).sum())) / (1 + n_draws) <= 0.05
    return hits / trials


def symmetric(g):
    effects = torch.randn(3, 8, generator=g)
    return effects, None, 1.0


def whole(g):
    """One place that carries everything, where clean and corrupted inputs do not differ on average: the score is 1 each time."""
    clean, corrupted = torch.randn(2, 1, 8, generator=g)
    return clean - corrupted, corrupted.roll(1, 1) - corrupted, (clean - corrupted).mean()


def chosen_sign(g):
    """The same without control: the sign of the difference makes the score positive, whichever it is."""
    effects, _, difference = whole(g)
    return effects, None, difference


def harmed(g):
    """No effect on average, where a mismatched activation does harm."""
    return torch.randn(2, 10, generator=g), torch.randn(2, 10, generator=g) - 9, 1.0


def disturbed(g):
    """Any activation but the input's own does the same on average, and much of it."""
    return 5 + torch.randn(2, 10, generator=g), 5 + torch.randn(2, 10, generator=g), 1.0


# 2000 trials at a true rate of 0.05 give more than 0.065 with probability 0.002.
@pytest.mark.parametrize("draw", [symmetric, chosen_sign, whole, harmed, disturbed])
def test_the_level_is_at_most_the_nominal_one(draw):
    assert rate(draw) <= 0.065


def test_each_half_of_the_null_is_needed():
    assert rate(lambda g: (disturbed(g)[0], None, 1.0), trials=50) == 1.0  # no control: a disturbance passes for an effect
    assert rate(lambda g: (disturbed(g)[0], torch.zeros(2, 10), 1.0), trials=50) == 1.0  # and what does more than the control is found


def test_draws_are_the_formula_written_out():
    effects, control = torch.randn(4, 7), torch.randn(4, 7)
    found = relabelled(effects, control, 5, torch.Generator().manual_seed(3))
    signs = torch.randint(2, (5, 7), generator=torch.Generator().manual_seed(3)) * 2 - 1
    for d in range(5):
        rows = []
        for e, c in zip(effects, control):
            swapped = [(e[i] if s > 0 else c[i], c[i] if s > 0 else e[i]) for i, s in enumerate(signs[d])]
            one, two = (torch.stack(side).mean() for side in zip(*swapped))
            rows.append(torch.stack([(signs[d] * e).mean().abs(), one, two]).max())
        torch.testing.assert_close(found[d], torch.stack(rows).max())


def test_more_draws_than_one_block_and_a_floor():
    found = relabelled(torch.randn(2, 9), None, 250, torch.Generator().manual_seed(0), floor=0.4)
    assert len(found) == 250
    assert found.min() == 0.4
    assert (found > 0.4).any()


def test_the_fewest_inputs_can_reach_the_nominal_level():
    """All labellings of n inputs that reach the value of a constant effect: two of them."""
    assert 2 / 2**MIN_INPUTS <= 0.05 < 2 / 2 ** (MIN_INPUTS - 1)


def test_partners_are_a_permutation_without_fixed_points():
    for n in range(2, 12):
        found = partners(n, torch.Generator().manual_seed(n))
        assert sorted(found.tolist()) == list(range(n))
        assert not (found == torch.arange(n)).any()


def test_agreement_of_halves():
    g = torch.Generator().manual_seed(0)
    ones = torch.ones(30)
    assert split_half_agreement(torch.ones(2, 30), ones, g) == pytest.approx(1.0)
    assert split_half_agreement(torch.zeros(2, 30), ones, g) == 0
    assert split_half_agreement(torch.randn(50, 30, generator=g), ones, g) < 0.3  # the winner of one half is nothing in the other
    assert split_half_agreement(torch.ones(1, 3), ones[:3], g) is None
