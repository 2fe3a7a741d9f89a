"""The contractions against loops over every index, and against each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechfeat.kernels import block, contract, dense, gram, kernel_shape, mixed

OUTPUTS = ("full", "trace", "diagonal")


def literal(left1, right1, left2, right2, outputs):
    """One inner product an entry, of gradients summed position by position."""

    def gradients(left, right):
        n, o, t, c = left.shape
        k = rows if not right.is_floating_point() else right.shape[-1]
        J = torch.zeros(n, o, c, k, dtype=torch.float64)
        for i in range(n):
            for j in range(o):
                for a in range(t):
                    row = torch.eye(k, dtype=torch.float64)[right[i, a]] if not right.is_floating_point() else right[i, a].double()
                    J[i, j] += torch.outer(left[i, j, a].double(), row)
        return J

    rows = 1 + max([int(r.max()) for r in (right1, right2) if not r.is_floating_point() and r.numel()], default=0)
    J1, J2 = gradients(left1, right1), gradients(left2, right2)
    (n, o), m = J1.shape[:2], len(J2)
    full = torch.zeros(n, o, m, o, dtype=torch.float64)
    for i in range(n):
        for j in range(o):
            for k in range(m):
                for p in range(o):
                    full[i, j, k, p] = (J1[i, j] * J2[k, p]).sum()
    diagonal = full.diagonal(dim1=1, dim2=3)
    return {"full": full, "trace": diagonal.sum(-1), "diagonal": diagonal}[outputs]


def assert_same(found, want, tolerance=1e-12):
    assert found.shape == want.shape
    if want.numel():
        assert (found - want).abs().max() <= tolerance * max(float(want.abs().max()), 1e-300)


@st.composite
def families(draw, low=1):
    """Left and right factors of two sides; odd sizes, sizes of one, views with other strides."""
    n, m, o, t, s, c, k = (draw(st.integers(low, 4)) for _ in range(7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens, turned = draw(st.booleans()), draw(st.booleans())

    def normal(*shape):
        if turned:  # the same values behind a transposed layout
            return torch.randn(*reversed(shape), generator=generator, dtype=torch.float64).permute(*reversed(range(len(shape))))
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def right(n, t):
        return torch.randint(0, max(k, 1), (n, t), generator=generator) if tokens else normal(n, t, k)

    return normal(n, o, t, c), right(n, t), normal(m, o, s, c), right(m, s)


@given(families(), st.sampled_from(OUTPUTS))
def test_matches_the_loops(family, outputs):
    want = literal(*family, outputs)
    for contraction in (block, gram, mixed):
        assert_same(contraction(*family, outputs), want)


@given(families(), st.sampled_from(OUTPUTS))
def test_one_batch_with_itself(family, outputs):
    left, right = family[:2]
    want = literal(left, right, left, right, outputs)
    for contraction in (block, gram, mixed):
        assert_same(contraction(left, right, left, right, outputs), want)


@given(families(), st.sampled_from(OUTPUTS), st.sampled_from([1, 100, 1000, 3000]))
def test_chunks_change_nothing(family, outputs, size):
    whole = [contraction(*family, outputs) for contraction in (block, gram, mixed)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "CHUNK_BYTES", size)
        patch.setattr(contract, "TILE_BYTES", size)
        torch.use_deterministic_algorithms(True)  # fresh memory is NaN, rather than a freed result that happens to be right
        try:
            for contraction, want in zip((block, gram, mixed), whole):
                assert_same(contraction(*family, outputs), want)
        finally:
            torch.use_deterministic_algorithms(False)


@given(families(), st.sampled_from(OUTPUTS))
def test_order_of_positions_does_not_matter(family, outputs):
    left1, right1, left2, right2 = family
    for contraction in (block, gram, mixed):
        turned = contraction(left1.flip(2), right1.flip(1), left2, right2, outputs)
        assert_same(turned, contraction(*family, outputs))


@given(families())
def test_reductions_of_full(family):
    for contraction in (block, gram, mixed):
        diagonal = contraction(*family, "full").diagonal(dim1=1, dim2=3)
        assert_same(contraction(*family, "diagonal"), diagonal)
        assert_same(contraction(*family, "trace"), diagonal.sum(-1))


@given(families())
def test_positive_semidefinite(family):
    left, right = family[:2]
    for contraction in (block, gram, mixed):
        K = contraction(left, right, left, right, "full").flatten(0, 1).flatten(1)
        assert torch.linalg.eigvalsh((K + K.T) / 2).min() >= -1e-12 * K.abs().max()


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("zero", range(7))
@pytest.mark.parametrize("tokens", [False, True])
def test_empty_axes(outputs, zero, tokens):
    n, m, o, t, s, c, k = (0 if i == zero else 2 for i in range(7))
    if tokens and zero == 6:
        return  # no ids without rows
    right1, right2 = (
        (torch.zeros(n, t, dtype=torch.long), torch.zeros(m, s, dtype=torch.long)) if tokens else (torch.ones(n, t, k), torch.ones(m, s, k))
    )
    left1, left2 = torch.ones(n, o, t, c), torch.ones(m, o, s, c)
    for contraction in (block, gram, mixed):
        found = contraction(left1, right1, left2, right2, outputs)
        assert found.shape == kernel_shape(n, m, o, outputs)
        assert torch.equal(found, literal(left1, right1, left2, right2, outputs).to(found))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_half_precision_accumulates_in_float32(dtype, t, outputs):
    left, right = torch.full((2, 2, t, 4), 100.0).to(dtype), torch.full((2, t, 5), 100.0).to(dtype)
    assert (right[0, 0].float() @ right[0, 0].float()) ** 2 > torch.finfo(torch.float16).max
    want = 4 * 5 * t**2 * 1e8 * (2 if outputs == "trace" else 1)
    for contraction in (block, gram, mixed):
        found = contraction(left, right, left, right, outputs)
        assert found.dtype == torch.float32
        # 100 is a number of both formats, and integers below 2^24 times a power of two are exact: only sums round.
        torch.testing.assert_close(found, torch.full_like(found, want), rtol=1e-6, atol=0)
    J = left.flatten(2)
    assert dense(J, J, outputs).dtype == torch.float32
    assert torch.isfinite(dense(J, J, outputs)).all()


@pytest.mark.parametrize("contraction", [block, gram, mixed])
def test_half_precision_tokens(contraction):
    left, ids = torch.full((2, 1, 3, 4), 200.0).half(), torch.zeros(2, 3, dtype=torch.long)
    assert torch.equal(contraction(left, ids, left, ids, "trace"), torch.full((2, 2), 9 * 4 * 4e4, dtype=torch.float32))


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_dense(outputs):
    J1, J2 = torch.randn(3, 2, 5), torch.randn(4, 5, 2).transpose(1, 2)
    one1, one2 = torch.ones(3, 1, 1), torch.ones(4, 1, 1)
    # a vector is a matrix with one column, read at one position
    assert_same(dense(J1, J2, outputs), literal(J1[:, :, None], one1, J2[:, :, None], one2, outputs))


@pytest.mark.parametrize("contraction", [block, gram, mixed])
def test_inputs_are_left_alone(contraction):
    torch.manual_seed(0)
    left, right = torch.randn(3, 2, 1, 4), torch.randn(3, 1, 5)
    before = left.clone(), right.clone()
    contraction(left, right, left, right, "full")
    assert torch.equal(left, before[0])
    assert torch.equal(right, before[1])
