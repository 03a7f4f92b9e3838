"""A store that is open, and whose file another connection keeps locked: who waits, where, and what is said."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import StoreError
from bitactor.ports import Claim
from mesh.stores import SqliteStore, database, sqlite
from mesh.stores.locks import SAY_AGAIN, SAY_ANOTHER, LockNotice
from tests.store_writes import BOUND, Loop, Told, first, fresh

LOGGER = logging.getLogger("bitactor.store")
WAITS = "waits for another process that keeps this file locked (this process, by another connection)"


class Heard(logging.Handler):
    """Keeps what the log says of the store, and does something each time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self.react: Callable[[], object] = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self.react()


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    LOGGER.addHandler(handler)
    yield handler
    LOGGER.removeHandler(handler)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
async def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteStore]:
    monkeypatch.setattr(database, "SAY_AFTER", 0.0)
    loop = asyncio.get_running_loop()
    store = SqliteStore(path, notify=loop.call_soon_threadsafe, lease=3_600.0, patience=BOUND)
    store.open("owner-1")
    yield store
    store.close()


@pytest.fixture
def locked(path: Path, store: SqliteStore) -> Iterator[sqlite3.Connection]:
    """A connection that has begun to write, and ends when it is told."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def left_by_another(path: Path) -> str:
    """A transaction that another owner has given back."""
    loop, told, transaction = Loop(), Told(), fresh()
    other = SqliteStore(path, notify=loop.notify)
    other.open("other")
    other.append([first(transaction)], told.done())
    other.close()
    return transaction


@pytest.fixture
def given_back(path: Path, store: SqliteStore) -> str:
    return left_by_another(path)


async def test_the_loop_goes_on_while_a_takeover_waits(
    given_back: str, store: SqliteStore, locked: sqlite3.Connection, heard: Heard
) -> None:
    """Who keeps the file lets it go at a turn of the loop: if that stood still, the takeover would fail."""
    loop = asyncio.get_running_loop()
    heard.react = lambda: loop.call_soon(locked.execute, "ROLLBACK")
    [claim] = await store.claim()
    assert claim[:3] == (given_back, 1, True) and claim.pulses
    assert len(heard.said) == 1 and WAITS in heard.said[0]
    locked.execute("BEGIN IMMEDIATE")
    assert await store.claim() == await store.unclaimed({}) == [], "where there is nothing to take, nobody waits"


@pytest.mark.parametrize("ask", ["claim", "reclaim"])
async def test_who_is_cancelled_leaves_nothing_half_done(
    ask: str, given_back: str, store: SqliteStore, locked: sqlite3.Connection, heard: Heard
) -> None:
    own, told = fresh(), Told()
    locked.execute("ROLLBACK")
    store.append([first(own)], told.done())
    locked.execute("BEGIN IMMEDIATE")
    waiting = asyncio.ensure_future(store.claim() if ask == "claim" else store.reclaim(()))
    heard.react = waiting.cancel
    with pytest.raises(asyncio.CancelledError):
        await waiting
    locked.execute("ROLLBACK")
    store.append([first(fresh())], told.done())
    assert [refusals or error for _, refusals, error in told.outcomes] == [None, None], "the connection is free"
    assert Claim(own, 1) in await store.reclaim([given_back]), "the first epoch after it began"
    assert [claim[:3] for claim in await store.claim()] == [(given_back, 1, True)]


async def test_closing_the_store_ends_the_waiting(
    store: SqliteStore, locked: sqlite3.Connection, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CLOSING_PATIENCE", 0.0)
    waiting = asyncio.ensure_future(store.reclaim(()))
    loop = asyncio.get_running_loop()
    heard.react = lambda: loop.call_soon(store.close)
    with pytest.raises(StoreError, match="was closed while it waited"):
        await waiting


async def test_an_append_that_waits_says_who_has_the_file(
    path: Path, store: SqliteStore, locked: sqlite3.Connection, heard: Heard
) -> None:
    """Once, however many wait; the lease's thread has nothing to do for an hour."""
    loop, told, kept = asyncio.get_running_loop(), Told(), asyncio.Event()
    heard.react = lambda: loop.call_soon_threadsafe(locked.execute, "ROLLBACK")
    store.append([first(fresh())], told.done())
    second = told.done()
    store.append([first(fresh())], lambda refusals, error: (second(refusals, error), kept.set()))
    async with asyncio.timeout(BOUND):
        await kept.wait()
    assert [refusals or error for _, refusals, error in told.outcomes] == [None, None]
    [line] = heard.said
    assert line == (f"{path}: {WAITS}, for up to {BOUND:g} s; end what holds it (`fuser {path}` names who has it open)")


async def test_a_lease_that_waits_says_who_has_the_file(path: Path, locked: sqlite3.Connection, heard: Heard) -> None:
    """Also where nothing is written; and then that it could not be renewed, and by whom."""
    loop, twice = asyncio.get_running_loop(), asyncio.Event()
    locked.execute("ROLLBACK")
    store = SqliteStore(path, notify=loop.call_soon_threadsafe, lease=0.15)
    store.open("owner-2")
    try:
        heard.react = lambda: loop.call_soon_threadsafe(twice.set) if len(heard.said) == 2 else None
        locked.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(BOUND):
            await twice.wait()
        locked.execute("ROLLBACK")
    finally:
        store.close()
    waits, failed = heard.said
    assert waits.startswith(f"{path}: {WAITS}, for up to 0.05 s")
    assert failed == (
        f"{path}: the lease of owner 'owner-2' could not be renewed: database is locked (this process, by another "
        "connection)"
    )


def test_a_lock_is_told_once_while_it_lasts(path: Path, heard: Heard) -> None:
    now = 0.0
    notice = LockNotice(path, lambda: now)
    for _ in range(3):
        notice.say(5.0)
    assert len(heard.said) == 1
    now = SAY_AGAIN
    notice.say(5.0)
    notice.say(5.0)
    assert len(heard.said) == 2, "it lasts still"
    notice.end()
    now += SAY_ANOTHER / 2
    notice.say(5.0)
    assert len(heard.said) == 2, "one that comes and goes does not fill the log"
    notice.end()
    now += SAY_ANOTHER / 2
    notice.say(5.0)
    assert len(heard.said) == 3
