"""Per-class token scores of a wide network on AG News, against its own linearisation and the closed form."""

import time
import warnings
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

from mechfeat.data.text import Corpus, Texts, load_texts, lower, topics
from mechfeat.models.text import BagMLP, Centred
from mechfeat.ntk import KernelDynamics, empirical_ntk, predict_features, predict_training
from mechfeat.ntk.analytic import kernel_of
from mechfeat.ntk.predict import RichRegimeWarning, compare
from mechfeat.ntk.predict.regime import regime

from .rows import TextRow, data_folder, pearson, save

SEED, STEPS, SCORED = 2021, (1, 20, 60, 200), 500


def agnews(per_class: int, max_length: int) -> Corpus:
    """The first documents of each class of the training sample, with all four labels, cut to a length."""
    texts = load_texts(data_folder("agnews") / "train_sample5000_4class.csv.gz", text=1, label=0)
    left, kept = Counter(dict.fromkeys(range(4), per_class)), []
    for i, label in enumerate(texts.labels.tolist()):
        if left[label]:
            left[label] -= 1
            kept.append(i)
    few = Texts(tuple(texts.texts[i] for i in kept), texts.labels[kept], ("World", "Sports", "Business", "Sci/Tech"))
    return Corpus.build(few, tokenize=lower, max_length=max_length)


def toy() -> Corpus:
    """Generated documents, for a smoke run."""
    return topics(80, generator=torch.Generator().manual_seed(0)).corpus


def experiment(corpus: Corpus, *, width: int, activation: str, steps: tuple[int, ...], out: Path) -> TextRow:
    """Train by full-batch descent, and compare token scores with both predictions after each number of steps."""
    started = time.process_time()
    net = BagMLP(corpus.n_tokens, width, width, activation=activation, n_outputs=4, generator=torch.Generator().manual_seed(SEED)).float()
    tokens = torch.arange(min(SCORED, corpus.n_tokens))[:, None]  # the most frequent ones come first
    centred = Centred(net)
    theta = empirical_ntk(centred, corpus.ids, outputs="trace", prove="never")
    limit = KernelDynamics(theta, corpus.labels, loss="softmax", lr=1e-9, f0=torch.zeros(len(corpus), 4)).lr_limit
    rate = float(f"{limit / 2:.2g}")
    found = predict_training(centred, corpus.ids, corpus.labels, tokens, loss="softmax", lr=rate, steps=steps, n_null=20, progress=True)
    names = tuple(corpus.vocabulary.tokens[: len(tokens)])
    theory = predict_features(
        kernel_of(net), corpus.ids, corpus.labels, tokens, steps=steps, lr=rate, loss="softmax", n_classes=4, width=width, names=names
    )
    curve = []
    for i, step in enumerate(steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RichRegimeWarning)
            closed = compare(theory, found.actual[i], step=step, drift=found.drift, width=width)
        curve.append(
            {
                "steps": step,
                "linearisation_pearson": [pearson(found.predicted[i, :, c], found.actual[i, :, c]) for c in range(4)],
                "linearisation_relative_error": float(found.relative_errors[i]),
                "closed_form_pearson": closed.per_class.tolist(),
                "closed_form_relative_error": closed.relative_error,
                "closed_form_cross_talk": float(closed.cross_talk.square().mean().sqrt()),
                "closed_form_difference_over_cross_talk": closed.excess,
                "rms_score": float(found.actual[i].square().mean().sqrt()),
                "train_loss": float(F.cross_entropy(found.actual_train[i], corpus.labels)),
                "train_accuracy": float((found.actual_train[i].argmax(1) == corpus.labels).double().mean()),
            }
        )
        print(closed)
    print(theory.table(rows=8))
    settings = {
        "documents": len(corpus),
        "by_class": corpus.labels.bincount().tolist(),
        "tokens": "whitespace, lower case",
        "max_length": int(corpus.lengths.max()),
        "vocabulary_size": corpus.n_tokens,
        "scored": f"the {len(tokens)} most frequent tokens",
        "width": width,
        "sd": 1.0,
        "activation": activation,
        "centred": True,
        "optimizer": f"full-batch descent lr {rate:g}",
        "loss": "softmax",
        "seed": SEED,
    }
    result = {
        **curve[-1],
        "drift": found.drift,
        "regime": regime(found.drift),
        "established": found.established,
        "explained": found.value,
    }
    row = TextRow("agnews", f"BagMLP {activation}", settings, result, curve, time.process_time() - started)
    save(row, out)
    return row
