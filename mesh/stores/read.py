"""The queries of an SQLite journal, on whatever connection."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from typing_extensions import override

from bitactor.errors import DamagedJournal, StoreError
from bitactor.messages.pulse import Pulse
from bitactor.ports import Arrived, Due, Followed, Message, StoreQueries, TransactionRow
from mesh.stores.database import Connected, connect_read_only, sleep_through, store_error, tries
from mesh.stores.journal.blobs import read_blob
from mesh.stores.journal.follow import START, Place, cursor_of, end_of_journal, look, place_of
from mesh.stores.journal.frames import Frame, frames_in, pulses_of, why_of
from mesh.stores.journal.inbox import arrived_messages, due_transactions, unread_messages
from mesh.stores.journal.schema import newest_version, require_journal
from mesh.stores.journal.tail import one_moment, read_frames, read_piece
from mesh.stores.journal.verify import Fault, Progress, Verification
from mesh.stores.journal.words import Words
from mesh.stores.locks import LockNotice
from mesh.stores.rows import TRANSACTION_COLUMNS, require_shape, require_sound, transaction_from_row

_log = logging.getLogger("bitactor.store")

Rows = list[Any]
Pulses = list[Pulse]
ReadBlob = Callable[[bytes], bytes]
"""Gives the blob of a name."""
Dues = list[Due]
Messages = list[Message]
Value = TypeVar("Value")

# Seconds that a query waits for the file; SQLite keeps readers out only while a crashed writer's log is being
# recovered, for milliseconds.
_PATIENCE: Final = 5.0


_DEAD: Final = "(dead = 1 OR status = 'stuck')"
_DATA_VERSION: Final = "PRAGMA data_version"
_NO_UTF8: Final = "Could not decode to UTF-8"


def _lenient_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class SqliteQueries(StoreQueries):
    """The queries of the `Store` port on an SQLite journal.  They see what is committed, by whichever process."""

    _reads_only = False

    def __init__(self, path: Path, notice: LockNotice | None = None) -> None:
        self._path = path
        self._notice = notice or LockNotice(path)
        self._connection: sqlite3.Connection | None = None
        self.words = Words()

    @override
    def pulses(self, transaction: str) -> Pulses:
        found = self._read(lambda connection: self._frames(connection, transaction))
        if found is None:
            return []
        try:
            return self._decoded(*found)
        except Exception as error:  # of bytes that are not what was written, anything
            if self.get(transaction) is None:  # it was forgotten meanwhile
                return []
            raise _damaged(transaction, error) from error

    @override
    def find(self, workflow: str, key: str) -> str | None:
        found = self._rows(
            "SELECT transaction_id FROM transactions WHERE workflow = ? AND key = ? AND key <> ''", workflow, key
        )
        return found[0][0] if found else None

    @override
    def get(self, transaction: str) -> TransactionRow | None:
        found = self._rows(f"SELECT {TRANSACTION_COLUMNS} FROM transactions WHERE transaction_id = ?", transaction)
        return transaction_from_row(found[0]) if found else None

    @override
    def list(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        limit: int = 100,
        before: str | None = None,
        dead: bool = False,
    ) -> list[TransactionRow]:
        conditions: list[str] = []
        values: list[str | int] = []
        if status is not None:
            # Nearly everything is completed; any other status narrows more than the workflow does.  A plus keeps an
            # index out.
            conditions.append("+status = ?" if status == "completed" and workflow is not None else "status = ?")
            values.append(status)
        if workflow is not None:
            conditions.append("workflow = ?" if status in (None, "completed") and not dead else "+workflow = ?")
            values.append(workflow)
        if before is not None:
            conditions.append("transaction_id < ?")
            values.append(before)
        if dead:  # as the index has it, word for word
            conditions.append(_DEAD)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"SELECT {TRANSACTION_COLUMNS} FROM transactions {where} ORDER BY transaction_id DESC LIMIT ?"
        rows = self._rows(sql, *values, max(limit, 0))
        return [transaction_from_row(row) for row in rows]

    def decoded(self, frames: Mapping[str, bytes]) -> dict[str, Pulses]:
        """The pulses of transactions of which these are all frames.  Those that cannot be read, or that name blobs,
        which may be many and long, are not among them: `pulses` says why, or reads one at a time."""
        found: dict[str, Pulses] = {}
        with suppress(StoreError):
            rows = self._read(lambda connection: [(name, _about(connection, name)) for name in frames])
            for name, (root, workflow, is_open, digest) in rows:
                with suppress(Exception):  # of bytes that are not what was written, anything
                    require_sound(root, workflow, is_open)
                    found[name] = self._decoded(root, workflow, digest, frames[name], _no_blob)
        return found

    def _frames(self, connection: sqlite3.Connection, transaction: str) -> tuple[str, str, str, bytes] | None:
        with one_moment(connection):
            row = connection.execute(
                "SELECT root, workflow, open, digest, log_from, head FROM transactions WHERE transaction_id = ?",
                (transaction,),
            ).fetchone()
            if row is None:
                return None
            root, workflow, is_open, digest, log_from, head = row
            try:
                require_sound(root, workflow, is_open)
            except ValueError as error:
                raise DamagedJournal(f"the row of transaction {transaction} cannot be read: {error}") from error
            try:
                data = read_frames(connection, transaction, log_from, head)
            except (StoreError, ValueError, TypeError) as error:
                raise _damaged(transaction, error) from error
        return root, workflow, digest, data

    def _decoded(self, root: str, workflow: str, digest: str, data: bytes, blob: ReadBlob | None = None) -> Pulses:
        pulses: Pulses = []
        try:
            for frame in frames_in(data):
                if frame.seq != len(pulses):
                    raise StoreError(f"pulse {frame.seq} is there")
                found = self._pulses_of(frame, data, root, workflow, blob or self._blob)
                if not pulses:
                    require_shape(found[0], digest)
                pulses += found
        except Exception as error:  # of bytes that are not what was written, anything
            raise StoreError(f"pulse {len(pulses)}: {why_of(error)}") from error
        return pulses

    @override
    def follow(self, cursor: str | None = None) -> Followed:
        place = START if cursor == "" else None if cursor is None else place_of(cursor)
        return self._read(lambda connection: self._look(connection, place))

    def _look(self, connection: sqlite3.Connection, place: Place | None) -> Followed:
        with one_moment(connection):
            if place is None:
                return Followed([], cursor_of(end_of_journal(connection)), False)
            found, place, more = look(connection, place)
            names = {frame.transaction.hex() for _, frame in found}
            rows = {
                name: connection.execute(
                    "SELECT root, workflow FROM transactions WHERE transaction_id = ?", (name,)
                ).fetchone()
                for name in names
            }
        pulses: Pulses = []
        for data, frame in found:
            name = frame.transaction.hex()
            if rows[name] is None:  # it was forgotten
                continue
            root, workflow = rows[name]
            try:
                pulses += self._pulses_of(frame, data, root, workflow, self._blob)
            except Exception as error:  # of bytes that are not what was written, anything
                if self.get(name) is not None:
                    _log.error("%s: pulses of transaction %s cannot be followed: %s", self._path, name, why_of(error))
        return Followed(pulses, cursor_of(place), more)

    def _pulses_of(self, frame: Frame, data: bytes, root: str, workflow: str, blob: ReadBlob) -> Pulses:
        try:
            return pulses_of(frame, data, root, workflow, self.words.words, blob)
        except KeyError:  # a word that another process added
            self._read(self.words.load)
            return pulses_of(frame, data, root, workflow, self.words.words, blob)

    def _blob(self, name: bytes) -> bytes:
        return self._read(lambda connection: read_blob(connection, name))

    def _rows(self, sql: str, *values: str | int) -> Rows:
        return self._read(lambda connection: connection.execute(sql, values).fetchall())

    def _read(self, question: Callable[[sqlite3.Connection], Value]) -> Value:
        return sleep_through(self.asking(question))

    def asking(self, question: Callable[[sqlite3.Connection], Value]) -> Generator[float, None, Value]:
        """Ask a function of the connection; yields as `tries` does, and returns its value.

        Raises:
            StoreError: the file cannot be read, or written.
        """
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self._path} is not open")
        try:
            try:
                return (yield from tries(lambda: question(connection), _PATIENCE, self._notice))
            except sqlite3.OperationalError as error:
                if _NO_UTF8 not in str(error):
                    raise

            def leniently() -> Value:
                """One text of one row is damaged; the other rows are not."""
                connection.text_factory = _lenient_text
                try:
                    return question(connection)
                finally:
                    connection.text_factory = str

            return (yield from tries(leniently, _PATIENCE, self._notice))
        except sqlite3.Error as error:
            raise store_error(error, self._path, reading=self._reads_only) from error
        except UnicodeEncodeError as error:
            raise StoreError(f"{self._path}: asked for what is no text: {error}") from error


def _about(connection: sqlite3.Connection, transaction: str) -> Any:
    row = connection.execute(
        "SELECT root, workflow, open, digest FROM transactions WHERE transaction_id = ?", (transaction,)
    ).fetchone()
    return row or (None, None, None, None)


def _no_blob(name: bytes) -> bytes:
    raise StoreError(f"blob {name.hex()} is not read here")


def _piece(transaction: str, seq: int, connection: sqlite3.Connection) -> tuple[bytes, bool]:
    with one_moment(connection):
        return read_piece(connection, transaction, seq)


def _damaged(transaction: str, error: Exception) -> DamagedJournal:
    return DamagedJournal(f"transaction {transaction} cannot be read: {why_of(error)}")


class OwnQueries(SqliteQueries):
    """The queries of a store, on its connection; once that is closed, each on one of its own."""

    def __init__(self, path: Path, notice: LockNotice | None = None) -> None:
        super().__init__(path, notice)
        self._closed = False
        self._require_file: Callable[[], None] = lambda: None

    def open(self, connection: sqlite3.Connection, require_file: Callable[[], None]) -> None:
        """Ask on this connection from now on; `require_file` raises `StoreError` if its file is not the one that was
        opened."""
        self._connection, self._require_file = connection, require_file

    def close(self) -> None:
        """Ask on the store's connection no more."""
        self._closed, self._connection = True, None

    def due(self, owner: str, limit: int) -> Dues:
        """An owner's open transactions that say when they are due, earliest first."""
        return self._read(lambda connection: due_transactions(connection, owner, limit))

    def inbox(self, transaction: str) -> Messages:
        """The messages that a transaction has not read, oldest first.

        Raises:
            DamagedJournal: one of them is not what was sent.
        """
        return self._read(lambda connection: unread_messages(connection, transaction))

    def arrived(self, owner: str, after: int, limit: int) -> Arrived:
        """Unread messages for an owner's open transactions behind the id `after`."""
        return self._read(lambda connection: arrived_messages(connection, owner, after, limit))

    @override
    def asking(self, question: Callable[[sqlite3.Connection], Value]) -> Generator[float, None, Value]:
        def checked(connection: sqlite3.Connection) -> Value:
            self._require_file()  # each time: it may have become another while it was waited for
            return question(connection)

        if not self._closed:
            return (yield from super().asking(checked))
        self._require_file()
        with SqliteReader(self._path) as reader:
            return (yield from reader.asking(question))


class SqliteReader(Connected, SqliteQueries):
    """A reader of a journal, in any process, while others write it.  Belongs to the thread that made it.

    Raises:
        StoreError: there is no such file, or it is no journal of this version.
    """

    _reads_only = True

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path).absolute())
        self._connection = connect_read_only(self._path, _PATIENCE)
        self._file = self._path.stat()
        self._seen: tuple[str, int] = ("", 0)

    @property
    def path(self) -> Path:
        """The file, as an absolute path."""
        return self._path

    @override
    def follow(self, cursor: str | None = None) -> Followed:
        version = self._version()
        if cursor and (cursor, version) == self._seen:
            self._require_file()
            return Followed([], cursor, False)
        followed = super().follow(cursor)
        if not followed.pulses:
            self._require_file()
        self._seen = ("", 0) if followed.more else (followed.cursor, version)
        return followed

    def _require_file(self) -> None:
        """Raise `StoreError` if the file at the path is not the one that was opened: in that, nothing more comes."""
        try:
            gone = not os.path.samestat(self._path.stat(), self._file)
        except OSError:
            gone = True
        if gone:
            raise StoreError(
                f"{self._path} was moved away, deleted or replaced since it was opened here; open a new reader, and "
                "follow what is there now from its beginning, with the empty cursor, ''"
            )

    def _version(self) -> int:
        """A number that changes with each commit of others."""
        try:
            if self._connection is not None:
                version: int = self._connection.execute(_DATA_VERSION).fetchone()[0]
                return version
        except sqlite3.Error:  # tried again as any other question is, or told
            pass
        [[version]] = self._rows(_DATA_VERSION)
        return version

    def each_pulse(self, transaction: str) -> Iterator[Pulse]:
        """The pulses of a transaction, one after the other; of a long one only some are in memory at a time.

        Raises:
            StoreError: the next ones cannot be read.
        """
        row = self.get(transaction)
        seq, ended = 0, row is None
        while not ended:
            try:
                data, ended = self._read(partial(_piece, transaction, seq))
                begun = seq
                for frame in frames_in(data):
                    if frame.seq != seq:
                        raise StoreError(f"pulse {seq} is missing")
                    root, workflow = (row.root, row.workflow) if row else ("", "")
                    pulses = self._pulses_of(frame, data, root, workflow, self._blob)
                    seq += len(pulses)
                    yield from pulses
                if seq == begun and not ended:
                    raise StoreError(f"pulse {seq} is missing")
            except Exception as error:  # of bytes that are not what was written, anything
                if self.get(transaction) is None:  # it was forgotten meanwhile
                    return
                raise _damaged(transaction, error) from error

    def damage(self) -> list[str]:
        """What SQLite finds to be wrong with the file, the first few, and what is not as a journal has it in its tables
        and indexes; reads all of it."""
        lines = [str(line) for (line,) in self._rows("PRAGMA integrity_check(5)") if line != "ok"]
        try:
            self._read(self._require_journal)
        except StoreError as error:
            lines.append(str(error).removeprefix(f"{self._path}: "))
        return lines

    def _require_journal(self, connection: sqlite3.Connection) -> None:
        kept = connection.text_factory
        try:
            with one_moment(connection):
                require_journal(connection, self._path, newest_version())
        finally:
            connection.text_factory = kept

    def verify(self, transaction: str | None = None) -> Iterator[Fault | Progress]:
        """Whether what is kept is what was written: the first fault of each transaction, or of this one, and how far
        the look is, the last time at its end.

        Raises:
            StoreError: the file itself is damaged.
        """
        if self._connection is None:
            raise StoreError(f"{self._path} is not open")
        look = Verification(self._connection)
        try:
            yield from look.walk() if transaction is None else look.look(transaction)
        except sqlite3.Error as error:
            raise store_error(error, self._path, reading=self._reads_only) from error
