"""Planted corpora are what they say: counts follow the stated probabilities, and labels follow the stated rule."""

import pytest
import torch

from mechfeat.data.text import bigrams, negation, polarity, smoothed_log_odds, topics
from mechfeat.errors import OptionError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_topic_counts_follow_the_probabilities():
    made = topics(4000, n_classes=3, shares=(1, 2, 5), strength=1.5, generator=generator())
    assert made.corpus.labels.bincount().tolist() == [500, 1000, 2500]
    counts = made.corpus.class_counts.double()
    probabilities = made.log_probabilities.exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    expected = probabilities * counts.sum(1, keepdim=True)
    # Chi-squared with as many degrees of freedom as tokens that occur, less one; five of its standard deviations.
    seen = probabilities[0] > 0
    statistic = ((counts - expected)[:, seen].square() / expected[:, seen]).sum(1)
    freedom = int(seen.sum()) - 1
    assert bool((statistic < freedom + 5 * (2 * freedom) ** 0.5).all())
    assert int(counts[:, made.groups["unseen"]].sum()) == 0
    assert int(counts[:, made.groups["class 2"]].sum()) > 0


def test_polarity_has_the_log_odds_it_states():
    made = polarity(6000, strength=1.0, positive_share=0.5, generator=generator())
    truth = made.log_probabilities[1] - made.log_probabilities[0]
    found = smoothed_log_odds(made.corpus)
    seen = torch.cat([made.groups[g] for g in ("positive", "negative", "neutral")])
    torch.testing.assert_close(found[seen], truth[seen], rtol=0, atol=0.25)
    assert made.corpus.vocabulary.tokens[int(made.groups["positive"][0])] == "positive0"
    assert made.corpus.vocabulary.tokens[int(made.groups["unseen"][0])] == "unseen0"


def test_lengths_stay_in_their_range():
    lengths = topics(500, length=(2, 4), generator=generator()).corpus.lengths
    assert sorted(set(lengths.tolist())) == [2, 3, 4]


def test_the_label_of_a_negation_is_an_exclusive_or():
    made = negation(300, generator=generator())
    seen = set()
    for i in range(300):
        tokens = made.corpus.tokens(i)
        kept = [t for t in tokens if not t.startswith("filler")]
        at = tokens.index(kept[0])
        assert 1 <= at <= 3
        assert 1 <= len(tokens) - at - len(kept) <= 3
        assert tokens[at : at + len(kept)] == kept
        assert int(made.corpus.labels[i]) == (kept[-1] == "good") ^ (kept[0] == "not")
        seen.add((tuple(kept), int(made.corpus.labels[i])))
    assert seen == {(("bad",), 0), (("good",), 1), (("not", "bad"), 1), (("not", "good"), 0)}


def test_the_label_of_a_bigram_is_its_order():
    made = bigrams(300, n_pairs=3, generator=generator())
    for i in range(300):
        tokens = made.corpus.tokens(i)
        pair = [t for t in tokens if not t.startswith("filler")]
        assert len(pair) == 2
        assert pair[0][1:] == pair[1][1:]
        assert abs(tokens.index(pair[0]) - tokens.index(pair[1])) == 1
        assert int(made.corpus.labels[i]) == (pair[0][0] == "a")
    assert {t for i in made.groups["first"] for t in [made.corpus.vocabulary.tokens[int(i)]]} == {"a0", "a1", "a2"}


@pytest.mark.parametrize("make", [topics, polarity, negation, bigrams])
def test_a_seed_decides(make):
    a, b, c = (make(40, generator=generator(s)).corpus for s in (1, 1, 2))
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.labels, b.labels)
    assert not (a.ids.shape == c.ids.shape and torch.equal(a.ids, c.ids))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: topics(0), "n_docs=0 is not known. It can be 'an integer from 1'."),
        (lambda: topics(5, n_classes=1), "n_classes=1 is not known. It can be 'an integer from 2'."),
        (lambda: topics(5, length=(4, 2)), "length=(4, 2) is not known. It can be '(shortest, longest)'."),
        (lambda: topics(5, shares=(1, 0, 1, 1)), "shares=(1, 0, 1, 1) is not known. It can be '4 positive numbers'."),
        (lambda: polarity(5, positive_share=1.0), "positive_share=1.0 is not known. It can be 'a number in (0, 1)'."),
        (lambda: negation(5, n_fillers=0), "n_fillers=0 is not known. It can be 'a positive integer'."),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(OptionError) as caught:
        call()
    assert str(caught.value) == message
