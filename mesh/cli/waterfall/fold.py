"""A long waterfall folded: of rows that are alike (batches, rounds, elements, tries) the first and last stay, and all
that went wrong; the others become one row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from mesh.cli.waterfall.rows import FOLD, Row, Timeline

LONG: Final = 40
"""The most rows of a waterfall that is not folded."""
_FIRST, _LAST, _WRONG = 3, 1, 5
_NUMBER: Final = re.compile(r"(?<=/)(batch-)?\d+(?=/|$)|(?<=#)\d+$")
_USUAL: Final = frozenset(("completed", "undone", "skipped", "retried", "running"))


def folded(found: Sequence[Timeline]) -> list[Timeline]:
    """The timelines, with their rows folded if there are many."""
    if sum(len(timeline.rows) for timeline in found) <= LONG:
        return list(found)
    return [timeline._replace(rows=tuple(_folded(timeline.rows))) for timeline in found]


def _folded(rows: Sequence[Row]) -> list[Row]:
    families: dict[tuple[str, str, str], list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault((row.kind, row.direction, _alike(row.name)), []).append(place)
    dropped: set[int] = set()
    instead: dict[int, Row] = {}
    for (_, _, name), places in families.items():
        wrong = [place for place in places if rows[place].outcome not in _USUAL]
        kept = {*places[:_FIRST], *places[-_LAST:], *wrong[:_WRONG]}
        rest = [place for place in places if place not in kept]
        if len(rest) > 1:
            dropped.update(rest)
            instead[rest[0]] = _one_for([rows[place] for place in rest], name)
    return [instead.get(place, row) for place, row in enumerate(rows) if place in instead or place not in dropped]


def _alike(name: str) -> str:
    """The name of a row without the numbers that tell it from its like."""
    return _NUMBER.sub(lambda number: f"{number[1] or ''}*", name)


def _one_for(rows: Sequence[Row], name: str) -> Row:
    start, end = min(row.start_ns for row in rows), max(row.end_ns for row in rows)
    counts = Counter(row.outcome for row in rows)
    said = ", ".join(f"{number:,} {outcome.replace('_', ' ')}" for outcome, number in counts.most_common())
    [(outcome, _), *_] = counts.most_common(1)
    return Row(
        kind=FOLD, name=f"{len(rows):,} more: {name}", hop="", causes=(), spawn="", direction=rows[0].direction,
        attempt=0, ttl=min((row.ttl for row in rows if row.ttl is not None), default=None), start_ns=start, end_ns=end,
        took_ns=end - start, outcome=outcome, notes=(said,) if len(counts) > 1 else (),
    )  # fmt: skip
