"""The main job, run once as a user runs it, and its report opened in a browser where there is one."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("tour") / "tour.html"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "mechfeat", "tour", "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done, out, time.perf_counter() - start


def test_it_takes_at_most_a_minute(ran):
    assert ran[2] <= 60


def test_it_prints_every_step_and_the_path(ran):
    done, out, _ = ran
    for step in (
        "1. Train a small CNN on handwritten digits",
        "2. List its hook points",
        "3. Find a feature direction, with its null and its interval",
        "4. Ablate it, and compare with ablating random directions",
        "5. Read the weights into a unit",
        "6. Measure superposition in its layers",
        "7. Plan, compute and prove its empirical NTK, layer by layer",
        "8. Predict training from the kernel, then train",
    ):
        assert step in done.stdout
    assert f"report: {out}" in done.stdout
    assert "train:" in done.stderr  # progress bars go to the error stream
    assert "random directions:" in done.stderr


def test_its_findings_are_what_it_says(ran):
    text = ran[1].read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.S)[1])
    findings = {f["name"]: f for f in data["findings"]}
    direction = findings["direction of digit 8 (AUROC, held out)"]
    removed = findings["fall of the log-odds of 8 on images of 8 (nats)"]
    assert direction["established"]
    assert direction["value"] > 0.9
    assert removed["established"]
    assert removed["value"] > 1.0
    foreseen = findings["share of the movement of 100 held-out digits that was foreseen, after 100 steps"]
    assert foreseen["established"]
    assert foreseen["value"] > 0.9
    assert len(findings) == 8


def test_the_report_shows_every_figure_without_network(ran, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: the report is not opened in a browser")
    out = ran[1]
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000"]
    command = [browser, *flags, *offline, "--enable-logging=stderr", "--dump-dom", out.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    figures = out.read_text(encoding="utf-8").count('class="plotly-graph-div"')
    assert figures >= 11
    drawn = re.findall(r'<div id="figure-\d+" class="plotly-graph-div js-plotly-plot"', done.stdout)
    assert len(drawn) == figures
    assert done.stdout.count('class="main-svg"') >= figures
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line and re.search("error|uncaught", line, re.I)]
