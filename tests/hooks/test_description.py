"""The table of hook points."""

import torch
from torch import nn

import mechfeat as mf

from . import nets


def test_whole_table():
    net = nets.CNN()
    assert (
        str(mf.HookedModel(net).describe(torch.randn(2, 1, 5, 5)))
        == "hook name  role  kind    axes                                         calls\n"
        "conv1      conv  Conv2d  sample=2 channel=3 height=5 width=5 float64  1\n"
        "relu       act   ReLU    sample=2 channel=4 height=5 width=5 float64  2\n"
        "conv2      conv  Conv2d  sample=2 channel=4 height=5 width=5 float64  1\n"
        "fc               Linear  sample=2 channel=2 float64                   1\n"
        ":out             CNN     sample=2 channel=2 float64                   1\n"
        "unused           Linear                                               not reached"
    )


def test_whole_table_without_an_input():
    description = mf.HookedModel(nets.CNN()).describe()
    assert (
        str(description) == repr(description) == "hook name  role  kind    axes  calls\n"
        ":out             CNN\n"
        "conv1      conv  Conv2d\n"
        "conv2      conv  Conv2d\n"
        "relu       act   ReLU\n"
        "fc               Linear\n"
        "unused           Linear"
    )
    assert [row.reached for row in description] == [None] * 6
    assert len(description) == 6
    assert description[0].name == ":out"


def test_rows():
    rows = {r.name: r for r in mf.HookedModel(nets.CNN()).describe(torch.randn(2, 1, 5, 5))}
    assert rows["relu"] == mf.hooks.PointRow("relu", "ReLU", ("sample", "channel", "height", "width"), (2, 4, 5, 5), "float64", 2, "act")
    assert rows["relu"].reached is True
    assert rows["unused"].reached is False
    assert rows["unused"].calls == 0


def test_points_and_places():
    model = mf.HookedModel(nets.Points())
    assert model.hook_names() == [":out", "one", "two"]
    description = model.describe(torch.randn(2, 3))
    assert [(r.name, r.kind) for r in description] == [
        ("one.h", "point"), ("one", "Block"), ("mid", "point"), ("two.h", "point"), ("two", "Block"), ("end", "point"), (":out", "Points"),
    ]  # fmt: skip
    assert model.hook_names() == [":out", "one", "two", "one.h", "mid", "two.h", "end"]
    assert [r.name for r in model.describe()] == model.hook_names()
    names = [r.name for r in mf.HookedModel(nets.Tuples()).describe(torch.randn(2, 3))]
    assert names == ["pair:out.0", "pair:out.1", "single:out.0", "mapped:out.h", ":out.logits", ":out.hidden.0", ":out.hidden.1"]


def test_modules_without_a_tensor_are_listed_with_their_calls():
    class Number(nn.Module):
        def forward(self, x):
            return 5

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.n = Number()

        def forward(self, x):
            return x * self.n(x) * self.n(x)

    rows = mf.HookedModel(Net()).describe(torch.randn(2, 3))
    assert [(r.name, r.calls, r.shape) for r in rows] == [(":out", 1, (2, 3)), ("n", 2, ())]


def test_describing_keeps_mode_and_makes_no_graph():
    net = nets.resnet(True)
    assert mf.HookedModel(net).describe(torch.randn(2, 3, 8, 8))[0].shape == (2, 4, 8, 8)
    assert net.training
    assert nets.hook_count(net) == 0


def test_repr():
    assert repr(mf.HookedModel(nets.CNN())) == "HookedModel(CNN, 6 hook points)"
