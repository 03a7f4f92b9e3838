"""Every public name is told of in `docs/reference`, which is what `python -m tests.reference` makes of the code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.public_face import MODULES, listed_members, listed_names
from tests.reference import PAGES, doc_of, made

DOCS = PAGES.parent
MAKE = "run `python -m tests.reference`"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.name)
def test_a_page_is_as_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == made(text), f"{page.name} is not current; {MAKE}"


def told() -> dict[str, str]:
    """Name → what the reference says where it is told: its row, or all behind its heading; of two of one name, both."""
    found: dict[str, str] = {}
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for row in re.finditer(r"(?m)^\| `(\w+)[^`]*` \| (.*) \|$", text):
            found.setdefault(row[1], row[2])
        for part in re.split(r"(?m)^### ", text)[1:]:
            name = re.match(r"`(\w+)`", part)
            assert name, part
            said = re.split(r"(?m)^(?:## |<!-- end)", part)[0]
            found[name[1]] = said + (found[name[1]] if found.get(name[1], "").startswith("`") else "")
    return found


def untold() -> Iterator[str]:
    known = told()
    for module in MODULES:
        for name in listed_names(module):
            thing = getattr(importlib.import_module(module), name)
            if name not in known or not known[name].strip():
                yield f"{module}.{name}"
            elif isinstance(thing, type) and not issubclass(thing, BaseException):
                members = listed_members(thing)
                yield from (f"{name}.{one}" for one in members if not re.search(rf"`{one}\b", known[name]))


def test_every_public_name_is_told() -> None:
    assert not [*untold()], f"say what it does in its docstring, name it on a page of docs/reference, and {MAKE}"


def test_every_page_is_led_to() -> None:
    """A page that no other links to is not found."""
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    }
    folders = {page for page in pages if page.parent in linked}  # `decisions/` is linked as a whole
    assert not {page.resolve() for page in pages} - linked - folders - {DOCS.parent / "README.md"}


def test_a_docstring_is_taken_apart() -> None:
    doc = doc_of("""It does
    this.  See `bitactor.kinds.map`.

        code()

    More.

    Args:
        one, two: both,
            on two lines.
        three: the third.

    Options beside those of `step`:
        four: the fourth.

    Options: bind, after.

    Raises:
        OneError, OtherError: never.
    """)
    assert doc.text == "It does this."
    assert doc.more == ("More.", "Options beside those of `step`:", "Options: bind, after.")
    assert doc.items == {
        "one": "both, on two lines.", "two": "both, on two lines.", "three": "the third.", "four": "the fourth.",
    }  # fmt: skip
    assert doc.raises == ("`OneError`, `OtherError`: never.",)
