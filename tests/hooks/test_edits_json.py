"""Edits as text: what is read does, bit for bit, what was written."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechfeat as mf
from mechfeat.errors import DtypeError, FileFormatError
from mechfeat.hooks import Ablate, Edit, Patch, ProjectOut, Replace, Scale, Steer, edits_from_json, edits_to_json

from . import nets

AXES = ("sample", "channel")
KINDS = [Ablate, Ablate, Ablate, Steer, Steer, ProjectOut, Scale, Patch]


def every_edit():
    return [
        Ablate("a", channel=[0, -1]),
        Ablate("a", method="mean", reference=torch.randn(5, 3), over=["sample"]),
        Ablate("a", method="resample", seed=7, sample=1),
        Steer("a", torch.randn(3), 0.1 + 0.2),
        Steer("a", mf.Feature("a", torch.randn(3)), -2.0),
        ProjectOut("a", torch.randn(3), 1 / 3),
        Scale("a", 1e-300),
        Patch("a", torch.randn(2, 3), channel=2),
    ]


@pytest.mark.parametrize("i", range(len(KINDS)))
def test_what_is_read_does_what_was_written(i):
    x, edit = torch.randn(2, 3), every_edit()[i]
    (read,) = edits_from_json(edits_to_json([edit]))
    assert type(read) is KINDS[i]
    assert str(read) == str(edit)
    assert read.where == edit.where
    assert torch.equal(read.apply(x, AXES), edit.apply(x, AXES))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8]
)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (), (1,)])
def test_tensors_come_back_bit_for_bit(dtype, shape):
    x = torch.randn(shape).to(dtype)
    (read,) = edits_from_json(edits_to_json([Patch("a", x)]))
    assert read.source.dtype == dtype
    assert read.source.shape == shape
    assert torch.equal(read.source, x)


@given(st.integers(0, 2**63 - 1))
def test_any_bit_pattern_survives(bits):
    x = torch.tensor([bits, ~bits]).view(torch.float64)
    (read,) = edits_from_json(edits_to_json([Patch("a", x[None].T)]))
    assert torch.equal(read.source.view(torch.int64)[:, 0], x.view(torch.int64))


@given(st.floats(allow_nan=False))
def test_numbers_come_back_bit_for_bit(factor):
    (read,) = edits_from_json(edits_to_json([Scale("a", factor)]))
    assert read.factor == factor


def test_a_normalised_direction_is_not_normalised_again():
    for seed in range(50):
        d = torch.randn(7, generator=torch.Generator().manual_seed(seed))
        edit = ProjectOut("a", d)
        assert torch.equal(edits_from_json(edits_to_json([edit]))[0].direction, edit.direction)


def test_a_cache_comes_back_with_names_and_calls():
    model, x, y = mf.HookedModel(nets.Chain()), torch.randn(2, 3), torch.randn(2, 3)
    cache = model.run_with_cache(y)[1]
    one = model.run_with_cache(y, "relu#1")[1]
    edits = [Patch("a", cache), Patch("relu#*", cache), Patch("*", cache, channel=0), Patch("relu#1", one)]
    read = edits_from_json(edits_to_json(edits))
    assert list(read[0].source) == list(cache)
    assert list(read[3].source) == ["relu#1"]
    assert read[0].source.axes("a") == cache.axes("a")
    assert all(torch.equal(read[0].source[k], cache[k]) for k in cache)
    for edit, again in zip(edits, read):
        if edit.hook == "*":
            continue
        assert torch.equal(model.run_with_hooks(x, edit), model.run_with_hooks(x, again))


def test_order_is_kept():
    assert [type(e) for e in edits_from_json(edits_to_json(every_edit()))] == KINDS
    assert edits_from_json(edits_to_json([])) == []


def test_functions_and_own_classes_are_refused():
    class Mine(Edit):
        pass

    with pytest.raises(DtypeError) as caught:
        edits_to_json([Ablate("a"), Replace("a", torch.neg, channel=0), Mine("b")])
    assert (
        str(caught.value) == "Replace('a', fn=neg, channel=0); Mine('b') cannot be written as JSON, which holds no Python functions or"
        " classes of your own. Ablate, Patch, ProjectOut, Scale, Steer can."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "The text is not JSON: "),
        ("[]", "The text has format None, and this version reads 'mechfeat-edits/1'. Give what edits_to_json wrote."),
        ('{"format": "x"}', "The text has format 'x', and this version reads 'mechfeat-edits/1'. Give what edits_to_json wrote."),
    ],
)
def test_text_of_something_else(text, message):
    with pytest.raises(FileFormatError) as caught:
        edits_from_json(text)
    assert str(caught.value).startswith(message)


def test_damaged_text_says_which_edit():
    whole = json.loads(edits_to_json([Ablate("a"), Patch("a", torch.zeros(2, 3))]))

    def damaged(change):
        tree = json.loads(json.dumps(whole))
        change(tree["edits"][1])
        with pytest.raises(FileFormatError) as caught:
            edits_from_json(json.dumps(tree))
        assert str(caught.value).startswith("Edit 1 of the text is not as edits_to_json writes it (")
        assert str(caught.value).endswith("). It is damaged, or of another version.")

    damaged(lambda e: e.update(type="Replace"))
    damaged(lambda e: e.pop("hook"))
    damaged(lambda e: e["options"].update(other=1))
    damaged(lambda e: e["options"].pop("source"))
    damaged(lambda e: e["options"]["source"].update(shape=[2, 4]))
    damaged(lambda e: e["options"]["source"].update(base64="AAA"))
    damaged(lambda e: e["options"]["source"].update(dtype="nn"))
    damaged(lambda e: e["where"].update(channel=[]))
