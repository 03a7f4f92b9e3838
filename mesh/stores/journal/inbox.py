"""The inbox of a journal: messages to transactions, kept by whichever process sends them until their owner reads them.

A message is kept by one statement, which looks whether its transaction receives any, whether its key is new, and
whether there is room.  The owner's commit that reads it drops it; the commit from which on the transaction receives no
more drops what is left, and says how many these were.  So a message is kept before that and counted, or refused.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from bitactor.errors import DamagedJournal, InvalidInput, StoreError
from bitactor.messages.values import named_text
from bitactor.ports import INBOX_BYTES, INBOX_MESSAGES, Arrived, Due, Inbox, Message, Sent, Write
from mesh.stores.database import Connected, connect, connect_read_only, retry_while_busy, store_error, write_transaction
from mesh.stores.journal.state import inbox_conflict
from mesh.stores.journal.tail import one_moment

_log = logging.getLogger("bitactor.store")

_PATIENCE: Final = 30.0
"""Seconds that a sender waits for a file that another process keeps locked."""
_DIGEST_BYTES: Final = 16

_DUE: Final = (
    "SELECT transaction_id, due_ns FROM transactions WHERE owner = ? AND open = 1 AND due_ns > 0"
    " ORDER BY due_ns, transaction_id LIMIT ?"
)
_SEND: Final = (
    "INSERT INTO inbox (transaction_id, name, key, digest, body, sent_ns, sender) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7"
    " WHERE EXISTS (SELECT 1 FROM transactions WHERE transaction_id = ?1 AND receives = 1)"
    " AND NOT EXISTS (SELECT 1 FROM inbox WHERE transaction_id = ?1 AND name = ?2 AND key = ?3 AND key <> '')"
    " AND (SELECT count(*) < ?8 AND coalesce(sum(length(body)), 0) + length(?5) <= ?9 FROM inbox"
    " WHERE transaction_id = ?1 AND body IS NOT NULL)"
)
_STATUS: Final = "SELECT status, receives FROM transactions WHERE transaction_id = ?"
_BY_KEY: Final = "SELECT id, digest FROM inbox WHERE transaction_id = ? AND name = ? AND key = ? AND key <> ''"
_COLUMNS: Final = "inbox.id, inbox.transaction_id, name, inbox.key, inbox.digest, CAST(body AS BLOB), sent_ns, sender"
_UNREAD: Final = f"SELECT {_COLUMNS} FROM inbox WHERE transaction_id = ? AND body IS NOT NULL ORDER BY id"
_ARRIVED: Final = (  # in this order, for there may be very many open ones
    f"SELECT {_COLUMNS} FROM inbox CROSS JOIN transactions USING (transaction_id)"
    " WHERE inbox.id > ? AND body IS NOT NULL AND owner = ? AND open = 1 ORDER BY inbox.id LIMIT ?"
)
_THERE: Final = (
    "SELECT id, key <> '' FROM inbox WHERE transaction_id = ? AND body IS NOT NULL"
    " AND id IN (SELECT value FROM json_each(?))"
)
_COUNT: Final = "SELECT count(*) FROM inbox WHERE transaction_id = ? AND body IS NOT NULL"
_DROP: Final = (  # each by its own index
    "DELETE FROM inbox WHERE transaction_id = ? AND body IS NOT NULL",
    "DELETE FROM inbox WHERE transaction_id = ? AND key <> ''",
)

Packed = tuple[str, str, str, bytes, bytes, int, str, int, int]
"""What `_SEND` is given."""


def pack_message(message: Message) -> Packed:
    """A message as it is kept.

    Raises:
        InvalidInput: a part of it cannot be kept.
    """
    transaction, name, key, body, sent_ns, sender = (
        message.transaction, message.name, message.key, message.body, message.sent_ns, message.sender
    )  # fmt: skip
    try:
        if not isinstance(body, bytes):
            raise TypeError(f"its body is {type(body).__name__}, not bytes")
        sent_ns.to_bytes(8, signed=True)
        sender.encode()
        digest = _digest(transaction, name, key, body)
    except Exception as error:  # of what is no text and no number, anything
        why = f"message {name!a} to transaction {transaction!a} cannot be kept: {named_text(error)}"
        raise InvalidInput(why) from error
    return transaction, name, key, digest, bytes(body), sent_ns, sender, INBOX_MESSAGES, INBOX_BYTES


def _digest(transaction: str, name: str, key: str, body: bytes) -> bytes:
    parts = [transaction.encode(), name.encode(), key.encode(), body]
    lengths = b",".join(b"%d" % len(part) for part in parts)
    return blake2b(lengths + b":" + b"".join(parts), digest_size=_DIGEST_BYTES).digest()


def send_message(connection: sqlite3.Connection, packed: Packed) -> Sent:
    """Keep a message, if that may be; inside a database transaction that writes."""
    done = connection.execute(_SEND, packed)
    if done.rowcount:
        return Sent("kept", done.lastrowid or 0)
    transaction, name, key, digest = packed[:4]
    found = connection.execute(_STATUS, (transaction,)).fetchone()
    if found is None:
        return Sent("unknown")
    status, receives = found
    if not receives:
        return Sent("closed", status=status)
    known = connection.execute(_BY_KEY, (transaction, name, key)).fetchone()
    if known is None:
        return Sent("full")
    return Sent("known", known[0]) if known[1] == digest else Sent("conflict")


def unread_messages(connection: sqlite3.Connection, transaction: str) -> list[Message]:
    """The messages that a transaction has not read, oldest first.

    Raises:
        DamagedJournal: one of them is not what was sent.
    """
    return [_message(row) for row in connection.execute(_UNREAD, (transaction,))]


def arrived_messages(connection: sqlite3.Connection, owner: str, after: int, limit: int) -> Arrived:
    """Unread messages for an owner's open transactions behind the id `after`, at least one at a time."""
    limit = max(limit, 1)
    with one_moment(connection):
        (newest,) = connection.execute("SELECT max(id) FROM inbox").fetchone()
        if newest is None or newest <= after:
            return Arrived([], after)
        rows = connection.execute(_ARRIVED, (after, owner, limit)).fetchall()
    found: list[Message] = []
    for row in rows:
        try:
            found.append(_message(row))
        except DamagedJournal as error:
            _log.error("a message is left out: %s", error)
    return Arrived(found, rows[-1][0] if len(rows) == limit else newest)


def due_transactions(connection: sqlite3.Connection, owner: str, limit: int) -> list[Due]:
    """An owner's open transactions that say when they are due, earliest first."""
    return [Due(*row) for row in connection.execute(_DUE, (owner, max(limit, 0)))]


def read_messages(connection: sqlite3.Connection, write: Write, *, closes: bool) -> Exception | None:
    """Take from the inbox what a write reads, and, if it `closes` it, the rest; or why the write cannot be made.
    Inside a database transaction that writes."""
    transaction, read = write.transaction, write.read
    there: Sequence[tuple[int, int]] = ()
    if read:
        there = connection.execute(_THERE, (transaction, json.dumps(list(read)))).fetchall()
    if closes or len(there) != len(read):
        (unread,) = connection.execute(_COUNT, (transaction,)).fetchone()
        error = inbox_conflict(write, len(there), unread, closes)
        if error is not None:
            return error
    if closes:
        drop_messages(connection, transaction)
        return None
    for message, keyed in there:
        connection.execute(
            "UPDATE inbox SET body = NULL WHERE id = ?" if keyed else "DELETE FROM inbox WHERE id = ?", (message,)
        )
    return None


def drop_messages(connection: sqlite3.Connection, transaction: str) -> None:
    """Drop all that the inbox has of a transaction; inside a database transaction that writes."""
    for statement in _DROP:
        connection.execute(statement, (transaction,))


def _message(row: tuple[Any, ...]) -> Message:
    number, transaction, name, key, digest, body, sent_ns, sender = row
    try:
        if _digest(transaction, name, key, body) != digest:
            raise ValueError("it is not what was sent")
    except Exception as error:  # of a damaged row, anything
        raise DamagedJournal(f"message {number} to transaction {transaction} cannot be read: {error}") from error
    return Message(transaction, name, body, key, sender, sent_ns, number)


class SqliteInbox(Connected, Inbox):
    """Sends messages to transactions of a journal, in any process.  Belongs to the thread that made it.

    Raises:
        StoreError: there is no such file, it cannot be written, or it is no journal of this version.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        connect_read_only(self._path, _PATIENCE).close()
        try:
            self._connection: sqlite3.Connection | None = connect(self._path, synchronous="FULL", timeout=0)
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error

    @override
    def send(self, message: Message) -> Sent:
        """Waits up to 30 s for a locked file, and for the disk.

        Raises:
            InvalidInput: a part of the message cannot be kept.
            StoreError: the file cannot be written, or this was closed.
        """
        packed, connection = pack_message(message), self._connection
        if connection is None:
            raise StoreError(f"{self._path} is not open")

        def keep() -> Sent:
            with write_transaction(connection):
                return send_message(connection, packed)

        try:
            return retry_while_busy(keep, _PATIENCE, self._path)
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error
