"""Running text: every token but the first of a row is a target once, and of the token before it."""

import gzip

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.data.text import Stream, Vocabulary, load_stream
from mechfeat.errors import OptionError, SchemaError, UnknownTokenError


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
def test_windows_walk_every_row_once(n, rows, window):
    if rows > n:
        return
    stream = Stream(torch.arange(n), Vocabulary(tuple(map(str, range(n)))))
    found = list(stream.batches(rows, window=window))
    length = n // rows
    pairs = [(int(a), int(b)) for ids, targets in found for a, b in zip(ids.flatten(), targets.flatten())]
    assert sorted(pairs) == [(r * length + i, r * length + i + 1) for r in range(rows) for i in range(length - 1)]
    assert all(ids.shape[1] <= window for ids, _ in found)


def test_lines_end_with_a_token_and_share_the_vocabulary(tmp_path):
    train, valid = tmp_path / "train.txt.gz", tmp_path / "valid.txt"
    train.write_bytes(gzip.compress(b" the <unk> film \n the end \n\n"))
    valid.write_text(" the film\n")
    stream = load_stream(train)
    assert [stream.vocabulary.tokens[i] for i in stream.ids] == ["the", "<unk>", "film", "<eos>", "the", "end", "<eos>", "<eos>"]
    assert stream.counts.sum() == 8
    assert int(stream.counts[stream.vocabulary.id("<eos>")]) == 3
    other = load_stream(valid, vocabulary=stream.vocabulary)
    assert [stream.vocabulary.tokens[i] for i in other.ids] == ["the", "film", "<eos>"]
    valid.write_text("a plot\n")
    with pytest.raises(UnknownTokenError):
        load_stream(valid, vocabulary=stream.vocabulary)
    assert len(load_stream(valid, eos=None)) == 2
    with pytest.raises(OptionError) as caught:
        load_stream(valid, vocabulary=stream.vocabulary, unknown="drop")
    assert str(caught.value) == "unknown='drop' is not known. It can be 'left out: the vocabulary that is given has its own'."


def test_what_does_not_fit_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SchemaError) as caught:
        load_stream(tmp_path / "empty.txt", eos=None)
    assert str(caught.value) == f"{tmp_path / 'empty.txt'}: there is no token in it. Expected lines of text."
    stream = Stream(torch.arange(3), Vocabulary(("a", "b", "c")))
    with pytest.raises(OptionError) as caught:
        stream.rows(4)
    assert str(caught.value) == "batch_size=4 is not known. It can be 'an integer from 1 to 3, the number of tokens'."
    with pytest.raises(OptionError) as caught:
        list(stream.batches(1, window=0))
    assert str(caught.value) == "window=0 is not known. It can be 'a positive integer'."
