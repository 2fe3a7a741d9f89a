"""Each kernel against its formula, term by term, on documents of all lengths; and padding, batches and frozen parts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechfeat.bench.oracles import token_kernels as oracle
from mechfeat.bench.token_models import FORMS, INIT, build, given_mixing
from mechfeat.errors import DtypeError, NonFiniteError, ShapeError
from mechfeat.models.text import InitSpec, pad
from mechfeat.ntk.analytic import (
    AttentionKernel,
    BagKernel,
    BigramKernel,
    ConvKernel,
    GatedLinearRNNKernel,
    HadamardKernel,
    LinearRNNKernel,
    MatrixVectorRNNKernel,
    MixingKernel,
    PooledKernel,
    base,
    kernel_of,
)
from mechfeat.ntk.dual import Activation

SD = oracle.Sd(e=1.1, w=0.9, v=0.8, M=1.2, h=0.7, x=1.3)
RELU, ERF = Activation.of("relu"), Activation.of("erf")
documents = st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=3)


def with_identity(rows, r):
    return [[a + r * (i == j) for j, a in enumerate(row)] for i, row in enumerate(rows)]


def attends(doc, r, causal=False):
    return with_identity(oracle.attention_weights(doc, SD, causal), r)


def averages(doc, r):
    return with_identity([[1 / len(doc)] * len(doc)] * len(doc), r)


def mixes(matrix, causal=False, last=False, dual=None):
    return lambda x, y: oracle.mixing(x, y, matrix(x), matrix(y), SD, dual or oracle.relu(), last)


def pooled(last):
    return lambda x, y: oracle.pooled(last, x, y)


def on(formula, *rest, **options):
    return lambda x, y: formula(x, y, SD, *rest, **options)


GIVEN = given_mixing().tolist()
GATED = on(oracle.gated_linear_rnn, oracle.erf())
CASES = {
    "bag relu": (BagKernel(activation=RELU, init=INIT), on(oracle.bag, oracle.relu())),
    "bag erf": (BagKernel(activation=ERF, init=INIT), on(oracle.bag, oracle.erf())),
    **{
        f"cnn {K} padding {p}": (ConvKernel(activation=RELU, kernel_size=K, padding=p, init=INIT), on(oracle.conv, oracle.relu(), K, p))
        for K, p in ((1, 0), (2, 1), (3, 2), (3, 1), (3, 0), (5, 2))
    },
    "cnn erf": (ConvKernel(activation=ERF, init=INIT), on(oracle.conv, oracle.erf(), 3, 2)),
    **{
        f"attention value={v} residual={r}": (AttentionKernel(value=v, residual=r, init=INIT), on(oracle.attention, value=v, residual=r))
        for v in (False, True)
        for r in (False, True)
    },
    "attention separate": (
        AttentionKernel(query_key="separate", init=INIT),
        on(oracle.attention, value=False, residual=False, uniform=True),
    ),
    "mixing attention": (MixingKernel(activation=RELU, init=INIT), mixes(lambda d: attends(d, 1.0))),
    "mixing causal last": (
        MixingKernel(activation=ERF, mixing="causal_attention", readout="last", init=INIT),
        mixes(lambda d: attends(d, 1.0, causal=True), last=True, dual=oracle.erf()),
    ),
    "mixing mean": (MixingKernel(activation=RELU, mixing="mean", residual=0.5, init=INIT), mixes(lambda d: averages(d, 0.5))),
    "mixing given": (MixingKernel(activation=ERF, mixing=given_mixing(), residual=0, init=INIT), mixes(lambda d: GIVEN, dual=oracle.erf())),
    "bigram": (BigramKernel(unigram=0.7, init=INIT), on(oracle.bigram, 0.7)),
    "hadamard": (HadamardKernel(init=INIT), on(oracle.hadamard)),
    "mv-rnn": (MatrixVectorRNNKernel(init=INIT), on(oracle.matrix_vector_rnn)),
    "mv-rnn sum": (MatrixVectorRNNKernel(readout="sum", init=INIT), pooled(on(oracle.matrix_vector_rnn))),
    "linear rnn": (LinearRNNKernel(init=INIT), on(oracle.linear_rnn)),
    "linear rnn sum": (LinearRNNKernel(readout="sum", init=INIT), pooled(on(oracle.linear_rnn))),
    "linear rnn pooled": (PooledKernel(last=LinearRNNKernel(init=INIT)), pooled(on(oracle.linear_rnn))),
    "gated rnn": (GatedLinearRNNKernel(activation=ERF, init=INIT), GATED),
    "gated rnn sum": (GatedLinearRNNKernel(activation=ERF, readout="sum", init=INIT), pooled(GATED)),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8)
@given(x=documents, y=documents)
def test_matches_the_double_sum(name, x, y):
    kernel, formula = CASES[name]
    want = torch.tensor([[formula(a, b) if a and b else 0.0 for b in y] for a in x], dtype=torch.float64)
    # Between vectors of different lengths a cosine of 1 may round below it: an angle of 1e-8, by which k1 of ReLU differs.
    torch.testing.assert_close(kernel(pad(x), pad(y)), want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_kernel_of_a_batch_with_itself(name, monkeypatch):
    kernel, _ = CASES[name]
    ids = torch.where(torch.arange(5) < torch.randint(0, 6, (12, 1)), torch.randint(0, 4, (12, 5)), -1)
    theta = kernel(ids)
    assert torch.equal(theta, theta.T)
    assert torch.linalg.eigvalsh(theta).min() >= -1e-10 * theta.diagonal().max()
    torch.testing.assert_close(theta, kernel(ids, ids), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(base, "CELLS", 60)  # blocks of a document or two
    torch.testing.assert_close(kernel(ids), theta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel(ids[:5], ids), theta[:5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_ids_are_checked_on_both_sides(name, unchecked):
    """Beyond the vocabulary, or padding inside: such documents are no rows and no columns of a kernel."""
    kernel, good = kernel_of(build(name, 4)), pad([[0, 1]])
    for bad, message in (
        (pad([[0, 6]]), "ids[0, 1] is 6. Tokens of this vocabulary are 0 to 5, and padding is -1."),
        (torch.tensor([[-1, 2]]), "ids[0, 0] is padding and ids[0, 1] is a token. Padding stands at the end of a document only;"),
    ):
        for pair in ((bad,), (bad, good), (good, bad)):
            with pytest.raises(ShapeError) as caught:
                kernel(*pair)
            assert str(caught.value).startswith(message)


def test_norms_that_differ_by_rounding_are_one():
    """At a cosine of 1 they would leave an angle of 1e-8, which k1 of ReLU sees."""
    q = torch.tensor([0.3, 0.1 + 0.2])
    found = base.looked_up(lambda *at: RELU.k1(*at), q, q.flip(0), q[[0, 0]])
    assert found.tolist() == [0.5, 0.5]
    assert float(RELU.k1(q[0], q[1], q[0])) < 0.5 - 1e-9


def test_a_mixed_document_meets_itself_at_no_angle():
    """The mean of n different tokens has the squared norm 1/n, and with ReLU the kernel 1.5/n, to the last digits."""
    kernel = MixingKernel(activation=RELU, mixing="mean", residual=0, readout="last")
    found = torch.stack([kernel(torch.arange(n)[None])[0, 0] * n for n in range(1, 60)])
    torch.testing.assert_close(found, torch.full((59,), 1.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FORMS)
def test_padding_and_company_change_nothing(name):
    """Neither positions of padding nor a longer document in the batch."""
    model = build(name, 16)
    kernel, docs = kernel_of(model), [[0, 1, 2], [3], [2, 2], []]
    ids = pad(docs)
    longer, with_company = pad(docs, length=5), pad([*docs, [0, 1, 2, 3, 4]])
    assert (kernel(longer) - kernel(ids)).abs().max() <= 1e-12
    assert (kernel(with_company)[:4, :4] - kernel(ids)).abs().max() <= 1e-12
    assert (kernel(ids, longer) - kernel(ids)).abs().max() <= 1e-12
    assert not kernel(ids)[3].any()


@pytest.mark.parametrize("readout", ["sum", "last"])
@pytest.mark.parametrize("mixing", ["none", "mean", "causal_attention"])
def test_an_empty_document_has_no_kernel_where_the_activation_is_not_zero_at_zero(mixing, readout):
    theta = MixingKernel(activation=Activation.of("cos"), mixing=mixing, readout=readout)(pad([[0, 1], []]))
    assert theta[0, 0] > 0
    assert not theta[1].any()


def test_a_frozen_part_takes_its_gradient_away():
    """The parts add up: training all is training each alone."""
    ids = pad([[0, 1, 2], [1], [2, 2, 3, 0]])
    parts = ("embedding", "hidden", "readout", "token_matrix", "recurrence", "inputs")
    for name in FORMS:
        kernel = kernel_of(build(name, 8))
        alone = [replace(kernel, init=replace(INIT, frozen=frozenset(parts) - {part}))(ids) for part in parts]
        torch.testing.assert_close(sum(alone), kernel(ids), rtol=1e-9, atol=1e-9)


def test_frozen_embeddings_drop_the_hidden_variance_from_rho():
    """Equal standard deviations: 1/2 from the read-out and 1/2 from each of hidden layer and embeddings."""
    assert BagKernel(activation=RELU).rho == 1.5
    assert BagKernel(activation=RELU, init=InitSpec(frozen=frozenset({"embedding"}))).rho == 1.0


def test_bag_of_counts_is_the_bag_of_ids():
    kernel = BagKernel(activation=RELU, init=INIT)
    ids = torch.randint(0, 5, (7, 9))
    counts = torch.nn.functional.one_hot(ids, 5).sum(1)
    torch.testing.assert_close(kernel.on_counts(counts.numpy()), kernel(ids))
    torch.testing.assert_close(kernel.on_counts(counts[:2].numpy(), counts.numpy()), kernel(ids[:2], ids))


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        (([[1, 0]], [[1, 0, 2]]), ShapeError, "n1 counts 2 tokens, and n2 3. Count both over one vocabulary."),
        (([1, 0, 1],), ShapeError, "n1 has shape [3]. Counts are [doc token]."),
        (
            ([[1, 0]], [[1, -1]]),
            NonFiniteError,
            "n2 holds a count that is negative, NaN or infinite. Counts are finite numbers of at least 0.",
        ),
        (
            ([[math.nan, 0]],),
            NonFiniteError,
            "n1 holds a count that is negative, NaN or infinite. Counts are finite numbers of at least 0.",
        ),
    ],
)
def test_bad_counts(counts, error, message, unchecked):
    with pytest.raises(error) as caught:
        BagKernel(activation=RELU).on_counts(*counts)
    assert str(caught.value) == message


def test_counts_of_another_vocabulary(unchecked):
    with pytest.raises(ShapeError) as caught:
        BagKernel(activation=RELU, n_tokens=2).on_counts([[1, 0, 1]])
    assert str(caught.value) == "n1 has shape [1, 3]. Counts are [doc 2] for this kernel's vocabulary."


@pytest.mark.parametrize("kernel", [BagKernel, ConvKernel, MixingKernel, GatedLinearRNNKernel])
def test_an_activation_without_its_duals_is_refused(kernel, unchecked):
    with pytest.raises(DtypeError) as caught:
        kernel(activation="relu")
    assert str(caught.value) == "activation='relu' is of str. A kernel needs its dual activations: Activation.of('relu')."


@pytest.mark.parametrize("name", [n for n, (k, _) in CASES.items() if hasattr(k, "feature_map")])
def test_feature_map_is_the_kernel(name):
    import numpy as np

    kernel, _ = CASES[name]
    ids = torch.randint(0, 4, (6, 5))
    total = np.zeros((6, 6))
    for block in kernel.feature_map().blocks:
        phi = block.features(ids, 4)
        total += block.weight * (phi @ phi.T).toarray()
    np.testing.assert_allclose(total, kernel(ids).numpy(), rtol=1e-12)


def test_columns_of_bigrams_are_where_the_map_says():
    """Vocabulary times the first token, plus the second."""
    tokens, bigrams = BigramKernel().feature_map().blocks
    phi = bigrams.features(pad([[0, 3, 2], [3, 0, 3, 0], [1]]), 5).toarray()
    assert {(int(i), int(j)): float(phi[i, j]) for i, j in zip(*phi.nonzero())} == {
        (0, 5 * 0 + 3): 1.0,
        (0, 5 * 3 + 2): 1.0,
        (1, 5 * 3 + 0): 2.0,
        (1, 5 * 0 + 3): 1.0,
    }
    assert (tokens.name, bigrams.name) == ("tokens", "bigrams")


def test_odd_activations_have_no_shared_feature():
    assert [BagKernel(activation=Activation.of(n)).mu for n in ("tanh", "erf", "sin", "linear")] == [0.0] * 4


def test_bigrams_of_a_large_vocabulary_need_no_square_of_it():
    ids = torch.tensor([[29_998, 29_999, 29_998], [29_998, 29_999, -1]])
    want = torch.tensor([[2 * 5 + 3 * 2, 2 * 3 + 3], [2 * 3 + 3, 2 * 2 + 3]], dtype=torch.float64)
    torch.testing.assert_close(BigramKernel()(ids), want)
