"""What a dead owner had only in its log, copied to the archive by who takes over."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from bitactor.errors import StoreError
from mesh.stores.journal.frames import GENESIS, Digest, frames_in
from mesh.stores.journal.parts import COMMIT_BITS, end_of_log, frames_of_log, part_body
from mesh.stores.journal.schema import MOST_OWNERS
from mesh.stores.journal.tail import Tail, id_bytes, tails_in_log

MOST_COPIES: Final = 1_000
"""Transactions of which a takeover hands on what it has read."""
COPIED_BYTES: Final = 32 * 1024 * 1024

_log = logging.getLogger("bitactor.store")

INSERT_PART: Final = "INSERT INTO archive (transaction_id, seq, next_seq, log_id, body) VALUES (?, ?, ?, ?, ?)"
_DELETE: Final = "DELETE FROM log WHERE id >= ? AND id < ?"
_NUMBER: Final = (
    "SELECT number FROM owners WHERE owner = ? AND fenced = '' AND typeof(number) = 'integer'"
    f" AND number BETWEEN 1 AND {MOST_OWNERS}"  # else that row is damaged, and nobody knows where its log is
)
_NEEDED: Final = "SELECT 1 FROM transactions WHERE owner = ? AND open = 1 AND log_from IS NOT NULL LIMIT 1"
_OF_ANOTHER: Final = "SELECT 1 FROM owners WHERE number = ? AND owner <> ? AND fenced = ''"
_LOG: Final = "SELECT id, CAST(body AS BLOB) FROM log WHERE id >= ? AND id < ? ORDER BY id"
_ONE_FROM: Final = (  # in this order, for there may be very many transactions
    "SELECT 1 FROM json_each(?) AS name CROSS JOIN transactions ON transaction_id = name.value"
    " WHERE log_from >= ? AND log_from < ? LIMIT 1"
)
_ANY_FROM: Final = "SELECT 1 FROM transactions WHERE log_from >= ? AND log_from < ? LIMIT 1"
"""Looks at all of them, once the log is damaged."""
_Open = tuple[str, int, int, Digest | None]
_OPEN: Final = (
    "SELECT transaction_id, log_from, coalesce((SELECT max(next_seq) FROM archive"
    " WHERE archive.transaction_id = transactions.transaction_id), 0), head"
    " FROM transactions WHERE owner = ? AND open = 1 AND typeof(log_from) = 'integer' ORDER BY log_from"
)
_ODD: Final = (
    "SELECT transaction_id FROM transactions WHERE owner = ? AND open = 1"
    " AND typeof(log_from) NOT IN ('integer', 'null')"
)
"""Those of which nobody knows where in the log they are."""


class Copies:
    """What a takeover has read of transactions that were only in the log, so that it need not be read again: of some,
    as many as fit."""

    def __init__(self) -> None:
        self.frames: dict[str, bytes] = {}
        """Transaction → all its frames."""
        self._bytes = 0

    def add(self, transaction: str, tail: Tail, frames: bytes) -> None:
        """Keep the frames of a transaction, if these are all it has and there is room."""
        if not tail.part_seq and len(self.frames) < MOST_COPIES and self._bytes + len(frames) <= COPIED_BYTES:
            self.frames[transaction] = frames
            self._bytes += len(frames)


def archive_tails(connection: sqlite3.Connection, owner: str, copies: Copies) -> None:
    """Copy to the archive what this owner's open transactions have only in the log, and delete its log; inside the
    database transaction that takes them from it.  What is damaged stays in the log, and the log with it."""
    for (transaction,) in connection.execute(_ODD, (owner,)).fetchall():
        _log.error(
            "transaction %s, taken over from owner %r, cannot be read: its row does not say where in the log it is",
            transaction, owner,
        )  # fmt: skip
    rows = connection.execute(_OPEN, (owner,)).fetchall()
    groups = [(number, [*group]) for number, group in groupby(rows, key=lambda row: row[1] >> COMMIT_BITS)]
    for number, group in groups:
        _archive(connection, owner, number, group, copies)
    _delete(connection, owner, {number for number, _ in groups})


def delete_log(connection: sqlite3.Connection, owner: str) -> None:
    """Delete the log of an owner that writes no more, if nothing is only there; inside a database transaction."""
    _delete(connection, owner, set())


def _delete(connection: sqlite3.Connection, owner: str, numbers: set[int]) -> None:
    """Delete the log of an owner, and those of these numbers, unless something that it has open is in a log still: it
    may be one of them, whatever its row says."""
    if connection.execute(_NEEDED, (owner,)).fetchone() is None:
        own = connection.execute(_NUMBER, (owner,)).fetchall()
        for number in numbers.union(*own):
            bounds = (number << COMMIT_BITS, end_of_log(number << COMMIT_BITS))
            if connection.execute(_OF_ANOTHER, (number, owner)).fetchone() is not None:
                continue  # a row of `owners` is damaged
            if _is_needed(connection, bounds):
                _log.error(
                    "the log of owner %r stays, for a transaction has pulses only there, though its row says that it is"
                    " not open, or another's: the file is damaged; `bitactor verify` names it", owner,
                )  # fmt: skip
                continue
            connection.execute(_DELETE, bounds)


def _is_needed(connection: sqlite3.Connection, bounds: tuple[int, int]) -> bool:
    """Whether a transaction that has frames in this part of the log says that it begins there, whatever else its row
    says of it."""
    names: set[str] = set()
    for row, body in connection.execute(_LOG, bounds):
        try:
            names.update(frame.transaction.hex() for frame in frames_in(frames_of_log(row, body)))
        except StoreError:  # whose it was is not known
            return connection.execute(_ANY_FROM, bounds).fetchone() is not None
    return connection.execute(_ONE_FROM, (json.dumps([*names]), *bounds)).fetchone() is not None


def _archive(connection: sqlite3.Connection, owner: str, number: int, group: Iterable[_Open], copies: Copies) -> None:
    """Copy to the archive what these have in the log of this number, but for what is damaged."""
    bounds = (number << COMMIT_BITS, end_of_log(number << COMMIT_BITS))
    (last,) = connection.execute("SELECT max(id) FROM log WHERE id >= ? AND id < ?", bounds).fetchone()
    found = tails_in_log(connection, [(name, row, seq, head or GENESIS) for name, row, seq, head in group])
    for transaction, tail in found.items():
        error: Exception | None = tail if isinstance(tail, StoreError) else None
        if not isinstance(tail, StoreError):
            frames = b"".join(tail.frames)
            body = part_body(id_bytes(transaction), tail.part_seq, tail.next_seq, last, frames)
            try:
                connection.execute(INSERT_PART, (transaction, tail.part_seq, tail.next_seq, last, body))
                copies.add(transaction, tail, frames)
            except sqlite3.IntegrityError:  # the number of a part in the archive is another
                error = StoreError(f"the archive has a part from pulse {tail.part_seq} on, and that is not its end")
        if isinstance(tail, StoreError) or error is not None:
            _log.error("transaction %s, taken over from owner %r, cannot be read: %s", transaction, owner, error)
            continue
        connection.execute(
            "UPDATE transactions SET log_from = NULL, head = ? WHERE transaction_id = ?", (tail.head, transaction)
        )
