"""Hugging Face data sets, without a network: a local folder, a cache, and what is in neither."""

import sys

import pytest

from mechfeat.data.text import load_hub
from mechfeat.errors import MissingPackageError, NotCachedError, SchemaError
from tests import peers


@pytest.fixture
def datasets():
    return peers.needs("datasets")


@pytest.fixture
def folder(tmp_path, datasets):
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.csv").write_text("sentence,label\nnot bad,3\nbad,0\n")
    return tmp_path / "reviews"


def test_a_local_folder(folder, tmp_path):
    read = load_hub(str(folder), text="sentence", cache_dir=tmp_path / "cache")
    assert read.texts == ("not bad", "bad")
    assert read.labels.tolist() == [3, 0]
    assert load_hub(str(folder), text="sentence", label=None, cache_dir=tmp_path / "cache").labels is None


def test_a_data_set_in_the_cache(folder, tmp_path):
    """What ``load_dataset`` leaves after a download: the files of the builder, under the name of the repository."""
    load_hub(str(folder), text="sentence", cache_dir=tmp_path / "cache")
    (built,) = (p for p in (tmp_path / "cache").iterdir() if p.is_dir() and "reviews" in p.name)
    built.rename(tmp_path / "cache" / "somebody___reviews")
    read = load_hub("somebody/reviews", text="sentence", cache_dir=tmp_path / "cache")
    assert read.texts == ("not bad", "bad")


def test_what_is_not_there_is_not_downloaded(folder, tmp_path, monkeypatch, datasets):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(NotCachedError) as caught:
        load_hub("nobody/reviews", split="test", cache_dir=tmp_path / "cache")
    assert caught.value.name == "nobody/reviews"
    assert "OfflineModeIsEnabled" in repr(caught.value.__cause__)
    with pytest.raises(NotCachedError):
        load_hub(str(folder), split="test", cache_dir=tmp_path / "cache")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_columns_are_checked(folder, tmp_path):
    with pytest.raises(SchemaError) as caught:
        load_hub(str(folder), cache_dir=tmp_path / "cache")
    assert str(caught.value) == f"{folder}[train]: the columns are 'sentence', 'label'. Expected the columns 'text', 'label'."


def test_a_missing_text_is_no_text(tmp_path, datasets):
    (tmp_path / "gaps").mkdir()
    (tmp_path / "gaps" / "train.jsonl").write_text('{"text": "bad", "label": 0}\n{"text": null, "label": 1}\n')
    with pytest.raises(SchemaError) as caught:
        load_hub(str(tmp_path / "gaps"), cache_dir=tmp_path / "cache")
    assert str(caught.value) == f"{tmp_path / 'gaps'}[train], line 1: the text is null. Expected a string, empty for an empty text."


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError):
        load_hub("nobody/reviews")
