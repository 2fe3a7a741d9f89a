"""Local files by a stated schema, and messages that name file, line and what is there."""

import gzip
import json
import re

import pytest
import torch

from mechfeat.data.text import load_stream, load_texts
from mechfeat.errors import OptionError, SchemaError


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        data = content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def exactly(message):
    return f"^{re.escape(message)}$"


ROWS = [("a, quoted film", 0), ('he said "no"', 3), ("two\nlines", 1)]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv", "x.jsonl", "x.jsonl.gz"])
def test_every_format_reads_the_same_texts_and_labels(file, name):
    if "jsonl" in name:
        content = "".join(json.dumps({"id": i, "label": y, "text": t}) + "\n" for i, (t, y) in enumerate(ROWS))
    else:
        mark = "\t" if "tsv" in name else ","
        quoted = ['"' + t.replace('"', '""') + '"' for t, _ in ROWS]
        lines = [f"{i}{mark}{t}{mark}{y}" for i, (t, (_, y)) in enumerate(zip(quoted, ROWS))]
        content = "\r\n".join([f"{mark}text{mark}label", *lines, ""])
    read = load_texts(file(name, content))
    assert read.texts == tuple(t for t, _ in ROWS)
    assert torch.equal(read.labels, torch.tensor([0, 3, 1]))
    assert read.classes == ("0", "1", "2", "3")


def test_numbers_of_columns_say_that_there_is_no_header(file):
    path = file("news.csv", '"4","Title","Body, with a comma"\n"1","T","B"\n')
    read = load_texts(path, text=(1, 2), label=0, labels={"1": 0, "2": 1, "3": 2, "4": 3})
    assert read.texts == ("Title Body, with a comma", "T B")
    assert read.labels.tolist() == [3, 0]
    assert read.classes == ("1", "2", "3", "4")


def test_lines_are_texts_and_an_empty_line_is_an_empty_text(file):
    read = load_texts(file("x.txt", "a b\n\nc\n"))
    assert read.texts == ("a b", "", "c")
    assert read.labels is None


def test_quote_marks_that_are_text_do_not_swallow_rows(file):
    path = file("x.tsv", 'text\tlabel\na\t0\n" b\t1\nc\t0\nd "\t1\n')
    message = (
        f"{path}, line 3: a quoted field holds tabs and ends of lines, which looks like several rows. Expected quoted=False where quote "
        "marks are part of the text."
    )
    with pytest.raises(SchemaError, match=exactly(message)):
        load_texts(path)
    read = load_texts(path, quoted=False)
    assert read.texts == ("a", '" b', "c", 'd "')
    assert read.labels.tolist() == [0, 1, 0, 1]
    assert load_texts(file("x.csv", 'text,label\n"a b",0\n'), quoted=False).texts == ('"a b"',)


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.jsonl", "x.txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(file, name):
    content = {"csv": "text,label\na,1\n", "jsonl": '{"text": "a", "label": 1}\n', "txt": "a\n"}[name.split(".")[1]]
    assert load_texts(file(name, "\ufeff" + content)).texts == ("a",)
    assert load_stream(file("s.txt", "\ufeffa\n")).vocabulary.tokens == ("<eos>", "a")


def test_a_map_may_join_labels(file):
    read = load_texts(file("x.csv", "text,label\na,1\nb,5\nc,2\n"), labels={"1": 0, "2": 0, "5": 1})
    assert read.labels.tolist() == [0, 1, 0]
    assert read.classes == ("1/2", "5")


def test_a_file_without_rows_has_no_texts(file):
    assert len(load_texts(file("x.csv", "text,label\n"))) == 0


CASES = [
    ("x.csv", "review,stars\na,1\n", {}, "line 1: the columns are 'review', 'stars'. Expected the columns 'text', 'label'."),
    (
        "x.csv",
        "text,text,label\na,b,1\n",
        {},
        "line 1: the columns are 'text', 'text', 'label'. Expected the columns 'text', 'label', each once.",
    ),
    ("x.csv", "", {}, "line 1: the columns are none. Expected the columns 'text', 'label'."),
    ("x.csv", 'text,label\n"two\nlines",0\nb\n', {}, "line 4: the row has 1 fields. Expected 2 fields, as in the header."),
    ("x.csv", "a,0\nb\n", {"text": 0, "label": 1}, "line 2: the row has 1 fields. Expected more than 1 fields."),
    (
        "x.csv",
        "text,label\na,0\nb,pos\n",
        {},
        "line 3: the label is 'pos', among '0', 'pos'. Expected a class index from 0, or labels={'...': 0, '...': 1} saying which "
        "index each label has.",
    ),
    ("x.csv", "text,label\na,-1\n", {"labels": {"0": 0}}, "line 2: the label is '-1'. Expected one of '0'."),
    ("x.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}\n', {}, "line 2: the keys are 'text'. Expected the keys 'text', 'label'."),
    (
        "x.jsonl",
        '{"text": "", "label": 0}\n{"text": null, "label": 1}\n',
        {},
        "line 2: the text is null. Expected a string, empty for an empty text.",
    ),
    (
        "x.jsonl",
        '{"text": "a", "label": null}\n',
        {},
        "line 1: the label is 'None', among 'None'. Expected a class index from 0, or labels={'...': 0, '...': 1} saying which index each "
        "label has.",
    ),
    ("x.jsonl", "[1]\n", {}, "line 1: the line is of type list. Expected one object a line."),
    ("x.jsonl", "{'text'\n", {}, None),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), CASES)
def test_a_schema_that_does_not_fit_names_file_and_line(file, name, content, options, message):
    path = file(name, content)
    message = message or (
        "line 1: the line is no JSON (Expecting property name enclosed in double quotes at column 2). Expected one object a line."
    )
    with pytest.raises(SchemaError, match=exactly(f"{path}, {message}")) as caught:
        load_texts(path, **options)
    assert caught.value.source == str(path)


@pytest.mark.usefixtures("unchecked")
def test_options_that_are_not_known(file):
    path = file("x.parquet", "")
    with pytest.raises(OptionError, match=exactly("format='parquet' is not known. It can be 'csv', 'tsv', 'jsonl', 'txt'.")):
        load_texts(path)
    message = "text and label=('text', 1) is not known. It can be 'names of columns', 'numbers of columns of a file without header'."
    with pytest.raises(OptionError, match=exactly(message)):
        load_texts(path, label=1, format="csv")
