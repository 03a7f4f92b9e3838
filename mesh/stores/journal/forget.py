"""Transactions that ended long ago, dropped with all that a journal keeps of them."""

from __future__ import annotations

import sqlite3
from typing import Final

from mesh.stores.journal.blobs import drop_blobs
from mesh.stores.journal.inbox import drop_messages

NOBODY: Final = ""
"""Whose part of the archive the newest one becomes when its transaction is dropped: its id is given once, for those who
follow go by it."""

_ENDED: Final = (  # as the index has it, word for word
    "SELECT transaction_id FROM transactions INDEXED BY transactions_ended WHERE open = 0"
    " AND status IN ('completed', 'compensated', 'cancelled') AND updated_ns < ?"
    " ORDER BY updated_ns, transaction_id LIMIT ?"
)
_NEWEST: Final = "SELECT id FROM archive WHERE id = (SELECT max(id) FROM archive) AND transaction_id = ?"
_KEEP_ID: Final = "UPDATE archive SET transaction_id = ?, seq = 0, next_seq = 0, log_id = 0, body = x'' WHERE id = ?"


def forget(connection: sqlite3.Connection, before_ns: int, limit: int) -> int:
    """Drop transactions that ended before this wall time, those that ended first first; inside a database transaction
    that writes.  What the log still has of them goes with the log."""
    names = connection.execute(_ENDED, (before_ns, max(limit, 0))).fetchall()
    for (transaction,) in names:
        drop_blobs(connection, transaction)
        drop_messages(connection, transaction)
        newest = connection.execute(_NEWEST, (transaction,)).fetchone()
        if newest is not None:
            connection.execute("DELETE FROM archive WHERE transaction_id = ?", (NOBODY,))
            connection.execute(_KEEP_ID, (NOBODY, *newest))
        connection.execute("DELETE FROM archive WHERE transaction_id = ?", (transaction,))
        connection.execute("DELETE FROM transactions WHERE transaction_id = ?", (transaction,))
    return len(names)
