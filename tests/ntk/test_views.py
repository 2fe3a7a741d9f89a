"""Which entries of a parameter a view shows: the index map against the values themselves."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from mechfeat.ntk import empirical_ntk, sketch
from mechfeat.ntk.factors import Dense, Lookup, Outer, placed, spread
from mechfeat.ntk.views import Place, Views, together
from tests.ntk.test_exact import assert_exact
from tests.ntk.zoo import ZOO, Net, P

STEPS = {
    "transposed": lambda v: v.transpose(0, -1),
    "first axis": lambda v: v[1:],
    "last axis": lambda v: v[..., :2],
    "every second": lambda v: v[..., ::2],
    "flipped": lambda v: v.flip(0),
    "flattened": lambda v: v.flatten(),
    "with an axis": lambda v: v.unsqueeze(0),
    "expanded": lambda v: v.unsqueeze(0).expand(2, *v.shape),
    "repeated": lambda v: v.repeat(2, *[1] * (v.ndim - 1)),
    "listed": lambda v: v[[0, len(v) - 1, 0]],
    "rolled": lambda v: v.roll(1, 0),
    "split": lambda v: v.split(1, -1)[0],
    "chunk": lambda v: v.chunk(2, 0)[-1],
    "copied": lambda v: v.transpose(0, -1).contiguous(),
    "one": lambda v: v[0] if v.ndim > 1 else v,
}


def shown(w, *functions):
    """The last view of a chain, and what is known of it."""
    views, v = Views([w]), w
    for function in functions:
        out = function(v)
        assume(out.numel())
        assert views.take(*_seen(function, v), out), function
        v = out
    return views.of(v)


def _seen(function, v):
    # STEPS are seen by the capture call by call; here each is one rearranging function
    def flip(x):
        return function(x)

    return flip, (v,), {}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=4), st.booleans())
def test_a_view_shows_these_entries(names, turned):
    w = nn.Parameter(torch.randn(4, 3, 5).permute(2, 1, 0)) if turned else nn.Parameter(torch.randn(5, 3, 4))
    view = shown(w, *(STEPS[n] for n in names))
    place = view.place
    assert torch.equal(w.detach().flatten()[place.index], view.tensor)
    assert place.injective == (place.index.unique().numel() == place.size)
    order = list(reversed(range(view.tensor.ndim)))
    assert torch.equal(place.permuted(order).index, place.index.permute(order))
    assert place.fits(5) == torch.equal(place.index.flatten(), torch.arange(60))


@given(st.lists(st.lists(st.sampled_from(sorted(STEPS)), max_size=3), min_size=1, max_size=5))
def test_views_are_together_where_they_share_entries(many):
    w = nn.Parameter(torch.randn(5, 3, 4))
    places = [shown(w, *(STEPS[n] for n in names)).place for names in many]
    entries = [p.index.flatten().tolist() for p in places]
    groups = [{i} for i in range(len(places))]
    for i, j in itertools.combinations(range(len(places)), 2):
        if set(entries[i]) & set(entries[j]):
            joined = groups[i] | groups[j]
            for k in joined:
                groups[k] = joined
    found = together(places)
    assert [{j for j, g in enumerate(found) if g == found[i]} for i in range(len(places))] == groups
    assert all((a == b) == (e == f) for a, e in zip(places, entries) for b, f in zip(places, entries))


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=3), st.integers(1, 5))
def test_factors_of_a_view_are_those_of_the_parameter(names, step):
    w = nn.Parameter(torch.randn(5, 3, 4))
    place = shown(w, *(STEPS[n] for n in names)).place
    n, o, t, c = 2, 3, 2, place.shape[0]
    left, right = torch.randn(n, o, t, c), torch.randn(n, t, place.size // c)
    ids, rows = torch.randint(0, c, (n, t)), torch.randn(n, o, t, place.size // c)
    for factor in (Outer(left, right), Lookup(rows, ids), Dense(torch.randn(n, o, *place.shape))):
        J = factor.rows(slice(0, c)).reshape(n, o, -1)
        want = torch.zeros(n, o, 60).index_add_(2, place.index.flatten(), J)
        found = placed(factor, place)
        parts = [spread(found, slice(i, min(i + step, 5)), 5) for i in range(0, 5, step)]
        torch.testing.assert_close(torch.cat(parts, 2), want)


def test_what_is_no_view():
    w, x = P(4, 4), torch.randn(4, 4)
    views = Views([w])
    for function, args in (
        (torch.sin, (w,)),
        (torch.Tensor.tril, (w,)),  # leaves zeros
        (torch.Tensor.to, (w, torch.float32)),
        (torch.Tensor.clone, (x,)),
        (torch.stack, ([w, w],)),
    ):
        assert not views.take(function, args, {}, function(*args))
    table = torch.randn(4, 4)
    assert not views.take(F.embedding, (torch.tensor([0, 1]), w, 1), {}, F.embedding(torch.tensor([0, 1]), w, 1))
    assert views.take(F.embedding, (torch.tensor([0, 2]), w, 1), {}, F.embedding(torch.tensor([0, 2]), w, 1))
    assert views.take(torch.Tensor.to, (w, "cpu"), {}, w.to("cpu"))
    assert not views.take(torch.Tensor.__getitem__, (w, slice(4, 4)), {}, w[4:4])  # empty
    assert not views.take(torch.Tensor.expand_as, (table, w), {}, table.expand_as(w))


def test_an_overwritten_view_is_known():
    w = P(4, 4)
    views = Views([w])
    copy = w.clone()
    assert views.take(torch.Tensor.clone, (w,), {}, copy)
    assert not views.overwritten(copy)
    copy.mul_(2)
    assert views.overwritten(copy)
    assert not views.take(torch.Tensor.t, (copy,), {}, copy.t())


@pytest.mark.parametrize("name", ["slices that overlap", "rows listed twice", "attention as einsums", "class token", "columns and all"])
def test_sketches_of_views_tend_to_the_kernel(name):
    net, x, _ = ZOO[name].build()
    want = empirical_ntk(net, x).kernel
    found = sketch(net, x, n_features=4096)
    assert (found.kernel() - want).norm() <= found.error_bound(0.99) * want.norm()


def test_sequences_of_different_length():
    # Different slices of a table on the two sides meet in the positions that both have.
    net = Net(
        lambda s, x: s.o(torch.tanh(F.linear(x + s.p[: x.shape[1]], s.w[:, : x.shape[2]])).mean(1)), p=P(8, 4), w=P(3, 5), o=nn.Linear(3, 2)
    )
    x1, x2 = torch.randn(5, 3, 4), torch.randn(6, 7, 4)
    result = empirical_ntk(net, x1, x2, layerwise=True, strict=True)
    J1, J2 = ([torch.autograd.grad(v, net.p, retain_graph=True)[0].flatten() for v in net(x).flatten()] for x in (x1, x2))
    assert_exact(result.layers["p"], (torch.stack(J1) @ torch.stack(J2).T).view(5, 2, 6, 2))


def test_equal_sizes_of_different_slices():
    def f(s, x):
        t = x.shape[1] // 2
        return s.o(torch.tanh(F.linear(x, s.w[:, t : t + 4]) + s.q[t : t + 3]).mean(1))

    net = Net(f, w=P(3, 7), q=P(6), o=nn.Linear(3, 2))
    x1, x2 = torch.randn(5, 3, 4), torch.randn(6, 7, 4)
    for method in ("auto", "block", "gram", "mixed"):
        result = empirical_ntk(net, x1, x2, layerwise=True, strict=True, method=method, prove="never")
        for name in ("w", "q"):
            p = getattr(net, name)
            J1, J2 = ([torch.autograd.grad(v, p, retain_graph=True)[0].flatten() for v in net(x).flatten()] for x in (x1, x2))
            assert_exact(result.layers[name], (torch.stack(J1) @ torch.stack(J2).T).view(5, 2, 6, 2))


def test_a_place_is_no_key():
    with pytest.raises(TypeError):
        hash(Place.of(P(2)))


def cut(w, *cuts):
    views = Views([w])
    parts = [w[c] for c in cuts]
    for v, c in zip(parts, cuts):
        assert views.take(torch.Tensor.__getitem__, (w, c), {}, v)
    return [views.of(v).place for v in parts]


def test_views_that_share_one_entry():
    a, b, c = cut(nn.Parameter(torch.randn(6)), slice(3), slice(2, None), slice(3, None))
    assert len(set(together([a, b]))) == len(set(together([a, b, c]))) == 1
    assert len(set(together([a, c]))) == 2


def test_many_columns():
    # Ranges overlap, entries do not: each column lists its own entries alone, and all are told apart in one pass.
    places = cut(nn.Parameter(torch.randn(16, 2000)), *((slice(None), i) for i in range(2000)))
    assert len(set(together(places))) == 2000
    assert all(p.index.untyped_storage().nbytes() == 16 * 8 for p in places)
    assert len(set(together([*places, *cut(nn.Parameter(torch.randn(16, 2000)), (3, slice(None)))]))) == 1
