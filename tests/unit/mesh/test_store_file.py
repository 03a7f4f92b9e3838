"""A journal whose file vanishes, is another one, or is overwritten while it is open: noticed, nothing is written."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from bitactor.errors import StoreError
from bitactor.ports import StoreFault
from mesh.runtime.settled import at_once
from mesh.stores import SqliteStore
from mesh.stores.store_file import StoreFile
from tests.store_writes import Loop, Told, first, fresh

Change = Callable[[Path], object]


def companion(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def replace(path: Path) -> None:
    shutil.copy(path, f"{path}.copy")
    Path(f"{path}.copy").replace(path)


def overwrite(path: Path) -> None:
    """As `cp backup.db pulses.db` does."""
    path.write_bytes(path.with_name("backup.db").read_bytes())


CHANGES: dict[str, tuple[Change, str]] = {
    "deleted": (Path.unlink, "was deleted or moved away"),
    "replaced": (replace, "was replaced by another file"),
    "its log deleted": (  # or replaced, if a thread has just begun to look at the file, which makes SQLite make one
        lambda path: companion(path, "-wal").unlink(), "pulses.db-wal was (deleted or moved away|replaced)",
    ),
    "its index replaced": (lambda path: replace(companion(path, "-shm")), "pulses.db-shm was replaced"),
    "its directory moved": (lambda path: path.parent.rename(path.parent.with_name("away")), "was deleted or moved"),
    "truncated": (  # a thread that opens an empty file just now makes SQLite delete the log
        lambda path: os.truncate(path, 0), "was truncated or overwritten|pulses.db-wal was deleted",
    ),
    "a backup in its place": (overwrite, "was (truncated or )?overwritten"),
    "something else in its place": (  # a look may come after it was emptied, and before there is something else
        lambda path: path.write_bytes(b"x" * 2_000_000), "was (truncated or )?overwritten|pulses.db-wal was deleted",
    ),
    "its link turned": (
        lambda path: (path.unlink(), path.symlink_to(path.with_name("backup.db"))), "was replaced by another file",
    ),
}  # fmt: skip


def fill(store: SqliteStore, number: int = 200) -> None:
    store.append([first(fresh()) for _ in range(number)], Told().done())


def checkpoint(path: Path) -> None:
    """All of the log is in the file; what is not, SQLite would write over what a test puts there."""
    with closing(sqlite3.connect(path)) as connection:
        for _ in range(10_000):
            _, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages == moved:
                return
    raise AssertionError("somebody reads for ever")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "pulses.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, notify=lambda call: None)
    store.open("one")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(path.with_name("backup.db"))) as backup:
        source.backup(backup)
    fill(store)
    checkpoint(path)
    yield store
    with suppress(StoreError):
        store.close()


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_noticed_and_nothing_more_is_written(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next look; it is told once, on the loop."""
    monkeypatch.setattr("mesh.stores.threads.LOOK_INTERVAL", 0.01)
    change, says = CHANGES[name]
    loop, faults = Loop(), list[StoreFault]()
    store = SqliteStore(path, notify=loop.notify)
    store.on_fault = faults.append
    store.open("one")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(path.with_name("backup.db"))) as backup:
        source.backup(backup)
    fill(store)
    checkpoint(path)
    change(path)
    loop.run_until(lambda: bool(faults))
    (fault,) = faults
    assert fault.lost and not fault.transaction
    with pytest.raises(StoreError, match=says) as raised:
        store.reader().list()
    assert str(raised.value) == fault.why
    told = Told()
    store.append([first(fresh())], told.done())
    ((_, _, error),) = told.outcomes
    assert isinstance(error, StoreError) and str(error) == fault.why
    for answer in (store.claim(), store.reclaim(())):
        with pytest.raises(StoreError, match=says):
            at_once(answer)
    backup = path.with_name("backup.db").read_bytes() if path.parent.exists() else b""
    store.close()
    assert not backup or path.with_name("backup.db").read_bytes() == backup, "what is not ours is not touched"


def test_what_a_journal_does_by_itself_is_no_fault(path: Path, store: SqliteStore) -> None:
    """Growing, shrinking by VACUUM, a table that somebody adds, a second node that comes and goes."""
    file = StoreFile(path)
    for number, statement in enumerate(("CREATE TABLE mine (a)", "VACUUM", "DROP TABLE mine", "VACUUM")):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement)
            assert not file.look() and not file.fault
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not file.look() and not file.fault, statement
        other = SqliteStore(path, notify=lambda call: None)
        other.open(f"other {number}")
        fill(other)
        other.close()
        assert not file.look() and not file.fault


def test_what_was_lost_stays_lost(path: Path, store: SqliteStore) -> None:
    """The same file back in its place does not help: nobody can tell what was done to it meanwhile."""
    file, away = StoreFile(path), path.with_name("away.db")
    path.rename(away)
    assert file.look() and "deleted or moved away" in file.fault
    away.rename(path)
    assert not file.look() and "restart this node" in file.fault
    other = SqliteStore(path, notify=lambda call: None)
    other.open("other")
    other.close()


def test_a_file_that_was_cut_is_noticed(path: Path, store: SqliteStore) -> None:
    file = StoreFile(path)
    os.truncate(path, path.stat().st_size // 8192 * 4096)
    assert file.look() and "was truncated or overwritten" in file.fault
    assert not file.look() and file.fault, "for good"


def test_a_file_that_vanishes_while_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(path, notify=lambda call: None)

    def register(*_: object) -> int:
        path.unlink()
        return 1

    monkeypatch.setattr("mesh.stores.sqlite.register", register)
    with pytest.raises(StoreError, match="vanished while it was opened"):
        store.open("one")
    store.close()
    assert not path.exists()


def test_what_another_file_has_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that finds damage because the file was replaced since it was looked at says that, not the damage."""

    class Replacing:
        def __init__(self, tell: Callable[[str, str], None]) -> None:
            self.tell = tell

        def work(self, connection: sqlite3.Connection) -> None:
            path.write_bytes(b"x" * 300_000)
            self.tell("a row of it is damaged", "")
            self.tell("pulse 0 cannot be read", "0" * 32)

    monkeypatch.setattr("mesh.stores.threads.LOOK_INTERVAL", 0.005)
    monkeypatch.setattr("mesh.stores.sqlite.Inspector", Replacing)
    loop, faults = Loop(), list[StoreFault]()
    store = SqliteStore(path, notify=loop.notify)
    store.on_fault = faults.append
    store.open("one")
    loop.run_until(lambda: bool(faults))
    store.close()
    assert loop.calls.empty() and [fault.lost for fault in faults] == [True]
