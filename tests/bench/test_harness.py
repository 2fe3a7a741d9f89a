import json
from pathlib import Path

import pytest
import torch

from mechfeat.bench import METHODS, PROBLEMS, Method, compare, write_rows
from mechfeat.bench.harness import oracle_kernel, peak_bytes, table
from mechfeat.bench.methods import jacobian_contraction
from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import ProofError

SMALL = PROBLEMS["mlp-16-32-4 n8"]


def test_problems_are_the_same_each_time():
    (a, x), (b, y) = SMALL.build(), SMALL.build()
    assert torch.equal(x, y)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert x.dtype == torch.float32


def test_oracle_in_blocks_is_the_oracle():
    module, x = SMALL.build(torch.float64)
    whole = torch.stack(list(oracle.empirical_ntk(module, x).values())).sum(0)
    torch.testing.assert_close(oracle_kernel(module, x, chunk=3), whole)


def test_the_peer_is_right_too():
    module, x = SMALL.build(torch.float64)
    torch.testing.assert_close(jacobian_contraction(module, x), oracle_kernel(module, x))


def test_a_wrong_method_is_not_timed():
    calls = []

    def wrong(module, x):
        calls.append(1)
        return METHODS["mechfeat"].run(module, x) * (1 + 1e-4)

    with pytest.raises(ProofError) as error:
        compare(SMALL, [METHODS["mechfeat"], Method("wrong", wrong)], repeats=3, memory=False)
    assert "It is not timed on 'mlp-16-32-4 n8': a wrong answer has no speed." in str(error.value)
    assert len(calls) == 1


def test_rows_and_table(tmp_path):
    rows = compare(SMALL, list(METHODS.values()), repeats=2, memory=False)
    write_rows(rows, tmp_path / "deep" / "rows.jsonl")
    write_rows(rows, tmp_path / "deep" / "rows.jsonl")
    back = [json.loads(line) for line in (tmp_path / "deep" / "rows.jsonl").read_text().splitlines()]
    assert len(back) == 2 * len(METHODS)
    assert back[0]["shape"] == [8, 4, 8, 4]
    assert back[0]["runs"] == 2
    text = table(rows)
    assert text.splitlines()[1].split()[:2] == ["method", "median"]
    assert len(text.splitlines()) == 2 + len(METHODS)


def test_peak_memory_counts_what_a_method_allocates(monkeypatch):
    """In a fresh process: at least the kernel, and far less than the interpreter."""
    grown = peak_bytes(PROBLEMS["digits-cnn n64"], METHODS["torch.func jacobian contraction"])
    if grown is None:
        pytest.skip("this system does not tell a process's high-water mark")
    jacobian = 64 * 10 * sum(p.numel() for p in PROBLEMS["digits-cnn n64"].build()[0].parameters()) * 4
    assert jacobian <= grown <= 8 * jacobian


ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "ntk.jsonl"


def test_committed_rows_hold_the_promise_on_speed_and_memory():
    """The MLP 784-1024-1024-10 at N=32, one thread: at least 100 times faster and 20 times less memory."""
    rows = {(r["problem"], r["method"]): r for r in map(json.loads, ROWS.read_text().splitlines())}
    ours = rows["mlp-784-1024-1024-10 n32", "mechfeat"]
    peer = rows["mlp-784-1024-1024-10 n32", "torch.func jacobian contraction"]
    assert (ours["date"][:10], ours["threads"], ours["commit"]) == (peer["date"][:10], peer["threads"], peer["commit"])
    assert ours["runs"] >= 5
    assert max(ours["error"], peer["error"]) <= 5e-6
    assert peer["median"] / ours["median"] >= 100
    assert peer["peak_bytes"] / ours["peak_bytes"] >= 20
    assert ("mlp-784-1024-1024-10 n32", "mechfeat first call") in rows


def test_readme_shows_the_committed_rows():
    import importlib.util

    spec = importlib.util.spec_from_file_location("tables", ROWS.parents[1] / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.main(check=True) == 0
