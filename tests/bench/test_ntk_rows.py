"""The committed rows hold what the library promises; the newest of each problem and method counts."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PEER, THEIRS = "torch.func jacobian contraction", "neural-tangents structured"


def unmet(measured):
    """A target that is asked for and not met: the test fails, and says so when it no longer does."""
    return pytest.mark.xfail(reason=f"not met: {measured}", raises=AssertionError)


def rows(name):
    found = {}
    for line in (RESULTS / name).read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["problem"], {})[row["method"]] = row
    return found


@pytest.mark.parametrize(
    ("problem", "time", "memory"),
    [
        ("mlp-784-1024-1024-10 n32", 200, 40),
        ("toy-16-128-128-1 n4096", 28, 1),
        ("vgg-like n64", 3.5, 1),
        ("resnet-18 n12", 1, 10),
        pytest.param("resnet-18 n12", 7.5, 10, marks=unmet("6.7x")),
        ("transformer-256 n32", 1.8, 5),
    ],
)
def test_against_jacobian_contraction(problem, time, memory):
    ours, peer = rows("ntk.jsonl")[problem]["mechfeat"], rows("ntk.jsonl")[problem][PEER]
    assert ours["runs"] >= 5
    assert peer["median"] >= time * ours["median"]
    assert peer["peak_bytes"] >= memory * ours["peak_bytes"]


def test_memory_of_a_large_kernel():
    ours = rows("ntk.jsonl")["mlp-784-1024-1024-10 n256"]["mechfeat"]
    assert ours["peak_bytes"] <= 1.5 * 2560**2 * 4 + 300e6


@pytest.mark.parametrize(
    ("problem", "time"),
    [
        pytest.param("mlp-784-1024-1024-10 n32", 1, marks=unmet("0.83x")),
        pytest.param("mlp-784-1024-1024-10 n256", 4, marks=unmet("3.0x")),
        ("toy-16-128-128-1 n4096", 10),
        ("vgg-like n64", 1.5),
        ("resnet-18 n12", 1.8),
    ],
)
def test_against_neural_tangents(problem, time):
    found = rows("ntk_peers.jsonl")[problem]
    assert found[THEIRS]["median"] >= time * found["mechfeat"]["median"]


@pytest.mark.parametrize(
    ("problem", "outputs", "time"),
    [
        ("transformer-256 n32", "pseudo", 6),
        pytest.param("resnet-18 n12", "pseudo", 6, marks=unmet("5.7x")),
        pytest.param("transformer-256 n32", "trace", 1.8, marks=unmet("1.4x")),
        ("mlp-784-1024-1024-10 n256", "trace", 1),
        ("vgg-like n64", "trace", 1),
        ("digits-cnn n64", "trace", 1),
        pytest.param("mlp-784-1024-1024-10 n32", "trace", 1, marks=unmet("0.91x")),
        pytest.param("toy-16-128-128-1 n4096", "trace", 1, marks=unmet("0.96x; of one output, trace and full are one computation")),
    ],
)
def test_reduced_outputs_cost_less(problem, outputs, time):
    found = rows("ntk.jsonl")[problem]
    assert found["mechfeat"]["median"] >= time * found[f"mechfeat {outputs}"]["median"]


def test_the_planner():
    found = [json.loads(line) for line in (RESULTS / "ntk_plan.jsonl").read_text().splitlines()][-30:]
    assert len({r["commit"] for r in found}) == 1
    assert sum(r["against_best"] <= 1.15 for r in found) >= 27
    assert sum(0.5 <= r["predicted_seconds"] / r["seconds"] <= 2 for r in found) >= 27


@unmet("22 of 30; small peaks are mostly what torch takes for itself")
def test_predicted_bytes():
    found = [json.loads(line) for line in (RESULTS / "ntk_plan.jsonl").read_text().splitlines()][-30:]
    assert sum(1 / 1.3 <= r["predicted_bytes"] / r["peak_bytes"] <= 1.3 for r in found) >= 27


def test_twenty_thousand_samples_under_a_cap():
    row = json.loads((RESULTS / "ntk_capped.jsonl").read_text().splitlines()[-1])
    assert row["n"] == 20_000
    assert row["kernel_bytes"] < row["peak_bytes"] <= row["cap_bytes"] == 2_000_000_000
    assert row["error"] <= 5e-6
    assert row["eigenvalues_error"] <= 1e-4


def more(section):
    found = {p.removesuffix(f", {section}"): m for p, m in rows("ntk_more.jsonl").items() if p.endswith(f", {section}")}
    assert all(r["runs"] >= 5 and r["error"] <= 5e-6 for methods in found.values() for r in methods.values())
    return found


@pytest.mark.parametrize(
    ("section", "problem", "time"),
    [
        ("two", "mlp-784-1024-1024-10 n32", 50),
        ("two", "vgg-like n64", 2.5),
        ("two", "resnet-18 n12", 3.5),
        ("two", "transformer-256 n32", 1.5),
        ("products", "mlp-784-1024-1024-10 n32", 1000),
        ("products", "digits-cnn n64", 20),
        ("nngeometry", "mlp-784-1024-1024-10 n32", 10),
        ("nngeometry", "toy-16-128-128-1 n4096", 3),
        ("nngeometry", "vgg-like n64", 10),
        ("threads", "mlp-784-1024-1024-10 n32", 100),
        ("threads", "toy-16-128-128-1 n4096", 20),
        ("threads", "vgg-like n64", 2.5),
        ("threads", "resnet-18 n12", 3.5),
        ("threads", "transformer-256 n32", 1.5),
    ],
)
def test_other_ways_take_longer(section, problem, time):
    ours, theirs = sorted(more(section)[problem].values(), key=lambda r: not r["method"].startswith("mechfeat"))
    assert theirs["median"] >= time * ours["median"]
    assert (ours["threads"] > 1) == (section == "threads")


def test_growing_batches():
    found = more("sweep")
    times = [found[f"mlp-784-1024-1024-10 n{n}"]["mechfeat"]["median"] for n in (8, 16, 32, 64, 128, 256, 512)]
    assert times[-1] < 64 * times[0]  # 64 times the samples, 4,096 times the entries
    peers = {p: m[PEER]["median"] / m["mechfeat"]["median"] for p, m in found.items() if PEER in m}
    assert len(peers) == 4
    assert min(peers.values()) >= 30
