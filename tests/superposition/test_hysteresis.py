"""Quasi-static sweeps: what is held is held, what is free comes to rest, and a loop without memory is closed."""

import math

import pytest
import torch

from mechfeat.data import Exact, OneHot, ands
from mechfeat.errors import OptionError, ShapeError
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Hysteresis, Record, Schedule, fit, hysteresis, quasi_static, widen_gap


def push(start, level):
    return {"b": torch.full_like(start["b"], -level)}


ALL = torch.tensor(True)


def test_the_control_is_held_and_the_free_part_rests():
    bank = ToyBank(ToySpec(6, 2), 2)
    before = bank.W.detach().clone()
    sweep = quasi_static(bank, push, [0.3, 0.6], free={"W": ALL}, steps=6000, lr=2.0, rest=1e-9)
    assert torch.equal(bank.W, before)
    torch.testing.assert_close(sweep.parameters["b"], torch.tensor([-0.3, -0.6])[:, None, None].expand(2, 2, 6))
    assert (sweep.unrest < 1e-6).all()
    W = sweep.parameters["W"][1].clone().requires_grad_()
    loss = (torch.relu(W @ W.mT - 0.6) - torch.eye(6)).square().mean((-2, -1))
    torch.testing.assert_close(loss.detach(), sweep.losses[1])
    (gradient,) = torch.autograd.grad(loss.sum(), W)
    torch.testing.assert_close(gradient.abs().flatten(1).amax(1), sweep.unrest[1])
    torch.testing.assert_close(sweep.outputs(torch.eye(6))[1], torch.relu(W @ W.mT - 0.6).detach())


def test_only_what_is_free_moves():
    bank = ToyBank(ToySpec(6, 2, tied=False), 1)
    row = torch.zeros(6, 1, dtype=torch.bool)
    row[2] = True
    sweep = quasi_static(bank, lambda start, level: {}, [0.0], free={"W": row}, steps=50)
    moved = sweep.parameters["W"][0, 0] != bank.W[0]
    assert moved.any(-1).tolist() == [False, False, True, False, False, False]
    assert torch.equal(sweep.parameters["U"][0], bank.U)


def test_without_memory_a_level_is_a_level():
    bank = ToyBank(ToySpec(8, 2), 1)
    sweep = quasi_static(bank, push, [0.0, 1.0, 0.0, 1.0], free={"W": ALL}, steps=40, memory=False)
    W = sweep.parameters["W"]
    assert torch.equal(W[0], W[2])
    assert torch.equal(W[1], W[3])
    remembered = quasi_static(bank, push, [0.0, 1.0, 0.0, 1.0], free={"W": ALL}, steps=40)
    assert not torch.equal(remembered.parameters["W"][0], remembered.parameters["W"][2])


def test_a_gap_is_widened_by_so_much():
    W = torch.randn(3, 5, 2)
    found = widen_gap({"W": W, "U": -W, "b": torch.zeros(3, 5)}, 1, 4, 10)
    assert sorted(found) == ["U", "W"]

    def gap(V):
        return torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(V[:, 1], V[:, 4], dim=-1)))

    wide = gap(W) < 165
    torch.testing.assert_close(gap(found["W"])[wide], gap(W)[wide] + 10)
    torch.testing.assert_close(gap(found["U"])[wide], gap(W)[wide] + 10)
    torch.testing.assert_close(found["W"].norm(dim=-1), W.norm(dim=-1))
    assert torch.equal(found["W"][:, [0, 2, 3]], W[:, [0, 2, 3]])


def loop(out, back, control=None):
    levels = torch.arange(5.0)
    control = torch.zeros(5) if control is None else control
    return Hysteresis(levels, out, back, control, control, 0.5)


def test_width_of_a_loop():
    out, back = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    assert loop(out, back).switches == (3.5, 0.5)
    assert loop(out, back).width == 3
    assert loop(out, back).control_width == 0
    assert not loop(out, back).established  # three steps exactly
    assert loop(out, out).width == 0
    assert loop(out, torch.ones(5)).width == math.inf  # it never comes back
    assert loop(out, torch.ones(5)).established
    assert not Hysteresis(torch.arange(5.0), out, torch.ones(5), out, torch.ones(5), 0.5).established


@pytest.mark.full
def test_hysteresis_of_a_feature_between_two_others(unchecked):  # half a million checked steps would take minutes
    # Check 8: seed 12 of the notebook; feature 11 lies between 1 and 18, which are turned apart and together.
    spec = ToySpec(40, 2, tied=False)
    frames = (95_000, 150_000)
    run = fit(
        ToyBank(spec, seeds=[12], dtype=torch.float64), OneHot(40), steps=150_000, lr=Schedule(0.001, 5.0, 2.0, steps=250_000),
        record=Record(frames=frames, losses=frames),
    )  # fmt: skip
    row = torch.zeros(40, dtype=torch.bool)
    row[11] = True
    options = {
        "free": {"W": row[:, None], "U": row[:, None], "b": row},
        "observe": lambda sweep: sweep.outputs(torch.eye(40))[:, :, 11, 11],
        "steps": 3000,
    }

    def gap(start, level):
        return widen_gap(start, 1, 18, level)

    unlearned = hysteresis(run.bank(0), gap, range(0, 21, 2), **options)
    assert unlearned.width >= 6
    assert unlearned.control_width < 2
    assert unlearned.established
    learned = hysteresis(run.bank(1), gap, range(0, -27, -2), **options)
    assert learned.out[0] >= 0.96
    assert learned.back[0] < 0.5  # a full cycle, and it does not come back
    assert learned.control_back[0] == learned.control_out[0]


def test_errors(unchecked):
    bank = ToyBank(ToySpec(6, 2), 1)
    with pytest.raises(OptionError) as error:
        quasi_static(bank, push, [0.0], free={"U": ALL})
    assert str(error.value) == "free='U' is not known. It can be 'W', 'b'."
    with pytest.raises(ShapeError) as error:
        quasi_static(bank, push, [], free={"W": ALL})
    assert str(error.value) == "A path of 0 levels with steps=3000. Give at least one of each."
    with pytest.raises(ShapeError) as error:
        hysteresis(bank, push, [0.0, 1.0, 0.5], free={"W": ALL}, observe=lambda s: s.losses)
    assert str(error.value) == "The levels [0.0, 1.0, 0.5] are not a way out: give two or more, rising or falling throughout."
    with pytest.raises(ShapeError) as error:
        widen_gap({"W": torch.zeros(1, 3, 4)}, 0, 1, 5)
    assert str(error.value) == "W has shape [1, 3, 4]. An angle between features is widened in two hidden dimensions."


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"free": {}}, OptionError, "free={} is not known. It can be 'W', 'b'."),
        (
            {"free": {"W": torch.ones(5, dtype=torch.bool)}},
            ShapeError,
            "The mask of 'W' has shape [5], which does not broadcast to [1, 6, 2].",
        ),
        ({"control": lambda start, level: {"bias": start["b"]}}, OptionError, "control='bias' is not known. It can be 'W', 'b'."),
        (
            {"control": lambda start, level: {"b": torch.zeros(5)}},
            ShapeError,
            "The control's 'b' has shape [5], which does not broadcast to [1, 6].",
        ),
        ({"data": OneHot(5)}, ShapeError, "The data has 5 features and the bank 6. They must agree."),
        (
            {"task": ands([(0, 1)])},
            ShapeError,
            "The task 'ands' has 1 outputs and the bank 6. Make it with ToySpec(..., n_outputs=1).",
        ),
        (
            {"data": Exact(6, torch.eye(6), torch.full((2, 6), 1 / 6))},
            ShapeError,
            "The data has distributions for 2 instances, and the bank has 1.",
        ),
    ],
)
def test_a_sweep_that_would_move_nothing_or_learn_something_else(unchecked, options, error, message):
    options = {"control": push, "free": {"W": ALL}, "steps": 2} | options
    with pytest.raises(error) as caught:
        quasi_static(ToyBank(ToySpec(6, 2), 1), options.pop("control"), [0.0], **options)
    assert str(caught.value) == message
