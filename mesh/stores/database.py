"""Journals as SQLite files: opening them, their schema, and the meaning of SQLite's errors."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, Generic, Self, TypeVar

from bitactor.errors import StoreError
from mesh.stores.journal.schema import UNCONVERTED, newest_version, require_journal, statements_of
from mesh.stores.locks import LockNotice, lockers
from registry.support.log_throttle import LogThrottle

_log = logging.getLogger("bitactor.store")

APPLICATION_ID: Final = 0x42697441
"""SQLite's application id of a journal, `BitA`, in the file's header; a file without it is somebody else's."""

_LOG_HEADER_BYTES: Final = 32
_LOG_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
OPENING_PATIENCE: Final = 30.0
SAY_AFTER: Final = 0.5
"""Seconds of waiting for a locked file after which the log says so."""

Value = TypeVar("Value")


class Connected:
    """Has a connection of its own, which is released by `close`, or at the end of a `with` block."""

    _connection: sqlite3.Connection | None

    def close(self) -> None:
        """Release the file.  Twice is once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(path: Path, *, synchronous: str, timeout: float, checkpoint_pages: int = 0) -> sqlite3.Connection:
    """A connection to a journal that exists (none is created), for the calling thread; `timeout` in seconds is how long
    SQLite itself waits, `checkpoint_pages` the length of log at which a commit of this connection makes a checkpoint
    (0: at none)."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=timeout)
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_read_only(path: Path, timeout: float) -> sqlite3.Connection:
    """A connection to a journal that neither writes nor creates the file.

    Raises:
        StoreError: there is no such file, or it is no journal of this version.
    """
    require_file(path)
    _check_path(path)
    connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None, timeout=timeout)
    try:
        version = _journal_version(connection, path)
        if version == 0:
            raise StoreError(f"{path} is empty: no mesh has written to it yet")
        if (
            version < newest_version()
            or connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (UNCONVERTED,)).fetchone()
        ):
            raise StoreError(
                f"{path} is of an earlier release, and not brought into the form of this one yet; stop the nodes of "
                f"that release, then run `bitactor migrate --store sqlite:///{path}`, or start a node of this one"
            )
        connection.execute("SELECT transaction_id FROM transactions LIMIT 1").fetchone()
    except sqlite3.Error as error:
        connection.close()
        raise store_error(error, path, reading=True) from error
    except BaseException:
        connection.close()
        raise
    return connection


def require_file(path: Path) -> None:
    """Raise `StoreError` if there is no such file."""
    if not path.exists():
        raise StoreError(f"{path}: no such file; name the journal a mesh writes, as in sqlite:///pulses.db")


def read_only_uri(path: Path) -> str:
    """How a reader opens a journal: where the directory cannot be written and there is no log, nobody writes it, and
    SQLite, which could not make its companions there, is told so."""
    real = Path(os.path.realpath(path))
    frozen = not os.access(real.parent, os.W_OK) and not real.with_name(f"{real.name}-wal").exists()
    return f"{path.as_uri()}?mode=ro{'&immutable=1' if frozen else ''}"


def preparing(path: Path, admit: Callable[[sqlite3.Connection], None]) -> Generator[float]:
    """Make sure `path` is a journal with the tables of this version, creating it if it does not exist; yields as
    `tries` does.  Before one of an earlier version is changed, `admit` is called, which raises if it must not be.

    Raises:
        StoreError: the file cannot be created or written, belongs to another program, or to a later version.
    """
    _check_path(path)
    _check_log(path)
    _create(path)
    try:
        yield from tries(lambda: _prepare(path, admit), OPENING_PATIENCE, path)
    except sqlite3.Error as error:
        raise store_error(error, path) from error


@contextmanager
def write_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A database transaction that has the file's lock from its beginning; what fails in it leaves no trace."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def retry_while_busy(action: Callable[[], Value], patience: float, notice: LockNotice | Path | None = None) -> Value:
    """The value of `action()`, tried again while another connection is in the way; sleeps on this thread meanwhile.
    The rest is as for `tries`."""
    return sleep_through(tries(action, patience, notice))


class _Steps(Generic[Value]):
    """A generator that is walked by `for`; `value` is what it returned."""

    value: Value

    def __init__(self, waiting: Generator[float, None, Value]) -> None:
        self._waiting = waiting

    def __iter__(self) -> Iterator[float]:
        self.value = yield from self._waiting


def sleep_through(waiting: Generator[float, None, Value]) -> Value:
    """What this generator returns; between its steps the thread sleeps for the seconds it yields."""
    steps = _Steps(waiting)
    for pause in steps:
        time.sleep(pause)
    return steps.value


async def await_through(waiting: Generator[float, None, Value]) -> Value:
    """What this generator returns; between its steps the event loop goes on for the seconds it yields.  Who is
    cancelled meanwhile closes it."""
    steps = _Steps(waiting)
    with closing(waiting):
        for pause in steps:
            await asyncio.sleep(pause)
    return steps.value


def tries(
    action: Callable[[], Value], patience: float, notice: LockNotice | Path | None = None
) -> Generator[float, None, Value]:
    """Try `action()` until no other connection is in the way, for `patience` seconds, and return its value; yields how
    many seconds to wait before the next try.  After `SAY_AFTER` of them `notice`, or one made for this file, says in
    the log what is waited for."""
    began = time.monotonic()
    pause = 0.0005
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - began
            if not is_busy(error) or waited >= patience:
                raise
            if notice is not None and waited >= SAY_AFTER:
                (LockNotice(notice) if isinstance(notice, Path) else notice).say(patience)
                notice = None
        yield pause
        pause = min(pause * 2, 0.02)


def unless(
    waiting: Generator[float, None, Value], ended: Callable[[], bool], why: str
) -> Generator[float, None, Value]:
    """The same steps and value as of `waiting`; `StoreError` with `why` once `ended()` after a step."""
    steps = _Steps(waiting)
    for pause in steps:
        yield pause
        if ended():
            raise StoreError(why)
    return steps.value


def is_busy(error: sqlite3.Error) -> bool:
    """Whether `error` says that another connection is in the way, so that a later try can succeed."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def store_error(error: sqlite3.Error, path: Path, *, reading: bool = False) -> StoreError:
    """A `StoreError` which says what `error` means for whoever runs this process, and what to do; `reading`: who only
    reads hit upon it."""
    code = _primary_code(error)
    held = lockers(path) if code == sqlite3.SQLITE_BUSY else ""
    kept = "" if reading else "; nothing was written"
    advice = {
        sqlite3.SQLITE_BUSY: f"another process kept it locked{held}; look for who holds it (`fuser` names the process)",
        sqlite3.SQLITE_LOCKED: "another connection kept it locked",
        sqlite3.SQLITE_FULL: f"the disk is full{kept}: free some space, then try again",
        sqlite3.SQLITE_READONLY: "it cannot be written; give this user write access to the file and to its directory",
        sqlite3.SQLITE_PERM: "it cannot be opened; give this user access to the file and to its directory",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened; SQLite needs write access to the directory too (for -wal and "
        "-shm)",
        sqlite3.SQLITE_IOERR: f"the disk did not do as told (full, over a limit, or broken){kept}",
        sqlite3.SQLITE_NOTADB: "that is no SQLite file; name another path; or, if it was a journal, its header is "
        "damaged: put a sound copy there",
        sqlite3.SQLITE_CORRUPT: "the file is damaged; stop, copy it aside, and try `sqlite3 FILE .recover`",
    }.get(code, "unexpected")
    return StoreError(f"{path}: {advice} ({getattr(error, 'sqlite_errorname', type(error).__name__)}: {error})")


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise StoreError(f"{path} is a directory; name a file in it, as in {path}/pulses.db")
    if not path.parent.is_dir():
        raise StoreError(f"{path.parent} is not a directory; create it (mkdir -p {path.parent}) or name another path")
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is no regular file (a socket, pipe or device); name another path")
    if path.exists() and not os.access(path, os.R_OK):
        raise StoreError(f"{path} cannot be read; give this user access to it")


def _check_log(path: Path) -> None:
    """Look at what is left of a write-ahead log: SQLite would throw away one whose file is gone, and goes on without
    what it cannot read in one."""
    real = Path(os.path.realpath(path))
    log = real.with_name(f"{real.name}-wal")
    try:  # the log first: whoever creates a journal just now makes its file before that
        with log.open("rb") as file:
            header = file.read(_LOG_HEADER_BYTES)
    except OSError:
        return  # there is none, or SQLite will tell
    if not header:
        return
    if not real.exists() or not real.stat().st_size:
        raise StoreError(
            f"{path} is {'empty' if real.exists() else 'not there'}, and {log.name} beside it is not: that is the log "
            "of a journal, with its newest commits; put the file back beside it, or, to begin anew, move it away"
        )
    if header[:4] not in _LOG_MAGIC:
        _log.error(
            "%s: %s is damaged, so what was committed last, and only there, is lost; SQLite goes on without it", path,
            log.name,
        )  # fmt: skip


def _create(path: Path) -> None:
    """Create the file for this user alone, if there is none; SQLite gives -wal and -shm the mode of the file.

    What goes wrong, SQLite will tell.
    """
    with suppress(OSError):
        descriptor = os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _prepare(path: Path, admit: Callable[[sqlite3.Connection], None]) -> None:
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        with _one_moment(connection):
            version = _journal_version(connection, path)
            if version:
                require_journal(connection, path, version)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(f"{path}: no write-ahead log can be kept there; put the file on a local disk")
        if version < newest_version():
            _migrate(connection, path, admit)
    finally:
        connection.close()


@contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _journal_version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the journal's schema; 0 if the file is empty."""
    application, version, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id, "
        "pragma_user_version"
    ).fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise StoreError(f"{path} is an SQLite file of another program; name a file of its own for the journal")
    if version < 0 or (tables and not version):
        raise StoreError(
            f"{path} says that it has schema version {version}, and has {tables} tables and indexes: it is damaged; "
            "stop every node that uses it, then put a sound copy there, without -wal and -shm"
        )
    newest = newest_version()
    if version > newest:
        raise StoreError(
            f"{path} has schema version {version}, this release knows up to {newest}; run the release that wrote it, "
            "or later"
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, path: Path, admit: Callable[[sqlite3.Connection], None]) -> None:
    with write_transaction(connection):
        # Somebody else may have been faster.
        version = _journal_version(connection, path)
        if 0 < version < newest_version():
            admit(connection)
        for number in range(version, newest_version()):
            for statement in statements_of(number + 1):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {newest_version()}")


class ConnectionThread:
    """A thread with a connection of its own to a journal, that goes on with its work when SQLite fails.

    `complaint` is what the log says then, between the path and the error; `timeout` is SQLite's, in seconds.
    """

    def __init__(self, name: str, path: Path, complaint: str, *, synchronous: str, timeout: float) -> None:
        self._path = path
        self._complaint = complaint
        self._synchronous = synchronous
        self._timeout = timeout
        self.failures = 0
        """How often it has failed."""
        self.may_work: Callable[[], bool] = lambda: True
        """Asked each time before the file is touched."""
        self._closing = threading.Event()
        self._log_throttle = LogThrottle(_log)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which works from now on whenever there is something to do."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; waits for the work under way.  Twice is once."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self) -> bool:
        """Wait until there is something to do; False: the thread is closing."""
        raise NotImplementedError

    def work(self, connection: sqlite3.Connection) -> bool:
        """Do it; False: there will be nothing more to do."""
        raise NotImplementedError

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while self.wait():
                try:
                    if not self.may_work():
                        continue
                    connection = connection or connect(self._path, synchronous=self._synchronous, timeout=self._timeout)
                    if not self.work(connection):
                        return
                except sqlite3.Error as error:
                    self.failures += 1
                    if self._log_throttle.is_due(time.monotonic_ns()):
                        held = lockers(self._path) if is_busy(error) else ""
                        _log.warning("%s: %s: %s%s", self._path, self._complaint, error, held)
                except Exception:
                    self.failures += 1
                    if self._log_throttle.is_due(time.monotonic_ns()):
                        _log.exception("%s: %s, by a defect", self._path, self._complaint)
        finally:
            if connection is not None:
                connection.close()
