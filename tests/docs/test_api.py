"""Every public module has an API page."""

import mechfeat
from tests.docs.pages import DOCS


def test_every_public_module_has_a_page():
    modules = {name for name in mechfeat.__all__ if (getattr(mechfeat, name).__class__.__name__ == "module")}
    pages = {p.stem for p in (DOCS / "api").glob("*.md")} - {"index", "cli"}
    assert modules == pages


def test_every_page_documents_its_module():
    for page in (DOCS / "api").glob("*.md"):
        module = "mechfeat" if page.stem == "index" else f"mechfeat.{page.stem}"
        assert module in page.read_text(encoding="utf-8")
