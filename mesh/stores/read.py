"""The queries of an SQLite journal, on whatever connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from typing_extensions import override

from bitactor.errors import StoreError
from bitactor.messages.pulse import Pulse
from bitactor.messages.values import named_text
from bitactor.ports import StoreQueries, TransactionRow
from mesh.stores.database import connect_read_only, retry_while_busy, store_error
from mesh.stores.journal.frames import frames_in, pulses_of, why_of
from mesh.stores.journal.tail import one_moment, read_frames
from mesh.stores.journal.verify import Fault, Progress, Verification
from mesh.stores.journal.words import Words
from mesh.stores.rows import TRANSACTION_COLUMNS, transaction_from_row

Rows = list[Any]
Pulses = list[Pulse]
Value = TypeVar("Value")

# Seconds that a query waits for the file; SQLite keeps readers out only while a crashed writer's log is being
# recovered, for milliseconds.
_PATIENCE: Final = 5.0


_NO_UTF8: Final = "Could not decode to UTF-8"


def _lenient_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class SqliteQueries(StoreQueries):
    """The queries of the `Store` port on an SQLite journal.  They see what is committed, by whichever process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._words = Words()

    @override
    def pulses(self, transaction: str) -> list[Pulse]:
        try:
            found = self._read(lambda connection: self._frames(connection, transaction))
        except StoreError:
            raise
        except Exception as error:  # of what is not as it was written, anything
            raise StoreError(f"{self._path}: transaction {transaction} cannot be read: {named_text(error)}") from error
        return [] if found is None else self._decoded(*found)

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
        self, *, status: str | None = None, workflow: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[TransactionRow]:
        conditions: list[str] = []
        values: list[str | int] = []
        if status is not None:
            # Nearly everything is completed; any other status narrows more than the workflow does.  A plus keeps an
            # index out.
            conditions.append("+status = ?" if status == "completed" and workflow is not None else "status = ?")
            values.append(status)
        if workflow is not None:
            conditions.append("workflow = ?" if status in (None, "completed") else "+workflow = ?")
            values.append(workflow)
        if before is not None:
            conditions.append("transaction_id < ?")
            values.append(before)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"SELECT {TRANSACTION_COLUMNS} FROM transactions {where} ORDER BY transaction_id DESC LIMIT ?"
        rows = self._rows(sql, *values, max(limit, 0))
        return [transaction_from_row(row) for row in rows]

    def _frames(self, connection: sqlite3.Connection, transaction: str) -> tuple[str, str, str, bytes] | None:
        with one_moment(connection):
            row = connection.execute(
                "SELECT root, workflow, log_from, head FROM transactions WHERE transaction_id = ?", (transaction,)
            ).fetchone()
            if row is None:
                return None
            root, workflow, log_from, head = row
            try:
                data = read_frames(connection, transaction, log_from, head)
            except StoreError as error:
                raise StoreError(f"{self._path}: transaction {transaction} cannot be read: {error}") from error
        return transaction, root, workflow, data

    def _decoded(self, transaction: str, root: str, workflow: str, data: bytes) -> Pulses:
        pulses: Pulses = []
        try:
            for frame in frames_in(data):
                if frame.seq != len(pulses):
                    raise StoreError(f"pulse {frame.seq} is there")
                try:
                    pulses += pulses_of(frame, data, root, workflow, self._words.words)
                except KeyError:  # a word that another process added
                    self._read(self._words.load)
                    pulses += pulses_of(frame, data, root, workflow, self._words.words)
        except Exception as error:  # of bytes that are not what was written, anything
            raise StoreError(
                f"{self._path}: pulse {len(pulses)} of transaction {transaction} cannot be read: {why_of(error)}"
            ) from error
        return pulses

    def _rows(self, sql: str, *values: str | int) -> Rows:
        return self._read(lambda connection: connection.execute(sql, values).fetchall())

    def _read(self, question: Callable[[sqlite3.Connection], Value]) -> Value:
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self._path} is not open")
        try:
            try:
                return retry_while_busy(lambda: question(connection), _PATIENCE, self._path)
            except sqlite3.OperationalError as error:
                if _NO_UTF8 not in str(error):
                    raise
            # One text of one row is damaged; the other rows are not.
            connection.text_factory = _lenient_text
            try:
                return retry_while_busy(lambda: question(connection), _PATIENCE, self._path)
            finally:
                connection.text_factory = str
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error
        except UnicodeEncodeError as error:
            raise StoreError(f"{self._path}: asked for what is no text: {error}") from error


class SqliteReader(SqliteQueries):
    """A reader of a journal, in any process, while others write it.  Belongs to the thread that made it.

    Raises:
        StoreError: there is no such file, or it is no journal of this version.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path).absolute())
        self._connection = connect_read_only(self._path, _PATIENCE)

    @property
    def path(self) -> Path:
        """The file, as an absolute path."""
        return self._path

    def damage(self) -> list[str]:
        """What SQLite finds to be wrong with the file, the first few; reads all of it."""
        lines = self._rows("PRAGMA integrity_check(5)")
        return [str(line) for (line,) in lines if line != "ok"]

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
            raise store_error(error, self._path) from error

    def close(self) -> None:
        """Release the file.  Twice is once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
