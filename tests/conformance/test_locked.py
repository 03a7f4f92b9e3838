"""A node whose store is locked when it starts says what it waits for."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from bitactor import Workflow
from bitactor.errors import StoreError
from mesh import Mesh
from mesh.stores import database
from mesh.stores.locks import lockers
from tests.conformance.claims import claim
from tests.conformance.support import result_of
from tests.e2e.support import BOUND, until

SECTION = "Starting and stopping"
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print(flush=True)
sys.stdin.readline()
"""


def answering() -> Workflow:
    workflow = Workflow("answering")
    workflow.step(lambda: "answer", name="answers", spawn="inline")
    return workflow


def holding(path: Path, lock: str) -> subprocess.Popen[bytes]:
    """A process that holds a lock on the file until it reads a line."""
    words = [sys.executable, "-c", HOLD, str(path), lock]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"\n"
    return holder


class AtWarning(logging.Handler):
    """Does something when the log warns of a lock, and keeps what it said."""

    def __init__(self, react: Callable[[], object]) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self._react = react

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self._react()


@contextmanager
def warned(react: Callable[[], object]) -> Iterator[list[str]]:
    logger, handler = logging.getLogger("bitactor.store"), AtWarning(react)
    logger.addHandler(handler)
    try:
        yield handler.said
    finally:
        logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SAY_AFTER", 0.0)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A journal that a mesh has used."""
    found = tmp_path / "pulses.db"
    assert await result_of(answering(), store=f"sqlite:///{found}") == "answer"
    return found


@claim(
    SECTION,
    "A node whose SQLite file another process keeps locked says at once which file, who has it, how long it waits and "
    "what to do, and goes on when it is free.",
)
@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
async def test_a_file_that_another_process_keeps_locked(lock: str, path: Path) -> None:
    holder = holding(path, lock)
    try:

        def let_go() -> None:
            holder.communicate(b"\n", timeout=BOUND)

        with warned(let_go) as said:
            assert await result_of(answering(), store=f"sqlite:///{path}") == "answer"
    finally:
        holder.kill()
        holder.communicate()
    [line] = said
    assert line.startswith(f"{path}: waits for another process that keeps this file locked (process {holder.pid}: ")
    assert line.endswith(f"for up to 30 s; end what holds it (`fuser {path}` names who has it open)")


@claim(SECTION, "A new file that is being made by another process is waited for in the same words.")
async def test_a_file_that_is_being_made(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with warned(lambda: holder.execute("ROLLBACK")) as said:
            assert await result_of(answering(), store=f"sqlite:///{path}") == "answer"
    assert [line.partition(" (")[0] for line in said] == [
        f"{path}: waits for another process that keeps this file locked"
    ]
    assert "this process, by another connection" in said[0]


@claim(SECTION, "While a mesh waits for a locked file its loop goes on, and who ends the waiting leaves nothing open.")
@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@pytest.mark.parametrize("ended_by", ["cancel", "close"])
async def test_the_waiting_is_ended(lock: str, ended_by: str, path: Path) -> None:
    workflow = answering()
    mesh = Mesh(workflow, store=f"sqlite:///{path}")
    before = threading.active_count()
    holder = holding(path, lock)
    try:
        with warned(lambda: None) as said:
            opening = asyncio.ensure_future(mesh.__aenter__())
            await until(lambda: said)  # on the loop, which goes on
            assert mesh.state == "opening" and not opening.done()
            if ended_by == "cancel":
                opening.cancel()
            else:
                await mesh.close()
            with pytest.raises((asyncio.CancelledError, StoreError), match=r"closed while it waited|^$"):
                await opening
        assert (mesh.state, open_files(path), threading.active_count()) == ("closed", 0, before)
    finally:
        holder.communicate(b"\n", timeout=BOUND)
    async with mesh:
        assert await (await mesh.stimulate(workflow)).result(BOUND) == "answer"


def open_files(path: Path) -> int:
    """How many files of this journal this process has open."""
    found = 0
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):  # that of the listing itself
            found += str(path) in str(link.readlink())
    return found


@claim(SECTION, "A command that waits for a locked file is ended by Ctrl-C at once.")
def test_ctrl_c_while_it_waits(tmp_path: Path) -> None:
    path = tmp_path / "pulses.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        node = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", "run", "mesh.demo.signup:service", "--store", f"sqlite:///{path}"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert node.stderr is not None and "waits for another process" in node.stderr.readline()
            node.send_signal(signal.SIGINT)
            _, said = node.communicate(timeout=BOUND)
        finally:
            node.kill()
            node.communicate()
        assert (node.returncode, said) == (0, "")


@claim(SECTION, "A file that stays locked is an error that says who has it.")
async def test_a_file_that_stays_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OPENING_PATIENCE", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match=r"pulses\.db: another process kept it locked \(this process, by another"):
            await result_of(answering(), store=f"sqlite:///{path}")


@claim(
    SECTION, "A store whose directory is missing, or that is another kind of file, is refused at once, with what to do."
)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "missing" / "pulses.db", r"missing is not a directory; create it \(mkdir -p"),
        (lambda path: path, r"is a directory; name a file in it"),
        (
            lambda path: _written(path / "text.db", b"no database at all" * 100),
            "no SQLite file; name",
        ),
        (lambda path: _of_another(path / "other.db"), "an SQLite file of another program; name a file of its own"),
        (lambda path: Path("/proc/pulses.db"), "cannot be opened; SQLite needs write access to the directory"),
    ],
    ids=["no directory", "a directory", "text", "another program", "cannot be written"],
)
async def test_a_store_that_cannot_be(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with warned(lambda: None) as said, pytest.raises(StoreError, match=words):
        await result_of(answering(), store=f"sqlite:///{make(tmp_path)}")
    assert said == []


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _of_another(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (id)")
    return path


@claim(SECTION, "Where nobody can be named who has a file locked, the line says so much less.")
def test_nobody_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lockers(tmp_path / "missing") == lockers(_written(tmp_path / "free.db", b"")) == ""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "damaged\n1: POSIX\n")
    assert lockers(tmp_path / "free.db") == ""
