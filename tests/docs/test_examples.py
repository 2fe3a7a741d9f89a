"""The gallery scripts run, and what they assert holds."""

import runpy

import pytest

from tests.docs.pages import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("plot_*.py"))


def test_there_is_a_gallery():
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_the_script_runs(script):
    runpy.run_path(str(script), run_name="__main__")
