"""Figures of predicted features show what their findings hold."""

import pytest
import torch

import mechfeat as mf
from mechfeat.errors import OptionError
from mechfeat.models import mlp
from mechfeat.ntk import compare, compare_language, cooccurrence, predict_features, predict_movement
from mechfeat.ntk.analytic import BagKernel
from mechfeat.ntk.dual import Activation


def found(loss="logistic"):
    docs, labels = torch.tensor([[0, 1], [1, 2], [3, -1], [0, 3]]), torch.tensor([1, 0, 0, 1])
    kernel = BagKernel(activation=Activation.of("relu"))
    prediction = predict_features(kernel, docs, labels, torch.arange(6)[:, None], steps=[20, 5], lr=0.1, loss=loss, width=64, n_null=0)
    both = [compare(prediction, prediction.scores[prediction.at(k)] + 0.01, step=k) for k in (5, 20)]
    return prediction, both


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_score_curves(loss):
    prediction, both = found(loss)
    fig = mf.plots.score_curves(prediction, both, ngrams=[0, 2, 5])
    lines = [t for t in fig.data if t.mode == "lines"]
    points = [t for t in fig.data if t.mode == "markers"]
    assert [t.name for t in lines] == sorted([t.name for t in lines], key=lambda n: -float(prediction.scores[-1, int(n), 0]))
    assert len(points) == 3 * 2
    first = next(t for t in lines if t.name == "2")
    assert list(first.x) == [5, 20]
    assert list(first.y) == pytest.approx(prediction.scores[[1, 0], 2, 0].tolist(), rel=1e-6)
    mark = next(t for t in points if t.name == "2, network")
    assert mark.y[0] == pytest.approx(float(both[0].measured[2, 0]))
    assert mark.error_y.array[0] == pytest.approx(float(both[0].cross_talk[2, 0]))
    assert len([t for t in mf.plots.score_curves(prediction).data if t.mode == "lines"]) == 6
    with pytest.raises(OptionError):
        mf.plots.score_curves(prediction, output=7)
    with pytest.raises(OptionError, match=r"^ngrams=6 is not known\. It can be 'numbers from 0 to 5'\.$"):
        mf.plots.score_curves(prediction, ngrams=[0, 6])


def test_predicted_scores():
    _, both = found("softmax")
    fig = mf.plots.predicted_scores(both[1])
    assert list(fig.data[0].x) == pytest.approx(both[1].predicted.flatten().tolist(), rel=1e-6)
    assert list(fig.data[0].y) == pytest.approx(both[1].measured.flatten().tolist(), rel=1e-6)
    assert fig.data[0].text[3] == "1, class 1"
    assert fig.layout.title.text.startswith("Step 20: Pearson 1.000, not measured")


def test_unseen_bias():
    prediction, both = found()
    fig = mf.plots.unseen_bias(prediction, both)
    assert list(fig.data[0].x) == [5, 20]
    assert list(fig.data[0].y) == pytest.approx(prediction.bias[[1, 0], 4, 0].tolist(), rel=1e-6)
    assert list(fig.data[1].y) == pytest.approx([float(b.bias_measured) for b in both])
    docs, labels = torch.tensor([[0], [1]]), torch.tensor([0, 1])
    seen = predict_features(BagKernel(activation=Activation.of("relu")), docs, labels, docs, steps=1, lr=0.1)
    with pytest.raises(OptionError):
        mf.plots.unseen_bias(seen)


def test_cooccurrence_logits():
    ids = torch.randint(0, 9, (30, 12), generator=torch.Generator().manual_seed(0))
    pairs = cooccurrence(ids, n_tokens=9, window=3)
    finding = compare_language(pairs, torch.stack([pairs.scores(w) for w in range(3)]), torch.arange(3), k=2)
    fig = mf.plots.cooccurrence_logits(finding, names=["a", "b", "c"])
    top, bottom = fig.data
    assert set(top.x) == {"a", "b", "c"}
    assert sorted(top.y) == pytest.approx(sorted(finding.top[~finding.top.isnan()].tolist()), rel=1e-6)
    assert len(bottom.y) == int((~finding.bottom.isnan()).sum())
    assert fig.layout.title.text.startswith("3 of 3 tokens in order; mean AUC 1.00")


def test_movement():
    x, y = torch.randn(6, 3), torch.tensor([0, 1] * 3)
    finding = predict_movement(mlp([3, 16, 2]), x, y, mf.FeatureSet("0", torch.eye(16)[:5]), steps=[1, 4], lr=0.01, n_null=0)
    fig = mf.plots.movement(finding, step=1)
    assert list(fig.data[0].x) == pytest.approx(finding.predicted[0].tolist(), rel=1e-6)
    assert list(fig.data[0].y) == pytest.approx(finding.actual[0].tolist(), rel=1e-6)
    assert fig.layout.title.text.startswith("After 1 step: Pearson ")
    assert mf.plots.movement(finding).data[0].x[0] == pytest.approx(float(finding.predicted[1, 0]), rel=1e-6)
    with pytest.raises(OptionError):
        mf.plots.movement(finding, step=2)
