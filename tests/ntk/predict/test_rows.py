"""What predictions cost on whole corpora: SST here where its text is, both as committed rows."""

import csv
import json
import time
from pathlib import Path

import torch

from mechfeat.models.text import pad
from mechfeat.ntk import predict_features
from mechfeat.ntk.analytic import BagKernel
from mechfeat.ntk.dual import Activation
from tests.real import data_folder

ROWS = Path(__file__).parents[3] / "benchmarks" / "results" / "predicted_features.jsonl"


def test_a_hundred_steps_on_sst_take_less_than_two_seconds_of_one_core():
    with (data_folder() / "sst" / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known, threads = {}, torch.get_num_threads()
    docs = pad([[known.setdefault(word, len(known)) for word in row["text"].split()] for row in rows])
    labels = torch.tensor([int(row["label"]) for row in rows])
    assert docs.shape[0] == 6920
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        kernel = BagKernel(activation=Activation.of("relu"))
        found = predict_features(kernel, docs, labels, torch.arange(len(known))[:, None], steps=100, lr=0.05)
        seconds = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    assert seconds < 2
    assert found.null_scores.shape == (20, len(known), 1)
    assert found.scores[0, known["bad"], 0] < 0 < found.scores[0, known["moving"], 0]


def test_committed_rows_keep_the_times_asked_for():
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    last = {(row["corpus"], row["n_null"]): row for row in rows}
    for draws in (0, 20):
        sst, imdb = last["sst", draws], last["imdb", draws]
        assert (sst["documents"], sst["steps"], sst["threads"]) == (6920, 100, 1)
        assert (imdb["documents"], imdb["steps"], imdb["threads"]) == (25000, 100, 1)
        assert sst["median"] < 2
        assert imdb["median"] <= 30
        assert max(sst["agreement"], imdb["agreement"]) <= 1e-10
