"""Airports of the world: extract, check, clean, load into two places side by side, report.

The data is what the package `airportsdata` ships: 28,000 airports, of which we want those with an IATA code.  Some of
their rows are bad.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bitactor import Context, Result, Workflow

COLUMNS = {"iata", "name", "city", "country", "elevation", "lat", "lon"}
FEWEST_ROWS = 1_000
FEET = 0.3048


class Job(BaseModel):
    """What to load, and where to."""

    source: Path
    metropolitan: Path
    """City codes by airport: what rows are enriched with."""
    database: Path
    archive: Path
    break_archive: bool = False
    """Let the second destination fail, to see the first one undone."""


airports = Workflow("etl.airports", input=Job, ttl=8, deadline=600)


@airports.step
def check(source: Path) -> dict[str, int]:
    """Quality check: the columns are there, and enough rows."""
    with source.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = COLUMNS - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{source.name} lacks the columns {', '.join(sorted(missing))}")
        rows = sum(1 for row in reader if row["iata"])
    if rows < FEWEST_ROWS:
        raise ValueError(f"{source.name} has {rows} airports with an IATA code; something is wrong with it")
    return {"rows": rows}


@airports.step
def cities(metropolitan: Path) -> dict[str, str]:
    """Airport → city code, `LGW` → `LON`."""
    with metropolitan.open(newline="") as file:
        return {row["Airport Code"]: row["City Code"] for row in csv.DictReader(file)}


def extract(source: Path, check: dict[str, int]) -> Iterator[dict[str, str]]:
    """The rows with an IATA code, one by one."""
    with source.open(newline="") as file:
        yield from (row for row in csv.DictReader(file) if row["iata"])


@airports.map(over=extract, batch=500, on_error="collect")
def clean(element: dict[str, str], cities: dict[str, str]) -> list[Any]:
    """One row: cleaned, enriched, validated; or an error, which is collected."""
    if not element["city"]:
        raise ValueError("no city")
    elevation = round(float(element["elevation"]) * FEET, 1)
    latitude, longitude = float(element["lat"]), float(element["lon"])
    if not (-430 <= elevation <= 5_000 and abs(latitude) <= 90 and abs(longitude) <= 180):
        raise ValueError(f"no place on earth: {latitude}, {longitude}, {elevation} m")
    code = element["iata"].upper()
    return [
        code,
        element["name"].strip(),
        element["city"].strip(),
        cities.get(code, code),
        element["country"],
        latitude,
        longitude,
        elevation,
    ]


@airports.step(bind={"rows": Result("clean", "results")})
def load_database(rows: list[list[Any]], database: Path, ctx: Context) -> int:
    """Into SQLite, all or nothing; a second try finds its own rows and replaces them."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS airports (iata TEXT PRIMARY KEY, name TEXT, city TEXT, metropolitan TEXT, "
            "country TEXT,"
            " latitude REAL, longitude REAL, elevation REAL, loaded_by TEXT)"
        )
        key = ctx.idempotency_key
        connection.executemany(
            "INSERT OR REPLACE INTO airports VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [[*row, key] for row in rows]
        )
    return len(rows)


@load_database.undo(in_doubt=True)
def unload_database(database: Path, ctx: Context) -> None:
    """Take back what this transaction loaded, whether or not it is known to have been."""
    with closing(sqlite3.connect(database)) as connection, connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'airports'").fetchone():
            connection.execute("DELETE FROM airports WHERE loaded_by = ?", [ctx.forward_key])


@airports.step(bind={"rows": Result("clean", "results")}, retries=1)
def load_archive(rows: list[list[Any]], archive: Path, break_archive: bool) -> int:
    """Into a file of JSON lines, which appears whole or not at all."""
    if break_archive:
        raise OSError(f"{archive.name}: the archive does not answer")
    fresh = archive.with_suffix(".part")
    with fresh.open("w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    fresh.replace(archive)
    return len(rows)


@load_archive.undo
def unload_archive(archive: Path) -> None:
    """The file goes."""
    archive.unlink(missing_ok=True)


@airports.step(
    bind={"errors": Result("clean", "errors"), "rows": Result("clean", "results"), "found": Result("check", "rows")}
)
def report(
    found: int, rows: list[list[Any]], errors: list[dict[str, Any]], load_database: int, load_archive: int
) -> dict[str, Any]:
    """What came of it."""
    reasons = Counter(error["error"].partition(": ")[2].partition(":")[0] for error in errors)
    return {
        "found": found,
        "loaded": load_database,
        "archived": load_archive,
        "bad": len(errors),
        "reasons": dict(reasons.most_common()),
        "countries": len({row[4] for row in rows}),
        "first_bad": f"row {errors[0]['index']} ({errors[0]['element']['iata']}): {errors[0]['error']}"
        if errors
        else "",
    }
