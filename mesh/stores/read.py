"""The queries of an SQLite journal, on whatever connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from bitactor.errors import StoreError
from bitactor.messages.pulse import Pulse
from bitactor.ports import TransactionRow
from mesh.stores.database import connect_read_only, retry_while_busy, store_error
from mesh.stores.rows import PULSE_COLUMNS, TRANSACTION_COLUMNS, pulse_from_row, transaction_from_row

Value = TypeVar("Value")

# Seconds that a query waits for the file; SQLite keeps readers out only while a crashed writer's log is being
# recovered, for milliseconds.
_PATIENCE: Final = 5.0


class SqliteQueries:
    """The queries of the `Store` port on an SQLite journal.  They see what is committed, by whichever process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def pulses(self, transaction: str) -> list[Pulse]:
        """All committed pulses of a transaction, in order of `seq`; empty if it is unknown."""
        return self._read(lambda connection: _pulses(connection, transaction))

    def find(self, workflow: str, key: str) -> str | None:
        """The transaction that has this idempotency key; None if there is none."""
        return self._read(lambda connection: _find(connection, workflow, key))

    def get(self, transaction: str) -> TransactionRow | None:
        """The row of one transaction; None if it is unknown."""
        return self._read(lambda connection: _get(connection, transaction))

    def list(
        self, *, status: str | None = None, workflow: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[TransactionRow]:
        """Rows of transactions, newest first, at most `limit`; `before` is the last id of the page before."""
        return self._read(lambda connection: _list(connection, status, workflow, limit, before))

    def _read(self, question: Callable[[sqlite3.Connection], Value]) -> Value:
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self._path} is not open")
        try:
            return retry_while_busy(lambda: question(connection), _PATIENCE)
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

    def close(self) -> None:
        """Release the file.  Twice is once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _pulses(connection: sqlite3.Connection, transaction: str) -> list[Pulse]:
    found = connection.execute(
        "SELECT root, workflow FROM transactions WHERE transaction_id = ?", (transaction,)
    ).fetchone()
    if found is None:
        return []
    root, workflow = found
    rows = connection.execute(
        f"SELECT {PULSE_COLUMNS} FROM pulses WHERE transaction_id = ? ORDER BY seq", (transaction,)
    ).fetchall()
    return [pulse_from_row(root, workflow, row) for row in rows]


def _find(connection: sqlite3.Connection, workflow: str, key: str) -> str | None:
    found = connection.execute(
        "SELECT transaction_id FROM transactions WHERE workflow = ? AND key = ? AND key <> ''", (workflow, key)
    ).fetchone()
    return found[0] if found else None


def _get(connection: sqlite3.Connection, transaction: str) -> TransactionRow | None:
    row = connection.execute(
        f"SELECT {TRANSACTION_COLUMNS} FROM transactions WHERE transaction_id = ?", (transaction,)
    ).fetchone()
    return transaction_from_row(row) if row else None


def _list(
    connection: sqlite3.Connection, status: str | None, workflow: str | None, limit: int, before: str | None
) -> list[TransactionRow]:
    conditions: list[str] = []
    values: list[str | int] = []
    if status is not None:
        # Nearly everything is completed; any other status narrows more than the workflow does.  A plus keeps an index
        # out.
        conditions.append("+status = ?" if status == "completed" and workflow is not None else "status = ?")
        values.append(status)
    if workflow is not None:
        conditions.append("workflow = ?" if status in (None, "completed") else "+workflow = ?")
        values.append(workflow)
    if before is not None:
        conditions.append("transaction_id < ?")
        values.append(before)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = connection.execute(
        f"SELECT {TRANSACTION_COLUMNS} FROM transactions {where} ORDER BY transaction_id DESC LIMIT ?",
        (*values, max(limit, 0)),
    ).fetchall()
    return [transaction_from_row(row) for row in rows]
