"""The error pages say what the classes are, and their examples raise what they show."""

import inspect
import re

import pytest

from mechfeat import errors
from tests import peers
from tests.docs.pages import DOCS, blocks

PAGES = DOCS / "errors"
CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.MechfeatError)]
each = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
pytestmark = pytest.mark.usefixtures("unchecked")


def lead(cls):
    return inspect.getdoc(cls).splitlines()[0]


def tree(cls, depth=0):
    """The class and those below it, as the index lists them."""
    builtin = [f"`{b.__name__}`" for b in cls.__bases__ if not issubclass(b, errors.MechfeatError)]
    also = f" ({', '.join(builtin)})" if depth and builtin else ""
    yield f"{'  ' * depth}- {{doc}}`{cls.__name__}`{also}: {lead(cls)}"
    for below in CLASSES:
        if cls in below.__bases__:
            yield from tree(below, depth + 1)


def test_every_class_has_a_page_and_no_page_is_left_over():
    assert {p.stem for p in PAGES.glob("*.md")} - {"index"} == {c.__name__ for c in CLASSES}


def test_the_index_shows_the_tree():
    found = [line for line in (PAGES / "index.md").read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("- ")]
    assert found == list(tree(errors.MechfeatError))


@each
def test_the_page_names_the_class_its_meaning_and_its_bases(cls):
    text = (PAGES / f"{cls.__name__}.md").read_text(encoding="utf-8")
    bases = ", ".join(f"`{b.__name__}`" for b in cls.__bases__)
    assert text.startswith(f"# {cls.__name__}\n\n{lead(cls)}\n\nBases: {bases}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Symptom", "Cause", "Fix"]


@each
def test_the_example_raises_the_message_shown_and_the_fix_runs(cls):
    if cls is errors.NotCachedError:
        peers.needs("datasets")
    page = PAGES / f"{cls.__name__}.md"
    (line, symptom), *fixes = blocks(page, "python")
    ((_, shown),) = blocks(page, "text")
    namespace = {"__name__": page.stem}
    with pytest.raises(cls) as caught:
        exec(compile("\n" * line + symptom, str(page), "exec"), namespace)
    # The base is never raised itself.
    assert (caught.type is cls) == (cls is not errors.MechfeatError)
    # The page breaks long messages into lines.
    assert shown.split() == f"{caught.type.__name__}: {caught.value}".split()
    for line, fix in fixes:
        exec(compile("\n" * line + fix, str(page), "exec"), namespace)
