import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechfeat.bench.overheads import models, overhead, table

ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "hooks.jsonl"
PEERS = ROWS.with_name("hook_peers.jsonl")


def test_models_are_the_same_each_time():
    for name, (module, x, one, quarter) in models().items():
        again = models()[name]
        assert torch.equal(x, again[1])
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), again[0].parameters()))
        assert {one, quarter} <= dict(module.named_modules()).keys()


def test_rows_and_table():
    rows = overhead("toy mlp 20 x 16 n4", runs=3, repeats=1)
    assert len(rows) == 6
    assert all(r.ratio > 0 and r.runs == 3 for r in rows)
    assert len(table(rows).splitlines()) == 7


def test_an_idle_point_costs_next_to_nothing():
    # In a process of its own, since shape checking costs far more than the point.
    # The least of five runs counts, so that other work on the machine does not.
    code = "from mechfeat.bench.overheads import idle_point; print(idle_point())"
    assert float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) <= 0.2e-6


def newest():
    """The newest row of each model and case."""
    return list({(r["model"], r["case"]): r for r in map(json.loads, ROWS.read_text().splitlines())}.values())


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ("record every point", 1.25),
        ("record one point", 1.10),
        ("identity edit at one point", 1.10),
        ("record to a quarter and stop", 0.40),
    ],
)
def test_committed_rows_hold_the_promise_on_models_of_ten_milliseconds(case, limit):
    rows = [r for r in newest() if r["case"] == case and r["plain"] >= 0.01]
    assert len({r["model"] for r in rows}) >= 2
    assert max(r["ratio"] for r in rows) <= limit


def test_committed_rows_hold_the_promise_on_a_toy_of_a_seventh_of_a_millisecond():
    rows = {r["case"]: r for r in newest() if r["model"] == "toy mlp 20 x 16 n4"}
    assert rows["record every point"]["plain"] < 0.0002
    assert rows["record every point"]["ratio"] <= min(2.0, rows["raw torch hooks on all modules"]["ratio"])
    # Hooks with empty bodies alone cost a quarter here, so that 1.4 is not reached every time: the row says what was.
    assert rows["record every point, hooks kept in place"]["ratio"] < rows["record every point"]["ratio"]


def test_committed_rows_of_peers():
    rows = [r for r in map(json.loads, PEERS.read_text().splitlines()) if r["model"] == "gpt2 d128 4 blocks n8 t64"]
    last = {(r["case"], r["method"]): r for r in rows}
    assert len(last) == 8
    for case in ("every point", "one point"):
        ours = last[case, "mechfeat"]
        assert ours["over_raw"] <= 1.05
        assert ours["error"] == 0
        for peer in ("nnsight", "TransformerLens bridge"):
            theirs = last[case, peer]
            assert theirs["date"] == ours["date"]  # one run
            assert ours["median"] - theirs["median"] <= max(ours["iqr"], theirs["iqr"])
