"""What transactions wait for, over random sends, reads, ends, takeovers and forgetting: each store does what a simple
model says, message by message."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from bitactor.errors import InboxChanged
from bitactor.ports import Due, Message, Sent, Store, Write
from mesh.stores import MemoryStore, SqliteReader, SqliteStore
from mesh.stores.journal.verify import Fault
from tests.amounts import examples
from tests.store_writes import Loop, Told, fresh, message, pulse

_ticks = count(1_000)
_owners = count(1)


class Stores:
    """A store, and how another owner takes over from it."""

    def __init__(self, store: Store, path: Path | None = None) -> None:
        self.store = store
        self.path = path
        self.idle: SqliteStore | None = None
        if path is not None:
            self.idle = SqliteStore(path, notify=Loop().notify, lease=3_600)
            self.idle.open(f"idle-{next(_owners)}")

    def take_over(self, ask: Callable[[Coroutine[Any, Any, Any]], Any]) -> dict[str, int]:
        """The epochs of what another owner has from now on."""
        if self.path is None or self.idle is None:
            return {claim.transaction: claim.epoch for claim in ask(self.store.reclaim(()))}
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("UPDATE owners SET expires_ns = 0 WHERE fenced = ''")
        heir = self.idle
        ask(heir.rejoin(f"heir-{next(_owners)}"))
        epochs = {claim.transaction: claim.epoch for claim in ask(heir.claim())}
        self.store, self.idle = heir, self.store  # type: ignore[assignment]
        return epochs

    def close(self) -> None:
        self.store.close()
        if self.idle is not None:
            self.idle.close()


class Waiting:
    """A transaction as the model has it."""

    def __init__(self, name: str, receives: bool, due_ns: int) -> None:
        self.name = name
        self.seq = 0
        self.epoch = 0
        self.status = "running"
        self.receives = receives
        self.due_ns = due_ns
        self.updated_ns = 0
        self.unread: list[Message] = []
        self.keys: dict[tuple[str, str], tuple[int, bytes]] = {}

    def write(self, status: str, **fields: Any) -> Write:
        """Its next write; `fields` are what it says of what it waits for."""
        at_ns = next(_ticks)
        kind = "accepted" if self.seq == 0 else "spawned"
        one = pulse(self.name, self.seq, kind, at_ns=at_ns)
        return Write(self.name, self.epoch, (one,), status, status == "running", **fields)


class Model:
    """A store beside what it shall say."""

    def __init__(self, stores: Stores, runner: asyncio.Runner) -> None:
        self.stores = stores
        self.ask = runner.run
        self.all: list[Waiting] = []
        self.gone: list[str] = []
        self.looked = self.ask(self.store.arrived(0, 10**6)).last
        self.seen: list[int] = []

    @property
    def store(self) -> Store:
        return self.stores.store

    def append(self, write: Write) -> Exception | None:
        told = Told()
        self.store.append([write], told.done())
        [(_, refusals, error)] = told.outcomes
        assert error is None
        return refusals[0].error if refusals else None

    def begin(self, receives: bool, due_ns: int) -> None:
        one = Waiting(fresh(), receives, due_ns)
        write = one.write("running", receives=receives, due_ns=due_ns)
        assert self.append(write) is None
        one.seq, one.updated_ns = 1, write.pulses[0].at_ns
        self.all.append(one)

    def send(self, one: Waiting, name: str, key: str, body: bytes) -> None:
        sent = message(one.name, name, body, key=key)
        answer = self.ask(self.store.send(sent))
        known = one.keys.get((name, key)) if key else None
        if not one.receives:
            assert answer == Sent("closed", status=one.status)
        elif known is not None:
            assert answer == (Sent("known", known[0]) if known[1] == body else Sent("conflict"))
        else:
            assert answer.outcome == "kept"
            assert answer.id > max((each.id for other in self.all for each in other.unread), default=0)
            one.unread.append(sent._replace(id=answer.id))
            if key:
                one.keys[name, key] = answer.id, body

    def go_on(self, one: Waiting, status: str, receives: bool, due_ns: int, reads: int, off: int) -> None:
        """The next write: it reads the first of its messages, in another status, perhaps; `off` is by how many it is
        wrong about those that it leaves unread."""
        read = [each.id for each in one.unread[:reads]]
        left = len(one.unread) - len(read)
        write = one.write(status, receives=receives, due_ns=due_ns, read=read, unread=max(left + off, 0))
        closes = one.receives and not (receives and status in ("running", "halted"))
        error = self.append(write)
        if closes and write.unread != left:
            assert isinstance(error, InboxChanged) and error.unread == left
            return
        assert error is None
        if status != one.status:
            one.updated_ns = write.pulses[0].at_ns
        one.seq, one.status, one.due_ns = one.seq + 1, status, due_ns
        one.receives = receives and status in ("running", "halted")
        one.unread = one.unread[reads:] if one.receives else []
        if not one.receives:
            one.keys.clear()

    def read_wrong(self, one: Waiting, number: int) -> None:
        """A write that reads what is not there."""
        write = one.write(one.status, receives=one.receives, due_ns=one.due_ns, read=(number,))
        if number not in [each.id for each in one.unread]:
            assert isinstance(self.append(write), InboxChanged)

    def take_over(self) -> None:
        epochs = self.stores.take_over(self.ask)
        for one in self.all:
            assert (one.name in epochs) == (one.status == "running")
            one.epoch = epochs.get(one.name, one.epoch)

    def forget(self, before_ns: int) -> None:
        ended = [one for one in self.all if one.status == "completed" and one.updated_ns < before_ns]
        assert self.ask(self.store.forget(before_ns, limit=10**6)) >= len(ended)
        self.gone += [one.name for one in ended]
        self.all = [one for one in self.all if one not in ended]

    def look(self) -> None:
        """All that it can be asked."""
        names = {one.name for one in self.all}
        due = [each for each in self.ask(self.store.due(10**6)) if each.transaction in names]
        waits = [one for one in self.all if one.status == "running" and one.due_ns]
        assert due == sorted((Due(one.name, one.due_ns) for one in waits), key=lambda each: (each.due_ns, each[0]))
        for one in self.all:
            assert self.ask(self.store.inbox(one.name)) == one.unread
            row = self.ask(self.store.get(one.name))
            assert row is not None and (row.status, row.epoch) == (one.status, one.epoch)
            assert len(self.ask(self.store.pulses(one.name))) == one.seq
        for name in self.gone:
            assert self.ask(self.store.get(name)) is None and self.ask(self.store.pulses(name)) == []
            assert self.ask(self.store.send(message(name))) == Sent("unknown")
        arrived = self.ask(self.store.arrived(self.looked, 10**6))
        unread = sorted(
            (each for one in self.all if one.status == "running" for each in one.unread), key=lambda m: m.id
        )
        assert [each for each in arrived.messages if each.transaction in names] == [
            each for each in unread if each.id > self.looked
        ]
        assert arrived.last >= max([self.looked, *(each.id for each in unread)])
        self.looked = arrived.last


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """One for all examples."""
    path = tmp_path_factory.mktemp("waits") / "pulses.db" if request.param == "sqlite" else None
    store = MemoryStore(10**6) if path is None else SqliteStore(path, notify=Loop().notify, lease=3_600)
    store.open("first")
    found = Stores(store, path)
    yield found
    found.close()
    if path is not None:
        with SqliteReader(path) as reader:
            assert not [fault for fault in reader.verify() if isinstance(fault, Fault)]


_due = st.sampled_from([0, 0, 5, 6, 7])
_one = st.integers(0, 3)
_status = st.sampled_from(["running", "running", "running", "halted", "completed", "stuck"])
_steps = st.lists(
    st.tuples(st.just("begin"), st.sampled_from([True, True, False]), _due)
    | st.tuples(
        st.just("send"), _one, st.sampled_from("ab"), st.sampled_from(["", "", "k", "l"]), st.sampled_from([b"", b"x"])
    )
    | st.tuples(
        st.just("go on"), _one, _status, st.sampled_from([True, True, False]), _due, st.integers(0, 2),
        st.sampled_from([0, 0, 0, 1, -1]),
    )
    | st.tuples(st.just("read wrong"), _one, st.integers(1, 9))
    | st.tuples(st.just("take over"))
    | st.tuples(st.just("forget"), st.integers(0, 12))
    | st.tuples(st.just("look")),
    min_size=3, max_size=25,
)  # fmt: skip


@examples(quick=100, long=5_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=_steps)
def test_a_store_keeps_what_is_waited_for_as_the_model_says(stores: Stores, steps: list[Any]) -> None:
    with asyncio.Runner() as runner:
        model = Model(stores, runner)
        model.begin(True, 0)
        for what, *about in steps:
            if what in ("send", "go on", "read wrong") and model.all:
                one = model.all[about[0] % len(model.all)]
                {"send": model.send, "go on": model.go_on, "read wrong": model.read_wrong}[what](one, *about[1:])
            elif what == "begin":
                model.begin(*about)
            elif what == "take over":
                model.take_over()
            elif what == "forget":
                model.forget(next(_ticks) - about[0])
            elif what == "look":
                model.look()
        model.look()
        for one in list(model.all):
            model.go_on(one, "completed", False, 0, 0, 0)
        model.forget(2**62)
        model.look()
