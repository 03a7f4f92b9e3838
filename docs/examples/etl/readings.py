"""A million readings from a file, in bounded memory: a lazy source, a batch a hop, loaded as they come."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from bitactor import Workflow

BATCH = 5_000
WIDTH = 24
"""Bytes of a line: with lines of one width, a map that goes on after a crash finds its place at once."""


def generate(path: Path, count: int) -> None:
    """A file of readings: number, sensor, value."""
    with path.open("w") as file:
        file.writelines(f"{number:08d},{number % 977:04d},{number * 7919 % 100_000:09d}\n" for number in range(count))


readings = Workflow("etl.readings", input={"source": str, "database": str}, deadline=600)


@readings.step
def prepare(database: str) -> str:
    """The table."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS readings (number INTEGER PRIMARY KEY, sensor INTEGER, value REAL)"
        )
    return database


def lines(source: str, start: int) -> Iterator[str]:
    """The lines of the file; `start` of them are done already."""
    with Path(source).open() as file:
        file.seek(start * WIDTH)
        yield from file


def total(so_far: dict[str, int], results: list[dict[str, int]]) -> dict[str, int]:
    """What was reduced so far, and what a batch answered."""
    return {name: so_far[name] + sum(result[name] for result in results) for name in so_far}


@readings.map(over=lines, batch=BATCH, whole=True, reduce=total, initial={"rows": 0, "bad": 0})
def load(elements: list[str], prepare: str) -> dict[str, int]:
    """A batch in one transaction of the database; its rows have keys, so that a second try changes nothing."""
    rows: list[tuple[Any, ...]] = []
    for line in elements:
        number, sensor, value = line.rstrip("\n").split(",")
        if int(value) % 1_000:
            rows.append((int(number), int(sensor), int(value) / 100))
    with closing(sqlite3.connect(prepare)) as connection, connection:
        connection.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?)", rows)
    return {"rows": len(rows), "bad": len(elements) - len(rows)}
