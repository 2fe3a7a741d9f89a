"""Attention ports: what they hold, that they leave the model as it was, and that edits on them act as their formulas say."""

import os
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mechfeat as mf
from mechfeat.errors import EditNotFiredError, PortError
from tests.peers import needs

os.environ["HF_HUB_OFFLINE"] = "1"


class Written(nn.Module):
    """Attention by hand, over the fused kernel."""

    def __init__(self, d=8, heads=2, kv=2):
        super().__init__()
        self.heads, self.kv = heads, kv
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d * kv // heads), nn.Linear(d, d * kv // heads)
        self.out_proj = nn.Linear(d, d)

    def forward(self, x, mask=None):
        def split(t, h):
            return t.unflatten(-1, (h, -1)).transpose(1, 2)

        q, k, v = split(self.q(x), self.heads), split(self.k(x), self.kv), split(self.v(x), self.kv)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.kv != self.heads)
        return self.out_proj(z.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn, self.mlp = Written(**options), nn.Linear(8, 8)

    def forward(self, x, mask=None):
        x = x + self.attn(x, mask)
        return x + torch.tanh(self.mlp(x))


def literal(attn, x, mask=None):
    """Loops over samples, heads and queries."""
    n, t, d = x.shape
    h, size = attn.heads, d // attn.heads
    q, k, v = attn.q(x), attn.k(x), attn.v(x)
    scores = torch.full((n, h, t, t), -torch.inf)
    for i in range(n):
        for a in range(h):
            b = a * attn.kv // h
            for s in range(t):
                for r in range(t):
                    if (r <= s) if mask is None else bool(mask[s, r]):
                        scores[i, a, s, r] = q[i, s, a * size : (a + 1) * size] @ k[i, r, b * size : (b + 1) * size] / size**0.5
    pattern = torch.zeros_like(scores)
    z = torch.zeros(n, h, t, size)
    for i in range(n):
        for a in range(h):
            b = a * attn.kv // h
            for s in range(t):
                weights = torch.exp(scores[i, a, s])
                if weights.sum() > 0:
                    pattern[i, a, s] = weights / weights.sum()
                z[i, a, s] = pattern[i, a, s] @ v[i, :, b * size : (b + 1) * size]
    return scores, pattern, z


PORTS = ["q", "k", "v", "scores", "pattern", "z", "result"]


def assert_unhooked(net):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("kv", [2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_ports_hold_what_the_formulas_say(kv, masked):
    net, x = Block(kv=kv), torch.randn(3, 5, 8)
    mask = (torch.rand(5, 5) > 0.4).index_fill(0, torch.tensor([2]), False) if masked else None  # query 2 may look nowhere
    plain = net(x, mask)
    out, cache = mf.HookedModel(net).run_with_cache((x, mask), [*(f"attn:{p}" for p in PORTS), "attn"])
    scores, pattern, z = literal(net.attn, x, mask)
    torch.testing.assert_close(cache["attn:scores"], scores.detach())
    torch.testing.assert_close(cache["attn:pattern"], pattern.detach())
    torch.testing.assert_close(cache["attn:z"], z.detach())
    torch.testing.assert_close(cache["attn:result"].sum(2) + net.attn.out_proj.bias.detach(), cache["attn"])
    torch.testing.assert_close(out, plain)
    assert cache["attn:k"].shape == (3, kv, 5, 4)
    assert cache.axes("attn:pattern") == ("sample", "head", "query", "key")
    assert cache.axes("attn:result") == ("sample", "pos", "head", "channel")
    assert cache.notes[0].startswith("attention ran as explicit steps")
    assert torch.equal(net(x, mask), plain)
    assert_unhooked(net)


def test_without_a_port_nothing_is_made_explicit():
    net, x = Block(), torch.randn(2, 4, 8)
    _, cache = mf.HookedModel(net).run_with_cache(x)
    assert cache.notes == ()
    assert not [n for n in cache if n.startswith("attn:")]


def test_globs_take_modules_that_call_attention_and_no_others():
    net, x = nn.Sequential(Block(), Block()), torch.randn(2, 4, 8)
    model = mf.HookedModel(net)
    for _ in range(2):
        cache = model.record(x, "**:pattern")
        assert list(cache) == ["0.attn:pattern", "1.attn:pattern"]
        assert cache.unreached == ()
    assert not model.record(x, "0.attn:q#0").reached_end
    assert list(model.record(x, "0.*:*")) == ["0.attn:in.0", "0.attn", "0.mlp:in", "0.mlp"]


@pytest.mark.parametrize(("port", "index"), [("q", 1), ("k", 1), ("v", 1), ("pattern", 1), ("z", 1), ("result", 2)])
def test_ablating_a_head(port, index):
    """At z, pattern, v and result a missing head means the same; at q and k it means uniform attention."""
    net, x = Block(), torch.randn(2, 4, 8)
    W, b = net.attn.out_proj.weight, net.attn.out_proj.bias
    _, _, z = literal(net.attn, x)
    if port in ("q", "k"):
        v = net.attn.v(x).unflatten(-1, (2, 4)).transpose(1, 2)
        z[:, 1] = v[:, 1].cumsum(1) / torch.arange(1, 5.0)[:, None]
    else:
        z[:, 1] = 0
    want = F.linear(z.transpose(1, 2).flatten(2), W, b)
    with mf.HookedModel(net).hooks(mf.Ablate(f"attn:{port}", head=1)) as model:
        cache = model.run_with_cache(x, "attn")[1]
        both = model.run_with_cache(x, ["attn", f"attn:{port}"])[1]
    torch.testing.assert_close(cache["attn"], want.detach())
    torch.testing.assert_close(both["attn"], want.detach())
    assert not both[f"attn:{port}"].select(index, 1).any()
    assert_unhooked(net)


def test_edits_select_by_query_and_key():
    net, x = Block(), torch.randn(2, 4, 8)
    with mf.HookedModel(net).hooks(mf.Replace("attn:scores", lambda s: torch.zeros_like(s), query=3, key=[0, 1, 2, 3])) as model:
        pattern = model.record(x, "attn:pattern")["attn:pattern"]
    torch.testing.assert_close(pattern[:, :, 3], torch.full((2, 2, 4), 0.25))
    assert float(pattern[0, 0, 1, 2]) == 0


def test_gradients_at_a_port():
    net, x = Block(), torch.randn(2, 4, 8)
    out, cache = mf.HookedModel(net).run_with_cache(x, ["attn:z", "attn:pattern"], grad=True)
    g = cache.gradients(out.sum())
    assert set(g) == {"attn:z", "attn:pattern"}
    z = cache["attn:z"].detach().requires_grad_()
    y = x + net.attn.out_proj(z.transpose(1, 2).flatten(2))
    y = y + torch.tanh(net.mlp(y))
    torch.testing.assert_close(g["attn:z"], torch.autograd.grad(y.sum(), z)[0])


OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"kdim": 6, "vdim": 6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weights", [None, True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "float", "per head"])
def test_multihead_attention(options, weights, masks):
    attn = nn.MultiheadAttention(8, 2, **options).eval()
    first = options.get("batch_first", False)
    q, kv = torch.randn(4, 3, 8), torch.randn(5, 3, options.get("kdim", 8))
    hide = {"none": {}, "padding": {"key_padding_mask": torch.arange(5) >= torch.tensor([[5], [3], [2]])}}
    hide["causal"] = {"attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(1)}
    hide["float"] = {"attn_mask": torch.randn(4, 5)}
    padding = torch.zeros(3, 5).masked_fill(hide["padding"]["key_padding_mask"], -torch.inf)
    hide["per head"] = {"attn_mask": torch.randn(6, 4, 5), "key_padding_mask": padding}
    arguments = {**hide[masks], "need_weights": weights is not None, "average_attn_weights": bool(weights)}
    args = (q.transpose(0, 1), kv.transpose(0, 1), kv.transpose(0, 1)) if first else (q, kv, kv)
    with torch.no_grad():
        plain, plain_weights = attn(*args, **arguments)
        (out, out_weights), cache = mf.HookedModel(attn).run_with_cache(args, [":pattern", ":result"], **arguments)
        again, _ = attn(*args, **arguments)
    torch.testing.assert_close(out, plain)
    if plain_weights is None:
        assert out_weights is None
    else:
        torch.testing.assert_close(out_weights, plain_weights)
    torch.testing.assert_close(cache[":pattern"].sum(-1), torch.ones(3, 2, 4))
    bias = 0 if attn.out_proj.bias is None else attn.out_proj.bias.detach()
    torch.testing.assert_close(cache[":result"].sum(2) + bias, out if first else out.transpose(0, 1))
    assert torch.equal(again, plain)


def test_multihead_attention_without_batch():
    attn, x = nn.MultiheadAttention(8, 2), torch.randn(4, 8)
    plain, weights = attn(x, x, x)
    (out, explicit), _ = mf.HookedModel(attn).run_with_cache((x, x, x), ":pattern")
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(explicit, weights)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_transformer_encoder_with_padding_and_causal_masks(batch_first, grad):
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first), 2, enable_nested_tensor=batch_first).eval()
    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    seen = ~padding if batch_first else ~padding.T
    for masks in ({}, {"src_key_padding_mask": padding}, {"mask": causal}, {"mask": causal, "src_key_padding_mask": padding}):
        with torch.set_grad_enabled(grad):
            plain = net(x, **masks)
            out, cache = mf.HookedModel(net).run_with_cache(x, "layers.*.self_attn:pattern", **masks)
            assert torch.equal(net(x, **masks), plain)
        torch.testing.assert_close(out[seen], plain[seen])
        torch.testing.assert_close(cache["layers.1.self_attn:pattern"].sum(-1), torch.ones(3, 2, 5))


def hf(kind, attention="sdpa"):
    t = needs("transformers")

    small = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": attention}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "attn_implementation": attention}
    if kind == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=4, **small)), "transformer.h.0.attn", "c_proj"
    if kind == "llama":
        config = t.LlamaConfig(num_key_value_heads=2, max_position_embeddings=16, **{**small, **size})
        return t.LlamaForCausalLM(config), "model.layers.0.self_attn", "o_proj"
    return t.BertModel(t.BertConfig(max_position_embeddings=16, **{**small, **size})), "encoder.layer.0.attention.self", None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("padded", [False, True])
def test_hugging_face(kind, attention, padded):
    net, path, projection = hf(kind, attention)
    net = net.double().eval()
    x = {"input_ids": torch.randint(0, 50, (3, 6))}
    if padded:
        x["attention_mask"] = (torch.arange(6) < torch.tensor([[6], [4], [5]])).long()
    plain = net(**x)[0]
    names = [f"{path}:pattern", f"{path}:k", *([f"{path}:result", f"{path}.{projection}"] if projection else [])]
    out, cache = mf.HookedModel(net).run_with_cache(x, names)
    seen = slice(None) if not padded else x["attention_mask"].bool()
    torch.testing.assert_close(out[0][seen], plain[seen], rtol=1e-6, atol=2e-6)
    rows = cache[f"{path}:pattern"].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    assert cache[f"{path}:k"].shape[1] == (2 if kind == "llama" else 4)
    if projection:
        bias = getattr(net.get_submodule(f"{path}.{projection}"), "bias", None)
        torch.testing.assert_close(cache[f"{path}:result"].sum(2) + (0 if bias is None else bias.detach()), cache[f"{path}.{projection}"])
    assert torch.equal(net(**x)[0], plain)
    assert net.config._attn_implementation == attention
    assert_unhooked(net)


def test_a_port_where_there_is_no_attention():
    net, x = Block(), torch.randn(2, 4, 8)
    with pytest.raises(PortError) as error:
        mf.HookedModel(net).record(x, ["mlp:pattern", "attn:z"])
    assert (
        str(error.value)
        == "'mlp:pattern' does not address one tensor: this module calls no attention that can be made explicit. Use 'attn:pattern'."
    )
    with pytest.raises(EditNotFiredError), mf.HookedModel(net).hooks(mf.Ablate("mlp:pattern")) as model:
        model(x)
    assert_unhooked(net)


def test_an_exception_leaves_nothing_behind():
    net, x = Block(), torch.randn(2, 4, 8)
    plain = net(x)

    def fail(s):
        raise KeyError("edit")

    for _ in range(20):
        with pytest.raises(KeyError), mf.HookedModel(net).hooks(mf.Replace("attn:scores", fail)) as model:
            model(x)
        assert_unhooked(net)
        assert torch.equal(net(x), plain)


def test_other_threads_are_left_alone():
    net = Block()
    inputs = [torch.randn(2, 4, 8) for _ in range(4)]
    want = [literal(net.attn, x)[1].detach() for x in inputs]
    wrong, errors = [], []

    def work(k):
        try:
            torch.set_default_dtype(torch.float64)
            model = mf.HookedModel(net)
            for _ in range(25):
                have = model.record(inputs[k], "attn:pattern")["attn:pattern"]
                if not torch.allclose(have, want[k]):
                    wrong.append(k)
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    sys.setswitchinterval(interval)
    assert (wrong, errors) == ([], [])
    assert_unhooked(net)


@pytest.mark.parametrize("batch_first", [True, False])
def test_ablating_a_head_of_multihead_attention(batch_first):
    attn, x = nn.MultiheadAttention(8, 2, batch_first=batch_first), torch.randn(4, 3, 8)
    model = mf.HookedModel(attn)
    whole, cache = model.run_with_cache((x, x, x), ":result")
    with model.hooks(mf.Ablate(":result", head=0)):
        without = model(x, x, x)[0]
    part = cache[":result"][:, :, 0]
    torch.testing.assert_close(whole[0] - without, part if batch_first else part.transpose(0, 1))


def test_a_pass_after_an_interrupted_one():
    net, x = Block(), torch.randn(2, 4, 8)
    interrupts = [True]

    def interrupt(z):
        if interrupts.pop():
            raise KeyboardInterrupt
        return torch.zeros_like(z)

    with mf.HookedModel(net).hooks(mf.Replace("attn:z", interrupt)) as model:
        with pytest.raises(KeyboardInterrupt):
            model(x)
        interrupts.append(False)
        after = model(x)
    y = x + net.attn.out_proj.bias
    torch.testing.assert_close(after, y + torch.tanh(net.mlp(y)))
