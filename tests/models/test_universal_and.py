"""The hand-set network of all ANDs: exact on one pair, and better with more neurons on more."""

import math

import pytest
import torch

from mechfeat.data import OneHot, universal_and
from mechfeat.errors import OptionError
from mechfeat.models import universal_and_bank


def test_two_active_features_are_read_exactly():
    """A neuron that sees both of two active features is at 1, one that sees one of them at 0."""
    x = OneHot(6, k=2).exact().x
    bank = universal_and_bank(6, 400, probability=0.3, seeds=[1, 2])
    out, y = bank(x).detach(), universal_and(6)(x)
    torch.testing.assert_close(out[:, y > 0], torch.ones(2, 15))
    assert not torch.equal(out[0], out[1])
    assert not bank(torch.zeros(1, 6)).any()
    assert not bank(OneHot(6).exact().x).any()


def test_outputs_are_means_over_the_neurons_that_see_a_pair():
    bank = universal_and_bank(5, 30, probability=0.4, seeds=[3])
    x = (torch.rand(20, 5) < 0.6).double()
    sees = bank.W.detach()[0]
    for place, (a, b) in enumerate(universal_and(5).pairs):
        both = [i for i in range(30) if sees[a, i] and sees[b, i]]
        out = bank(x).detach()[0, :, place]
        for k in range(20):
            z = [max(0.0, float((sees[:, i] * x[k]).sum()) - 1) for i in both]
            assert float(out[k]) == pytest.approx(sum(z) / len(z) if z else 0.0)


def test_the_error_falls_as_neurons_grow():
    """Check 13: with the probability of a neuron seeing a feature falling as the root of log m over m, on three active of 30."""
    x = OneHot(30, k=3).exact().x[::7]
    y = universal_and(30)(x)
    errors = []
    for m in (100, 400, 1600):
        p = 4 * math.sqrt(math.log(m) / m) / 3
        out = universal_and_bank(30, m, probability=p, seeds=[0, 1])(x).detach()
        errors.append(float((out - y).abs().mean()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_what_is_refused(unchecked):
    with pytest.raises(OptionError) as caught:
        universal_and_bank(4, 8, probability=0.0)
    assert str(caught.value) == "probability=0.0 is not known. It can be 'a number above 0, and at most 1'."
