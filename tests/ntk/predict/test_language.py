"""Co-occurrence of prefix and next token against counting by hand, and language models against it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.errors import ModelOutputError, NondeterministicModelError, OptionError, ShapeError
from mechfeat.models.text import CausalTransformerLM, pad
from mechfeat.ntk import CoOccurrence, compare_language, cooccurrence, measured_scores, next_token_logits, predict_features
from mechfeat.ntk.analytic import BagKernel
from mechfeat.ntk.dual import Activation


def by_hand(rows, n_tokens, window):
    found = torch.zeros(n_tokens, n_tokens, dtype=torch.int64)
    for row in rows:
        for p in range(1, len(row)):
            for w in row[max(0, p - window) : p]:
                found[w, row[p]] += 1
    return found


def table(found):
    return torch.stack([found.row(w) for w in range(found.n_tokens)])


def text(n=60, length=30, v=25, seed=0):
    """Sequences in which even tokens are followed by the token after them half of the time."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(1 / torch.arange(1.0, v + 1), n * length, replacement=True, generator=g).view(n, length)
    for p in range(1, length):
        planted = (ids[:, p - 1] % 2 == 0) & (torch.rand(n, generator=g) < 0.5)
        ids[:, p] = torch.where(planted, (ids[:, p - 1] + 1) % v, ids[:, p])
    return ids


@given(st.lists(st.lists(st.integers(0, 6), max_size=14), min_size=1, max_size=5), st.integers(1, 16))
def test_counts_are_those_by_hand(rows, window):
    found = cooccurrence(pad(rows), n_tokens=7, window=window)
    want = by_hand(rows, 7, window)
    assert torch.equal(table(found), want)
    assert torch.equal(found.token_totals, want.sum(1))
    assert torch.equal(found.target_totals, want.sum(0))
    assert torch.equal(found.examples, torch.bincount(torch.tensor([t for r in rows for t in r[1:]], dtype=torch.int64), minlength=7))


def test_no_pair_looks_ahead():
    ids = torch.randperm(40)[None]  # every token once, so that a pair says which came first
    place = torch.empty(40, dtype=torch.int64)
    place[ids[0]] = torch.arange(40)
    found = table(cooccurrence(ids, n_tokens=40, window=40))
    w, c = found.nonzero().T
    assert bool((place[w] < place[c]).all())
    assert len(w) == 40 * 39 // 2


def test_nothing_of_the_size_of_the_vocabulary_squared():
    found = cooccurrence(torch.tensor([[5, 199_999, 7]]), n_tokens=200_000, window=35)
    assert found.counts.tolist() == [1, 1, 1]
    assert found.row(5).nonzero()[:, 0].tolist() == [7, 199_999]
    assert sum(t.numel() for t in (found.targets, found.counts)) == 6


def test_scores_are_the_first_step_of_a_softmax_bag_on_all_prefixes():
    ids, v = text(n=4, length=9, v=6), 6
    kernel = BagKernel(activation=Activation.of("relu"))
    prefixes = [row[:p].tolist() for row in ids for p in range(1, 9)]
    labels = torch.tensor([int(row[p]) for row in ids for p in range(1, 9)])
    whole = predict_features(
        kernel, pad(prefixes), labels, torch.arange(v)[:, None], steps=1, lr=1e-3, loss="softmax", n_classes=v, reduction="sum", n_null=0
    )
    found = cooccurrence(ids, n_tokens=v, window=8)
    want = torch.stack([found.scores(w, rho=kernel.rho, mu=kernel.mu) for w in range(v)])
    torch.testing.assert_close(whole.scores[0], 1e-3 * want)
    torch.testing.assert_close(want.sum(1), torch.zeros(v))
    counts = found.row(2).double()
    torch.testing.assert_close(found.scores(2), counts - counts.sum() / v)


def test_log_ratio_is_zero_in_independent_text():
    ids = torch.randint(0, 4, (1, 40_000), generator=torch.Generator().manual_seed(0))
    found = cooccurrence(ids, n_tokens=4, window=5)
    assert found.log_ratio(1).abs().max() < 0.03
    planted = cooccurrence(text(), n_tokens=25, window=1)
    assert planted.log_ratio(4).argmax() == 5
    expected = planted.token_totals[4] * planted.target_totals[5] / planted.target_totals.sum()
    assert planted.log_ratio(4)[5] == pytest.approx(math.log((int(planted.row(4)[5]) + 0.5) / (float(expected) + 0.5)))


def test_ties_are_all_returned_or_drawn_evenly():
    # After 0 come 1 (three times), 2 and 3 (twice), and of the other targets 4 to 9 none.
    ids = pad([[0, 1]] * 3 + [[0, 2]] * 2 + [[0, 3]] * 2 + [[11, t] for t in range(4, 10)])
    found = cooccurrence(ids, n_tokens=12, window=1)
    both = found.extremes(0, 2)
    assert both.top.tolist() == [1, 2, 3]
    assert both.top_tied == (2, 1)
    assert both.bottom.tolist() == [4, 5, 6, 7, 8, 9]  # 0, 10 and 11 are never a next token
    assert both.bottom_tied == (6, 2)
    seen = torch.zeros(12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        drawn = found.extremes(0, 2, ties="random", generator=generator)
        assert len(drawn.top) == len(drawn.bottom) == 2
        assert drawn.top[0] == 1
        seen[drawn.bottom] += 1
    assert bool((seen[4:10] > 70).all())  # 100 each, with a standard deviation of 8
    assert seen[:4].sum() == 0


def test_a_model_that_knows_the_text_is_told_from_one_that_knows_frequencies(tmp_path):
    ids, v = text(), 25
    found = cooccurrence(ids, n_tokens=v, window=1)
    tokens = found.token_totals.argsort(descending=True)[:12]
    knows = torch.stack([found.scores(int(w)) for w in tokens])
    good = compare_language(found, knows, tokens, k=5)
    assert good.value == pytest.approx(1)
    assert good.established
    assert bool(good.ordered.all())
    frequent = compare_language(found, found.examples.double().expand(12, -1), tokens, k=5)
    assert frequent.value > 0.6
    assert not frequent.established
    torch.testing.assert_close(frequent.null, torch.full((199,), frequent.value))
    w, sets = int(tokens[3]), found.extremes(int(tokens[3]), 5)
    assert good.top_median[3] == knows[3, sets.top].median()
    assert good.bottom_median[3] == knows[3, sets.bottom].median()
    above = found.scores(w) > 0
    pairs = [
        (frequent_c > rest_c) + 0.5 * (frequent_c == rest_c) for frequent_c in found.examples[above] for rest_c in found.examples[~above]
    ]
    assert frequent.auc[3] == pytest.approx(sum(float(p) for p in pairs) / len(pairs))
    found.save(tmp_path / "c.safetensors")
    assert torch.equal(table(CoOccurrence.load(tmp_path / "c.safetensors")), table(found))


def test_medians_lie_between_the_middle_two():
    """The median of two is halfway between them."""
    ids = pad([[0, 1]] * 4 + [[0, 2]] * 3 + [[0, 3]] * 2 + [[0, 4]] + [[5, t] for t in (1, 1, 2, 3, 4, 4)])
    found = cooccurrence(ids, n_tokens=6, window=1)
    logits = torch.tensor([[0.0, 2.0, 0.0, 0.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0, 0.0]])
    compared = compare_language(found, logits, torch.tensor([0, 5]), k=2, n_null=0)
    assert (compared.top_median[0], compared.bottom_median[0]) == (1.0, 1.5)


def test_logits_of_single_tokens():
    model = CausalTransformerLM(11, d_model=8, n_layers=1, n_heads=2, d_mlp=8, n_ctx=4).eval()
    tokens = torch.tensor([3, 7])
    found = next_token_logits(model, tokens)
    torch.testing.assert_close(found, model(torch.tensor([[3], [7]]))[:, -1].detach())
    with pytest.raises(ModelOutputError) as caught:
        next_token_logits(torch.nn.Flatten(0), tokens)
    assert str(caught.value) == "The model gave [2] for 2 prefixes of one token. It must give logits of the next token."


def test_a_model_with_active_dropout_is_no_measurement():
    model = CausalTransformerLM(11, d_model=8, n_layers=1, n_heads=2, d_mlp=8, n_ctx=4, dropout=0.5)
    tokens = torch.tensor([3, 7])
    torch.testing.assert_close(next_token_logits(model.eval(), tokens), model(tokens[:, None])[:, -1].detach())
    model.train()
    with pytest.raises(NondeterministicModelError, match=r"^Two runs of the model on the same input differ by .* Call model.eval\(\)"):
        next_token_logits(model, tokens)
    with pytest.raises(NondeterministicModelError):
        measured_scores(torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Flatten(), torch.nn.Dropout(0.5)), tokens[:, None])


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    ids = torch.tensor([[0, 1, 2]])
    found = cooccurrence(ids, n_tokens=3, window=2)
    for error, message, call in (
        (OptionError, "window=0 is not known. It can be 'a positive number of tokens'.", lambda: cooccurrence(ids, n_tokens=3, window=0)),
        (
            OptionError,
            "window=2.5 is not known. It can be 'a positive number of tokens'.",
            lambda: cooccurrence(ids, n_tokens=3, window=2.5),
        ),
        (
            ShapeError,
            "In ids: ids[0, 2] is 2. Tokens of this vocabulary are 0 to 1, and padding is -1.",
            lambda: cooccurrence(ids, n_tokens=2, window=2),
        ),
        (ShapeError, "Token 3 is outside the vocabulary of 3: tokens are 0 to 2.", lambda: found.row(3)),
        (ShapeError, "2 tokens are a next token, and k=2 asks for 4 of them. Take a smaller k.", lambda: found.extremes(0, 2)),
        (OptionError, "ties='first' is not known. It can be 'all', 'random'.", lambda: found.extremes(0, 1, ties="first")),
        (OptionError, "smoothing=0 is not known. It can be 'a positive count'.", lambda: found.log_ratio(0, smoothing=0)),
        (
            ShapeError,
            "logits has shape [2, 2], and there are 2 tokens of a vocabulary of 3. Logits are [token target], for two tokens or more.",
            lambda: compare_language(found, torch.zeros(2, 2), torch.tensor([0, 1])),
        ),
        (
            ShapeError,
            "Token 2 has no next tokens both above and below the mean count. Leave it out.",
            lambda: compare_language(found, torch.zeros(2, 3), torch.tensor([1, 2]), k=1),
        ),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == message
