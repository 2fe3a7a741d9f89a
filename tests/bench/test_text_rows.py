"""The committed rows of the text experiments hold what theory and counts say; the newest of each experiment and model counts."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mechfeat.models.text import InitSpec
from mechfeat.ntk import Activation
from mechfeat.ntk.analytic import BigramKernel, ConvKernel, xor_ratio

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS = {}
for line in (BENCHMARKS / "results" / "text_features.jsonl").read_text().splitlines():
    row = json.loads(line)
    ROWS[row["experiment"], row["model"]] = row


@pytest.mark.parametrize("model", ["MLP relu", "MLP tanh", "CNN relu", "SA"])
def test_sst_scores_have_the_right_signs_and_follow_the_log_odds(model):
    row = ROWS["sst", model]
    assert row["settings"]["groups"] == [411, 265, 1385]
    assert {k: row["settings"][k] for k in ("width", "sd", "batch", "seed", "dropout", "epochs", "documents", "optimizer")} == {
        "width": 64,
        "sd": 0.1,
        "batch": 64,
        "seed": 2021,
        "dropout": 0,
        "epochs": 40,
        "documents": 6920,
        "optimizer": "Adagrad lr 0.001",
    }
    assert [e["epoch"] for e in row["curve"]] == list(range(1, 41))
    last = row["curve"][-1]
    assert last["positive_right"] >= 0.95
    assert last["negative_right"] >= 0.95
    assert last["pearson_log_odds"] >= 0.85
    assert min(*last["positive_right_by_offset"], *last["negative_right_by_offset"]) >= 0.95


@pytest.mark.parametrize("model", ["MLP relu", "MLP tanh", "CNN relu", "SA"])
def test_standard_deviation_a_tenth_is_the_rich_regime(model):
    row = ROWS["sst", model]
    assert row["result"]["drift"] > 0.1
    assert row["result"]["regime"] == "rich"
    if model.startswith("MLP"):
        assert row["result"]["verdict"] == "rich"
        assert row["result"]["warned"] == ["RichRegimeWarning"]
        assert row["result"]["predicted_cross_talk"] > 0


def test_the_bias_of_relu_shows_early_and_that_of_tanh_does_not():
    """At the first epoch ReLU has most positive tokens right and most negative ones wrong: they share one bias."""
    gaps = {
        m: ROWS["sst", m]["curve"][0]["positive_right"] - ROWS["sst", m]["curve"][0]["negative_right"] for m in ("MLP relu", "MLP tanh")
    }
    assert gaps["MLP relu"] > 0.25 > abs(gaps["MLP tanh"])


@pytest.mark.parametrize("model", ["MLP relu", "CNN relu", "SA"])
def test_imdb_scores_have_the_right_signs(model):
    row = ROWS["imdb", model]
    assert row["settings"]["documents"] == 25000
    assert row["settings"]["min_count"] == 50
    assert row["settings"]["max_length"] == 256
    assert row["result"]["positive_right"] >= 0.95
    assert row["result"]["negative_right"] >= 0.95


def test_agnews_classes_follow_the_linearisation():
    row = ROWS["agnews", "BagMLP relu"]
    assert row["settings"]["by_class"] == [50, 50, 50, 50]
    assert row["result"]["regime"] == "kernel regime"
    for at in row["curve"]:
        assert len(at["linearisation_pearson"]) == 4
        assert min(at["linearisation_pearson"]) >= 0.99
        assert all(math.isfinite(r) for r in at["closed_form_pearson"])
        assert at["closed_form_cross_talk"] > 0
    # Cross-talk explains what the closed form is off by, and training had an effect.
    assert 0.5 < row["result"]["closed_form_difference_over_cross_talk"] < 1.5
    assert row["result"]["train_loss"] < 1.1 < math.log(4)
    assert row["result"]["train_accuracy"] > 0.8


@pytest.mark.parametrize("name", ["ptb", "wikitext2"])
def test_language_model_prefers_targets_that_occur_often(name):
    row = ROWS[name, "causal transformer"]
    assert row["settings"]["mask"] == "causal"
    found = row["result"]
    assert len(found["tokens"]) == 20
    assert all(top > bottom for top, bottom in zip(found["top_median"], found["bottom_median"]))
    assert all(top > bottom for top, bottom in zip(found["top_median"], found["bottom_median_all_ties"]))
    assert found["ordered"] == found["ordered_all_ties"] == 20
    assert found["valid_perplexity"] < found["unigram_perplexity"]  # it knows more than which tokens are frequent
    assert found["auc"] > found["auc_null_median"]
    assert found["auc"] <= 1
    assert len(found["auc_by_token"]) == 20


def test_xor_ratios_are_those_of_the_kernels():
    curve = ROWS["xor", "closed forms"]["curve"]
    for row in curve:
        init = InitSpec.uniform(row["sd"])
        if "matrix-vector" in row:
            assert row["matrix-vector"] == pytest.approx(xor_ratio(BigramKernel(init=init)), rel=1e-5)
        elif row["activation"] in ("linear", "relu", "gelu", "erf"):
            assert row["CNN-3"] == pytest.approx(xor_ratio(ConvKernel(activation=Activation.of(row["activation"]), init=init)), rel=1e-5)
    known = {(row["activation"], row["sd"]): row for row in curve}
    for key, ratio in {("relu", 1.0): 0.191, ("gelu", 1.0): 0.173, ("tanh", 1.0): 0.140, ("relu", 0.1): 0.191, ("tanh", 0.1): 0.0}.items():
        assert known[key]["CNN-3"] == pytest.approx(ratio, abs=0.002)
    assert known["tanh", 1.0]["gated RNN"] == pytest.approx(0.110, abs=0.002)
    assert known["relu", 1.0]["gated RNN"] is None


def test_bias_of_unseen_tokens():
    curve = {(r["activation"], r["sd"]): r for r in ROWS["bias", "BagMLP"]["curve"]}
    assert {r["regime"] for (_, sd), r in curve.items() if sd == 1.0} == {"kernel regime"}
    assert {r["regime"] for (_, sd), r in curve.items() if sd == 0.1} == {"rich"}
    relu, tanh = curve["relu", 1.0], curve["tanh", 1.0]
    assert relu["unseen_measured"] == pytest.approx(relu["unseen_predicted"], rel=0.1)
    assert relu["mu_over_rho"] == pytest.approx(0.10610, abs=1e-5)
    assert tanh["unseen_predicted"] == 0
    assert abs(tanh["unseen_measured"]) < 4 * tanh["unseen_cross_talk"]
    # Smooth activations have less of it as the scale falls, ReLU at every scale the same.
    shares = {key: r["mu_over_rho"] for key, r in curve.items()}
    assert shares["relu", 0.1] == pytest.approx(shares["relu", 1.0], rel=1e-5)
    assert shares["gelu", 0.1] < 1e-3 * shares["gelu", 1.0]


def test_rows_say_where_they_are_from():
    for row in ROWS.values():
        assert row["threads"] == 1
        assert row["seconds"] > 0
        assert row["versions"]["torch"]
        assert row["commit"] != "unknown"
        assert "seed" in row["settings"] or row["experiment"] == "xor"


@pytest.mark.full
def test_every_experiment_runs_small_from_the_command_line(tmp_path):
    command = [
        sys.executable,
        BENCHMARKS / "bench_text_features.py",
        "all",
        "--smoke",
        "--folder",
        tmp_path,
        "--out",
        tmp_path / "rows.jsonl",
    ]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    made = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {r["experiment"] for r in made} == {r["experiment"] for r in ROWS.values()}
    # A second run goes on from the checkpoints and comes to the same numbers.
    subprocess.run([*command[:2], "sst", *command[3:]], env=environment, check=True, capture_output=True)
    again = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()][len(made) :]
    first = [r for r in made if r["experiment"] == "sst"]
    assert [r["curve"] for r in again] == [r["curve"] for r in first]
