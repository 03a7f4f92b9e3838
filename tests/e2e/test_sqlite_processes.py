"""SQLite journals and real processes: killed, competing, fenced."""

from __future__ import annotations

import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from bitactor.ports import Claim
from mesh.stores import SqliteReader, SqliteStore
from tests import warm
from tests.store_writes import BOUND, Loop, Told, first, fresh, hop, taken

PRELUDE = """
import asyncio, os, sys, resource
from mesh.stores import SqliteStore
from bitactor.errors import StaleOwner, StoreError
from bitactor.ports import Write
from tests.store_writes import Loop, Told, first, fresh, hop, pulse

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

path, owner, durability = sys.argv[1:4]
loop = Loop()
store = SqliteStore(path, notify=loop.notify, durability=durability)

def name(number):
    return f"{os.getpid():016x}{number:016x}"
"""

STREAM = """
store.open(owner)
say("open")
told = Told()
seqs = {}
number = 0
while True:
    writes = []
    for _ in range(4):
        number += 1
        writes.append(first(name(number)))
    for old in range(max(1, number - 40), number - 3):
        seq = seqs.get(old, 2)
        three = tuple(pulse(name(old), seq + offset) for offset in range(3))
        writes.append(Write(name(old), 0, three, "running", True))
        seqs[old] = seq + 3
    acknowledged = [(write.transaction, write.pulses[-1].seq) for write in writes]
    def done(refusals, error, acknowledged=acknowledged):
        assert not refusals and error is None, (refusals, error)
        say(*(f"{transaction}:{seq}" for transaction, seq in acknowledged))
    store.append(writes, done)
    while not loop.calls.empty():
        loop.run_one()
"""

COMPETE = """
sys.stdin.readline()
store.open(owner)
told = Told()
for number in range(150):
    store.append([first(name(number), key=f"{owner}-{number}")], told.done())
    store.append([hop(name(number), 2), hop(name(number), 4)], told.done())
    while not loop.calls.empty():
        loop.run_one()
loop.run_until(lambda: told.complete)
assert [number for number, _, _ in told.outcomes] == list(range(300))
for _, refusals, error in told.outcomes:
    assert not refusals and error is None, (refusals, error)
store.close()
say("closed")
"""

CLAIM = """
store.open(owner)
say("open")
sys.stdin.readline()
say(*(f"{claim.transaction}:{claim.epoch}" for claim in asyncio.run(store.claim())))
sys.stdin.readline()
store.close()
"""

FENCED = """
store.open(owner)
told = Told()
store.append([first(name(1))], told.done())
loop.run_until(lambda: told.complete)
say(name(1))
sys.stdin.readline()
store.append([hop(name(1), 2)], told.done())
loop.run_until(lambda: told.complete)
say(type(told.outcomes[-1][2]).__name__)
store.close()
"""

LIMITED = """
store.open(owner)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
errors = []
for number in range(2_000):
    store.append([first(name(number))], lambda refusals, error: error and errors.append(error))
    if errors:
        break
say(number, type(errors[0]).__name__, errors[0])
store.close()
"""


class Child:
    """A process that runs one of the scripts above."""

    def __init__(self, script: str, path: Path, owner: str, durability: str) -> None:
        self.process = warm.start(["-c", PRELUDE + script, str(path), owner, durability])
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin: IO[bytes] = self.process.stdin
        self.stdout: IO[bytes] = self.process.stdout
        # A child that hangs is killed, so that reading from it ends.
        self.guard = threading.Timer(2 * BOUND, self.process.kill)
        self.guard.start()

    def hear(self) -> str:
        return self.stdout.readline().decode().strip()

    def go_on(self) -> None:
        self.stdin.write(b"\n")
        self.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(BOUND)
        self.guard.cancel()
        self.guard.join()
        self.stdin.close()
        self.stdout.close()


Starter = Callable[..., Child]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
def start(path: Path) -> Iterator[Starter]:
    children: list[Child] = []

    def start_one(script: str, owner: str, durability: str = "process") -> Child:
        children.append(Child(script, path, owner, durability))
        return children[-1]

    yield start_one
    for child in children:
        child.end()


@pytest.fixture
def heir(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, notify=Loop().notify)
    yield store
    store.close()


@pytest.mark.parametrize("durability", ["process", "power", "none"])
def test_what_was_acknowledged_before_a_kill_is_there_and_nothing_half(
    durability: str, path: Path, start: Starter, heir: SqliteStore
) -> None:
    child = start(STREAM, "killed", durability)
    assert child.hear() == "open"
    lines: list[str] = []
    for line in child.stdout:  # faster than the child writes, so that it is killed at work and not while waiting for us
        lines.append(line.decode())
        if len(lines) == 60:
            child.process.send_signal(signal.SIGKILL)
    child.process.wait(BOUND)
    with SqliteReader(path) as reader:
        assert len(reader.list(limit=1_000_000)) >= 4 * 60, "a reader needs nobody to have cleaned up"

    acknowledged: dict[str, int] = {}
    for entry in " ".join(lines).split():
        transaction, _, seq = entry.partition(":")
        acknowledged[transaction] = int(seq)
    heir.open("heir")
    rows = heir.reader().list(limit=1_000_000)
    assert {row.transaction for row in rows} >= set(acknowledged)
    for row in rows:
        seqs = [pulse.seq for pulse in heir.reader().pulses(row.transaction)]
        assert seqs == list(range(len(seqs)))
        assert len(seqs) > acknowledged.get(row.transaction, -1)
        assert len(seqs) % 3 == 2, "two pulses in the first write, three in every other"
    assert sorted(taken(heir.claim())) == sorted(Claim(row.transaction, 1) for row in rows)


def test_two_processes_write_one_file_and_both_get_through(path: Path, start: Starter) -> None:
    """From its creation on."""
    children = [
        start(COMPETE, f"writer-{number}", durability) for number, durability in enumerate(["process", "power"])
    ]
    for child in children:
        child.go_on()
    for child in children:
        assert child.hear() == "closed"
        assert child.process.wait(BOUND) == 0
    with SqliteReader(path) as reader:
        rows = reader.list(limit=1_000)
        assert len(rows) == 300
        assert all(len(reader.pulses(row.transaction)) == 6 for row in rows)


def test_two_claims_at_once_share_without_overlap(path: Path, start: Starter) -> None:
    loop, told = Loop(), Told()
    leaving = SqliteStore(path, notify=loop.notify)
    leaving.open("leaving")
    transactions = [fresh() for _ in range(300)]
    leaving.append([first(transaction) for transaction in transactions], told.done())
    loop.run_until(lambda: told.complete)
    leaving.close()
    children = [start(CLAIM, f"heir-{number}") for number in range(2)]
    assert [child.hear() for child in children] == ["open", "open"]
    for child in children:
        child.go_on()
    claimed = [child.hear().split() for child in children]
    assert sorted(claimed[0] + claimed[1]) == [f"{transaction}:1" for transaction in transactions]
    for child in children:
        child.go_on()
        assert child.process.wait(BOUND) == 0


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_process_that_was_fenced_is_told_so(durability: str, path: Path, start: Starter) -> None:
    """It is made to look as if it ran in another container, and silent for an hour."""
    child = start(FENCED, "away", durability)
    transaction = child.hear()
    later = SqliteStore(path, notify=Loop().notify, wall_ns=lambda: time.time_ns() + 3_600 * 10**9)
    later.open("heir")
    with closing(sqlite3.connect(path, isolation_level=None, timeout=BOUND)) as somebody:
        somebody.execute("UPDATE owners SET boot_id = 'another' WHERE owner = 'away'")
    assert taken(later.claim()) == [Claim(transaction, 1)]
    child.go_on()
    assert child.hear() == "StaleOwner"
    assert child.process.wait(BOUND) == 0
    assert len(later.reader().pulses(transaction)) == 2
    later.close()


def test_a_disk_that_takes_no_more_is_an_error_of_that_append(path: Path, start: Starter) -> None:
    child = start(LIMITED, "limited", "process")
    said = child.hear()
    number = int(said.split()[0])
    assert re.match(rf"\d+ StoreError {re.escape(str(path))}: the disk ", said), said
    child.process.wait(BOUND)
    with SqliteReader(path) as reader:
        assert len(reader.list(limit=10_000)) == number


def test_hops_after_a_takeover_carry_on_where_the_dead_left_off(path: Path, start: Starter, heir: SqliteStore) -> None:
    child = start(FENCED, "killed")
    transaction = child.hear()
    child.end()
    heir.open("heir")
    assert taken(heir.claim()) == [Claim(transaction, 1)]
    told = Told()
    heir.append([hop(transaction, 2, epoch=1)], told.done())
    assert told.outcomes == [(0, [], None)]
    assert [pulse.seq for pulse in heir.reader().pulses(transaction)] == [0, 1, 2, 3]


AT_ONCE = """
say("ready")
sys.stdin.readline()
for number in range(25):
    store = SqliteStore(path, notify=loop.notify)
    store.open(f"{owner} {number}")
    store.close()
say("done")
"""


def test_processes_that_open_and_close_one_journal_at_once_wait_for_each_other(path: Path, start: Starter) -> None:
    """The last one that closes it takes its log away, and the next one that opens it keeps the others out meanwhile."""
    children = [start(AT_ONCE, f"one of three, {number}", "process") for number in range(3)]
    assert [child.hear() for child in children] == ["ready"] * 3
    for child in children:
        child.go_on()
    assert [child.hear() for child in children] == ["done"] * 3
