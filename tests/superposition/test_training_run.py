"""Runs: what they keep, that they can be saved and gone on with, and what is refused."""

import dataclasses
import math
import subprocess
import sys
import time

import pytest
import torch

from mechfeat.data import OneHot, SparseUniform, ands
from mechfeat.errors import DtypeError, OptionError, ResumeError, ShapeError
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Record, Run, Schedule, cross_entropy, fit, grid, mse
from mechfeat.superposition.training.events import find_events

ADAM = {"steps": 120, "lr": Schedule(0.001, 0.05, 0.01), "optimizer": "adam", "batch": 8, "record": Record(7, 31)}
DATA = SparseUniform(6, density=0.3)
SPEC = ToySpec(6, 2)


def assert_equal_runs(a, b):
    """Bit for bit."""
    assert (a.spec, a.seeds, a.axes) == (b.spec, b.seeds, b.axes)
    assert torch.equal(a.steps, b.steps)
    assert torch.equal(a.loss_steps, b.loss_steps)
    assert torch.equal(a.losses, b.losses)
    assert a.state.step == b.state.step
    for here, there in ((a.parameters, b.parameters), (a.state.parameters, b.state.parameters), (a.state.optimizer, b.state.optimizer)):
        assert list(here) == list(there)
        assert all(torch.equal(here[name], there[name]) for name in here)
    assert {k: v for k, v in a.config.items() if k != "loss"} == {k: v for k, v in b.config.items() if k != "loss"}


def test_frames_and_losses_are_those_of_their_steps():
    """A frame at a step is what a run of so many steps ends with; the first one is the start."""
    options = {"lr": 0.1}
    run = fit(ToyBank(SPEC, 2), OneHot(6), steps=40, record=Record(5, (0, 10, 40)), **options)
    assert run.steps.tolist() == [0, 10, 20, 30, 40]
    assert run.loss_steps.tolist() == [0, 10, 40]
    assert torch.equal(run.weights[0], ToyBank(SPEC, 2).W)
    short = fit(ToyBank(SPEC, 2), OneHot(6), steps=10, **options)
    assert torch.equal(run.weights[1], short.weights[-1])
    torch.testing.assert_close(run.losses[1], short.final_loss)
    x = torch.eye(6)
    torch.testing.assert_close(run.losses[-1], (run.bank()(x) - x).square().mean((1, 2)))
    torch.testing.assert_close(run.losses[0], (run.bank(0)(x) - x).square().mean((1, 2)))


def test_recorded_steps():
    assert Record(3).steps_of("frames", 10) == (0, 5, 10)
    assert Record(100).steps_of("frames", 4) == (0, 1, 2, 3, 4)
    assert Record(1).steps_of("frames", 4) == (4,)
    assert Record((3, 1)).steps_of("frames", 4) == (1, 3, 4)
    logarithmic = Record(losses=20, spacing="log").steps_of("losses", 10_000)
    assert logarithmic[:3] == (0, 1, 2)
    assert logarithmic[-1] == 10_000
    assert len(logarithmic) <= 20


def test_saved_runs_come_back_bit_for_bit(tmp_path):
    run = fit(ToyBank(SPEC, 3), DATA, **ADAM)
    run.save(tmp_path / "run.safetensors")
    back = Run.load(tmp_path / "run.safetensors")
    assert_equal_runs(run, back)
    assert_equal_runs(back.resume(), run)


def test_a_checkpoint_changes_nothing_and_can_be_gone_on_with(tmp_path, monkeypatch):
    whole = fit(ToyBank(SPEC, 3), DATA, **ADAM)
    path = tmp_path / "run.safetensors"
    saved = []
    save = Run.save

    def interrupted(self, where):
        save(self, where)
        saved.append(self.state.step)
        if self.state.step == 50:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(ToyBank(SPEC, 3), DATA, checkpoint=path, every=25, **ADAM)
    monkeypatch.undo()
    assert saved == [25, 50]
    half = Run.load(path)
    assert half.state.step == 50
    assert_equal_runs(fit(ToyBank(SPEC, 3), DATA, checkpoint=path, every=30, **ADAM), whole)
    assert Run.load(path).state.step == 120
    assert_equal_runs(half.resume(), whole)
    bank = ToyBank(SPEC, 3)
    again = fit(bank, DATA, checkpoint=path, **ADAM)
    assert_equal_runs(again, whole)
    assert torch.equal(bank.W, whole.weights[-1])


def test_a_run_that_is_gone_on_with_stays_as_it_was(tmp_path):
    whole = fit(ToyBank(SPEC, 3), DATA, **ADAM)
    start = dataclasses.replace(
        whole,
        parameters={name: torch.zeros_like(v) for name, v in whole.parameters.items()},
        losses=torch.zeros_like(whole.losses),
        state=dataclasses.replace(
            whole.state,
            step=0,
            parameters=dict(ToyBank(SPEC, 3).named_parameters()),
            optimizer={name: torch.zeros_like(v) for name, v in whole.state.optimizer.items()},
        ),
    )
    assert_equal_runs(start.resume(), whole)
    assert not start.weights.any()
    assert not start.losses.any()


def test_a_run_of_another_kind_of_device_is_not_gone_on_with(tmp_path, monkeypatch):
    """Random numbers of a GPU are not those of a CPU, so that the stream of inputs would be another one."""
    path = tmp_path / "run.safetensors"
    run = fit(ToyBank(SPEC, 3), DATA, checkpoint=path, **ADAM)
    assert run.config["device"] == "cpu"
    begun = dataclasses.replace(run, config={**run.config, "device": "cuda"}, state=dataclasses.replace(run.state, step=60))
    begun.save(path)
    with pytest.raises(ResumeError) as caught:
        fit(ToyBank(SPEC, 3), DATA, checkpoint=path, **ADAM)
    assert caught.value.differences == {"device": ("'cuda'", "'cpu'")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=r"^device='cpu' is not known\. It can be 'cuda, where this run was begun: "):
        begun.resume()


SCRIPT = """
import sys, torch
from mechfeat.data import OneHot
from mechfeat.models import ToyBank, ToySpec
from mechfeat.superposition import Record, Schedule, fit
torch.set_num_threads(1)
options = {"steps": 20_000, "lr": Schedule(0.01, 2.0, 0.5), "record": Record(11, 101)}
fit(ToyBank(ToySpec(20, 2), 4), OneHot(20), checkpoint=sys.argv[1], every=200, **options)
"""


def test_a_killed_process_loses_what_was_not_saved_and_nothing_else(tmp_path):
    path = tmp_path / "run.safetensors"
    command = [sys.executable, "-c", SCRIPT, str(path)]
    killed = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    begun = Run.load(path)
    assert 0 < begun.state.step < 20_000
    assert begun.state.step % 200 == 0
    subprocess.run(command, check=True)
    resumed = Run.load(path)
    assert resumed.state.step == 20_000
    (tmp_path / "whole").mkdir()
    other = tmp_path / "whole" / "run.safetensors"
    subprocess.run([sys.executable, "-c", SCRIPT, str(other)], check=True)
    assert_equal_runs(resumed, Run.load(other))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"steps": 130}, "steps: 120 there, 130 here"),
        ({"optimizer": "sgd"}, "optimizer: Optimizer(na... there, Optimizer(na... here"),
        ({"batch": 9}, "batch: 8 there, 9 here"),
        ({"lr": 0.1}, "lr: Schedule(base=0.001, peak=0.05, final=0.01, warmup=0.05, de... there, 0.1 here"),
        ({"loss": mse(torch.ones(6))}, "loss: "),
        ({"gradients": "autograd"}, "gradients: 'closed' there, 'autograd' here"),
        ({"data": SparseUniform(6, density=0.31)}, "data: "),
        ({"bank": ToySpec(6, 3)}, "spec: "),
        ({"seeds": [0, 1, 3]}, "seeds: (0, 1, 2) there, (0, 1, 3) here"),
        ({"init": "xavier"}, "initial weights: "),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_another_configuration_is_refused_and_the_file_kept(tmp_path, change, difference):
    path = tmp_path / "run.safetensors"
    fit(ToyBank(SPEC, 3), DATA, checkpoint=path, **ADAM)
    before = path.read_bytes()
    spec, data = change.get("bank", SPEC), change.get("data", DATA)
    seeds = change.get("seeds", [0, 1, 2])
    options = ADAM | {k: v for k, v in change.items() if k not in ("bank", "data", "seeds", "init")}
    bank = ToyBank(spec, seeds=seeds, init=change.get("init", "linear"), dtype=torch.float64)
    with pytest.raises(ResumeError) as caught:
        fit(bank, data, checkpoint=path, **options)
    message = str(caught.value)
    assert message.startswith(f"{str(path)!r} holds a training run with other settings (")
    assert message.endswith("). Choose another file, or delete this one.")
    if "there" in difference and "Schedule" not in difference and "Optimizer" not in difference:
        assert difference in message
    assert difference.split(":")[0] in caught.value.differences
    assert path.read_bytes() == before


def test_activations_of_your_own_cannot_be_saved(tmp_path):
    run = fit(ToyBank(ToySpec(4, 2, activation=torch.tanh), 2), OneHot(4), steps=3, lr=0.1)
    with pytest.raises(DtypeError, match=r"^value\.spec\.activation is a builtin_function_or_method, which cannot be saved\."):
        run.save(tmp_path / "run.safetensors")


def test_best_and_distribution_over_an_axis():
    bank = grid(ToySpec(4, 2), over={"density": [0.2, 0.6, 1.0], "seed": range(5)})
    data = SparseUniform(4, density=bank.along("density"))
    run = fit(bank, data, steps=30, lr=0.1, batch=16, record=Record(2, 2))
    losses = run.final_loss.view(3, 5)
    best = run.best(over="seed")
    assert best.axes == {"density": (0.2, 0.6, 1.0)}
    assert torch.equal(best.final_loss, losses.min(1).values)
    assert best.seeds == tuple(losses.argmin(1).tolist())
    assert torch.equal(best.weights[:, 1], run.weights[:, 5 + int(losses[1].argmin())])
    assert torch.equal(best.best(over="density").final_loss, losses.min()[None])
    found = run.distribution()
    assert found.shape == (3, 5)
    assert torch.equal(found[:, 2], losses.median(1).values)
    assert torch.equal(found[:, 0], losses.min(1).values)
    assert torch.equal(found[:, 4], losses.max(1).values)
    assert torch.equal(run.distribution(run.final_loss, over="density")[:, 1], torch.quantile(losses, 0.25, dim=0))
    assert run.labelled(run.weights[-1]).shape == (3, 5, 4, 2)


def test_instances_of_a_run_keep_their_own_settings(tmp_path):
    """What is selected goes on as it would have within the whole: with its densities, its importance and its seeds."""
    bank = grid(ToySpec(4, 2), over={"density": [0.05, 0.9], "seed": [0, 1]})
    options = {"lr": 0.1, "batch": 16, "optimizer": "adam", "record": Record(3, 3), "loss": mse(torch.rand(4, 4)), "steps": 30}
    data = SparseUniform(4, density=bank.along("density"))
    whole = fit(bank, data, **options)
    half = dataclasses.replace(whole, state=fit(grid(ToySpec(4, 2), over=bank.axes), data, **options | {"steps": 15}).state)
    part = half.select([3, 1])
    assert part.config["data"].density.tolist() == [0.9, 0.05]
    assert torch.equal(part.config["loss"].importance, options["loss"].importance[[3, 1]])
    torch.testing.assert_close(part.resume().weights[-1], whole.weights[-1, [3, 1]], rtol=0, atol=1e-13)
    assert torch.equal(whole.select(torch.tensor([False, True, False, True])).weights, whole.weights[:, [1, 3]])
    assert whole.select(-1).seeds == (1,)
    for wrong, message in (
        (4, "Instance 4 was asked for, of 4."),
        (whole.final_loss < 0, "No instance of the run was selected."),
        (torch.tensor([True]), "A mask of shape [1] selects of 4 instances. Give one entry an instance."),
    ):
        with pytest.raises(ShapeError) as error:
            whole.select(wrong)
        assert str(error.value) == message


def test_a_run_that_diverged_is_not_the_best():
    run = fit(ToyBank(ToySpec(4, 2, activation="identity"), 3), OneHot(4), steps=200, lr=0.1, record=Record(2, 2))
    losses = run.losses.clone()
    losses[-1, 0] = math.nan
    broken = Run(run.spec, run.seeds, run.axes, run.steps, run.parameters, run.loss_steps, losses, run.config, run.state)
    assert broken.best().seeds[0] == int(losses[-1, 1:].argmin()) + 1


def test_events_are_falls_of_the_loss_with_the_features_that_moved():
    """A plateau of two features on two dimensions, then a third joins within ten steps: its D goes from 0 to 2/3."""
    pair = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    triangle = torch.stack([angles.cos(), angles.sin()], 1)
    steps = torch.arange(0, 1001, 10)
    weights = torch.where((steps < 500)[:, None, None], pair, triangle)[:, None]
    losses = torch.where(steps < 500, 0.3, 0.1)[:, None] * torch.exp(-steps / 1e5)[:, None]
    (event,) = find_events(weights, steps, losses, steps, drop=0.02, moved=0.2)
    assert (event.instance, event.start, event.stop) == (0, 490, 500)
    assert event.before == pytest.approx(0.3, rel=0.01)
    assert event.after == pytest.approx(0.1, rel=0.01)
    assert event.moved[0] == 2
    torch.testing.assert_close(event.change, torch.tensor([-1 / 3, -1 / 3, 2 / 3]))
    assert find_events(weights, steps, losses, steps, drop=0.9, moved=0.2) == []
    flat = find_events(weights, steps, torch.ones(101, 1), steps, drop=0.01, moved=0.2)
    assert flat == []


def test_events_of_a_trained_bank():
    """Every feature that a two-dimensional model takes up is a fall of its loss: at the times at which its D moves."""
    bank = ToyBank(ToySpec(6, 3), 2)
    run = fit(bank, OneHot(6), steps=3000, lr=Schedule(0.05, 2.0, 1.0), record=Record(301, 301))
    events = run.events(drop=0.02, moved=0.2)
    assert {e.instance for e in events} == {0, 1}
    assert all(e.after < e.before and e.start < e.stop for e in events)
    assert any(e.moved for e in events)


def test_storage_of_a_thousand_instances(tmp_path):
    """Check 15 at a tenth of its frames: 400 frames of 1,000 instances of 40 x 2 + 40 float32 numbers fit in 200 MB, losslessly."""
    bank = ToyBank(ToySpec(40, 2), 1000, dtype=torch.float32)
    run = fit(bank, OneHot(40), steps=39, lr=0.5, record=Record(40, 40))
    path = tmp_path / "run.safetensors"
    run.save(path)
    frames = 1000 * 40 * (40 * 2 + 40) * 4
    extra = path.stat().st_size - frames
    assert 10 * frames + extra <= 200e6
    assert_equal_runs(run, Run.load(path))


def test_progress_counts_every_step(capsys, tmp_path):
    fit(ToyBank(SPEC, 5), OneHot(6), steps=130, lr=0.1, chunk=2, progress=True, checkpoint=tmp_path / "r.safetensors", every=33)
    assert "650/650" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": OneHot(5)}, ShapeError, "The data has 5 features and the bank 6. They must agree."),
        (
            {"data": SparseUniform(6, density=torch.full((4,), 0.5)), "batch": 8},
            ShapeError,
            "The data has distributions for 4 instances, and the bank has 3.",
        ),
        (
            {"data": DATA},
            OptionError,
            "batch=None is not known. It can be 'a number of inputs: SparseUniform has infinitely many'.",
        ),
        ({"steps": 0}, ShapeError, "steps=0. It is at least 1."),
        ({"chunk": 0}, ShapeError, "chunk=0. It is at least 1."),
        ({"chunk": "large"}, OptionError, "chunk='large' is not known. It can be 'auto', 'a number of instances'."),
        ({"optimizer": "lion"}, OptionError, "optimizer='lion' is not known. It can be 'sgd', 'adam', 'adamw'."),
        ({"gradients": "finite"}, OptionError, "gradients='finite' is not known. It can be 'auto', 'closed', 'autograd'."),
        (
            {"bank": ToyBank(ToySpec(6, 2, d_mlp=3), 3), "gradients": "closed"},
            OptionError,
            "gradients='closed' is not known. It can be \"'auto'\", \"'autograd' for unit rows, MLPs and activations of your own\".",
        ),
        (
            {"loss": mse(torch.ones(5))},
            ShapeError,
            "importance has shape [5]. For this bank it is [6], or [3 6] for each instance.",
        ),
        (
            {"loss": mse(torch.ones(2, 6))},
            ShapeError,
            "importance has shape [2, 6]. For this bank it is [6], or [3 6] for each instance.",
        ),
        (
            {"loss": cross_entropy()},
            OptionError,
            "loss='cross_entropy' is not known. It can be \"another loss; cross-entropy takes activation='identity', and no importance\".",
        ),
        (
            {"task": ands([(0, 1)])},
            ShapeError,
            "The task 'ands' has 1 outputs and the bank 6. Make it with ToySpec(..., n_outputs=1).",
        ),
        (
            {"bank": ToyBank(ToySpec(6, 2, n_outputs=1, tied=False), 3), "task": ands([(0, 6)])},
            ShapeError,
            "The task names feature 6, and there are 6, numbered from 0.",
        ),
        ({"lr": math.nan}, OptionError, "lr=nan is not known. It can be 'a finite number of at least 0', 'a Schedule'."),
        ({"lr": -0.1}, OptionError, "lr=-0.1 is not known. It can be 'a finite number of at least 0', 'a Schedule'."),
        (
            {"bank": ToyBank(SPEC, 3).requires_grad_(False)},
            OptionError,
            "W.requires_grad=False is not known. It can be 'True: fit trains every parameter; quasi_static holds what is not free'.",
        ),
        ({"record": Record((0, 11))}, ShapeError, "Record names the step 11 for frames; this run has the steps 0 to 10."),
        ({"record": Record(0)}, ShapeError, "Record was asked for frames=0. It keeps at least the last."),
    ],
)
def test_what_is_refused(unchecked, options, error, message):
    options = {"bank": ToyBank(SPEC, 3), "data": OneHot(6), "steps": 10, "lr": 0.1} | options
    bank = options.pop("bank")
    before = bank.W.detach().clone()
    with pytest.raises(error) as caught:
        fit(bank, options.pop("data"), **options)
    assert str(caught.value) == message
    assert torch.equal(bank.W, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Schedule(0.1, 1.0, 0.0),
            "final=0.0 is not known. It can be 'a number of at least 0, and above 0 for the peak and end of a geometric decay'.",
        ),
        (lambda: Schedule(0.1, 1.0, 0.1, warmup=2.0), "warmup=2.0 is not known. It can be 'a share between 0 and 1'."),
        (lambda: Schedule(0.1, 1.0, 0.1, decay="step"), "decay='step' is not known. It can be 'geometric', 'cosine'."),
        (
            lambda: Schedule(0.1, 1.0, 0.1, steps=0),
            "steps=0 is not known. It can be 'a number of at least 1', 'None for those of the run'.",
        ),
        (lambda: mse(torch.tensor([1.0, -2.0])), "importance=-2.0 is not known. It can be 'finite numbers of at least 0'."),
        (lambda: mse(torch.tensor([1.0, math.nan])), "importance=nan is not known. It can be 'finite numbers of at least 0'."),
        (lambda: Record(spacing="square"), "spacing='square' is not known. It can be 'linear', 'log'."),
    ],
)
def test_settings_that_are_refused(unchecked, make, message):
    with pytest.raises(OptionError) as caught:
        make()
    assert str(caught.value) == message


def test_runs_refuse_axes_they_lack():
    run = fit(ToyBank(SPEC, 2), OneHot(6), steps=2, lr=0.1)
    with pytest.raises(OptionError, match=r"^over='density' is not known\. It can be 'seed'\.$"):
        run.best(over="density")
    with pytest.raises(ShapeError, match=r"^values has 3 entries, and the run 2 instances\.$"):
        run.labelled(torch.zeros(3))
