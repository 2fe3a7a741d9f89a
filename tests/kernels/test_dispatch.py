"""When a fused kernel is taken. No GPU and no triton is needed: what a tensor's device is, and which kernels there are, is made up."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import mechfeat.kernels
from mechfeat.kernels import contract, cost, dispatch, gram, mixed, tiles
from mechfeat.kernels.cost import Sizes, Speed, Work
from mechfeat.kernels.tiles import Single

GPU = Speed(bandwidth=4.8e12, rate=50e12)


@pytest.fixture
def used(monkeypatch):
    """As if tensors were on a GPU where every kernel pays; names of the kernels that are called are collected."""
    names = []
    references = {"gram": contract.gram, "mixed": contract.mixed, "add_singles": tiles.add_singles}
    monkeypatch.delenv("MECHFEAT_NO_TRITON", raising=False)
    monkeypatch.setattr(dispatch, "is_cuda", lambda x: True)
    monkeypatch.setattr(dispatch, "speed", lambda *_: GPU)
    monkeypatch.setattr(cost, "pays", lambda *_: True)
    monkeypatch.setattr(dispatch, "proved", lambda name, _: lambda *a, **k: names.append(name) or references[name](*a, **k))
    return names


def family(dtype=torch.float32):
    return (
        torch.randn(3, 2, 4, 5, dtype=dtype),
        torch.randn(3, 4, 6, dtype=dtype),
        torch.randn(2, 2, 4, 5, dtype=dtype),
        torch.randn(2, 4, 6),
    )


@pytest.mark.parametrize("name", ["gram", "mixed"])
def test_pairs_on_a_gpu(name, used):
    contraction = {"gram": gram, "mixed": mixed}[name]
    left1, right1, left2, right2 = (x.float() for x in family())
    contraction(left1, right1, left2, right2, "full")
    contraction(left1.half(), right1.half(), left2.half(), right2.half(), "trace")
    contraction(left1, torch.zeros(3, 4, dtype=torch.long), left2, torch.ones(2, 4, dtype=torch.long), "diagonal")
    contraction(left1, right1, left2, right2, "trace", torch.zeros(3, 2))
    assert used == [name] * 4


def test_what_stays_with_torch(used, monkeypatch):
    left1, right1, left2, right2 = (x.float() for x in family())
    gram(left1.double(), right1.double(), left2.double(), right2.double(), "full")
    gram(left1.requires_grad_(), right1, left2, right2, "full").sum().backward()
    assert left1.grad is not None
    left1 = left1.detach()
    monkeypatch.setenv("MECHFEAT_NO_TRITON", "1")
    gram(left1, right1, left2, right2, "full")
    monkeypatch.delenv("MECHFEAT_NO_TRITON")
    monkeypatch.setattr(cost, "pays", lambda *_: False)
    gram(left1, right1, left2, right2, "full")
    monkeypatch.setattr(cost, "pays", lambda *_: True)
    monkeypatch.setattr(dispatch, "is_cuda", lambda x: x.is_cuda)
    gram(left1, right1, left2, right2, "full")
    assert used == []


def test_single_positions_on_a_gpu(used):
    for dtype in (torch.float32, torch.float64):
        left, right = torch.randn(3, 2, 4, dtype=dtype), torch.randn(3, 5, dtype=dtype)
        layers = [Single(left, right, left, right), Single(None, right, None, right)]
        want, have = torch.zeros(2, 3, 2, 3, 2, dtype=dtype)
        tiles.add_singles(want, layers, fresh=True, same=True)
        dispatch.add_singles(have, layers, fresh=True, same=True)
        assert torch.equal(have, want)
    assert used == ["add_singles"]


@pytest.mark.parametrize("name", ["gram", "mixed", "add_singles"])
def test_a_kernel_that_is_wrong_or_fails_is_not_used(name, monkeypatch):
    reference = {"gram": contract.gram, "mixed": contract.mixed, "add_singles": tiles.add_singles}[name]

    def wrong(*args, **options):
        found = reference(*args, **options)
        (args[0] if found is None else found).mul_(1.001)
        return found

    def fails(*args, **options):
        raise OSError("no C compiler")

    device = torch.device("cpu")
    for kernel, said in ((wrong, "differs from its torch reference by 1e-03"), (fails, "failed: OSError: no C compiler")):
        monkeypatch.setattr(mechfeat.kernels, "triton", SimpleNamespace(**{name: kernel}), raising=False)
        dispatch.proved.cache_clear()
        with pytest.warns(RuntimeWarning, match=f"^The Triton kernel '{name}' {said}.*The torch path is used instead"):
            assert dispatch.proved(name, device) is None
    monkeypatch.setattr(mechfeat.kernels, "triton", SimpleNamespace(**{name: reference}))
    dispatch.proved.cache_clear()
    assert dispatch.proved(name, device) is not None
    dispatch.proved.cache_clear()


def test_without_triton(monkeypatch):
    monkeypatch.delattr(mechfeat.kernels, "triton", raising=False)
    monkeypatch.setitem(sys.modules, "mechfeat.kernels.triton", None)
    dispatch.proved.cache_clear()
    assert dispatch.proved("gram", torch.device("cpu")) is None
    dispatch.proved.cache_clear()


def test_a_kernel_on_the_cpu_does_not_load_triton():
    code = (
        "import sys, torch, mechfeat as mf; net = torch.nn.Linear(3, 2); mf.ntk.empirical_ntk(net, torch.randn(4, 3));"
        "print(*[m for m in sys.modules if m == 'triton' or m.startswith('mechfeat.kernels.triton')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def literal_products(n, m, o, t, s, c, k, outputs):
    """Multiply-adds of the two orders, one output pair and position after the other."""
    gram = mixed = 0
    pairs = [(p, q) for p in range(o) for q in range(o) if outputs == "full" or p == q]
    for _ in range(n * m):
        for _ in range(t):
            gram += s * k
            mixed += s * k + s * o * c
            for _ in pairs:
                gram += s * c
                mixed += c
    return gram, mixed


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_operations_of_the_torch_path(outputs):
    sizes = 3, 2, 4, 5, 6, 7, 8
    gram, mixed = literal_products(*sizes, outputs)
    x = Sizes(*sizes, outputs, same=False)
    weighting = 3 * 2 * 5 * 6 * {"full": 16, "trace": 1, "diagonal": 4}[outputs]
    assert cost.gram_torch(x).flops == 2 * (gram + weighting)
    assert cost.mixed_torch(x).flops == 2 * mixed


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_whole_tiles_waste_nothing(outputs):
    # 64 positions, 16 channels and 16 outputs fill every tile; the mixed order's last product is taken once a tile.
    x = Sizes(2, 3, 16, 64, 64, 16, 32, outputs, same=False)
    gram, _ = literal_products(2, 3, 16, 64, 64, 16, 32, outputs)
    assert {w.flops for w in cost.gram_fused(x)} == {2 * gram}
    last = 6 * 64 * 16 * (256 if outputs == "full" else 16)
    carried = 6 * 64 * 64 * (32 + 16 * 16)
    assert [w.flops for w in cost.mixed_fused(x)] == [2 * (carried + 64 // tile * last) for tile in cost.POSITIONS]


def test_positions_are_rounded_up():
    small, full = (Sizes(4, 4, 2, t, t, 16, 16, "full", same=False) for t in (3, 16))
    assert cost.gram_fused(small)[0].flops == cost.gram_fused(full)[0].flops
    assert cost.gram_torch(small).flops < cost.gram_torch(full).flops / 20


def test_one_batch_counts_half():
    n = 256
    for count in (cost.gram_torch, cost.mixed_torch, lambda x: cost.gram_fused(x)[0], lambda x: cost.mixed_fused(x)[0]):
        one, two = (count(Sizes(n, n, 2, 4, 4, 8, 8, "full", same)) for same in (True, False))
        assert one.flops / two.flops == (n + 1) / (2 * n)
    one, two = (cost.singles_torch(n, n, 2, [(8, 8), (0, 4)], same) for same in (True, False))
    assert one.flops / two.flops == (n + 1) / (2 * n)


def test_single_positions_count_every_layer():
    n, m, o, layers = 64, 128, 2, [(16, 32), (0, 48)]
    assert cost.singles_torch(n, m, o, layers, False).flops == 2 * n * m * (32 + o * o * 16 + 48)
    assert {w.flops for w in cost.singles_fused(n, m, o, layers, False)} == {2 * n * m * o * o * (32 + 16 + 48)}
    # The kernel is written once by the fused launch; the torch path writes and reads two products and the sum for a layer.
    assert cost.singles_torch(n, m, o, layers, False).bytes == 4 * n * m * o * o * (6 + 2 + 2 + 1)


def test_the_rule():
    slow_memory, fast_memory = Speed(1e9, 1e12), Speed(1e15, 1e12)
    torch_path, fused = Work(flops=10**9, bytes=10**9), [Work(flops=2 * 10**9, bytes=10**6), Work(flops=10**12, bytes=1)]
    assert cost.pays(torch_path, fused, slow_memory)
    assert not cost.pays(torch_path, fused, fast_memory)
    assert cost.pays(Work(10**9, 10**9, launches=10**6), fused, fast_memory)  # many small operations


def test_the_regime_of_each_kernel_on_an_h200():
    def singles(width, n=16384):
        layers = [(width, width)]
        return cost.pays(cost.singles_torch(n, n, 1, layers, True), cost.singles_fused(n, n, 1, layers, True), GPU)

    assert [singles(width) for width in (16, 64, 128, 2048)] == [True, True, True, False]

    def pairs(torch_path, fused, n, o, t, c, k):
        x = Sizes(n, n, o, t, t, c, k, "full", same=True)
        return cost.pays(torch_path(x), fused(x), GPU)

    assert pairs(cost.gram_torch, cost.gram_fused, 64, 10, 64, 128, 1152)
    assert not pairs(cost.gram_torch, cost.gram_fused, 256, 10, 1, 1024, 1024)  # one position fills a sixteenth of a tile
    assert pairs(cost.mixed_torch, cost.mixed_fused, 64, 1, 32, 256, 256)
    assert not pairs(cost.mixed_torch, cost.mixed_fused, 256, 10, 49, 256, 4608)
