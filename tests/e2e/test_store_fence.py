"""An owner whose commit is held up while others take its transactions over: when it arrives it is refused, and nobody
ever reads anything of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from bitactor.messages.pulse import Pulse
from bitactor.ports import Write
from mesh.stores import SqliteReader, SqliteStore
from mesh.stores.journal.takeover import Copies, archive_tails
from mesh.stores.journal.verify import Fault
from tests.amounts import LONG
from tests.e2e.processes import PATIENCE, Process
from tests.store_writes import Loop, Told, first, hop, last, pulse

OPEN, NEW = f"{1:032x}", f"{2:032x}"
GHOST = "written by who is fenced"
"""The error of each pulse that nobody may read."""

CHILD = """
import os, signal, sys, threading
from mesh.stores import SqliteStore, sqlite
from tests.e2e.test_store_fence import OPEN, held_up
from tests.store_writes import Loop, Told, first, hop

path, durability, path_kind, at = sys.argv[1:]
connect, armed = sqlite.connect, False

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

def statement(text):
    global armed
    if armed and text.startswith(at):
        armed = False
        say("stops")
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

def traced(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(statement)
    return connection

sqlite.connect = traced
loop, told = Loop(), Told()
store = SqliteStore(path, notify=loop.notify, durability=durability)
store.open("away")
store.append([first(OPEN), first(f"{3:032x}")], told.done())
store.append([hop(OPEN, 2)], told.done())
loop.run_until(lambda: told.complete)
say("kept")
sys.stdin.readline()
armed = bool(at)
store.append([held_up(path_kind)], told.done())  # commit n
if not told.complete:
    say("waits")
loop.run_until(lambda: told.complete)
store.append([hop(OPEN, 4)], told.done())  # and the one after it
store.append([first(f"{4:032x}")], told.done())
loop.run_until(lambda: told.complete)
say("told", *(type(error or refusals or None).__name__ for _, refusals, error in told.outcomes[2:]))
sys.stdin.readline()
store.close()
"""


def held_up(kind: str) -> Write:
    """The write of commit n: `alone` is a single statement, the others are not."""
    if kind == "alone":
        return hop(OPEN, 4)._replace(pulses=(_ghost(OPEN, 4), _ghost(OPEN, 5)))
    if kind == "begins":
        return first(NEW)._replace(pulses=(_ghost(NEW, 0, "accepted"), _ghost(NEW, 1)))
    return last(OPEN, 4)._replace(pulses=(_ghost(OPEN, 4, "finished"),))


def _ghost(transaction: str, seq: int, kind: str = "spawned") -> Pulse:
    return pulse(transaction, seq, kind, error=GHOST, data={"ttl": 8})


FIRST_STATEMENT = {"alone": "INSERT INTO log", "settles": "BEGIN IMMEDIATE", "begins": "BEGIN IMMEDIATE"}


class Case(NamedTuple):
    durability: str
    kind: str
    where: str
    """What holds the commit up: the process stops `between` two commits, at the beginning of its first `statement`; or
    somebody else has the file's `lock`."""


CASES = [
    Case(durability, kind, where)
    for durability in ("process", "power")
    for kind in FIRST_STATEMENT
    for where in ("between", "statement", "lock")
]


class Follower:
    """Who follows the journal from its beginning."""

    def __init__(self, path: Path) -> None:
        self.reader = SqliteReader(path)
        self.cursor = ""
        self.seen: dict[tuple[str, int], Pulse] = {}

    def look(self) -> None:
        more = True
        while more:
            pulses, self.cursor, more = self.reader.follow(self.cursor)
            for one in pulses:
                assert self.seen.setdefault((one.transaction, one.seq), one) == one


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
def heir(path: Path) -> Iterator[SqliteStore]:
    """By whose clock every lease has long run out."""
    store = SqliteStore(path, notify=Loop().notify, wall_ns=lambda: time.time_ns() + 3_600 * 10**9)
    yield store
    store.close()


@pytest.fixture(params=CASES if LONG else CASES[:9] + CASES[10:17:3], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_a_commit_that_comes_after_a_takeover_is_refused_and_never_read(
    case: Case, path: Path, heir: SqliteStore
) -> None:
    at = FIRST_STATEMENT[case.kind] if case.where == "statement" else ""
    away = Process("-c", CHILD, str(path), case.durability, case.kind, at)
    try:
        away.expect("kept")
        follower = Follower(path)
        heir.open("heir")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as somebody:
            _hold_up(case, away, somebody)
            follower.look()
            _take_over(case, heir, somebody)
            told = Told()
            heir.append([hop(OPEN, 4, epoch=1)], told.done())
            assert told.outcomes == [(0, [], None)]
            follower.look()
            os.kill(away.child.pid, signal.SIGCONT)
            assert away.expect("told")[1:] == ["StaleOwner"] * 3, "commit n, and those after it"
        follower.look()
        kept = heir.reader().pulses(OPEN)
        assert [one.seq for one in kept] == list(range(6)) and kept[4:] == list(hop(OPEN, 4).pulses)
        assert [one for (transaction, _), one in follower.seen.items() if transaction == OPEN] == kept
        assert {transaction for transaction, _ in follower.seen} == {OPEN, f"{3:032x}"}
        assert not heir.reader().pulses(NEW) and heir.reader().get(NEW) is None
        assert not [found for found in follower.reader.verify() if isinstance(found, Fault)]
        with closing(sqlite3.connect(path)) as file:
            for table in ("log", "archive", "words"):
                bodies = [body for (body,) in file.execute(f"SELECT body FROM {table}")]
                assert not any(GHOST.encode() in body for body in bodies)
        follower.reader.close()
    finally:
        os.kill(away.child.pid, signal.SIGCONT)
        away.close()


def _hold_up(case: Case, away: Process, somebody: sqlite3.Connection) -> None:
    """Let commit n begin and not be made."""
    if case.where == "lock":
        somebody.execute("BEGIN IMMEDIATE")
        away.tell("go on")
        away.expect("waits")
        return
    if case.where == "statement":
        away.tell("go on")
        away.expect("stops")
    else:
        os.kill(away.child.pid, signal.SIGSTOP)
        away.tell("go on")
    _until_stopped(away.child.pid)


def _until_stopped(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def _take_over(case: Case, heir: SqliteStore, somebody: sqlite3.Connection) -> None:
    """Through the port; or, where the lock is never given up in between, as the port does it."""
    if case.where == "lock":
        archive_tails(somebody, "away", Copies())
        somebody.execute("UPDATE transactions SET owner = 'heir', epoch = epoch + 1 WHERE owner = 'away'")
        somebody.execute("UPDATE owners SET fenced = 'heir' WHERE owner = 'away'")
        somebody.execute("COMMIT")
        return
    somebody.execute("UPDATE owners SET boot_id = 'another' WHERE owner = 'away'")
    claims = asyncio.run(heir.claim())
    assert [(claim.transaction, claim.epoch) for claim in claims] == [(OPEN, 1), (f"{3:032x}", 1)]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_who_has_the_lock_commits_before_it_is_taken_over(durability: str, path: Path, heir: SqliteStore) -> None:
    """Stopped right before COMMIT: whoever takes over waits, and has what was acknowledged."""
    away = Process("-c", CHILD, str(path), durability, "settles", "COMMIT")
    try:
        away.expect("kept")
        heir.open("heir")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as somebody:
            somebody.execute("UPDATE owners SET boot_id = 'another' WHERE owner = 'away'")
        away.tell("go on")
        away.expect("stops")
        _until_stopped(away.child.pid)
        with pytest.raises(sqlite3.OperationalError, match="locked"), closing(sqlite3.connect(path, timeout=0)) as file:
            file.execute("BEGIN IMMEDIATE")
        os.kill(away.child.pid, signal.SIGCONT)
        claims = asyncio.run(heir.claim())
        told = away.expect("told")[1:]
        assert told[0] == "NoneType", "commit n was made"
        assert [claim.transaction for claim in claims][:1] == [f"{3:032x}"], "what it settled is not claimed"
        assert heir.reader().pulses(OPEN)[4:] == list(held_up("settles").pulses)
        assert not [found for found in SqliteReader(path).verify() if isinstance(found, Fault)]
    finally:
        os.kill(away.child.pid, signal.SIGCONT)
        away.close()
