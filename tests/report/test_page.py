import json
import re

import plotly.graph_objects as go
import pytest
import torch

from mechfeat.errors import ShapeError
from mechfeat.features import Finding
from mechfeat.report import Report


def page(tmp_path, fill):
    report = Report("A <title>", "Lead with `code` & more.")
    fill(report)
    return report.write(tmp_path / "deep" / "report.html").read_text(encoding="utf-8")


def test_plotly_stands_once_whatever_the_number_of_figures(tmp_path):
    def fill(report):
        for k in range(3):
            report.figure(go.Figure(go.Scatter(y=[k, 1])), f"Figure {k}")

    text = page(tmp_path, fill)
    assert text.count("plotly.js v") == 1
    assert text.count('class="plotly-graph-div"') == 3
    assert "Figure 2" in text


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    text = page(tmp_path, lambda r: r.figure(go.Figure(go.Scatter(y=[1]))))
    head = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href)=["'](https?:)?//""", head)
    assert not re.search(r"<script[^>]+src=", text)


def test_text_is_escaped(tmp_path):
    def fill(report):
        report.section("<b>", "a < b and `x > y`")
        report.table(("<h>", "n"), [("<td>", 3)])
        report.pre("<pre>")

    text = page(tmp_path, fill)
    assert "<title>A &lt;title&gt;</title>" in text
    assert "Lead with <code>code</code> &amp; more." in text
    assert "a &lt; b and <code>x &gt; y</code>" in text
    assert "<th>&lt;h&gt;</th>" in text
    assert "<td>&lt;td&gt;</td><td class=number>3</td>" in text
    assert "<pre>&lt;pre&gt;</pre>" in text


def test_findings_are_on_the_page_and_in_its_data(tmp_path):
    good = Finding(value=0.9, n=50, seed=7, null=torch.linspace(0.4, 0.6, 99), reliability=0.8, interval=(0.85, 0.95), settings={"k": 3})
    bad = Finding(value=0.5, n=5, seed=0)

    def fill(report):
        report.finding("good </script>", good)
        report.finding("bad", bad)

    text = page(tmp_path, fill)
    assert '<section class="finding yes">' in text
    assert '<section class="finding no">' in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.S)[1])
    assert [f["established"] for f in data["findings"]] == [True, False]
    assert data["findings"][0] == {
        "name": "good </script>",
        "value": 0.9,
        "interval": [0.85, 0.95],
        "p": 0.01,
        "reliability": 0.8,
        "n": 50,
        "seed": 7,
        "established": True,
        "settings": {"k": 3},
    }


def test_a_row_of_another_length_is_refused(tmp_path):
    with pytest.raises(ShapeError) as error:
        Report("x").table(("a", "b"), [(1, 2), (1,)])
    assert str(error.value) == "Row 1 has 1 cells under 2 column names."
