"""Streams on disk: what comes back is what passed, and a folder never holds two runs."""

import json

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import (
    FileFormatError,
    HookNameError,
    HookNotReachedError,
    NonFiniteError,
    OptionError,
    ResumeError,
    ShapeError,
)
from mechfeat.hooks import Shards

from . import nets

NAMES = ["conv1", "fc"]


@pytest.fixture
def net():
    return nets.CNN()


@pytest.fixture
def model(net):
    return mf.HookedModel(net)


@pytest.fixture
def loader():
    return [torch.randn(n, 1, 5, 5) for n in (3, 3, 2)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


class Cut(list):
    """A loader that fails after so many batches."""

    def __init__(self, batches, n):
        super().__init__(batches)
        self.n = n

    def __iter__(self):
        yield from self[: self.n]
        raise ZeroDivisionError


def test_what_comes_back_is_what_passed(model, net, loader, folder):
    shards = model.stream_to_disk(loader, NAMES, folder)
    whole = model.run_with_cache(torch.cat(loader), NAMES)[1]
    caches = [model.run_with_cache(x, NAMES)[1] for x in loader]
    for name in NAMES:
        assert torch.equal(shards[name], torch.cat([c[name] for c in caches]))
        torch.testing.assert_close(shards[name], whole[name])
    for found, cache in zip(shards, caches, strict=True):
        assert set(found) == set(NAMES)
        assert all(torch.equal(found[n], cache[n]) for n in NAMES)
    assert (len(shards), shards.n_inputs, shards.counts, shards.names, shards.complete) == (3, 8, (3, 3, 2), ("conv1", "fc"), True)
    assert Shards.open(folder) == shards
    assert sorted(files(folder)) == ["manifest.json", *(f"shard-00000{k}.safetensors" for k in range(3))]
    assert nets.hook_count(net) == 0


def test_the_manifest_says_what_the_shards_hold(model, loader, folder):
    model.stream_to_disk(loader, NAMES, folder, dtype=torch.float16)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("weights") != manifest.pop("run")
    assert manifest == {
        "format": "mechfeat shards/1",
        "model": "tests.hooks.nets.CNN",
        "training": True,
        "names": ["conv1", "fc"],
        "positions": None,
        "dtype": "float16",
        "points": {
            "conv1": {"shape": [3, 3, 5, 5], "dtype": "float16", "axes": ["sample", "channel", "height", "width"]},
            "fc": {"shape": [3, 2], "dtype": "float16", "axes": ["sample", "channel"]},
        },
        "complete": True,
    }


@pytest.mark.parametrize("positions", ["all", "mean", (1, -1), lambda a: a.amax((1, 2))], ids=["all", "mean", "at one", "largest"])
def test_tables_are_those_of_one_large_batch(model, loader, folder, positions):
    shards = model.stream_to_disk(loader, "conv1", folder, positions=positions)
    expected = model.run_with_cache(torch.cat(loader), "conv1")[1].samples("conv1", positions)
    found = shards.samples("conv1")
    torch.testing.assert_close(found.values, expected.values)
    assert torch.equal(found.inputs, expected.inputs)
    assert (found.n_inputs, found.hook, found.axes) == (expected.n_inputs, expected.hook, expected.axes)
    assert torch.equal(shards["conv1"], found.values)
    assert [set(part) for part in shards] == [{"conv1"}] * 3


def test_another_sample_axis(folder):
    model = mf.HookedModel(nets.encoder(False).eval())
    loader = [torch.randn(4, n, 16) for n in (2, 1)]
    shards = model.stream_to_disk(loader, "layers.0", folder)
    assert shards["layers.0"].shape == (4, 3, 16)
    assert shards.n_inputs == 3


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_run_that_was_cut_short_goes_on(net, loader, folder, tmp_path, n):
    with pytest.raises(ZeroDivisionError):
        mf.HookedModel(net).stream_to_disk(Cut(loader, n), NAMES, folder)
    assert nets.hook_count(net) == 0
    before = files(folder)
    if n:
        assert not Shards.open(folder).complete
        assert Shards.open(folder)["fc"].shape[0] == sum(map(len, loader[:n]))
    (folder / "shard-000001.safetensors.partial").write_bytes(b"half")
    calls = []
    net.register_forward_pre_hook(lambda m, a: calls.append(len(a[0])))
    shards = mf.HookedModel(net).stream_to_disk(loader, NAMES, folder)
    assert len(calls) == 3 - max(n - 1, 0)  # the first is recorded again, the others that exist are skipped
    fresh = mf.HookedModel(net).stream_to_disk(loader, NAMES, tmp_path / "fresh")
    assert all(torch.equal(shards[name], fresh[name]) for name in NAMES)
    after = files(folder)
    assert {k: v for k, v in before.items() if k.startswith("shard")}.items() <= after.items()
    assert set(after) == set(files(tmp_path / "fresh"))
    assert after["manifest.json"] == files(tmp_path / "fresh")["manifest.json"]


def refused(folder, run):
    before = files(folder)
    with pytest.raises(ResumeError) as caught:
        run()
    assert files(folder) == before
    text = str(caught.value)
    head, tail = f"'{folder}' holds the shards of another run (", "). Choose another folder, or delete this one."
    assert text.startswith(head)
    assert text.endswith(tail)
    return text[len(head) : -len(tail)]


def test_another_run_is_refused(model, net, loader, folder):
    def again(model=model, loader=loader, names=NAMES, **options):
        return lambda: model.stream_to_disk(loader, names, folder, **options)

    again()()
    assert refused(folder, again(names=["conv1"])) == "names: ['conv1', 'fc'] there, ['conv1'] here"
    assert (
        refused(folder, again(dtype=torch.float16, positions="mean")) == "positions: None there, mean here; dtype: None there, float16 here"
    )
    net.eval()
    assert refused(folder, again()) == "training: True there, False here"
    net.train()
    assert refused(folder, again(loader=loader[:2])) == "number of batches: 3 there, 2 here"
    assert refused(folder, again(loader=[loader[0], loader[2], loader[1]])).startswith("input of batch 1: ")
    assert refused(folder, again(loader=loader[::-1])).startswith("input of batch 0: ")
    with model.hooks(mf.Ablate("conv1", channel=0)):
        edited = refused(folder, again())
    assert edited == "conv1 of batch 0: the stored values there, other values (an edit, or another function?) here"
    other = nn.Sequential(net)
    assert refused(folder, again(model=mf.HookedModel(other), names=["0.conv1"])).startswith("model: tests.hooks.nets.CNN there, torch.nn.")
    with torch.no_grad():
        net.fc.weight[0, 0] += 1e-12
    assert refused(folder, again()).startswith("weights: ")


def test_a_shard_of_another_run_is_found(model, loader, folder, tmp_path):
    model.stream_to_disk(loader, "fc", folder)
    model.stream_to_disk(loader, "conv1", tmp_path / "other")
    (folder / "shard-000001.safetensors").write_bytes((tmp_path / "other" / "shard-000001.safetensors").read_bytes())
    assert refused(folder, lambda: model.stream_to_disk(loader, "fc", folder)).startswith("run of shard-000001.safetensors: ")
    with pytest.raises(FileFormatError) as caught:
        Shards.open(folder)
    assert (
        str(caught.value)
        == f"'{folder / 'shard-000001.safetensors'}' does not belong to the run of the manifest, or a shard before it is missing."
    )


def test_damage_is_found(model, loader, folder):
    model.stream_to_disk(loader, "fc", folder)
    shard = folder / "shard-000000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:20])
    with pytest.raises(FileFormatError, match="is not a readable safetensors file"):
        Shards.open(folder)
    shard.unlink()
    with pytest.raises(FileFormatError, match="a shard before it is missing"):
        Shards.open(folder)
    shard.write_bytes(whole)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(FileFormatError, match="is not JSON"):
        Shards.open(folder)
    (folder / "manifest.json").write_text('{"format": "other/1"}')
    with pytest.raises(FileFormatError) as caught:
        Shards.open(folder)
    assert str(caught.value) == f"'{folder / 'manifest.json'}' has format 'other/1', and this version reads 'mechfeat shards/1'."
    (folder / "manifest.json").unlink()
    with pytest.raises(FileFormatError) as caught:
        Shards.open(folder)
    assert str(caught.value) == f"'{folder}' has no manifest.json, so it was not written by `model.stream_to_disk`."
    with pytest.raises(FileFormatError) as caught:
        model.stream_to_disk(loader, "fc", folder)
    assert str(caught.value) == f"'{folder}' holds shards without manifest, so what they hold is not known. Choose another folder."


def test_a_dtype_too_narrow_is_refused(folder):
    model = mf.HookedModel(nn.Sequential(nn.Linear(1, 2)))
    with pytest.raises(NonFiniteError) as caught:
        model.stream_to_disk([torch.full((2, 1), 1e6)], "0:in", folder, dtype=torch.float16)
    assert (
        str(caught.value) == "'0:in' holds values up to 1e+06, beyond the range of torch.float16 (at most 6.55e+04). "
        "torch.bfloat16 has the range of float32 in the same space."
    )
    assert torch.equal(
        model.stream_to_disk([torch.tensor([[torch.inf]])], "0:in", folder, dtype=torch.float16)["0:in"].float(),
        torch.tensor([[torch.inf]]).float(),
    )


def test_names_and_shapes_are_checked(model, loader, folder):
    shards = model.stream_to_disk(loader, "conv1", folder)
    with pytest.raises(HookNameError) as caught:
        shards["conv2"]
    assert str(caught.value) == "No hook point matches 'conv2' among the 1 in this folder. Closest: conv1. `shards.names` lists them."
    with pytest.raises(OptionError):
        shards.samples("conv1")
    texts = mf.HookedModel(nn.Conv1d(1, 2, 1))
    shards = texts.stream_to_disk([torch.ones(2, 1, 5), torch.ones(2, 1, 6)], ":out", folder.with_name("texts"))
    with pytest.raises(ShapeError) as caught:
        shards[":out"]
    assert (
        str(caught.value)
        == "The batches of ':out' have the shapes [(2, 5), (2, 6)] a sample, which do not join. Go through them one by one."
    )
    assert [part[":out"].shape[-1] for part in shards] == [5, 6]


def test_batches_must_reach_the_same_points(folder, tmp_path):
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 0 else self.a(x)

    model, x = mf.HookedModel(Routed()), torch.ones(2, 3)
    with pytest.raises(HookNotReachedError) as missing:
        model.stream_to_disk([x, -x], "*", folder)
    assert missing.value.names == ("b",)
    with pytest.raises(ShapeError) as new:
        model.stream_to_disk([-x, x], "*", tmp_path / "other")
    assert (
        str(new.value) == "Batch 1 reached 'b', which the first batch did not reach, so shards would differ in hook points. "
        "Ask for literal names, or stream such batches to a folder of their own."
    )


@pytest.mark.parametrize("options", [{}, {"positions": "mean"}, {"positions": "all", "dtype": torch.float32}], ids=str)
def test_the_estimate_is_what_is_written(model, loader, folder, options):
    estimate = model.estimate(loader[0], NAMES, **options)
    model.stream_to_disk(loader, NAMES, folder, **options)
    sizes = [p.stat().st_size for p in folder.glob("shard-*")]
    # Each shard has a header of one line of JSON.
    assert 0 < sum(sizes) - estimate.total(8) < 3 * 1200
