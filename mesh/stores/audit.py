"""Whether what a journal keeps can be read back: looked through a few rows at a time, with little memory."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from bitactor.messages.values import is_text, named_text
from mesh.stores.rows import PULSE_COLUMNS, SEQ, PulseRow, pulse_from_row, require_shape, require_sound
from registry.support.clock import monotonic_ns

_log = logging.getLogger("bitactor.store")

_ROWS_A_STEP: Final = 200
INTERVAL_NS: Final = 1_000_000_000
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_TRANSACTIONS: Final = (
    "SELECT transaction_id, root, workflow, open, digest, open <> 0 OR status IN ('halted', 'stuck')"
    " FROM transactions WHERE typeof(transaction_id) = 'text' AND transaction_id {} CAST(? AS TEXT)"
    " ORDER BY transaction_id LIMIT ?"
)
_PULSES: Final = (
    f"SELECT {PULSE_COLUMNS} FROM pulses WHERE transaction_id = CAST(? AS TEXT) AND seq >= ? ORDER BY seq LIMIT ?"
)
_WORKFLOWS: Final = (
    "WITH RECURSIVE names(name) AS (SELECT min(workflow) FROM transactions UNION ALL"
    " SELECT (SELECT min(workflow) FROM transactions WHERE workflow > name) FROM names WHERE name IS NOT NULL)"
    " SELECT name FROM names WHERE name IS NOT NULL"
)
"""From name to name through the index."""
_RUNNING: Final = "SELECT transaction_id, root, workflow, open FROM transactions WHERE status = 'running'"


class Unreadable(NamedTuple):
    """A transaction that cannot be read back."""

    transaction: str
    why: str
    wanted: bool
    """Something is left to do of it, or it may be resumed."""


class Audit:
    """A pass through all transactions of a journal, in the order of their ids."""

    def __init__(self) -> None:
        self._after = b""
        self._seq = -1
        """The next pulse of the transaction at `_after`; -1: that one is done."""

    def step(self, connection: sqlite3.Connection, rows: int = _ROWS_A_STEP) -> list[Unreadable] | None:
        """Read that many rows on; what of them cannot be read, None: there are no more.

        Raises:
            sqlite3.Error: the file itself cannot be read.
        """
        with _as_of_now(connection):
            return self._read(connection, rows)

    def _read(self, connection: sqlite3.Connection, rows: int) -> list[Unreadable] | None:
        comparison = ">" if self._seq < 0 else ">="
        transactions = connection.execute(_TRANSACTIONS.format(comparison), (self._after, rows)).fetchall()
        found: list[Unreadable] = []
        for transaction, *row, wanted in transactions:
            name = transaction.encode("utf-8", "surrogateescape")
            seq = self._seq if name == self._after and self._seq > 0 else 0
            read, why = _read_back(row, connection.execute(_PULSES, (name, seq, rows)), seq)
            rows -= 1 + read
            if why:
                found.append(Unreadable(_shown(transaction), why, bool(wanted)))
            self._after, self._seq = name, -1
            if rows <= 0:
                if read and not why:  # there may be more of them
                    self._seq = seq + read
                break
        return found if transactions else None


def unseen(connection: sqlite3.Connection) -> list[Unreadable]:
    """The transactions that run and that no look for what is to be taken over finds, for what it goes by is damaged."""
    found: list[Unreadable] = []
    with _as_of_now(connection):
        sound = all(is_text(name) for (name,) in connection.execute(_WORKFLOWS))
        for transaction, *row in connection.execute(f"{_RUNNING} AND open NOT IN (0, 1)" if sound else _RUNNING):
            try:
                require_sound(*row)
            except ValueError as error:
                found.append(Unreadable(_shown(transaction), f"its row cannot be read: {error}", wanted=True))
    return found


def unreadable(connection: sqlite3.Connection) -> Iterator[Unreadable]:
    """All transactions that cannot be read back."""
    audit = Audit()
    while (found := audit.step(connection)) is not None:
        yield from found


class Inspector:
    """Looks through a journal beside the work, over and over, a step a second.

    `tell` is called with the reason, and with the transaction that has something left to do and cannot be read, or
    with none if the file itself is damaged; once for each.
    """

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._told: set[str] = set()
        self._audit: Audit | None = None
        self._due_ns = 0

    def work(self, connection: sqlite3.Connection) -> None:
        """Look at the next rows, if it is time."""
        now_ns = monotonic_ns()
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + INTERVAL_NS
        try:
            found = unseen(connection) if self._audit is None else self._audit.step(connection)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                return  # a lock, no memory: the next step is the same
            self._say("", f"the file is damaged ({error}): look with `bitactor doctor --store`, restore a sound copy")
            self._audit = Audit()
            return
        if self._audit is None:
            self._audit = Audit()
        elif found is None:
            self._audit = None
        for transaction, why, wanted in found or ():
            if wanted:
                self._say(transaction, why)

    def _say(self, transaction: str, why: str) -> None:
        if transaction not in self._told:
            self._told.add(transaction)
            self._tell(why, transaction)


def _read_back(row: Sequence[Any], pulses: Iterable[PulseRow], seq: int) -> tuple[int, str]:
    """How many pulses there are, the first of which shall be the one of this number, and why one of them, or the row of
    their transaction, cannot be read; empty: they can.  One is in memory at a time, for each may be as large as a
    token."""
    *head, digest = row
    root, workflow, *_ = head
    read = 0
    try:
        require_sound(*head)
    except ValueError as error:
        return read, f"its row cannot be read: {error}"
    for number, pulse in enumerate(pulses, seq):
        read += 1
        try:
            if pulse[SEQ] != number:
                return read, f"pulse {number} is missing"
            require_shape(pulse_from_row(root, workflow, pulse), digest)
        except Exception as error:  # of bytes that are not what was written, anything
            return read, f"pulse {number} cannot be read: {named_text(error)}"
    return read, "" if read or seq else "the journal has no pulse of it"


@contextmanager
def _as_of_now(connection: sqlite3.Connection) -> Iterator[None]:
    """A database transaction, so that a transaction and its pulses are seen as of one moment, in which any text can be
    read."""
    factory, connection.text_factory = connection.text_factory, _any_text
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.text_factory = factory


def _shown(transaction: str) -> str:
    return str(transaction).encode("utf-8", "backslashreplace").decode()


def _any_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
