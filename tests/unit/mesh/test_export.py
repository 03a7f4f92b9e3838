"""What a journal keeps is copied out of it: as lines of JSON, as CSV, and as tables to be asked by SQL."""

from __future__ import annotations

import csv
import errno
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bitactor import Workflow
from bitactor.launcher import HOME
from bitactor.messages.pulse import Pulse
from mesh import Mesh
from mesh.cli import export
from mesh.cli.app import main
from mesh.sinks.plain import plain, plain_pulse
from mesh.stores import SqliteReader, migrate_store, read
from tests.old_stores import form
from tests.store_writes import pulse

LONG = 70_000
"""Characters that make a token a blob."""

pay = Workflow("pay", input={"n": int, "card": SecretStr}, ttl=6)


@pay.step
async def charge(n: int, card: SecretStr) -> dict[str, Any]:
    if n == 2:
        raise ValueError("nö \udcff")
    return {"receipt": b"x" * (LONG if n == 3 else 1), "card": card}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A journal of three transactions, and what the reader says of them."""
    path = tmp_path_factory.mktemp("journal") / "pulses.db"
    with Mesh(pay, store=f"sqlite:///{path}") as mesh:
        for n in (1, 2, 3):
            mesh.stimulate(pay, {"n": n, "card": SecretStr("4000-1234")}, key=f"key {n}").ended(30)
    yield path


@pytest.fixture
def known(journal: Path) -> dict[str, list[Pulse]]:
    """The pulses of each transaction, newest first."""
    with SqliteReader(journal) as reader:
        found = {row.transaction: reader.pulses(row.transaction) for row in reader.list()}
    assert len(found) == 3
    return found


def run(journal: Path, *options: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main(["export", "--store", f"sqlite:///{journal}", *options]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def test_lines_of_json_are_as_trace_and_list_show_it(
    journal: Path, known: dict[str, list[Pulse]], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in run(journal, capsys=capsys).splitlines()]
    with SqliteReader(journal) as reader:
        rows = reader.list()
    assert [{**line, "pulses": None} for line in lines] == [{**plain(row), "pulses": None} for row in rows]
    for line, pulses in zip(lines, known.values(), strict=True):
        assert line["pulses"] == json.loads(json.dumps([plain_pulse(pulse) for pulse in pulses]))


def test_tables_have_the_pulses_and_the_view_of_before(
    journal: Path, known: dict[str, list[Pulse]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.db"
    run(journal, "--format", "sqlite", "-o", str(copy), capsys=capsys)
    unlike = []
    for transaction, pulses in form.read(copy).items():
        assert [pulse._replace(token_in=None, token_out=None, data=None) for pulse in pulses] == [
            pulse._replace(token_in=None, token_out=None, data=None) for pulse in known[transaction]
        ]
        unlike += [pulse.kind for pulse, kept in zip(pulses, known[transaction], strict=True) if pulse != kept]
    assert set(unlike) == {"accepted", "completed"}, "only what has a secret is other than it was"
    with closing(sqlite3.connect(copy)) as file:
        rows = file.execute(
            f"SELECT {', '.join(export.COLUMNS)} FROM pulse_log ORDER BY transaction_id DESC, seq"
        ).fetchall()
        assert file.execute("SELECT count(*), count(DISTINCT digest) FROM transactions").fetchone() == (3, 1)
        assert file.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'owners'").fetchone() == (0,)
    lines = list(csv.reader(run(journal, "--format", "csv", capsys=capsys).splitlines()))
    assert lines[0] == list(export.COLUMNS)
    assert [line[1:9] + line[10:] for line in lines[1:]] == [
        ["" if value is None else str(value) for value in (*row[1:9], *row[10:])] for row in rows
    ]
    assert all(
        abs(float(line[0][-6:]) - float(row[0][-6:])) < 0.0011 for line, row in zip(lines[1:], rows, strict=True)
    )


def test_secrets_are_masked_in_all_forms(journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SqliteReader(journal) as reader:
        kept = [pulse.token_out for row in reader.list() for pulse in reader.pulses(row.transaction)]
    assert any(b"4000-1234" in token for token in kept if isinstance(token, bytes))
    for format in ("jsonl", "csv", "sqlite"):
        copy = tmp_path / f"copy.{format}"
        run(journal, "--format", format, "-o", str(copy), capsys=capsys)
        assert b"4000-1234" not in copy.read_bytes() and b"charge" in copy.read_bytes()


def test_only_what_is_asked_for(
    journal: Path, known: dict[str, list[Pulse]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE", 1)

    def found(*options: str) -> list[str]:
        return [json.loads(line)["key"] for line in run(journal, *options, capsys=capsys).splitlines()]

    assert found() == ["key 3", "key 2", "key 1"]
    assert found("--limit", "2") == ["key 3", "key 2"]
    assert found("--status", "compensated") == ["key 2"]
    assert found("--workflow", "pay", "--json", "--status", "completed") == ["key 3", "key 1"]
    assert found("--workflow", "none") == []


def test_a_file_is_for_this_user_alone_and_replaces_nothing(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.jsonl"
    before = os.umask(0)
    try:
        run(journal, "-o", str(copy), capsys=capsys)
    finally:
        os.umask(before)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    written = copy.read_bytes()
    assert "is there already" in run(journal, "-o", str(copy), capsys=capsys, code=2)
    run(journal, "-o", str(copy), "--overwrite", "--limit", "1", capsys=capsys)
    assert copy.read_bytes() == written.splitlines(keepends=True)[0]
    assert "is a journal" in run(journal, "-o", str(journal), "--overwrite", capsys=capsys, code=2)
    assert "is no file" in run(journal, "-o", str(tmp_path), "--overwrite", capsys=capsys, code=2)
    assert "is no directory" in run(journal, "-o", str(tmp_path / "no" / "x"), capsys=capsys, code=2)
    assert "-o" in run(journal, "--format", "sqlite", capsys=capsys, code=2)
    assert "two formats" in run(journal, "--format", "csv", "--json", capsys=capsys, code=2)
    assert "--limit 0" in run(journal, "--limit", "0", capsys=capsys, code=2)
    assert "--store" in run(Path(), "--store", "", capsys=capsys, code=2)

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SqliteReader, "each_pulse", interrupted)
    run(journal, "--format", "sqlite", "-o", str(tmp_path / "half.db"), capsys=capsys, code=130)
    assert list(tmp_path.iterdir()) == [copy], "nothing is left of it"


def test_what_belongs_to_a_journal_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its log and its index, by whatever name, and where they are not there just now."""
    path = tmp_path / "pulses.db"
    with Mesh(pay, store=f"sqlite:///{path}") as mesh:
        mesh.run(pay, {"n": 1, "card": SecretStr("4000-1234")}, timeout=30)
        (tmp_path / "link").symlink_to(tmp_path / "pulses.db-wal")
        (tmp_path / "hard").hardlink_to(tmp_path / "pulses.db-wal")
        (tmp_path / "index").hardlink_to(tmp_path / "pulses.db-shm")
        (tmp_path / "twin").hardlink_to(path)
        others = [f"pulses.db{end}" for end in ("", "-wal", "-shm", "-journal")]
        for name in (*others, "link", "hard", "index", "twin"):
            err = run(path, "-o", str(tmp_path / name), "--overwrite", capsys=capsys, code=2)
            assert "is a journal, or belongs to one" in err, name
    run(path, "-o", str(tmp_path / "another-wal"), capsys=capsys)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_full_disk_is_named_and_what_to_do(
    format: str, journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_Csv" if format == "csv" else "_Lines", lambda file: type("Full", (), {"add": full})())
    copy = tmp_path / "copy"
    err = run(journal, "--format", format, "-o", str(copy), capsys=capsys, code=1)
    assert f"{copy}: No space left on device; nothing was written" in err and "free some space" in err
    assert [*tmp_path.iterdir()] == []


def long_one(number: int, length: int) -> list[Pulse]:
    return [pulse(f"{number:032x}", seq, "completed" if seq else "accepted", data={"ttl": 8}) for seq in range(length)]


def test_a_long_one_is_read_part_by_part_and_a_damaged_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pulses.db"
    journals = [long_one(1, 2_000), long_one(2, 2_000), long_one(3, 3)]
    form.write(path, journals)
    migrate_store(f"sqlite:///{path}")
    capsys.readouterr()
    pieces: list[int] = []
    read_piece = read.read_piece

    def counted(connection: sqlite3.Connection, transaction: str, seq: int) -> tuple[bytes, bool]:
        pieces.append(seq)
        return read_piece(connection, transaction, seq)

    monkeypatch.setattr(read, "read_piece", counted)
    with SqliteReader(path) as reader:
        going = reader.each_pulse(f"{1:032x}")
        assert next(going) == journals[0][0] and pieces == [0]
        assert [*going] == journals[0][1:] and len(pieces) > 3
        assert [*reader.each_pulse(f"{9:032x}")] == []
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE archive SET body = x'00' WHERE transaction_id = ? AND seq = ?", (f"{1:032x}", pieces[2]))
        file.execute("DELETE FROM archive WHERE transaction_id = ? AND seq = ?", (f"{2:032x}", pieces[1]))
    assert main(["export", "--store", f"sqlite:///{path}"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [len(line["pulses"]) for line in lines] == [3, pieces[1], pieces[2]]
    assert "unreadable" not in lines[0] and "not in the archive" in lines[1]["unreadable"]
    assert "is damaged" in lines[2]["unreadable"] and lines[2]["unreadable"] in err
    run(path, "--format", "sqlite", "-o", str(tmp_path / "copy.db"), capsys=capsys, code=1)
    assert [len(pulses) for pulses in form.read(tmp_path / "copy.db").values()] == [pieces[2], pieces[1], 3]


def test_a_reader_that_goes_away_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "pulses.db"
    form.write(path, [long_one(1, 2_000), long_one(2, 3)])
    migrate_store(f"sqlite:///{path}")
    command = [sys.executable, "-P", "-m", "bitactor", "export", "--store", f"sqlite:///{path}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(HOME)}
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert json.loads(child.stdout.readline())["transaction"] == f"{2:032x}"
        child.stdout.close()
        assert child.wait(30) == 141 and child.stderr.read() == b""
