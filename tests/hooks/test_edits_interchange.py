"""Edits that put in values from elsewhere: mean, other samples, another run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mechfeat as mf
from mechfeat.errors import AmbiguousCallError, DtypeError, HookNameError, OptionError, SelectorError, ShapeError
from mechfeat.hooks import Ablate, Patch, Scale

from . import nets, oracle

AXES = ("sample", "channel", "pos")
AC = ("sample", "channel")


def literal_mean(x, axes, over, shape):
    """Entry by entry: the mean of all entries that agree on the axes that are not averaged."""
    out = torch.empty(shape)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        rows = [slice(None) if a in over else slice(i, i + 1) for a, i in zip(axes, place)]
        out[tuple(place)] = x[tuple(rows)].sum() / x[tuple(rows)].numel()
    return out


# --- what they compute


@pytest.mark.parametrize("over", [("sample",), ("sample", "pos"), ("pos",)])
@pytest.mark.parametrize("where", [{}, {"channel": [1], "sample": [0, -1]}])
def test_the_mean_is_over_the_axes_asked_for(over, where):
    x = torch.randn(3, 2, 4)
    found = Ablate("x", method="mean", over=over, **where).apply(x, AXES)
    torch.testing.assert_close(found, oracle.replace_selected(x, literal_mean(x, AXES, over, x.shape), AXES, where))


def test_the_mean_of_a_reference_may_have_other_samples_and_averaged_positions():
    x, r = torch.randn(3, 2, 4), torch.randn(5, 2, 7)
    found = Ablate("x", method="mean", reference=r, over=("sample", "pos")).apply(x, AXES)
    torch.testing.assert_close(found, literal_mean(r, AXES, ("sample", "pos"), x.shape))
    found = Ablate("x", method="mean", reference=r[..., :4]).apply(x, AXES)
    torch.testing.assert_close(found, literal_mean(r[..., :4], AXES, ("sample",), x.shape))


@given(st.integers(2, 9), st.integers(0, 2**31))
def test_resampling_a_batch_permutes_it_without_fixed_point(n, seed):
    x = torch.arange(float(2 * n)).view(2, n).movedim(0, 1)
    y = Ablate("x", method="resample", seed=seed).apply(x, AC)
    assert sorted(y[:, 0].tolist()) == x[:, 0].tolist()
    assert (y[:, 0] != x[:, 0]).all()
    assert torch.equal(y[:, 1] - y[:, 0], x[:, 1] - x[:, 0])
    assert torch.equal(y, Ablate("x", method="resample", seed=seed).apply(x, AC))
    assert torch.equal(y.T, Ablate("x", method="resample", seed=seed).apply(x.T, ("channel", "sample")))


@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 99))
def test_resampling_a_reference_never_takes_the_same_row(n, m, seed):
    reference = torch.arange(float(m)).view(m, 1)
    y = Ablate("x", method="resample", reference=reference, seed=seed).apply(-torch.ones(n, 1), AC)[:, 0]
    assert all(int(v) in range(m) and int(v) != i % m for i, v in enumerate(y.tolist()))


def test_every_partner_is_drawn():
    partners = {tuple(Ablate("x", method="resample", seed=s).apply(torch.arange(3.0).view(3, 1), AC)[:, 0].tolist()) for s in range(20)}
    assert partners == {(1.0, 2.0, 0.0), (2.0, 0.0, 1.0)}


def test_one_row_of_reference_serves_all():
    found = Ablate("x", method="resample", reference=torch.full((1, 2), 5.0)).apply(torch.zeros(3, 2), AC)
    assert torch.equal(found, torch.full((3, 2), 5.0))


@given(st.floats(-3, 3))
def test_scaling_multiplies(factor):
    x = torch.randn(2, 3)
    torch.testing.assert_close(Scale("x", factor, channel=1).apply(x, AC), x * torch.tensor([1.0, factor, 1.0]))


@pytest.mark.parametrize("name", nets.MODELS)
def test_patching_in_the_clean_activations_changes_no_bit(name):
    net, x = nets.build(name, torch.float32)
    plain, model = net(x), mf.HookedModel(net)
    cache = model.run_with_cache(x, clone=True)[1]
    names = list(cache)
    nets.assert_same(model.run_with_hooks(x, *[Patch(n, cache) for n in names]), plain)
    nets.assert_same(model.run_with_hooks(x, *[Patch(n, cache[n]) for n in names]), plain)
    if all(cache[n].is_floating_point() for n in names):
        nets.assert_same(model.run_with_hooks(x, *[Scale(n, 1.0) for n in names]), plain)


def test_patching_a_whole_layer_gives_the_other_run_from_there_on():
    net, x = nets.build("gpt2")
    other, model = x.flip(1), mf.HookedModel(net)
    want, cache = model.run_with_cache(other, ["transformer.h.0:out", "transformer.h.1"])
    with model.hooks(Patch("transformer.h.0", cache)):
        out, patched = model.run_with_cache(x, "transformer.h.1")
    assert not torch.equal(net(x).logits, want.logits)
    assert torch.equal(out.logits, want.logits)
    assert torch.equal(patched["transformer.h.1"], cache["transformer.h.1"])


def test_a_glob_takes_each_entry_of_the_cache():
    net, x = nets.build("gpt2")
    model, names = mf.HookedModel(net), ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    cache = model.record(x.flip(1), names)
    with model.hooks(Patch("transformer.h.*.mlp", cache, pos=0)):
        found = model.record(x, names)
    plain = model.record(x, names)
    for name in names:
        assert torch.equal(found[name][:, 0], cache[name][:, 0])
        assert not torch.equal(found[name][:, 0], plain[name][:, 0])
    assert torch.equal(found[names[0]][:, 1:], plain[names[0]][:, 1:])


def test_every_call_takes_its_own_entry():
    model, x, y = mf.HookedModel(nets.Chain()), torch.randn(2, 3), torch.randn(2, 3)
    cache = model.run_with_cache(y, "relu#*")[1]
    with model.hooks(Patch("relu#*", cache)):
        found = model.run_with_cache(x, "relu#*")[1]
    assert all(torch.equal(found[k], cache[k]) for k in ("relu#0", "relu#1"))


def test_a_later_operation_in_place_never_reaches_the_reference():
    class Inplace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.relu = nn.Linear(3, 3), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.a(x))

    model, x, given_ = mf.HookedModel(Inplace()), torch.randn(4, 3), -torch.ones(4, 3)
    for edit in (
        Patch("a", given_),
        Ablate("a", method="mean", reference=given_),
        Ablate("a", method="resample", reference=given_),
        Patch("a", given_, channel=1),
        Scale("a", 1.0),
    ):
        with torch.no_grad():
            model.run_with_hooks(x, edit)
        assert given_._version == 0
        assert (given_ == -1).all()


def test_gradients_reach_the_source():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    source = torch.randn(2, 3, requires_grad=True)
    out = mf.HookedModel(net).run_with_hooks(torch.randn(2, 3), Patch("0", source, channel=1))
    (found,) = torch.autograd.grad(out.sum(), source)
    torch.testing.assert_close(found, (net[1].weight * torch.tensor([0.0, 1.0, 0.0])).expand(2, 3).detach())


# --- what they refuse


def test_a_source_of_another_shape():
    with pytest.raises(ShapeError) as caught:
        mf.HookedModel(nets.Chain()).run_with_hooks(torch.randn(2, 3), Patch("a", torch.zeros(4, 3), channel=1))
    assert (
        str(caught.value)
        == "Patch('a', source[4, 3], channel=1) has a source of shape (4, 3), and the activation at this hook point has axes"
        " {'sample': 2, 'channel': 3}. Record the source at this hook point on inputs of the same shape."
    )


def test_a_source_of_another_dtype():
    with pytest.raises(DtypeError) as caught:
        mf.HookedModel(nets.Chain()).run_with_hooks(torch.randn(2, 3), Patch("a", torch.zeros(2, 3, dtype=torch.float32)))
    assert (
        str(caught.value)
        == "Patch('a', source[2, 3]) gave torch.float32 for an activation of torch.float64. An edit keeps the dtype; convert with .to(x)."
    )


def test_a_cache_without_the_hook_point_or_the_call():
    model, x = mf.HookedModel(nets.Chain()), torch.randn(2, 3)
    cache = model.run_with_cache(x, ["a", "relu#*"])[1]
    with pytest.raises(HookNameError) as caught:
        model.run_with_hooks(x, Patch("b", cache))
    assert str(caught.value).startswith("No hook point matches 'b' among the 3 recorded in this cache.")
    with pytest.raises(AmbiguousCallError):
        model.run_with_hooks(x, Patch("rel*", cache))
    assert repr(Patch("b", cache)) == "Patch('b', cache of 3)"


def test_a_reference_that_does_not_fit():
    with pytest.raises(ShapeError) as caught:
        Ablate("x", method="mean", reference=torch.zeros(5, 2, 7)).apply(torch.zeros(3, 2, 4), AXES)
    assert (
        str(caught.value) == "Ablate('x', method='mean', reference[5, 2, 7]) has a reference of shape (5, 2, 7), and the activation at this"
        " hook point has axes {'sample': 3, 'channel': 2, 'pos': 4}. Record the reference at this hook point; "
        "it may differ in sample alone."
    )
    with pytest.raises(DtypeError) as caught:
        Ablate("x", method="resample", reference=torch.zeros(5, 2, dtype=torch.float32)).apply(torch.zeros(3, 2), AC)
    assert (
        str(caught.value) == "Ablate('x', method='resample', reference[5, 2], seed=0) has a reference of torch.float32 for an activation of"
        " torch.float64. Convert it with .to(x)."
    )


def test_a_batch_of_one_has_no_other_sample():
    with pytest.raises(SelectorError) as caught:
        Ablate("x", method="resample").apply(torch.zeros(1, 2), AC)
    assert (
        str(caught.value)
        == "Ablate('x', method='resample', seed=0) needs another sample, and this batch holds one. Give a reference=, or run more samples."
    )


def test_an_axis_to_average_that_is_not_there():
    with pytest.raises(SelectorError) as caught:
        Ablate("x", method="mean", over=("sample", "pos")).apply(torch.zeros(3, 2), AC)
    assert (
        str(caught.value) == "Ablate('x', method='mean', over=('sample', 'pos')) needs the axis 'pos', and the activation at this hook"
        " point has axes {'sample': 3, 'channel': 2}."
    )


def test_whole_numbers_have_no_mean():
    with pytest.raises(DtypeError) as caught:
        Ablate("x", method="mean").apply(torch.zeros(3, 2, dtype=torch.long), AC)
    assert (
        str(caught.value) == "Ablate('x', method='mean') needs a mean, and the activation is torch.int64. Resample it, or ablate to zero."
    )


@pytest.mark.usefixtures("unchecked")
def test_options_that_are_not_known():
    with pytest.raises(OptionError) as caught:
        Ablate("x", method="median")
    assert str(caught.value) == "method='median' is not known. It can be 'zero', 'mean', 'resample'."
    with pytest.raises(OptionError) as caught:
        Ablate("x", reference=torch.zeros(2, 3))
    assert str(caught.value) == "reference='tensor[2, 3]' is not known. It can be None, \"a tensor with method='mean' or 'resample'\"."
    with pytest.raises(OptionError) as caught:
        Ablate("x", method="mean", over=())
    assert str(caught.value) == "over=() is not known. It can be \"a tuple of axis names, such as ('sample',)\"."
    with pytest.raises(OptionError) as caught:
        Patch("x", {"x": 1})
    assert str(caught.value) == "source={'x': 1} is not known. It can be 'a tensor', 'an ActivationCache'."
