"""The Triton kernels against their torch references in double precision: in Triton's interpreter, or with ``--device cuda`` compiled."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from mechfeat.kernels import contract, cost, kernel_shape, tiles
from mechfeat.kernels.tiles import Single

pytest.importorskip("triton", reason="triton is not installed; the extra `test` brings it on Linux x86-64")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is neither a CUDA device nor TRITON_INTERPRET=1", allow_module_level=True)

from mechfeat.kernels import dispatch
from mechfeat.kernels import triton as twins

OUTPUTS = ("full", "trace", "diagonal")
PAIRS = (  # n, m, o, t, s, c, k; tiles are 16 positions and 16 channels, blocks 16 outputs
    (1, 1, 1, 1, 1, 1, 1),
    (1, 3, 1, 1, 1, 5, 4),
    (3, 1, 2, 1, 1, 3, 7),
    (2, 2, 1, 1, 1, 33, 17),
    (2, 3, 1, 5, 5, 1, 1),
    (3, 2, 2, 4, 7, 3, 2),
    (2, 2, 1, 16, 16, 16, 16),
    (2, 1, 1, 17, 17, 17, 17),
    (1, 2, 1, 15, 31, 15, 15),
    (1, 1, 1, 33, 20, 9, 40),
    (1, 1, 2, 40, 3, 31, 2),
    (2, 2, 3, 2, 2, 18, 19),
    (1, 1, 4, 6, 6, 5, 5),
    (2, 1, 5, 3, 2, 2, 34),
    (1, 1, 8, 2, 3, 4, 3),
    (1, 1, 9, 1, 2, 20, 3),
    (1, 1, 16, 1, 1, 2, 2),
    (1, 1, 17, 2, 1, 3, 3),
    (1, 1, 18, 1, 17, 2, 2),
    (4, 3, 1, 2, 3, 4, 50),
    (3, 4, 2, 3, 1, 33, 1),
    (5, 5, 1, 1, 2, 1, 16),
)
SINGLES = (  # n, m, o, layers' (c, k), c = 0 for unit gradients; tiles are 16 rows, columns are filled up to 16
    (1, 1, 1, [(1, 1)]),
    (1, 5, 1, [(2, 3)]),
    (5, 1, 2, [(2, 3)]),
    (3, 2, 1, [(0, 4)]),
    (4, 4, 3, [(0, 1)]),
    (7, 6, 1, [(16, 16)]),
    (7, 6, 2, [(17, 16)]),
    (16, 16, 1, [(3, 5)]),
    (17, 15, 1, [(3, 5)]),
    (33, 31, 1, [(2, 2)]),
    (8, 8, 2, [(33, 1)]),
    (9, 7, 2, [(1, 33)]),
    (5, 4, 3, [(2, 3), (4, 5)]),
    (5, 7, 5, [(2, 3), (0, 5)]),
    (11, 3, 4, [(0, 17), (6, 2), (6, 2)]),
    (2, 3, 17, [(0, 3), (2, 2)]),
    (3, 2, 16, [(5, 5)]),
    (20, 20, 1, [(3, 3), (3, 3), (3, 3), (0, 3)]),
    (6, 6, 7, [(8, 40), (0, 2)]),
    (1, 1, 33, [(2, 2), (0, 2)]),
    (19, 40, 1, [(20, 4), (4, 20)]),
)


def assert_close(found, want, tolerance=1e-5):
    assert found.shape == want.shape
    assert (found.double() - want).abs().max() <= tolerance * want.abs().max()


def framed(*shape, dtype=torch.float32):
    """Random numbers amid others that are not numbers, so that reading beyond the end shows."""
    size, edge = torch.Size(shape).numel(), 4096
    room = torch.full((size + 2 * edge,), torch.nan, dtype=dtype)
    room[edge : edge + size] = torch.randn(size).to(dtype)
    return room[edge : edge + size].view(shape)


def factors(shape, seed, dtype=torch.float32, tokens=False):
    torch.manual_seed(seed)
    n, m, o, t, s, c, k = shape
    right1, right2 = (torch.randint(0, 3, (a, b)) if tokens else framed(a, b, k, dtype=dtype) for a, b in ((n, t), (m, s)))
    return framed(n, o, t, c, dtype=dtype), right1, framed(m, o, s, c, dtype=dtype), right2


def double(*xs):
    return [x.double() if x.is_floating_point() else x for x in xs]


def lower(kernel, outputs):
    """The kernel with zeros above the diagonal of samples; entries of one sample with itself are all meant."""
    n = len(kernel)
    keep = torch.ones(n, n, dtype=torch.bool).tril()
    return kernel * (keep[:, None, :, None] if outputs == "full" else keep if outputs == "trace" else keep[..., None])


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["gram", "mixed"])
@pytest.mark.parametrize("shape", PAIRS)
def test_two_sides(name, outputs, shape):
    family = factors(shape, sum(shape))
    want = getattr(contract, name)(*double(*family), outputs)
    assert_close(getattr(twins, name)(*family, outputs), want)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["gram", "mixed"])
@pytest.mark.parametrize("shape", PAIRS[1::3])
def test_one_batch_with_itself(name, outputs, shape):
    left, right = factors(shape, sum(shape))[:2]
    wide = double(left, right) * 2
    want = getattr(contract, name)(wide[0], wide[1], wide[0], wide[1], outputs)
    whole = getattr(twins, name)(left, right, left, right, outputs)
    assert_close(whole, want)
    assert torch.equal(whole, whole.permute(2, 3, 0, 1) if outputs == "full" else whole.transpose(0, 1))


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["gram", "mixed"])
def test_adds_to_what_is_there_and_to_nothing_else(name, outputs, same):
    for dtype, shape in ((torch.float32, (3, 2, 3, 2, 3, 4, 5)), (torch.float64, (1, 1, 17, 1, 1, 2, 2))):
        left1, right1, left2, right2 = factors(shape, 0)
        if same:
            left2, right2 = left1, right1
        n, m, o = len(left1), len(left2), shape[2]
        # Adding nothing beyond the end is wrong too, and turns a negative zero into a positive one.
        room = torch.full((n + 2, m + 2, o + 2, o + 2), -0.0, dtype=dtype).permute(0, 2, 1, 3)
        view = {"full": room[1:-1, 1:-1, 1:-1, 1:-1], "trace": room[1:-1, 0, 1:-1, 0], "diagonal": room[1:-1, 0, 1:-1, 1:-1]}[outputs]
        view.fill_(7)
        added = getattr(twins, name)(left1, right1, left2, right2, outputs, view)
        assert added is view
        change = view - 7
        wide = double(left1, right1, left2, right2)
        if same:
            wide[2:] = wide[:2]
            assert torch.equal(change, lower(change, outputs))
        want = getattr(contract, name)(*wide, outputs)
        assert_close(change, lower(want, outputs) if same else want, 1e-5 if dtype == torch.float32 else 1e-6)
        view.fill_(-0.0)
        assert torch.equal(room, torch.zeros_like(room))
        assert room.signbit().all()


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["gram", "mixed"])
def test_token_ids(name, outputs):
    for shape in ((2, 3, 2, 5, 4, 3, 0), (1, 2, 1, 18, 17, 5, 0)):
        family = factors(shape, 1, tokens=True)
        assert_close(getattr(twins, name)(*family, outputs), getattr(contract, name)(*double(*family), outputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gram", "mixed"])
def test_half_precision_is_summed_in_float32(name, dtype):
    left1, right1, left2, right2 = factors((2, 2, 2, 3, 4, 20, 18), 2, dtype)
    for family in ((left1, right1, left2, right2), (left1, right1.float(), left2, right2), (left1.float(), right1, left2, right2)):
        found = getattr(twins, name)(*family, "full")
        assert found.dtype == torch.float32
        assert_close(found, getattr(contract, name)(*double(*family), "full"))


@pytest.mark.parametrize("name", ["gram", "mixed"])
def test_strided_factors(name):
    shape = (2, 3, 2, 4, 5, 3, 6)
    family = [x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim))) for x in factors(shape, 3)]
    assert not family[0].is_contiguous()
    before = [x.clone() for x in family]
    assert_close(getattr(twins, name)(*family, "full"), getattr(contract, name)(*double(*family), "full"))
    assert all(torch.equal(a, b) for a, b in zip(family, before))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["gram", "mixed"])
def test_empty_axes(name, outputs):
    for zero in range(7):
        family = factors([0 if i == zero else 2 for i in range(7)], 0)
        n, m, o = len(family[0]), len(family[2]), family[0].shape[1]
        assert torch.equal(getattr(twins, name)(*family, outputs), torch.zeros(kernel_shape(n, m, o, outputs), dtype=torch.float32))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("shape", SINGLES)
def test_single_positions(shape, same, fresh):
    n, m, o, sizes = shape
    m = n if same else m
    torch.manual_seed(n + m + o)
    layers = []
    for c, k in sizes:
        left1, right1 = framed(n, o, c) if c else None, framed(n, k)
        left2, right2 = (left1, right1) if same else (framed(m, o, c) if c else None, framed(m, k))
        layers.append(Single(left1, right1, left2, right2))
    wide = [Single(*[None if x is None else x.double() for x in (y.left1, y.right1, y.left2, y.right2)]) for y in layers]
    before = torch.randn(n, o, m, o, dtype=torch.float32)
    if same:
        before += before.permute(2, 3, 0, 1).clone()
    want = before.double()
    tiles.add_singles(want, wide, fresh=fresh, same=same)
    room = torch.full((n * o * m * o + 2000,), 7.0, dtype=torch.float32)
    kernel = room[1000:-1000].view(n, o, m, o).copy_(torch.full_like(before, torch.nan) if fresh else before)
    twins.add_singles(kernel, layers, fresh=fresh, same=same)
    assert_close(kernel, want)
    if same:
        assert torch.equal(kernel, kernel.permute(2, 3, 0, 1))
    kernel.fill_(7)
    assert (room == 7).all()


def test_single_positions_without_channels_or_layers():
    right, left = torch.randn(3, 2, dtype=torch.float32), torch.empty(3, 2, 0, dtype=torch.float32)
    for layers in ([], [Single(left, right, left, right)], [Single(None, right[:, :0], None, right[:, :0])]):
        kernel = torch.full((3, 2, 3, 2), torch.nan, dtype=torch.float32)
        twins.add_singles(kernel, layers, fresh=True, same=True)
        assert torch.equal(kernel, torch.zeros_like(kernel))
    twins.add_singles(kernel[:0], [], fresh=True, same=False)


def test_the_cost_rule_knows_the_tiles():
    gram, mixed, single, pairs = (importlib.import_module(f"mechfeat.kernels.triton.{x}") for x in ("gram", "mixed", "single", "pairs"))
    for module in (gram, mixed):
        assert tuple(b[0] for b in module.BLOCKS) == cost.POSITIONS
        assert {b[1] for b in module.BLOCKS} == {cost.CHANNELS}
    assert tuple(b[0] for b in single.BLOCKS) == cost.ROWS
    assert single.PAD == cost.PACKED
    assert all(single.PAD % b[1] == 0 for b in (*single.BLOCKS, single.INTERPRETED))
    assert pairs.OUTPUTS == cost.OUTPUTS_OF_A_PROGRAM


@pytest.mark.parametrize("name", ["gram", "mixed", "add_singles"])
def test_a_kernel_is_proved_before_it_is_used(name, device):
    dispatch.proved.cache_clear()
    assert dispatch.proved(name, device) is not None
    dispatch.proved.cache_clear()


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_whole_kernels_of_a_model(outputs, monkeypatch):
    from mechfeat.ntk import empirical_ntk, total

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    ).float()
    x = torch.randn(4, 1, 3, 3, dtype=torch.float32)
    want = {how: empirical_ntk(net, x, outputs=outputs, method=how).kernel for how in ("gram", "mixed")}
    used = set()
    monkeypatch.setattr(dispatch, "is_cuda", lambda x: True)
    monkeypatch.setattr(dispatch, "_twin", lambda name, *_: used.add(name) or getattr(twins, name))
    monkeypatch.setattr(total, "LARGE", 0)
    for how in want:
        found = empirical_ntk(net, x, outputs=outputs, method=how, prove="always").kernel
        assert_close(found, want[how].double())
    assert used == {"gram", "mixed", "add_singles"}


COMPILE = """
import importlib, warnings
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
gram, mixed, single = (importlib.import_module("mechfeat.kernels.triton." + x) for x in ("gram", "mixed", "single"))

def compile(kernel, pointers, constants, warps):
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    source = ASTSource(kernel, signature, constexprs={(names.index(n),): v for n, v in constants.items()})
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "enable_fp_fusion": True})
    assert done.asm["cubin"] and done.metadata.shared <= 96 << 10, done.metadata.shared

f = "*fp32"
for (B, BK, warps), same, precision in zip(single.BLOCKS, (True, False, True), ("ieee", "tf32", "ieee")):
    pointers = {"M": f, "A1": f, "G1": f, "A2": f, "G2": f, "K": "*i64", "C": "*i64"}
    compile(single._single, pointers, dict(FRESH=same, SAME=same, B=B, BK=BK, PRECISION=precision), warps)
for kernel, blocks in ((gram._gram, gram.BLOCKS), (mixed._mixed, mixed.BLOCKS)):
    kinds = ("trace", "*fp16", "*i64", "*fp64", 1, "tf32"), ("diagonal", "*bf16", f, f, 8, "ieee"), ("full", f, f, f, 16, "ieee")
    for (BT, BC, warps), (outputs, left, right, theta, bo, precision) in zip(blocks, kinds):
        pointers = {"M": theta, "L1": left, "L2": left, "R1": right, "R2": right}
        bp = bo if outputs == "full" else 1
        constants = dict(OUTPUTS=outputs, TOKENS=right == "*i64", SAME=True, BO=bo, BP=bp, BT=BT, BC=BC, PRECISION=precision)
        compile(kernel, pointers, constants, warps)
print("compiled")
"""


def test_compiles_for_a_hopper_gpu(tmp_path):
    # The compiler needs no GPU: what the interpreter lets pass (types, shapes, shared memory) is found here.
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env, cwd=os.getcwd())
    assert done.stdout.strip() == "compiled", done.stderr
