"""Predicted scores against the documents × documents kernel, literal sums, counts and limits."""

import math
import re

import pytest
import torch
from scipy import sparse

from mechfeat.errors import DtypeError, OptionError, ShapeError, StepSizeError
from mechfeat.models.text import BagMLP, InitSpec
from mechfeat.ntk import FeaturePrediction, empirical_ntk, predict_features
from mechfeat.ntk.analytic import AttentionKernel, BagKernel, BigramKernel, ConvKernel, PooledKernel
from mechfeat.ntk.dual import Activation
from mechfeat.ntk.predict.prediction import fresh
from tests.ntk.predict import toy

RELU, TANH = (BagKernel(activation=Activation.of(name)) for name in ("relu", "tanh"))
GRAMS = torch.tensor([[0, -1], [3, -1], [57, -1], [2, 3], [4, 4], [57, 3], [-1, -1]])


def task(loss, n=200):
    docs, labels, _ = toy.corpus(4 if loss == "softmax" else 2, n=n)
    docs[5] = -1  # an empty document
    return docs, labels.double() - 0.3 if loss == "squared" else labels


@pytest.mark.parametrize("loss", ["logistic", "softmax", "squared"])
@pytest.mark.parametrize("time", ["descent", "flow"])
@pytest.mark.parametrize(
    "kernel", [RELU, TANH, AttentionKernel(residual=True), BigramKernel()], ids=["relu", "tanh", "attention", "bigram"]
)
def test_sparse_features_give_what_the_kernel_gives(loss, time, kernel):
    docs, labels = task(loss)
    options = {"steps": [1, 20, 100], "lr": 0.01, "loss": loss, "time": time, "n_null": 3}
    a, b = (predict_features(kernel, docs, labels, GRAMS, method=way, **options) for way in ("features", "kernel"))
    tolerance = 1e-10 if time == "descent" else 1e-8  # flow is solved to 1e-8, in two different spaces
    for field in ("scores", "bias", "null_scores"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=tolerance)
    for field in ("rate", "rate_bias"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=1e-10)
    if kernel in (RELU, TANH):
        torch.testing.assert_close(a.noise, b.noise, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(a.length, b.length, rtol=1e-6, atol=1e-12)
    assert (a.settings["method"], b.settings["method"]) == ("features", "kernel")
    assert a.scores.abs().max() > 0.01
    assert not a.scores[:, -1].any()  # the empty n-gram


def literal(kernel, docs, y, grams, steps, lr):
    """Gradient descent on the mean loss, a document at a time: y holds ±1, or classes 0 to C - 1 with C outputs."""
    C = int(y.max()) + 1 if y.min() >= 0 else 1
    theta, cross = kernel(docs), kernel(grams, docs)
    f, s = torch.zeros(len(docs), C), torch.zeros(len(grams), C)
    for _ in range(steps):
        residual = torch.zeros(len(docs), C)
        for i in range(len(docs)):
            if C == 1:
                residual[i, 0] = y[i] / (1 + math.exp(float(y[i] * f[i, 0])))
            else:
                e = [math.exp(float(v)) for v in f[i]]
                residual[i] = torch.tensor([(c == int(y[i])) - e[c] / sum(e) for c in range(C)])
        f, s = f + lr / len(docs) * theta @ residual, s + lr / len(docs) * cross @ residual
    return s


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_descent_is_the_literal_one(loss):
    docs, labels = task(loss, n=12)
    labels[:4] = torch.arange(4) if loss == "softmax" else torch.tensor([0, 1, 0, 1])
    found = predict_features(RELU, docs, labels, GRAMS, steps=7, lr=0.2, loss=loss)
    want = literal(RELU, docs, labels if loss == "softmax" else 2 * labels - 1, GRAMS, 7, 0.2)
    torch.testing.assert_close(found.scores[0], want, rtol=0, atol=1e-12)


def test_the_first_step_is_counts_and_a_bias():
    docs, labels = task("logistic")
    found = predict_features(RELU, docs, labels, torch.arange(58)[:, None], steps=1, lr=0.002, reduction="sum", n_null=0)
    n = toy.counts(docs)
    signed = (2 * labels - 1).double() @ n
    want = 0.001 * (RELU.rho - RELU.mu) * signed
    bias = 0.001 * RELU.mu * signed.sum()
    torch.testing.assert_close(found.cooccurrence[0, :, 0], want)
    torch.testing.assert_close(found.bias[0, :, 0], bias.expand(58))
    torch.testing.assert_close(found.first_order(), found.scores[0])


def test_with_classes_the_first_step_is_counts_less_an_even_share():
    docs, labels = task("softmax")
    found = predict_features(
        RELU, docs, labels, torch.arange(58)[:, None], steps=[1, 5], lr=0.001, loss="softmax", reduction="sum", n_null=0
    )
    n = torch.stack([toy.counts(docs)[labels == c].sum(0) for c in range(4)], 1)  # [token class]
    want = (RELU.rho - RELU.mu) * (n - n.sum(1, keepdim=True) / 4)
    bias = RELU.mu * (n.sum(0) - n.sum() / 4)
    torch.testing.assert_close(found.cooccurrence[0], 0.001 * want)
    torch.testing.assert_close(found.bias[0], (0.001 * bias).expand(58, 4))
    torch.testing.assert_close(found.first_order(5), 0.005 * (want + bias))


def test_label_three_is_label_three():
    docs, labels = task("softmax")
    assert sorted(labels.unique().tolist()) == [0, 1, 2, 3]
    order = torch.tensor([2, 3, 1, 0])
    options = {"steps": 40, "lr": 0.05, "loss": "softmax"}
    a = predict_features(RELU, docs, labels, GRAMS, **options)
    b = predict_features(RELU, docs, order[labels], GRAMS, **options)
    torch.testing.assert_close(b.scores[:, :, order], a.scores)
    only = predict_features(RELU, torch.tensor([[7], [8], [9], [10]]), torch.arange(4), torch.tensor([[10]]), **options)
    assert only.scores[0, 0].argmax() == 3


def test_what_no_document_has_gets_the_bias_and_odd_functions_have_none():
    docs, labels, _ = toy.corpus(n=200, lean=0.2, positive=0.9)
    relu, tanh = (
        predict_features(k, docs, labels, torch.tensor([[57, -1], [900, -1], [57, 900]]), steps=[20, 300], lr=0.1) for k in (RELU, TANH)
    )
    assert not relu.seen.any()
    assert bool((relu.scores[:, :2] > 0.01).all())  # most documents are positive
    torch.testing.assert_close(relu.scores, relu.bias)
    torch.testing.assert_close(relu.scores[:, 2], 2 * relu.scores[:, 0])
    assert not tanh.scores.any()


def test_the_bias_of_an_order_sensitive_kernel_is_the_score_of_unknown_tokens():
    docs, labels = task("logistic", n=30)
    kernel = ConvKernel(activation=Activation.of("relu"), n_tokens=58)
    found = predict_features(kernel, docs, labels, GRAMS, steps=5, lr=0.01, n_tokens=58, n_null=0)
    unknown = predict_features(ConvKernel(activation=Activation.of("relu")), docs, labels, fresh(GRAMS, 90), steps=5, lr=0.01, n_null=0)
    assert found.settings["method"] == "kernel"
    torch.testing.assert_close(found.bias, unknown.scores)
    torch.testing.assert_close(found.scores[:, 2], found.bias[:, 2])
    assert found.cooccurrence[0, 0].abs() > 1e-4


def test_the_bias_of_a_pooled_kernel_needs_no_room_in_its_vocabulary():
    docs, labels = torch.tensor([[0, 2, 1], [1, 2, -1], [0, -1, -1], [3, 1, -1]]), torch.tensor([1, 0, 1, 0])
    grams = torch.tensor([[0, -1], [5, -1], [1, 2]])
    phi = Activation.of("relu")
    bounded, free = (PooledKernel.of(ConvKernel(activation=phi, n_tokens=n)) for n in (6, None))
    a, b = (predict_features(kernel, docs, labels, grams, steps=3, lr=0.01, n_null=0) for kernel in (bounded, free))
    torch.testing.assert_close(a.bias, b.bias)
    torch.testing.assert_close(a.scores[:, 1], a.bias[:, 1])
    assert a.bias.all()


def test_fresh_tokens_keep_what_is_equal():
    found = fresh(torch.tensor([[4, 2, 4, 7], [3, 3, -1, -1], [-1, -1, -1, -1]]), 10)
    assert found.tolist() == [[10, 11, 10, 12], [10, 10, -1, -1], [-1, -1, -1, -1]]


def test_counts_do_for_documents():
    docs, labels = task("logistic")
    n = sparse.csr_matrix(toy.counts(docs, 50).numpy())
    a, b = (predict_features(RELU, d, labels, GRAMS, steps=[3, 30], lr=0.1, n_null=2) for d in (docs, n))
    torch.testing.assert_close(a.scores, b.scores)
    torch.testing.assert_close(a.null_scores, b.null_scores)
    assert torch.equal(a.seen, b.seen)
    at = n.tocoo()
    stored = sparse.csr_matrix(([*at.data, 0.0], ([*at.row, 0], [*at.col, 57])), shape=(n.shape[0], 58))
    assert stored.nnz == n.nnz + 1  # a zero that is stored, and still no occurrence
    assert torch.equal(predict_features(RELU, stored, labels, GRAMS, steps=1, lr=0.1, n_null=0).seen, a.seen)


@pytest.mark.parametrize(
    "kernel", [RELU, AttentionKernel(), ConvKernel(activation=Activation.of("relu"))], ids=["bag", "attention", "conv"]
)
def test_padding_changes_no_score(kernel):
    docs, labels = task("logistic", n=25)
    wide = torch.nn.functional.pad(docs, (0, 3), value=-1)
    a = predict_features(kernel, docs, labels, GRAMS, steps=9, lr=0.05, n_null=0)
    b = predict_features(kernel, wide, labels, torch.nn.functional.pad(GRAMS, (0, 2), value=-1), steps=9, lr=0.05, n_null=0)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-12)


def test_empty_documents_count_in_a_mean_and_nothing_else():
    docs, labels = task("logistic", n=40)
    more = torch.cat([docs, torch.full((40, docs.shape[1]), -1)])
    a = predict_features(RELU, docs, labels, GRAMS, steps=9, lr=0.05, n_null=0)
    b = predict_features(RELU, more, torch.cat([labels, labels]), GRAMS, steps=9, lr=0.1, n_null=0)
    torch.testing.assert_close(a.scores, b.scores)
    nothing = predict_features(RELU, torch.full((3, 4), -1), torch.tensor([0, 1, 1]), GRAMS, steps=9, lr=0.05)
    assert not nothing.scores.any()
    assert not nothing.seen.any()


def test_one_class_alone_is_learnt_and_has_no_null():
    docs, _ = task("logistic", n=30)
    found = predict_features(RELU, docs, torch.ones(30, dtype=torch.int64), GRAMS, steps=9, lr=0.05)
    assert found.null_scores is None
    assert found.settings["no null because"] == "all labels are equal"
    assert bool((found.scores[0, :5] > 0).all())
    three = predict_features(RELU, docs, torch.ones(30, dtype=torch.int64), GRAMS, steps=9, lr=0.05, loss="softmax", n_classes=3)
    torch.testing.assert_close(three.scores.sum(-1), torch.zeros(1, 7))
    assert three.scores[0, 0].argmax() == 1


def test_null_scores_are_predictions_from_permuted_labels():
    from mechfeat.nulls import permuted_labels

    docs, labels = task("logistic", n=40)
    found = predict_features(RELU, docs, labels, GRAMS, steps=[3, 30], lr=0.1, n_null=4, seed=9)
    for draw, order in zip(found.null_scores, permuted_labels(torch.arange(40), 4, generator=torch.Generator().manual_seed(9))):
        again = predict_features(RELU, docs, labels[order], GRAMS, steps=30, lr=0.1, n_null=0)
        torch.testing.assert_close(draw, again.scores[0])


def test_an_empirical_kernel_will_do():
    docs, labels = task("softmax", n=20)
    net = BagMLP(58, 8, 8, n_outputs=4)
    both = predict_features(lambda a, b=None: empirical_ntk(net, a, b), docs, labels, GRAMS, steps=5, lr=0.01, loss="softmax", n_tokens=58)
    assert bool(both.bias.isnan().all())  # the vocabulary has no tokens beyond those of GRAMS
    own = toy.own_kernel(net)
    again = predict_features(own, docs, labels, GRAMS, steps=5, lr=0.01, loss="softmax", n_tokens=58)
    torch.testing.assert_close(both.scores, again.scores)


@pytest.mark.usefixtures("unchecked")
def test_an_empirical_kernel_without_room_for_unseen_tokens_says_so():
    docs, labels = task("logistic", n=20)
    net = BagMLP(58, 8, 8)
    with pytest.raises(ShapeError) as caught:
        predict_features(lambda a, b=None: empirical_ntk(net, a, b), docs, labels, GRAMS, steps=5, lr=0.01)
    assert str(caught.value) == (
        "The bias part is the score of tokens that no document has, here 58 and up, and the kernel refuses them (ids[3, 1] is 59. Tokens "
        "of this vocabulary are 0 to 57, and padding is -1.). Give n_tokens, the size of its vocabulary: without room for such tokens the "
        "bias part is NaN."
    )


def test_networks_of_another_number_of_outputs_are_refused():
    docs, labels = task("softmax", n=20)
    labels[:4] = torch.arange(4)
    with pytest.raises(ShapeError) as caught:
        predict_features(RELU, docs, labels, GRAMS, steps=1, lr=0.01, loss="softmax", width=8, networks=[BagMLP(58, 8, 8)] * 2)
    assert str(caught.value) == (
        "networks holds one with 1 outputs, and softmax loss of these labels takes 4. Give networks like the one that is predicted for."
    )


def test_the_table_prints_each_score_with_its_cross_talk_and_a_verdict(tmp_path):
    docs, labels = task("logistic")
    found = predict_features(RELU, docs, labels, GRAMS, steps=[1, 20], lr=0.1, width=512, names=["a", "b", "c", "d", "e", "f", "g"])
    lines = str(found).splitlines()
    assert lines[0] == "Predicted scores at steps 20, logistic loss"
    assert lines[1].split() == ["n-gram", "score", "cross-talk", "co-occurrence", "bias"]
    assert len(lines) == 2 + 7 + 1
    for line in lines[2:9]:
        assert re.fullmatch(r"[a-g] +[+-][\d.e-]+ +± [\d.e-]+ +[+-][\d.e-]+ +[+-][\d.e-]+", line), line
    assert lines[-1].startswith("kernel regime expected: parameters move by about 0.0")
    small = BagKernel(activation=Activation.of("relu"), init=InitSpec.uniform(0.1))
    rich = predict_features(small, docs, labels, GRAMS, steps=20, lr=500.0, width=512, n_null=0)
    assert str(rich).splitlines()[-1].startswith("rich expected: parameters move by about ")
    unsaid = predict_features(RELU, docs, labels, GRAMS, steps=20, lr=0.1, n_null=0).table(rows=2).splitlines()
    assert "/√width" in unsaid[2]
    assert unsaid[-2:] == ["(5 more)", "regime unknown: give width=, or measure the drift with compare"]
    classes = predict_features(RELU, docs, labels, GRAMS, steps=20, lr=0.1, loss="softmax", width=512, n_null=0)
    assert str(classes).count("±") == 14
    found.save(tmp_path / "p.safetensors")
    assert str(FeaturePrediction.load(tmp_path / "p.safetensors")) == str(found)


def test_rates_beyond_the_limit():
    docs, labels = task("squared", n=30)
    limit = 2 * 30 / float(torch.linalg.eigvalsh(RELU(docs)).max())
    with pytest.raises(StepSizeError) as caught:
        predict_features(RELU, docs, labels, GRAMS, steps=1, lr=1.01 * limit, loss="squared")
    assert caught.value.limit == pytest.approx(limit)
    predict_features(RELU, docs, labels, GRAMS, steps=1, lr=0.99 * limit, loss="squared", n_null=0)
    with pytest.warns(UserWarning, match="is above .*, up to which each step"):
        predict_features(RELU, docs, task("logistic", n=30)[1], GRAMS, steps=1, lr=4.1 * limit, n_null=0)


def test_squared_loss_on_a_singular_kernel_is_what_small_steps_give():
    """Check 12 of the reference: Euler's steps of 1e-4, to 1e-4, and no NaN."""
    docs, _, grams = toy.corpus(n=120, v=20)
    y, lr, t, step = torch.randn(120), 0.1, 1.0, 1e-4
    theta, cross = RELU(docs), RELU(grams, docs)
    assert torch.linalg.matrix_rank(theta) <= 21
    both, f = torch.cat([theta, cross]), torch.zeros(120 + len(grams))
    for _ in range(round(t / step)):
        f += both @ (lr * step / 120 * (y - f[:120]))
    for way in ("features", "kernel"):
        options = {"steps": [t, 1e6], "lr": lr, "loss": "squared", "time": "flow", "method": way, "n_null": 0}
        found = predict_features(RELU, docs, y, grams, **(options if way == "kernel" else options | {"steps": [t]}))
        assert bool(found.scores.isfinite().all())
        assert (found.scores[0, :, 0] - f[120:]).norm() / f[120:].norm() <= 1e-4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (OptionError, "y=0 to 3 is not known. It can be class indices from 0 to 2.", {"loss": "softmax", "n_classes": 3}),
        (OptionError, "y=0, 1, 2, 3 is not known. It can be labels of 0 and 1, of -1 and 1.", {"loss": "logistic"}),
        (OptionError, "n_classes=1 is not known. It can be 'a number of classes, at least 2'.", {"n_classes": 1}),
        (OptionError, "steps=1.5 is not known. It can be 'a number of steps, 0 or more', 'several of them'.", {"steps": 1.5}),
        (OptionError, "steps='10' is not known. It can be 'a number of steps, 0 or more', 'several of them'.", {"steps": "10"}),
        (
            OptionError,
            "steps=tensor([1, 2]) is not known. It can be 'a number of steps, 0 or more', 'several of them'.",
            {"steps": torch.tensor([1, 2])},
        ),
        *(
            (
                OptionError,
                f"width={width} is not known. It can be 'a positive integer', 'two of them, embedding size and hidden width'.",
                {"width": width},
            )
            for width in (0, (8,), (8, -1), 8.0)
        ),
        (OptionError, "steps=[] is not known. It can be 'a number of steps, 0 or more', 'several of them'.", {"steps": []}),
        (OptionError, "lr=0 is not known. It can be 'a positive number'.", {"lr": 0}),
        (OptionError, "time='euler' is not known. It can be 'descent', 'flow'.", {"time": "euler"}),
        (OptionError, "method='gram' is not known. It can be 'auto', 'features', 'kernel'.", {"method": "gram"}),
        (OptionError, "n_null=-1 is not known. It can be 'a number of draws, 0 for none'.", {"n_null": -1}),
        (
            ShapeError,
            "In ngrams: ids[2, 0] is 57. Tokens of this vocabulary are 0 to 56, and padding is -1.",
            {"n_tokens": 57},
        ),
        (ShapeError, "names has 1 entries, and there are 7 n-grams. Give one name an n-gram, or none.", {"names": ["a"]}),
        (
            ShapeError,
            "networks holds 1 networks, with width=None and method='auto'. A spread needs two or more of one width, given as width=, and "
            "method='kernel'.",
            {"networks": [None]},
        ),
    ],
)
def test_refusals(error, message, options):
    docs, labels = task("softmax", n=30)
    labels[:4] = torch.arange(4)
    with pytest.raises(error) as caught:
        predict_features(RELU, docs, labels, GRAMS, **{"steps": 2, "lr": 0.1, "loss": "softmax"} | options)
    assert str(caught.value) == message


def counted(docs, first):
    """Documents as counts, of which one is something else."""
    n = sparse.csr_matrix(toy.counts(docs).numpy())
    n.data[0] = first
    return n


@pytest.mark.usefixtures("unchecked")
def test_refusals_of_documents():
    docs, labels = task("logistic", n=30)
    for error, message, args in (
        (ShapeError, "labels has 29 entries, and there are 30 documents. Each document needs one label.", (RELU, docs, labels[1:], GRAMS)),
        (DtypeError, "labels is of list. Give a tensor with one entry a document.", (RELU, docs, labels.tolist(), GRAMS)),
        *(
            (ShapeError, f"docs holds the count {wrong}. Counts of tokens are 0 or more.", (RELU, counted(docs, wrong), labels, GRAMS))
            for wrong in (math.nan, math.inf, -1)
        ),
        (ShapeError, "docs has shape [0, 12]. At least one row is needed.", (RELU, docs[:0], labels[:0], GRAMS)),
        (
            DtypeError,
            "In docs: ids is torch.float64. Documents are integer token ids, padded by -1: torch.int64 of shape [doc position].",
            (RELU, docs.double(), labels, GRAMS),
        ),
        (
            ShapeError,
            "docs are token counts, and AttentionKernel needs the order of tokens. Give padded ids [doc position].",
            (AttentionKernel(), sparse.csr_matrix(toy.counts(docs).numpy()), labels, GRAMS),
        ),
    ):
        with pytest.raises(error) as caught:
            predict_features(*args, steps=2, lr=0.1)
        assert str(caught.value) == message
    with pytest.raises(ShapeError) as caught:
        predict_features(toy.own_kernel(BagMLP(58, 4, 4)), docs, labels, GRAMS, steps=2, lr=0.1, method="features")
    assert str(caught.value) == "function has no sparse features (feature_map). Use method='kernel'."
    found = predict_features(RELU, docs, labels, GRAMS, steps=[2, 5], lr=0.1)
    with pytest.raises(OptionError) as caught:
        found.table(step=3)
    assert str(caught.value) == "step=3 is not known. It can be 2, 5."
