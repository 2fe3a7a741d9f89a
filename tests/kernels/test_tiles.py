"""Layers with one position, all at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.kernels import gram, tiles
from mechfeat.kernels.tiles import Single, add_singles


@given(st.tuples(*[st.integers(1, 7)] * 2, st.integers(1, 3)), st.booleans(), st.booleans(), st.integers(1, 9))
def test_matches_one_layer_after_the_other(sizes, same, fresh, tile):
    n, m, o = sizes
    m = n if same else m
    want = torch.zeros(n, o, m, o)
    layers = []
    for c, k, unit in ((2, 3, False), (o, 4, True), (1, 1, False)):
        left1, right1 = torch.eye(o).expand(n, o, o) if unit else torch.randn(n, o, c), torch.randn(n, k)
        left2, right2 = torch.eye(o).expand(m, o, o) if unit else torch.randn(m, o, c), torch.randn(m, k)
        if same:
            left2, right2 = left1, right1
        layers.append(Single(None if unit else left1, right1, None if unit else left2, right2))
        want += gram(left1[:, :, None], right1[:, None], left2[:, :, None], right2[:, None], "full")
    before = torch.randn(n, o, m, o)
    if same:
        before += before.permute(2, 3, 0, 1).clone()
    kernel = torch.full_like(want, torch.nan) if fresh else before.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", tile)
        add_singles(kernel, layers, fresh=fresh, same=same)
    torch.testing.assert_close(kernel, want if fresh else want + before, rtol=1e-12, atol=1e-12)
    if same:
        assert torch.equal(kernel, kernel.permute(2, 3, 0, 1))
