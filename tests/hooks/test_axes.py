"""Axis names, and activations as tables."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mechfeat as mf
from mechfeat.errors import OptionError, SelectorError, ShapeError

from . import nets


def axes_of(net, x, name="0", **options):
    return mf.HookedModel(net, **options).run_with_cache(x, name)[1].axes(name)


C2, C3 = ("sample", "channel"), ("sample", "pos", "channel")
IMAGE = ("sample", "channel", "height", "width")


@pytest.mark.parametrize(
    ("module", "shape", "axes"),
    [
        (nn.Conv1d(2, 3, 1), (4, 2, 5), ("sample", "channel", "pos")),
        (nn.Conv2d(2, 3, 1), (4, 2, 5, 6), IMAGE),
        (nn.Conv3d(2, 3, 1), (4, 2, 5, 6, 2), ("sample", "channel", "depth", "height", "width")),
        (nn.ConvTranspose2d(2, 3, 1), (4, 2, 5, 6), IMAGE),
        (nn.BatchNorm1d(2), (4, 2), C2),
        (nn.BatchNorm1d(2), (4, 2, 5), ("sample", "channel", "pos")),
        (nn.BatchNorm2d(2), (4, 2, 5, 6), IMAGE),
        (nn.GroupNorm(1, 2), (4, 2, 5, 6), IMAGE),
        (nn.MaxPool2d(2), (4, 2, 4, 4), IMAGE),
        (nn.AdaptiveAvgPool1d(1), (4, 2, 4), ("sample", "channel", "pos")),
        (nn.Linear(3, 2), (4, 3), C2),
        (nn.Linear(3, 2), (4, 5, 3), C3),
        (nn.Linear(3, 2), (4, 5, 6, 3), ("sample", "pos1", "pos2", "channel")),
        (nn.LayerNorm(3), (4, 5, 3), C3),
        (nn.RMSNorm(3), (4, 5, 3), C3),
        (nn.Flatten(), (4, 5, 3), C2),
        (nn.Identity(), (4, 5, 3), C3),
        (nn.Identity(), (4, 5, 3, 2), ("sample", "axis1", "axis2", "axis3")),
        (nn.Identity(), (4,), ("sample",)),
        (nn.Softmax(-1), (4, 2, 5, 5), ("sample", "axis1", "axis2", "axis3")),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_axes_by_layer(module, shape, axes):
    assert axes_of(nn.Sequential(module.double()), torch.randn(shape)) == axes


def test_axes_of_an_embedding():
    assert axes_of(nn.Sequential(nn.Embedding(7, 2)), torch.zeros(3, 5, dtype=torch.long)) == C3
    assert axes_of(nn.Sequential(nn.Embedding(7, 2)), torch.zeros(3, dtype=torch.long)) == C2


def test_functions_between_convolutions_are_images():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Sequential(nn.Dropout(0.0)))
    cache = mf.HookedModel(net).run_with_cache(torch.randn(2, 1, 3, 3), "**:*")[1]
    assert {cache.axes(n) for n in cache} == {IMAGE}


def test_functions_between_sequences_of_a_network_with_conv1d_are_not_guessed():
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU())
    assert axes_of(net, torch.randn(2, 2, 4), "1") == ("sample", "axis1", "axis2")


@pytest.mark.parametrize(("batch_first", "axes"), [(True, C3), (False, ("pos", "sample", "channel"))])
def test_axes_in_an_encoder(batch_first, axes):
    net = nets.encoder(batch_first)
    cache = mf.HookedModel(net).run_with_cache(torch.randn(4, 2, 16))[1]
    assert {cache.axes(n) for n in cache} == {axes}
    assert axes_of(nn.Sequential(nn.GRU(3, 2, batch_first=batch_first)), torch.randn(4, 5, 3), "0:out.0") == axes


def test_axes_of_attention_weights():
    class Net(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.attn, self.options = nn.MultiheadAttention(4, 2, batch_first=True), options

        def forward(self, x):
            return self.attn(x, x, x, **self.options)[0]

    x = torch.randn(2, 5, 4)
    assert axes_of(Net(), x, "attn:out.1") == ("sample", "query", "key")
    assert axes_of(Net(average_attn_weights=False), x, "attn:out.1") == ("sample", "head", "query", "key")
    assert axes_of(Net(), x, "attn:out.0") == C3


def test_axes_in_gpt2():
    net, x = nets.build("gpt2")
    cache = mf.HookedModel(net).run_with_cache(x)[1]
    assert cache.axes("transformer.h.0.mlp.c_fc") == cache.axes("transformer.wte") == cache.axes("transformer.h.1.attn:out.0") == C3
    assert {cache.axes(n) for n in cache if cache[n].ndim == 3} == {C3}


def test_axes_given_by_the_user():
    net, x = nn.Sequential(nn.Identity(), nn.Identity()), torch.randn(2, 3, 4, 5)
    model = mf.HookedModel(net, axes={"0": ("sample", "head", "query", "key"), "0:in": IMAGE, "1": ("sample", "channel")})
    cache = model.run_with_cache(x, ["0", "0:in", "1"])[1]
    assert cache.axes("0") == ("sample", "head", "query", "key")
    assert cache.axes("0:in") == IMAGE
    assert cache.axes("1") == ("sample", "axis1", "axis2", "axis3")  # another number of axes: not meant here
    assert mf.HookedModel(model, axes={"1": IMAGE}).record(x, ["0", "1"]).axes("0") == ("sample", "head", "query", "key")


# --- tables


@st.composite
def activations(draw):
    """An activation with known axes, the sample axis anywhere, as the cache of a run holds it."""
    axes = tuple(draw(st.permutations(draw(st.sampled_from([C2, C3, IMAGE])))))
    shape = tuple(draw(st.integers(1, 3)) for _ in axes)
    return axes, shape


def cache_of(axes, shape):
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    return x, mf.HookedModel(nn.Sequential(nn.Identity()), axes={"0": axes}).run_with_cache(x, "0")[1]


@given(activations())
def test_all_positions_are_rows_that_know_their_input(activation):
    axes, shape = activation
    x, cache = cache_of(axes, shape)
    s = cache.samples("0")
    n = shape[axes.index("sample")]
    assert (s.n_inputs, s.hook, s.axes) == (n, "0", axes)
    per = len(s) // n
    for i in range(n):
        one = x.select(axes.index("sample"), i)
        channel = axes.index("channel") - (axes.index("channel") > axes.index("sample"))
        assert torch.equal(s.values[s.inputs == i], one.movedim(channel, -1).reshape(per, -1))


@given(activations())
def test_all_positions_restore_the_activation(activation):
    axes, shape = activation
    x, cache = cache_of(axes, shape)
    if axes[0] == "sample":
        assert torch.equal(cache.samples("0").restore(), x)
    else:
        with pytest.raises(ShapeError):
            cache.samples("0").restore()


@given(activations(), st.data())
def test_means_indices_and_functions_give_one_row_an_input(activation, data):
    axes, shape = activation
    x, cache = cache_of(axes, shape)
    spaces = [i for i, a in enumerate(axes) if a not in C2]
    order = [axes.index("sample"), *spaces, axes.index("channel")]
    rows = x.permute(order)
    s = cache.samples("0", positions="mean")
    torch.testing.assert_close(s.values, rows.mean(tuple(range(1, rows.ndim - 1))) if spaces else rows)
    assert torch.equal(s.inputs, torch.arange(s.n_inputs))
    index = tuple(data.draw(st.integers(-shape[i], shape[i] - 1)) for i in spaces)
    assert torch.equal(cache.samples("0", positions=index).values, rows[(slice(None), *index)])
    if len(index) == 1:
        assert torch.equal(cache.samples("0", positions=index[0]).values, rows[:, index[0]])
    assert torch.equal(
        cache.samples("0", positions=lambda v: v.reshape(len(v), -1, v.shape[-1]).amax(1)).values,
        rows.reshape(len(rows), -1, rows.shape[-1]).amax(1),
    )
    with pytest.raises(ShapeError):
        s.restore()


def test_positions_that_do_not_fit():
    _, cache = cache_of(IMAGE, (2, 3, 4, 5))
    with pytest.raises(SelectorError) as caught:
        cache.samples("0", positions=(1,))
    assert str(caught.value) == "positions=(1,) does not fit '0', whose position axes are {'height': 4, 'width': 5}."
    with pytest.raises(SelectorError):
        cache.samples("0", positions=(4, 0))
    with pytest.raises(SelectorError) as caught:
        cache.samples("0", positions=lambda v: v[:, 0])
    assert str(caught.value) == "positions() gave shape (2, 5, 3) for '0'; it must give [sample channel] with 2 samples."


@pytest.mark.usefixtures("unchecked")
def test_positions_of_another_kind():
    _, cache = cache_of(C3, (2, 3, 4))
    with pytest.raises(OptionError) as caught:
        cache.samples("0", positions="max")
    assert str(caught.value) == "positions='max' is not known. It can be 'all', 'mean', 'an index', 'a tuple of indices', 'a function'."


def test_no_table_where_no_channel_is_known():
    cache = mf.HookedModel(nn.Sequential(nn.Identity())).run_with_cache(torch.randn(2, 3, 4, 5), "0")[1]
    with pytest.raises(SelectorError) as caught:
        cache.samples("0")
    assert (
        str(caught.value) == "'0' has axes ('sample', 'axis1', 'axis2', 'axis3'), of which none is known to be the channel. "
        "Name them: HookedModel(net, axes={'0': ('sample', ..., 'channel')})."
    )
