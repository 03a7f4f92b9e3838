"""A process killed at every statement that it gives SQLite, and the one that takes over too: what was acknowledged is
there, whole, and nothing half.  Each kind of write is a point of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from mesh.stores import SqliteReader
from mesh.stores.journal.verify import Fault
from tests import warm
from tests.amounts import LONG, amount
from tests.old_stores import form
from tests.store_writes import first, hop, last, pulse

TRANSACTIONS = 7
ALONE = 6
"""One that is written to when nothing else is, first of all: its hops are commits of a single statement."""
LARGE = "x" * 70_000

CHILD = """
import asyncio, json, os, sqlite3, sys, threading
from collections import Counter
from mesh.stores import SqliteStore, write
from mesh.stores.journal import migration
from bitactor.ports import Write
from tests.e2e.test_store_kills import ALONE, TRANSACTIONS, expected, kind_of, name
from tests.store_writes import Loop

path, owner, what, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
write.LOG_BYTES, write.PART_BYTES, write.ARCHIVED_A_COMMIT, write.TRUNCATED = 3_000, 1_000, 800, range(2, 6)
migration.STEP_BYTES = 1
connect, given, this, phase = sqlite3.connect, Counter(), threading.get_ident(), "open"

def statement(text):
    if threading.get_ident() == this:
        kind = kind_of(phase, text)
        given.update((kind, ""))
        if given[what] == at and what in (kind, ""):
            os.write(1, f"dies {kind}\\n".encode())
            os._exit(9)

def traced(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(statement)
    return connection

def done():
    os.write(1, f"done {json.dumps(given)}\\n".encode())
    os._exit(0)

sqlite3.connect = traced
loop = Loop()
store = SqliteStore(path, notify=loop.notify, lease=3_600)
store.open(owner)
if os.environ.get("ONLY_OPENS"):
    done()
phase = "claim"
epochs = {claim.transaction: claim.epoch for claim in asyncio.run(store.claim())}
phase = "read"
stand = {}
for number in range(TRANSACTIONS):
    pulses = store.reader().pulses(name(number))
    assert pulses == expected(number)[:len(pulses)], (number, len(pulses))
    stand[number] = len(pulses)

def go_on(numbers):
    global phase
    writes = []
    for number in numbers:
        pulses = expected(number)[stand[number]:]
        if pulses:
            some = pulses[:1 if len(pulses) == 1 else 2]
            is_open = len(some) < len(pulses)
            status = "running" if is_open else "completed"
            writes.append(Write(name(number), epochs.get(name(number), 0), some, status, is_open))
    def kept(refusals, error):
        assert not refusals and error is None, (refusals, error)
        for one in writes:
            os.write(1, f"kept {one.transaction} {one.pulses[-1].seq}\\n".encode())
            stand[int(one.transaction, 16)] = one.pulses[-1].seq + 1
    phase = "write"
    store.append(writes, kept)

for numbers in ([ALONE], stand):
    while any(stand[number] < len(expected(number)) for number in numbers):
        go_on(numbers)
done()
"""

KINDS = {
    "open": {
        "CREATE": "schema", "DROP": "schema", "ALTER": "schema", "INSERT INTO archive": "part of a migration",
        "INSERT INTO transactions": "migration step", "UPDATE transactions": "migration step",
        "DELETE FROM unconverted": "migration step", "INSERT INTO": "row at opening", "UPDATE": "row at opening",
        "COMMIT": "commit at opening", "BEGIN": "lock at opening",
    },
    "claim": {
        "INSERT INTO archive": "copy at a claim", "UPDATE transactions SET log_from": "mark at a claim",
        "DELETE FROM log": "log of the dead", "UPDATE transactions SET owner": "claim", "DELETE FROM owners": "fence",
        "UPDATE owners": "fence", "COMMIT": "commit of a claim", "BEGIN": "lock of a claim",
    },
    "write": {
        "INSERT INTO log SELECT": "log row alone", "INSERT INTO log": "log row", "INSERT INTO archive": "archive part",
        "DELETE FROM log": "truncation", "INSERT INTO blobs": "blob", "INSERT OR IGNORE INTO blob_uses": "blob's use",
        "INSERT INTO words": "word", "INSERT INTO transactions": "begin of a transaction",
        "UPDATE transactions": "state of a transaction", "COMMIT": "commit", "BEGIN": "lock",
    },
}  # fmt: skip
"""What a statement writes, by when it is given and how it begins."""

OF_OPENING = frozenset(KINDS["open"].values())
OF_WRITES = frozenset(KINDS["write"].values())
OF_CLAIMS = frozenset(KINDS["claim"].values())
SHORT = frozenset({"log row alone", "archive part", "truncation", "blob", "copy at a claim"})
"""What the short form tries; kills at every statement meet the others, too."""


def kind_of(phase: str, text: str) -> str:
    """What a statement writes; `other` if it only reads."""
    text = text.lstrip()
    return next((kind for begin, kind in KINDS.get(phase, {}).items() if text.startswith(begin)), "other")


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


class Run(NamedTuple):
    """What a child has said."""

    kept: dict[str, int]
    """What it was told is kept: transaction → last seq."""
    died_at: str
    """The kind of statement at which it died; empty: it did not."""
    points: dict[str, int]
    """How many statements of each kind it gave, if it did not die; under "" all together."""


def _run(path: Path, owner: str, what: str = "", at: int = 0, **environment: str) -> Run:
    """Run the child until its statement number `at` of this kind, or of any."""
    environment |= {**os.environ, "PYTHONPATH": str(warm.ROOT)}
    child = warm.run(["-c", CHILD, str(path), owner, what, str(at)], timeout=60, env=environment)
    assert child.returncode in (0, 9), child.stderr
    lines = child.stdout.split("\n")
    kept: dict[str, int] = {}
    for line in lines:
        if line.startswith("kept "):
            _, transaction, seq = line.split()
            kept[transaction] = int(seq)
    said, _, text = lines[-2].partition(" ")
    return Run(kept, text, {}) if said == "dies" else Run(kept, "", json.loads(text))


def _check(path: Path, kept: dict[str, int]) -> None:
    if not kept:
        return  # it may have died before there was a journal
    with SqliteReader(path) as reader:
        for transaction, seq in kept.items():
            pulses = reader.pulses(transaction)
            assert len(pulses) > seq
            assert pulses == expected(int(transaction, 16))[: len(pulses)]
        assert not [found for found in reader.verify() if isinstance(found, Fault)]


def _end(path: Path, kept: dict[str, int]) -> None:
    """Check what is there, and that a last process ends it."""
    _check(path, kept)
    assert not _run(path, "last").died_at
    _check(path, {name(number): len(expected(number)) - 1 for number in range(TRANSACTIONS)})


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many statements of each kind the whole takes."""
    found = _run(tmp_path_factory.mktemp("whole") / "pulses.db", "whole").points
    assert found[""] > 100 and found.keys() >= OF_WRITES
    return found


def test_killed_at_each_kind_of_write(points: dict[str, int], tmp_path: Path) -> None:
    """And who takes over too, at each kind of its claim."""
    tried: Counter[str] = Counter()
    of_writes = OF_WRITES | {"schema", "row at opening", "commit at opening"}
    for kind in sorted(of_writes if LONG else of_writes & SHORT):
        for at in {1 + points[kind] // 2} if not LONG else {1, 1 + points[kind] // 2, points[kind]}:
            path = tmp_path / f"{kind} {at}.db"
            one = _run(path, "one", kind, at)
            assert one.died_at == kind
            tried[kind] += 1
            _end(path, one.kept)
    for kind in sorted(OF_CLAIMS if LONG else OF_CLAIMS & SHORT):
        for at in range(1, amount(quick=2, long=12)):
            path = tmp_path / f"{kind} {at}.db"
            one = _run(path, "one", "log row alone", points["log row alone"] // 2)
            two = _run(path, "two", kind, at)
            assert two.died_at == kind or at > 1, kind
            if not two.died_at:
                break
            tried[kind] += 1
            _end(path, one.kept | two.kept)
    _print("tried by kind", tried)


def test_killed_at_every_statement(points: dict[str, int], tmp_path: Path) -> None:
    tried: Counter[str] = Counter()
    for at in range(1, points[""] + 1, amount(quick=97, long=1)):
        path = tmp_path / f"{at}.db"
        kept, died_at, _ = _run(path, "one", "", at)
        assert died_at
        tried[died_at] += 1
        for heir in ("two", "three", "four") if LONG else ("two",):
            more, died_at, _ = _run(path, heir, "", 1 + at * len(heir) % 90)
            kept |= more
            tried[f"{died_at or 'none'}, of an heir"] += 1
        _end(path, kept)
        path.unlink()
    _print("tried at every statement", tried)


def test_killed_at_every_statement_of_a_migration(tmp_path: Path) -> None:
    """A store of an earlier release, by one process after the other, each of which dies a little later."""
    stored = Path(__file__).parents[1] / "old_stores" / "at_67fa6fb.db"
    tried: Counter[str] = Counter()
    path = tmp_path / "whole.db"
    shutil.copy(stored, path)
    path.chmod(0o600)
    points = _run(path, "whole", ONLY_OPENS="1").points
    assert points["part of a migration"] > 1
    path = tmp_path / "pulses.db"
    for at in range(1, points[""] + 1, amount(quick=points[""] // 3, long=1)):
        shutil.copy(stored, path)
        path.chmod(0o600)
        before = form.read(path)
        for turn in range(amount(quick=1, long=3)):
            died_at = _run(path, f"owner {turn}", "", at, ONLY_OPENS="1").died_at
            if not died_at:
                break
            tried[died_at] += 1
        assert not _run(path, "last", ONLY_OPENS="1").died_at
        with SqliteReader(path) as reader:
            assert {transaction: reader.pulses(transaction) for transaction in before} == before
            assert not [found for found in reader.verify() if isinstance(found, Fault)]
        for companion in tmp_path.glob("pulses.db*"):
            companion.unlink()
    _print("tried in a migration", tried)


def _print(what: str, tried: Counter[str]) -> None:
    """A table of the points, in the output of a run with `-s`."""
    print(f"\n{what}: {tried.total()} kills, lost 0")
    for kind, times in sorted(tried.items()):
        print(f"  {times:6,}  {kind}")
