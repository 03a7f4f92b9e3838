"""The queries of an SQLite journal, on whatever connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from typing_extensions import override

from bitactor.errors import DamagedJournal, StoreError
from bitactor.messages.pulse import Pulse
from bitactor.messages.values import named_text
from bitactor.ports import StoreQueries, TransactionRow
from mesh.stores.audit import Unreadable, unreadable
from mesh.stores.database import connect_read_only, retry_while_busy, store_error
from mesh.stores.rows import (
    PULSE_COLUMNS,
    TRANSACTION_COLUMNS,
    pulse_from_row,
    require_shape,
    require_sound,
    transaction_from_row,
)

Rows = list[Any]
Value = TypeVar("Value")

# Seconds that a query waits for the file; SQLite keeps readers out only while a crashed writer's log is being
# recovered, for milliseconds.
_PATIENCE: Final = 5.0


_DEAD: Final = "(dead = 1 OR status = 'stuck')"
_NO_UTF8: Final = "Could not decode to UTF-8"


def _lenient_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class SqliteQueries(StoreQueries):
    """The queries of the `Store` port on an SQLite journal.  They see what is committed, by whichever process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    @override
    def pulses(self, transaction: str) -> list[Pulse]:
        columns = "root, workflow, open, digest"
        found = self._rows(f"SELECT {columns} FROM transactions WHERE transaction_id = ?", transaction)
        if not found:
            return []
        root, workflow, is_open, digest = found[0]
        try:
            require_sound(root, workflow, is_open)
        except ValueError as error:
            raise DamagedJournal(f"the row of transaction {transaction} cannot be read: {error}") from error
        rows = self._rows(f"SELECT {PULSE_COLUMNS} FROM pulses WHERE transaction_id = ? ORDER BY seq", transaction)
        pulses: list[Pulse] = []
        try:
            for row in rows:
                pulse = pulse_from_row(root, workflow, row)
                if not pulses:
                    require_shape(pulse, digest)
                pulses.append(pulse)
        except Exception as error:  # of bytes that are not what was written, anything
            raise DamagedJournal(
                f"pulse {len(pulses)} of transaction {transaction} cannot be read: {named_text(error)}"
            ) from error
        return pulses

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
            conditions.append(_DEAD if self._knows_dead() else "status = 'stuck'")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"SELECT {TRANSACTION_COLUMNS} FROM transactions {where} ORDER BY transaction_id DESC LIMIT ?"
        rows = self._rows(sql, *values, max(limit, 0))
        return [transaction_from_row(row) for row in rows]

    def _knows_dead(self) -> bool:
        """Whether the file has noted which transactions have dead letters; one of before, that is only read, has
        not."""
        return bool(self._rows("SELECT 1 FROM pragma_table_info('transactions') WHERE name = 'dead'"))

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


class OwnQueries(SqliteQueries):
    """The queries of a store, on its connection; once that is closed, each on one of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._closed = False
        self._require_file: Callable[[], None] = lambda: None

    def open(self, connection: sqlite3.Connection, require_file: Callable[[], None]) -> None:
        """Ask on this connection from now on; `require_file` raises `StoreError` if its file is not the one that was
        opened."""
        self._connection, self._require_file = connection, require_file

    def close(self) -> None:
        """Ask on the store's connection no more."""
        self._closed, self._connection = True, None

    def ask(self, question: Callable[[sqlite3.Connection], Value]) -> Value:
        """The value of a function of the connection.

        Raises:
            StoreError: the file cannot be read, or written.
        """
        return self._read(question)

    @override
    def _rows(self, sql: str, *values: str | int) -> Rows:
        if not self._closed:
            return super()._rows(sql, *values)
        with SqliteReader(self._path) as reader:
            return reader._rows(sql, *values)

    @override
    def _read(self, question: Callable[[sqlite3.Connection], Value]) -> Value:
        self._require_file()
        return super()._read(question)


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

    def unreadable(self) -> Iterator[Unreadable]:
        """The transactions that cannot be read back, one after the other; reads all of them.

        Raises:
            StoreError: the file itself is damaged.
        """
        if self._connection is None:
            raise StoreError(f"{self._path} is not open")
        try:
            yield from unreadable(self._connection)
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
