"""`python -m tests.conformance.table`: run the suite, and write what came of each claim to `docs/conformance.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.claims import HERE, Claim, all_claims

PAGE: Final = HERE.parents[1] / "docs" / "conformance.md"
_NOT_RUN: Final = "not run"
_HEAD: Final = """# Conformance

What a workflow can say and what happens then, sentence by sentence, each with the test that shows it. The tests run on
a real `Mesh`, with real stores and processes; time is a fake clock's where it matters. The last sections are where
Elixir's Reactor, Kailash and orchwf were caught failing, and what users of durable systems complain of: each is a case
that passes here.

Made by `make conformance`, which runs the suite.
"""


class Results:
    """Test → how it ended; a test with several parameters passes if it does for each."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test has ended."""
        file, _, name = report.nodeid.partition("::")
        test = (Path(file).name, name.partition("[")[0])
        if report.failed:
            self.outcomes[test] = "**fails**"
        elif report.skipped:
            self.outcomes.setdefault(test, "skipped")
        elif report.when == "call":
            self.outcomes.setdefault(test, "passes")


def page(claims: Sequence[Claim], outcomes: Mapping[tuple[str, str], str]) -> str:
    """The page, in Markdown."""
    results = [outcomes.get((made.file, made.test), _NOT_RUN) for made in claims]
    passed = results.count("passes")
    lines = [_HEAD, f"{len(claims)} claims, of which {passed} pass."]
    for section, rows in groupby(zip(claims, results, strict=True), key=lambda row: row[0].section):
        lines += ["", f"## {section}", "", "| claim | test | result |", "|---|---|---|"]
        lines += [f"| {made.words} | {_link(made)} | {result} |" for made, result in rows]
    return "\n".join(lines) + "\n"


def rows_of(text: str) -> Iterator[tuple[str, str]]:
    """Claim and test of each row of a page; what came of it left out."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3 and cells[1].startswith("["):
            yield cells[0], cells[1]


def _link(made: Claim) -> str:
    return f"[{made.test.removeprefix('test_').replace('_', ' ')}](../tests/conformance/{made.file})"


def main() -> int:
    """Run, and write."""
    results = Results()
    status = pytest.main(
        ["-q", "-p", "no:cacheprovider", f"--ignore={HERE / 'test_table.py'}", str(HERE)], plugins=[results]
    )
    PAGE.write_text(page(all_claims(), results.outcomes))
    print(f"wrote {PAGE}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
