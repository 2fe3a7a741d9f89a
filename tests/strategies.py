"""Inputs that hypothesis draws."""

import torch
from hypothesis import strategies as st


@st.composite
def matrices(draw, *, max_features=6, max_hidden=5, batch=(), min_features=1, min_hidden=1, scales=True, zeros=True):
    """float64 ``[*batch feature hidden]``: sizes from 1, zero and repeated rows, scales from 1e-50 to 1e50.

    Entries are multiples of 1/8 up to 2, so that ties, orthogonal rows and exact zeros are common; the scale is one for
    the whole matrix, and the squares of squares stay within float64 for the oracles.
    """
    n = draw(st.integers(min_features, max_features))
    m = draw(st.integers(min_hidden, max_hidden))
    shape = (*batch, n, m)
    count = torch.Size(shape).numel()
    entries = draw(st.lists(st.integers(-16, 16), min_size=count, max_size=count))
    W = torch.tensor(entries, dtype=torch.float64).view(shape) / 8
    if zeros:
        dead = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        if draw(st.booleans()):
            W = torch.where(dead[:, None], 0.0, W)
    else:
        W = torch.where((W == 0).all(-1, keepdim=True), 1.0, W)
    return W * 10.0 ** draw(st.sampled_from([0, 0, -50, 50])) if scales else W


@st.composite
def batched_matrices(draw, *, max_instances=3, **options):
    """float64 ``[*instance feature hidden]`` with one or two instance axes, empty ones among them."""
    batch = draw(st.lists(st.integers(0, max_instances), min_size=1, max_size=2))
    return draw(matrices(batch=tuple(batch), **options))


@st.composite
def orthogonal(draw, n):
    """A rotation or reflection of ``n`` dimensions."""
    seed = draw(st.integers(0, 2**31))
    g = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(g).Q.to(torch.get_default_device())


def seeds():
    """Generators."""
    return st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def tables(draw, *, max_inputs=5, max_samples=12, max_channels=3):
    """Arguments of Samples, whose rows come from inputs in any order; some inputs have many rows, some none.

    The caller builds the Samples: the shape checker draws random numbers, which hypothesis forbids inside a strategy.
    """
    n_inputs = draw(st.integers(1, max_inputs))
    origins = draw(st.lists(st.integers(0, n_inputs - 1), max_size=max_samples))
    channels = draw(st.integers(1, max_channels))
    values = torch.arange(float(len(origins) * channels)).view(-1, channels)
    return values, torch.tensor(origins, dtype=torch.long), "conv1", n_inputs
