"""A causal language model: no logit sees what comes later."""

import math

import pytest
import torch
import torch.nn.functional as F

from mechfeat.bench.token_models import DOCUMENTS, IDS
from mechfeat.hooks import HookedModel
from mechfeat.models.text import CausalTransformerLM, pad
from mechfeat.ntk import empirical_ntk


def language_model(**options):
    return CausalTransformerLM(6, 5, d_model=8, n_layers=3, n_heads=2, sd=0.5, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("t", range(4))
def test_later_tokens_change_no_earlier_logit(t):
    """And the token itself changes its own: the mask is there, and not larger than it must be."""
    lm = language_model()
    ids = pad([[0, 1, 2, 3, 4], [4, 4, 1, 0, 2]])
    other = ids.clone()
    other[:, t + 1 :] = (other[:, t + 1 :] + 1) % 6
    assert torch.equal(lm(other)[:, : t + 1], lm(ids)[:, : t + 1])
    assert ((lm(other) - lm(ids))[:, t + 1 :].abs().amax(-1) > 1e-6).all()


def test_no_gradient_reaches_a_logit_from_later_embeddings():
    lm = language_model()
    logits, embed = HookedModel(lm).run_with_cache(IDS[3:4], "embed", grad=True)
    for t in range(5):
        g = embed.gradients(logits[0, t].square().sum(), retain_graph=True)["embed"][0].abs().amax(-1)
        assert (g[: t + 1] > 0).all()
        assert not g[t + 1 :].any()


def test_language_model_ignores_padding():
    lm = language_model()
    out = lm(IDS)
    for doc, row in zip(DOCUMENTS, out):
        torch.testing.assert_close(row[: len(doc)], lm(pad([doc]))[0], rtol=1e-12, atol=1e-12)
        assert not row[len(doc) :].any()


def test_attention_of_the_language_model_is_causal_and_hooked():
    lm = HookedModel(language_model())
    pattern = lm.record(IDS, "blocks.1.attn:pattern")["blocks.1.attn:pattern"]
    assert pattern.shape == (8, 2, 5, 5)
    assert not pattern.triu(1).any()
    torch.testing.assert_close(pattern.sum(-1), torch.ones(8, 2, 5))


def test_kernel_of_the_language_model_comes_from_rules():
    found = empirical_ntk(language_model(), IDS[:3], outputs="trace", strict=True, prove="always")
    assert {c.path for c in found.coverage} == {"rule"}


def test_tied_embeddings_are_one_parameter():
    lm = language_model(tied=True)
    assert lm.unembed.weight is lm.embed.weight


def test_language_model_learns_what_follows_what():
    lm = language_model()
    x = (torch.randint(0, 6, (64, 1)) + torch.arange(6)) % 6  # each token is followed by the next
    optimizer = torch.optim.Adam(lm.parameters(), lr=0.01)
    for _ in range(80):
        loss = F.cross_entropy(lm(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 < math.log(6)
