"""Models that every kernel must be exact on. A new one joins by being listed in ``ZOO``."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mechfeat.models import CifarResNet, mlp
from tests.peers import needs


class Net(nn.Module):
    """A model from its parts and a function of them and the input."""

    def __init__(self, f, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.f = f

    def forward(self, x):
        return self.f(self, x)


def P(*shape):
    return nn.Parameter(torch.randn(shape) * 0.5)


def flat(h):
    return h.flatten(1)


@dataclass(frozen=True)
class Case:
    """A model, its batches, and the path each parameter is expected to take.

    Attributes:
        make: Builds the model.
        shape: Of one sample; with ``tokens`` the number of token ids.
        tokens: Size of the vocabulary, or None for floating-point inputs.
        n: Samples of x1; x2 has two more.
        paths: Parameter name → path.
        vmap: Whether ``torch.func`` can run the model.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int | None = None
    n: int = 6
    paths: dict[str, str] = field(default_factory=dict)
    vmap: bool = True

    def build(self, seed=0):
        """The model and its two batches."""
        torch.manual_seed(seed)
        net = self.make().eval()
        return net, self.batch(self.n), self.batch(self.n + 2)

    def batch(self, n):
        return torch.randn(n, *self.shape) if self.tokens is None else torch.randint(0, self.tokens, (n, *self.shape))


def ruled(*names):
    return dict.fromkeys(names, "rule")


def exact(*names):
    return dict.fromkeys(names, "exact")


def norm2d(channels):
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def conv_net(**options):
    conv = nn.Conv2d(4, 6, 3, **options)
    return Net(lambda s, x: s.o(torch.tanh(s.d(torch.tanh(s.c(x)))).mean(3).flatten(1)), c=conv, d=nn.Conv2d(6, 3, 2), o=nn.LazyLinear(2))


def conv_case(**options):
    def make():
        net = conv_net(**options)
        net(torch.zeros(1, 4, 7, 6))
        return net

    return Case(make, (4, 7, 6), n=5, paths=ruled("c.weight", "c.bias", "d.weight", "o.weight", "o.bias"))


def resnet():
    net = CifarResNet(8, n_classes=2, width=4)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    return net


class Block(nn.Module):
    """Pre-norm transformer block with attention written out."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.z = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, h):
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in self.qkv(self.n1(h)).chunk(3, -1))
        h = h + self.z(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.n2(h))))


def transformer(**options):
    return Net(
        lambda s, t: s.o(s.n(s.b(s.e(t)))[:, -1]),
        e=nn.Embedding(9, 6, **options),
        b=Block(6, 2),
        n=nn.LayerNorm(6),
        o=nn.Linear(6, 3),
    )


def positions(s, t):
    return s.o(torch.tanh(s.l(s.e(t) + s.p(torch.arange(t.shape[1])))).mean(1))


def gpt2():
    os.environ["HF_HUB_OFFLINE"] = "1"
    needs("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=7, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    net = GPT2LMHeadModel(config)
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.3)
    return Net(lambda s, t: s.lm(t, use_cache=False).logits[:, -1], lm=net)


def frozen():
    net = mlp([5, 4, 4, 2], nn.Tanh)
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def weight_norm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2))


def recurrent():
    return Net(lambda s, t: s.o(s.r(s.e(t))[0][:, -1]), e=nn.Embedding(7, 3), r=nn.LSTM(3, 4, batch_first=True), o=nn.Linear(4, 2))


def encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
    return Net(lambda s, x: s.o(s.t(x).mean(1)), t=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), o=nn.Linear(6, 2))


def attention():
    return Net(
        lambda s, x: s.o(s.a(x, x, x, need_weights=False)[0].mean(1)), a=nn.MultiheadAttention(6, 2, batch_first=True), o=nn.Linear(6, 2)
    )


def attention_of_three():
    net = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)
    return Net(lambda s, x: s.o(s.a(x, torch.sin(x), torch.cos(x), attn_mask=hidden(x))[0].mean(1)), a=net, o=nn.Linear(6, 2))


def hidden(x):
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


def attention_of_widths():
    net = nn.MultiheadAttention(6, 2, kdim=4, vdim=5)
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.5)

    def f(s, x):
        q, k, v = (t.transpose(0, 1) for t in (x, x[..., :4], x[..., :5]))
        padding = torch.tensor([[False, False, True]]).expand(len(x), -1)
        return s.o(s.a(q, k, v, key_padding_mask=padding, need_weights=False)[0].mean(0))

    return Net(f, a=net, o=nn.Linear(6, 2))


def lens_attention():
    """Attention as TransformerLens writes it."""

    def f(s, x):
        x = s.r(x)
        q, k, v = (torch.einsum("npd,hde->nphe", x, W) + b for W, b in ((s.W_Q, s.b_Q), (s.W_K, s.b_K), (s.W_V, s.b_V)))
        pattern = torch.einsum("nqhe,nkhe->nhqk", q, torch.tanh(k)).softmax(-1)  # else its bias would do nothing
        z = torch.einsum("nkhe,nhqk->nqhe", v, pattern)
        result = torch.einsum("nqhe,hed->nqhd", z, s.W_O).sum(2) + torch.einsum("nqhe,hed->nqd", z, s.W_O) + s.b_O
        result = result + torch.einsum("nqhe,hed", z, s.W_O).permute(1, 2, 0)
        return (result + torch.einsum("nhqk,nkhe,hed -> nqd", pattern, v, s.W_O)).mean(1)

    weights = {f"W_{name}": P(2, 6, 3) for name in "QKV"} | {f"b_{name}": P(2, 3) for name in "QKV"}
    return Net(f, W_O=P(2, 3, 6), b_O=P(6), r=nn.RMSNorm(6), **weights)


def hf_conv1d():
    needs("transformers")
    from transformers.pytorch_utils import Conv1D

    return Net(lambda s, x: s.o(torch.tanh(s.c(x)).mean(1)), c=Conv1D(4, 5), o=nn.Linear(4, 2))


def entry_by_entry():
    def f(s, x):
        h = torch.sin(s.b - s.a * x / s.c)
        h += s.d
        h.relu_()
        return torch.sub(torch.add(h, s.e, alpha=0.5), s.h[:, None]).mul(s.g[None]).sum(1)

    return Net(f, a=P(4), b=P(3, 1), c=P(3, 4), d=P(1, 4), e=P(), h=P(3), g=P(1))


def overwritten(w):
    v = w.clone()
    v[0] = 0
    return v


def norms():
    net = Net(
        lambda s, x: s.o(flat(s.r(torch.tanh(s.i(torch.tanh(s.g(x))))))),
        g=nn.GroupNorm(2, 4),
        i=nn.InstanceNorm2d(4, affine=True),
        r=nn.RMSNorm((3, 2)),
        o=nn.Linear(24, 2),
    )
    for p in net.parameters():
        nn.init.normal_(p)
    return net


def tied():
    return Net(lambda s, t: F.linear(torch.tanh(s.l(s.e(t)).mean(1)), s.e.weight), e=nn.Embedding(7, 4), l=nn.Linear(4, 4))


def tied_module():
    net = Net(lambda s, t: s.u(torch.tanh(s.e(t)).mean(1)), e=nn.Embedding(7, 4), u=nn.Linear(4, 7, bias=False))
    net.u.weight = net.e.weight
    return net


def twice():
    return Net(lambda s, x: s.o(torch.tanh(s.a(torch.tanh(s.a(x))))), a=nn.Linear(5, 5), o=nn.Linear(5, 3))


def flattened(s, t):
    h = torch.tanh(s.e(t))
    return torch.addmm(s.b, h.reshape(-1, 4), s.w).view(*h.shape[:2], 3).tanh().mean(1)


def grouped_twice():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    return Net(lambda s, x: s.o(flat(torch.tanh(s.c(torch.tanh(s.c(x)))))), c=conv, o=nn.Linear(36, 2))


ZOO = {
    "mlp": Case(lambda: mlp([5, 6, 4, 3], nn.Tanh), (5,), paths=ruled("0.weight", "0.bias", "2.weight", "4.bias")),
    "one sample": Case(lambda: mlp([5, 6, 3], nn.Tanh), (5,), n=1, paths=ruled("0.weight", "0.bias")),
    "scalar output": Case(lambda: Net(lambda s, x: s.m(x)[:, 0], m=mlp([5, 6, 1], nn.Tanh)), (5,), paths=ruled("m.0.weight")),
    "convolution": conv_case(),
    "stride": conv_case(stride=2, padding=1),
    "padding": conv_case(padding=(2, 1)),
    "padding same": conv_case(padding="same"),
    "padding same, dilated": conv_case(padding="same", dilation=(2, 1)),
    "padding valid": conv_case(padding="valid"),
    "padding circular": conv_case(padding=1, padding_mode="circular"),
    "dilation": conv_case(dilation=2, padding=2),
    "groups": conv_case(groups=2, padding=1, stride=(2, 1)),
    "even kernel, same": Case(
        lambda: Net(lambda s, x: s.o(flat(torch.tanh(s.c(x)))), c=nn.Conv2d(2, 3, (2, 4), padding="same"), o=nn.Linear(36, 2)),
        (2, 3, 4),
        paths=ruled("c.weight", "c.bias"),
    ),
    "depthwise": Case(
        lambda: Net(lambda s, x: s.o(flat(torch.tanh(s.c(x)))), c=nn.Conv2d(3, 6, 2, groups=3), o=nn.Linear(36, 2)),
        (3, 3, 4),
        paths=ruled("c.weight"),
    ),
    "grouped convolution twice": Case(grouped_twice, (4, 3, 3), n=4, paths=ruled("c.weight", "c.bias")),
    "resnet": Case(resnet, (3, 8, 8), n=4, paths=ruled("conv1.weight", "bn1.weight", "bn1.bias", "layer2.0.conv1.weight", "linear.weight")),
    "batch norm 1d": Case(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        (5,),
        paths=ruled("1.weight", "1.bias"),
    ),
    "transformer": Case(
        transformer, (4,), 9, paths=ruled("e.weight", "b.qkv.weight", "b.n1.weight", "b.n1.bias", "b.down.bias", "n.weight")
    ),
    "transformer, padding": Case(lambda: transformer(padding_idx=2), (4,), 9, paths=ruled("e.weight")),
    "transformer, negative padding": Case(lambda: transformer(padding_idx=-3), (4,), 9, paths=ruled("e.weight")),
    "layer norm over two axes": Case(
        lambda: Net(lambda s, x: s.o(flat(torch.tanh(s.n(x)))), n=nn.LayerNorm((2, 3)), o=nn.Linear(24, 2)),
        (4, 2, 3),
        paths=ruled("n.weight", "n.bias"),
    ),
    "module called twice": Case(twice, (5,), paths=ruled("a.weight", "a.bias")),
    "tied embedding": Case(tied, (4,), 7, paths=ruled("e.weight", "l.weight")),
    "tied modules": Case(tied_module, (4,), 7, paths=ruled("e.weight")),
    "embedding twice": Case(
        lambda: Net(lambda s, t: s.o(torch.tanh(s.e(t[:, :2])).mean(1) * s.e(t[:, 2])), e=nn.Embedding(5, 4), o=nn.Linear(4, 2)),
        (3,),
        5,
        paths=ruled("e.weight"),
    ),
    "weight used functionally": Case(
        lambda: Net(lambda s, x: s.o(torch.tanh(s.a(x)) + F.linear(x, weight=s.a.weight)), a=nn.Linear(5, 4), o=nn.Linear(4, 2)),
        (5,),
        paths=ruled("a.weight", "a.bias"),
    ),
    "bare parameter": Case(lambda: Net(lambda s, x: torch.tanh(x @ s.w) @ s.u, w=P(5, 4), u=P(4, 2)), (5,), paths=ruled("w", "u")),
    "straight and transposed": Case(
        lambda: Net(lambda s, x: torch.tanh(torch.tanh(F.linear(x, s.w)) @ s.w), w=P(5, 5)), (5,), paths=ruled("w")
    ),
    "addmm on flattened tokens": Case(lambda: Net(flattened, e=nn.Embedding(7, 4), w=P(4, 3), b=P(3)), (5,), 7, paths=ruled("w", "b")),
    "addmm and linear": Case(
        lambda: Net(lambda s, x: torch.addmm(s.b, torch.tanh(F.linear(x, s.w)), s.w), w=P(5, 5), b=P(5)), (5,), n=4, paths=ruled("w", "b")
    ),
    "residuals": Case(
        lambda: Net(lambda s, x: s.o((lambda h: h + F.relu(s.a(h)) + h)(s.a(x))), a=nn.Linear(5, 5), o=nn.Linear(5, 2)),
        (5,),
        paths=ruled("a.weight"),
    ),
    "in-place activations": Case(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.SiLU(inplace=True), nn.Linear(6, 2)),
        (5,),
        paths=ruled("0.weight", "2.bias"),
    ),
    "frozen": Case(frozen, (5,), paths=ruled("0.bias", "2.weight", "4.weight")),
    "unused": Case(
        lambda: Net(lambda s, x: s.a(x), a=nn.Linear(5, 2), b=nn.Linear(5, 2)),
        (5,),
        paths={"a.weight": "rule", "b.weight": "unused", "b.bias": "unused"},
    ),
    "position table": Case(
        lambda: Net(positions, e=nn.Embedding(7, 4), p=nn.Embedding(5, 4), l=nn.Linear(4, 4), o=nn.Linear(4, 2)),
        (5,),
        7,
        paths=ruled("e.weight", "l.weight", "p.weight"),
    ),
    "position parameter": Case(
        lambda: Net(lambda s, x: s.o(torch.tanh(s.l(x + s.p)).mean(1)), p=P(3, 4), l=nn.Linear(4, 4), o=nn.Linear(4, 2)),
        (3, 4),
        paths=ruled("p"),
    ),
    "output with axes": Case(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), (3, 4), n=4, paths=ruled("0.weight", "2.bias")
    ),
    "output is a view": Case(lambda: Net(lambda s, x: s.a(x).view(len(x), 2, 2)[:, 1:], a=nn.Linear(5, 4)), (5,), paths=ruled("a.weight")),
    "gpt2": Case(
        gpt2,
        (4,),
        7,
        n=3,
        paths=ruled(*(f"lm.transformer.{name}" for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")))
        | ruled(
            *(
                f"lm.transformer.h.0.{layer}.{kind}"
                for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
                for kind in ("weight", "bias")
            )
        ),
    ),
    "lstm": Case(recurrent, (3,), 7, n=4, paths=exact("r.weight_ih_l0", "r.bias_hh_l0") | ruled("e.weight", "o.weight"), vmap=False),
    "encoder": Case(
        encoder,
        (3, 6),
        n=4,
        paths=ruled("t.layers.0.self_attn.in_proj_weight", "t.layers.0.linear1.weight", "t.layers.0.norm2.bias"),
    ),
    "attention": Case(attention, (3, 6), n=4, paths=ruled("a.in_proj_weight", "a.in_proj_bias", "a.out_proj.bias", "o.weight")),
    "attention of three inputs": Case(
        attention_of_three,
        (3, 6),
        n=4,
        paths=ruled("a.in_proj_weight", "a.in_proj_bias", "a.bias_k", "a.bias_v", "a.out_proj.weight"),
        vmap=False,
    ),
    "attention with other widths": Case(
        attention_of_widths, (3, 6), n=4, paths=ruled("a.q_proj_weight", "a.k_proj_weight", "a.v_proj_weight", "a.in_proj_bias")
    ),
    "attention as einsums": Case(
        lens_attention, (3, 6), n=4, paths=ruled("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "r.weight")
    ),
    "a matrix for each head": Case(
        lambda: Net(
            lambda s, x: torch.einsum("...hd,hde->...he", torch.tanh(torch.matmul(x[:, None], s.A)).transpose(1, 2), s.B).flatten(2).sum(1),
            A=P(2, 4, 3),
            B=P(2, 3, 2),
        ),
        (3, 4),
        paths=ruled("A", "B"),
    ),
    "Conv1D of transformers": Case(hf_conv1d, (3, 5), paths=ruled("c.weight", "c.bias", "o.weight")),
    "slices apart": Case(
        lambda: Net(lambda s, x: s.o(sum(torch.tanh(F.linear(x, w)) for w in s.w.chunk(3))), w=P(12, 5), o=nn.Linear(4, 2)),
        (3, 5),
        n=4,
        paths=ruled("w"),
    ),
    "columns and all": Case(
        lambda: Net(lambda s, x: torch.tanh(F.linear(x[..., :3], s.w[:, :3]) * F.linear(x, s.w[:, 3:])).sum(1) @ s.w, w=P(4, 8)),
        (3, 5),
        n=4,
        paths=ruled("w"),
    ),
    "slices that overlap": Case(
        lambda: Net(lambda s, x: torch.tanh(F.linear(torch.tanh(F.linear(x, s.w[:4])), s.w[2:, :4])), w=P(6, 5)),
        (3, 5),
        n=4,
        paths=ruled("w"),
    ),
    "one slice twice": Case(
        lambda: Net(lambda s, x: torch.tanh(F.linear(torch.tanh(F.linear(x, s.w[1:5])), s.w[1:5])), w=P(6, 4)),
        (3, 4),
        n=5,
        paths=ruled("w"),
    ),
    "a view and the parameter": Case(
        lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w) + F.linear(x[..., :2], s.w[:, 1:3]) + x @ s.w.T.T.T), w=P(4, 4)),
        (3, 4),
        n=5,
        paths=ruled("w"),
    ),
    "rows listed twice": Case(
        lambda: Net(lambda s, x: torch.tanh(F.linear(torch.tanh(F.linear(x, s.w[[0, 2, 2, 1]])), s.w.flip(1)[:, :4])), w=P(3, 5)),
        (3, 5),
        n=5,
        paths=ruled("w"),
    ),
    "table tied through a transpose": Case(
        lambda: Net(lambda s, t: torch.tanh(s.l(s.e(t)).mean(1)) @ s.e.weight.T, e=nn.Embedding(7, 4), l=nn.Linear(4, 4)),
        (4,),
        7,
        paths=ruled("e.weight", "l.weight"),
    ),
    "table read by index": Case(
        lambda: Net(lambda s, t: s.o(torch.tanh(s.w[t] * s.b[t][..., None]).mean(1)), w=P(7, 4), b=P(7), o=nn.Linear(4, 2)),
        (4,),
        7,
        paths=ruled("w", "b"),
    ),
    "class token": Case(
        lambda: Net(
            lambda s, x: s.o(
                torch.tanh(torch.cat([s.c.expand(len(x), -1, -1), s.r.repeat(len(x), 1, 1), x], 1) + s.p[:, :5] @ s.w).mean(1)
            ),
            c=P(1, 1, 4),
            r=P(1, 1, 4),
            p=P(1, 7, 4),
            w=nn.Parameter(torch.eye(4), requires_grad=False),
            o=nn.Linear(4, 2),
        ),
        (3, 4),
        paths=ruled("c", "r") | exact("p"),
    ),
    "positions cut from a table": Case(
        lambda: Net(lambda s, x: s.o(torch.tanh(s.l(x + s.p[: x.shape[1]])).mean(1)), p=P(8, 4), l=nn.Linear(4, 4), o=nn.Linear(4, 2)),
        (3, 4),
        paths=ruled("p"),
    ),
    "entry by entry": Case(entry_by_entry, (3, 4), paths=ruled("a", "b", "c", "d", "e", "h", "g"), vmap=False),
    "positions first": Case(
        lambda: Net(lambda s, x: s.o(torch.tanh(s.l(x.transpose(0, 1)) * s.g)).mean(0), l=nn.Linear(4, 5), g=P(5), o=nn.Linear(5, 2)),
        (3, 4),
        paths=ruled("l.weight", "l.bias", "g", "o.weight", "o.bias"),
    ),
    "a matrix from the left": Case(
        lambda: Net(lambda s, x: torch.tanh(s.A @ x + (s.B @ x.transpose(1, 2)).sum((1, 2))[:, None, None]).sum(2), A=P(2, 3), B=P(4, 4)),
        (3, 4),
        n=1,
        paths=ruled("A", "B"),
    ),
    "norms with scales": Case(norms, (4, 3, 2), n=3, paths=ruled("g.weight", "g.bias", "i.weight", "i.bias", "r.weight")),
    "overwritten copy": Case(
        lambda: Net(lambda s, x: torch.tanh(F.linear(x, overwritten(s.w)) + s.b), w=P(4, 5), b=P(4)),
        (5,),
        paths=exact("w") | ruled("b"),
        vmap=False,
    ),
    "weight norm": Case(weight_norm, (5,), paths=exact("0.parametrizations.weight.original0") | ruled("0.bias", "2.weight")),
    "checkpoint": Case(
        lambda: Net(lambda s, x: s.o(checkpoint(s.a, x, use_reentrant=False)), a=mlp([5, 6, 4], nn.Tanh), o=nn.Linear(4, 2)),
        (5,),
        paths=ruled("a.0.weight", "o.bias"),
        vmap=False,
    ),
    "rms norm": Case(lambda: nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.Linear(4, 2)), (5,), paths=ruled("1.weight", "0.weight")),
    "conv1d": Case(
        lambda: Net(lambda s, x: s.o(flat(torch.tanh(s.c(x)))), c=nn.Conv1d(2, 3, 2), o=nn.Linear(9, 2)),
        (2, 4),
        paths=ruled("c.weight", "c.bias"),
    ),
}
