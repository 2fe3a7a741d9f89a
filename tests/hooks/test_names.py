"""The grammar of hook names."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mechfeat as mf
from mechfeat.errors import EmptyGlobError, HookNameError, OptionError
from mechfeat.hooks.names import HookName, Pattern, patterns, split_unknown

from . import nets, oracle

levels = st.text("ab01_", min_size=1, max_size=3)
paths = st.lists(levels, max_size=4).map(".".join)
places = st.lists(levels, max_size=2).map(lambda parts: "".join("." + p for p in parts))
ports = st.builds(str.__add__, st.sampled_from(["in", "out"]), places)
calls = st.none() | st.integers(0, 12)
names = st.builds(HookName, paths, ports, calls)
globs = st.lists(st.text("ab0*", min_size=1, max_size=4) | st.sampled_from(["*", "**"]), max_size=4).map(".".join)


@given(names)
def test_parse_and_str_are_inverse(name):
    assert HookName.parse(str(name)) == name


@given(paths.filter(bool))
def test_a_path_alone_is_its_output(path):
    assert HookName.parse(path) == HookName(path, "out", None)
    assert HookName.parse(f"{path}:out") == HookName(path)
    assert str(HookName(path)) == path


def test_the_root_is_the_empty_path():
    assert HookName.parse(":out") == HookName.parse("") == HookName("")
    assert str(HookName("", "in", 2)) == ":in#2"
    assert HookName("a", "in.mask").side == "in"


@given(globs, paths)
def test_globs_match_as_written_out(pattern, path):
    assert Pattern.parse(pattern).matches_path(path) == oracle.matches_path(pattern, path)


@given(st.lists(levels, min_size=1, max_size=4), st.data())
def test_globs_made_from_a_path_match_it(parts, data):
    path, pattern = ".".join(parts), []
    for part in parts:
        pattern += ["**"] * data.draw(st.integers(0, 1))
        k = data.draw(st.integers(0, len(part)))
        pattern.append(data.draw(st.sampled_from([part, "*", part[:k] + "*", "*" + part[k:]])))
    assert Pattern.parse(".".join(pattern)).matches_path(path)


@given(paths, paths)
def test_literal_paths_match_themselves_alone(a, b):
    assert Pattern.parse(a).matches_path(b) == (a == b)


@pytest.mark.parametrize(
    ("text", "selected", "other"),
    [
        ("x", ["x", "x:out.0", "x#1", "x:out.a.b#2"], ["x:in", "y", "x.y"]),
        ("x:in", ["x:in", "x:in.0", "x:in.mask#1"], ["x", "x:out.0"]),
        ("x:out.0", ["x:out.0", "x:out.0#3"], ["x", "x:out.00", "x:out.1", "x:out.0.1"]),
        ("x:out.*", ["x:out.0", "x:out.logits"], ["x", "x:out.0.1"]),
        ("x:out.**", ["x:out.0", "x:out.0.1"], ["x", "x:in.0"]),
        ("x:*", ["x", "x:in", "x:in.0", "x:out.1"], ["y"]),
        ("x#1", ["x#1", "x:out.0#1"], ["x#0", "x#11", "x:in#1"]),
        ("x#*", ["x#0", "x#7"], ["x:in#0"]),
    ],
)
def test_ports_and_calls(text, selected, other):
    pattern = Pattern.parse(text)
    assert [n for n in selected if not pattern.selects(HookName.parse(n))] == []
    assert [n for n in other if pattern.selects(HookName.parse(n))] == []


@pytest.mark.parametrize("text", ["a:in.", "a#", "a#x", "a#-1", "a#1#2", "a:in:out", "a#1:in", "a:"])
def test_malformed_names(text):
    with pytest.raises(OptionError) as caught:
        HookName.parse(text)
    assert str(caught.value) == f"hook name={text!r} is not known. It can be 'path', 'path:in', 'path:out.0', 'path#1', 'path:in.mask#*'."


@pytest.mark.parametrize("text", ["a.*", "**", "a:*", "a#*"])
def test_a_literal_name_has_no_star(text):
    with pytest.raises(OptionError) as caught:
        HookName.parse(text)
    assert str(caught.value) == f"hook name={text!r} is not known. It can be \"a literal name, without '*'\"."


def test_requests():
    known = ["a", "b.c", ":out"]
    assert [p.text for p in patterns(None, known)] == ["**"]
    assert [p.text for p in patterns("a", known)] == ["a"]
    assert [p.text for p in patterns(["b.c", "a", "b.c"], known)] == ["b.c", "a"]
    assert [(p.text, p.is_glob) for p in patterns(lambda n: n != "a", known)] == [("b.c", True), (":out", True)]
    assert [p.is_glob for p in patterns(["a", "a#*", "*", "a:*"], known)] == [False, False, True, True]


def test_known_and_unknown_requests_are_told_apart():
    found, unknown = split_unknown([Pattern.parse(t) for t in ("a", "b.*", "x", "y*")], ["", "a", "b.c", "b.d"])
    assert [(p.text, paths) for p, paths in found] == [("a", ["a"]), ("b.*", ["b.c", "b.d"])]
    assert [p.text for p in unknown] == ["x", "y*"]


@pytest.mark.parametrize("request_", ["**", "layer2.*.conv1", "*.*.conv*", "layer3.**", "**.bn1", "*", "layer1.0.relu#0"])
def test_a_glob_records_what_the_literal_matcher_selects(request_):
    net, x = nets.build("resnet eval")
    pattern = request_.partition("#")[0]
    cache = mf.HookedModel(net).run_with_cache(x, request_)[1]
    found = {mf.hooks.HookName.parse(k).path for k in cache} | set(cache.unreached)
    expected = {path for path, _ in net.named_modules() if oracle.matches_path(pattern, path)}
    assert found == expected


def test_shared_modules_answer_to_all_their_paths():
    net, x = nets.build("chain")
    net.again = net.a
    model = mf.HookedModel(net)
    assert "again" not in model.hook_names()
    cache = model.record(x, "again")
    assert list(cache) == ["a"]
    assert cache["again"] is cache["a"]
    assert cache.calls("again") == 1
    assert cache.axes("again") == ("sample", "channel")
    with model.hooks(mf.Ablate("again", channel=1)):
        assert (model.record(x, "a")["a"][:, 1] == 0).all()


def test_unknown_names_list_near_matches():
    net, x = nets.build("cnn")
    model = mf.HookedModel(net)
    with pytest.raises(HookNameError) as caught:
        model.run_with_cache(x, "conv3")
    assert (
        str(caught.value)
        == "No hook point matches 'conv3' among the 6 in this model. Closest: conv2, conv1. `model.hook_names()` lists them."
    )
    assert caught.value.name == "conv3"
    assert caught.value.known == (":out", "conv1", "conv2", "relu", "fc", "unused")
    with pytest.raises(EmptyGlobError) as caught:
        model.run_with_cache(x, "conv1.*")
    assert (
        str(caught.value) == "The pattern 'conv1.*' matches none of the 6 hook points in this model. Closest: conv1, conv2. "
        "`*` stays within one level, `**` crosses levels; `model.hook_names()` lists the names."
    )


def test_a_port_that_does_not_exist_is_an_unknown_name():
    model = mf.HookedModel(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(HookNameError) as caught:
        model.record(torch.ones(1, 2), "0:pattrn")
    assert str(caught.value) == "No hook point matches '0:pattrn' among the 3 in this model. `model.hook_names()` lists them."
    with pytest.raises(EmptyGlobError):
        model.record(torch.ones(1, 2), "*:pattrn")
