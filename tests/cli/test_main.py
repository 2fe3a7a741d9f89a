import json
import subprocess
import sys

import pytest
import torch

import mechfeat
from mechfeat.bench import METHODS
from mechfeat.cli import main
from tests.peers import needs


def test_info_names_versions_devices_and_what_does_not_work(capsys):
    needs("transformer_lens")
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"mechfeat {mechfeat.__version__}")
    assert torch.__version__ in text
    assert "TransformerLens models   yes (4." in text


def test_info_says_why_a_part_does_not_work(monkeypatch):
    from mechfeat.cli import info

    monkeypatch.setitem(sys.modules, "zarr", None)
    assert "out-of-core kernels      no: import of zarr halted; None in sys.modules. pip install 'mechfeat[store]'" in info.info()


def test_bench_smoke_prints_a_table_and_writes_rows(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "ntk", "--smoke", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["method"] for r in rows] == list(METHODS)
    assert {"mechfeat", "mechfeat first call", "torch.func jacobian contraction"} <= set(METHODS)
    assert all(r["error"] < 5e-6 and r["median"] > 0 for r in rows)
    assert "mlp-16-32-4 n8, float32" in capsys.readouterr().out


def test_bench_hooks_smoke(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "hooks", "--smoke", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    cases = {r["case"] for r in rows}
    assert {"raw torch hooks on all modules", "record every point", "record one point", "record to a quarter and stop"} <= cases
    assert all(r["ratio"] > 0 for r in rows)
    assert "an idle mf.point:" in capsys.readouterr().out


def test_errors_are_one_line_and_status_one(capsys):
    assert main(["bench", "ntk", "--problem", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("mechfeat: problem='nothing' is not known. It can be 'mlp-784-1024-1024-10 n32'")
    assert main(["bench", "ntk", "--repeats", "0"]) == 1
    assert capsys.readouterr().err == "mechfeat: repeats=0 is not known. It can be 'at least 1'.\n"


def test_wrong_usage_is_refused(capsys):
    with pytest.raises(SystemExit) as status:
        main(["nothing"])
    assert status.value.code == 2


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "mechfeat", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mechfeat.__version__
