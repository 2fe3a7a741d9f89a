"""Streaming: what a session, a stream and its reductions give is what ``record`` gives, batch by batch."""

import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mechfeat as mf
from mechfeat.errors import HookNameError, HookNotReachedError, OptionError, SelectorError, SessionClosedError

from . import nets


def assert_same_cache(found, expected):
    assert list(found) == list(expected)
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
        assert found.axes(key) == expected.axes(key)


def batches(x, n=4):
    return [x + k if x.is_floating_point() else (x + k) % 13 for k in range(n)]


# --- attach


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("clone", [None, True])
@pytest.mark.parametrize("name", nets.MODELS)
def test_a_session_gives_what_recording_gives(name, clone, stop):
    net, x = nets.build(name)
    model, other = mf.HookedModel(net), mf.HookedModel(nets.twin(net))
    tables = nets.hook_tables(net)
    for request in ("**:*", "pair:out.0" if name == "tuples" else model.hook_names()[1]):
        kept = []
        with model.attach(request, clone=clone, stop=stop) as session:
            for batch in batches(x):
                kept.append((session(batch), other.run_with_cache(batch, request)[1]))
        for found, expected in kept:  # after the last batch: none was overwritten by a later one
            assert_same_cache(found, expected)
    assert nets.hook_tables(net) == tables


def test_a_session_stops_after_the_last_requested_point():
    net, x = nets.build("chain")
    with mf.HookedModel(net).attach("a") as session:
        assert session(x).reached_end
        for _ in range(3):
            cache = session(x)
            assert not cache.reached_end
            assert torch.equal(cache["a"], net.a(x))
        assert net.flag.calls == 1
        assert session(x[:2]).reached_end  # another kind of input
    with mf.HookedModel(net).attach("a", stop=False) as session:
        assert all(session(x).reached_end for _ in range(3))


def test_hooks_stay_in_place_and_other_calls_are_not_recorded():
    net, x = nets.build("points")
    model = mf.HookedModel(net)
    with model.attach(["one", "mid"]) as session:
        before = nets.hook_tables(net)
        first = session(x)
        plain = net(x + 1)
        assert mf.points.active() == ()
        second = session(x)
        assert nets.hook_tables(net) == before
        assert list(first) == list(second) == ["one", "mid"]
        nets.assert_same(model(x + 1), plain)
        assert_same_cache(model.record(x, ["one", "mid"]), first)
        with model.attach("two") as inner:
            assert list(inner(x)) == ["two"]
            assert list(session(x)) == ["one", "mid"]
    assert nets.hook_count(net) == 0


@pytest.mark.parametrize("name", ["one", "mid"])
def test_edits_opened_inside_or_outside_a_session_come_before_recording(name):
    net, x = nets.build("points")
    model = mf.HookedModel(net)
    clean = model.record(x, name)[name]
    with model.hooks(mf.Ablate(name, channel=1)):
        edited = model.record(x, name)[name]
        with model.attach(name) as session:
            assert torch.equal(session(x)[name], edited)
    assert not torch.equal(edited, clean)
    with model.attach(name) as session:
        for _ in range(2):
            assert torch.equal(session(x)[name], clean)
            with model.hooks(mf.Ablate(name, channel=1)):
                assert torch.equal(session(x)[name], edited)
                assert torch.equal(session(x)[name], edited)
        assert torch.equal(session(x)[name], clean)
    assert nets.hook_count(net) == 0


def test_early_stop_inside_edits_leaves_their_count_right():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    model.record(x, "a")
    with model.hooks(mf.Ablate("a", channel=1)), model.attach("a") as session:
        for _ in range(3):
            assert (session(x)["a"][:, 1] == 0).all()
        model(x)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_session_usable(error):
    net, x = nets.build("chain")
    with mf.HookedModel(net).attach("b") as session:
        expected = session(x)["b"]
        net.flag.error = error()
        for _ in range(3):
            with pytest.raises(error):
                session(x)
        net.flag.error = None
        assert torch.equal(session(x)["b"], expected)
    assert nets.hook_count(net) == 0


def test_an_error_in_the_block_removes_the_hooks():
    net, x = nets.build("chain")
    kept = []

    def fail():
        with mf.HookedModel(net).attach() as session:
            kept.append(session)
            session(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert nets.hook_count(net) == 0
    with pytest.raises(SessionClosedError) as caught:
        kept[0](x)
    assert (
        str(caught.value)
        == "This session is closed: its hooks were removed when the `with model.attach(...)` block ended. Call it inside the block, or use"
        " `model.record`."
    )


def test_names_are_checked():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    with model.attach("skip") as session, pytest.raises(HookNotReachedError):
        session(x)
    with model.attach("relu_") as session, pytest.raises(HookNameError):
        session(x)


def test_a_session_is_faster_than_recording_each_batch():
    net, x = nets.build("mlp")
    model = mf.HookedModel(net)
    names = ["0", "2"]

    def seconds(call):
        for _ in range(20):
            call(x)
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            for _ in range(100):
                call(x)
            best = min(best, time.process_time() - start)
        return best

    with model.attach(names) as session:
        attached = seconds(session)
    each = seconds(lambda x: model.record(x, names))
    # Measured 1.9 to 3.1 times faster on nets of 20 to 60 modules; the bound leaves room for a busy machine.
    assert attached < 0.8 * each


# --- stream


def test_a_stream_gives_each_batch():
    net, x = nets.build("cnn")
    model = mf.HookedModel(net)
    loader = batches(x)
    found = list(model.stream(loader, ["conv1", "relu"]))
    for cache, batch in zip(found, loader, strict=True):
        assert_same_cache(cache, model.run_with_cache(batch, ["conv1", "relu"])[1])
        assert not any(v.requires_grad for v in cache.values())
    assert torch.is_grad_enabled()
    assert nets.hook_count(net) == 0
    assert mf.points.active() == ()


def test_a_function_reduces_each_batch():
    net, x = nets.build("mlp")
    model = mf.HookedModel(net)
    found = list(model.stream(batches(x), "0", reduce=lambda cache: float(cache["0"].max())))
    assert found == [float(net[0](b).detach().max()) for b in batches(x)]


@pytest.mark.parametrize("name", ["cnn", "encoder sequence first", "chain"])
def test_the_running_mean_is_that_of_all_samples(name):
    net, x = nets.build(name, torch.float32)
    model = mf.HookedModel(net)
    axis = {"encoder sequence first": 1}.get(name, 0)
    loader = [x, x.narrow(axis, 0, 1) * 3, x + 1, x.narrow(axis, 0, 0)] if name == "cnn" else [x, x.narrow(axis, 0, 1) * 3, x + 1]
    *_, last = model.stream(loader, "**", reduce="mean")
    caches = [model.run_with_cache(b, "**")[1] for b in loader]
    for key in caches[0]:
        sample = caches[0].axes(key).index("sample")
        whole = torch.cat([c[key] for c in caches], sample).double()
        assert last.count[key] == whole.shape[sample]
        torch.testing.assert_close(last.values[key], whole.mean(sample), rtol=1e-12, atol=1e-12)


def test_the_mean_of_float16_does_not_overflow():
    net = nn.Identity()
    *_, last = mf.HookedModel(net, axes={"": ("sample", "channel")}).stream(
        [torch.full((3, 2), 6e4, dtype=torch.float16)] * 3, ":out", reduce="mean"
    )
    assert torch.equal(last.values[":out"], torch.full((2,), 6e4))  # the sum of the three batches is beyond the range of float16


def test_means_need_one_shape_and_a_sample_axis():
    model = mf.HookedModel(nn.Conv1d(1, 2, 1))
    with pytest.raises(SelectorError) as caught:
        list(model.stream([torch.ones(2, 1, 5), torch.ones(2, 1, 6)], ":out", reduce="mean"))
    assert (
        str(caught.value) == "':out' has shape (2, 6) a sample in this batch and had (2, 5) before, so their mean is not defined. "
        "Batches of one shape are needed, or reduce with a function."
    )
    with pytest.raises(SelectorError) as caught:
        list(mf.HookedModel(nn.Identity(), axes={"": ("a", "b")}).stream([torch.ones(2, 2)], ":out", reduce="mean"))
    assert (
        str(caught.value)
        == "':out' has axes ('a', 'b'), of which none is known to be the sample. Name them with HookedModel(net, axes=...), "
        "or reduce with a function."
    )


def test_options_are_checked_at_the_call():
    model = mf.HookedModel(nn.Linear(3, 2))
    with pytest.raises(OptionError) as caught:
        model.stream([torch.ones(1, 3)], reduce="median")
    assert str(caught.value) == "reduce='median' is not known. It can be 'mean', 'a function of the cache', None."


def test_batches_of_data_loaders():
    net = nn.Linear(3, 2)
    model, x = mf.HookedModel(net), torch.randn(5, 3)
    alone = DataLoader(TensorDataset(x), batch_size=2)
    labelled = DataLoader(TensorDataset(x, torch.arange(5)), batch_size=2)
    for caches in (model.stream(alone, ":out"), model.stream(labelled, ":out", inputs=lambda b: b[0], progress=False)):
        assert torch.equal(torch.cat([c[":out"] for c in caches]), net(x).detach())
    with pytest.raises(OptionError) as caught:
        list(model.stream(labelled, ":out"))
    assert (
        str(caught.value) == "The loader yields lists of 2, and which part the model takes is not known. Say it with inputs=, for instance "
        "inputs=lambda batch: batch[0]."
    )
    assert nets.hook_count(net) == 0


def test_a_stream_left_early_removes_its_hooks():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    stream = model.stream(batches(x), "a")
    assert nets.hook_count(net) == 0
    next(stream)
    assert mf.points.active() == ()
    nets.assert_same(model(x), net(x))
    stream.close()
    assert nets.hook_count(net) == 0
    for _ in model.stream(batches(x), "a"):
        break
    assert nets.hook_count(net) == 0


def test_two_streams_of_one_model_side_by_side():
    net, x = nets.build("chain")
    model = mf.HookedModel(net)
    for a, b in zip(model.stream(batches(x), "a"), model.stream(batches(x), ["a", "c"]), strict=True):
        assert list(a) == ["a"]
        assert list(b) == ["a", "c"]
        assert torch.equal(a["a"], b["a"])
    assert nets.hook_count(net) == 0


def test_progress_shows_a_bar(capsys):
    list(mf.HookedModel(nn.Linear(3, 2)).stream([torch.ones(1, 3)] * 3, ":out", progress=True))
    assert "3/3" in capsys.readouterr().err


# --- estimate


def test_the_estimate_is_the_size_of_what_is_recorded():
    net, x = nets.build("cnn", torch.float32)
    model = mf.HookedModel(net)
    found = model.estimate(x, ["conv1", "fc"])
    assert dict(found.by_name) == {"conv1": 3 * 25 * 4, "fc": 2 * 4}
    assert found.per_sample == 308
    assert found.total(1000) == 308_000
    assert found.n == 2
    assert (
        str(found) == "conv1              300 bytes a sample\nfc                   8 bytes a sample\ntogether           308 bytes a sample"
    )
    cache = model.record(x, ["conv1", "fc"])
    assert sum(v.nbytes for v in cache.values()) == found.total(len(x))


def test_the_estimate_needs_a_sample_axis():
    with pytest.raises(SelectorError) as caught:
        mf.HookedModel(nn.Identity(), axes={"": ("a", "b")}).estimate(torch.ones(2, 2))
    assert (
        str(caught.value) == "The number of samples of the batch cannot be told from the sample axes recorded (none). Name the axes with "
        "HookedModel(net, axes=...), or leave out what has another number of rows."
    )
