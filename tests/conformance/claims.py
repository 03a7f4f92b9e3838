"""What a workflow can say and what happens then: each sentence of it is a claim, and each claim has a test.

    @claim("Arguments", "A path goes through mappings, attributes and list indices.")
    async def test_a_path(): ...

`tests.conformance.table` makes `docs/conformance.md` of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

HERE: Final = Path(__file__).parent

SECTIONS: Final = (
    "Arguments",
    "Values",
    "Outcomes of a step",
    "Compensation and undo",
    "Halting and cancelling",
    "Kinds: step",
    "Kinds: map",
    "Kinds: collect, template, debug, flunk",
    "Kinds: compose",
    "Kinds: switch",
    "Kinds: group and around",
    "Kinds: recurse and iterate",
    "Kinds: nested in each other",
    "Context and builder",
    "Running",
    "Starting and stopping",
    "Time and clocks",
    "Two ways to call it",
    "The command line",
    "When the world misbehaves",
    "Resilience patterns",
    "Resources",
    "Traces",
    "Where Reactor was caught",
    "Where Kailash was caught",
    "Where orchwf was caught",
    "What users of durable systems complain of",
)
"""In the order of the table."""

FIRST: Final = (
    "test_outcomes.py", "test_retries.py", "test_compensation.py", "test_undo.py", "test_doubt.py", "test_halting.py",
    "test_cancelling.py", "test_exceptions.py",
)  # fmt: skip
"""Files whose claims come before those of other files in a section, in this order; of the others the name decides."""


class Claim(NamedTuple):
    """A sentence, and the test that stands for it."""

    section: str
    words: str
    file: str
    test: str


def claim(section: str, words: str) -> pytest.MarkDecorator:
    """What the decorated test shows.

    Raises:
        ValueError: there is no such section, or the words are no sentence.
    """
    if section not in SECTIONS:
        raise ValueError(f"no section {section!r}; the sections are {', '.join(SECTIONS)}")
    if not words.endswith(".") or "|" in words or "\n" in words:
        raise ValueError(f"a claim is a sentence on one line, with its full stop and without '|': {words!r}")
    return pytest.mark.claim(section, words)


def all_claims() -> list[Claim]:
    """Every claim of this suite: by section, then by file, then as they are written."""
    found = [made for path in sorted(HERE.glob("test_*.py"), key=_place) for made in _claims_of(path)]
    return sorted(found, key=lambda made: SECTIONS.index(made.section))


def _place(path: Path) -> tuple[int, str]:
    return FIRST.index(path.name) if path.name in FIRST else len(FIRST), path.name


def _claims_of(path: Path) -> Iterator[Claim]:
    module = importlib.import_module(f"tests.conformance.{path.stem}")
    for name, function in vars(module).items():
        if name.startswith("test_"):
            for mark in _marks(function):
                section, words = mark.args
                yield Claim(section, words, path.name, name)


def _marks(function: Any) -> list[pytest.Mark]:
    return [mark for mark in reversed(getattr(function, "pytestmark", [])) if mark.name == "claim"]
