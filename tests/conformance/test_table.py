"""The table in the documentation has every claim there is."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter

import pytest

from tests.conformance.claims import HERE, all_claims, claim
from tests.conformance.table import PAGE, page, rows_of


def test_the_committed_table_has_these_claims() -> None:
    committed = list(rows_of(PAGE.read_text()))
    assert committed == list(rows_of(page(all_claims(), {}))), (
        "the claims have changed; run `make conformance` and commit the page"
    )


def test_every_test_of_the_suite_makes_a_claim() -> None:
    claimed = {(made.file, made.test) for made in all_claims()}
    for path in sorted(HERE.glob("test_*.py")):
        if path.name == "test_table.py":
            continue
        module = importlib.import_module(f"tests.conformance.{path.stem}")
        tests = [
            name for name, function in vars(module).items() if name.startswith("test_") and inspect.isfunction(function)
        ]
        assert not [name for name in tests if (path.name, name) not in claimed], path.name


def test_no_claim_is_made_twice() -> None:
    assert not [words for words, count in Counter(made.words for made in all_claims()).items() if count > 1]


@pytest.mark.parametrize(
    ("section", "words"), [("Argument", "It is."), ("Arguments", "no sentence"), ("Arguments", "a | b.")]
)
def test_a_claim_that_would_spoil_the_table_is_refused(section: str, words: str) -> None:
    with pytest.raises(ValueError, match="section" if section != "Arguments" else "sentence"):
        claim(section, words)
