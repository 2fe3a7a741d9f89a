"""What a run holds on to."""

import gc
import weakref

import pytest
import torch

import mechfeat as mf
from mechfeat.errors import HookNotReachedError

from . import nets


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("options", [{}, {"grad": True}, {"clone": True}], ids=str)
@pytest.mark.parametrize("method", ["record", "run_with_cache"])
@pytest.mark.parametrize("name", ["chain", "resnet eval", "points", "gpt2"])
def test_a_deleted_cache_frees_its_tensors_at_once(name, method, options):
    net, x = nets.build(name)
    model = mf.HookedModel(net)
    for request in ("**:*", f"{model.hook_names()[1]}#0"):
        for _ in range(2):
            result = getattr(model, method)(x, request, **options)
            cache = result if method == "record" else result[1]
            # Root inputs share memory with x, but are tensors of their own.
            alive = [weakref.ref(t) for key, t in cache.items() if t is not x]
            refs = [weakref.ref(cache), *alive]
            assert all(r() is not None for r in refs)
            del result, cache
            assert [r() for r in refs if r() is not None] == []


@pytest.mark.usefixtures("no_collector")
def test_a_run_leaves_no_cycles():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)

    def use():
        out, cache = model.run_with_cache(x, "**:*", grad=True)
        cache.gradients(out.sum())
        model.record(x, "a#0")
        model.run_with_hooks(x, mf.Ablate("a", channel=0))
        model.describe(x)

    use()
    gc.collect()
    use()
    assert gc.collect() == 0


@pytest.mark.usefixtures("no_collector")
def test_the_model_is_not_kept_by_anything():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    model.run_with_cache(x)
    with pytest.raises(HookNotReachedError):
        model.run_with_cache(x, "skip")
    ref = weakref.ref(net)
    del net, model
    gc.collect()
    assert ref() is None


def test_early_stop_computes_no_more():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    for _ in range(5):
        cache = model.record(x, "a#0")
    assert net.flag.calls == 0
    assert list(cache) == ["a"]
    assert torch.equal(cache["a"], net.a(x))
