"""The plan says what the result then reports, and what runs, without computing a kernel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mechfeat.kernels import contract, new_kernel
from mechfeat.kernels.patches import Patches
from mechfeat.kernels.tiles import Single, add_singles
from mechfeat.models import mlp
from mechfeat.ntk import counts, empirical_ntk, plan
from mechfeat.ntk.factors import Outer
from mechfeat.ntk.outlines import Shape, outline, shape_of
from mechfeat.ntk.planner import Plan, PlanRow
from tests.ntk.test_exact import OUTPUTS
from tests.ntk.zoo import ZOO, Net


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_rows_are_those_of_the_result(name):
    net, x1, x2 = ZOO[name].build()
    failing = {c.parameter for c in empirical_ntk(net, x1).coverage if "proof" in c.detail}  # what fails is not known beforehand
    for other in (None, x2):
        for outputs in OUTPUTS:
            for method in ("auto", "block", "jacobian"):
                said = plan(net, x1, other, outputs=outputs, method=method)
                done = empirical_ntk(net, x1, other, outputs=outputs, method=method, prove="never").plan
                assert [r for r in said.rows if r.parameter not in failing] == [r for r in done.rows if r.parameter not in failing]
                assert (said.kernel_shape, said.kernel_bytes, said.outputs) == (done.kernel_shape, done.kernel_bytes, done.outputs)


def test_a_call_whose_output_is_not_used():
    def f(s, x):
        s.b(x)
        return s.a(x)

    net, x = Net(f, a=nn.Linear(5, 3), b=nn.Linear(5, 3)), torch.randn(4, 5)
    assert plan(net, x).rows == empirical_ntk(net, x).plan.rows
    assert [r.contraction for r in plan(net, x).rows] == ["output", "folded", "unused", "unused"]


class Products(TorchDispatchMode):
    """Counts the multiplications that run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"):
            rows, columns = args[1:3] if "add" in name else args[:2]
            self.count += rows.numel() * columns.shape[-1]
        elif name in ("mul", "mul_", "addcmul_", "eq"):
            self.count += out.numel()
        return out


@given(
    st.tuples(*[st.integers(1, 5)] * 2, *[st.integers(1, 3)] * 3, *[st.integers(1, 5)] * 2),
    st.sampled_from(OUTPUTS),
    st.booleans(),
    st.sampled_from([500, 1 << 20]),
)
def test_counts_are_those_of_what_runs(sizes, outputs, same, room):
    n, m, o, t, s, c, k = sizes
    left1, right1, left2, right2 = torch.randn(n * 9, o, t, c), torch.randn(n * 9, t, k), torch.randn(m, o, s, c), torch.randn(m, s, k)
    if same:
        left2, right2 = left1, right1
    shape = Shape(len(left1), len(left2), o, t, left2.shape[2], c, k, same=same, itemsize=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "CHUNK_BYTES", room)
        patch.setattr(contract, "TILE_BYTES", room)
        for order, count in counts.MACS.items():
            into = new_kernel(left1, len(left1), len(left2), o, outputs)
            with Products() as ran:
                getattr(contract, order)(left1, right1, left2, right2, outputs, into)
            assert ran.count == count(shape, outputs), order
        with Products() as ran:
            contract.dense(J := left1.flatten(2), J if same else torch.randn(m, o, t * c), outputs, into)
        assert ran.count == counts.dense_macs((shape.n1, shape.n2), o, t * c, outputs, same)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("channels", "stride"), [(48, 1), (47, 1), (48, 2)])
def test_counts_of_patches(outputs, same, channels, stride):
    def side(n):
        right = Patches(torch.randn(n, channels, 5, 4), (3, 3), (stride,) * 2, ((1, 1), (1, 0)), (1, 1), ones=True)
        return Outer(torch.randn(n, 2, 3, right.shape[1]).mT, right)

    a, b = side(3), side(2)
    b = a if same else b
    first = outline(a)
    shape = shape_of(first, first if same else outline(b))
    assert (shape.pixel_macs > 0) == (channels == 48 and stride == 1)
    for order, count in counts.MACS.items():
        into = new_kernel(a.left, len(a.left), len(b.left), 2, outputs)
        with Products() as ran:
            getattr(contract, order)(a.left, a.right, b.left, b.right, outputs, into)
        assert ran.count == count(shape, outputs), order


def test_counts_of_a_large_kernel_in_tiles():
    n, o, c, k = 300, 3, 4, 5
    left, right = torch.randn(n, o, c), torch.randn(n, k)
    with Products() as ran:
        add_singles(torch.zeros(n, o, n, o), [Single(left, right, left, right)], fresh=True, same=True)
    least = n * n * (k + o * o * (c + 1))
    assert least / 2 < ran.count < 0.65 * least
    assert counts.gram_macs(Shape(n, n, o, 1, 1, c, k, same=True), "full") == pytest.approx(ran.count, rel=0.1)


def test_the_cheapest_order_is_taken():
    net = Net(lambda s, x: s.b(torch.tanh(s.a(x)).mean(1)), a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    x = torch.randn(7, 5, 4)
    for outputs in OUTPUTS:
        forced = [plan(net, x, outputs=outputs, method=m) for m in ("block", "gram", "mixed")]
        best = plan(net, x, outputs=outputs)
        assert best.rows[0].seconds == min(p.rows[0].seconds for p in forced)
        assert best.rows[0] in [p.rows[0] for p in forced]
        assert [r.contraction for r in best.rows[1:]] == ["folded", "output", "folded"]
        assert [p.rows[0].positions for p in forced] == [5, 5, 5]
        assert best.macs == sum(r.macs for r in best.rows)
        assert best.seconds == sum(r.seconds for r in best.rows) + best.passes_seconds


def test_dead_positions_cost_nothing():
    net = Net(lambda s, x: s.b(torch.tanh(s.a(x))[:, -1]), a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    x = torch.randn(7, 5, 4)
    for other in (None, torch.randn(3, 6, 4)):
        assert [r.positions for r in plan(net, x, other).rows] == [1, 0, 1, 0]
        assert plan(net, x, other).rows == empirical_ntk(net, x, other).plan.rows


def test_both_sides_are_counted():
    net, x = mlp([4, 2]), torch.randn(6, 3, 4)
    o = 6
    alone, pair = plan(net, x, method="block").rows[0].macs, plan(net, x, x + 1, method="block").rows[0].macs
    assert alone == 6 * o * 3 * 2 * 5 + 36 * o * o * 10  # the bias is a fifth input
    assert pair - alone == 6 * o * 3 * 2 * 5


def test_tokens_are_compared():
    net = Net(lambda s, t: s.e(t).sum(1), e=nn.Embedding(50, 3))
    tokens, others = torch.tensor([[0, 1], [1, 2], [7, 7]]), torch.tensor([[0, 3]])
    assert plan(net, tokens, others, method="gram").rows[0].macs == 3 * 4 * (1 + 9 * (3 + 1))
    # five rows of the table occur
    assert plan(net, tokens, others, method="block").rows[0].macs == 4 * 3 * 2 * 5 * 3 + 3 * 9 * 5 * 3


def test_no_gradient_of_a_parameter_is_computed(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a plan takes no gradient of a parameter")

    def activations(y, inputs, *args, **kwargs):
        asked.append(inputs)
        return right(y, inputs, *args, **kwargs)

    asked, right = [], torch.autograd.grad

    net, x1, x2 = ZOO["transformer"].build()
    for place, name in (
        (torch.autograd, "backward"),
        (torch.func, "jacrev"),
        (torch.func, "vmap"),
        (torch.Tensor, "backward"),
    ):
        monkeypatch.setattr(place, name, forbidden)
    monkeypatch.setattr(torch.autograd, "grad", activations)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    plan(net, x1, x2, method="jacobian")
    plan(net, x1)
    assert len(calls) == 3
    # one backward a batch, to the anchor of the taps: it shows at which positions a gradient arrives
    assert len(asked) == 3
    assert all(isinstance(a, torch.Tensor) and a.ndim == 0 for a in asked)


def test_prints():
    rows = (
        PlanRow("a.weight", "linear", "mixed", 2, 7600, 7200, 2e-5),
        PlanRow("a.bias", "mul has no rule", "exact", 1, 2700, 720, 1e-6),
        PlanRow("b.weight", "not used, or not reaching the output", "unused", 0, 0, 0, 0.0),
    )
    table = [
        "parameter  function                              contraction  positions    MMAC       MiB     ms",
        "a.weight   linear                                mixed                2  0.0076   0.00687   0.02",
        "a.bias     mul has no rule                       exact                1  0.0027  0.000687  0.001",
        "b.weight   not used, or not reaching the output  unused               0       0         0      0",
    ]
    assert str(Plan(rows, (5, 6, 5, 6), 7200, "full")).splitlines() == [
        *table,
        "kernel [5, 6, 5, 6] (full), 0.00687 MiB; contractions 1.03e-05 GMAC; 2.1e-05 s in all",
    ]
    assert str(Plan(rows, (5, 6, 5, 6), 7200, "full", 3, 0.5, 1 << 20)).splitlines() == [
        *table,
        (
            "kernel [5, 6, 5, 6] (full), 0.00687 MiB, in blocks of 3 samples; contractions 1.03e-05 GMAC, passes over activations 0.5 s; "
            "0.5 s in all, peak 1 MiB beside the model and its inputs"
        ),
    ]


def test_round_trip(tmp_path):
    made = plan(mlp([4, 3, 2]), torch.randn(5, 4))
    made.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors") == made


def test_runs_of_a_plan_agree():
    net, x = mlp([4, 3, 2]), torch.randn(5, 4)
    first, again = plan(net, x), plan(net, x)
    assert first.rows == again.rows  # predicted seconds too: the machine is measured once
    assert first.peak_bytes == again.peak_bytes
    assert first.passes_seconds > 0
    assert first.seconds > first.passes_seconds
