"""Deliberately broken rules and contractions: each is caught, and nothing right is."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import ProofError
from mechfeat.kernels import mirror
from mechfeat.ntk import PROVED, empirical_ntk, factors, proof, register_rule
from mechfeat.ntk.factors import Dense, Lookup, Outer
from mechfeat.ntk.rules import Use, conv, rule_for
from tests.ntk.test_exact import OUTPUTS, assert_exact, reduced
from tests.ntk.zoo import ZOO, Net, P, norm2d


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


def groups():
    return Net(
        lambda s, x: s.o(torch.tanh(s.c(x)).flatten(1)), c=nn.Conv2d(2, 4, 2, stride=2, dilation=2, padding=1, groups=2), o=nn.Linear(16, 3)
    )


def turned():
    return Net(lambda s, x: torch.addmm(s.b, torch.tanh(torch.addmm(s.b, x, s.w)), s.w), w=P(5, 5), b=P(5))


MODELS = {
    "tokens": (tokens, lambda n: torch.randint(0, 9, (n, 4))),
    "images": (images, lambda n: torch.randn(n, 2, 4, 4) + 0.3),
    "groups": (groups, lambda n: torch.randn(n, 2, 4, 4)),
    "turned": (turned, lambda n: torch.randn(n, 5)),
    "mlp": (lambda: ZOO["mlp"].make(), lambda n: torch.randn(n, 5)),
    "twice": (lambda: ZOO["module called twice"].make(), lambda n: torch.randn(n, 5)),
    "tied": (lambda: ZOO["tied embedding"].make(), lambda n: torch.randint(0, 7, (n, 4))),
}


def model(name, n=8):
    torch.manual_seed(3)
    make, batch = MODELS[name]
    net, x1, x2 = make().eval(), batch(n), batch(n)
    if not x1.is_floating_point():
        x1[0, -1] = x2[-1, -1] = 2  # a padding token among the proof samples
    return net, x1, x2


# Ways to break the code. Each takes monkeypatch.


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


def calls(change):
    """Change the list of a parameter's uses."""

    def broken(patch):
        right = factors.contract
        patch.setattr(factors, "contract", lambda *arguments: change(right, *arguments))

    return broken


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


def patches(change):
    def broken(patch):
        right = conv.patches
        patch.setattr(conv, "patches", lambda x, size, stride, padding, dilation: change(right, x, size, stride, padding, dilation))

    return broken


def matrix(factors1):
    return isinstance(factors1[0], Outer)


def samples_axis(kernel, outputs):
    return 2 if outputs == "full" else 1


def between_samples_zero(kernel, outputs):
    n, axis = len(kernel), samples_axis(kernel, outputs)
    shape = [1] * kernel.ndim
    shape[0] = shape[axis] = n
    return kernel * torch.eye(n, dtype=kernel.dtype).view(shape)


def last_sample_lost(kernel, outputs):
    kernel = kernel.clone()
    kernel[-1] = 0
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


def by_token(change):
    return lambda call, f, g: dataclasses.replace(f, ids=change(f.ids))


def channel_sum(g, x):
    return Dense((g * x).flatten(3).sum(3).transpose(0, 1))


def running(call, power):
    x, mean, var = call.args[:3]
    return (x.detach() - mean.view(1, -1, 1, 1)) * (var.view(1, -1, 1, 1) + 1e-5) ** power


def scaled_rows(normal):
    return lambda call, f, g: Dense(
        (g.reshape(len(g), call.n, -1, 5) * normal(call.args[0].detach()).reshape(call.n, -1, 5)).sum(2).transpose(0, 1)
    )


BROKEN: dict[str, tuple[str, str, Callable]] = {
    # model, a parameter that must be sent to the exact path, how
    "bias at one position only": ("tokens", "a.bias", factor(F.linear, lambda call, f, g: Dense(call.gradient_rows(g)[:, :, 0]), 1)),
    "bias is a mean": ("tokens", "a.bias", factor(F.linear, lambda call, f, g: Dense(call.gradient_rows(g).mean(2)), 1)),
    "bias left out": ("mlp", "0.bias", factor(F.linear, lambda call, f, g: Dense(0 * f.gradient), 1)),
    "bias counted twice": ("mlp", "0.bias", factor(F.linear, lambda call, f, g: Dense(2**0.5 * f.gradient), 1)),
    "orientation lost": (
        "turned",
        "w",
        factor(torch.addmm, lambda call, f, g: Outer(f.right[:, None].expand_as(f.left), f.left[:, 0], False)),
    ),
    "cross terms of two calls lost": ("twice", "a.weight", calls(lost_cross_terms)),
    "cross term computed once and doubled": ("twice", "a.weight", calls(doubled_cross_terms)),
    "only the last call": (
        "twice",
        "a.weight",
        calls(lambda right, into, f1, f2, *options: right(into, x := f1[:1], x if f1 is f2 else f2[:1], *options)),
    ),
    "cross terms of a tied table lost": ("tied", "e.weight", calls(lost_cross_terms)),
    "last position dropped": ("tokens", "a.weight", factor(F.linear, outer(left=lambda a: a[:, :, :-1], right=lambda a: a[:, :-1]))),
    "positions reversed on one side": ("tokens", "a.weight", factor(F.linear, outer(right=lambda a: a.flip(1)))),
    "positions off by one": ("tokens", "a.weight", factor(F.linear, outer(right=lambda a: a.roll(1, 1)))),
    "samples off by one": ("mlp", "0.weight", factor(F.linear, outer(right=lambda a: a.roll(1, 0)))),
    "input replaced by its sign": ("mlp", "2.weight", factor(F.linear, outer(right=torch.sign))),
    "patches off by one": ("images", "c.weight", patches(lambda right, x, *rest: right(F.pad(x, (1, -1, 0, 0)), *rest))),
    "patches transposed": ("images", "c.weight", patches(lambda right, x, *rest: right(x.transpose(2, 3), *rest))),
    "padding repeats the edge": (
        "images",
        "c.weight",
        patches(lambda right, x, size, stride, padding, dilation: right(F.pad(x, (1,) * 4, mode="replicate"), size, stride, 0, dilation)),
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
    "padding row takes a gradient": ("tokens", "e.weight", factor(F.embedding, lambda call, f, g: Lookup(call.gradient_rows(g), f.ids))),
    "token ids merged": ("tokens", "e.weight", factor(F.embedding, by_token(lambda ids: ids // 2))),
    "token ids shifted": ("tied", "e.weight", factor(F.embedding, by_token(lambda ids: (ids + 1) % 7))),
    "nothing between samples": ("mlp", "0.weight", part(matrix, between_samples_zero)),
    "last sample lost": ("mlp", "0.weight", part(matrix, last_sample_lost)),
    "outputs exchanged": ("mlp", "0.weight", part(matrix, outputs_swapped)),
    "outputs exchanged between samples": ("mlp", "0.weight", part(matrix, outputs_swapped_between_samples)),
    "one output forgotten": (
        "mlp",
        "0.weight",
        factor(F.linear, outer(left=lambda a: a * (torch.arange(a.shape[1]) > 0).to(a.dtype)[:, None, None])),
    ),
    "one percent off": ("mlp", "2.weight", part(matrix, lambda kernel, outputs: 1.01 * kernel)),
    "not a number": ("mlp", "2.weight", part(matrix, lambda kernel, outputs: kernel * float("nan"))),
    "flattened axis read position-major": (
        "tokens",
        "a.weight",
        factor(F.linear, outer(left=lambda a: a.transpose(0, 2).reshape(a.shape), right=lambda a: a.transpose(0, 1).reshape(a.shape))),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_caught(name, monkeypatch):
    key, parameter, break_it = BROKEN[name]
    net, x1, x2 = model(key)
    literal = {other: sum(oracle.empirical_ntk(net, x1, other).values()) for other in (None, x2)}
    break_it(monkeypatch)
    for other, want in literal.items():
        for outputs in OUTPUTS:
            result = empirical_ntk(net, x1, other, outputs=outputs, prove="always")
            assert_exact(result.kernel, reduced(want, outputs))
            row = {c.parameter: c for c in result.coverage}[parameter]
            assert row.path == "exact"
            assert row.detail.startswith("its rule failed the proof (relative gap ")
            assert row.gap < 1e-9


@pytest.mark.parametrize("name", BROKEN)
def test_they_are_wrong_without_the_proof(name, monkeypatch):
    # else the test above would hold for want of an error
    key, _, break_it = BROKEN[name]
    net, x, _ = model(key)
    want = sum(oracle.empirical_ntk(net, x).values())
    break_it(monkeypatch)
    gap = (empirical_ntk(net, x, prove="never").kernel - want).abs().max()
    assert not gap <= 1e-9 * want.abs().max()


@pytest.mark.parametrize("name", ["bias counted twice", "token ids merged"])
def test_strict_raises(name, monkeypatch):
    key, parameter, break_it = BROKEN[name]
    net, x, _ = model(key)
    break_it(monkeypatch)
    messages = []
    for prove in ("always", "once", "once"):
        with pytest.raises(ProofError) as caught:
            empirical_ntk(net, x, strict=True, prove=prove)
        assert parameter in caught.value.parameters
        messages.append(str(caught.value))
    rows = ", ".join(f"{p!r} (relative gap {g:.1e})" for p, g in zip(caught.value.parameters, caught.value.gaps))
    assert messages == [f"The completeness proof failed for {rows}. Leave strict off to compute these parameters by autograd."] * 3
    assert all(0 < g < 10 for g in caught.value.gaps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("key", MODELS)
def test_no_false_alarm(key, dtype):
    make, batch = MODELS[key]
    for seed in range(16):  # 112 draws over the models, for each dtype
        torch.manual_seed(seed)
        net, x = make().eval().to(dtype), batch(7)
        x = x.to(dtype) if x.is_floating_point() else x
        result = empirical_ntk(net, x, outputs=OUTPUTS[seed % 3], prove="always", seed=seed, strict=True)
        assert {c.path for c in result.coverage} == {"rule"}


# The whole batch


@pytest.mark.parametrize("with_x2", [False, True])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_an_error_outside_the_proof_samples_is_caught(outputs, with_x2, monkeypatch):
    net, x1, x2 = model("mlp", 12)
    four = proof.proof_samples(12, torch.Generator().manual_seed(0))
    assert len(four) == 4
    assert {0, 11} < set(four)
    i = next(k for k in range(1, 11) if k not in four)

    def change(kernel, outputs):
        if len(kernel) < 12:  # the small kernel that a reduced one is compared with
            return kernel
        kernel = kernel.clone()
        kernel[i, ..., :] = 0
        return kernel

    part(matrix, change)(monkeypatch)
    with pytest.raises(ProofError) as caught:
        empirical_ntk(net, x1, x2 if with_x2 else None, outputs=outputs)
    (gap,) = caught.value.gaps
    assert caught.value.parameters == ("the sum over parameters",)
    assert (
        str(caught.value)
        == f"The completeness proof failed for 'the sum over parameters' (relative gap {gap:.1e}). Every part was right on "
        "its own: please report this model."
    )


def test_proof_samples():
    for n in range(1, 20):
        found = proof.proof_samples(n, torch.Generator().manual_seed(n))
        assert found == sorted(set(found))
        assert len(found) == min(n, 4)
        assert {0, n - 1} <= set(found) <= set(range(n))


# Remembering


@pytest.fixture
def counted(monkeypatch):
    """How often the independent gradient was taken."""
    calls = []
    right = proof.reference

    def reference(*args, **kwargs):
        calls.append(args)
        return right(*args, **kwargs)

    monkeypatch.setattr(proof, "reference", reference)
    return calls


def test_once_always_never(counted):
    net, x, _ = model("mlp")
    gaps = [c.gap for c in empirical_ntk(net, x).coverage]
    assert len(counted) == 2
    assert None not in gaps
    again = empirical_ntk(net, torch.randn_like(x))
    assert len(counted) == 2
    assert [c.gap for c in again.coverage] == [None] * len(gaps)
    assert again.proved
    PROVED.clear()
    empirical_ntk(net, x)
    assert len(counted) == 4
    empirical_ntk(net, x, prove="always")
    assert len(counted) == 6
    assert not empirical_ntk(net, x, prove="never").proved
    assert len(counted) == 6


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.flag, self.slopes, self.act = nn.Linear(4, 4), 1, [1, 2], torch.tanh

    def forward(self, x):
        return self.a(self.act(self.a(x)) * self.flag)


def other_values(net):
    with torch.no_grad():
        net.a.weight.add_(1)


CHANGES = {
    "weights": (other_values, False),
    "attribute": (lambda net: setattr(net, "flag", 2), True),
    "list": (lambda net: net.slopes.append(3), True),
    "function": (lambda net: setattr(net, "act", lambda h: h.sigmoid()), True),
    "forward": (lambda net: setattr(net, "forward", lambda x: net.a(x.tanh())), True),
    "mode": (lambda net: net.eval(), True),
    "module": (lambda net: setattr(net, "b", nn.ReLU()), True),
    "option of a module": (lambda net: setattr(net.a, "in_features", 5), True),
    "frozen": (lambda net: net.a.bias.requires_grad_(False), True),
    "hook": (lambda net: net.a.register_forward_hook(lambda *_: None), True),
    "rule": (lambda net: register_rule(F.linear)(rule_for(F.linear)), True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_proved_again(name, counted):
    change, again = CHANGES[name]
    net, x = Gated(), torch.randn(6, 4)
    empirical_ntk(net, x)
    counted.clear()
    change(net)
    empirical_ntk(net, x)
    assert bool(counted) == again


@pytest.mark.parametrize(
    "options",
    [{"outputs": "trace"}, {"method": "block"}, {"x1": torch.ones(7, 4)}, {"x2": torch.ones(6, 4)}, {"dtype": torch.float32}],
    ids=lambda o: next(iter(o)),
)
def test_what_else_is_proved_again(options, counted):
    net, x = Gated(), torch.randn(6, 4)
    empirical_ntk(net, x)
    counted.clear()
    dtype = options.pop("dtype", torch.float64)
    batches = {k: options.pop(k).to(dtype) for k in ("x1", "x2") if k in options}
    empirical_ntk(net.to(dtype), **{"x1": x.to(dtype), **batches}, **options)
    assert counted


def test_tokens_of_another_precision_are_proved_again(counted):
    net, x, _ = model("tokens")
    empirical_ntk(net, x)
    counted.clear()
    empirical_ntk(net.float(), x)
    assert counted


def test_a_method_replaced_is_proved_again(counted, monkeypatch):
    net, x = Gated(), torch.randn(6, 4)
    empirical_ntk(net, x)
    counted.clear()
    monkeypatch.setattr(Gated, "forward", lambda s, x: s.a(s.a(x).sigmoid()))
    empirical_ntk(net, x)
    assert counted


def test_a_class_defined_again_is_another_class(counted):
    def run(source):
        scope = {"nn": nn}
        exec(source, scope)
        empirical_ntk(scope["M"](), torch.randn(4, 4, 4))

    source = (
        "class M(nn.Module):\n    def __init__(s):\n        super().__init__()\n        s.a = nn.Linear(4, 4)\n    def "
        "forward(s, x):\n        return "
    )
    run(source + "s.a(x)\n")
    counted.clear()
    run(source + "s.a(x.transpose(0, 1)).transpose(0, 1)\n")
    assert counted


def test_a_failure_is_remembered(counted, monkeypatch):
    key, parameter, break_it = BROKEN["bias counted twice"]
    net, x, _ = model(key)
    want = sum(oracle.empirical_ntk(net, x).values())
    break_it(monkeypatch)
    first = empirical_ntk(net, x)
    counted.clear()
    second = empirical_ntk(net, x)
    assert not counted
    for result in (first, second):
        assert_exact(result.kernel, want)
        row = {c.parameter: c for c in result.coverage}[parameter]
        assert row.path == "exact"
    assert [c.detail for c in first.coverage] == [c.detail for c in second.coverage]


def test_memory_is_bounded():
    from mechfeat.ntk.fingerprint import Proved

    proved = Proved(limit=3)
    for key in range(5):
        proved.put(key, {})
    assert [proved.get(k) for k in range(5)] == [None, None, {}, {}, {}]


def test_merge_of_different_kinds_is_left_to_rows():
    a, b = Outer(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 3)), Lookup(torch.ones(1, 1, 1, 3), torch.zeros(1, 1, dtype=torch.long))
    assert factors.merge([a, b]) is None
    assert factors.merge([a, dataclasses.replace(a, turned=True)]) is None
