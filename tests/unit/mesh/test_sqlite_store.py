"""What `SqliteStore` promises beyond the contract: files, leases, locks, and what goes wrong with a disk."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bitactor.errors import ConfigurationError, StaleOwner, StoreError
from bitactor.ports import Claim, Refusal, Write
from mesh.runtime.settled import at_once
from mesh.stores import MemoryStore, SqliteReader, SqliteStore, open_reader, open_store
from mesh.stores.lease import identify, process_started
from registry.support.clock import monotonic_ns
from tests.store_faults import Disk
from tests.store_writes import BOUND, Loop, Told, first, fresh, hop, last, pulse, taken

HOUR_NS = 3_600 * 10**9


class Wall:
    """A wall clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * HOUR_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def wall() -> Wall:
    return Wall()


Opener = Callable[..., SqliteStore]


@pytest.fixture
def opened(path: Path, loop: Loop, wall: Wall) -> Iterator[Opener]:
    """Opens stores on `path`; closes them in the end."""
    stores: list[SqliteStore] = []

    def open_one(
        owner: str = "owner-1", lease: float = 3_600.0, patience: float = BOUND, **options: Any
    ) -> SqliteStore:
        store = SqliteStore(path, notify=loop.notify, lease=lease, patience=patience, wall_ns=wall, **options)
        store.open(owner)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def people(path: Path) -> Iterator[Callable[..., list[tuple[object, ...]]]]:
    """Somebody with an SQLite shell."""
    connections: list[sqlite3.Connection] = []

    def ask(statement: str, *values: object) -> list[tuple[object, ...]]:
        if not connections:
            connections.append(sqlite3.connect(path, isolation_level=None, timeout=BOUND))
        return connections[0].execute(statement, values).fetchall()

    yield ask
    for connection in connections:
        connection.close()


People = Callable[..., list[tuple[object, ...]]]


def _append(store: SqliteStore, loop: Loop, *writes: Write) -> tuple[Sequence[Refusal], BaseException | None]:
    told = Told()
    store.append(writes, told.done())
    loop.run_until(lambda: told.complete)
    _, refusals, error = told.outcomes[0]
    return refusals, error


def _keep(store: SqliteStore, loop: Loop, *writes: Write) -> None:
    refusals, error = _append(store, loop, *writes)
    assert not refusals and error is None, (refusals, error)


def _eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.01)


# Files


def _refused(path: Path, loop: Loop) -> str:
    store = SqliteStore(path, notify=loop.notify)
    with pytest.raises(StoreError) as caught:
        store.open("owner-1")
    store.close()
    return str(caught.value)


def test_a_path_that_cannot_be_a_journal_is_refused_with_what_to_do(tmp_path: Path, loop: Loop) -> None:
    assert "is a directory; name a file in it" in _refused(tmp_path, loop)
    assert f"mkdir -p {tmp_path}/deep" in _refused(tmp_path / "deep" / "pulses.db", loop)
    text = tmp_path / "notes.txt"
    text.write_text("shopping list\n" * 100)
    assert "no SQLite file" in _refused(text, loop)
    assert text.read_text() == "shopping list\n" * 100


def test_a_directory_that_cannot_be_written_is_refused(loop: Loop) -> None:
    """/proc: root cannot create a file there either."""
    message = _refused(Path("/proc/pulses.db"), loop)
    assert message.startswith("/proc/pulses.db: ") and "write access to the directory" in message


def test_a_file_of_another_program_is_refused_and_left_as_it_is(path: Path, loop: Loop) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    assert "another program" in _refused(path, loop)
    with pytest.raises(StoreError, match="another program"):
        SqliteReader(path)
    assert path.read_bytes() == before


def test_a_later_version_is_refused_with_both_versions(path: Path, loop: Loop, opened: Opener, people: People) -> None:
    opened().close()
    people("PRAGMA user_version = 7")
    assert re.search(r"pulses\.db has schema version 7, this release knows up to \d", _refused(path, loop))


def test_an_owner_takes_a_name_of_its_own(opened: Opener) -> None:
    opened("owner-1")
    with pytest.raises(StoreError, match="'owner-1' is in the journal already"):
        opened("owner-1")
    with pytest.raises(StoreError, match="needs a name"):
        opened("")


def test_nothing_is_left_of_a_closed_store_but_the_file(path: Path, opened: Opener, loop: Loop, people: People) -> None:
    threads = threading.active_count()
    store = opened()
    transaction = fresh()
    _keep(store, loop, first(transaction), last(transaction, 2))
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["pulses.db"]
    assert threading.active_count() == threads
    assert people("SELECT * FROM owners") == []


def test_a_relative_path_means_the_directory_it_was_given_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///relative.db", notify=loop.notify)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.open("owner-1")
    store.close()
    assert (tmp_path / "relative.db").exists()


def test_every_question_is_answered_from_an_index(opened: Opener, people: People) -> None:
    opened()

    def plan(statement: str) -> str:
        rows = people(f"EXPLAIN QUERY PLAN {statement}", *["x"] * statement.count("?"))
        return " | ".join(str(row[3]) for row in rows)

    table = "SELECT * FROM transactions WHERE"
    order = "ORDER BY transaction_id DESC LIMIT 1"
    assert "transactions_by_key" in plan(f"{table} workflow = ? AND key = ? AND key <> ''")
    assert "transactions_open" in plan("SELECT min(owner) FROM transactions WHERE open = 1 AND owner > ?")
    assert "transactions_open" in plan(f"{table} owner = ? AND open = 1")
    for condition in ("status = ?", "workflow = ?", "status = ? AND +workflow = ?", "+status = ? AND workflow = ?"):
        for before in ("", " AND transaction_id < ?"):
            how = plan(f"{table} {condition}{before} {order}")
            assert "USING INDEX transactions_by_" in how and "TEMP B-TREE" not in how, how
    for condition in ("", " AND +workflow = ?", " AND transaction_id < ?", " AND +workflow = ? AND transaction_id < ?"):
        how = plan(f"{table} (dead = 1 OR status = 'stuck'){condition} {order}")
        assert "USING INDEX transactions_dead" in how and "TEMP B-TREE" not in how, how


# Reading from another process


def test_a_reader_sees_what_is_committed_and_creates_nothing(path: Path, opened: Opener, loop: Loop) -> None:
    with pytest.raises(StoreError, match="no such file"):
        open_reader(f"sqlite:///{path}")
    assert not path.exists()
    path.touch()
    with pytest.raises(StoreError, match="empty"):
        open_reader(f"sqlite:///{path}")
    store, transaction = opened(), fresh()
    with open_reader(f"sqlite:///{path}") as reader:
        assert reader.list() == []
        _keep(store, loop, first(transaction, key="k"))
        assert reader.pulses(transaction) == store.reader().pulses(transaction) != []
        assert reader.find("users.signup", "k") == transaction
        assert reader.get(transaction) == store.reader().get(transaction)
    reader.close()
    with pytest.raises(StoreError, match="not open"):
        reader.list()
    store.close()
    with open_reader(f"sqlite:///{path}") as reader:
        assert len(reader.pulses(transaction)) == 2


# Leases and claims


def _pretend(people: People, owner: str, *, pid: int, boot_id: str, expires_ns: int) -> None:
    """Make an owner look like a process somewhere else."""
    people("UPDATE owners SET pid = ?, boot_id = ?, expires_ns = ? WHERE owner = ?", pid, boot_id, expires_ns, owner)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The clock by which stores that are opened from now on watch each other, and renew leases."""
    made = Wall()
    monkeypatch.setattr("mesh.stores.sqlite.monotonic_ns", made)
    return made


def watch(store: SqliteStore, clock: Wall, seconds: float, lease: float = 3_600.0) -> list[Claim]:
    """Ask for claims every half a lease for so long, as recovery does, until there are some."""
    for _ in range(round(seconds / (lease / 2))):
        clock.now_ns += round(lease / 2 * 1e9)
        if claims := taken(store.claim()):
            return claims
    return []


@pytest.mark.parametrize("hours", [-100, 100])
def test_a_process_that_can_be_seen_running_is_not_dead_whatever_the_wall_clock_says(
    hours: int, opened: Opener, loop: Loop, wall: Wall
) -> None:
    _keep(opened("slow"), loop, first(fresh()))
    quick = opened("quick")
    assert at_once(quick.claim()) == []
    wall.now_ns += hours * HOUR_NS
    assert at_once(quick.claim()) == []


def test_a_process_that_runs_and_does_not_renew_hangs_after_a_bound(
    opened: Opener, loop: Loop, clock: Wall, people: People
) -> None:
    """It is fenced as who cannot be seen: it may go on, and is told."""
    transaction = fresh()
    hung = opened("hung")
    _keep(hung, loop, first(transaction))
    heir, patient, soon = opened("heir", hung_after=36_000), opened("patient", hung_after=0), opened("soon")
    assert at_once(soon.claim()) == [], "that is at least two leases"
    assert watch(soon, clock, 1.5 * 3_600) == []
    assert at_once(heir.claim()) == at_once(patient.claim()) == []
    assert watch(heir, clock, 9 * 3_600) == watch(patient, clock, 20 * 3_600) == []
    assert at_once(heir.claim()) == [], "half a lease of the time since the last look counts, and no more"
    people("UPDATE owners SET expires_ns = expires_ns - 1 WHERE owner = 'hung'")
    assert watch(heir, clock, 9.5 * 3_600) == [], "any other number is a renewal"
    people("UPDATE owners SET expires_ns = expires_ns - 1 WHERE owner <> 'hung'")
    assert watch(heir, clock, 3_600) == [Claim(transaction, 1)]
    _, error = _append(hung, loop, hop(transaction, 2))
    assert isinstance(error, StaleOwner) and "by 'heir'" in str(error) and error.owner == "hung"


def test_who_was_stopped_itself_declares_nobody_dead_on_waking(
    opened: Opener, loop: Loop, clock: Wall, people: People
) -> None:
    """As all processes are when a machine wakes."""
    transaction = fresh()
    _keep(opened("away"), loop, first(transaction))
    people("UPDATE owners SET boot_id = ?", f"{identify().boot_id.partition('/')[0]}/pid:[1]")
    heir = opened("heir")
    assert at_once(heir.claim()) == []
    clock.now_ns += 100 * HOUR_NS
    assert at_once(heir.claim()) == []
    assert watch(heir, clock, 3_600) == [Claim(transaction, 1)]


def test_an_owner_whose_process_is_gone_is_dead_at_once(opened: Opener, loop: Loop, wall: Wall, people: People) -> None:
    running, ended = fresh(), fresh()
    dead = opened("dead")
    _keep(dead, loop, first(running), first(ended, open=False))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(BOUND)
    _pretend(people, "dead", pid=child.pid, boot_id=identify().boot_id, expires_ns=wall.now_ns + HOUR_NS)
    heir = opened("heir")
    assert taken(heir.claim()) == [Claim(running, 1)]
    assert at_once(heir.claim()) == []
    row = heir.reader().get(running)
    assert row is not None and (row.owner, row.epoch) == ("heir", 1)
    assert people("SELECT owner FROM owners") == [("heir",)]
    _keep(heir, loop, hop(running, 2, epoch=1))
    refusals, _ = _append(heir, loop, hop(running, 4, epoch=0))
    assert isinstance(refusals[0].error, StaleOwner)
    _, error = _append(dead, loop, hop(running, 4), first(fresh()))
    assert isinstance(error, StaleOwner) and "'dead'" in str(error)
    assert len(heir.reader().pulses(running)) == 4 and len(heir.reader().list()) == 2


def test_a_pid_given_to_a_later_process_is_not_taken_for_the_owner(opened: Opener, loop: Loop, people: People) -> None:
    transaction = fresh()
    _keep(opened("dead"), loop, first(transaction))
    people("UPDATE owners SET process_started = process_started - 1")
    assert taken(opened("heir").claim()) == [Claim(transaction, 1)]


def test_a_zombie_is_not_running() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}/stat").exists() and process_started(child.pid) is None
    child.wait(BOUND)
    assert process_started(child.pid) is None
    assert process_started(os.getpid()) == identify().process_started > 0


def test_an_owner_that_cannot_be_seen_is_dead_when_its_lease_has_run_out(
    opened: Opener, loop: Loop, wall: Wall, clock: Wall, people: People
) -> None:
    """It may still run; it is told who has its work."""
    transaction = fresh()
    away = opened("away")
    _keep(away, loop, first(transaction))
    _pretend(people, "away", pid=1, boot_id="another boot", expires_ns=wall.now_ns + HOUR_NS)
    heir = opened("heir")
    assert at_once(heir.claim()) == []
    for hours in (1, -2, 100):
        wall.now_ns += hours * HOUR_NS
        assert at_once(heir.claim()) == [], "who sets the wall clock makes nobody dead"
    assert watch(heir, clock, 1_800) == []
    assert watch(heir, clock, 1_800) == [Claim(transaction, 1)]
    _, error = _append(away, loop, hop(transaction, 2))
    assert isinstance(error, StaleOwner) and "by 'heir'" in str(error)
    assert len(heir.reader().pulses(transaction)) == 2
    away.close()
    wall.now_ns += 25 * HOUR_NS
    _pretend(people, "heir", pid=1, boot_id="another boot", expires_ns=1)
    assert taken(opened("third").claim()) == [Claim(transaction, 2)], "of an earlier boot, when a store is opened"
    assert people("SELECT owner FROM owners") == [("heir",), ("third",)], "fenced rows are kept for a day, or once"


def test_open_transactions_without_any_owner_are_claimed(opened: Opener, loop: Loop, people: People) -> None:
    transactions = [fresh() for _ in range(3)]
    lost = opened("lost")
    _keep(lost, loop, *[first(transaction) for transaction in transactions])
    people("DELETE FROM owners")
    assert taken(opened("heir").claim()) == [Claim(transaction, 1) for transaction in transactions]
    _, error = _append(lost, loop, hop(transactions[0], 2))
    assert isinstance(error, StaleOwner)


def test_what_a_closed_store_left_open_can_be_claimed_at_once(opened: Opener, loop: Loop) -> None:
    leaving, heir, transaction = opened("leaving"), opened("heir"), fresh()
    _keep(leaving, loop, first(transaction))
    leaving.close()
    assert taken(heir.claim()) == [Claim(transaction, 1, given_back=True)]


def test_only_what_began_in_a_given_shape_is_claimed(opened: Opener, loop: Loop, people: People) -> None:
    """What another release began stays for it, and can be listed."""
    ours, theirs, unknown = fresh(), fresh(), fresh()
    accepted = pulse(theirs, 0, "accepted", digest="of another release")
    dead = opened("dead")
    _keep(
        dead, loop, first(ours), Write(theirs, 0, (accepted,), "running", True), first(unknown, workflow="undeclared")
    )
    dead.close()
    heir, shapes = opened("heir"), {"users.signup": "abcdef"}
    assert taken(heir.claim(shapes)) == [Claim(ours, 1, given_back=True)]
    assert at_once(heir.claim(shapes)) == []
    assert [row.transaction for row in at_once(heir.unclaimed(shapes))] == [theirs]
    assert at_once(heir.unclaimed(shapes, limit=0)) == at_once(heir.unclaimed({})) == []
    old = opened("old")
    assert taken(old.claim({"users.signup": "of another release"})) == [Claim(theirs, 1, given_back=True)]
    assert at_once(heir.unclaimed(shapes)) == []
    assert taken(old.claim()) == [Claim(unknown, 1, given_back=True)]
    assert people("SELECT owner FROM owners ORDER BY owner") == [("heir",), ("old",)]


def test_who_was_fenced_reclaims_nothing(opened: Opener, loop: Loop, people: People) -> None:
    store = opened("away")
    _keep(store, loop, first(fresh()))
    people("UPDATE owners SET fenced = 'heir'")
    with pytest.raises(StaleOwner, match="'heir'"):
        at_once(store.reclaim(()))
    people("UPDATE owners SET fenced = ''")
    assert len(at_once(store.reclaim(()))) == 1


def test_nothing_is_reclaimed_while_the_file_cannot_be_written(
    opened: Opener, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store, transaction = opened(), fresh()
    _keep(store, loop, first(transaction))
    disk.protect()
    with pytest.raises(StoreError):
        at_once(store.reclaim(()))
    disk.unprotect()
    assert at_once(store.reclaim(())) == [Claim(transaction, 1)]


def test_a_halted_transaction_may_be_taken_up_by_another_owner(opened: Opener, loop: Loop) -> None:
    """Whoever writes first has it; the former holder finds its view outdated."""
    former, other, transaction = opened("former"), opened("other"), fresh()
    _keep(former, loop, first(transaction), last(transaction, 2, "halted"))
    _keep(other, loop, hop(transaction, 3))
    for wrong in (hop(transaction, 3), hop(transaction, 5)):
        refusals, _ = _append(former, loop, wrong)
        assert isinstance(refusals[0].error, StaleOwner) and "'other'" in str(refusals[0].error)
    _keep(other, loop, last(transaction, 5, "halted"))
    refusals, _ = _append(former, loop, hop(transaction, 3))
    assert isinstance(refusals[0].error, StaleOwner)
    row = other.reader().get(transaction)
    assert row is not None and (row.owner, row.status) == ("other", "halted")


def test_a_lease_is_renewed_while_the_loop_is_blocked(opened: Opener, wall: Wall, people: People) -> None:
    opened(lease=0.15)
    wall.now_ns += HOUR_NS
    _eventually(lambda: people("SELECT expires_ns FROM owners") == [(wall.now_ns + 150_000_000,)])


@pytest.mark.parametrize("durability", ["process", "power"])
def test_an_owner_that_was_fenced_is_told_and_goes_on_under_another_name(
    durability: str, opened: Opener, loop: Loop, people: People
) -> None:
    store, transaction = opened(lease=0.15, durability=durability), fresh()
    told: list[StaleOwner] = []
    store.on_fenced = told.append
    _keep(store, loop, first(transaction))
    people("UPDATE owners SET fenced = 'heir'")
    loop.run_until(lambda: bool(told))
    assert "by 'heir'" in str(told[0]) and told[0].owner == "owner-1" and store.lease_until_ns() == 0
    _, error = _append(store, loop, hop(transaction, 2))
    assert isinstance(error, StaleOwner)
    asyncio.run(store.rejoin("owner-2"))
    assert store.lease_until_ns() > 0
    _keep(store, loop, first(fresh()))
    refusals, error = _append(store, loop, hop(transaction, 2))
    assert error is None and isinstance(refusals[0].error, StaleOwner), "nothing is its own any more"
    people("DELETE FROM owners WHERE owner = 'owner-1'")
    assert taken(store.claim()) == [Claim(transaction, 1)], "until it is claimed"
    _keep(store, loop, hop(transaction, 2, epoch=1))
    (before,) = people("SELECT expires_ns FROM owners WHERE fenced = ''")
    _eventually(lambda: people("SELECT owner FROM owners") == [("owner-2",)])
    with pytest.raises(StoreError, match="name of its own"):
        asyncio.run(store.rejoin("owner-2"))
    store.close()
    with pytest.raises(StoreError, match="closed"):
        asyncio.run(store.rejoin("owner-3"))
    assert before


def test_a_lease_is_not_renewed_while_the_loop_hangs(
    opened: Opener, loop: Loop, people: People, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(lease=0.15, hung_after=0.3)
    _eventually(lambda: "has not turned for" in caplog.text)
    wall.now_ns += HOUR_NS
    _eventually(lambda: store.lease_until_ns() < monotonic_ns())
    assert people("SELECT expires_ns FROM owners") < [(wall.now_ns,)]
    loop.run_one()
    _eventually(lambda: people("SELECT expires_ns FROM owners") > [(wall.now_ns,)])
    _eventually(lambda: store.lease_until_ns() > monotonic_ns())
    assert "turns again" in caplog.text


# Locks


def test_a_locked_file_does_not_block_the_caller_and_order_is_kept(opened: Opener, loop: Loop, people: People) -> None:
    store, transaction, told = opened(), fresh(), Told()
    store.append([first(transaction)], told.done())
    assert told.complete
    people("BEGIN IMMEDIATE")
    for number in range(20):
        store.append([hop(transaction, 2 + 2 * number)], told.done())
    assert len(told.outcomes) == 1
    assert len(store.reader().pulses(transaction)) == 2, "reads go on"
    people("COMMIT")
    loop.run_until(lambda: told.complete)
    store.append([hop(transaction, 42)], told.done())
    assert told.complete, "commits on the calling thread again"
    assert [number for number, _, _ in told.outcomes] == list(range(22))
    assert not any(refusals or error for _, refusals, error in told.outcomes)
    assert len(store.reader().pulses(transaction)) == 44


def test_appends_from_a_delivery_stay_behind_what_waits(opened: Opener, loop: Loop, people: People) -> None:
    store, transaction = opened(), fresh()
    order: list[str] = []
    _keep(store, loop, first(transaction))

    def nested(refusals: Sequence[Refusal], error: BaseException | None) -> None:
        assert not refusals and error is None
        store.append([hop(transaction, 6)], lambda refusals, error: order.append(f"nested {len(refusals)} {error}"))
        order.append("first")

    people("BEGIN IMMEDIATE")
    store.append([hop(transaction, 2)], nested)
    store.append([hop(transaction, 4)], lambda refusals, error: order.append("second"))
    people("COMMIT")
    loop.run_until(lambda: len(order) == 3)
    assert order == ["first", "second", "nested 0 None"]


def test_a_file_that_stays_locked_fails_the_append(path: Path, opened: Opener, loop: Loop, people: People) -> None:
    store, transaction = opened(patience=0.1), fresh()
    people("BEGIN IMMEDIATE")
    _, error = _append(store, loop, first(transaction))
    assert isinstance(error, StoreError) and str(error).startswith(f"{path}: another process kept it locked")
    people("COMMIT")
    _keep(store, loop, first(transaction))


def test_a_callback_that_raises_does_not_keep_others_from_theirs(
    opened: Opener, loop: Loop, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    store, told = opened(), Told()

    def wrong(refusals: Sequence[Refusal], error: BaseException | None) -> None:
        raise RuntimeError("wrong")

    people("BEGIN IMMEDIATE")
    store.append([first(fresh())], wrong)
    store.append([first(fresh())], told.done())
    people("COMMIT")
    loop.run_until(lambda: told.complete)
    assert "a callback of append raised" in caplog.text


def test_refusals_of_a_group_go_to_the_appends_they_belong_to(opened: Opener, loop: Loop, people: People) -> None:
    store, told = opened(), Told()
    people("BEGIN IMMEDIATE")
    store.append([first(fresh(), key="a")], told.done())
    store.append([first(fresh()), first(fresh(), key="a")], told.done())
    store.append([first(fresh())], told.done())
    store.append([first(fresh(), key="a"), first(fresh())], told.done())
    people("COMMIT")
    loop.run_until(lambda: told.complete)
    assert [[refusal.index for refusal in refusals] for _, refusals, _ in told.outcomes] == [[], [1], [], [0]]


# Disks and data


def test_a_full_disk_fails_the_append_and_nothing_else(
    path: Path, opened: Opener, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store, transaction = opened(), fresh()
    _keep(store, loop, first(transaction))
    disk.fill()
    large = Write(transaction, 0, (pulse(transaction, 2, token_out="x" * 100_000),), "running", True)
    _, error = _append(store, loop, large)
    assert isinstance(error, StoreError) and str(error).startswith(f"{path}: the disk is full; nothing was written")
    refusals, error = _append(store, loop, hop(transaction, 3))
    assert error is None and "a write between was lost" in str(refusals[0].error)
    disk.free()
    _keep(store, loop, large)
    assert len(store.reader().pulses(transaction)) == 3


def test_a_pulse_that_cannot_be_stored_is_refused_alone(opened: Opener, loop: Loop) -> None:
    store, good, bad, surrogate, huge = opened(), fresh(), fresh(), fresh(), fresh()
    writes = [
        Write(bad, 0, (pulse(bad, 0, data={"what": object()}),), "running", True),
        first(good),
        first(surrogate, key="\udc80"),
        Write(huge, 0, (pulse(huge, 0, at_ns=2**80),), "running", True),
        hop(bad, 1),
        hop(good, 2),
    ]
    refusals, error = _append(store, loop, *writes)
    assert error is None and [refusal.index for refusal in refusals] == [0, 2, 3, 4]
    assert all("cannot be stored" in str(refusal.error) for refusal in refusals)
    assert len(store.reader().pulses(good)) == 4 and [row.transaction for row in store.reader().list()] == [good]


def test_a_pulse_is_kept_as_it_was_when_it_was_appended(opened: Opener, loop: Loop, people: People) -> None:
    store, transaction, told = opened(), fresh(), Told()
    data = {"due_ns": [1]}
    people("BEGIN IMMEDIATE")
    store.append([Write(transaction, 0, (pulse(transaction, 0, data=data),), "running", True)], told.done())
    data["due_ns"].append(2)
    people("COMMIT")
    loop.run_until(lambda: told.complete)
    assert store.reader().pulses(transaction)[0].data == {"due_ns": [1]}


def test_an_error_message_need_not_be_unicode(opened: Opener, loop: Loop) -> None:
    """File names that could not be decoded end up in messages."""
    store, transaction = opened(), fresh()
    odd = pulse(transaction, 0, error="no such file: \udcff", data={"fault": ["OSError", "\udcff"]})
    _keep(store, loop, Write(transaction, 0, (odd,), "running", True))
    assert store.reader().pulses(transaction) == [odd]


def test_the_write_ahead_log_stays_short_under_a_writer_that_never_pauses(
    path: Path, opened: Opener, loop: Loop
) -> None:
    store, told = opened(checkpoint_pages=100, durability="none"), Told()  # whatever the disk is busy with
    longest = 0
    for _ in range(4_000):
        transaction = fresh()
        store.append([first(transaction)], told.done())
        while not told.complete:
            loop.run_one()
        longest = max(longest, Path(f"{path}-wal").stat().st_size)
    assert not any(refusals or error for _, refusals, error in told.outcomes)
    assert longest < 20_000_000, "all of it together is 4,000 commits of some 20 kB"


# Names of stores


def test_a_store_is_named_by_a_url(path: Path, loop: Loop) -> None:
    assert isinstance(open_store("memory://", notify=loop.notify), MemoryStore)
    assert isinstance(open_store(f"sqlite:///{path}", notify=loop.notify), SqliteStore)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://host/db", "not built yet"),
        ("redis://host", "'memory://', 'sqlite:///pulses.db'"),
        ("sqlite://pulses.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///pulses.db?mode=ro", "takes no options"),
        ("memory://somewhere", "nothing behind it"),
        ("pulses.db", "sqlite:///pulses.db"),
    ],
)
def test_what_names_no_store_is_refused(url: str, said: str, loop: Loop) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        open_store(url, notify=loop.notify)
    with pytest.raises(ConfigurationError):
        open_reader(url)


def test_options_that_mean_nothing_are_refused(path: Path, loop: Loop) -> None:
    with pytest.raises(ConfigurationError, match="power"):
        open_store("memory://", notify=loop.notify, durability="power")
    with pytest.raises(ConfigurationError, match="Did you mean 'process'"):
        SqliteStore(path, notify=loop.notify, durability="proces")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        SqliteStore(path, notify=loop.notify, lease=0)
    with pytest.raises(ConfigurationError, match="process it is in"):
        open_reader("memory://")
