"""A run sees its own model, thread and pass, and nothing else: threads, nesting, distributed, checkpointed, compiled, generating models."""

import gc
import os
import sys
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mechfeat as mf
from mechfeat.errors import EditNotFiredError, HookNotReachedError, UnsupportedModelError

from . import nets

# --- threads


@pytest.fixture
def switching():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def in_threads(work, n=8):
    """Run ``work(k)`` in n threads at once; what they raised."""
    errors, start = [], threading.Barrier(n)

    def body(k):
        try:
            start.wait()
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(k,)) for k in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return errors


RUNS = [100, pytest.param(400, marks=pytest.mark.full)]


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("runs", RUNS)
def test_threads_that_share_a_model_see_their_own_runs(runs):
    net = nets.Chain()
    net.flag = nn.Identity()  # the counter is not made for threads
    model = mf.HookedModel(net)
    xs = [torch.randn(2, 3) for _ in range(8)]
    right = [nets.captured_by_hand(net, x) for x in xs]
    outs = [net(x) for x in xs]
    wrong = []

    def work(k):
        for i in range(runs):
            if i % 4 == 3:
                with model.hooks(mf.Replace("b", lambda a: a + k)):
                    cache = model.record(xs[k], "b")
                same = torch.equal(cache["b"], right[k]["b", "out"][0][0] + k)
            else:
                out, cache = model.run_with_cache(xs[k], ["a", "relu#*", "c:in"])
                same = torch.equal(out, outs[k]) and all(
                    torch.equal(cache[name], right[k][path, side][call][0])
                    for name, path, side, call in (("a", "a", "out", 0), ("relu#1", "relu", "out", 1), ("c:in", "c", "in", 0))
                )
            wrong.extend([k] * (not same))

    assert in_threads(work) == []
    assert wrong == []
    assert nets.hook_count(net) == 0


@pytest.mark.usefixtures("switching")
def test_threads_that_share_a_session_take_turns():
    net, _ = nets.build("mlp")
    model = mf.HookedModel(net)
    xs = [torch.randn(2, 5) for _ in range(8)]
    right = [net[0](x) for x in xs]
    wrong = []
    with model.attach("0") as session:

        def work(k):
            for _ in range(50):
                wrong.extend([k] * (not torch.equal(session(xs[k])["0"], right[k])))
                net(xs[k])

        assert in_threads(work) == []
    assert wrong == []
    assert nets.hook_count(net) == 0


# --- nesting


def test_a_run_of_one_model_inside_a_run_of_another():
    inner, outer = nets.build("mlp")[0], nets.Chain()
    a, b = mf.HookedModel(inner), mf.HookedModel(outer)
    y, x = torch.randn(4, 5), torch.randn(2, 3)
    expected = a.record(y, "**")
    found = []
    with b.hooks(mf.Replace("flag", lambda v: (found.append(a.run_with_cache(y, "**")[1]), v)[1])), a.hooks(mf.Ablate("4", channel=0)):
        out, cache = b.run_with_cache(x, "**")
    assert torch.equal(out, outer(x))
    assert list(cache) == list(b.run_with_cache(x, "**")[1])
    for key in expected:
        assert torch.equal(found[0][key], expected[key]) == (key not in ("4", ":out")), key
    assert nets.hook_count(inner) == nets.hook_count(outer) == 0


def test_a_model_wrapped_twice_and_shared_between_two():
    shared = nn.Linear(3, 3)
    one, two = nn.Sequential(shared, nn.ReLU()), nn.Sequential(nn.Tanh(), shared)
    x = torch.randn(2, 3)
    with mf.HookedModel(one).hooks(mf.Ablate("0", channel=1)):
        cache = mf.HookedModel(one).record(x, "0")
        assert bool((cache["0"][:, 1] == 0).all())
    assert torch.equal(mf.HookedModel(two).record(x, "1")["1"], shared(x.tanh()))


# --- DDP


@pytest.fixture
def process_group(tmp_path):
    import torch.distributed as dist

    if not dist.is_available():
        pytest.skip("torch without distributed")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ddp_has_the_names_of_what_it_wraps():
    net, x = nets.build("mlp")
    ddp = nn.parallel.DistributedDataParallel(net)
    model = mf.HookedModel(ddp)
    assert model.module is net
    assert model.hook_names() == mf.HookedModel(net).hook_names()
    plain = net(x)
    out, cache = model.run_with_cache(x, "**")
    assert torch.equal(out, plain)
    assert torch.equal(cache["0"], net[0](x))
    with model.hooks(mf.Ablate("0", channel=0)):
        expected = net(x)
        through = ddp(x)  # calls of the DDP module itself are edited as well, and its backward still reduces
        through.sum().backward()
    assert torch.equal(through, expected)
    assert not torch.equal(through, plain)
    assert all(p.grad is not None for p in net.parameters())


# --- checkpointing


class Checkpointed(nn.Module):
    """Two blocks, each checkpointed or not."""

    reentrant = False

    def __init__(self, on=True):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2)])
        self.head, self.on = nn.Linear(3, 1), on

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.on else block(x)
        return self.head(x)


@pytest.fixture
def pair():
    net = Checkpointed()
    plain = Checkpointed(on=False)
    plain.load_state_dict(net.state_dict())
    return net, plain, torch.randn(4, 3)


def gradients(net, out):
    return torch.autograd.grad(out.sum(), list(net.parameters()))


def test_checkpointed_regions_are_recorded_once(pair):
    net, plain, x = pair
    model, other = mf.HookedModel(net), mf.HookedModel(plain)
    for _ in range(2):
        out, cache = model.run_with_cache(x, "**")
        expected_out, expected = other.run_with_cache(x, "**")
        before = {key: value.clone() for key, value in cache.items()}
        found = gradients(net, out)  # recomputes the blocks: outside the run, so nothing is recorded or overwritten
        assert list(cache) == list(expected)
        assert all(torch.equal(cache[k], expected[k]) and torch.equal(cache[k], before[k]) for k in expected)
        nets.assert_same(found, gradients(plain, expected_out))
    assert nets.hook_count(net) == 0


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # the reentrant kind under no_grad
@pytest.mark.parametrize("reentrant", [False, True])
def test_edits_in_checkpointed_regions_are_refused_where_gradients_are_on(pair, reentrant):
    net, plain, x = pair
    net.reentrant = reentrant
    x.requires_grad_()
    edit = mf.Replace("blocks.0.0", lambda a: a * 2)
    with mf.HookedModel(net).hooks(edit), pytest.raises(UnsupportedModelError) as caught:
        net(x)
    assert (
        str(caught.value)
        == "blocks.0.0#0 lies in a region of activation checkpointing, which the backward pass computes again, and then without this edit. "
        "Switch checkpointing off (`gradient_checkpointing_disable()` on models of transformers), or run under torch.no_grad()."
    )
    with torch.no_grad():
        assert torch.equal(mf.HookedModel(net).run_with_hooks(x, edit), mf.HookedModel(plain).run_with_hooks(x, edit))
    assert nets.hook_count(net) == 0


def test_edits_outside_checkpointed_regions_hold_forward_and_backward(pair):
    net, plain, x = pair
    edits = [mf.Replace("head", lambda a: a.tanh()), mf.Replace("head:in", lambda a: a * 2)]
    out, expected = mf.HookedModel(net).run_with_hooks(x, *edits), mf.HookedModel(plain).run_with_hooks(x, *edits)
    assert torch.equal(out, expected)
    nets.assert_same(gradients(net, out), gradients(plain, expected))


def test_gradients_at_points_of_checkpointed_regions(pair):
    net, plain, x = pair
    x.requires_grad_()
    found, expected = [
        (lambda out, cache: cache.gradients(out.sum()))(*mf.HookedModel(m).run_with_cache(x, "**", grad=True)) for m in (net, plain)
    ]
    assert list(found) == list(expected)
    assert all(torch.equal(found[k], expected[k]) for k in expected)


# --- modes


def test_inference_mode():
    net, x = nets.build("chain")
    plain = net(x)
    model, other = mf.HookedModel(net), mf.HookedModel(nets.twin(net))
    with torch.inference_mode():
        for _ in range(2):
            out, cache = model.run_with_cache(x, "**")
            assert torch.equal(out, plain)
        with model.attach("relu#0") as session:
            streamed = [session(x)["relu#0"] for _ in range(3)]
        with model.hooks(mf.Ablate("a", channel=0)):
            edited = model(x)
    expected = other.run_with_cache(x, "**", clone=True)[1]
    assert all(torch.equal(cache[k], expected[k]) for k in expected)
    assert all(torch.equal(s, expected["relu#0"]) for s in streamed)
    assert torch.equal(edited, other.run_with_hooks(x, mf.Ablate("a", channel=0)))


def test_autocast():
    net, x = nets.build("mlp", torch.float32)
    model = mf.HookedModel(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = net(x)
        kept = nets.captured_by_hand(net, x)
        out, cache = model.run_with_cache(x, "**:*")
        edited = model.run_with_hooks(x, mf.Steer("0", torch.ones(7)))
        assert model.verify(x).equal
        *_, mean = model.stream([x, x], "0", reduce="mean")
    assert torch.equal(out, plain)
    assert cache["0"].dtype == edited.dtype == torch.bfloat16
    assert cache["0:in"].dtype == torch.float32
    for key in cache:
        name = mf.hooks.HookName.parse(key)
        assert torch.equal(cache[key], kept[name.path, name.side][0][0])
    assert mean.values["0"].dtype == torch.float64


# --- generation


def test_generation_runs_one_pass_a_step_and_edits_apply_to_each():
    net, _ = nets.build("gpt2", torch.float32)
    model, prompt = mf.HookedModel(net), torch.tensor([[1, 2, 3]])
    lengths = []
    edit = mf.Replace("transformer.h.0", lambda a: (lengths.append(a.shape[1]), a.flip(-1))[1])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(prompt)
    with torch.no_grad():
        plain = net.generate(prompt, **options)
        with model.hooks(edit):
            found = net.generate(prompt, **options)
        steps, lengths = lengths[:], []
        ids = prompt
        for _ in range(4):  # by hand, without a cache of keys and values
            with model.hooks(mf.Replace("transformer.h.0", lambda a: a.flip(-1))):
                logits = model(ids, use_cache=False).logits[:, -1]
            logits[:, 0] = -torch.inf  # the end token, which min_new_tokens rules out
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        assert torch.equal(net.generate(prompt, **options), plain)
    assert steps == [3, 1, 1, 1]
    assert torch.equal(found, ids)
    assert not torch.equal(found, plain)
    assert nets.hook_count(net) == 0


# --- compilation


def test_a_compiled_model_is_refused_with_the_way_out():
    with pytest.raises(UnsupportedModelError) as caught:
        mf.HookedModel(torch.compile(nn.Linear(3, 2), backend="eager"))
    assert (
        str(caught.value)
        == "This model is compiled: hooks added after compilation are ignored. Wrap the module inside it, HookedModel(model._orig_mod)."
    )


def test_a_model_compiled_in_place_is_refused_with_the_way_out():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    net[0].compile(backend="eager")
    with pytest.raises(UnsupportedModelError) as caught:
        mf.HookedModel(net)
    assert (
        str(caught.value) == "'0': compiled in place by `.compile()`, so what hooks do would be compiled with it. "
        "Wrap the model before that, or set `_compiled_call_impl = None` there to run it uncompiled."
    )
    net[0]._compiled_call_impl = None
    x = torch.ones(1, 3)
    assert torch.equal(mf.HookedModel(net).record(x, "0")["0"], net[0](x))
    net.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"^The model itself: compiled in place"):
        mf.HookedModel(net)


def test_inside_a_compiled_submodule_nothing_is_reached_and_that_is_an_error():
    net, x = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), backend="eager"), nn.Linear(3, 2)), torch.ones(1, 3)
    net(x)  # compiles
    model = mf.HookedModel(net)
    for _ in range(2):
        out, cache = model.run_with_cache(x, "**")
        assert torch.equal(out, net(x))
        assert list(cache) == ["0", "1", ":out"]
        assert cache.unreached == ("0._orig_mod", "0._orig_mod.0", "0._orig_mod.1")
        assert torch.equal(cache["0"], net[0](x))
        with pytest.raises(HookNotReachedError):
            model.record(x, "0._orig_mod.1")
        with pytest.raises(EditNotFiredError):
            model.run_with_hooks(x, mf.Ablate("0._orig_mod.1"))
        assert torch.equal(model.run_with_hooks(x, mf.Ablate("0")), net[1](torch.zeros(1, 3)))
    assert nets.hook_count(net) == 0


# --- memory


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("reduce", [None, "mean"])
def test_a_thousand_batches_need_no_more_memory_than_one(reduce):
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256))
    model, x = mf.HookedModel(net), torch.randn(64, 64)  # 128 KiB a batch at one hook point
    for _ in model.stream((x for _ in range(50)), "0", reduce=reduce):
        pass
    gc.collect()
    before = resident()
    for _ in model.stream((x for _ in range(1000)), "0", reduce=reduce):
        pass
    assert resident() - before <= 5 * 2**20


def test_a_session_keeps_no_tensor_and_frees_without_the_collector():
    net, x = nets.build("mlp")
    model = mf.HookedModel(net)
    gc.collect()
    gc.disable()
    try:
        with model.attach("**:*") as session:
            for _ in range(3):
                cache = session(x)
                refs = [weakref.ref(v) for v in cache.values() if v is not x]
                assert refs
                del cache
                assert [r() for r in refs if r() is not None] == []
            with pytest.raises(HookNotReachedError):
                model.record(x, "0#5")
            kept = weakref.ref(session)
        del session
        assert kept() is None
    finally:
        gc.enable()
