"""What `SqliteStore` promises of messages, due times and forgetting beyond the contract."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bitactor.errors import ConfigurationError, DamagedJournal, InboxChanged, StoreError
from bitactor.messages.codec import encode_token
from bitactor.ports import Claim, Due, Sent, Write
from mesh.runtime.settled import at_once
from mesh.stores import SqliteInbox, SqliteReader, SqliteStore, database, open_inbox, register_store, sqlite, write
from mesh.stores.journal.verify import Fault
from tests.store_faults import Disk
from tests.store_writes import BOUND, Loop, Told, first, fresh, hop, last, message, pulse, taken


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
def file(path: Path) -> Iterator[Callable[..., list[Any]]]:
    """Somebody with an SQLite shell."""
    connections: list[sqlite3.Connection] = []

    def ask(statement: str, *values: object) -> list[Any]:
        if not connections:
            connections.append(sqlite3.connect(path, isolation_level=None, timeout=BOUND))
        return connections[0].execute(statement, values).fetchall()

    yield ask
    for connection in connections:
        connection.close()


File = Callable[..., list[Any]]
Opener = Callable[..., SqliteStore]


@pytest.fixture
def opened(path: Path) -> Iterator[Opener]:
    """Opens stores on `path`; closes them in the end."""
    stores: list[SqliteStore] = []

    def open_one(owner: str = "one", **options: Any) -> SqliteStore:
        store = SqliteStore(path, notify=Loop().notify, **{"lease": 3_600, **options})
        store.open(owner)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


def append(store: SqliteStore, *writes: Write) -> list[Exception]:
    told = Told()
    store.append(writes, told.done())
    [(_, refusals, error)] = told.outcomes
    assert error is None
    return [refusal.error for refusal in refusals]


def keep(store: SqliteStore, *writes: Write) -> None:
    assert not append(store, *writes)


def begun(store: SqliteStore, **fields: Any) -> str:
    transaction = fresh()
    keep(store, first(transaction)._replace(receives=True, **fields))
    return transaction


def faults(path: Path) -> list[Fault]:
    with SqliteReader(path) as reader:
        return [found for found in reader.verify() if isinstance(found, Fault)]


def test_every_question_is_answered_from_an_index(opened: Opener, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that the store asks of what waits, as it asks it."""
    asked: list[str] = []
    connect = sqlite.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(asked.append)
        return connection

    monkeypatch.setattr(sqlite, "connect", traced)
    store, other = opened(), opened("other")
    one = begun(store, due_ns=5)
    sent = [at_once(other.send(message(one, key=key))) for key in ("", "k", "k", "l")]
    at_once(store.due())
    at_once(store.inbox(one))
    at_once(store.arrived())
    keep(store, hop(one, 2)._replace(receives=True, read=[sent[0].id, sent[1].id]))
    keep(store, last(one, 4)._replace(unread=1))
    begun(store)
    assert at_once(store.forget(2**62)) == 1
    with closing(sqlite3.connect(path)) as people:
        for statement in asked:
            if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")) and "EXPLAIN" not in statement:
                plan = " | ".join(row[3] for row in people.execute(f"EXPLAIN QUERY PLAN {statement}"))
                assert "TEMP B-TREE" not in plan, (statement, plan)
                assert not [part for part in plan.split(" | ") if part.startswith("SCAN ") and not part.startswith(
                    ("SCAN CONSTANT", "SCAN json_each", "SCAN shape", "SCAN owners", "SCAN (subquery")
                )], (statement, plan)  # fmt: skip
    indexes = {"transactions_due", "transactions_ended", "inbox_unread", "inbox_by_key"}
    with closing(sqlite3.connect(path)) as people:
        plans = [row[3] for each in asked if each.startswith(("SELECT", "DELETE", "INSERT INTO inbox"))
                 for row in people.execute(f"EXPLAIN QUERY PLAN {each}")]  # fmt: skip
    assert not {name for name in indexes if not any(name in plan for plan in plans)}


def test_a_hop_is_one_statement_whatever_its_transaction_waits_for(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    connect = sqlite.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(said.append)
        return connection

    monkeypatch.setattr(sqlite, "connect", traced)
    store = opened()
    plain, waiting = fresh(), begun(store, due_ns=7)
    keep(store, first(plain))
    assert at_once(store.send(message(waiting))).outcome == "kept"
    keep(store, hop(plain, 2))  # which gives words their numbers
    said.clear()
    keep(store, hop(plain, 4))
    keep(store, hop(waiting, 2)._replace(receives=True, due_ns=7))
    assert len(said) == 2 and all(each.startswith("INSERT INTO log") for each in said), said
    said.clear()
    keep(store, last(plain, 6))
    assert not [each for each in said if "inbox" in each], "who receives nothing pays nothing"


def test_a_takeover_carries_what_is_waited_for(opened: Opener, file: File) -> None:
    store = opened()
    one = begun(store, due_ns=7)
    read = at_once(store.send(message(one, body=b"1", key="k")))
    keep(store, hop(one, 2)._replace(receives=True, due_ns=7, read=(read.id,)))
    assert at_once(store.send(message(one, body=b"2"))).outcome == "kept"
    file("UPDATE owners SET expires_ns = 0")
    heir = opened("heir")
    assert at_once(heir.due()) == [] and at_once(heir.arrived()).messages == []
    assert taken(heir.claim()) == [Claim(one, 1, given_back=True)]
    assert at_once(heir.due()) == [Due(one, 7)] and at_once(store.due()) == []
    assert [each.body for each in at_once(heir.inbox(one))] == [b"2"]
    assert [each.body for each in at_once(heir.arrived()).messages] == [b"2"]
    assert at_once(store.send(message(one, body=b"1", key="k"))) == Sent("known", read.id), (
        "from whom it was taken, too"
    )
    [error] = append(heir, last(one, 4, epoch=1))
    assert isinstance(error, InboxChanged) and error.unread == 1
    keep(heir, last(one, 4, epoch=1)._replace(unread=1))
    assert file("SELECT * FROM inbox") == []


def test_a_full_disk_keeps_no_message_and_forgets_nothing(
    opened: Opener, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = opened()
    one, ended = begun(store), fresh()
    keep(store, first(ended, open=False))
    disk.fill()
    with pytest.raises(StoreError, match="the disk is full; nothing was written"):
        at_once(store.send(message(one, body=bytes(100_000))))
    disk.protect()
    for change in (store.send(message(one)), store.forget(2**62)):
        with pytest.raises(StoreError, match="cannot be written"):
            at_once(change)
    disk.unprotect()
    disk.free()
    assert at_once(store.inbox(one)) == [] and len(store.reader().pulses(ended)) == 2
    assert at_once(store.send(message(one))).outcome == "kept" and at_once(store.forget(2**62)) == 1


def test_a_locked_file_lets_the_loop_go_on(opened: Opener, path: Path) -> None:
    """What is sent and appended meanwhile is kept in the order of the calls."""
    loop = Loop()
    store = SqliteStore(path, notify=loop.notify, lease=3_600)
    store.open("one")
    one = fresh()
    told = Told()
    store.append([first(one)._replace(receives=True)], told.done())
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(store):

        async def ask() -> tuple[Sent, list[Exception]]:
            running = asyncio.get_running_loop()
            loop.wake = lambda: running.call_soon_threadsafe(loop.run_waiting)
            other.execute("BEGIN IMMEDIATE")
            sending = [asyncio.ensure_future(store.send(message(one, body=body))) for body in (b"1", b"2")]
            await asyncio.sleep(0)
            ends: asyncio.Future[list[Exception]] = running.create_future()
            store.append([last(one, 2)], lambda refusals, error: ends.set_result([each.error for each in refusals]))
            behind = asyncio.ensure_future(store.send(message(one, body=b"3")))
            other.execute("COMMIT")
            async with asyncio.timeout(BOUND):
                assert [answer.outcome for answer in await asyncio.gather(*sending)] == ["kept", "kept"]
                return await behind, await ends

        behind, errors = asyncio.run(ask())
        assert behind.outcome == "kept" and isinstance(errors[0], InboxChanged) and errors[0].unread == 2


def test_a_message_that_is_not_what_was_sent_is_not_handed_out(opened: Opener, file: File) -> None:
    store = opened()
    one, other = begun(store), begun(store)
    ids = [at_once(store.send(message(id, body=b"sent"))).id for id in (one, other, one)]
    for change in ("body = x'53656e74'", "name = 'approva1'", "transaction_id = lower('" + other + "')"):
        before = file("SELECT * FROM inbox WHERE id = ?", ids[0])[0]
        file(f"UPDATE inbox SET {change} WHERE id = ?", ids[0])
        with pytest.raises(DamagedJournal, match=f"message {ids[0]} "):
            at_once(store.inbox(one if "transaction_id" not in change else other))
        assert ids[0] not in [each.id for each in at_once(store.arrived()).messages]
        assert at_once(store.arrived()).last == ids[2]
        file("DELETE FROM inbox WHERE id = ?", ids[0])
        file("INSERT INTO inbox VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *before)
    assert [each.id for each in at_once(store.inbox(one))] == [ids[0], ids[2]]


def test_what_was_forgotten_leaves_a_sound_file(opened: Opener, path: Path, file: File) -> None:
    """Blobs go with the last that names them; what the log still has of it is no fault."""
    store = opened()
    large = encode_token(["x" * 70_000])
    gone, other, running = fresh(), fresh(), begun(store)
    for transaction in (gone, other):
        keep(store, first(transaction, key=transaction))
        keep(store, Write(transaction, 0, (pulse(transaction, 2, token_out=large),), "running", True))
    keep(store, last(gone, 3))
    assert at_once(store.forget(2**62)) == 1 and file("SELECT count(*) FROM blobs") == [(1,)]
    assert file("SELECT count(*) FROM log")[0][0] > 4 and faults(path) == []
    assert store.reader().pulses(other)[2].token_out == large
    keep(store, last(other, 3))
    assert at_once(store.forget(2**62)) == 1
    assert [file(f"SELECT count(*) FROM {table}")[0][0] for table in ("blobs", "blob_uses", "inbox")] == [0, 0, 0]
    assert file("SELECT transaction_id FROM transactions") == [(running,)]
    assert file("SELECT transaction_id, length(body) FROM archive") == [("", 0)], "the id of the newest part is kept"
    assert faults(path) == []
    store.close()
    assert faults(path) == []
    opened("heir")
    assert faults(path) == []


def test_who_was_away_while_all_was_forgotten_misses_nothing_that_came_then(
    opened: Opener, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of parts of the archive are not given again, and the log is gone before it looks."""
    monkeypatch.setattr(write, "LOG_BYTES", 400)
    monkeypatch.setattr(write, "TRUNCATED", range(1, 100))
    store = opened()
    with SqliteReader(path) as reader:
        gone, stays = fresh(), fresh()
        keep(store, first(gone))
        keep(store, last(gone, 2))
        cursor = reader.follow("").cursor
        for _ in range(2):
            assert at_once(store.forget(2**62)) in (0, 1)
        keep(store, first(stays))
        for seq in range(2, 20, 2):
            keep(store, hop(stays, seq))
        keep(store, last(stays, 20))
        store.close()
        opened("heir")
        followed = reader.follow(cursor)
        assert [each.seq for each in followed.pulses] == list(range(21)) and not followed.more


def test_a_transaction_forgotten_while_it_is_read_ends_there(opened: Opener, path: Path) -> None:
    store = opened()
    gone = fresh()
    keep(store, first(gone))
    keep(store, Write(gone, 0, (pulse(gone, 2, token_out=encode_token(["x" * 70_000])),), "completed", False))
    with SqliteReader(path) as reader:
        pulses = reader.each_pulse(gone)
        assert next(pulses).seq == 0
        assert at_once(store.forget(2**62)) == 1
        assert [each.seq for each in pulses] == [1]


def test_a_process_with_only_the_file_sends(opened: Opener, path: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{path}"
    with pytest.raises(StoreError, match="no such file"):
        open_inbox(url)
    store = opened()
    one = begun(store)
    with open_inbox(url) as inbox:
        sent = [inbox.send(message(id)) for id in (one, fresh())]
    assert [answer.outcome for answer in sent] == ["kept", "unknown"]
    assert [each.id for each in at_once(store.arrived()).messages] == [sent[0].id]
    closed = SqliteInbox(path)
    closed.close()
    closed.close()
    with pytest.raises(StoreError, match="not open"):
        closed.send(message(one))
    (tmp_path / "other.db").write_bytes(b"no journal, and long enough for a header of SQLite" * 100)
    with pytest.raises(StoreError, match="no SQLite file"):
        open_inbox(f"sqlite:///{tmp_path}/other.db")


def test_which_stores_take_messages_from_other_processes_they_say() -> None:
    with pytest.raises(ConfigurationError, match="takes messages only from the process it is in"):
        open_inbox("memory://")
    inbox: Any = closing(None)  # type: ignore[type-var]
    register_store("with-inbox", lambda url, **options: None, inbox=lambda url: inbox)  # type: ignore[arg-type,return-value]
    assert open_inbox("with-inbox://") is inbox


def test_a_file_that_stays_locked_is_said(opened: Opener, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    one = begun(store)
    seconds = count(0.0, 20.0)
    monkeypatch.setattr(database.time, "monotonic", lambda: next(seconds))
    with closing(sqlite3.connect(path, isolation_level=None)) as other, SqliteInbox(path) as inbox:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process kept it locked"):
            inbox.send(message(one))
        other.execute("COMMIT")
        assert inbox.send(message(one)).outcome == "kept"
