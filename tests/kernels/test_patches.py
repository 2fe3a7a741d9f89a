"""Patches against torch's own unfolding, their Gram matrix against that of their rows, and contractions of them against those of rows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from mechfeat.kernels import block, gram, mixed, patches
from mechfeat.kernels.patches import Patches
from tests.kernels.test_contract import OUTPUTS, assert_same


@st.composite
def windows(draw, axes=None):
    """Two sides' patches under one kernel: any size, stride, padding on each side, dilation."""
    axes = axes or draw(st.integers(1, 3))
    size, stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(axes)) for _ in range(3))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes))
    channels, ones = draw(st.integers(1, 3)), draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sides = []
    for _ in range(2):
        space = (draw(st.integers(1, 5)) for _ in size)
        maps = torch.randn(draw(st.integers(1, 3)), channels, *space, generator=generator)
        sides.append((maps, size, stride, padding, dilation, ones))
    return sides


def made(sides):
    sides = [Patches(*p) for p in sides]
    assume(all(min(p.out) > 0 for p in sides))
    return sides


@given(windows(axes=2))
def test_rows_are_those_of_unfold(sides):
    for p in made(sides):
        x = F.pad(p.maps, (*p.padding[1], *p.padding[0]))
        want = F.unfold(x, p.size, p.dilation, 0, p.stride).mT
        if p.ones:
            want = torch.cat([want, torch.ones(*want.shape[:2], 1)], 2)
        assert torch.equal(p.rows(), want)
        assert p.rows().shape == p.shape


@given(windows(), st.integers(0, 40), st.integers(0, 40))
def test_some_columns(sides, start, length):
    for p in made(sides):
        part = slice(start, start + length)
        assert torch.equal(p.rows(part), p.rows()[..., part])


@given(windows())
def test_gram_is_that_of_rows(sides):
    a, b = made(sides)
    want = torch.einsum("ntk,msk->ntms", a.rows(), b.rows())
    torch.testing.assert_close(a.gram(b), want, atol=1e-12, rtol=0)
    torch.testing.assert_close(a.channels_last().gram(b.channels_last()), want, atol=1e-12, rtol=0)


@given(windows())
def test_samples(sides):
    for p in made(sides):
        assert torch.equal(p[1:].rows(), p.rows()[1:])
        assert torch.equal(p[[0]].rows(), p.rows()[[0]])


def test_maps_with_other_strides():
    x = torch.randn(5, 4, 3, 2).permute(3, 2, 1, 0)
    a, b = (Patches(m, (2, 2), (1, 1), ((1, 0), (0, 1)), (1, 1)) for m in (x, x.contiguous()))
    assert torch.equal(a.rows(), b.rows())
    torch.testing.assert_close(a.gram(a), b.gram(b))


@given(windows(), st.sampled_from(OUTPUTS), st.booleans(), st.booleans(), st.sampled_from([0, 48]))
def test_contractions(sides, outputs, natural, same, channels):
    a, b = made(sides)
    b = a if same else b

    def left(p):
        n, t, _ = p.shape
        return torch.randn(n, 2, 3, t).mT if natural else torch.randn(n, 2, t, 3)

    left1 = left(a)
    left2 = left1 if same else left(b)
    rows1 = a.rows()
    rows2 = rows1 if same else b.rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CHANNELS", channels)
        for contraction in (block, gram, mixed):
            want = contraction(left1, rows1, left2, rows2, outputs)
            assert_same(contraction(left1, a, left2, b, outputs), want)
            assert_same(contraction(left1, a, left2, rows2, outputs), want)  # of one side some positions are dead


def test_what_shares_its_pixels():
    x = torch.randn(1, 48, 5, 5)
    flat = ((0, 0), (0, 0))
    assert Patches(x, (3, 3), (1, 1), flat, (1, 1)).shares
    assert not Patches(x, (3, 3), (2, 1), flat, (1, 1)).shares
    assert not Patches(x, (3, 3), (1, 1), flat, (1, 2)).shares
    assert not Patches(x, (1, 1), (1, 1), flat, (1, 1)).shares
    assert not Patches(x[:, 1:], (3, 3), (1, 1), flat, (1, 1)).shares


def test_half_precision_accumulates_in_float32():
    p = Patches(torch.full((1, 2, 3, 3), 200.0).half(), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    assert p.channels_last().gram(p.channels_last()).dtype == torch.float32
    assert p.channels_last().gram(p.channels_last())[0, 4, 0, 4] == 9 * 2 * 4e4
