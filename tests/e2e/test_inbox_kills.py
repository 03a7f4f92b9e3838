"""A process killed at every statement that it gives SQLite, while it sends, reads, ends and forgets: each message that
was acknowledged is unread, read once, or counted, and what is forgotten is whole or gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.messages.pulse import Pulse
from mesh.runtime.settled import at_once
from mesh.stores import SqliteReader, SqliteStore
from mesh.stores.journal.verify import Fault
from tests import warm
from tests.amounts import LONG, amount
from tests.store_writes import Loop

TRANSACTIONS = 4
KEYS = ("a", "b", "c")

CHILD = """
import asyncio, os, sys, threading
from mesh.stores import SqliteStore, database, sqlite
from mesh.stores.journal import migration
from bitactor.messages.codec import encode_token
from bitactor.ports import Write
from tests.e2e.test_inbox_kills import KEYS, TRANSACTIONS, name
from tests.store_writes import Loop, message, pulse

path, owner, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
connect, given, this = database.connect, 0, threading.get_ident()

def statement(text):
    global given
    if threading.get_ident() == this:
        given += 1
        if given == at:
            os.write(1, f"dies {text[:40]}\\n".encode())
            os._exit(9)

def traced(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(statement)
    return connection

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def ask(answer):
    return runner.run(answer)

def keep(*writes):
    def done(refusals, error):
        assert not refusals and error is None, (refusals, error)
    store.append(writes, done)

runner = asyncio.Runner()
sqlite.connect = migration.connect = traced
loop = Loop()
store = SqliteStore(path, notify=loop.notify, lease=3_600)
store.open(owner)
epochs = {claim.transaction: claim.epoch for claim in ask(store.claim())}
names = [name(number) for number in range(TRANSACTIONS)]
if "begin" in sys.argv and not store.reader().list():
    keep(*(Write(one, 0, (pulse(one, 0, "accepted"),), "running", True, receives=True, due_ns=7) for one in names))
if store.reader().list():
    say("begun")
for one in names:
    epoch, pulses = epochs.get(one, 0), len(store.reader().pulses(one))
    if pulses == 1:
        for key in KEYS:
            sent = ask(store.send(message(one, body=key.encode(), key=key)))
            assert sent.outcome in ("kept", "known"), sent
            say("sent", one, sent.id)
        read = [each.id for each in ask(store.inbox(one))[:2]]
        large = encode_token(["x" * 70_000])
        received = pulse(one, 1, "completed", data={"read": read}, token_out=large)
        keep(Write(one, epoch, (received,), "running", True, receives=True, due_ns=8, read=read))
        say("kept", one, 1)
        pulses = 2
    if pulses == 2:
        unread = len(ask(store.inbox(one)))
        ends = pulse(one, 2, "finished", data={"unread": unread})
        keep(Write(one, epoch, (ends,), "completed", False, unread=unread))
        say("kept", one, 2)
while forgotten := ask(store.forget(2**62, limit=1)):
    say("forgot", forgotten)
say("done", given)
os._exit(0)
"""


def name(number: int) -> str:
    return f"{number + 1:032x}"


def _run(path: Path, owner: str, at: int, said: Sequence[list[str]] = ()) -> list[list[str]]:
    """Run the child behind those that have `said` this; the lines that it said."""
    begin = [] if ["begun"] in said else ["begin"]  # what was forgotten is not begun again
    child = warm.run(["-c", CHILD, str(path), owner, str(at), *begin], timeout=60)
    assert child.returncode in (0, 9), child.stderr
    return [line.split(" ", 1) for line in child.stdout.splitlines()]


def _check(path: Path, said: list[list[str]]) -> None:
    """Hold what is in the file against all that was said."""
    sent: dict[str, set[int]] = {}
    kept: dict[str, int] = {}
    for what, *about in said:
        if what in ("sent", "kept"):
            one, number = about[0].split()
            sent.setdefault(one, set())
            if what == "sent":
                sent[one].add(int(number))
            else:
                kept[one] = int(number)
    if not said or not (sent or kept):
        return  # it may have died before there was a journal
    with SqliteReader(path) as reader:
        assert not [found for found in reader.verify() if isinstance(found, Fault)]
        pulses = {name(number): reader.pulses(name(number)) for number in range(TRANSACTIONS)}
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute("SELECT transaction_id, id, body IS NOT NULL FROM inbox").fetchall()
        due = dict(file.execute("SELECT transaction_id, due_ns FROM transactions"))
        parts = {one for (one,) in file.execute("SELECT transaction_id FROM archive WHERE transaction_id <> ''")}
        blobs, uses = (file.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("blobs", "blob_uses"))
    assert parts <= set(due) and blobs == bool(uses)
    for one, found in pulses.items():
        unread = {number for owner, number, is_unread in rows if owner == one and is_unread}
        _check_one(found, sent.get(one, set()), unread, kept.get(one, 0), any(owner == one for owner, *_ in rows))
        if found:
            assert due[one] == {1: 7, 2: 8, 3: 0}[len(found)]
    gone = [one for one, found in pulses.items() if not found]
    assert not gone or all(kept.get(one, 0) == 2 or len(pulses[one]) in (0, 3) for one in pulses), "only at the end"


def _check_one(pulses: list[Pulse], sent: set[int], unread: set[int], kept: int, rows: bool) -> None:
    if not pulses:
        assert not rows
        return
    assert len(pulses) > kept
    read = set(pulses[1].data["read"]) if len(pulses) > 1 and pulses[1].data else set()
    assert not read & unread, "read, and still there"
    if len(pulses) == 3:
        assert pulses[2].data == {"unread": len(KEYS) - len(read)} and not rows
    else:
        assert sent <= read | unread, "acknowledged, and lost"


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many statements the whole takes."""
    what, number = _run(tmp_path_factory.mktemp("whole") / "pulses.db", "whole", 0)[-1]
    assert what == "done" and int(number) > 100
    return int(number)


def test_killed_at_every_statement(statements: int, tmp_path: Path) -> None:
    step = amount(quick=120, long=1)
    seen: set[str] = set()
    for at in range(step // 2 + 1, statements + 1, step):
        path = tmp_path / f"{at}.db"
        said = _run(path, "one", at)
        for heir in ("two", "three") if LONG else ("two",):
            if said[-1][0] == "dies":
                seen.add(said[-1][1])
            _check(path, said)
            said += _run(path, heir, 1 + at * len(heir) % 97, said)
        _check(path, said)
        said += _run(path, "last", 0, said)
        _check(path, said)
        store = SqliteStore(path, notify=Loop().notify)
        store.open("looks")
        assert store.reader().list() == [] and at_once(store.due()) == []
        store.close()
    if LONG:
        for kind in ("INSERT INTO inbox", "UPDATE inbox", "DELETE FROM inbox", "UPDATE transactions",
                     "DELETE FROM archive", "DELETE FROM transactions", "UPDATE archive", "DELETE FROM blobs",
                     "COMMIT"):  # fmt: skip
            assert any(text.startswith(kind) for text in seen), kind
