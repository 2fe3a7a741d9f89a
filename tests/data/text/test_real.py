"""The five corpora as they are read, where ``MECHFEAT_DATA`` has them."""

import pytest
import torch

from mechfeat.data.text import Corpus, load_stream, load_texts, select_tokens
from tests.real import data_folder


def test_sst_counts_and_selection():
    folder = data_folder() / "sst"
    read = {split: load_texts(folder / f"{split}.csv") for split in ("train", "dev", "test")}
    assert {split: (len(t), int(t.labels.sum())) for split, t in read.items()} == {
        "train": (6920, 3609),
        "dev": (872, 444),
        "test": (1821, 909),
    }
    corpus = Corpus.build(read["train"])
    assert corpus.n_tokens == 13822
    assert int(corpus.lengths.max()) == 48
    assert corpus.class_counts.sum(1).tolist() == [57779, 63240]
    groups = select_tokens(corpus)
    assert (len(groups.positive), len(groups.negative), len(groups.neutral)) == (411, 265, 1385)


def test_agnews_labels_stay_apart():
    folder = data_folder() / "agnews"
    train = load_texts(folder / "train_sample5000_4class.csv.gz", text=1, label=0)
    assert train.labels.bincount().tolist() == [500, 1000, 1500, 2000]
    test = load_texts(folder / "test.csv.gz", text=(1, 2), label=0, labels={str(c + 1): c for c in range(4)})
    assert test.labels.bincount().tolist() == [1900] * 4


@pytest.mark.full
def test_imdb_counts():
    read = load_texts(data_folder() / "imdb" / "train.jsonl.gz")
    assert read.labels.bincount().tolist() == [12500, 12500]


def test_ptb_vocabulary():
    folder = data_folder() / "ptb"
    train = load_stream(folder / "ptb.train.txt.gz")
    assert (len(train), len(train.vocabulary)) == (929589, 10000)
    valid = load_stream(folder / "ptb.valid.txt.gz", vocabulary=train.vocabulary)
    assert len(valid) == 73760
    assert torch.equal(train.counts, train.ids.bincount())


@pytest.mark.full
def test_wikitext_vocabulary():
    train = load_stream(data_folder() / "wikitext2" / "wiki.train.tokens.gz")
    assert (len(train), len(train.vocabulary)) == (2088628, 33278)
