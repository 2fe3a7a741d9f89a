import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mechfeat.errors import DtypeError, FileFormatError
from mechfeat.features import Feature, FeatureSet, Finding, Samples, load, save, storable
from tests.features.same import assert_same


@storable
@dataclass(frozen=True)
class Holder:
    content: Any


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["$tensor", "$type", "$tuple", "$dict"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(content=json_values)
def test_json_values_come_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("values") / "value.safetensors"
    save(Holder(content), path)
    assert_same(load(path), Holder(content))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.empty(0, 3),
        torch.tensor([math.nan, math.inf, -0.0]),
        torch.arange(6).view(2, 3).T,
        torch.ones(3).expand(2, 3),
        torch.tensor([True, False]),
        torch.tensor([1.0, 3e-40], dtype=torch.bfloat16),
        torch.tensor([1 + 2j]),
    ],
    ids=["scalar", "empty", "special", "transposed", "expanded", "bool", "bfloat16", "complex"],
)
def test_tensors_come_back_bit_for_bit(tmp_path, tensor):
    save(Holder([tensor]), tmp_path / "t")
    found = load(tmp_path / "t").content[0]
    assert found.dtype == tensor.dtype
    assert torch.equal(found.contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))


def test_nested_values_come_back(tmp_path):
    feature = Feature("conv1", torch.tensor([3.0, 4.0]), "edge", {"method": "mean", "limits": (1, 2.5), "by": [None, True]})
    samples = Samples(torch.ones(2, 2), torch.tensor([0, 1]), "conv1", 2, ("sample", "channel"), (2, 2))
    value = Finding(
        value=0.5, n=3, seed=1, null=torch.linspace(0, 1, 5), interval=(0.25, 0.75),
        settings={"feature": feature, "samples": [samples, {"set": FeatureSet("x", torch.eye(2), ("a", "b"))}]},
    )  # fmt: skip
    value.save(tmp_path / "finding.safetensors")
    assert_same(Finding.load(tmp_path / "finding.safetensors"), value)


def test_tensors_that_share_storage_come_back_apart(tmp_path):
    base = torch.arange(4.0)
    save(Holder([base, base[:2], base]), tmp_path / "shared")
    assert_same(load(tmp_path / "shared"), Holder([base, base[:2].clone(), base]))


def test_gradients_stay_behind(tmp_path):
    save(Holder(torch.ones(2, requires_grad=True) * 2), tmp_path / "g")
    assert_same(load(tmp_path / "g"), Holder(torch.full((2,), 2.0)))


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "value"
    save(Holder(1), path)
    with pytest.raises(DtypeError):
        save(Holder(object()), path)
    assert_same(load(path), Holder(1))
    save(Holder(2), path)
    assert_same(load(path), Holder(2))
    assert [p.name for p in tmp_path.iterdir()] == ["value"]


def test_a_subclass_loads_as_its_base(tmp_path):
    @storable
    @dataclass(frozen=True, kw_only=True)
    class Special(Finding):
        extra: torch.Tensor

    special = Special(value=1.0, n=2, seed=3, extra=torch.ones(2))
    special.save(tmp_path / "s")
    assert_same(Finding.load(tmp_path / "s"), special)


def test_wrong_class(tmp_path):
    path = tmp_path / "f"
    Feature("conv1", torch.ones(2)).save(path)
    with pytest.raises(FileFormatError) as error:
        Finding.load(path)
    assert str(error.value) == f"{str(path)!r} holds a Feature, not a Finding. Load it with Feature.load."


@pytest.mark.parametrize("content", [b"", b"not a tensor file", b"\xff" * 64])
def test_a_file_of_something_else(tmp_path, content):
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as error:
        load(path)
    cause = error.value.__cause__
    assert str(error.value) == f"{str(path)!r} is not a readable safetensors file: {cause}"


def test_a_truncated_file(tmp_path):
    path = tmp_path / "f"
    save(Holder(torch.ones(100)), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FileFormatError) as error:
        load(path)
    assert str(error.value) == f"{str(path)!r} is not a readable safetensors file: {error.value.__cause__}"


def test_a_safetensors_file_of_another_program(tmp_path):
    path = tmp_path / "f"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(FileFormatError) as error:
        load(path)
    assert (
        str(error.value)
        == f"{str(path)!r} has format None, and this version reads 'mechfeat/1'. It was written by something else or by another version."
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "KeyError: 'value'"),
        ("{", "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (json.dumps({"$tensor": "value.lost"}), "KeyError: 'value.lost'"),
        (json.dumps({}), "KeyError: '$type'"),
        (
            json.dumps({"$type": "Holder", "fields": {"other": 1}}),
            "TypeError: Holder.__init__() got an unexpected keyword argument 'other'",
        ),
    ],
)
def test_a_header_that_does_not_fit(tmp_path, unchecked, value, reason):
    path = tmp_path / "f"
    save_file({}, path, metadata={"format": "mechfeat/1"} | ({} if value is None else {"value": value}))
    with pytest.raises(FileFormatError) as error:
        load(path)
    assert (
        str(error.value)
        == f"{str(path)!r} has a header that does not describe its tensors ({reason}). It is damaged, or a class in it has changed since."
    )


def test_a_class_that_is_not_known_here(tmp_path):
    path = tmp_path / "f"
    save_file({}, path, metadata={"format": "mechfeat/1", "value": json.dumps({"$type": "Unheard", "fields": {}})})
    with pytest.raises(FileFormatError) as error:
        load(path)
    assert str(error.value) == "The file holds a 'Unheard', which is not known here. Import the module that defines it first."


def test_an_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")


@dataclass
class Unregistered:
    x: int = 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            Unregistered(),
            "value.content is a Unregistered, which is not registered for saving. "
            "Decorate the class with `mechfeat.features.storable`.",
        ),
        (
            {"a": [object()]},
            "value.content.a.0 is a object, which cannot be saved. "
            "Tensors, numbers, text, lists, tuples, mappings and registered dataclasses can.",
        ),
        ({1: 2}, "value.content has the key 1 of type int; only text keys can be saved."),
    ],
)  # fmt: skip
def test_what_cannot_be_saved(tmp_path, content, message):
    with pytest.raises(DtypeError) as error:
        save(Holder(content), tmp_path / "f")
    assert str(error.value) == message
    assert not (tmp_path / "f").exists()


def test_keys_that_look_like_paths_stay_apart(tmp_path):
    value = Holder({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)})
    save(value, tmp_path / "f")
    assert_same(load(tmp_path / "f"), value)
