"""``verify``: the wrapped model is the original, shown against plain torch."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import EmptyGlobError, NondeterministicModelError
from mechfeat.hooks.recorder import Recorder

from . import nets


@pytest.mark.parametrize("names", [None, "**:*"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", nets.MODELS)
def test_every_model_is_shown_to_be_unchanged(name, dtype, names):
    net, x = nets.build(name, dtype)
    before, tables = {k: v.clone() for k, v in net.state_dict().items()}, nets.hook_tables(net)
    found = mf.HookedModel(net).verify(x, names)
    assert found.equal, str(found)
    assert found.largest == 0
    assert found.hooks_left == 0
    assert len(found.points) >= len(net.state_dict()) // 4
    assert set(found.unchecked) == ({"one.h", "mid", "two.h", "end"} if name == "points" else set())
    assert nets.hook_tables(net) == tables
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_table_prints():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    found = mf.HookedModel(net).verify(torch.ones(4, 3))
    assert (
        str(found) == "hook name  shape  dtype    against plain torch\n"
        "output     4x2    float64  equal\n"
        "0          4x2    float64  equal\n"
        "1          4x2    float64  equal\n"
        ":out       4x2    float64  equal\n"
        "4 of 4 equal, hooks left: 0"
    )


def test_points_cannot_be_compared_and_say_so():
    net, x = nets.build("points")
    found = mf.HookedModel(net).verify(x, ["mid", "one"])
    assert [(row.name, row.equal) for row in found.points] == [("one", True), ("mid", None)]
    assert "mid        4x3    float64  not comparable\n2 of 2 equal" in str(found)


def test_a_recorder_that_keeps_wrong_values_is_found(monkeypatch):
    honest = Recorder.visit

    def visit(self, x, name, patterns):
        return honest(self, x + 1e-3 if name.path == "0" else x, name, patterns)

    monkeypatch.setattr(Recorder, "visit", visit)
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    found = mf.HookedModel(net).verify(torch.ones(4, 3))
    assert not found.equal
    assert {row.name for row in found.points if not row.equal} >= {"0"}
    assert "differs by 1.0e-03" in str(found)


def test_a_recorder_that_misses_a_call_is_found(monkeypatch):
    honest = Recorder.visit
    monkeypatch.setattr(Recorder, "visit", lambda self, x, name, p: x if name.call == 1 else honest(self, x, name, p))
    net, x = nets.build("chain")
    found = mf.HookedModel(net).verify(x)
    assert [(r.name, r.difference) for r in found.points if not r.equal] == [("relu#1", float("inf"))]


def test_a_recorder_that_shares_what_is_overwritten_is_found(monkeypatch):
    """The second run is the one that relies on memory."""
    net, x = nets.build("chain")
    honest = Recorder.visit

    def visit(self, x, name, patterns):
        self._memory.overwritten[(name.path, name.port, *self._mode)] = False
        x = honest(self, x, name, patterns)
        capture = self.captures[name]
        self.captures[name] = type(capture)(capture.value, None)
        return x

    monkeypatch.setattr(Recorder, "visit", visit)
    found = mf.HookedModel(net).verify(x)
    assert not found.equal


def test_what_the_wrapper_changes_in_the_output_is_found(monkeypatch):
    honest = Recorder.visit
    monkeypatch.setattr(Recorder, "visit", lambda self, x, name, p: honest(self, x, name, p) * (1 + 1e-6))
    found = mf.HookedModel(nn.Linear(3, 2)).verify(torch.ones(4, 3))
    assert not found.output[0].equal
    assert 0 < found.output[0].difference < 1e-5


@pytest.mark.parametrize("where", ["train", "noise", "state"])
def test_models_that_differ_between_plain_runs_are_refused(where):
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape)

    class Steps(nn.Module):
        t = 0

        def forward(self, x):
            self.t += 1
            return x + self.t

    layer = {"train": nn.Dropout(0.5), "noise": Noise(), "state": Steps()}[where]
    reason = {
        "train": "dropout is active in '1'. Call module.eval(), or set p to 0.",
        "noise": "it draws random numbers while it runs. Call module.eval(), or fix the draw in the model.",
        "state": "it keeps state outside its buffers, or an operation is not deterministic. See torch.use_deterministic_algorithms.",
    }[where]
    net, state = nn.Sequential(nn.Linear(3, 2), layer), torch.get_rng_state()
    with pytest.raises(NondeterministicModelError) as caught:
        mf.HookedModel(net).verify(torch.ones(50, 3))
    head, _, tail = str(caught.value).partition(", so a recorded run cannot be compared with a plain one: ")
    assert head.startswith("Two plain runs on the same input differ by ")
    assert tail == reason
    assert nets.hook_count(net) == 0
    assert torch.equal(state, torch.get_rng_state())


def test_state_in_buffers_is_put_back_before_each_run():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    found = mf.HookedModel(net).verify(torch.randn(4, 3))
    assert found.equal
    assert net[1].num_batches_tracked == 0
    assert torch.equal(net[1].running_mean, torch.zeros(2))


def test_a_buffer_that_the_output_depends_on_is_put_back_before_each_run():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("t", torch.zeros(()))

        def forward(self, x):
            self.t += 1
            return x + self.t

    net = Steps()
    assert mf.HookedModel(net).verify(torch.ones(2, 3)).equal
    assert net.t == 0


def test_the_input_is_not_overwritten():
    net, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), torch.randn(4, 3)
    before = x.clone()
    assert mf.HookedModel(net).verify(x).equal
    assert torch.equal(x, before)


def test_nan_at_the_same_place_is_equal():
    assert mf.HookedModel(nn.Linear(3, 2)).verify(torch.full((2, 3), torch.nan)).equal


def test_the_fused_encoder_differs_by_rounding_and_says_why():
    net = nets.encoder().float().eval()
    with torch.no_grad():
        found = mf.HookedModel(net).verify(torch.randn(2, 4, 16, dtype=torch.float32))
    assert all(row.equal for row in found.points)
    assert 0 <= found.output[0].difference < 1e-5  # ten roundings of values of size 3, as in test_bit_equality
    assert "note: nn.TransformerEncoderLayer leaves its fused path" in str(found)


def test_names_that_match_nothing_are_refused():
    with pytest.raises(EmptyGlobError):
        mf.HookedModel(nn.Linear(3, 2)).verify(torch.ones(1, 3), "conv*")


def test_keyword_arguments_and_edits_are_taken_along():
    net, x = nets.build("encoder train")
    model = mf.HookedModel(net)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    with model.hooks(mf.Ablate("layers.0", channel=1)):
        assert model.verify(x, "layers.*", src_key_padding_mask=mask).equal
