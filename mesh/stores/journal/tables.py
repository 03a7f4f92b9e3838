"""A copy of transactions as tables, a row a pulse, for whoever asks by SQL: those that a journal had before it had a
log, without the owners."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from bitactor.messages.pulse import Pulse
from bitactor.ports import TransactionRow
from mesh.stores.database import store_error
from mesh.stores.journal.schema import statements_of
from mesh.stores.rows import PULSE_COLUMNS, PulseRow, pulse_rows

_SCHEMA: Final = 1
_PULSE: Final = f"INSERT INTO pulses ({PULSE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_TRANSACTION: Final = "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Tables:
    """An SQLite file with `transactions`, `pulses` and the view `pulse_log`; no journal, so no node opens it.

    Args:
        path: an empty file.
        shown: what of a pulse is kept, if it is not to be kept as it is.

    Raises:
        StoreError: the file cannot be written; from each method, too.
    """

    def __init__(self, path: Path, shown: Callable[[Pulse], Pulse]) -> None:
        self._path = path
        self._shown = shown
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = OFF")  # half a copy is thrown away
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute("BEGIN")
            for statement in statements_of(_SCHEMA):
                self._connection.execute(statement)
            self._connection.execute("DROP TABLE owners")
        except sqlite3.Error as error:
            raise store_error(error, path) from error

    def add(self, row: TransactionRow, pulses: Iterable[Pulse]) -> None:
        """Add a transaction; one pulse is in memory at a time."""
        digest = ""

        def rows() -> Iterator[PulseRow]:
            nonlocal digest
            for pulse in pulses:
                digest = digest or pulse.digest
                yield from pulse_rows((self._shown(pulse),))

        try:
            self._connection.executemany(_PULSE, rows())
            self._connection.execute(_TRANSACTION, (*row[:4], digest, *row[4:]))
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error

    def close(self) -> None:
        """Keep what was added."""
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error
        finally:
            self._connection.close()
