"""Text models: what they compute, that padding never contributes, hooks, fast kernels."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechfeat.bench.token_models import FORMS, IDS, INIT, build
from mechfeat.errors import DtypeError, OptionError, ShapeError
from mechfeat.hooks import Ablate, HookedModel
from mechfeat.models.text import (
    BagMLP,
    BigramMatrixVector,
    CausalTransformerLM,
    Centred,
    GatedLinearRNN,
    HadamardBigram,
    InitSpec,
    LinearRNN,
    MatrixVectorRNN,
    MixingBlock,
    SelfAttention,
    TextCNN,
    check_ids,
    pad,
)
from mechfeat.ntk import empirical_ntk

documents = st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=3)
D = 7


def model(kind, *sizes, **options):
    return kind(6, *sizes, init=INIT, generator=torch.Generator().manual_seed(3), **options)


# What they compute: literal transcriptions, one document at a time


def bag(m, doc):
    return sum(m.W_U @ torch.cos(m.W_in @ m.W_E[t] / D**0.5) for t in doc) / 9**0.5


def cnn(m, doc, K=3, padding=1):
    zero = torch.zeros(D)
    E = [zero] * padding + [m.W_E[t] for t in doc] + [zero] * padding
    windows = [E[p : p + K] for p in range(len(E) - K + 1)]
    return sum(m.W_U @ torch.cos(sum(m.W_in[:, :, k] @ w[k] for k in range(K)) / D**0.5) for w in windows) / 9**0.5


def attention(m, doc):
    E = m.W_E[doc]
    q, k, u = (E @ W.T / D**0.5 for W in (m.W_Q, m.W_K, m.W_V))
    return m.W_U @ (torch.softmax(q @ k.T / D**0.5, -1) @ u + E).sum(0) / D**0.5


def block(m, doc):
    E, total = m.W_E[doc], 0
    for i in range(len(doc)):
        scores = torch.stack([E[i] @ E[j] / D for j in range(i + 1)])
        z = 0.5 * E[i] + torch.softmax(scores, 0) @ E[: i + 1]
        total = total + m.W_U @ torch.cos(m.W_in @ z / D**0.5)
    return total / 9**0.5


def bigram(m, doc):
    h = 0.7 * m.W_E[doc].sum(0) + sum(m.M[a] @ m.W_E[b] / D**0.5 for a, b in pairwise(doc))
    return m.W_U @ h / D**0.5


def hadamard(m, doc):
    return m.W_U @ sum(((m.W_1 @ m.W_E[a]) * (m.W_2 @ m.W_E[b]) / D for a, b in pairwise(doc)), torch.zeros(9)) / 9**0.5


def states(m, doc, step, width):
    h, found = torch.zeros(width), []
    for t in doc:
        h = step(m, t, h)
        found.append(h)
    return found


def mv_step(m, t, h):
    return m.M[t] @ h / D**0.5 + m.W_E[t]


def linear_step(m, t, h):
    return m.W_h @ h / D**0.5 + m.W_E[t]


def gated_step(m, t, h):
    u = m.W_x @ m.W_E[t] / D**0.5
    return torch.tanh(u) + (1 - torch.tanh(u) ** 2) * (m.W_h @ h / 9**0.5)


def recurrent(step, width, readout):
    def score(m, doc):
        found = states(m, doc, step, width)
        return m.W_U @ (found[-1] if readout == "last" else sum(found)) / width**0.5

    return score


LITERAL = {
    "bag": (model(BagMLP, D, 9, activation="cos", n_outputs=2), bag),
    "cnn": (model(TextCNN, D, 9, padding=1, activation="cos"), cnn),
    "attention": (
        model(SelfAttention, D, value=True, residual=True, scaling="1/sqrt(d)", query_key="separate"),
        attention,
    ),
    "block": (model(MixingBlock, D, 9, mixing="causal_attention", residual=0.5, activation="cos"), block),
    "bigram": (model(BigramMatrixVector, D, unigram=0.7), bigram),
    "hadamard": (model(HadamardBigram, D, 9), hadamard),
    **{f"mv-rnn {r}": (model(MatrixVectorRNN, D, readout=r), recurrent(mv_step, D, r)) for r in ("last", "sum")},
    **{f"linear rnn {r}": (model(LinearRNN, D, readout=r), recurrent(linear_step, D, r)) for r in ("last", "sum")},
    **{f"gated rnn {r}": (model(GatedLinearRNN, D, 9, readout=r), recurrent(gated_step, 9, r)) for r in ("last", "sum")},
}


@pytest.mark.parametrize("name", LITERAL)
@settings(max_examples=8)
@given(docs=documents)
def test_computes_its_formula(name, docs):
    m, literal = LITERAL[name]
    m = copy.deepcopy(m).double()
    none = torch.zeros(m.n_outputs)
    want = torch.stack([literal(m, doc) if doc else none for doc in docs])
    torch.testing.assert_close(m(pad(docs)), want)


# Padding, hooks, kernels: the same for all


@pytest.mark.parametrize("name", FORMS)
def test_padding_and_company_change_neither_outputs_nor_kernel(name):
    """And the kernel comes from fast rules, all of them proved."""
    m = build(name, 12)
    short, ids = IDS[[0, 1, 5]], IDS[[0, 1, 5], :3]
    assert (m(short) - m(ids)).abs().max() <= 1e-12
    assert (m(IDS)[[0, 1, 5]] - m(ids)).abs().max() <= 1e-12
    assert not m(torch.full((2, 4), -1)).any()
    assert m(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 1)
    found = empirical_ntk(m, IDS, outputs="trace", strict=True, prove="always")
    assert {c.path for c in found.coverage} == {"rule"}
    K = found.kernel
    assert (empirical_ntk(m, ids, outputs="trace", prove="never").kernel - K[[0, 1, 5]][:, [0, 1, 5]]).abs().max() <= 1e-12


@pytest.mark.parametrize("name", FORMS)
def test_hooks_see_and_change_what_passes(name):
    m = build(name, 12)
    hooked = HookedModel(m)
    out, cache = hooked.run_with_cache(IDS)
    assert torch.equal(out, m(IDS))
    torch.testing.assert_close(cache["pooled"] @ m.W_U.T / m.width**0.5, out)
    assert cache["embed"].shape == (*IDS.shape, 12)
    with hooked.hooks(Ablate("pooled")):
        assert not hooked(IDS).any()


@pytest.mark.parametrize("name", FORMS)
def test_generators_and_outputs(name):
    """One seed, one model; more outputs leave the other weights alone."""
    one, again, many = build(name, 6), build(name, 6), build(name, 6, n_outputs=3)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), again.parameters()))
    assert all(torch.equal(p, dict(many.named_parameters())[n]) for n, p in one.named_parameters() if n != "W_U")
    assert many(IDS).shape == (len(IDS), 3)
    assert not torch.equal(build(name, 6, seed=1).W_E, one.W_E)
    copy.deepcopy(one)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_ids_of_every_integer_dtype_are_the_same_documents(dtype):
    for m in (*(build(name, 6) for name in FORMS), CausalTransformerLM(6, 5, d_model=4)):
        assert torch.equal(m(IDS.to(dtype)), m(IDS))


def test_initial_standard_deviations():
    m = GatedLinearRNN(50, 200, 200, init=INIT)
    for p, sd in ((m.W_E, 1.1), (m.W_x, 1.3), (m.W_h, 0.7)):
        assert float(p.detach().std()) == pytest.approx(sd, rel=0.03)


def test_mixing_is_cut_to_each_document():
    """A document alone, and beside longer ones, is mixed by the same corner of the matrix."""
    m = build("mixing matrix relu", 6)
    assert torch.allclose(m(IDS)[1:2], m(IDS[1:2, :1]))
    A = HookedModel(m).record(IDS, "pattern")["pattern"]
    assert not A[1][1:].any()
    assert not A[1][:, 1:].any()
    torch.testing.assert_close(A[3], m.matrix)


def test_windows_need_a_token():
    """Two tokens have no window of four places without padding, and two with padding 1... of which each holds a token."""
    m = TextCNN(6, 5, 5, kernel_size=4, padding=0, activation="cos")
    assert not m(pad([[0, 1]])).any()
    assert m(pad([[0, 1, 2, 3], [0, 1]]))[0].any()


# Bad input


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            torch.tensor([[0.5]], dtype=torch.float64),
            "ids is torch.float64. Documents are integer token ids, padded by -1: torch.int64 of shape [doc position].",
        ),
        (torch.tensor([0, 1]), "ids has shape [2]. Documents are [doc position]; one document is ids[None]."),
        (torch.tensor([[0], [5]]), "ids[1, 0] is 5. Tokens of this vocabulary are 0 to 4, and padding is -1."),
        (torch.tensor([[0, -2]]), "ids[0, 1] is -2. Tokens of this vocabulary are 0 to 4, and padding is -1."),
        (
            torch.tensor([[0, -1, 2]]),
            "ids[0, 1] is padding and ids[0, 2] is a token. Padding stands at the end of a document only;"
            " mechfeat.models.text.pad makes such rows from lists.",
        ),
    ],
)
def test_bad_ids(ids, message, unchecked):
    for check in (lambda: check_ids(ids, 5), lambda: BagMLP(5, 4, 4)(ids)):
        with pytest.raises((DtypeError, ShapeError)) as error:
            check()
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InitSpec(hidden=-1), "hidden=-1 is not known. It can be 'a finite number of at least 0'."),
        (
            lambda: InitSpec(frozen=frozenset({"embeddings"})),
            "frozen='embeddings' is not known. It can be 'embedding', 'hidden', 'readout', 'token_matrix', 'recurrence', 'inputs'.",
        ),
        (
            lambda: InitSpec().trains("bias"),
            "part='bias' is not known. It can be 'embedding', 'hidden', 'readout', 'token_matrix', 'recurrence', 'inputs'.",
        ),
        (lambda: BagMLP(0, 4, 4), "n_tokens=0 is not known. It can be 'a positive integer'."),
        (lambda: TextCNN(5, 4, 4, padding=3), "padding=3 is not known. It can be 0, 1, 2."),
        (lambda: TextCNN(5, 4, 4, kernel_size=0), "kernel_size=0 is not known. It can be 'a positive integer'."),
        (lambda: SelfAttention(5, 4, scaling="d"), "scaling='d' is not known. It can be '1/d', '1/sqrt(d)'."),
        (
            lambda: MixingBlock(5, 4, 4, mixing="sum"),
            "mixing='sum' is not known. It can be 'none', 'mean', 'causal_mean', 'attention', 'causal_attention', 'a matrix [query key]'.",
        ),
        (lambda: MixingBlock(5, 4, 4, mixing=torch.ones(2, 3)), "mixing has shape [2, 3]. A given mixing is a square matrix [query key]."),
        (
            lambda: MixingBlock(5, 4, 4, mixing=torch.ones(2, 2))(pad([[0, 1, 2]])),
            "Documents have 3 positions, and the mixing given has 2. Give a larger matrix.",
        ),
        (lambda: LinearRNN(5, 4, readout="first"), "readout='first' is not known. It can be 'sum', 'last'."),
        (lambda: pad([[0, 1]], length=1), "A document has 2 tokens, and length=1. Cut the document, or allow more positions."),
        (lambda: CausalTransformerLM(5, 4, d_model=6, n_heads=4), "n_heads=4 is not known. It can be 1, 2, 3, 6."),
        (lambda: CausalTransformerLM(5, 0), "n_ctx=0 is not known. It can be 'a positive integer'."),
        (
            lambda: CausalTransformerLM(5, 2, d_model=4)(pad([[0, 1, 2]])),
            "ids has 3 positions, and the model n_ctx=2. Cut the documents, or build a longer model.",
        ),
    ],
)
def test_bad_options(make, message, unchecked):
    with pytest.raises((OptionError, ShapeError)) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("document", [[0.5, 1], [True, False]])
def test_only_integers_are_padded(document, unchecked):
    with pytest.raises(DtypeError) as error:
        pad([[], document])
    assert str(error.value) == f"Document 1 holds {torch.tensor(document).dtype}. Documents are integer token ids."


# Centred models


def test_centred_models_start_at_zero_and_move_as_the_model():
    m = BagMLP(6, 8, 8)
    start = m(IDS).detach()
    centred = Centred(m)
    assert not centred(IDS).any()
    loss = centred(IDS).sum() - 1
    loss.backward()
    assert all(p.grad is None for p in centred.initial.parameters())
    with torch.no_grad():
        for p in m.parameters():
            p -= 0.1 * p.grad
    torch.testing.assert_close(centred(IDS), m(IDS) - start)
