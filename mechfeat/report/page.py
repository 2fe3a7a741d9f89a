"""The page: text, tables and figures in order, written to one file that needs no network."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mechfeat.errors import ShapeError
from mechfeat.features import Finding

_STYLE = (Path(__file__).parent / "page.css").read_text()
# Figures are drawn on transparent ground; their ink follows the page between light and dark.
_SCRIPT = (Path(__file__).parent / "page.js").read_text()


class Report:
    """A page that grows part by part.

    Args:
        title: Its title.
        lead: A sentence or two on what it shows.

    Example:
        >>> import tempfile, pathlib
        >>> report = Report("Curves", "What the second layer sees.")
        >>> report.section("Result")
        >>> report.finding("Curve detector", Finding(value=0.9, n=50, seed=0))
        >>> path = report.write(pathlib.Path(tempfile.mkdtemp()) / "report.html")
        >>> "not established" in path.read_text()
        True
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._parts: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self._figures = 0
        self._data: dict[str, Any] = {"title": title, "findings": []}

    def section(self, title: str, text: str = "") -> None:
        """Begin a section.

        Args:
            title: Its heading.
            text: A paragraph under it; words between backticks are set as code.
        """
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self._sections.append((anchor, title))
        self._parts.append(f'<h2 id="{anchor}">{html.escape(title)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """Add a paragraph.

        Args:
            text: Plain text; words between backticks are set as code.
        """
        self._parts.append(f"<p>{_inline(text)}</p>")

    def pre(self, text: str) -> None:
        """Add text in which spaces count, such as a printed table.

        Args:
            text: The text.
        """
        self._parts.append(f'<div class="scroll"><pre>{html.escape(text)}</pre></div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table.

        Args:
            header: Column names.
            rows: Cells, shown as text; numbers are set to the right.

        Raises:
            ShapeError: A row has another number of cells than the header.
        """
        for i, row in enumerate(rows):
            if len(row) != len(header):
                raise ShapeError(f"Row {i} has {len(row)} cells under {len(header)} column names.")
        head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
        body = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in rows)
        self._parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')

    def finding(self, name: str, finding: Finding) -> None:
        """Add a finding: its numbers, its verdict, its settings.

        Args:
            name: What was found, in a few words.
            finding: The finding.
        """
        verdict = "established" if finding.established else "not established"
        interval = "–" if finding.interval is None else f"{finding.interval[0]:.4g} to {finding.interval[1]:.4g}"
        null = "–" if finding.null is None else f"median {float(finding.null.median()):.4g} of {finding.null.numel()}"
        p = "–" if finding.p_value is None else f"{finding.p_value:.2g}"
        reliability = "–" if finding.reliability is None else f"{finding.reliability:.2f}"
        cells = [
            ("value", f"{finding.value:.4g}"),
            ("95 % interval", interval),
            ("null", null),
            ("p", p),
            ("reliability", reliability),
            ("n", str(finding.n)),
            ("seed", str(finding.seed)),
        ]
        body = "".join(f"<div><dt>{k}</dt><dd>{html.escape(v)}</dd></div>" for k, v in cells)
        settings = ", ".join(f"{k} {v}" for k, v in finding.settings.items())
        self._parts.append(
            f'<section class="finding {"yes" if finding.established else "no"}"><h3>{html.escape(name)} <span>{verdict}</span></h3>'
            f"<dl>{body}</dl><p class='settings'>{html.escape(settings)}</p></section>"
        )
        self._data["findings"].append(
            {
                "name": name,
                "value": finding.value,
                "interval": finding.interval,
                "p": finding.p_value,
                "reliability": finding.reliability,
                "n": finding.n,
                "seed": finding.seed,
                "established": finding.established,
                "settings": _plain(finding.settings),
            }
        )

    def figure(self, fig: go.Figure, caption: str = "") -> None:
        """Add a figure.

        Args:
            fig: A plotly figure.
            caption: A sentence under it.
        """
        self._figures += 1
        identity = f"figure-{self._figures}"
        title = fig.layout.title.text
        # The title becomes text of the page, where it wraps on a narrow screen and follows the colours of the page.
        drawn = go.Figure(fig).update_layout(title=None, margin_t=28 if len(fig.layout.annotations) else 12)
        # full_html and include_plotlyjs are off: the script stands once in the head for all figures.
        div = drawn.to_html(full_html=False, include_plotlyjs=False, div_id=identity, config={"responsive": True, "displayModeBar": False})
        head = f"<h3>{_inline(title)}</h3>" if title else ""
        note = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{head}{div}{note}</figure>")

    def write(self, path: str | Path) -> Path:
        """Write the page.

        Args:
            path: Where; folders are made, an existing file is replaced.

        Returns:
            The absolute path.
        """
        path = Path(path).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        contents = "".join(f'<a href="#{a}">{html.escape(t)}</a>' for a, t in self._sections)
        plotly = f"<script>{get_plotlyjs()}</script>" if self._figures else ""
        data = json.dumps(self._data).replace("</", "<\\/")
        path.write_text(
            "<!doctype html>\n"
            f'<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light'
            f' dark"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>{plotly}</head>\n'
            f"<body><header><h1>{html.escape(self.title)}</h1><p>{_inline(self.lead)}</p><nav>{contents}</nav></header>\n<main>"
            + "\n".join(self._parts)
            + f'</main>\n<script type="application/json" id="data">{data}</script><script>{_SCRIPT}</script></body></html>\n',
            encoding="utf-8",
        )
        return path


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _cell(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td{' class=number' if number else ''}>{html.escape(text)}</td>"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, bool | int | float | str | None) else str(v) for k, v in settings.items()}
