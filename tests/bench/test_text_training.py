"""The long text experiments can be killed at any batch, and end where an uninterrupted run ends."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from text_features.training import Stopped, Training, shuffled


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def training(path, **settings):
    """A network with dropout, an optimiser with a state, and batches in random order: all of it must come back."""
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    y = x[:, :1].sin()
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))
    order = shuffled(len(x), 6, seed=1)
    return Training(
        net,
        torch.optim.Adagrad(net.parameters(), lr=0.05),
        lambda epoch: [(x[rows], y[rows]) for rows in order(epoch)],
        lambda net, batch: (net(batch[0]) - batch[1]).square().mean(),
        lambda net: {"test": float((net(x) - y).square().mean())},
        {"seed": 0, **settings},
        path,
        decay=0.9,
        every=2,
    )


@pytest.mark.parametrize("stops", [[1], [3], [4], [5, 2, 7]])
def test_a_killed_run_ends_where_an_uninterrupted_one_ends(tmp_path, stops):
    whole = training(tmp_path / "whole.pt")
    want = whole.run(4)
    for stop in stops:
        with pytest.raises(Stopped):
            training(tmp_path / "cut.pt").run(4, stop_after=stop)
    again = training(tmp_path / "cut.pt")
    assert again.run(4) == want
    for name, p in whole.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], p)
    assert not list(tmp_path.glob("*.part"))


def test_the_rate_falls_by_the_decay_after_each_epoch(tmp_path):
    run = training(tmp_path / "run.pt")
    run.run(3)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**2)
    resumed = training(tmp_path / "run.pt")
    resumed.run(4)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**3)


def test_a_finished_run_is_not_repeated_and_can_be_prolonged(tmp_path):
    done = training(tmp_path / "run.pt").run(2)
    resumed = training(tmp_path / "run.pt")
    assert resumed.run(2, stop_after=1) == done
    longer = training(tmp_path / "run.pt").run(3)
    assert longer[:2] == done
    assert longer == training(tmp_path / "other.pt").run(3)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    training(tmp_path / "run.pt", width=8).run(1)
    with pytest.raises(SystemExit) as caught:
        training(tmp_path / "run.pt", width=9).run(1)
    assert str(caught.value) == (
        f"{tmp_path / 'run.pt'} is the checkpoint of another run (width: 8 there, 9 here). Choose another --folder, or delete it."
    )


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    a, b = shuffled(10, 3, seed=5), shuffled(10, 3, seed=5)
    assert torch.equal(torch.cat(a(2)), torch.cat(b(2)))
    assert sorted(torch.cat(a(0)).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(a(0)), torch.cat(a(1)))
