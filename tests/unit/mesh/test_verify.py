"""`bitactor verify`: what it says of a journal that is sound, of one that is not, and while others write."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import DamagedJournal
from bitactor.ports import Write
from mesh.cli import main
from mesh.runtime.settled import at_once
from mesh.stores import SqliteReader, SqliteStore
from mesh.stores.database import store_error
from mesh.stores.journal.parts import log_body
from mesh.stores.journal.verify import Fault, Progress, Verification
from tests.e2e.test_damage import DAMAGES
from tests.journal_damage import flip
from tests.store_writes import Told, first, fresh, hop, last, pulse


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, notify=lambda call: None)
    store.open("one")
    yield store
    store.close()


def keep(store: SqliteStore, *writes: object) -> None:
    told = Told()
    store.append(writes, told.done())  # type: ignore[arg-type]
    assert told.outcomes == [(0, [], None)]


def said(capsys: pytest.CaptureFixture[str], path: Path, *more: str) -> tuple[int, str, str]:
    code = main(["verify", "--store", f"sqlite:///{path}", *more])
    return code, *capsys.readouterr()


def test_of_a_sound_journal_one_line(store: SqliteStore, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also while it is open, and of those that are asked for, each once."""
    one, two = fresh(), f"{7 << 120:032x}"
    keep(store, first(one), first(two), hop(two, 2))
    assert said(capsys, path) == (0, "2 transactions, 6 pulses: sound\n", "")
    assert said(capsys, path, two[:5], two) == (0, "1 transactions, 4 pulses: sound\n", "")
    code, out, _ = said(capsys, path, "--json", one)
    assert code == 0 and json.loads(out) == {
        "ok": True, "store": f"sqlite:///{path}", "transactions": 1, "pulses": 2, "faults": []
    }  # fmt: skip


def test_what_is_wrong_is_named(store: SqliteStore, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file, the transaction, the pulse, what it is and what to do; of a row of the log, whose it was."""
    names = sorted(fresh() for _ in range(4))
    for name in names:
        keep(store, first(name))
    keep(store, hop(names[0], 2), last(names[3], 2))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        row, body = file.execute("SELECT id, body FROM log ORDER BY id DESC LIMIT 1").fetchone()
        file.execute("UPDATE log SET body = ? WHERE id = ?", (flip(body, 700), row))
        DAMAGES["no message at all"](file, names[1])
    code, out, err = said(capsys, path)
    assert code == 1
    assert [line.removeprefix(f"sqlite:///{path}: ") for line in out.splitlines()] == [
        f"{names[1]}, pulse 0: pulse 0 cannot be read: FormatError",
        f"the journal: log row {row} is damaged; those that need it are named",
        f"{names[0]}, pulse 2: log row {row} is damaged",
    ]
    assert "2 of 4 transactions cannot be read" in err and "put a sound copy there" in err
    assert said(capsys, path, names[3])[0] == 0
    code, out, _ = said(capsys, path, names[0], "--json")
    (fault,) = json.loads(out)["faults"]
    assert code == 1 and fault == {
        "transaction": names[0], "pulse": 2, "why": f"log row {row} is damaged", "wanted": True
    }  # fmt: skip


def test_a_change_that_all_checksums_are_right_for_is_found_by_the_chain(store: SqliteStore, path: Path) -> None:
    """A frame that was written anew, though it can be read, is not the one the next one names."""
    name = fresh()
    keep(store, first(name))
    keep(store, last(name, 2))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE transactions SET head = x'0102030405060708' WHERE transaction_id = ?", (name,))
        (fault,) = [found for found in Verification(file).walk() if isinstance(found, Fault)]
        assert fault.transaction == name and "that is not its end" in fault.why


def test_damage_that_nobody_needs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said to be there, and what to do; `doctor` names the command that names it all."""
    store = SqliteStore(path, notify=lambda call: None)
    store.open("one")
    keep(store, first(fresh()))
    for _ in range(3):
        name = fresh()
        keep(store, first(name))
        keep(store, last(name, 2))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        row, body = file.execute("SELECT id, body FROM log ORDER BY id DESC LIMIT 1").fetchone()
        file.execute("UPDATE log SET body = ? WHERE id = ?", (flip(body, 3), row))
    code, out, err = said(capsys, path)
    assert code == 1 and f"the journal: log row {row} is damaged" in out
    assert "not as it was written in 1 places, which none of 4 transactions needs" in err and "look at the disk" in err
    assert main(["doctor", "--store", f"sqlite:///{path}"]) == 1
    assert f"'bitactor verify --store sqlite:///{path}' names them all" in capsys.readouterr().out
    store.close()


def test_an_id_that_is_none_reads_as_words(store: SqliteStore, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = fresh()
    keep(store, first(name))
    wrong = f"{name[:-1]}x"
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE transactions SET transaction_id = ?", (wrong,))
    with SqliteReader(path) as reader, pytest.raises(DamagedJournal, match=f"'{wrong}' is no transaction's id: 32 lo"):
        reader.pulses(wrong)
    _, out, _ = said(capsys, path)
    assert f"'{wrong}' is no transaction's id" in out and "fromhex" not in out and "ValueError" not in out


def test_who_only_reads_is_not_told_that_nothing_was_written(path: Path) -> None:
    for code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        assert "; nothing was written" in str(store_error(error, path))
        assert "written" not in str(store_error(error, path, reading=True))


def test_a_row_of_no_frames_with_the_right_checksum(store: SqliteStore, path: Path) -> None:
    """It is whose it was, and stops no other that is read in the same look."""
    hurt, sound = fresh(), fresh()
    keep(store, first(hurt))
    keep(store, first(sound))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        row, body = file.execute("SELECT id, body FROM log ORDER BY id LIMIT 1").fetchone()
        file.execute("UPDATE log SET body = ? WHERE id = ?", (log_body(row, b"no frame" + body), row))
        found = [found for found in Verification(file).walk() if isinstance(found, Fault)]
        assert [fault.transaction for fault in found] == ["", hurt]


def test_what_is_written_meanwhile_is_no_fault(store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps: transactions begin, go on and settle, and the log is cut."""
    monkeypatch.setattr("mesh.stores.write.LOG_BYTES", 2_000)
    monkeypatch.setattr("mesh.stores.write.TRUNCATED", range(2, 50))
    for name in ("_TRANSACTIONS_A_STEP", "_PARTS_A_STEP", "_LOG_BYTES_A_STEP", "_PULSES_A_STEP"):
        monkeypatch.setattr(f"mesh.stores.journal.verify.{name}", 1)
    seqs = {fresh(): 2 for _ in range(30)}
    keep(store, *map(first, seqs))
    with SqliteReader(path) as reader:
        for steps, step in enumerate(reader.verify()):
            assert isinstance(step, Progress), step
            going_on = [name for number, name in enumerate(seqs) if number % 3 == steps % 3 and seqs[name]]
            for name in going_on:
                ends = steps and (int(name, 16) + steps) % 11 == 0
                keep(store, last(name, seqs[name]) if ends else hop(name, seqs[name]))
                seqs[name] = 0 if ends else seqs[name] + 2
            if steps < 60:
                seqs[name := fresh()] = 2
                keep(store, first(name))


def test_a_log_that_nobody_needs_goes_with_its_owner(path: Path) -> None:
    """When a store is closed with nothing open; else with the last of it that is taken over."""
    one, two = fresh(), fresh()
    for rows, end in ((1, False), (0, True)):
        store = SqliteStore(path, notify=lambda call: None)
        store.open(f"owner-{rows}")
        keep(store, first(one, open=False) if end else first(two))
        if end:
            assert [claim.transaction for claim in at_once(store.claim())] == [two]
            keep(store, last(two, 2, epoch=1))
        store.close()
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("SELECT count(*) FROM log").fetchone() == (rows,)
    with SqliteReader(path) as reader:
        assert list(reader.verify())[-1] == Progress(2, 5)


def test_where_there_is_nothing_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2 and "--store" in capsys.readouterr().err
    assert main(["verify", "--store", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_an_id_that_is_not_there(store: SqliteStore, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(store, first(fresh()))
    for asked in ("f" * 32, "abc"):
        code, _, err = said(capsys, path, asked)
        assert code == 1 and "no transaction" in err


@pytest.mark.parametrize("table", ["numbers", "owners", "words", "archive", "blobs", "inbox", "log"])
def test_a_table_that_is_missing(
    store: SqliteStore, path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the look itself needs of it."""
    keep(store, first(fresh()))
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(f"DROP TABLE {table}")
    code, out, err = said(capsys, path)
    assert code == 1 and f"the journal: the file is damaged: table {table} is missing" in out
    assert "put a sound copy there" in err
    assert main(["doctor", "--store", f"sqlite:///{path}"]) == 1
    assert f"table {table} is missing" in capsys.readouterr().out


def test_an_index_that_is_not_as_its_table(store: SqliteStore, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As SQLite says it; of transactions that are asked for by id, nothing of it."""
    name = fresh()
    keep(store, first(name), first(fresh()))
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        ((page,),) = file.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'transactions_by_status'").fetchall()
        ((size,),) = file.execute("PRAGMA page_size").fetchall()
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as raw:
        raw.seek((page - 1) * size)
        data = raw.read(size)
        raw.seek((page - 1) * size)
        raw.write(data.replace(b"running", b"runnyng"))
    code, out, err = said(capsys, path)
    assert code == 1 and "the journal: the file is damaged: row 1 missing from index transactions_by_status" in out
    assert "sqlite3 FILE .recover" in err
    assert said(capsys, path, name)[0] == 0


def test_a_last_number_that_is_missing(store: SqliteStore, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(store, first(fresh()))
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE numbers SET last = 0")
        assert "a number would be given again" in said(capsys, path)[1]
        file.execute("DELETE FROM numbers")
        assert "the number of the last owner, in the table numbers, is None" in said(capsys, path)[1]


@pytest.mark.parametrize(
    "change",
    ["open = 0", "open = 0, status = 'completed'", "owner = 'nobody'", "owner = 'nobody', open = 0, status = 'halted'"],
)
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_log_stays_while_a_transaction_begins_there(path: Path, change: str, is_damaged: bool) -> None:
    """Whatever its row says of whether it is open, and of whose it is; also if another row of that log is damaged."""
    hurt, other, ended = fresh(), fresh(), fresh()
    store = SqliteStore(path, notify=lambda call: None)
    store.open("one")
    keep(store, first(ended))
    keep(store, last(ended, 2))
    keep(store, first(other))
    keep(store, first(hurt))
    if change.startswith("open"):  # else it is closed in peace, and who comes has only what is open
        store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(f"UPDATE transactions SET {change} WHERE transaction_id = ?", (hurt,))
        file.execute("UPDATE owners SET expires_ns = 0")
        if is_damaged:
            file.execute("UPDATE log SET body = x'00' WHERE id = (SELECT min(id) FROM log)")
        for name in ("two", "three"):
            store = SqliteStore(path, notify=lambda call: None)
            store.open(name)
            at_once(store.claim())
            store.close()
        with SqliteReader(path) as reader:
            assert [pulse.seq for pulse in reader.pulses(hurt)] == [0, 1]
            assert [pulse.seq for pulse in reader.pulses(other)] == [0, 1]


def begun(name: str) -> Write:
    """The first write of a transaction as a saga makes it: its own pulses are without a step."""
    data = {"key": f"pay-{name[-3:]}", "parent": "f" * 32}
    return Write(
        name, 0, (pulse(name, 0, "accepted", step="", data=data), pulse(name, 1)), "running", True, data["key"]
    )


def over(name: str, kind: str, status: str, seq: int = 2, *, open: bool = False) -> Write:
    data = {"status": status} if kind in ("finished", "halted") else {}
    return Write(name, 0, (pulse(name, seq, kind, step="", data=data),), status, open)


CHANGES = {
    "key = 'pay-0'": "key 'pay-0', and its pulses 'pay-",
    "key = CAST(x'ff' AS TEXT)": "key",
    "parent = ''": "parent '', and its pulses 'ffff",
    "status = 'compensated'": "status 'compensated', and its pulses",
    "status = 'nonsense'": "status 'nonsense'",
    "created_ns = 7": "created_ns 7, and its pulses 1000",
    "epoch = 'x'": "epoch 'x', which no node writes",
    "updated_ns = x'00'": "updated_ns",
    "dead = 4": "dead 4",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_is_not_as_its_pulses(store: SqliteStore, path: Path, change: str) -> None:
    """Of one that runs, that halted, that ended, and that was resumed; each alone and among all."""
    names = sorted(fresh() for _ in range(4))
    keep(store, *map(begun, names))
    keep(store, over(names[1], "halted", "halted"))
    keep(store, over(names[2], "finished", "completed"))
    keep(store, over(names[3], "finished", "stuck"))
    keep(store, over(names[3], "resumed", "running", 3, open=True))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        assert not [found for found in Verification(file).walk() if isinstance(found, Fault)]
        for name in names:
            file.execute("BEGIN")
            file.execute(f"UPDATE transactions SET {change} WHERE transaction_id = ?", (name,))
            [fault] = [found for found in Verification(file).walk() if isinstance(found, Fault)]
            assert [found for found in Verification(file).look(name) if isinstance(found, Fault)] == [fault]
            assert f"the row of transaction {name} says {CHANGES[change]}" in fault.why
            assert not fault.transaction and not fault.wanted
            file.execute("ROLLBACK")


def test_one_that_runs_is_open(store: SqliteStore, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = fresh()
    keep(store, begun(name))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE transactions SET open = 0")
        code, out, _ = said(capsys, path)
        assert code == 1 and f"transaction {name} says open 0, and its pulses that something is left to do" in out
        file.execute("UPDATE transactions SET status = 'completed'")
        assert "says status 'completed', and its pulses 'running'" in said(capsys, path)[1]
