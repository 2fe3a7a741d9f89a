"""The committed rows of toy models at full size hold what the reference measured; the newest of each case counts."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows():
    found = {}
    for line in (ROOT / "benchmarks" / "results" / "toy_models.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["check"], {})[row["case"]] = row
    return found


def test_the_saddle(rows):
    # Check 7.
    found = rows["saddle"]["seed 2"]["found"]
    assert len(found["relative_errors"]) == 3
    assert max(found["relative_errors"]) <= 0.03
    assert min(found["negative_before"]) >= 5
    assert found["negative_after"] <= 2
    assert found["loss_before"] == pytest.approx(0.0203, abs=5e-5)
    assert found["loss_after"] <= 0.0198
    assert found["largest_fall_in_3000_steps"] >= 0.02


@pytest.mark.parametrize("steps", [3000, 4000, 12000])
def test_the_loop_of_the_unlearned_state(rows, steps):
    # Check 8: wider than 6 degrees, and the control narrower than 2, however long each level is trained.
    found = rows["hysteresis"][f"unlearned, {steps} steps a level"]["found"]
    assert found["width"] >= 6 if found["comes_back"] else found["back"][0] >= 0.5
    assert found["control_width"] < 2


@pytest.mark.parametrize("steps", [3000, 4000, 12000])
def test_the_cycle_of_the_learned_state(rows, steps):
    found = rows["hysteresis"][f"learned to -26, {steps} steps a level"]["found"]
    assert found["out"][0] >= 0.96
    assert found["back"][0] < 0.5
    assert math.isclose(found["control_back"][0], found["control_out"][0])


def test_the_loop_of_a_common_bias(rows):
    # The second form: the ends agree, and between them some models remember, with other numbers of directions on the two ways.
    found, control = (rows["bias"][case]["found"] for case in ("memory", "control"))
    assert max(found["gap_at_ends"]) < 1e-3
    loops = [i for i, gap in enumerate(found["largest_relative_gap"]) if gap >= 0.02]
    assert len(loops) >= 2
    assert all(found["directions_out"][i] != found["directions_back"][i] for i in loops)
    assert max(control["largest_relative_gap"]) < 1e-9
    assert found["k_eff_start"] == pytest.approx([4.1982] * 6, abs=5e-4)


def test_the_phase_diagram(rows):
    # Check 11.
    row = rows["phase"]["16 x 16"]
    assert row["settings"]["models"] == 1536
    assert row["threads"] == 1
    assert row["seconds"] < 90
    assert row["found"]["agreement"] >= 0.95
    assert row["found"]["agreement_away"] >= 0.99


@pytest.mark.full
def test_the_smoke_run(tmp_path):
    script, out = ROOT / "benchmarks" / "bench_toy_models.py", tmp_path / "rows.jsonl"
    command = [sys.executable, str(script), "--smoke", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    checks = ["saddle", "hysteresis", "bias", "phase"]
    assert list(dict.fromkeys(json.loads(line)["check"] for line in out.read_text().splitlines())) == checks
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines() == [f"{check}: already there" for check in checks]
