"""Blobs: tokens that are too long for a frame, each kept once, whoever names it."""

from __future__ import annotations

import sqlite3
from typing import Final

from bitactor.errors import StoreError
from mesh.stores.journal.frames import Blobs, blob_hash

_KEEP: Final = (
    "INSERT INTO blobs (hash, body) VALUES (?, ?) ON CONFLICT (hash) DO UPDATE SET body = excluded.body"
    " WHERE body <> excluded.body"
)


def keep_blobs(connection: sqlite3.Connection, transaction: str, blobs: Blobs) -> None:
    """Keep blobs that a transaction names; inside a database transaction that writes.  One that was there and has been
    damaged is made whole."""
    connection.executemany(_KEEP, blobs.items())
    connection.executemany("INSERT OR IGNORE INTO blob_uses VALUES (?, ?)", [(transaction, name) for name in blobs])


def read_blob(connection: sqlite3.Connection, name: bytes) -> bytes:
    """The blob of a name.

    Raises:
        StoreError: it is missing, or damaged.
    """
    found = connection.execute("SELECT body FROM blobs WHERE hash = ?", (name,)).fetchone()
    if found is None or blob_hash(found[0]) != name:
        raise StoreError(f"blob {name.hex()}, which it names, is {'missing' if found is None else 'damaged'}")
    body: bytes = found[0]
    return body


def drop_blobs(connection: sqlite3.Connection, transaction: str) -> None:
    """Drop what only this transaction names; inside a database transaction that writes."""
    names = connection.execute("SELECT hash FROM blob_uses WHERE transaction_id = ?", (transaction,)).fetchall()
    connection.execute("DELETE FROM blob_uses WHERE transaction_id = ?", (transaction,))
    connection.executemany(
        "DELETE FROM blobs WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM blob_uses WHERE hash = ?1)", names
    )
