"""The committed rows of toy models at full size hold what the reference measured; the newest of each case counts."""

import itertools
import json
import math
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = (
    *("pentagon", "directions", "softmax", "batches", "notebooks", "computation", "correlation", "basics", "geometry"),
    *("dynamics", "studies", "further", "memorisation", "kgons", "census"),
)


def newest(rows, check):
    """What was found, by case, and at least one."""
    found = {case: row["found"] for case, row in rows[check].items()}
    assert found
    return found


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


def test_the_pentagon(rows):
    # Check 3.
    found = rows["pentagon"]["f=100 d=2, seeds 1-10"]["found"]
    assert found["directions"] == [5] * 10
    assert found["k_eff"] == pytest.approx([4.1982] * 10, abs=5e-4)
    assert all(total == pytest.approx([0.8396] * 5, abs=1e-3) for total in found["norm_sq_of_directions"])


def test_the_ledger(rows):
    # Check 4, on the 90 runs of check 5 and on the plateaus of the notebook 2d-bias.
    runs = [pair for found in newest(rows, "directions").values() for pair in zip(found["k_eff"], found["norm_sq"], strict=True)]
    assert len(runs) == 90
    assert max(abs(k - norm) / norm for k, norm in runs) <= 0.003
    rested = rows["notebooks"]["2d-bias"]["found"]["k_eff"][:3]  # the fourth still moves
    assert max(abs(k - round(k)) for k in rested) <= 0.05


def test_directions_against_dimension(rows):
    # Check 5: means of effective features of section 1.7, and the fit that FeatureFinding publishes.
    found = newest(rows, "directions")
    means = [statistics.mean(found[f"d={d}"]["k_eff"]) for d in range(2, 11)]
    assert means == pytest.approx([4.198, 6.418, 8.721, 11.349, 13.615, 15.940, 18.291, 20.646, 23.124], rel=0.01)
    counts = [statistics.mean(found[f"d={d}"]["directions"]["25.8"]) for d in range(2, 11)]
    slope, intercept = statistics.linear_regression(range(2, 11), counts)
    assert slope == pytest.approx(7.52, abs=0.3)
    assert intercept == pytest.approx(-12.85, abs=1.5)
    assert all(sum(f["sum_D"]) / 10 == pytest.approx(d, rel=2e-3) for d, f in zip(range(2, 11), found.values(), strict=True))


def test_the_census(rows):
    # Check 6, by the rule of the reference: features longer than 0.01 are alive, and directions are 0.26 degrees apart.
    parts = list(newest(rows, "census").values())
    counts, first = Counter(), newest(rows, "census")["seeds 1-100"]["counts_alive"]
    for part in parts:
        counts.update(part["counts_alive"])
    assert counts.total() >= 1000
    assert sum(part["five_alive_in_five_directions"] for part in parts) >= 0.99 * counts["5"]
    assert counts["5"] / counts.total() == pytest.approx(0.699, abs=5e-3)
    # The reference counted seeds 1 to 100; rounding may move some that have not come to rest.
    for number, share in {"5": 63, "6": 7, "7": 8, "8": 12, "9": 5, "10": 5}.items():
        assert first[number] == pytest.approx(share, abs=4)
    assert sum(row["seconds"] for row in rows["census"].values()) < 180  # "two to three minutes", says the README of the benchmarks
    # Features that die out slowly make the count depend on the shortest that is counted: cut off at 0.1 of the longest, only the two end
    # states are left.
    ends = Counter()
    for part in parts:
        ends.update(part["counts"])
    assert set(ends) == {"4", "5"}
    assert ends["5"] / ends.total() == pytest.approx(0.691, abs=5e-3)


@pytest.mark.xfail(
    strict=True,
    reason="0.699 of seeds 1 to 1,000; the reference's 0.63 is of seeds 1 to 100, where the rows have 0.63 too (0.66 with a cut at 0.002)",
)
def test_the_share_of_five_directions(rows):
    parts = [found["counts_alive"] for found in newest(rows, "census").values()]
    assert sum(part["5"] for part in parts) / sum(sum(part.values()) for part in parts) == pytest.approx(0.63, abs=0.06)


def test_half_batches(rows):
    # Check 9.
    median = {case: found["median"] for case, found in newest(rows, "batches").items()}
    assert median["half batches, lr 20"] <= 0.96 * median["full batch, lr 20"]
    assert 0.98 <= median["half batches, lr 4"] / median["full batch, lr 4"] <= 1.02
    assert all(len(found["loss"]) >= 8 for found in newest(rows, "batches").values())


def test_softmax(rows):
    # Check 10.
    found = newest(rows, "softmax")
    for case in ("a: f=20 m=1", "c: f=50 m=2", "untied without bias: f=40 m=2"):
        assert sum(share == 1 for share in found[case]["top1"]) >= 3
    assert max(found["tied without bias: f=40 m=2"]["top1"]) < 1
    for case in ("a: f=20 m=1", "c: f=50 m=2"):
        assert min(abs(c) for c in found[case]["corr_norm_bias"]) >= 0.99
    assert min(found["b: f=20 m=1, two active"]["loss"]) > 5  # stuck, far above 2 ln 2


def test_geometry_of_the_notebook(rows):
    # Check 12, first half: D* sticks at 1/2, dimensionalities at 1/2 and another fraction, and no control does.
    found = rows["geometry"]["200-20 notebook"]["found"]
    assert found["near_half"] >= 3
    assert 0.5 in found["lines"]
    assert len(found["lines"]) >= 2
    assert [found[f"lines_{control}"] for control in ("untrained", "blurred", "uniform")] == [[], [], []]


def test_geometry_annealed(rows):
    # Check 12, second half, and the stated range of vulnerability (2.11).
    found = rows["geometry"]["100-10 annealed"]["found"]
    band = [share for level, share in zip(found["levels"], found["share_named"], strict=True) if 1.5 <= level <= 6]
    assert sum(share >= 0.9 for share in band) >= 2
    assert found["sum_D"] == pytest.approx([10] * 14, rel=5e-3)
    assert max(found["vulnerability"]) > 3
    assert found["correlation_up_to_5"] >= 0.9
    assert found["correlation_all"] < 0.9


def test_computation(rows):
    # Check 13.
    found = newest(rows, "computation")
    assert found["abs n=3 m=6"]["below_1e-5"] >= 1
    assert sorted(found["abs n=3 m=6"]["neurons_of_best"]) == ["0+", "0-", "1+", "1-", "2+", "2-"]
    exact = [found[f"and hidden={m}"]["exact"] for m in (4, 8, 10, 12, 16, 20)]
    assert exact == sorted(exact)
    assert exact[0] == 0
    assert exact[-1] == 1
    assert found["and hidden=20"]["mse"] <= 2e-5
    errors = [found[f"universal and neurons={n}"]["mean_error"] for n in (100, 300, 1000, 3000)]
    assert errors == sorted(errors, reverse=True)


def test_correlation(rows):
    # Check 14.
    found = newest(rows, "correlation")
    for density in (0.05, 0.1):
        assert len(found[f"correlated 2x2, density {density}"]["largest_abs_cos"]) == 16
        assert max(found[f"correlated 2x2, density {density}"]["largest_abs_cos"]) < 0.05
    assert max(found["anticorrelated 2x2"]["cos_of_best"]) < -0.95
    collapsed = [found[f"correlated 3x2, density {density}"]["collapsed"] for density in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)]
    assert collapsed == [0, 0, 1, 2, 2, 2]
    assert found["correlated 2x10"]["within_of_best"] <= found["correlated 2x10"]["across_of_best"] / 3


def test_basic_superposition(rows):
    # 2.1: a linear model holds as many features as dimensions; a ReLU model holds more where features are sparse.
    found = newest(rows, "basics")
    assert found["20-5 identity"]["represented"] == [5] * 7
    relu = found["20-5 relu"]["represented"]
    assert relu[0] == 5
    assert min(relu[2:]) > 5


def test_learning_dynamics(rows):
    # 2.10: every fall of the loss comes with a dimensionality that changes, and two sets of three end as an octahedron.
    found = newest(rows, "dynamics")
    six, sets = found["six features"], found["two sets of three"]
    assert {e["instance"] for e in six["events"]} == set(range(6))
    assert min(e["largest_change"] for e in six["events"]) > 0.2
    assert six["arrangements"] == ["3 x digon"] * 6
    assert all(d == pytest.approx(0.5, abs=0.01) for model in six["dimensionality"] for d in model)
    first, spread, last = sets["cosine_within"]
    assert min(first) > 0.7
    assert all(a > b + 0.3 and abs(c) < 0.05 for a, b, c in zip(first, spread, last, strict=True))
    assert max(sets["smallest_cosine_across"][-1]) < -0.95


def test_the_other_studies_of_featurefinding(rows):
    found = newest(rows, "studies")
    # 1.8: as committed the notebook computation autoencodes, and settles here.
    assert all(0.1754 <= round(v, 4) <= 0.1807 for v in found["computation as committed"]["loss"])
    assert all(3 <= n <= 7 for n in found["computation as committed"]["directions"]["25.8"])
    # The higher the power of the error, the more directions are worth having.
    two, four, six = (statistics.mean(found[f"f=40 m=2, L{p}, half batches"]["directions"]["8.1"]) for p in (2, 4, 6))
    assert two == 5 < four < six
    # 1.7 at nine dimensions and more features: every dimension is used, and better than by four pentagons and a pair.
    large = found["f=250 m=9"]
    assert all(v == pytest.approx(9, rel=1e-3) for v in large["sum_D"])
    assert all(250 - 250**2 * v > 4 * 4.1982 + 2 for v in large["squared_error"])
    assert set(found["sandbox: GELU with bias"]["represented"]) <= {4, 5}
    assert min(found["f=100 m=3, L1"]["loss"]) > 0.99 / 100  # at the notebook's rates no better than predicting nothing


def test_one_odd_feature(rows):
    # 2.6: the crossover, and the norms and biases at ratio 1; with up to three active features as with two.
    for case in ("odd feature, up to 2 active", "odd feature, up to 3 active"):
        found = newest(rows, "further")[case]
        assert found["arrangements"][-1] == "1 x pentagon"
        assert found["arrangements"][0] == "2 x digon"
        assert 0.22 <= found["largest_ratio_with_digons"] < found["smallest_ratio_without_digons"] <= 0.45
        assert found["norms_at_1"] == pytest.approx([1.14] * 5, abs=0.02)
        for norm, b in zip(found["norms_at_1"], found["bias_at_1"], strict=True):
            assert norm**2 == pytest.approx(1 - b, rel=0.04)


def test_a_hundred_absolute_values(rows):
    # 2.8
    found = newest(rows, "further")["abs n=100 m=40"]
    single = dict(zip(found["densities"], found["monosemantic"], strict=True))
    assert found["neurons"] == [40] * 7
    assert single[1.0] == single[0.3] == 40
    assert single[0.001] == 0
    assert found["monosemantic"] == sorted(found["monosemantic"], reverse=True)


def test_a_privileged_basis(rows):
    # 2.9, the best of a thousand models at each density.
    found = newest(rows, "further")
    best = {p: found[f"privileged basis, density {p}"]["monosemantic_of_best"] for p in (1.0, 0.5, 0.3, 0.2, 0.15, 0.08, 0.04)}
    assert best == {1.0: 5, 0.5: 5, 0.3: 3, 0.2: 3, 0.15: 2, 0.08: 0, 0.04: 0}


@pytest.mark.xfail(strict=True, reason="none in the best model; of the ten best, eight have one, one has two, and one none")
def test_a_privileged_basis_where_one_neuron_is_left(rows):
    assert newest(rows, "further")["privileged basis, density 0.12"]["monosemantic_of_best"] == 1


def test_a_power_law(rows):
    # 2.14
    strong = newest(rows, "further")["power law, strong"]
    assert strong["slope"] == pytest.approx(-1, abs=0.1)
    assert strong["overlap_times_dimensions"] == pytest.approx([1] * 5, abs=0.05)
    weak = newest(rows, "further")["power law, weak"]
    assert max(weak["represented"]) < 1000
    assert weak["slope"] > -0.9


def test_memorisation(rows):
    # 2.12: who owns the two dimensions, and a peak of the test loss where nobody does.
    found = newest(rows, "memorisation")
    sizes = (3, 5, 8, 15, 30, 50, 100, 200, 300, 500, 700, 1000, 2000)
    assert all(rows["memorisation"][f"{size} inputs"]["settings"]["n"] == 1000 for size in sizes)
    by_size = {size: found[f"{size} inputs"] for size in sizes}
    assert all(len(f["test_loss"]) == 5 and f["best"] == f["train_loss"].index(min(f["train_loss"])) for f in by_size.values())
    # Few inputs: each is stored, and they share two dimensions among them.
    for size in (3, 5):
        assert max(by_size[size]["train_loss"]) < 1e-3
        assert size * by_size[size]["dimensionality_of_data"] == pytest.approx(2, abs=0.03)
        assert by_size[size]["dimensionality_of_data"] > 0.39
    # Many: five features in a thousand hold most of the two dimensions, and no input holds a tenth of one.
    many = by_size[2000]
    assert min(many["largest_of_features"][:5]) > 0.25 > 0.05 > many["largest_of_features"][5]
    assert many["share_of_five_features"] > 0.7
    assert many["largest_of_data"] < 0.1
    # Between: neither, and a worse model than one that predicts nothing, whose loss is 1.
    for size in (200, 300, 500):
        between = by_size[size]
        assert max(between["largest_of_features"][0], between["largest_of_data"]) < 0.05
        assert min(between["test_loss"]) > 10
    test = [f["test_loss_of_best"] for f in by_size.values()]
    assert max(test[:3]) < 1.2
    assert max(test[-2:]) < 1
    assert 30 < max(test) == by_size[500]["test_loss_of_best"]


def test_regular_polygons_are_critical_points(rows):
    # 2.13, for all signs of the biases of features without a corner.
    found = newest(rows, "kgons")["critical points"]
    assert {name[0] for name in found} == {"0", "2", "3", "4", "5", "6"}
    assert len(found) == 7 + 5 + 4 + 3 + 2 + 1
    assert max(f["gradient_norm"] for f in found.values()) < 1e-8
    assert max(f["off_regular"] for f in found.values()) < 1e-8
    by_corners = [found[name]["loss"] for name in ("0++++++", "2++++", "3+++", "4++", "5+", "6")]
    assert by_corners == pytest.approx([0.29167, 0.19444, 0.14583, 0.09722, 0.06180, 0.04819], abs=1e-5)
    assert by_corners == sorted(by_corners, reverse=True)


@pytest.mark.parametrize("scale", ["0.001", "0.1", "1"])
def test_the_plateaus_of_descent(rows, scale):
    # 2.13: from one plateau to the next the loss falls and the estimated learning coefficient rises, however localised.
    found = newest(rows, "kgons")[f"plateaus from {scale}"]
    points, sequences = found["points"], found["sequences"]
    assert len(sequences) == 32
    assert max(p["gradient_norm"] for p in points.values()) < 1e-8
    assert all(p["coefficient"]["stated"]["acceptable"] for p in points.values())
    steps = {(a["point"], b["point"]) for seen in sequences for a, b in itertools.pairwise(seen)}
    assert len(steps) >= 1
    for a, b in steps:
        assert points[a]["loss"] > points[b]["loss"]
        for label in ("stated", "half step size", "half localisation", "localisation 10"):
            first, second = points[a]["coefficient"][label], points[b]["coefficient"][label]
            assert second["value"] - first["value"] > 3 * math.hypot(first["standard_error"], second["standard_error"])
    for p in points.values():  # half the step size changes little: by 3 % where the loss curves most, or by noise
        stated, half = (p["coefficient"][label] for label in ("stated", "half step size"))
        noise = math.hypot(stated["standard_error"], half["standard_error"])
        assert abs(stated["value"] - half["value"]) < 0.03 * half["value"] + 3 * noise


@pytest.mark.full
def test_the_smoke_run(tmp_path):
    script, out = ROOT / "benchmarks" / "bench_toy_models.py", tmp_path / "rows.jsonl"
    checks = ["saddle", "hysteresis", "bias", "phase"]
    command = [sys.executable, str(script), *checks, "--smoke", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert list(dict.fromkeys(json.loads(line)["check"] for line in out.read_text().splitlines())) == checks
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines() == [f"{check}: already there" for check in checks]


@pytest.mark.full
def test_every_check_runs_small(tmp_path):
    script, out = ROOT / "benchmarks" / "bench_toy_models.py", tmp_path / "rows.jsonl"
    command = [sys.executable, str(script), *CASES, "--smoke", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    found = [(row["check"], row["case"]) for row in map(json.loads, out.read_text().splitlines())]
    assert list(dict.fromkeys(check for check, _ in found)) == list(CASES)
    assert len(set(found)) == len(found)


def test_the_census_goes_on_after_a_kill(tmp_path):
    # The rows that a killed run has left are kept, and only what is missing is computed: the file ends as it would have.
    script, out = ROOT / "benchmarks" / "bench_toy_models.py", tmp_path / "rows.jsonl"
    command = [sys.executable, str(script), "census", "--smoke", "--seeds", "150", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    whole = out.read_text().splitlines(keepends=True)
    assert len(whole) == 2
    out.write_text(whole[0])
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines()[0] == "census seeds 1-100: already there"
    assert "census: 100%" in again.stderr  # the progress bar
    rest = out.read_text().splitlines(keepends=True)
    assert rest[0] == whole[0]
    assert [json.loads(line)["found"] for line in rest] == [json.loads(line)["found"] for line in whole]
