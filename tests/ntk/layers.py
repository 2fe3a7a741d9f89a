"""Layers of torch one by one, and parameters that reach a call as something else. Which path each takes is not stated: rules may come."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.ntk.zoo import Case, Net, P, flat, gpt2
from tests.peers import needs


def head(layer, features, shape, n_outputs=2, **options):
    """A layer between an elementwise function and a linear one, so that its output is not the model's."""
    return Case(
        lambda: Net(lambda s, x: s.o(flat(torch.tanh(s.l(torch.sin(x))))), l=layer(), o=nn.Linear(features, n_outputs)),
        shape,
        n=4,
        **options,
    )


def affine(norm):
    for p in norm.parameters():
        nn.init.normal_(p)
    return norm


def recurrent(kind, **options):
    def make():
        r = kind(3, 4, batch_first=True, **options)
        return Net(lambda s, x: s.o(s.r(x)[0][:, -1]), r=r, o=nn.Linear(8 if options.get("bidirectional") else 4, 2))

    return Case(make, (3, 3), n=3, vmap=False)


def cell(kind):
    def f(s, x):
        h = x.new_zeros(len(x), 4)
        state = (h, h) if kind is nn.LSTMCell else h
        for t in range(x.shape[1]):
            state = s.r(x[:, t], state)
        return s.o(state[0] if kind is nn.LSTMCell else state)

    return Case(lambda: Net(f, r=kind(3, 4), o=nn.Linear(4, 2)), (3, 3), n=3, vmap=False)


def attention(q, k, v, *, bias_kv=False, kdim=None, vdim=None, batch_first=True, weights=False, length=3):
    def f(s, x):
        a, b, c = q(x), k(x), v(x)
        if not batch_first:
            a, b, c = (t.transpose(0, 1) for t in (a, b, c))
        out = s.a(a, b, c, need_weights=weights)[0]
        return s.o(torch.tanh(out.mean(1 if batch_first else 0)))

    def make():
        a = nn.MultiheadAttention(6, 2, batch_first=batch_first, add_bias_kv=bias_kv, kdim=kdim, vdim=vdim)
        for p in a.parameters():
            nn.init.normal_(p, 0, 0.5)
        return Net(f, a=a, o=nn.Linear(6, 2))

    return Case(make, (length, 6), n=3)


def same(x):
    return x


def rms_norm(s, x):
    h = s.a(x)
    return s.o(torch.tanh(h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * s.g))


def hf_conv1d():
    needs("transformers")
    from transformers.pytorch_utils import Conv1D

    return Net(lambda s, x: s.o(torch.tanh(s.c(x)).mean(1)), c=Conv1D(4, 5), o=nn.Linear(4, 2))


def lens_attention(s, x):
    q, k, v = (torch.einsum("npd,hde->nphe", x, w) + b[None, None] for w, b in ((s.Q, s.bQ), (s.K, s.bK), (s.V, s.bV)))
    pattern = torch.einsum("nqhe,nkhe->nhqk", q, k).softmax(-1)
    return torch.einsum("nhqk,nkhe,hed->nqd", pattern, v, s.O).mean(1)


def parametrised(wrap, layer, features, shape):
    def make():
        return head(lambda: wrap(layer()), features, shape).make()

    return Case(make, shape, n=4)


def spectral(layer):
    wrapped = nn.utils.parametrizations.spectral_norm(layer)
    return wrapped.eval()  # in training each forward takes one more power iteration


def bags(mode, **options):
    return Case(lambda: Net(lambda s, t: s.o(s.e(t)), e=nn.EmbeddingBag(7, 4, mode=mode, **options), o=nn.Linear(4, 2)), (3,), 7, n=5)


LAYERS = {
    # views of a parameter
    "transposed view": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w.T)) @ s.u.mT, w=P(5, 4), u=P(2, 4)), (5,)),
    "sliced view": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w[:4])) * s.w[4:, :4].sum(0), w=P(6, 5)), (5,)),
    "strided view": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w[::2, 1::2])), w=P(6, 10)), (5,)),
    "expanded view": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w.expand(4, 5), s.b.expand(4))), w=P(1, 5), b=P(1)), (5,)),
    "chunks": Case(lambda: Net(lambda s, x: sum(torch.tanh(F.linear(x, w)) for w in s.w.chunk(3)), w=P(6, 5)), (5,)),
    "reshaped": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w.view(4, 5))), w=P(20)), (5,)),
    "permuted kernel": Case(
        lambda: Net(lambda s, x: flat(torch.tanh(F.conv2d(x, s.w.permute(3, 2, 0, 1)))), w=P(2, 2, 2, 3)), (2, 3, 3), n=4
    ),
    "stacked parameters": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, torch.stack([s.a, s.b]))), a=P(5), b=P(5)), (5,)),
    "masked parameter": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w.tril())), w=P(5, 5)), (5,)),
    "flipped and rolled": Case(lambda: Net(lambda s, x: torch.tanh(F.linear(x, s.w.flip(0) + s.w.roll(1, 1))), w=P(4, 5)), (5,)),
    "indexed table": Case(lambda: Net(lambda s, t: torch.tanh(s.w[t]).mean(1) @ s.u, w=P(7, 4), u=P(4, 2)), (3,), 7),
    "positions cut from a table": Case(
        lambda: Net(lambda s, x: s.o(torch.tanh(x + s.p[: x.shape[1]]).mean(1)), p=P(8, 4), o=nn.Linear(4, 2)), (3, 4)
    ),
    "class token": Case(
        lambda: Net(
            lambda s, x: s.o(torch.tanh(torch.cat([s.c.expand(len(x), -1, -1), x], 1) @ s.w).mean(1)),
            c=P(1, 1, 4),
            w=P(4, 4),
            o=nn.Linear(4, 2),
        ),
        (3, 4),
    ),
    # attention
    "attention over itself": attention(same, same, same),
    "attention, positions first": attention(same, same, same, batch_first=False),
    "attention, weights asked for": attention(same, same, same, weights=True),
    "attention across": attention(same, lambda x: x.flip(1), lambda x: x.flip(1)),
    "attention of three inputs": attention(same, torch.sin, torch.cos),
    "attention, other widths": attention(same, lambda x: x[..., :4], lambda x: x[..., :5], kdim=4, vdim=5),
    "attention with bias rows": attention(same, same, same, bias_kv=True),
    "attention as einsums": Case(
        lambda: Net(lens_attention, Q=P(2, 6, 3), K=P(2, 6, 3), V=P(2, 6, 3), O=P(2, 3, 6), bQ=P(2, 3), bK=P(2, 3), bV=P(2, 3)),
        (3, 6),
        n=3,
    ),
    "gpt2 again": Case(gpt2, (3,), 7, n=2),
    "Conv1D of transformers": Case(hf_conv1d, (3, 5), n=4),
    # norms
    "rms norm written out": Case(lambda: Net(rms_norm, a=nn.Linear(5, 4), g=P(4), o=nn.Linear(4, 2)), (5,)),
    "rms norm": head(lambda: affine(nn.RMSNorm(4)), 12, (3, 4)),
    "group norm": head(lambda: affine(nn.GroupNorm(2, 4)), 24, (4, 3, 2)),
    "group norm, flat": head(lambda: affine(nn.GroupNorm(2, 6)), 6, (6,)),
    "instance norm": head(lambda: affine(nn.InstanceNorm2d(3, affine=True)), 18, (3, 3, 2)),
    "batch norm 3d": head(lambda: affine(nn.BatchNorm3d(2)), 16, (2, 2, 2, 2)),
    "layer norm without shift": head(lambda: affine(nn.LayerNorm(4, bias=False)), 12, (3, 4)),
    # convolutions
    "conv1d, grouped and dilated": head(lambda: nn.Conv1d(4, 6, 2, groups=2, dilation=2, stride=2, padding=1), 18, (4, 6)),
    "conv3d": head(lambda: nn.Conv3d(2, 3, 2, padding=(1, 0, 1)), 48, (2, 3, 3, 1), vmap=False),
    "conv3d, grouped": head(lambda: nn.Conv3d(2, 4, (1, 2, 2), groups=2), 32, (2, 2, 3, 3)),
    "transposed convolution 1d": head(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), 24, (2, 3)),
    "transposed convolution 2d": head(lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), 96, (4, 2, 2)),
    "transposed convolution 3d": head(lambda: nn.ConvTranspose3d(2, 2, 2, dilation=2), 54, (2, 1, 1, 1)),
    "convolution padded by reflection": head(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), 27, (2, 3, 3)),
    # others
    "bilinear": Case(lambda: Net(lambda s, x: s.o(torch.tanh(s.b(x[:, :3], x[:, 3:]))), b=nn.Bilinear(3, 2, 4), o=nn.Linear(4, 2)), (5,)),
    "embedding bag, mean": bags("mean"),
    "embedding bag, sum": bags("sum"),
    "embedding bag, max": bags("max"),
    "embedding bag, padding": bags("mean", padding_idx=2),
    "embedding, scaled gradient": Case(lambda: nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2)), (3,), 7),
    "prelu": head(lambda: nn.PReLU(3, 0.3), 6, (3, 2)),
    "gated unit": head(lambda: nn.Sequential(nn.Linear(4, 6), nn.GLU()), 9, (3, 4)),
    # recurrences
    "rnn": recurrent(nn.RNN),
    "lstm, two layers, both ways": recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm with projection": Case(
        lambda: Net(lambda s, x: s.r(x)[0][:, -1], r=nn.LSTM(3, 4, proj_size=2, batch_first=True)), (3, 3), n=3, vmap=False
    ),
    "gru": recurrent(nn.GRU),
    "gru without bias": recurrent(nn.GRU, bias=False),
    "lstm cell": cell(nn.LSTMCell),
    "gru cell": cell(nn.GRUCell),
    # parametrisations
    "weight norm of a convolution": parametrised(nn.utils.parametrizations.weight_norm, lambda: nn.Conv2d(2, 3, 2), 12, (2, 3, 3)),
    "spectral norm": parametrised(spectral, lambda: nn.Linear(5, 4), 4, (5,)),
    "spectral norm of a convolution": parametrised(spectral, lambda: nn.Conv2d(2, 3, 2), 12, (2, 3, 3)),
    "orthogonal": parametrised(nn.utils.parametrizations.orthogonal, lambda: nn.Linear(5, 4), 4, (5,)),
}
