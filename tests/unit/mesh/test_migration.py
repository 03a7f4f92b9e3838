"""A store of an earlier release is brought into the form of this one: all of it, whoever is killed on the way."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import StoreError
from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from mesh.cli.app import main
from mesh.stores import SqliteReader
from mesh.stores.journal import migration
from mesh.stores.journal.migration import migrating
from mesh.stores.journal.verify import Progress, Verification
from mesh.stores.lease import identify
from mesh.stores.rows import TRANSACTION_COLUMNS
from tests.old_stores import form
from tests.store_writes import pulse

STORES = sorted((Path(__file__).parents[2] / "old_stores").glob("*.db"), key=lambda path: path.stem)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


def steps(path: Path) -> Generator[float]:
    return migrating(path, time.time_ns)


def migrate(path: Path) -> None:
    for _ in steps(path):
        pass


def finish(one: Generator[float]) -> bool:
    """Let it go on by a step; whether it has ended."""
    return next(one, None) is None


def rows(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as file:
        return file.execute(f"SELECT {TRANSACTION_COLUMNS} FROM transactions ORDER BY 1").fetchall()


def same(path: Path, known: Mapping[str, Sequence[Pulse]]) -> None:
    """The store has these pulses, each transaction's in an unbroken chain that ends where its row says."""
    with SqliteReader(path) as reader, closing(sqlite3.connect(path)) as file:
        for transaction, pulses in known.items():
            assert reader.pulses(transaction) == list(pulses)
            assert list(Verification(file).look(transaction)) == [Progress(1, len(pulses))]


def journal(number: int, length: int = 3, size: int = 0) -> list[Pulse]:
    transaction = f"{number:032x}"
    token = encode_token({"of": number, "filler": os.urandom(size)})
    return [
        pulse(
            transaction,
            seq,
            "completed" if seq else "accepted",
            token_out=token,
            data={"ttl": 8, "packed": [token[:9]]},
        )
        for seq in range(length)
    ]


def known(*transactions: Sequence[Pulse]) -> dict[str, Sequence[Pulse]]:
    return {pulses[0].transaction: pulses for pulses in transactions}


@pytest.mark.parametrize("stored", STORES, ids=lambda path: path.stem)
def test_it_has_the_same_pulses_whenever_it_is_killed(
    stored: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "STEP_BYTES", 1)
    shutil.copy(stored, path)
    path.chmod(0o600)
    before, transactions = form.read(path), rows(path)
    killed = 0
    while killed < 1_000:
        with closing(steps(path)) as going:
            if finish(going):
                break
        killed += 1
    assert len(before) <= killed < 1_000
    same(path, before)
    assert rows(path) == transactions
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_long_one_becomes_parts_of_bounded_size(path: Path) -> None:
    long, large = journal(1, 2_000), [*journal(2, 6, 60_000), *journal(2, 12, 100_000)[6:]]
    form.write(path, [long, large, journal(3)])
    taken = sum(1 for _ in steps(path))
    same(path, known(long, large, journal(3)))
    with closing(sqlite3.connect(path)) as file:
        parts = dict(file.execute("SELECT transaction_id, max(length(body)) FROM archive GROUP BY 1").fetchall())
        numbers = file.execute("SELECT transaction_id, count(*) FROM archive GROUP BY 1 ORDER BY 1").fetchall()
    assert [count > 4 for _, count in numbers] == [True, True, False] and taken > 2
    assert parts[long[0].transaction] < 100_000 and parts[large[0].transaction] < 200_000


def test_two_that_open_at_once_take_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "STEP_BYTES", 2_000)
    transactions = [journal(number) for number in range(1, 60)]
    form.write(path, transactions)
    first, second = steps(path), steps(path)
    ended = [False, False]
    while not all(ended):
        ended = [finish(first), finish(second)]
    same(path, known(*transactions))


def test_who_waits_for_one_that_goes_on_waits_longer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "STEP_BYTES", 2_000)
    monkeypatch.setattr(migration, "PATIENCE", 0.0)
    transactions = [journal(number) for number in range(1, 60)]
    form.write(path, transactions)
    first, second = steps(path), steps(path)
    assert not finish(first) and not finish(second)
    monkeypatch.setattr(migration, "STEP_BYTES", 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for _ in range(3):
            assert not finish(first)
            other.execute("BEGIN IMMEDIATE")
            try:
                assert not finish(second), "others have committed since"
                with pytest.raises(StoreError, match="kept it locked"):
                    next(steps(path))
            finally:
                other.execute("ROLLBACK")


Damage = Callable[[sqlite3.Connection, str], object]


def statement(text: str) -> Damage:
    return lambda file, transaction: file.execute(text, (transaction,))


DAMAGES: dict[str, Damage] = {
    "no message": statement("UPDATE pulses SET body = x'c1' WHERE transaction_id = ?"),
    "another message": statement("UPDATE pulses SET body = x'970505050505050505' WHERE transaction_id = ?"),
    "no message in a later one": statement("UPDATE pulses SET body = x'' WHERE seq = 2 AND transaction_id = ?"),
    "no first pulse": statement("DELETE FROM pulses WHERE seq = 0 AND transaction_id = ?"),
    "a hole": statement("UPDATE pulses SET seq = 7 WHERE seq = 1 AND transaction_id = ?"),
    "a number before the first": statement("UPDATE pulses SET seq = -1 WHERE seq = 1 AND transaction_id = ?"),
    "half a number": statement("UPDATE pulses SET seq = 0.5 WHERE seq = 1 AND transaction_id = ?"),
    "a number that is none": statement("UPDATE pulses SET seq = 'x' WHERE seq = 1 AND transaction_id = ?"),
    "a text that is none": statement("UPDATE pulses SET step = CAST(x'ff' AS TEXT) WHERE transaction_id = ?"),
    "a time that is none": statement("UPDATE pulses SET at_ns = 'long ago' WHERE transaction_id = ?"),
}


def test_what_cannot_be_read_is_kept_aside_and_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = [journal(number) for number in range(1, len(DAMAGES) + 2)]
    damaged = [journal(1_000 + number) for number in range(len(DAMAGES))]
    form.write(path, [journal for pair in zip(sound, damaged, strict=False) for journal in pair] + sound[-1:])
    with closing(sqlite3.connect(path)) as file, file:
        for pulses, damage in zip(damaged, DAMAGES.values(), strict=True):
            damage(file, pulses[0].transaction)
        file.execute(
            "UPDATE pulses SET transaction_id = CAST(x'ffff' AS TEXT) WHERE transaction_id = ?", (f"{1:032x}",)
        )
        file.execute("UPDATE pulses SET transaction_id = x'ffff' WHERE transaction_id = ?", (f"{2:032x}",))
        file.execute("DELETE FROM transactions WHERE transaction_id = ?", (f"{3:032x}",))
        (total,) = file.execute("SELECT count(*) FROM pulses").fetchone()
    migrate(path)
    same(path, known(*sound[3:]))
    with SqliteReader(path) as reader:
        for pulses, what in zip(damaged, DAMAGES, strict=True):
            with pytest.raises(StoreError, match=f"transaction {pulses[0].transaction} cannot be read: pulses? .* "):
                reader.pulses(pulses[0].transaction)
            assert f"transaction {pulses[0].transaction} cannot be read: " in caplog.text, what
        assert reader.pulses(f"{1:032x}") == [] == reader.pulses(f"{2:032x}")
    with closing(sqlite3.connect(path)) as file:
        (aside,) = file.execute("SELECT count(*) FROM damaged_pulses").fetchone()
        (converted,) = file.execute("SELECT sum(next_seq - seq) FROM archive").fetchone()
    assert aside + converted == total, "nothing is lost"
    assert "pulse 1 is missing" in caplog.text and r"'\udcff\udcff' is no transaction" in caplog.text


def test_a_living_process_of_the_earlier_release_keeps_it_as_it_is(path: Path) -> None:
    identity = identify()
    form.write(path, [journal(1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as file:

        def stands(pid: int, boot_id: str, started: int, expires_ns: int) -> None:
            file.execute("DELETE FROM owners")
            file.execute(form.REGISTER, ("old-1", pid, boot_id, started, expires_ns))

        for living in (
            (identity.pid, identity.boot_id, identity.process_started, 1),
            (7, "", 7, time.time_ns() + 10**12),
            (7, f"{identity.boot_id}elsewhere", 7, time.time_ns() + 10**12),
        ):
            stands(*living)
            with pytest.raises(StoreError, match=rf"process {living[0]} of that release \(owner 'old-1'\) still uses"):
                migrate(path)
            assert form.journal_version(file, path) == form.NEWEST and file.execute("SELECT 1 FROM pulses").fetchone()
        for gone in (
            (identity.pid, identity.boot_id, identity.process_started, 0),
            (identity.pid, identity.boot_id, identity.process_started + 1, time.time_ns() + 10**12),
            (identity.pid, "another boot", identity.process_started, time.time_ns() + 10**12),
            (7, f"{identity.boot_id}elsewhere", 7, 1),
        ):
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            other = path.with_name("other.db")
            for left in path.parent.glob("other.db*"):
                left.unlink()
            stands(*gone)
            file.execute("VACUUM INTO ?", (str(other),))
            migrate(other)
            same(other, known(journal(1)))


def test_from_the_first_step_on_the_earlier_release_does_nothing_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the file no more; who has it open cannot write a pulse, is fenced, and takes no other name."""
    monkeypatch.setattr(migration, "STEP_BYTES", 1)
    form.write(path, [journal(1), journal(2), journal(3)])
    with closing(steps(path)) as going:
        assert not finish(going)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        with pytest.raises(RuntimeError, match=r"has schema version 3, this release knows up to 1; run the release"):
            form.journal_version(file, path)
        assert file.execute(form.LEASE, ("before",)).fetchone() == ("a later release",)
        with pytest.raises(sqlite3.OperationalError, match="no such table: pulses"):
            file.execute(form.INSERT, (None,) * 11)
        with pytest.raises(sqlite3.OperationalError, match="has 17 columns but 12 values"):
            file.execute(form.TRANSACTION, (None,) * 12)
        with pytest.raises(sqlite3.IntegrityError):
            file.execute(form.REGISTER, ("old-2", 1, "", 1, 1))


def test_a_reader_says_what_to_do_with_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "STEP_BYTES", 1)
    form.write(path, [journal(1), journal(2), journal(3)])
    say = pytest.raises(StoreError, match=rf"earlier release.*`bitactor migrate --store sqlite:///{path}`")
    with say:
        SqliteReader(path)
    with closing(steps(path)) as going:
        assert not finish(going)
    with say:
        SqliteReader(path)
    migrate(path)
    same(path, known(journal(1), journal(2), journal(3)))


def test_the_command_line_does_it_too(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{path}"
    assert main(["migrate", "--store", url]) == 1 and "no such file" in capsys.readouterr().err
    assert main(["migrate", "--store", "memory://"]) == 2 and "is no file of ours" in capsys.readouterr().err
    form.write(path, [journal(1)])
    assert main(["list", "--store", url]) == 1 and f"bitactor migrate --store {url}" in capsys.readouterr().err
    for _ in range(2):
        assert main(["migrate", "--store", url]) == 0
        assert f"{url} is in the form of this release" in capsys.readouterr().err
    same(path, known(journal(1)))


def test_a_full_disk_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transactions = [journal(number, 3, 20_000) for number in range(1, 40)]
    form.write(path, transactions)
    connect = migration.connect

    def connect_full(path: Path, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(path, **options)  # type: ignore[arg-type]
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        return connection

    monkeypatch.setattr(migration, "connect", connect_full)
    with pytest.raises(StoreError, match="the disk is full; nothing was written: free some space"):
        migrate(path)
    monkeypatch.setattr(migration, "connect", connect)
    migrate(path)
    same(path, known(*transactions))


def test_it_says_how_far_it_is(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(migration, "STEP_BYTES", 1)
    monkeypatch.setattr(migration, "SAY_EVERY", 0.0)
    form.write(path, [journal(1), journal(2)])
    with caplog.at_level(logging.WARNING):
        migrate(path)
    assert "3 of about 6 so far" in caplog.text and "its pulses (6) were brought" in caplog.text
