"""Logit lens and direct logit attribution against the arithmetic written out by hand, and against TransformerLens."""

import math

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.circuits import LogitAttribution, LogitLens, direct_logit_attribution, logit_lens
from mechfeat.errors import CircuitError, ModelOutputError, OptionError, SelectorError, ShapeError, UnsupportedLayerError
from tests.hooks import families
from tests.peers import needs


def gpt2():
    return families.built(families.gpt2), families.tokens()


def llama(tied=False):
    def make():
        needs("transformers")
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {**families.SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "vocab_size": 13, "max_position_embeddings": 8}
        return LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied))

    return families.built(make), families.tokens()


def bridge(**options):
    needs("transformer_lens")
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 6, "d_vocab": 7, "d_mlp": 16, "act_fn": "gelu"}
    net = TransformerBridge.boot_native(TransformerBridgeConfig(**{**sizes, **options}))
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net, torch.randint(0, 7, (3, 5))


FAMILIES = {
    "gpt2": gpt2,
    "llama": llama,
    "llama tied": lambda: llama(True),
    "bridge": bridge,
    "bridge rms": lambda: bridge(normalization_type="RMS"),
    "bridge gated": lambda: bridge(act_fn="silu", gated_mlp=True),
}
every = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)


def raw(out):
    return (out if isinstance(out, torch.Tensor) else out.logits).detach()


# --- by hand


def layer_norm(x, m):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + m.eps) * m.weight + m.bias


def gpt2_by_hand(net, x):
    """GPT-2 in plain tensor arithmetic: the stream before each layer and at the end, and every summand of it, heads apart."""
    t = net.transformer
    token, position = t.wte.weight[x], t.wpe.weight[: x.shape[1]]
    r = token + position
    states, parts = [r], {"transformer.wte": token, "transformer.wpe": position.expand_as(token)}
    causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    for i, block in enumerate(t.h):
        h = layer_norm(r, block.ln_1)
        q, k, v = (h @ block.attn.c_attn.weight + block.attn.c_attn.bias).split(16, -1)
        attended = 0
        for head in range(4):
            cut = slice(4 * head, 4 * head + 4)
            scores = q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(4)
            z = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ v[..., cut]
            parts[f"transformer.h.{i}.attn:result[{head}]"] = z @ block.attn.c_proj.weight[cut]
            attended = attended + parts[f"transformer.h.{i}.attn:result[{head}]"]
        parts[f"transformer.h.{i}.attn.b_O"] = block.attn.c_proj.bias.expand_as(token)
        r = r + attended + block.attn.c_proj.bias
        g = layer_norm(r, block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        g = 0.5 * g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
        parts[f"transformer.h.{i}.mlp"] = g @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        r = r + parts[f"transformer.h.{i}.mlp"]
        states.append(r)
    return states, parts


def test_gpt2_is_that_of_the_arithmetic():
    net, x = gpt2()
    with torch.no_grad():
        states, parts = gpt2_by_hand(net, x)
        lens = logit_lens(net, x)
        for i, r in enumerate(states):
            torch.testing.assert_close(lens.logits[i], layer_norm(r, net.transformer.ln_f) @ net.lm_head.weight.T)
        assert lens.points == ("transformer.h.0:in.0", "transformer.h.1:in.0", "transformer.h.1")
        found = direct_logit_attribution(net, x, 3, against=5, pos=2, heads=True)
        direction = net.lm_head.weight[3] - net.lm_head.weight[5]
        f, last = net.transformer.ln_f, states[-1][:, 2]
        std = torch.sqrt(last.var(-1, unbiased=False) + f.eps)
        assert found.parts == (*parts, "transformer.ln_f.b")
        for name, value in parts.items():
            centred = value[:, 2] - value[:, 2].mean(-1, keepdim=True)
            torch.testing.assert_close(found.of(name), (centred / std[:, None] * f.weight) @ direction, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.of("transformer.ln_f.b"), (f.bias @ direction).expand(2))
        torch.testing.assert_close(found.scale, 1 / std)
    assert (found.norm, found.norm_kind, found.unembed) == ("transformer.ln_f", "LayerNorm", "lm_head")
    assert found.kinds == ("embed", "pos_embed", *(["head"] * 4 + ["bias", "mlp"]) * 2, "bias")


def test_llama_is_that_of_the_arithmetic():
    """Grouped heads read from the weights; the norm has a root mean square and no bias."""
    net, x = llama()
    found = direct_logit_attribution(net, x, [3, 4], heads=True)
    kept = {}
    handles = [net.model.norm.register_forward_pre_hook(lambda m, a: kept.update(last=a[0]))]
    for i, layer in enumerate(net.model.layers):
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a, i=i: kept.update({i: a[0]})))
    with torch.no_grad():
        net(x)
        for handle in handles:
            handle.remove()
        last = kept["last"][:, -1]
        rms = torch.sqrt((last**2).mean(-1, keepdim=True) + net.model.norm.variance_epsilon)
        for i, layer in enumerate(net.model.layers):
            for head in range(4):
                cut = slice(4 * head, 4 * head + 4)
                wrote = kept[i][:, -1, cut] @ layer.self_attn.o_proj.weight[:, cut].T
                want = (wrote / rms * net.model.norm.weight * net.lm_head.weight[[3, 4]]).sum(-1)
                torch.testing.assert_close(found.of(f"model.layers.{i}.self_attn:result[{head}]"), want, rtol=1e-5, atol=1e-8)
    assert (found.norm, found.norm_kind) == ("model.norm", "RMSNorm")
    assert "bias" not in found.kinds
    assert "pos_embed" not in found.kinds


def test_the_decomposition_of_transformer_lens():
    for options in ({}, {"normalization_type": "RMS"}):
        net, x = bridge(**options)
        for name, p in net.ln_final._original_component.named_parameters():
            p.data.fill_(float(name == "weight"))  # their attribution leaves the norm's own gain to folded weights
        with torch.no_grad():
            _, cache = net.run_with_cache(x)
            theirs, labels = cache.decompose_resid(return_labels=True)
            attributed = cache.logit_attrs(theirs, tokens=3, incorrect_tokens=1)[..., -1]
            lens = cache.accumulated_resid(apply_ln=False)
            found = direct_logit_attribution(net, x, 3, against=1)
            table = logit_lens(net, x)
        assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
        torch.testing.assert_close(found.contributions[:6], attributed, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(table.logits, net.unembed(net.ln_final(lens)).detach(), rtol=1e-5, atol=1e-6)


def test_heads_of_a_bridge_are_those_of_its_output_projection():
    net, x = bridge()
    found = direct_logit_attribution(net, x, 3, heads=True)
    assert found.kinds.count("head") == 4
    o = net.blocks[1].attn.o
    with torch.no_grad():
        z = mf.HookedModel(net).record(x, "blocks.1.attn.o.hook_in")["blocks.1.attn.o.hook_in"][:, -1]
        for head in range(2):
            wrote = z[:, 4 * head : 4 * head + 4] @ o._original_component.weight[:, 4 * head : 4 * head + 4].T
            want = (wrote - wrote.mean(-1, keepdim=True)) * found.scale[:, None] * net.ln_final._original_component.weight
            part = f"blocks.1._original_component.attn:result[{head}]"
            torch.testing.assert_close(found.of(part), want @ net.unembed._original_component.weight[3])


# --- properties


@every
def test_parts_sum_to_the_logit_and_heads_to_their_attention(make):
    net, x = make()
    logits = raw(net(x))
    n = len(x)
    tokens, places = torch.arange(n) + 2, torch.arange(n) + 1
    for against in (None, 1):
        whole = direct_logit_attribution(net, x, tokens, against=against, pos=places)
        split = direct_logit_attribution(net, x, tokens, against=against, pos=places, heads=True)
        rows = torch.arange(n)
        want = logits[rows, places, tokens] - (0 if against is None else logits[rows, places, against])
        for found in (whole, split):
            tolerance = 1e-5 if found.norm_kind == "RMSNorm" else 1e-10  # these libraries compute it in float32 at every dtype
            torch.testing.assert_close(found.contributions.sum(0), want, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(found.accumulated[-1], want, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(found.logit, want)
            assert 0 <= found.residual < tolerance
        for name in (p for p, kind in zip(whole.parts, whole.kinds) if kind == "attn"):
            path = name.removesuffix(":out.0").removesuffix(".hook_out")
            heads = [p for p in split.parts if p.startswith(f"{path}:result[") or p == f"{path}.b_O"]
            assert len(heads) >= 2
            torch.testing.assert_close(sum(split.of(h) for h in heads), whole.of(name), rtol=1e-5, atol=1e-6)


@every
def test_the_last_layer_of_the_lens_is_the_model(make):
    net, x = make()
    logits = raw(net(x))
    found = logit_lens(net, x)
    torch.testing.assert_close(found.logits[-1], logits)
    assert found.logits.shape == (3, *logits.shape)
    assert not torch.allclose(found.logits[0], logits, rtol=0.01)
    few = logit_lens(net, x, pos=[-1, 1], tokens=[5, 2])
    assert few.positions == (x.shape[1] - 1, 1)
    torch.testing.assert_close(few.logits, found.logits[:, :, [-1, 1]][..., [5, 2]])
    torch.testing.assert_close(logit_lens(net, x, pos=0).logits, found.logits[:, :, :1])


def test_other_points_of_the_stream():
    net, x = gpt2()
    found = logit_lens(net, x, ["transformer.h.0", "transformer.wte"])
    torch.testing.assert_close(found.logits[0], logit_lens(net, x).logits[1])
    torch.testing.assert_close(found.logits[1], net.lm_head(net.transformer.ln_f(net.transformer.wte(x))).detach())


def test_embeddings_that_do_not_make_the_stream_are_one_part():
    """As where a model scales them: the first residual stream stands for both."""
    net, x = gpt2()
    net.transformer.drop = nn.Hardtanh(-0.05, 0.05)
    found = direct_logit_attribution(net, x, 3)
    assert found.parts[0] == "transformer.h.0:in.0"
    assert found.kinds[:2] == ("embed", "attn")
    torch.testing.assert_close(found.contributions.sum(0), raw(net(x))[:, -1, 3])


# --- a network of the user's own


class Own(nn.Module):
    """One linear part beside the embedding; what reads the sum is up to the test."""

    def __init__(self, norm=None, cap=None, extra=False):
        super().__init__()
        self.embed, self.f = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.norm = nn.Identity() if norm is None else norm
        self.head = nn.Linear(4, 6)
        self.cap, self.extra = cap, extra

    def forward(self, x):
        r = self.embed(x)
        r = r + self.f(r) + (0.1 if self.extra else 0.0)
        logits = self.head(self.norm(r))
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


NAMES = {"parts": ["embed", "f"], "unembed": "head"}
X = torch.tensor([[1, 2, 3], [4, 5, 0]])


def test_names_given_by_the_caller():
    for norm, kind in (
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.RMSNorm(4), "RMSNorm"),
        (nn.LayerNorm(4, elementwise_affine=False), "LayerNorm"),
    ):
        net = Own(norm)
        for p in net.parameters():
            nn.init.normal_(p)
        found = direct_logit_attribution(net, X, 2, norm="norm", **NAMES)
        assert found.norm_kind == kind
        assert found.parts[:2] == ("embed", "f")
        torch.testing.assert_close(found.contributions.sum(0), net(X)[:, -1, 2].detach())
        torch.testing.assert_close(logit_lens(net, X, ["norm:in"], norm="norm", unembed="head").logits[0], net(X).detach())


def test_no_norm_is_a_plain_product():
    net = Own()
    found = direct_logit_attribution(net, X, 2, norm=None, **NAMES)
    want = torch.stack(
        [net.embed(X)[:, -1] @ net.head.weight[2], net.f(net.embed(X))[:, -1] @ net.head.weight[2], net.head.bias[2].expand(2)]
    )
    torch.testing.assert_close(found.contributions, want.detach())
    assert (found.norm, found.norm_kind, found.parts[-1]) == (None, "none", "head.b")


def test_a_bias_that_is_no_activation():
    net = Own(extra=True)
    found = direct_logit_attribution(net, X, 2, norm=None, biases={"extra": torch.full((4,), 0.1)}, **NAMES)
    torch.testing.assert_close(found.of("extra"), (0.1 * net.head.weight[2].sum()).expand(2).detach())


def test_the_result_names_its_strongest_parts_and_is_saved(tmp_path):
    net, x = gpt2()
    found = direct_logit_attribution(net, x, 3)
    name, value = found.strongest(1)[0]
    assert value == pytest.approx(float(found.of(name).mean()))
    assert abs(value) == float(found.contributions.mean(1).abs().max())
    torch.testing.assert_close(found.of("mlp"), found.of("transformer.h.0.mlp") + found.of("transformer.h.1.mlp"))
    found.save(tmp_path / "a.safetensors")
    again = LogitAttribution.load(tmp_path / "a.safetensors")
    assert torch.equal(again.contributions, found.contributions)
    assert again.parts == found.parts
    lens = logit_lens(net, x)
    lens.save(tmp_path / "l.safetensors")
    assert torch.equal(LogitLens.load(tmp_path / "l.safetensors").logits, lens.logits)


def test_it_leaves_the_model_alone():
    net, x = gpt2()
    before = net(x).logits
    direct_logit_attribution(net, x, 3, heads=True)
    logit_lens(net, x)
    assert torch.equal(net(x).logits, before)
    assert all(p.grad is None for p in net.parameters())


# --- what it refuses


def message(error, f, *args, **options):
    with pytest.raises(error) as caught:
        f(*args, **options)
    return str(caught.value)


def test_post_norm_models():
    net, x = families.built(families.bert), families.tokens()
    for f, args in ((logit_lens, ()), (direct_logit_attribution, (3,))):
        assert (
            message(CircuitError, f, net, x, *args)
            == "No hook point of this BertForMaskedLM plays the role '@final_norm'. A model that norms its stream after each block, as BERT"
            " does, has no final norm and its stream is no sum. For another model name it: norm=None, or the hook name of the norm before"
            " the unembedding."
        )
    found = message(CircuitError, direct_logit_attribution, net, x, 3, norm="cls.predictions.transform.LayerNorm")
    assert found.startswith("The 6 parts ['bert.embeddings.word_embeddings', 'bert.embeddings.position_embeddings', 'bert.encoder.") or (
        found.startswith("The 5 parts ['bert.encoder.layer.0:in.0', 'bert.encoder.layer.0.attention.output.dropout', ")
    )
    assert found.endswith("so the logit is not their sum. Name all that is added with parts=... and biases=...")


def test_a_part_is_missing():
    net = Own(nn.LayerNorm(4), extra=True)
    net.norm.weight.data += 1
    with torch.no_grad():
        r = net.embed(X) + net.f(net.embed(X))
        gap = 0.1 / float((r + 0.1)[:, -1].abs().max())
    assert (
        message(CircuitError, direct_logit_attribution, net, X, 2, norm="norm", **NAMES)
        == f"The 2 parts ['embed', 'f'] add up to a residual stream that is {gap:.2g} of its largest entry away from what 'norm' reads, and"
        " 0.0001 is allowed. Something else writes to the stream, or it is normed or scaled on the way, so the logit is not their sum."
        " Name all that is added with parts=... and biases=..."
    )


def test_soft_capping():
    net = Own(nn.LayerNorm(4), cap=0.5)
    with torch.no_grad():
        logits = net.head(net.norm(net.embed(X) + net.f(net.embed(X))))
        capped = net(X)
    gap = float(((logits - capped)[:, -1, 2].abs() / capped[:, -1].abs().amax(-1)).max())
    assert (
        message(CircuitError, direct_logit_attribution, net, X, 2, norm="norm", **NAMES)
        == f"The parts add up to the stream that 'norm' reads, but the logits they give differ from the model's by {gap:.2g} of the"
        " largest,"
        " and 0.0001 is allowed. Something follows the unembedding, such as soft-capping or a scale, or torch.float64 rounds too coarsely."
    )
    gap = float((logits - capped).abs().max() / capped.abs().max())
    assert (
        message(CircuitError, logit_lens, net, X, ["f"], norm="norm", unembed="head")
        == f"Norm 'norm' and unembedding 'head' on the last residual stream give logits that differ from the model's by {gap:.2g} of the"
        " largest. Something else lies between them, such as soft-capping or a scale. The lens does not read this model."
    )


def test_a_norm_that_is_none():
    net = Own(nn.Softmax(-1))
    assert (
        message(CircuitError, direct_logit_attribution, net, X, 2, norm="norm", **NAMES)
        == "'norm' is a Softmax, and what it returned is neither that of a LayerNorm nor that of an RMSNorm with its weight, bias and"
        " eps, so"
        " its scale cannot be held. Name the last norm before the unembedding with norm=..., or norm=None where there is none."
    )


def test_heads_that_cannot_be_told_apart():
    net, x = gpt2()
    net.transformer.h[0].attn.resid_dropout = nn.Tanh()
    assert (
        message(CircuitError, direct_logit_attribution, net, x, 2, heads=True)
        == "The heads of 'transformer.h.0.attn' add up to something else than 'transformer.h.0.attn:out.0' and a constant bias, so what it"
        " adds to the stream is not a sum over heads. Leave heads=False."
    )
    assert direct_logit_attribution(net, x, 2).residual < 1e-10


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit():
    net, x = gpt2()
    dla = direct_logit_attribution
    assert message(OptionError, dla, net, x, 13) == "tokens=13 is not known. It can be 'a token from 0 to 12'."
    assert message(OptionError, dla, net, x, 1, against=[0, -1]) == "against=-1 is not known. It can be 'a token from 0 to 12'."
    assert (
        message(ShapeError, dla, net, x, [1, 2, 3])
        == "tokens has shape (3,), and there are 2 inputs. Give one token for all of them, or one for each."
    )
    assert (
        message(SelectorError, dla, net, x, 1, pos=6)
        == "pos=6 does not fit 2 sequences of 6 positions. Give one index from -6 to 5 for all of them, or one for each."
    )
    assert message(SelectorError, logit_lens, net, x, pos=6) == "pos=6 does not fit sequences of 6 positions. Give indices from -6 to 5."
    assert message(OptionError, logit_lens, net, x, tokens=[3, 13]) == "tokens=[13] is not known. It can be 'tokens from 0 to 12'."
    assert (
        message(SelectorError, logit_lens, net, x, ["transformer.h.0.mlp.act"])
        == "{'transformer.h.0.mlp.act': (2, 6, 64)} are no residual streams: the inputs have 2 samples of 6 positions, and the unembedding"
        " reads 16 channels. Name points of that shape."
    )
    assert (
        message(SelectorError, dla, net, x, 1, parts=["transformer.h.0.mlp.act"])
        == "'transformer.h.0.mlp.act' has shape (2, 6, 64) and is no summand of a residual stream [2, 6, 16]. Leave it out of parts=..."
    )
    assert message(SelectorError, dla(net, x, 1).of, "mlp3").startswith(
        "'mlp3' is no part of this attribution, which holds ['transformer.wte', "
    )
    own = Own()
    assert (
        message(UnsupportedLayerError, dla, own, X, 1, parts=["embed"], norm=None, unembed="embed")
        == "'embed' is a Embedding, and an unembedding is read from an nn.Linear. Name it with unembed=..."
    )
    assert (
        message(CircuitError, dla, own, X, 1, norm=None, unembed="head")
        == "This Own has no hook points with the roles embed, resid_pre, attn_out, mlp_out, so what is added to its residual stream is not"
        " known. Name it: parts=[...]."
    )
    assert (
        message(CircuitError, logit_lens, own, X, norm=None, unembed="head")
        == "No hook point of this Own plays the role '@resid_pre'. Name the residual stream: points=[...]."
    )
    flat = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert (
        message(ShapeError, dla, flat, torch.ones(2, 3), 1, parts=["0"], norm=None, unembed="1")
        == "The model's logits have shape (2, 2). A language model gives [sample pos vocab]."
    )

    class Silent(Own):
        def forward(self, x):
            return {"hidden": super().forward(x)}

    assert (
        message(ModelOutputError, dla, Silent(), X, 1, norm=None, **NAMES)
        == "The model returned a dict without logits. It must return a tensor of logits, something with `logits`, or a tuple that begins"
        " with"
        " them."
    )


def test_wrapped_models_and_axes_of_heads():
    """A part with a head axis is split along it."""

    class Headed(Own):
        def forward(self, x):
            r = self.embed(x)
            return self.head(r + mf.point(torch.stack([r * 2, r * 3], 2), "heads").sum(2))

    net = Headed()
    model = mf.HookedModel(net, axes={"heads": ("sample", "pos", "head", "channel")})
    model.run_with_cache(X)  # points are known once they were seen
    found = direct_logit_attribution(model, X, 2, norm=None, parts=["embed", "heads"], unembed="head")
    assert found.parts == ("embed", "heads[0]", "heads[1]", "head.b")
    torch.testing.assert_close(found.of("heads[1]"), 3 * found.of("embed"))
