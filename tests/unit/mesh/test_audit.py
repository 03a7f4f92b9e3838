"""What of a journal cannot be read back: found by steps of bounded size, and beside the work of an open store."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgpack
import pytest

from bitactor.ports import StoreFault
from mesh.cli import main
from mesh.stores import SqliteReader, SqliteStore
from mesh.stores.database import read_only_uri
from mesh.stores.journal.frames import frames_in
from mesh.stores.journal.parts import frames_of_part, part_body
from mesh.stores.journal.tail import id_bytes
from mesh.stores.journal.takeover import INSERT_PART
from mesh.stores.journal.verify import Fault, Progress, Verification
from tests.e2e.test_damage import DAMAGES, statement
from tests.journal_damage import lean_pulses_of, rewrite
from tests.store_writes import Loop, Told, first, fresh

FOUND = DAMAGES.keys() - {"data of other fields", "an unknown kind", "a step that is not there"}
"""What of them the rows tell, without the workflow."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
def transactions(path: Path) -> list[str]:
    names = sorted(fresh() for _ in range(40))
    store = SqliteStore(path, notify=lambda call: None)
    store.open("one")
    store.append([first(name) for name in names], Told().done())
    store.close()
    return names


@pytest.fixture
def connection(path: Path, transactions: list[str]) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def faults(connection: sqlite3.Connection) -> list[Fault]:
    return [found for found in Verification(connection).walk() if isinstance(found, Fault)]


def test_each_damage_is_found_and_named(connection: sqlite3.Connection, transactions: list[str]) -> None:
    damaged = dict(zip(transactions, sorted(FOUND), strict=False))
    for transaction, name in damaged.items():
        DAMAGES[name](connection, transaction)
    found = faults(connection)
    assert sorted(fault.transaction for fault in found) == list(damaged)
    assert all(fault.why and fault.wanted and fault.pulse >= 0 for fault in found)
    assert not connection.in_transaction


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_steps_of_any_size_see_everything_once(
    connection: sqlite3.Connection, transactions: list[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the last part of a transaction with more of them than a step has; no step takes more than it may."""
    for name in ("_TRANSACTIONS_A_STEP", "_WORDS_A_STEP", "_PARTS_A_STEP", "_LOG_BYTES_A_STEP", "_PULSES_A_STEP"):
        monkeypatch.setattr(f"mesh.stores.journal.verify.{name}", size)
    long, hurt = transactions[5], transactions[9]
    in_parts(connection, long, 30)
    connection.execute("UPDATE archive SET body = x'c1' WHERE transaction_id = ? AND seq = 29", (long,))
    DAMAGES["no pulses"](connection, hurt)
    found, before = [], Progress(0, 0)
    for step in Verification(connection).walk():
        if isinstance(step, Fault):
            found.append(step)
            continue
        assert step.transactions - before.transactions <= size and step.pulses - before.pulses <= 2 * size
        before = step
    assert [(one.transaction, one.pulse) for one in found] == [(long, 29), (hurt, 0)]
    assert "29 to 30 is damaged" in found[0].why and "no pulse" in found[1].why
    assert before == Progress(len(transactions), 2 * (len(transactions) - 2) + 29)


def in_parts(connection: sqlite3.Connection, transaction: str, number: int) -> None:
    """Let it have so many pulses, each in a part of the archive of its own."""
    pulse = lean_pulses_of(connection, transaction)[0]
    body = msgpack.packb([pulse])
    rewrite(connection, transaction, [(seq, 1, body) for seq in range(number)])
    ((data,),) = connection.execute("SELECT body FROM archive WHERE transaction_id = ?", (transaction,)).fetchall()
    name = id_bytes(transaction)
    frames = frames_of_part(name, 0, number, 0, data)
    connection.execute("DELETE FROM archive WHERE transaction_id = ?", (transaction,))
    for frame in frames_in(frames):
        part = part_body(name, frame.seq, frame.seq + 1, 0, frames[frame.start : frame.end])
        connection.execute(INSERT_PART, (transaction, frame.seq, frame.seq + 1, 0, part))


def test_a_sound_journal_has_nothing(connection: sqlite3.Connection, transactions: list[str]) -> None:
    assert faults(connection) == []


def test_an_open_store_tells_once(
    path: Path, connection: sqlite3.Connection, transactions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what has something left to do; over and over it looks, and says it once."""
    monkeypatch.setattr("mesh.stores.threads.LOOK_INTERVAL", 0.005)
    monkeypatch.setattr("mesh.stores.audit.INTERVAL_NS", 0)
    statement("UPDATE transactions SET open = 0, status = 'completed' WHERE transaction_id = ?")(
        connection, transactions[0]
    )
    DAMAGES["no pulses"](connection, transactions[0])
    DAMAGES["half a message"](connection, transactions[1])
    loop, faults = Loop(), list[StoreFault]()
    store = SqliteStore(path, notify=loop.notify)
    store.on_fault = faults.append
    store.open("two")
    loop.run_one()
    DAMAGES["half a message"](connection, transactions[2])
    loop.run_one()
    store.close()
    assert [fault.transaction for fault in faults] == transactions[1:3]
    assert not any(fault.lost for fault in faults) and str(path) in faults[0].why


def test_a_damaged_page_is_about_the_file(
    path: Path, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.stores.threads.LOOK_INTERVAL", 0.005)
    monkeypatch.setattr("mesh.stores.audit.INTERVAL_NS", 0)
    ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'log'").fetchall()
    ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    connection.close()
    loop, faults = Loop(), list[StoreFault]()
    store = SqliteStore(path, notify=loop.notify)
    store.on_fault = faults.append
    store.open("two")
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    loop.run_until(lambda: bool(faults))
    store.close()
    (fault,) = faults
    assert not fault.transaction and not fault.lost and "the file is damaged" in fault.why


def test_doctor_reads_all_of_it(
    path: Path, connection: sqlite3.Connection, transactions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the first five, counts the others, and says who else may open the file."""
    store = f"sqlite:///{path}"
    assert main(["doctor", "--store", store]) == 0
    assert "cannot be read" not in capsys.readouterr().out
    for number, transaction in enumerate(transactions[:7]):
        DAMAGES["no pulses" if number % 2 else "half a message"](connection, transaction)
    path.chmod(0o644)
    assert main(["doctor", "--store", store, "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    mode, unread = [check for check in checks if check["name"] == "store"][1:]
    assert mode["verdict"] == "warn" and "mode 644" in mode["found"]
    assert unread["verdict"] == "fail" and unread["found"].startswith("7 transactions cannot be read")
    assert all(transaction in unread["found"] for transaction in transactions[:5])
    assert transactions[5] not in unread["found"] and unread["found"].endswith("and 2 more")


def test_a_reader_of_what_nobody_can_write(path: Path, transactions: list[str]) -> None:
    """Where its directory cannot be written, the file is read as it stands; for root, /proc is such a directory."""
    assert read_only_uri(path).endswith("?mode=ro")
    assert read_only_uri(Path("/proc/self/status")).endswith("?mode=ro&immutable=1")
    if os.geteuid() != 0:
        path.parent.chmod(0o500)
        try:
            with SqliteReader(path) as reader:
                assert len(reader.list(limit=100)) == len(transactions)
        finally:
            path.parent.chmod(0o700)
