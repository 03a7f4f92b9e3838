"""A process killed at every statement that it gives SQLite, and the one that takes over too: what was acknowledged is
there, whole, and nothing half."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from mesh.stores import SqliteReader
from mesh.stores.journal.verify import Fault
from tests import warm
from tests.amounts import LONG, amount
from tests.store_writes import first, hop, last, pulse

TRANSACTIONS = 6
LARGE = "x" * 70_000

CHILD = """
import asyncio, os, sys, threading
from mesh.stores import SqliteStore, database, sqlite, write
from mesh.stores.journal import migration
from bitactor.ports import Write
from tests.e2e.test_store_kills import TRANSACTIONS, expected, name
from tests.store_writes import Loop

path, owner, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
write.LOG_BYTES, write.PART_BYTES, write.ARCHIVED_A_COMMIT, write.TRUNCATED = 3_000, 1_000, 800, range(2, 6)
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

sqlite.connect = migration.connect = traced
loop = Loop()
store = SqliteStore(path, notify=loop.notify, lease=3_600)
store.open(owner)
epochs = {claim.transaction: claim.epoch for claim in asyncio.run(store.claim())}
stand = {}
for number in range(TRANSACTIONS):
    pulses = store.reader().pulses(name(number))
    assert pulses == expected(number)[:len(pulses)], (number, len(pulses))
    stand[number] = len(pulses)
while any(stand[number] < len(expected(number)) for number in stand):
    writes = []
    for number in stand:
        pulses = expected(number)[stand[number]:]
        if pulses:
            some = pulses[:1 if len(pulses) == 1 else 2]
            is_open = len(some) < len(pulses)
            status = "running" if is_open else "completed"
            writes.append(Write(name(number), epochs.get(name(number), 0), some, status, is_open))
    def done(refusals, error):
        assert not refusals and error is None, (refusals, error)
        for one in writes:
            os.write(1, f"kept {one.transaction} {one.pulses[-1].seq}\\n".encode())
            stand[int(one.transaction, 16)] = one.pulses[-1].seq + 1
    store.append(writes, done)
os.write(1, f"done {given}\\n".encode())
os._exit(0)
"""


def name(number: int) -> str:
    return f"{number:032x}"


def expected(number: int) -> list[Pulse]:
    """All pulses of a transaction, as they are written two by two."""
    transaction = name(number)
    pulses = [*first(transaction).pulses]
    for seq in range(2, 4 + 2 * number, 2):
        pulses += hop(transaction, seq).pulses
    if number % 2:
        noise = "".join(chr(65 + (seq * number) % 26) for seq in range(1_200))
        pulses.append(pulse(transaction, len(pulses), "completed", error=noise))
        pulses.append(pulse(transaction, len(pulses), "completed", token_out=encode_token([LARGE])))
    return [*pulses, *last(transaction, len(pulses)).pulses]


def _run(path: Path, owner: str, at: int) -> tuple[dict[str, int], list[str]]:
    """Run the child; what it was told was kept (transaction → last seq), and its last line."""
    child = warm.run(["-c", CHILD, str(path), owner, str(at)], timeout=60)
    assert child.returncode in (0, 9), child.stderr
    lines = child.stdout.split("\n")
    kept: dict[str, int] = {}
    for line in lines:
        if line.startswith("kept "):
            _, transaction, seq = line.split()
            kept[transaction] = int(seq)
    return kept, lines[-2].split(" ", 1)


def _check(path: Path, kept: dict[str, int]) -> None:
    if not kept:
        return  # it may have died before there was a journal
    with SqliteReader(path) as reader:
        for transaction, seq in kept.items():
            pulses = reader.pulses(transaction)
            assert len(pulses) > seq
            assert pulses == expected(int(transaction, 16))[: len(pulses)]
        assert not [found for found in reader.verify() if isinstance(found, Fault)]


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many statements the whole takes."""
    _, (what, count) = _run(tmp_path_factory.mktemp("whole") / "pulses.db", "whole", 0)
    assert what == "done" and int(count) > 100
    return int(count)


def test_killed_at_every_statement(statements: int, tmp_path: Path) -> None:
    step = amount(quick=31, long=1)
    seen: set[str] = set()
    for at in range(1, statements + 1, step):
        path = tmp_path / f"{at}.db"
        kept, (what, text) = _run(path, "one", at)
        assert what == "dies"
        seen.add(text)
        for heir in ("two", "three", "four") if LONG else ("two",):
            more, (what, text) = _run(path, heir, 1 + at * len(heir) % 90)
            kept |= more
            seen.add(text)
        _check(path, kept)
        more, (what, _) = _run(path, "last", 0)
        assert what == "done"
        _check(path, {name(number): len(expected(number)) - 1 for number in range(TRANSACTIONS)})
    if LONG:
        for kind in ("INSERT INTO log", "INSERT INTO archive", "DELETE FROM log", "UPDATE transactions", "COMMIT",
                     "INSERT INTO words", "INSERT OR IGNORE INTO blobs", "BEGIN IMMEDIATE"):  # fmt: skip
            assert any(text.startswith(kind) for text in seen), kind
