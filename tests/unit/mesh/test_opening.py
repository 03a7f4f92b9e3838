"""Journals that are damaged when a node opens them: what is the whole file's is refused, with what, where, and what to
do; what is a transaction's own is that one's.

What opening said of these before it looked (found by doing each to a file that a killed process had left), and says:

| damage | before | now |
|---|---|---|
| a table of those that are written missing, a column missing or renamed | opened; each write or look failed | refused |
| an index missing, or its condition another | opened; a key was taken twice | refused |
| words missing or their page damaged; the last number missing | an error of SQLite's or Python's own | refused |
| the last number lower than one that has rows, none, or too high | opened; numbers given again, no write | refused |
| the schema's version lower than it is | "unexpected" | refused |
| the root page of a table or an index damaged | opened; writes failed | refused |
| the file empty, its log beside it | opened, all was lost | refused |
| a log that is no log | opened, what was in it was lost | that, said as an error |
| an owner's name that is no text, its number none | opened; nobody's work was taken over | taken over |
| a pipe, a socket, a device | blamed on the disk | refused |
| the header, a part of the schema, a file cut by pages, zeros, another program's | refused | the same |
| -shm, whatever it has | opened, nothing lost | the same |
| the newest row of the log, or of transactions, another | opened, its transaction parked | the same |
| -wal cut or damaged inside; the newest row of the log gone whole | opened, as of before those commits | the same |
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import StoreError
from mesh.runtime.settled import at_once
from mesh.stores import SqliteStore
from mesh.stores.journal.parts import log_id
from mesh.stores.journal.schema import ends_of, statements_of
from mesh.stores.lease import register
from mesh.stores.liveness import Identity
from tests.journal_damage import flip
from tests.store_writes import Told, first, fresh, last

Damage = Callable[[Path], object]
NO_TEXT = "CAST(x'ff' AS TEXT)"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal that a process left which is gone, all of it in the file: three transactions that are open, one not."""
    live = tmp_path / "live.db"
    with monkeypatch.context() as context:
        context.setattr("mesh.stores.sqlite.identify", lambda: Identity(1 << 23, "", 1))
        store = SqliteStore(live, notify=lambda call: None)
    store.open("one")
    told, settled = Told(), fresh()
    for writes in ([first(settled)], [first(fresh())], [last(settled, 2)], [first(fresh()), first(fresh())]):
        store.append(writes, told.done())
    assert not any(error or refusals for _, refusals, error in told.outcomes)
    path = tmp_path / "pulses.db"
    with closing(sqlite3.connect(live)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = WAL").fetchone()
        copy.execute("UPDATE owners SET expires_ns = 0")
        copy.commit()
    store.close()
    return path


def sql(*statements: str) -> Damage:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            for statement in statements:
                file.execute(statement)

    return damage


def overwrite(at: int, data: bytes) -> Damage:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return damage


def instead(was: bytes, now: bytes) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes().replace(was, now, 1))


def root_of(name: str) -> Damage:
    """The first bytes of the root page of a table or an index."""

    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path)) as file:
            [page] = file.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
        overwrite((page - 1) * 4096, b"\xee" * 64)(path)

    return damage


def emptied_beside_its_log(path: Path) -> None:
    os.truncate(path, 0)
    path.with_name("pulses.db-wal").write_bytes(b"\x37\x7f\x06\x82" + b"x" * 100)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


TABLES = ("owners", "transactions", "log", "archive", "numbers", "blobs", "blob_uses", "words")
REFUSED: dict[str, tuple[Damage, str]] = {
    **{f"no {name}": (sql(f"DROP TABLE {name}"), f"table {name} is missing") for name in TABLES},
    "no key": (sql("DROP INDEX transactions_by_key"), "index transactions_by_key is missing"),
    "no index of the open": (sql("DROP INDEX transactions_open"), "index transactions_open is missing"),
    "no column": (sql("ALTER TABLE transactions DROP COLUMN head"), "table transactions is another"),
    "a column of another name": (instead(b"log_id  ", b"log_jd  "), "table archive is another"),
    "another condition": (instead(b"WHERE open = 1", b"WHERE open = 3"), "index transactions_open is another"),
    "version 0": (sql("PRAGMA user_version = 0"), r"schema version 0, and has \d+ tables"),
    "version 2": (sql("PRAGMA user_version = 2"), "is another than what a journal of schema version 2 has"),
    "a version below 0": (sql("PRAGMA user_version = -1"), "schema version -1"),
    "another program": (sql("PRAGMA application_id = 7"), "SQLite file of another program"),
    "no last number": (sql("DELETE FROM numbers"), "the table numbers, is None"),
    "a last number that is a text": (sql("UPDATE numbers SET last = 'x'"), "the table numbers, is 'x'"),
    "a last number that is too high": (sql("UPDATE numbers SET last = 1 << 40"), "the table numbers, is 1099511627776"),
    "a last number that is too low": (sql("UPDATE numbers SET last = 0"), "log row 10995.* is of owner 1"),
    "the root of the log": (root_of("log"), "the file is damaged"),
    "the root of transactions": (root_of("transactions"), "the file is damaged"),
    "the root of an index": (root_of("transactions_by_status"), "the file is damaged"),
    "the root of words": (root_of("words"), "the file is damaged"),
    "no header": (overwrite(0, b"X"), "that is no SQLite file"),
    "no page of the schema": (overwrite(100, bytes(3996)), "the file is damaged"),
    "fewer pages": (lambda path: os.truncate(path, 3 * 4096), "the file is damaged"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)), "that is no SQLite file"),
    "empty, with a log": (emptied_beside_its_log, "is empty, and pulses.db-wal beside it is not"),
    "a pipe": (a_pipe, "is no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_the_whole_files_is_refused(name: str, path: Path) -> None:
    damage, says = REFUSED[name]
    damage(path)
    was = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreError, match=says) as raised:
        opened(path)
    assert str(raised.value).startswith(str(path))
    assert path.is_fifo() or path.read_bytes() == was, "nothing is changed"


def newest_row_of_the_log(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        row, body = file.execute("SELECT id, body FROM log ORDER BY id DESC LIMIT 1").fetchone()
        file.execute("UPDATE log SET body = ? WHERE id = ?", (flip(body, 8 * 60), row))


NEWEST = "WHERE transaction_id = (SELECT max(transaction_id) FROM transactions)"
GOES_ON: dict[str, tuple[Damage, int]] = {
    "the newest row of the log": (newest_row_of_the_log, 2),
    "the newest transaction's workflow": (sql(f"UPDATE transactions SET workflow = {NO_TEXT} {NEWEST}"), 1),
    "the newest transaction's owner": (sql(f"UPDATE transactions SET owner = {NO_TEXT} {NEWEST}"), 0),
    "an owner's name": (sql(f"UPDATE owners SET owner = {NO_TEXT}"), 0),
    "an owner's number is a text": (sql("UPDATE owners SET number = 'x'"), 0),
    "an owner's number is too high": (sql("UPDATE owners SET number = 1 << 62"), 0),
    "no owners": (sql("DELETE FROM owners"), 0),
    "an index of a log that is not one": (lambda path: path.with_name("pulses.db-shm").write_bytes(b"x" * 32768), 0),
    "a table of somebody's": (sql("CREATE TABLE mine (a)", "CREATE INDEX by_a ON mine (a)"), 0),
}


@pytest.mark.parametrize("name", GOES_ON)
def test_what_is_a_transactions_own_is_that_ones(name: str, path: Path) -> None:
    """All that is open is taken over, and so many of it cannot be read."""
    damage, unreadable = GOES_ON[name]
    damage(path)
    store = opened(path)
    claims = at_once(store.claim())
    assert len(claims) == 3
    found = 0
    for claim in claims:
        try:
            assert len(store.reader().pulses(claim.transaction)) == 2
        except StoreError:
            found += 1
    assert found == unreadable
    told = Told()
    store.append([first(fresh())], told.done())
    assert told.outcomes == [(0, [], None)]
    store.close()


def test_a_number_that_has_rows_is_passed_over(path: Path) -> None:
    """Whoever's row of `owners`, or whichever row of the log, is damaged: their number is given to nobody."""
    sql(
        "UPDATE owners SET number = 2", f"UPDATE log SET id = {log_id(3, 7)} WHERE id = (SELECT max(id) FROM log)"
    )(path)  # fmt: skip
    opened(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        assert register(file, "three", Identity(1, "", 1), 0) == 5, "2 and 3 have rows, and 4 was given"


def test_a_log_that_is_none_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(path, path.with_name("pulses.db-wal"))
    opened(path).close()
    assert "pulses.db-wal is damaged, so what was committed last, and only there, is lost" in caplog.text


def opened(path: Path) -> SqliteStore:
    store = SqliteStore(path, notify=lambda call: None)
    store.open("two")
    return store


@pytest.mark.parametrize("version", [1, 2, 3])
def test_no_look_at_an_end_sorts(version: int) -> None:
    """Each goes to the end of a table or an index, so that it costs the same however much there is."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as file:
        for number in range(version):
            for statement in statements_of(number + 1):
                file.execute(statement)
        for query in ends_of(version):
            plan = " ".join(str(row[-1]) for row in file.execute(f"EXPLAIN QUERY PLAN {query}"))
            assert "TEMP B-TREE" not in plan, query
