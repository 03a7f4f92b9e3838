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
    monkeypatch.setattr(sqlite, "_CLOSING_PATIENCE", 0.0)
    waiting = asyncio.ensure_future(store.reclaim(()))
    loop = asyncio.get_running_loop()
    heard.react = lambda: loop.call_soon(store.close)
    with pytest.raises(StoreError, match="was closed while it waited"):
        await waiting
