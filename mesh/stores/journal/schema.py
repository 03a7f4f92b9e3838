"""The tables and indexes of a journal: how they are made, and whether a file has them, as far as a node looks when it
opens one, which costs the same however large the file is.

What a row says is not judged here: damage of one is its transaction's own.  But a table, index or column that is not
what it was, a number that would be given again, and an end of a table that SQLite cannot read are the whole file's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from bitactor.errors import StoreError
from mesh.stores.journal.parts import COMMIT_BITS, is_sound, log_id

UNCONVERTED: Final = "unconverted_pulses"
"""The table of an earlier release's pulses, as long as some are not brought into the form of this one."""

MOST_OWNERS: Final = (1 << 63 - COMMIT_BITS) - 1
"""Numbers of owners that ids of the log have room for."""

_FOLDER: Final = Path(__file__).parents[1] / "schema"
_RESTORE: Final = "stop every node that uses it, then put a sound copy there, without -wal and -shm"
_SHAPES: Final = (
    "SELECT type, name, tbl_name, CASE type WHEN 'index' THEN sql END FROM sqlite_schema"
    " WHERE type IN ('table', 'index', 'view') AND name NOT IN ('sqlite_sequence', 'sqlite_stat1', 'sqlite_stat4')"
)
_COLUMNS: Final = 'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)'
_KEYS: Final = "SELECT name FROM pragma_index_info(?) WHERE name IS NOT NULL"
_NEWEST_ROWS: Final = 20
_BEYOND: Final = "SELECT id, CAST(body AS BLOB) FROM log WHERE id >= ? ORDER BY id LIMIT 20"

Shape = tuple[Any, ...]
"""The columns of a table, or the table and the statement of an index."""


class _Schema(NamedTuple):
    """What a journal of some version has."""

    shapes: dict[str, Shape]
    """`table log`, `index transactions_open` → what it is."""
    ends: tuple[str, ...]
    """Queries for the newest rows of each table, and for the last of each index."""


def newest_version() -> int:
    """The version of the schema of this release."""
    return len(_migrations())


def statements_of(version: int) -> Iterator[str]:
    """The statements that make a journal of this version out of one of the version before."""
    statement = ""
    for line in _migrations()[version - 1].read_text(encoding="utf-8").splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def ends_of(version: int) -> tuple[str, ...]:
    """Queries for the newest rows of each table of this version, and for the last entry of each index."""
    return _schema_of(version).ends


def require_journal(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Make sure, inside a database transaction, that a file has what a journal of this version has.

    Raises:
        StoreError: it has not.
        sqlite3.Error: it is damaged where this looked.
    """
    schema = _schema_of(version)
    connection.text_factory = _lenient_text
    found = _shapes(connection)
    for name, shape in schema.shapes.items():
        if found.get(name) != shape:
            what = "is another than" if name in found else "is missing, which is among"
            raise StoreError(
                f"{path}: {name} {what} what a journal of schema version {version} has: the file is damaged, or "
                f"somebody changed it; {_RESTORE}"
            )
    for query in schema.ends:
        connection.execute(query).fetchall()
    if version >= _NUMBERED:
        _require_counter(connection, path)


_NUMBERED: Final = 3
"""The version of the schema since which owners have numbers."""


def _require_counter(connection: sqlite3.Connection, path: Path) -> None:
    """Make sure that no owner gets a number that another has written rows of the log under."""
    [last] = connection.execute("SELECT last FROM numbers WHERE name = 'owner'").fetchone() or [None]
    if type(last) is not int or not 0 <= last < MOST_OWNERS:
        raise StoreError(
            f"{path}: the number of the last owner, in the table numbers, is {last!r}, not one from 0 to "
            f"{MOST_OWNERS - 1}: the file is damaged; {_RESTORE}"
        )
    for row, body in connection.execute(_BEYOND, (log_id(last + 1, 0),)):
        if is_sound(row, body):  # else it is the row that is damaged
            raise StoreError(
                f"{path}: the table numbers says that {last} owners have had a number, and log row {row} is of owner "
                f"{row >> COMMIT_BITS}: a number would be given again; the file is damaged, or parts of it are of "
                f"another time; {_RESTORE}"
            )


@cache
def _migrations() -> tuple[Path, ...]:
    return tuple(sorted(_FOLDER.glob("[0-9]*.sql")))


@cache
def _schema_of(version: int) -> _Schema:
    """The schema of this version; what is gone again when a journal has been brought into its form is left out."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        for number in range(version):
            for statement in statements_of(number + 1):
                model.execute(statement)
        model.execute(f"DROP TABLE IF EXISTS {UNCONVERTED}")
        ends = tuple(
            _end_of_index(model, name, table, sql) if kind == "index" else _end_of_table(model, name)
            for kind, name, table, sql in model.execute(_SHAPES).fetchall()
            if kind != "view"
        )
        return _Schema(_shapes(model), ends)


def _shapes(connection: sqlite3.Connection) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for kind, name, table, sql in connection.execute(_SHAPES).fetchall():
        if kind == "table":
            shapes[f"table {name}"] = tuple(connection.execute(_COLUMNS, (name,)).fetchall())
        else:
            shapes[f"{kind} {name}"] = (table, " ".join(str(sql).split()))
    return shapes


def _end_of_table(model: sqlite3.Connection, table: str) -> str:
    """A query for its newest rows; not for what is long in them."""
    columns = model.execute(_COLUMNS, (table,)).fetchall()
    short = ", ".join(name for name, kind, *_ in columns if kind != "BLOB")
    try:
        model.execute(f"SELECT rowid FROM {table}")
        order = "rowid DESC"
    except sqlite3.OperationalError:  # it has none
        keys = sorted((key, name) for name, *_, key in columns if key)
        order = ", ".join(f"{name} DESC" for _, name in keys)
    return f"SELECT {short} FROM {table} ORDER BY {order} LIMIT {_NEWEST_ROWS}"


def _end_of_index(model: sqlite3.Connection, index: str, table: str, sql: str | None) -> str:
    """A query for its last entry."""
    keys = ", ".join(f"{name} DESC" for (name,) in model.execute(_KEYS, (index,)))
    where = " ".join((sql or "").split()).partition(" WHERE ")[2] or "1"
    return f"SELECT 1 FROM {table} INDEXED BY {index} WHERE {where} ORDER BY {keys} LIMIT 1"


def _lenient_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
