"""Ids, padding, counts and vocabularies, against literal loops."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mechfeat.data.text import Corpus, Texts, Vocabulary, select_tokens, smoothed_log_odds
from mechfeat.errors import OptionError, ShapeError, UnknownTokenError

texts = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6).map(" ".join), min_size=2, max_size=8)


def exactly(message):
    return f"^{re.escape(message)}$"


def labelled(documents):
    return Texts(tuple(documents), torch.arange(len(documents)) % 2, ("neg", "pos"))


@given(texts)
def test_documents_come_back_and_padding_stands_at_the_end(documents):
    corpus = Corpus.build(labelled(documents))
    assert [corpus.tokens(i) for i in range(len(corpus))] == [d.split() for d in documents]
    assert corpus.lengths.tolist() == [len(d.split()) for d in documents]
    for row, n in zip(corpus.ids, corpus.lengths):
        assert bool((row[:n] >= 0).all())
        assert bool((row[n:] == -1).all())


@given(texts)
def test_counts_are_those_of_a_loop(documents):
    corpus = Corpus.build(labelled(documents))
    want = torch.zeros(len(documents), corpus.n_tokens, dtype=torch.int64)
    by_class = torch.zeros(2, corpus.n_tokens, dtype=torch.int64)
    for i, d in enumerate(documents):
        for t in d.split():
            want[i, corpus.vocabulary.id(t)] += 1
            by_class[i % 2, corpus.vocabulary.id(t)] += 1
    assert torch.equal(torch.as_tensor(corpus.counts.toarray()), want)
    assert torch.equal(corpus.class_counts, by_class)


@given(texts)
def test_the_vocabulary_is_in_order_of_frequency(documents):
    vocabulary = Corpus.build(labelled(documents)).vocabulary
    counts = Counter(t for d in documents for t in d.split())
    assert list(vocabulary.tokens) == sorted(counts, key=lambda t: (-counts[t], t))


@given(texts, st.integers(1, 3), st.sampled_from([0, 0.2, 1 / 3, 0.5, 0.6]))
@example(["a a a", "a", "b", "b b b"], 1, 0.5)
def test_selection_is_the_rule_of_a_loop(documents, min_count, rate):
    corpus = Corpus.build(labelled(documents))
    if corpus.n_tokens == 0:
        return
    found = select_tokens(corpus, rate=rate, min_count=min_count, neutral_gap=2)
    positive, negative, neutral = set(), set(), set()
    for token in corpus.vocabulary.tokens:
        p, n = (sum(d.split().count(token) for d in documents[c::2]) for c in (1, 0))
        share = (p - n) / (p + n)
        i = corpus.vocabulary.id(token)
        if share > rate and p > min_count:
            positive.add(i)
        if share < -rate and n > min_count:
            negative.add(i)
        if abs(share) < 0.1 and abs(p - n) < 2:
            neutral.add(i)
    assert [set(g.tolist()) for g in (found.positive, found.negative, found.neutral)] == [positive, negative, neutral]
    assert sum(map(len, (found.positive, found.negative, found.neutral))) == len(positive) + len(negative) + len(neutral)
    counts = corpus.class_counts[1][found.positive]
    assert torch.equal(counts, counts.sort(descending=True).values)


def test_log_odds_are_smoothed_on_both_sides():
    corpus = Corpus.build(Texts(("a a b", "b c"), torch.tensor([1, 0]), ("neg", "pos")))
    odds = smoothed_log_odds(corpus)
    want = {"a": (2.5, 0.5), "b": (1.5, 1.5), "c": (0.5, 1.5)}
    for token, (p, n) in want.items():
        torch.testing.assert_close(odds[corpus.vocabulary.id(token)], torch.tensor(p / n).log())


def test_unknown_tokens_are_treated_as_was_said():
    train = [["good", "film", "good"]]
    assert Vocabulary.build(train, unknown="drop").ids(["good", "plot", "film"]) == [0, 1]
    assert Vocabulary.build(train, unknown="unk").ids(["good", "plot", "film"]) == [0, 2, 1]
    assert Vocabulary.build([["<unk>", "<unk>", "good"]], unknown="unk").ids(["plot", "good"]) == [0, 1]
    message = (
        "The vocabulary of 2 tokens does not hold 'plot', 'films'. Vocabulary(..., unknown='drop') leaves unknown tokens out, "
        "unknown='unk' gives them one id."
    )
    with pytest.raises(UnknownTokenError, match=exactly(message)) as caught:
        Vocabulary.build(train, unknown="error").ids(["plot", "good", "films", "plot"])
    assert caught.value.tokens == ("plot", "films")


def test_test_texts_use_the_vocabulary_of_the_training_texts():
    train = Corpus.build(labelled(["a b", "a a c"]), min_count=2)
    assert train.vocabulary.tokens == ("a",)
    test = Corpus.build(labelled(["c a", "b"]), vocabulary=train.vocabulary)
    assert test.ids.tolist() == [[0], [-1]]
    for option, value in (("unknown", "error"), ("min_count", 2)):
        with pytest.raises(OptionError) as caught:
            Corpus.build(labelled(["c a", "b"]), vocabulary=train.vocabulary, **{option: value})
        assert str(caught.value) == f"{option}={value!r} is not known. It can be 'left out: the vocabulary that is given has its own'."


def test_tokenisation_is_a_choice():
    read = labelled(["Not BAD", "x"])
    assert Corpus.build(read).tokens(0) == ["Not", "BAD"]
    assert Corpus.build(read, tokenize="lower").tokens(0) == ["not", "bad"]
    assert Corpus.build(read, tokenize=list).tokens(0) == list("Not BAD")
    assert Corpus.build(read, max_length=1).tokens(0) == ["Not"]
    with pytest.raises(OptionError) as caught:
        Corpus.build(read, tokenize="spacy")
    assert str(caught.value) == ("tokenize='spacy' is not known. It can be 'whitespace', 'lower', 'a function from a text to its tokens'.")


def test_taking_documents_drops_positions_that_nobody_needs():
    corpus = Corpus.build(labelled(["a", "a b c", "b"]))
    small = corpus.take([2, 0])
    assert small.ids.shape == (2, 1)
    assert small.labels.tolist() == [0, 0]
    assert small.vocabulary is corpus.vocabulary
    assert len(corpus.take([])) == 0


def test_taking_documents_by_a_mask(unchecked):
    corpus = Corpus.build(labelled(["a", "b c", "d"]))
    for mask in (corpus.labels == 0, [True, False, True]):
        small = corpus.take(mask)
        assert [small.tokens(i) for i in range(len(small))] == [["a"], ["d"]]
        assert small.labels.tolist() == [0, 0]
    with pytest.raises(ShapeError) as caught:
        corpus.take(torch.tensor([True, False]))
    assert str(caught.value) == "The mask has shape [2], and there are 3 documents. Give each document one entry."


def test_what_does_not_fit_is_refused(unchecked):
    words = Vocabulary(("a", "b"))
    with pytest.raises(ShapeError) as caught:
        Corpus(torch.tensor([[0, 2]]), words)
    assert str(caught.value) == "ids holds 0 to 2, and the vocabulary has 2 tokens. Ids are from 0 to 1, and -1 for padding."
    with pytest.raises(ShapeError) as caught:
        Corpus(torch.tensor([[0], [1]]), words, torch.tensor([0]), ("x",))
    assert str(caught.value) == "There are 1 labels for 2 documents. Give each document one."
    with pytest.raises(OptionError) as caught:
        Corpus(torch.tensor([[0], [1]]), words, torch.tensor([0, 2]), ("x", "y"))
    assert str(caught.value) == "labels=2 is not known. It can be 0, 1."
    with pytest.raises(OptionError) as caught:
        _ = Corpus(torch.tensor([[0], [1]]), words).class_counts
    assert str(caught.value) == "labels=None is not known. It can be 'a class index for each document'."
    with pytest.raises(OptionError) as caught:
        Vocabulary(("a", "b", "a"))
    assert str(caught.value) == "tokens='a' is not known. It can be 'each token once'."


@pytest.mark.parametrize(("labels", "classes", "counts"), [([1, 1], 2, [0, 2]), ([0, 0], 1, [2]), ([0, 2], 3, [1, 0, 1])])
def test_polarity_needs_two_classes_with_documents(labels, classes, counts):
    corpus = Corpus.build(Texts(("a", "b"), torch.tensor(labels), tuple("xyz"[:classes])))
    with pytest.raises(ShapeError) as caught:
        select_tokens(corpus)
    assert str(caught.value) == (
        f"The corpus has {classes} classes with {counts} documents. Polarity compares two classes, 0 and 1, that both have some; "
        "Corpus.class_counts holds the counts of any number of classes."
    )


def test_empty_documents_count_for_nothing():
    corpus = Corpus.build(labelled(["", "a"]))
    assert corpus.ids.tolist() == [[-1], [0]]
    assert corpus.class_counts.tolist() == [[0], [1]]
    assert Corpus.build(labelled(["", ""])).ids.shape == (2, 0)
