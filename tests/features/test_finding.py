import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.errors import OptionError
from mechfeat.features import Finding

NAN = float("nan")
NULL = torch.arange(1.0, 100.0, dtype=torch.float64)  # 1, 2, …, 99


@pytest.mark.parametrize(
    ("value", "tail", "p"),
    [
        (100.0, "greater", 0.01),
        (99.0, "greater", 0.02),  # a tie counts against the finding
        (0.0, "greater", 1.0),
        (0.0, "less", 0.01),
        (1.0, "less", 0.02),
        (100.0, "less", 1.0),
        (100.0, "two-sided", 0.02),
        (0.0, "two-sided", 0.02),
        (50.0, "two-sided", 1.0),
    ],
)
def test_p_value_by_hand(value, tail, p):
    assert Finding(value=value, n=1, seed=0, null=NULL, tail=tail).p_value == pytest.approx(p)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.integers(-6, 6))
def test_tails_are_mirror_images(null, value):
    null = torch.tensor(null, dtype=torch.float64)
    p = {
        tail: Finding(value=sign * value, n=1, seed=0, null=sign * null, tail=tail).p_value
        for tail, sign in (("greater", 1.0), ("less", -1.0), ("two-sided", 1.0))
    }
    assert p["greater"] == p["less"]
    assert 0 < p["greater"] <= 1
    assert p["greater"] == (1 + sum(x >= value for x in null.tolist())) / (1 + len(null))
    assert p["greater"] <= p["two-sided"] or p["two-sided"] < 1
    assert p["two-sided"] <= 1


@pytest.mark.parametrize("null", [None, torch.empty(0)])
def test_no_null_no_p_value(null):
    finding = Finding(value=1.0, n=1, seed=0, null=null, reliability=1.0)
    assert finding.p_value is None
    assert not finding.established


@pytest.mark.parametrize(
    ("value", "null", "reliability", "established"),
    [
        (100.0, NULL, 0.5, True),
        (95.0, NULL, 0.9, False),  # p = 0.06
        (96.0, NULL, 0.9, True),  # p = 0.05
        (100.0, NULL, 0.49, False),
        (100.0, NULL, None, False),
        (100.0, None, 0.9, False),
        (100.0, NULL, NAN, False),
        (NAN, NULL, 0.9, False),
        (math.inf, NULL, 0.9, True),
    ],
)
def test_established_takes_a_null_and_a_reliability(value, null, reliability, established):
    assert Finding(value=value, n=1, seed=0, null=null, reliability=reliability).established is established


@pytest.mark.parametrize("tail", ["greater", "less", "two-sided"])
def test_nan_never_makes_a_value_extreme(tail):
    broken = torch.full((99,), NAN)
    assert Finding(value=0.0, n=1, seed=0, null=broken, reliability=1.0, tail=tail).p_value == 1.0
    assert Finding(value=NAN, n=1, seed=0, null=NULL, reliability=1.0, tail=tail).p_value == 1.0


def test_each_nan_draw_counts_as_extreme():
    null = NULL.clone()
    null[:9] = NAN
    assert Finding(value=100.0, n=1, seed=0, null=null).p_value == pytest.approx(0.1)


def test_unknown_tail(unchecked):
    with pytest.raises(OptionError) as error:
        Finding(value=1.0, n=1, seed=0, tail="both")
    assert str(error.value) == "tail='both' is not known. It can be 'greater', 'less', 'two-sided'."


def test_summary():
    finding = Finding(value=0.5, n=7, seed=0, null=NULL, reliability=0.25, interval=(0.25, 0.75), tail="two-sided")
    assert finding.summary() == "value 0.5 | 95 % interval [0.25, 0.75] | n 7 | null median 50, p 0.02 | reliability 0.25 | not established"
