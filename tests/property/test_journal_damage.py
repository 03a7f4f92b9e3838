"""A journal of any history is found sound; one bit changed anywhere in it is found and named, and only the transactions
that it belongs to cannot be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitactor.errors import StoreError
from bitactor.ports import Write
from mesh.stores import write
from mesh.stores.database import preparing, sleep_through
from mesh.stores.journal.frames import HEADER_BYTES, frames_in
from mesh.stores.journal.parts import end_of_log, frames_of_log, is_sound
from mesh.stores.journal.tail import read_frames
from mesh.stores.journal.verify import Fault, Progress, Verification
from mesh.stores.journal.words import Words
from mesh.stores.lease import claim, register
from mesh.stores.liveness import RELEASED, Identity, Observer, bounds_of
from mesh.stores.read import OwnQueries
from tests.amounts import amount, examples
from tests.journal_damage import flip
from tests.store_writes import pulse

DAMAGES_A_JOURNAL: Final = amount(quick=8, long=20)
HERE: Final = Identity(1, "here", 1)
COLUMNS: Final = {
    "log": ("id", "body"),
    "archive": ("transaction_id", "seq", "next_seq", "log_id", "body"),
    "words": ("word", "body"),
}
"""What is looked at of each table; `archive.id` says nothing."""

histories = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**16)), min_size=1, max_size=40)


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Iterator[None]:
    """Parts are written, and the log is cut, after a few writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "PART_BYTES", 500)
        patch.setattr(write, "LOG_BYTES", 3_000)
        patch.setattr(write, "TRUNCATED", range(4, 8))
        yield


_owners = count(1)


class Open(NamedTuple):
    """A transaction as its supervisor knows it."""

    seq: int
    epoch: int
    status: str


class Journal:
    """A journal in memory with one owner at a time, which writes what a history says."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.transactions: dict[str, Open] = {}
        self.hurt: set[str] = set()
        """Those of which a write may be refused."""
        self.take_over()

    def take_over(self) -> None:
        """Another owner goes on, the one before is gone."""
        owner = f"owner-{next(_owners)}"
        self.connection.execute("UPDATE owners SET expires_ns = ?", (RELEASED,))
        number = register(self.connection, owner, HERE, 2**60)
        observer = Observer(HERE, bounds_of(5.0, 300.0), lambda: 0, lambda: 0, lambda pid: 1)
        for transaction, epoch, *_ in claim(self.connection, owner, observer, 0, None):
            if transaction in self.transactions:
                self.transactions[transaction] = self.transactions[transaction]._replace(epoch=epoch)
        self.writer = write.Writer(owner, number, words := Words())
        words.load(self.connection)

    def act(self, what: int, which: int) -> None:
        """One commit, or a takeover."""
        names = list(self.transactions)
        if what == 9:
            self.take_over()
        elif what < 3 or not names:
            self.write(*(self._begun(which + number) for number in range(1 + which % 3)))
        else:
            name = names[which % len(names)]
            found = self.transactions[name]
            if found.status == "completed":
                self.write(self._begun(which))
            elif found.status == "halted":
                self.write(self.next_write(name, which, "resumed", "running"))
            elif what == 8:
                self.write(self.next_write(name, which, "finished", "completed"))
            elif what == 7:
                self.write(self.next_write(name, which, "halted", "halted"))
            else:
                others = [other for other in names if self.transactions[other].status == "running"]
                self.write(*(self.next_write(other, which, "spawned") for other in [name, *others[: which % 5]]))

    def write(self, *writes: Write) -> None:
        """Keep these in one commit."""
        refusals, _ = self.writer.commit(self.connection, self.writer.prepare(writes))
        for refusal in refusals:
            transaction = writes[refusal.index].transaction
            assert transaction in self.hurt, refusal
            self.transactions.pop(transaction, None)

    def _begun(self, which: int) -> Write:
        name = f"{Random(f'{which},{len(self.transactions)}').getrandbits(128):032x}"
        if name in self.transactions:
            return self.next_write(name, which, "spawned")
        self.transactions[name] = Open(1, 0, "running")
        return Write(name, 0, (pulse(name, 0, "accepted", data={"input": which}),), "running", True)

    def next_write(self, name: str, which: int, kind: str, status: str = "running") -> Write:
        """The next write of a transaction."""
        seq, epoch, _ = self.transactions[name]
        data = {"payload": "x" * (which % 70)}
        pulses = (
            pulse(name, seq, kind, step=(f"step-{which % 6}", f"map/{which}/step")[which % 2], data=data),
            pulse(name, seq + 1, "retried"),
        )
        self.transactions[name] = Open(seq + 2, epoch, status)
        return Write(name, epoch, pulses, status, status == "running")


@cache
def empty() -> sqlite3.Connection:
    """A journal in memory with nothing in it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "pulses.db"
        sleep_through(preparing(path, lambda _: None))
        with closing(sqlite3.connect(path)) as file:
            file.backup(connection)
    return connection


def journal_of(history: list[tuple[int, int]]) -> Journal:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    empty().backup(connection)
    journal = Journal(connection)
    for what, which in history:
        journal.act(what, which)
    return journal


def copy(connection: sqlite3.Connection) -> sqlite3.Connection:
    other = sqlite3.connect(":memory:", isolation_level=None)
    connection.backup(other)
    return other


def faults(connection: sqlite3.Connection) -> list[Fault]:
    return [found for found in Verification(connection).walk() if isinstance(found, Fault)]


def unread(connection: sqlite3.Connection, transactions: dict[str, Open]) -> set[str]:
    """Those that a reader cannot read, or not as they were written."""
    queries = OwnQueries(Path(":memory:"))
    queries.open(connection, lambda: None)
    found: set[str] = set()
    for name, was in transactions.items():
        try:
            if [pulse.seq for pulse in queries.pulses(name)] != list(range(was.seq)):
                found.add(name)
                assert not queries.pulses(name), "what is not whole is refused"
        except StoreError:
            found.add(name)
    return found


class Users:
    """Whose frames need what of a journal."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.of_log: dict[int, set[str]] = {}
        self.of_words: dict[int, set[str]] = {}
        log_from = dict(connection.execute("SELECT transaction_id, log_from FROM transactions"))
        for row, body in connection.execute("SELECT id, body FROM log"):
            names = {frame.transaction.hex() for frame in frames_in(frames_of_log(row, body))}
            self.of_log[row] = {
                name for name in names if log_from[name] and log_from[name] <= row < end_of_log(log_from[name])
            }
        for name, begin, head in connection.execute(
            "SELECT transaction_id, log_from, head FROM transactions"
        ).fetchall():
            data = read_frames(connection, name, begin, head)
            for frame in frames_in(data):
                for word, *_ in msgpack.unpackb(data[frame.start + HEADER_BYTES : frame.end]):
                    if type(word) is int or len(word) == 2:  # the first of all are spelled out
                        self.of_words.setdefault(word if type(word) is int else word[0], set()).add(name)

    def of(self, table: str, row: tuple[int, ...], connection: sqlite3.Connection) -> set[str]:
        if table == "archive":
            return {connection.execute("SELECT transaction_id FROM archive WHERE id = ?", row[:1]).fetchone()[0]}
        return (self.of_log if table == "log" else self.of_words).get(row[0], set())


def keys(connection: sqlite3.Connection, table: str) -> list[int]:
    return [key for (key,) in connection.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]


def require_hurt(journal: Journal, damaged: sqlite3.Connection, hurt: set[str], what: str) -> None:
    """What was done is found, and these and no others cannot be read, neither now nor by who takes over."""
    found = faults(damaged)
    assert found, what
    assert {fault.transaction for fault in found if fault.transaction} == hurt, (what, found)
    assert unread(damaged, journal.transactions) == hurt, what
    Journal(damaged)
    assert unread(damaged, journal.transactions) == hurt, f"{what}, taken over"


@examples(quick=60, long=1_000)
@given(histories)
def test_a_sound_journal_is_sound(history: list[tuple[int, int]]) -> None:
    journal = journal_of(history)
    with closing(journal.connection) as connection:
        steps = list(Verification(connection).walk())
        pulses = sum(was.seq for was in journal.transactions.values())
        assert steps[-1] == Progress(len(journal.transactions), pulses)
        assert all(isinstance(step, Progress) for step in steps)
        for name, was in journal.transactions.items():
            assert list(Verification(connection).look(name)) == [Progress(1, was.seq)]
        journal.take_over()
        assert keys(connection, "log") == [], "the log of who is gone goes"
        assert all(isinstance(step, Progress) for step in Verification(connection).walk())


@examples(quick=60, long=1_000)
@given(histories, st.integers(0, 2**32))
def test_a_bit_that_is_another_is_found_and_hurts_only_its_own(history: list[tuple[int, int]], seed: int) -> None:
    random = Random(seed)
    journal = journal_of([(0, 0), *history])
    with closing(journal.connection) as connection:
        users = Users(connection)
        for _ in range(DAMAGES_A_JOURNAL):
            table = random.choice([table for table in COLUMNS if keys(connection, table)])
            row = random.choice(keys(connection, table))
            column, bit = random.choice(COLUMNS[table]), random.randrange(1 << 16)
            with closing(copy(connection)) as damaged:
                (value,) = damaged.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,)).fetchone()
                changed = flip(value.encode(), bit) if isinstance(value, str) else flip(value, bit)
                mark = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
                try:
                    damaged.execute(f"UPDATE {table} SET {column} = {mark} WHERE rowid = ?", (changed, row))
                except sqlite3.IntegrityError:
                    continue  # there is such a row
                what = f"{table}.{column} of {row}: {value!r} -> {changed!r}"
                require_hurt(journal, damaged, users.of(table, (row,), connection), what)


@examples(quick=50, long=1_000)
@given(histories, st.integers(0, 2**32))
def test_bodies_that_changed_places_are_found(history: list[tuple[int, int]], seed: int) -> None:
    random = Random(seed)
    journal = journal_of(history)
    with closing(journal.connection) as connection:
        users = Users(connection)
        for table in ("log", "archive", "words"):
            rows = keys(connection, table)
            one = random.choice(rows or [0])
            others = [row for row in rows if row != one and (table != "log" or end_of_log(row) == end_of_log(one))]
            if not others:
                continue
            other = random.choice(others)
            with closing(copy(connection)) as damaged:
                bodies = dict(damaged.execute(f"SELECT rowid, body FROM {table}"))
                damaged.execute(f"UPDATE {table} SET body = ? WHERE rowid = ?", (bodies[other], one))
                damaged.execute(f"UPDATE {table} SET body = ? WHERE rowid = ?", (bodies[one], other))
                hurt = users.of(table, (one,), connection) | users.of(table, (other,), connection)
                require_hurt(journal, damaged, hurt, f"{table}: {one} and {other}")


@examples(quick=50, long=1_000)
@given(histories, st.integers(0, 2**32))
def test_a_row_that_is_gone_is_found(history: list[tuple[int, int]], seed: int) -> None:
    """But for the newest of the log, and the oldest that nobody needs.  Of a row of the log, who is not shown to have
    lost nothing is not read."""
    random = Random(seed)
    journal = journal_of(history)
    with closing(journal.connection) as connection:
        users = Users(connection)
        log_from = dict(connection.execute("SELECT transaction_id, log_from FROM transactions"))
        for table in COLUMNS:
            rows = keys(connection, table)
            if not rows:
                continue
            row = random.choice(rows)
            hurt = users.of(table, (row,), connection)
            if (table == "log" and row == max(rows)) or not (hurt or (row - 1 in rows and row + 1 in rows)):
                continue
            with closing(copy(connection)) as damaged:
                damaged.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
                found = faults(damaged)
                named = {fault.transaction for fault in found if fault.transaction}
                assert found and named >= hurt, (table, row)
                assert named == unread(damaged, journal.transactions)
                may_be = {name for name, begin in log_from.items() if begin and begin <= row}
                assert named <= hurt | (may_be if table == "log" else set())


def hit(journal: Journal, random: Random) -> str:
    """Change one bit of what an owner goes by, in the file under its hands; what was done."""
    connection = journal.connection
    table, key, column = random.choice((("log", "id", "id"), ("transactions", "transaction_id", "log_from"),
                                        ("transactions", "transaction_id", "head")))  # fmt: skip
    rows = connection.execute(f"SELECT {key}, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
    if not rows:
        return ""
    (name, value), bit = random.choice(rows), random.choice((random.randrange(64), random.randrange(6)))
    if table == "log":  # onto one that comes next, if that is one bit away
        following = max(row for row, _ in rows) + random.randint(1, 4)
        near = [(row, bit) for row, _ in rows for bit in range(64) if flip(row, bit) == following]
        name, bit = random.choice(near or [(name, bit)])
        value = name
    hurt = Users(connection).of_log.get(name, set()) if table == "log" else {name}
    changed = flip(value, bit)
    try:
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (changed, name))
    except sqlite3.IntegrityError:
        return ""  # there is such a row
    journal.hurt |= hurt
    return f"{table}.{column} of {name}: {value!r} -> {changed!r}"


@examples(quick=60, long=2_000)
@given(histories, histories, st.integers(0, 2**32))
def test_an_owner_goes_on_whatever_bit_of_its_rows_is_another(
    history: list[tuple[int, int]], more: list[tuple[int, int]], seed: int
) -> None:
    """And so does who takes over from it: only what is hit may be refused, and be unreadable."""
    journal = journal_of([(0, 0), *history])
    with closing(journal.connection) as connection:
        what = hit(journal, Random(seed))
        for _ in range(2):
            for act, which in more:
                journal.act(min(act, 8), which)
            others = {name: was for name, was in journal.transactions.items() if name not in journal.hurt}
            assert not unread(connection, others), what
            found = faults(connection)
            assert {fault.transaction for fault in found if fault.transaction} <= journal.hurt, (what, found)
            for row, body in connection.execute("SELECT id, body FROM log"):
                assert is_sound(row, body) or any(str(row) in fault.why for fault in found), (what, row)
            journal.take_over()
        assert not unread(connection, others), f"{what}, taken over"


@pytest.mark.parametrize("value", ["long ago", b"\x00", 1.5])
def test_who_does_not_say_where_in_the_log_it_is_stops_nobody(value: object) -> None:
    journal = journal_of([(0, 0), (1, 5), (5, 1), (6, 2), (5, 3)])
    with closing(journal.connection) as connection:
        [(name,), *_] = connection.execute("SELECT transaction_id FROM transactions WHERE log_from IS NOT NULL")
        connection.execute("UPDATE transactions SET log_from = ? WHERE transaction_id = ?", (value, name))
        journal.hurt = {name}
        rows = len(keys(connection, "log"))
        journal.take_over()
        assert len(keys(connection, "log")) == rows, "what it has in the log stays there"
        assert unread(connection, journal.transactions) == {name}
        assert {fault.transaction for fault in faults(connection)} == {name}
        for other in list(journal.transactions):
            journal.write(journal.next_write(other, 1, "spawned"))
        assert name not in journal.transactions, "refused, and the others were not"
        assert not unread(connection, journal.transactions)


def test_an_owner_passes_over_a_row_that_is_where_it_would_write(caplog: pytest.LogCaptureFixture) -> None:
    """Also alone, in a single statement, and what it has before that row and not behind it is not taken for lost."""
    journal = journal_of([(0, 0), (0, 1), (0, 2)])
    with closing(journal.connection) as connection:
        quiet, busy = list(journal.transactions)[-2:]
        journal.write(journal.next_write(quiet, 1, "spawned"))
        journal.write(journal.next_write(busy, 1, "spawned"))
        rows = keys(connection, "log")
        [moved] = [row for row in rows if row ^ 4 == rows[-1] + 1] or [0]
        assert moved, rows
        connection.execute("UPDATE log SET id = ? WHERE id = ?", (moved ^ 4, moved))
        journal.write(journal.next_write(busy, 2, "spawned"))
        journal.write(journal.next_write(busy, 3, "spawned"))
        assert caplog.text.count(f"log row {moved ^ 4} of owner") == 1
        assert keys(connection, "log")[-2:] == [rows[-1] + 2, rows[-1] + 3]
        found = faults(connection)
        assert f"log row {moved} has another id, {moved ^ 4}" in str(found)
        hurt = {fault.transaction for fault in found if fault.transaction}
        assert hurt == unread(connection, journal.transactions) and not hurt & {quiet, busy}
