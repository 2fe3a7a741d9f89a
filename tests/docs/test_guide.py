"""The code of the README and of every guide and theory page runs, and what it asserts holds."""

import pytest

from tests.docs.pages import DOCS, ROOT, blocks, run

PAGES = [ROOT / "README.md", *sorted((DOCS / "guide").glob("*.md")), *sorted((DOCS / "theory").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_code_of_the_page_runs(page):
    assert blocks(page, "python"), "a page without code shows nothing"
    run(page)
