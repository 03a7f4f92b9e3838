"""What a dead owner had only in its log, copied to the archive by who takes over."""

from __future__ import annotations

import logging
import sqlite3
from itertools import groupby
from typing import Final

from bitactor.errors import StoreError
from mesh.stores.journal.frames import GENESIS
from mesh.stores.journal.parts import COMMIT_BITS, end_of_log, part_body
from mesh.stores.journal.tail import id_bytes, tails_in_log

_log = logging.getLogger("bitactor.store")

INSERT_PART: Final = "INSERT INTO archive (transaction_id, seq, next_seq, log_id, body) VALUES (?, ?, ?, ?, ?)"
_OPEN: Final = (
    "SELECT transaction_id, log_from, coalesce((SELECT max(next_seq) FROM archive"
    " WHERE archive.transaction_id = transactions.transaction_id), 0), head"
    " FROM transactions WHERE owner = ? AND open = 1 AND log_from IS NOT NULL ORDER BY log_from"
)


def archive_tails(connection: sqlite3.Connection, owner: str) -> None:
    """Copy to the archive what this owner's open transactions have only in the log, and delete its log; inside the
    database transaction that takes them from it.  What is damaged stays in the log, and the log with it."""
    kept: set[int] = set()
    rows = connection.execute(_OPEN, (owner,)).fetchall()
    for number, group in groupby(rows, key=lambda row: row[1] >> COMMIT_BITS):
        first = number << COMMIT_BITS
        (last,) = connection.execute(
            "SELECT max(id) FROM log WHERE id >= ? AND id < ?", (first, end_of_log(first))
        ).fetchone()
        found = tails_in_log(connection, [(name, row, seq, head or GENESIS) for name, row, seq, head in group])
        for transaction, tail in found.items():
            if isinstance(tail, StoreError):
                kept.add(number)
                _log.error("transaction %s, taken over from owner %r, cannot be read: %s", transaction, owner, tail)
                continue
            body = part_body(id_bytes(transaction), tail.part_seq, tail.next_seq, last, b"".join(tail.frames))
            connection.execute(INSERT_PART, (transaction, tail.part_seq, tail.next_seq, last, body))
            connection.execute(
                "UPDATE transactions SET log_from = NULL, head = ? WHERE transaction_id = ?", (tail.head, transaction)
            )
    for number in {*_numbers(connection, owner), *(row[1] >> COMMIT_BITS for row in rows)} - kept:
        delete_log(connection, number)


def delete_log_of(connection: sqlite3.Connection, owner: str) -> None:
    """Delete the log of an owner none of whose transactions is open."""
    for number in _numbers(connection, owner):
        delete_log(connection, number)


def delete_log(connection: sqlite3.Connection, number: int) -> None:
    """Delete all rows of the owner of this number."""
    first = number << COMMIT_BITS
    connection.execute("DELETE FROM log WHERE id >= ? AND id < ?", (first, end_of_log(first)))


def _numbers(connection: sqlite3.Connection, owner: str) -> list[int]:
    """The number of an owner's log; empty if that is known no more, or was never given."""
    rows = connection.execute("SELECT number FROM owners WHERE owner = ? AND number > 0", (owner,))
    return [number for (number,) in rows]
