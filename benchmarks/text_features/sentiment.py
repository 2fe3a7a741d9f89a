"""Token scores of sentiment classifiers over training: SST and IMDB."""

import copy
import math
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from mechfeat.data.text import Corpus, load_texts, polarity, select_tokens, smoothed_log_odds
from mechfeat.models.text import BagMLP, InitSpec, SelfAttention, TextCNN
from mechfeat.ntk.analytic import kernel_of
from mechfeat.ntk.predict import compare, kernel_drift, predict_features
from mechfeat.ntk.predict.regime import regime

from .rows import TextRow, data_folder, pearson, save
from .training import Training, shuffled

SEED, WIDTH, BATCH, RATE, SD = 2021, 64, 64, 1e-3, 0.1
MODELS = ("MLP relu", "MLP tanh", "CNN relu", "SA")
_WORD = re.compile(r"[a-z0-9']+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters, digits and apostrophes, without line breaks of HTML."""
    return _WORD.findall(text.lower().replace("<br />", " "))


def sst() -> tuple[Corpus, Corpus, dict[str, Any]]:
    """Training and test documents; tokens between white space."""
    folder = data_folder("sst")
    train = Corpus.build(load_texts(folder / "train.csv"))
    test = Corpus.build(load_texts(folder / "test.csv"), vocabulary=train.vocabulary)
    return train, test, {"tokens": "whitespace", "min_count": 5, "max_length": None}


def imdb(max_length: int) -> tuple[Corpus, Corpus, dict[str, Any]]:
    """Training and test documents, cut to a length."""
    folder = data_folder("imdb")
    train = Corpus.build(load_texts(folder / "train.jsonl.gz"), tokenize=words, min_count=2, max_length=max_length)
    test = Corpus.build(load_texts(folder / "test.jsonl.gz"), tokenize=words, vocabulary=train.vocabulary, max_length=max_length)
    chosen = {"tokens": words.__doc__, "min_count": 50, "max_length": max_length, "vocabulary": "tokens that occur twice"}
    return train, test, chosen


def toy() -> tuple[Corpus, Corpus, dict[str, Any]]:
    """Generated documents, for a smoke run."""
    train, test = (polarity(400, generator=torch.Generator().manual_seed(s)).corpus for s in (0, 1))
    return train, test, {"tokens": "generated", "min_count": 5, "max_length": None}


def network(name: str, n_tokens: int) -> nn.Module:
    """A network of the experiment: no dropout, no positions; filters of the CNN are drawn as torch draws those of a layer."""
    options: dict[str, Any] = {"init": InitSpec.uniform(SD), "generator": torch.Generator().manual_seed(SEED)}
    kind, _, activation = name.partition(" ")
    if kind == "SA":
        return SelfAttention(n_tokens, WIDTH, scaling="1/sqrt(d)", **options).float()
    if kind == "MLP":
        return BagMLP(n_tokens, WIDTH, WIDTH, activation=activation, **options).float()
    net = TextCNN(n_tokens, WIDTH, WIDTH, kernel_size=3, activation=activation, **options).float()
    with torch.no_grad():
        bound = 1 / math.sqrt(3 * WIDTH)
        net.W_in.uniform_(-bound, bound, generator=torch.Generator().manual_seed(SEED))
    return net


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Binary cross-entropy of a batch."""
    ids, y = batch
    return F.binary_cross_entropy_with_logits(net(ids)[:, 0], y.float())


def cut(ids: Tensor) -> Tensor:
    """Without the positions that are padding in all documents."""
    return ids[:, : max(1, int((ids >= 0).sum(1).max()))]


def by_offset(net: TextCNN, tokens: Tensor) -> Tensor:
    """Scores of tokens at each offset of a window, ``[offset token]``."""
    E = F.embedding(tokens, net.W_E) / net.d_model**0.5
    pre = torch.einsum("td,mdk->ktm", E, net.W_in)
    return net.phi(pre) @ net.W_U[0] / net.width**0.5


def experiment(name: str, task: tuple[Corpus, Corpus, dict[str, Any]], model: str, *, epochs: int, folder: Path, out: Path) -> TextRow:
    """Train one network, and hold its token scores to what the counts say after each epoch."""
    train, test, chosen = task
    groups = select_tokens(train, min_count=chosen["min_count"])
    polar = torch.cat([groups.positive, groups.negative])
    n_positive = len(groups.positive)
    counts = train.class_counts.double()
    gap, odds = (counts[1] - counts[0])[polar], smoothed_log_odds(train)[polar]
    net = network(model, train.n_tokens)
    order = shuffled(len(train), BATCH, SEED)
    some = polar[:: max(1, len(polar) // 128)]

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        return [(cut(train.ids[rows]), train.labels[rows]) for rows in order(epoch)]

    def measure(net: nn.Module) -> dict[str, Any]:
        s = net(polar[:, None])[:, 0]
        neutral = net(groups.neutral[:, None])[:, 0]
        f = torch.cat([net(cut(part))[:, 0] for part in test.ids.split(256)])
        offsets = by_offset(net, polar) if isinstance(net, TextCNN) else s[None]
        return {
            "positive_right": float((s[:n_positive] > 0).double().mean()),
            "negative_right": float((s[n_positive:] < 0).double().mean()),
            "pearson_counts": pearson(s, gap),
            "pearson_log_odds": pearson(s, odds),
            "test_accuracy": float(((f > 0) == (test.labels == 1)).double().mean()),
            "mean_abs_score": float(s.abs().mean()),
            "mean_positive": float(s[:n_positive].mean()),
            "mean_negative": float(s[n_positive:].mean()),
            "mean_neutral": float(neutral.mean()),
            "positive_right_by_offset": [round(float(v), 4) for v in (offsets[:, :n_positive] > 0).double().mean(1)],
            "negative_right_by_offset": [round(float(v), 4) for v in (offsets[:, n_positive:] < 0).double().mean(1)],
        }

    settings = {
        "width": WIDTH,
        "sd": SD,
        "filters": "uniform(±1/sqrt(3·width))" if model.startswith("CNN") else None,
        "optimizer": f"Adagrad lr {RATE:g}",
        "batch": BATCH,
        "seed": SEED,
        "dropout": 0,
        "documents": len(train),
        "vocabulary_size": train.n_tokens,
        "groups": [len(groups.positive), len(groups.negative), len(groups.neutral)],
        **chosen,
    }
    initial = copy.deepcopy(net)
    run = Training(
        net,
        torch.optim.Adagrad(net.parameters(), lr=RATE),
        batches,
        loss,
        measure,
        {"experiment": name, "model": model, **settings},
        folder / f"{name}-{model.replace(' ', '-')}.pt",
    )
    curve = run.run(epochs)
    drift = kernel_drift(initial, net, some[:, None])
    result = {**curve[-1], "drift": drift, "regime": regime(drift)}
    if isinstance(net, BagMLP):
        result |= against_theory(initial, net, train, polar)
    row = TextRow(name, model, {**settings, "epochs": epochs}, result, curve, run.seconds)
    save(row, out)
    return row


def against_theory(initial: BagMLP, net: BagMLP, train: Corpus, tokens: Tensor) -> dict[str, Any]:
    """The trained scores beside those that the constant kernel predicts for 100 steps of descent; training itself was another way down."""
    kernel, n = kernel_of(initial), len(train)
    counts, length = train.counts.astype(float), train.lengths.double().numpy()

    def times(v: Any) -> Any:
        return (kernel.rho - kernel.mu) * (counts @ (counts.T @ v)) + kernel.mu * length * (length @ v)

    top = float(eigsh(LinearOperator((n, n), matvec=times, dtype=float), k=1, return_eigenvectors=False, v0=length)[0])
    rate = 4 * n / top  # half of the rate that is sure to lower the logistic loss
    names = [train.vocabulary.tokens[t] for t in tokens.tolist()]
    theory = predict_features(kernel, train.ids, train.labels, tokens[:, None], steps=100, lr=rate, width=WIDTH, names=names)
    print(theory.table(rows=12))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compare(theory, net, initial=initial)
    print(found)
    return {
        "predicted_pearson": found.value,
        "predicted_spearman": found.spearman,
        "predicted_same_sign": found.sign_accuracy,
        "predicted_steps": 100,
        "predicted_lr": rate,
        "predicted_cross_talk": float(found.cross_talk.square().mean().sqrt()),
        "predicted_rms": float(found.predicted.square().mean().sqrt()),
        "verdict": found.regime,
        "warned": [w.category.__name__ for w in caught],
    }
