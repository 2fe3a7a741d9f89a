"""Random models: programs over one stream ``[n positions 4]``, drawn by hypothesis, that reuse, tie, view and freeze their parameters."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

C, POSITIONS, TOKENS = 4, 3, 5


@dataclass(frozen=True)
class Program:
    """What a random model does.

    Attributes:
        steps: Name of a step, and the number of the matrix, vector, module or earlier stream it takes.
        tokens: Read token ids through an embedding; else real inputs.
        head: How the stream becomes outputs.
        frozen: Numbers of parameters that are frozen.
        seed: Seed of parameters and batches.
    """

    steps: tuple[tuple[str, int], ...]
    tokens: bool
    head: str
    frozen: frozenset[int]
    seed: int


STEPS = {
    "linear": lambda s, h, i: F.linear(h, s.W[i], s.v[i]),
    "linear without bias": lambda s, h, i: F.linear(h, s.W[i]),
    "module": lambda s, h, i: s.m[i](h),
    "weight of a module": lambda s, h, i: F.linear(h, s.m[i].weight, s.v[i]),
    "transposed": lambda s, h, i: F.linear(h, s.W[i].T),
    "matmul": lambda s, h, i: h @ s.W[i],
    "addmm": lambda s, h, i: torch.addmm(s.v[i], h.reshape(-1, C), s.W[i]).view_as(h),
    "einsum": lambda s, h, i: torch.einsum("npc,dc->npd", h, s.W[i]),
    "sliced": lambda s, h, i: F.linear(h, s.big[i : i + C, :C]),
    "expanded": lambda s, h, i: F.linear(h, s.v[i].expand(C, C)),
    "outer product": lambda s, h, i: F.linear(h, torch.outer(s.v[i], s.v[0])),
    "positions first": lambda s, h, i: F.linear(h.transpose(0, 1), s.W[i], s.v[i]).transpose(0, 1),
    "flattened": lambda s, h, i: s.m[i](h.reshape(-1, C)).view(len(h), -1, C),
    "scale": lambda s, h, i: h * s.v[i],
    "shift": lambda s, h, i: h + s.v[i],
    "scale by one number": lambda s, h, i: h * s.one,
    "shift, in place": lambda s, h, i: (h * 1).add_(s.v[i]),
    "shift from": lambda s, h, i: s.v[i] - h,
    "divide": lambda s, h, i: h / (2 + s.v[i].square()) / s.one.exp(),
    "divide by a view": lambda s, h, i: torch.tanh(s.W[i][0, :1] / (3 + h)),
    "two matrices": lambda s, h, i: h @ s.W[i] @ s.W[i].T,
    "product of matrices": lambda s, h, i: h @ (s.W[i] @ s.W[0]),
    "matrix of three": lambda s, h, i: torch.einsum("npc,cd,de->npe", h, s.W[i], s.W[0]),
    "heads": lambda s, h, i: torch.einsum("nphd,hde->nphe", h.unflatten(-1, (2, 2)), s.W[i].view(2, 2, 4)[:, :, i : i + 2]).flatten(2),
    "chunks": lambda s, h, i: (
        torch.stack([F.linear(h, w).sum(-1) for w in s.big[:C, :C].chunk(C, i)], -1)
        if i == 0
        else sum(h[..., j : j + 1] * w.mT for j, w in enumerate(s.W[i].chunk(C, 1)))
    ),
    "listed rows": lambda s, h, i: F.linear(h, s.big[[0, 2, i, 2], :C], s.v[i].flip(0)),
    "reshaped": lambda s, h, i: F.linear(h, s.wide.view(-1)[i : i + C * C].reshape(C, C).contiguous()),
    "overwritten copy": lambda s, h, i: F.linear(h, s.W[i].clone().mul_(0.5)),
    "class token": lambda s, h, i: torch.cat([s.v[i].expand(len(h), 1, -1), h[:, 1:]], 1),
    "class token, repeated": lambda s, h, i: torch.cat([h[:, :2], s.v[i][None, None].repeat(len(h), 1, 1)], 1),
    "table by index": lambda s, h, i: h + s.table.weight[[0, 2, i]] + s.big[i, :C],
    "positions": lambda s, h, i: h + s.table.weight,
    "positions by lookup": lambda s, h, i: h + s.table(torch.arange(POSITIONS)),
    "layer norm": lambda s, h, i: s.n[i](h),
    "functional layer norm": lambda s, h, i: F.layer_norm(h, (C,), s.v[i], s.v[0]),
    "rms norm": lambda s, h, i: F.rms_norm(h, (C,), s.v[i], 1e-3),
    "rms norm written out": lambda s, h, i: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-3) * s.v[i],
    "group norm": lambda s, h, i: F.group_norm(h.transpose(1, 2), 2, s.v[i], s.v[0], 1e-3).transpose(1, 2),
    "convolution over positions": lambda s, h, i: F.conv1d(h.transpose(1, 2), s.k, s.v[i], padding=1).transpose(1, 2),
    "convolution over an image": lambda s, h, i: F.conv2d(h[:, None], s.k2, s.one[None], padding=1)[:, 0],
    "attention": lambda s, h, i: F.scaled_dot_product_attention(h @ s.W[i], F.linear(h, s.W[0]), s.m[i](h)),
    "attention module": lambda s, h, i: s.a(h, h, h, need_weights=False)[0],
    "recurrence": lambda s, h, i: s.r(h)[0],
    "checkpoint": lambda s, h, i: checkpoint(s.m[i], h, use_reentrant=False),
    "tanh": lambda s, h, i: torch.tanh(h),
    "tanh, in place": lambda s, h, i: (h + 0).tanh_(),
    "silu, in place": lambda s, h, i: F.silu(h * 1, inplace=True),
    "detached": lambda s, h, i: h + s.m[i](h).detach(),
    "residual": lambda s, h, i: h + s.seen[i % len(s.seen)],
    "product": lambda s, h, i: h * torch.tanh(s.seen[i % len(s.seen)]),
    "reversed positions": lambda s, h, i: h.flip(1),
}
HEADS = {
    "linear": lambda s, h: s.o(h.mean(1)),
    "flat": lambda s, h: F.linear(h.flatten(1), s.wide),
    "last position": lambda s, h: s.o(h[:, -1]),
    "tied to a matrix": lambda s, h: F.linear(h.mean(1), s.W[0]),
    "tied to the embedding": lambda s, h: F.linear(h.mean(1), s.e.weight),
    "the stream": lambda s, h: h,
    "one number": lambda s, h: s.o(h).sum((1, 2)),
}


class Model(nn.Module):
    """The model of a program; it holds every parameter that a step may take, most of them unused."""

    def __init__(self, program):
        super().__init__()
        self.program = program
        torch.manual_seed(program.seed)
        self.W = nn.ParameterList(torch.randn(C, C) * 0.5 for _ in range(2))
        self.v = nn.ParameterList(torch.randn(C) for _ in range(2))
        self.m = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.n = nn.ModuleList(nn.LayerNorm(C, eps=1e-3) for _ in range(2))
        self.big, self.k, self.k2 = (nn.Parameter(torch.randn(*s) * 0.5) for s in ((C + 1, C + 2), (C, C, 3), (1, 1, 3, 3)))
        self.one, self.wide = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(3, POSITIONS * C))
        self.e, self.table, self.o = nn.Embedding(TOKENS, C), nn.Embedding(POSITIONS, C), nn.Linear(C, 3)
        self.a, self.r = nn.MultiheadAttention(C, 2, batch_first=True), nn.GRU(C, C, batch_first=True)
        if program.seed % 3 == 0:
            self.m[1].weight = self.m[0].weight  # tied modules
        parameters = list(self.parameters())
        for i in program.frozen:
            parameters[i % len(parameters)].requires_grad_(False)
        self.one.requires_grad_(True)

    def forward(self, x):
        h = self.e(x) if self.program.tokens else x
        self.seen = [h]
        for name, i in self.program.steps:
            h = STEPS[name](self, h, i)
            self.seen.append(h)
        self.seen = []
        return HEADS[self.program.head](self, h)

    def batch(self, n):
        return torch.randint(0, TOKENS, (n, POSITIONS)) if self.program.tokens else torch.randn(n, POSITIONS, C)


@st.composite
def programs(draw):
    """Up to eight steps, with numbers 0 and 1, so that parameters meet again."""
    step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 1))
    return Program(
        tuple(draw(st.lists(step, min_size=1, max_size=8))),
        draw(st.booleans()),
        draw(st.sampled_from(sorted(HEADS))),
        draw(st.frozensets(st.integers(0, 30), max_size=6)),
        draw(st.integers(0, 1000)),
    )
