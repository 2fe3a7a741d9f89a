"""Reading the pages: their code blocks and messages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The fenced blocks of one language, each with the number of its first line, so that a traceback points into the page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)), m.group(2)) for m in _FENCE.finditer(text) if m.group(1) == language]


def run(page, namespace=None):
    """Execute the Python blocks of a page in order, in one namespace."""
    namespace = {"__name__": page.stem} if namespace is None else namespace
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    return namespace
