"""
What text models learnt of tokens: the committed rows
=====================================================

Every number here is read from the rows that ``benchmarks/bench_text_features.py`` wrote: classifiers trained on the Stanford Sentiment
Treebank, a wide network on AG News, and a causal language model on the Penn Treebank.
"""

# %%
# Reading the rows
# ----------------

import json
import os
from pathlib import Path

import plotly.graph_objects as go
import torch

import mechfeat as mf
from mechfeat.plots.style import BLUE, GREY, ORANGE, RED, figure

HERE = Path(globals().get("__file__", os.getcwd() + "/x")).resolve().parent
RESULTS = next(p for p in (HERE.parent / "benchmarks" / "results", HERE.parents[1] / "benchmarks" / "results") if p.is_dir())
rows = {}
for line in (RESULTS / "text_features.jsonl").read_text().splitlines():
    row = json.loads(line)
    rows[row["experiment"], row["model"]] = row  # the newest of each experiment and model

# %%
# Sentiment
# ---------
#
# 411 tokens stand mostly in positive sentences, 265 mostly in negative ones. After forty epochs nearly all of them have a score of the
# right sign. The way there differs: under ReLU positive tokens are right from the start and negative ones wrong, since both share a bias;
# under tanh both groups come up together.

for (experiment, model), row in rows.items():
    if experiment in {"sst", "imdb"}:
        last, of = row["curve"][-1], row["settings"]["groups"]
        print(
            f"{experiment:4s} {model:9s} {last['epoch']:3d} epochs: right sign {last['positive_right']:.1%} of {of[0]} positive and "
            f"{last['negative_right']:.1%} of {of[1]} negative tokens, Pearson with log-odds {last['pearson_log_odds']:.2f}, "
            f"kernel moved by {row['result']['drift']:.3g} of its norm: {row['result']['regime']}"
        )
        assert min(last["positive_right"], last["negative_right"]) >= 0.95
        assert row["result"]["regime"] == "rich"


def signs(model, colour, dash):
    """Share of right signs over training."""
    curve = rows["sst", model]["curve"]
    options = {"x": [c["epoch"] for c in curve], "mode": "lines"}
    return [
        go.Scatter(y=[c[f"{group}_right"] for c in curve], name=f"{model}, {group}", line={"color": shade, "dash": dash}, **options)
        for group, shade in (("positive", colour[0]), ("negative", colour[1]))
    ]


relu, tanh = (rows["sst", m]["curve"][0] for m in ("MLP relu", "MLP tanh"))
assert relu["positive_right"] - relu["negative_right"] > 0.25
assert abs(tanh["positive_right"] - tanh["negative_right"]) < 0.1

figure(
    [*signs("MLP relu", (BLUE, RED), "solid"), *signs("MLP tanh", (BLUE, RED), "dot")],
    title="Tokens with a score of the right sign",
    x="epoch",
    y="share of the group",
    height=420,
)

# %%
# Topics
# ------
#
# AG News has four classes. A wide network in the kernel regime gives tokens the scores of its own linearisation; the closed form of
# infinite width is off by what cross-talk explains.

found = rows["agnews", "BagMLP relu"]["result"]
print("Pearson of each class, linearisation", *(f"{r:.4f}" for r in found["linearisation_pearson"]))
print("Pearson of each class, closed form  ", *(f"{r:.4f}" for r in found["closed_form_pearson"]))
print(f"the closed form is off by {found['closed_form_difference_over_cross_talk']:.2f} times the cross-talk it states")
assert min(found["linearisation_pearson"]) >= 0.99

# %%
# Language
# --------
#
# After each of the twenty most frequent tokens alone: median logit of the ten next tokens that it precedes most often in the training
# windows, and of the ten that it precedes least often.

found = rows["ptb", "causal transformer"]["result"]
assert all(top > bottom for top, bottom in zip(found["top_median"], found["bottom_median"]))
figure(
    [
        go.Scatter(x=found["tokens"], y=found["top_median"], mode="markers", name="most often", marker={"color": BLUE, "size": 8}),
        go.Scatter(x=found["tokens"], y=found["bottom_median"], mode="markers", name="least often", marker={"color": ORANGE, "size": 8}),
        go.Scatter(x=found["tokens"], y=[0] * 20, mode="lines", showlegend=False, line={"color": GREY, "dash": "dot"}),
    ],
    title=f"Logits of next tokens, Penn Treebank, one epoch: mean AUC {found['auc']:.3f}",
    x="token",
    y="median logit",
    xaxis_type="category",
)

# %%
# N-grams
# -------
#
# Capacity of a convolutional network of width three, in closed form, over activation and initial standard deviation.

curve = [r for r in rows["xor", "closed forms"]["curve"] if r["activation"] is not None]
activations, deviations = list(dict.fromkeys(r["activation"] for r in curve)), list(dict.fromkeys(r["sd"] for r in curve))
known = {(r["activation"], r["sd"]): r["CNN-3"] for r in curve}
ratios = [[float("nan") if known[a, s] is None else known[a, s] for s in deviations] for a in activations]
mf.plots.xor_map(torch.tensor(ratios), activations, deviations)
