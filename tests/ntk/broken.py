"""Fifty rules and contractions, each broken by one mistake that an author could make, as small data: ``BROKEN``."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.kernels import mirror
from mechfeat.ntk import capture, contraction, factors, register_rule
from mechfeat.ntk.factors import Dense, Lookup, Outer
from mechfeat.ntk.rules import Call, Use, conv, rule_for
from tests.ntk.zoo import ZOO, Net, P, norm2d

# --- models, and their batches of n samples


def tokens():
    def f(s, t):
        h = torch.tanh(s.l(s.a(torch.tanh(s.e(t)))))
        return s.o(h[:, -2:].flatten(1))

    return Net(f, e=nn.Embedding(9, 5, padding_idx=2), a=nn.Linear(5, 5), l=nn.LayerNorm(5), o=nn.Linear(10, 3))


def images():
    net = Net(
        lambda s, x: s.o(torch.tanh(s.b(s.c(x))).flatten(1)), c=nn.Conv2d(2, 4, 3, padding=1, bias=True), b=norm2d(4), o=nn.Linear(64, 3)
    )
    nn.init.normal_(net.c.bias)
    return net


def convolution(features, *sizes, **options):
    return lambda: Net(lambda s, x: s.o(torch.tanh(s.c(x)).flatten(1)), c=nn.Conv2d(*sizes, **options), o=nn.Linear(features, 3))


def turned():
    return Net(lambda s, x: torch.addmm(s.b, torch.tanh(torch.addmm(s.b, x, s.w)), s.w), w=P(5, 5), b=P(5))


def scaled_product():
    return Net(lambda s, x: s.o(torch.tanh(torch.addmm(s.b, x, s.w, beta=0.5, alpha=2))), w=P(5, 4), b=P(4), o=nn.Linear(4, 3))


def shared_bias():
    return Net(
        lambda s, x: s.o(torch.tanh(F.linear(torch.tanh(F.linear(x, s.a, s.b)), s.c, s.b))), a=P(5, 5), b=P(5), c=P(5, 5), o=nn.Linear(5, 3)
    )


def ids(n_tokens):
    """Token ids ``[n 4]``, each of which occurs if there is room."""
    return lambda n: torch.cat([torch.randperm(n_tokens) for _ in range(-(-4 * n // n_tokens))])[: 4 * n].view(n, 4)


def real(*shape, shift=0.0):
    return lambda n: torch.randn(n, *shape) + shift


MODELS = {
    "mlp": (ZOO["mlp"].make, real(5)),
    "twice": (ZOO["module called twice"].make, real(5)),
    # wider than it has tokens, or its trace would go through the bottleneck
    "tied": (
        lambda: Net(lambda s, t: F.linear(torch.tanh(s.l(s.e(t)).mean(1)), s.e.weight), e=nn.Embedding(5, 6), l=nn.Linear(6, 6)),
        ids(5),
    ),
    "tokens": (tokens, ids(9)),
    "images": (images, real(2, 4, 4, shift=0.3)),
    "groups": (convolution(16, 2, 4, 2, stride=2, dilation=2, padding=1, groups=2), real(2, 4, 4)),
    "even": (convolution(48, 2, 4, (2, 4), padding="same"), real(2, 3, 4)),
    "turned": (turned, real(5)),
    "scaled product": (scaled_product, real(5)),
    "shared bias": (shared_bias, real(5)),
    "scaled head": (lambda: Net(lambda s, x: 2 * s.o(torch.tanh(s.a(x))), a=nn.Linear(5, 4), o=nn.Linear(4, 3)), real(5)),
    "an output a position": (lambda: Net(lambda s, t: torch.tanh(s.a(s.e(t))).sum(2), e=nn.Embedding(9, 5), a=nn.Linear(5, 4)), ids(9)),
    # functions whose rules are written below
    "rms": (
        lambda: Net(
            lambda s, t: s.o(torch.tanh(s.r(s.e(t))).flatten(1)), e=nn.Embedding(9, 5), r=nn.RMSNorm(5, eps=1e-3), o=nn.Linear(20, 3)
        ),
        ids(9),
    ),
    "group norm": (
        lambda: Net(lambda s, x: s.o(torch.tanh(s.g(s.c(x))).flatten(1)), c=nn.Conv2d(2, 4, 3), g=nn.GroupNorm(2, 4), o=nn.Linear(16, 3)),
        real(2, 4, 4),
    ),
    "gate": (
        lambda: Net(lambda s, t: s.o(torch.mul(torch.tanh(s.e(t)), s.w).mean(1)), e=nn.Embedding(9, 5), w=P(5), o=nn.Linear(5, 3)),
        ids(9),
    ),
    "positions": (
        lambda: Net(lambda s, t: s.o(torch.tanh(torch.add(s.e(t), s.p)).mean(1)), e=nn.Embedding(9, 5), p=P(1, 4, 5), o=nn.Linear(5, 3)),
        ids(9),
    ),
}


def model(name, n=8, seed=3, dtype=torch.float64):
    """A model and two batches."""
    torch.manual_seed(seed)
    make, batch = MODELS[name]
    net, x1, x2 = make().eval(), batch(n), batch(n)
    if not x1.is_floating_point():
        x1[0, -1] = x2[-1, -1] = 2  # a padding token among the proof samples
        return net.to(dtype), x1, x2
    return net.to(dtype), x1.to(dtype), x2.to(dtype)


# --- ways to break the code; each takes monkeypatch


def rule(function, write):
    """A rule of the user's: ``write(call)`` gives its uses."""
    return lambda patch: register_rule(function)(write)


def factor(function, change, pick=0):
    """Change the factor that a rule builds for its pick-th use: ``change(call, factor, g)``."""

    def broken(patch):
        right = rule_for(function)

        @register_rule(function)
        def rule(call):
            uses = right(call)
            if len(uses) > pick:
                use = uses[pick]
                uses[pick] = Use(use.parameter, lambda g: change(call, use.factor(g), g))
            return uses

    return broken


def outer(**change):
    return lambda call, f, g: dataclasses.replace(f, **{k: v(getattr(f, k)) for k, v in change.items()})


def calls(change):
    """Change the list of a parameter's uses."""

    def broken(patch):
        right = contraction.contract
        patch.setattr(contraction, "contract", lambda *arguments: change(right, *arguments))

    return broken


def part(pick, change):
    """Change a parameter's finished part of the kernel; ``pick`` says which, from its factors."""

    def changed(right, into, f1, f2, outputs, *options):
        part = torch.zeros_like(into)
        done = right(part, f1, f2, outputs, *options)
        if f1 is f2:
            mirror(part, outputs)
        into += change(part, outputs) if pick(f1) else part
        return done

    return calls(changed)


def patches(change):
    def broken(patch):
        right = conv.patches
        patch.setattr(conv, "patches", lambda x, size, stride, padding, dilation: change(right, x, size, stride, padding, dilation))

    return broken


def replaced(owner, name, value):
    return lambda patch: patch.setattr(owner, name, value)


# --- mistakes in the list of uses


def lost_cross_terms(right, into, f1, f2, *options):
    done = [right(into, x := [a], x if f1 is f2 else [b], *options) for a, b in zip(f1, f2)]
    return done[0]


def doubled_cross_terms(right, into, f1, f2, *options):
    done = lost_cross_terms(right, into, f1, f2, *options)
    if len(f1) > 1:
        part = torch.zeros_like(into)
        right(part, [f1[0]], [f2[1]], *options)
        into += 2 * part
    return done


def half_of_the_cross_terms(right, into, f1, f2, *options):
    both, own = torch.zeros_like(into), torch.zeros_like(into)
    done = right(both, f1, f2, *options)
    lost_cross_terms(right, own, f1, f2, *options)
    into += (both + own) / 2
    return done


def only_the_last_call(right, into, f1, f2, *options):
    return right(into, x := f1[:1], x if f1 is f2 else f2[:1], *options)


# --- mistakes in a finished part


def matrix(factors1):
    return isinstance(factors1[0], Outer)


def samples_axis(outputs):
    return 2 if outputs == "full" else 1


def between_samples_zero(kernel, outputs):
    shape = [1] * kernel.ndim
    shape[0] = shape[samples_axis(outputs)] = len(kernel)
    return kernel * torch.eye(len(kernel), dtype=kernel.dtype).view(shape)


def last_sample_lost(kernel, outputs):
    kernel = kernel.clone()
    kernel[-1] = 0
    return kernel


def one_pair_lost(kernel, outputs):
    kernel, i, j = kernel.clone(), len(kernel) // 4, 5 * len(kernel) // 8
    for a, b in ((i, j), (j, i)):
        kernel.movedim(samples_axis(outputs), 1)[a, b] = 0
    return kernel


def outputs_swapped(kernel, outputs):
    if outputs == "full":
        return kernel.roll(1, 1).roll(1, 3)
    return kernel.roll(1, -1) if outputs == "diagonal" else kernel * 1.01


def outputs_swapped_between_samples(kernel, outputs):
    if outputs != "full":
        return kernel * 0.99
    same = torch.eye(len(kernel)).bool().view(len(kernel), 1, len(kernel), 1)
    return torch.where(same, kernel, kernel.permute(0, 3, 2, 1))


# --- mistakes in a factor


def by_token(change):
    return lambda call, f, g: dataclasses.replace(f, ids=change(f.ids))


def channel_sum(g, x):
    return Dense((g * x).flatten(3).sum(3).transpose(0, 1))


def running(call, power):
    x, mean, var = call.args[:3]
    return (x.detach() - mean.view(1, -1, 1, 1)) * (var.view(1, -1, 1, 1) + 1e-5) ** power


def row_sum(call, g, x):
    return Dense((g.reshape(len(g), call.n, -1, 5) * x.reshape(call.n, -1, 5)).sum(2).transpose(0, 1))


def scaled_rows(normal):
    return lambda call, f, g: row_sum(call, g, normal(call.args[0].detach()))


def position_major(left):
    return left.transpose(0, 2).reshape(left.shape)


def of_the_head(change):
    """Change the factor of the call that gives three channels."""
    return lambda call, f, g: change(f) if call.out.shape[-1] == 3 else f


def living_for_one_output(f):
    if isinstance(f, Lookup):
        return f
    live = (f.left[:, 0] != 0).any(2).any(0)
    return dataclasses.replace(f, left=f.left[:, :, live], right=f.right[:, live]) if bool(live.any()) else f


def foldable_though_shared(self):
    if not self.fold:
        return {}
    names = [(self.name_of[id(u.parameter)], self.name_of[id(u.bias_of)]) for uses in self._taps for u in uses if u.bias_of is not None]
    return {bias: weight for bias, weight in names if not {bias, weight} & self.unfit.keys()}


def ones_of(value):
    return lambda self: dataclasses.replace(
        self, right=torch.cat([self.right, self.right.new_full((*self.right.shape[:2], 1), value(self.right.shape[1]))], 2)
    )


def without_scales(call):
    return rule_for(torch.Tensor.addmm)(Call(call.args, {}, call.out, call.n, call.owned))


# --- rules of the user's, right with their defaults


def rms(eps=1e-3, normal=lambda x, eps: F.rms_norm(x, (5,), eps=eps)):
    return rule(F.rms_norm, lambda call: [Use(call.argument(2, "weight"), lambda g: row_sum(call, g, normal(call.args[0].detach(), eps)))])


def grouped(groups=2):
    def write(call):
        x, w, b = call.args[0].detach(), call.argument(2, "weight"), call.argument(3, "bias")
        return [
            Use(w, lambda g: channel_sum(g, F.group_norm(x, groups, eps=1e-5))),
            Use(b, lambda g: channel_sum(g, torch.ones_like(x))),
        ]

    return rule(F.group_norm, write)


def gate(activation=lambda h: h):
    return rule(torch.mul, lambda call: [Use(call.args[1], lambda g: row_sum(call, g, activation(call.args[0].detach())))])


def table(of_sample=lambda g: g):
    return rule(torch.add, lambda call: [Use(call.args[1], lambda g: Dense(of_sample(g.transpose(0, 1)).unsqueeze(2)))])


RIGHT = {"rms": rms(), "group norm": grouped(), "gate": gate(), "positions": table()}

BROKEN: dict[str, tuple[str, str, Callable]] = {
    # model, a parameter that must be sent to the exact path, how
    # biases
    "bias at one position only": ("tokens", "a.bias", factor(F.linear, lambda call, f, g: Dense(call.gradient_rows(g)[:, :, 0]), 1)),
    "bias is a mean": ("tokens", "a.bias", factor(F.linear, lambda call, f, g: Dense(call.gradient_rows(g).mean(2)), 1)),
    "bias left out": ("mlp", "0.bias", factor(F.linear, lambda call, f, g: Dense(0 * f.gradient), 1)),
    "bias counted twice": ("mlp", "0.bias", factor(F.linear, lambda call, f, g: Dense(2**0.5 * f.gradient), 1)),
    "bias folded and forgotten": ("mlp", "0.bias", replaced(Outer, "with_bias", lambda self: self)),
    "bias folded as a mean over positions": ("tokens", "a.bias", replaced(Outer, "with_bias", ones_of(lambda t: 1 / t))),
    "bias folded although another call has it": ("shared bias", "b", replaced(capture.Capture, "foldable", foldable_though_shared)),
    # products
    "orientation lost": (
        "turned",
        "w",
        factor(torch.addmm, lambda call, f, g: Outer(f.right[:, None].expand_as(f.left), f.left[:, 0], False)),
    ),
    "alpha and beta ignored": ("scaled product", "w", rule(torch.addmm, without_scales)),
    "input after the next activation": ("mlp", "2.weight", factor(F.linear, outer(right=torch.tanh))),
    "gradient of a mean over samples": (
        "mlp",
        "0.weight",
        factor(F.linear, lambda call, f, g: dataclasses.replace(f, left=f.left / call.n)),
    ),
    "samples off by one": ("mlp", "0.weight", factor(F.linear, outer(right=lambda a: a.roll(1, 0)))),
    "head taken for the output, which is scaled": (
        "scaled head",
        "o.weight",
        factor(F.linear, of_the_head(lambda f: dataclasses.replace(f, unit=True))),
    ),
    # several calls
    "cross terms of two calls lost": ("twice", "a.weight", calls(lost_cross_terms)),
    "cross term computed once and doubled": ("twice", "a.weight", calls(doubled_cross_terms)),
    "half of the cross terms": ("twice", "a.weight", calls(half_of_the_cross_terms)),
    "only the last call": ("twice", "a.weight", calls(only_the_last_call)),
    "cross terms of a tied table lost": ("tied", "e.weight", calls(lost_cross_terms)),
    # positions
    "last position dropped": ("tokens", "a.weight", factor(F.linear, outer(left=lambda a: a[:, :, :-1], right=lambda a: a[:, :-1]))),
    "positions off by one": ("tokens", "a.weight", factor(F.linear, outer(right=lambda a: a.roll(1, 1)))),
    "flattened axis read position-major": (
        "tokens",
        "a.weight",
        factor(F.linear, outer(left=position_major, right=lambda a: a.transpose(0, 1).reshape(a.shape))),
    ),
    "positions dead for one output dropped": ("an output a position", "a.weight", replaced(factors, "living", living_for_one_output)),
    "position table averaged over samples": ("positions", "p", table(lambda g: g.mean(0, keepdim=True).expand_as(g))),
    # convolutions
    "patches off by one": ("images", "c.weight", patches(lambda right, x, *rest: right(F.pad(x, (1, -1, 0, 0)), *rest))),
    "patches transposed": ("images", "c.weight", patches(lambda right, x, *rest: right(x.transpose(2, 3), *rest))),
    "padding repeats the edge": (
        "images",
        "c.weight",
        patches(lambda right, x, size, stride, padding, dilation: right(F.pad(x, (1,) * 4, mode="replicate"), size, stride, 0, dilation)),
    ),
    "same padding starts with the extra zero": (
        "even",
        "c.weight",
        patches(lambda right, x, size, stride, padding, dilation: right(F.pad(x, (2, 1, 1, 0)), size, stride, 0, dilation)),
    ),
    "stride phase wrong": ("groups", "c.weight", patches(lambda right, x, *rest: right(x.roll((1, 1), (2, 3)), *rest))),
    "dilation ignored": (
        "groups",
        "c.weight",
        patches(lambda right, x, size, stride, padding, dilation: right(x, size, stride, 0, (1, 1))),
    ),
    "first group taken for both": (
        "groups",
        "c.weight",
        factor(torch.conv2d, lambda call, f, g: Dense(f.gradient[:, :, :2].repeat(1, 1, 2, 1, 1, 1))),
    ),
    "last group missing": (
        "groups",
        "c.weight",
        factor(torch.conv2d, lambda call, f, g: Dense(torch.cat([f.gradient[:, :, :2], 0 * f.gradient[:, :, 2:]], 2))),
    ),
    # normalisations and products with a vector
    "batch norm by batch statistics": (
        "images",
        "b.weight",
        factor(F.batch_norm, lambda call, f, g: channel_sum(g, F.batch_norm(call.args[0].detach(), None, None, training=True))),
    ),
    "batch norm by variance": ("images", "b.weight", factor(F.batch_norm, lambda call, f, g: channel_sum(g, running(call, -1)))),
    "batch norm without mean": (
        "images",
        "b.weight",
        factor(F.batch_norm, lambda call, f, g: channel_sum(g, call.args[0].detach() * torch.rsqrt(call.args[2].view(1, -1, 1, 1) + 1e-5))),
    ),
    "layer norm over positions too": ("tokens", "l.weight", factor(F.layer_norm, scaled_rows(lambda x: F.layer_norm(x, x.shape[1:])))),
    "layer norm without mean": ("tokens", "l.weight", factor(F.layer_norm, scaled_rows(lambda x: F.rms_norm(x, (5,))))),
    "layer norm without eps": ("tokens", "l.weight", factor(F.layer_norm, scaled_rows(lambda x: F.layer_norm(x, (5,), eps=0.0)))),
    "rms norm with another eps": ("rms", "r.weight", rms(eps=1e-6)),
    "group norm over one group": ("group norm", "g.weight", grouped(1)),
    "gate before the activation": ("gate", "w", gate(torch.atanh)),
    # tables
    "padding row takes a gradient": ("tokens", "e.weight", factor(F.embedding, lambda call, f, g: Lookup(call.gradient_rows(g), f.ids))),
    "last two token ids merged": ("tokens", "e.weight", factor(F.embedding, by_token(lambda ids: ids.clamp(max=7)))),
    # samples and outputs
    "nothing between samples": ("mlp", "0.weight", part(matrix, between_samples_zero)),
    "last sample lost": ("mlp", "0.weight", part(matrix, last_sample_lost)),
    "one pair of samples lost": ("mlp", "0.weight", part(matrix, one_pair_lost)),
    "outputs exchanged": ("mlp", "0.weight", part(matrix, outputs_swapped)),
    "outputs exchanged between samples": ("mlp", "0.weight", part(matrix, outputs_swapped_between_samples)),
    "one output forgotten": (
        "mlp",
        "0.weight",
        factor(F.linear, outer(left=lambda a: a * (torch.arange(a.shape[1]) > 0).to(a.dtype)[:, None, None])),
    ),
    "one percent off": ("mlp", "2.weight", part(matrix, lambda kernel, outputs: 1.01 * kernel)),
    "not a number": ("mlp", "2.weight", part(matrix, lambda kernel, outputs: kernel * float("nan"))),
}
