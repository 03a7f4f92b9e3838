"""Commits to a journal: which writes are taken, which refused, and the few statements that make it so.

Every commit is one database transaction that begins by looking at our own row in `owners`.  As long as that row stands
and is not fenced, nobody else can have touched the open transactions we hold, so what the last commit knew of them is
still true and need not be read again: an ordinary hop costs its pulse rows and nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from bitactor.errors import BitActorError, DuplicateTransaction, StaleOwner, StoreError
from bitactor.ports import Refusal, Write
from mesh.stores.lease import require_lease
from mesh.stores.rows import AT_NS, SEQ, PulseRow, pulse_rows


class PreparedWrite(NamedTuple):
    """A write and its rows, or the error for which it has none."""

    write: Write
    rows: Sequence[PulseRow]
    error: Exception | None = None


class JournalState(NamedTuple):
    """The state of a transaction in the journal, as far as its next write must know it."""

    epoch: int
    status: str
    open: bool
    next_seq: int
    dead: bool = False
    other_owner: str = ""
    """The transaction's owner, if it is open and not ours; else empty."""


# Errors that SQLite or its binding raises for one row that it will not take; the rows of others are not at fault
_ROW_ERRORS: Final = (
    sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError, sqlite3.ProgrammingError, ValueError,
    OverflowError,
)  # fmt: skip

_INSERT_TRANSACTION: Final = "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_PULSE: Final = "INSERT INTO pulses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE_TRANSACTION: Final = (
    "UPDATE transactions SET status = ?, open = ?, owner = ?, epoch = ?, updated_ns = max(updated_ns, ?), dead = ? "
    "WHERE transaction_id = ?"
)


def prepare_writes(writes: Iterable[Write]) -> list[PreparedWrite]:
    """The rows of each write, packed now, so that nothing changes them any more."""
    items = []
    for write in writes:
        try:
            items.append(PreparedWrite(write, pulse_rows(write.pulses)))
        except (BitActorError, ValueError, TypeError, OverflowError, RecursionError) as error:
            refusal = StoreError(f"transaction {write.transaction}: a pulse cannot be stored: {error}")
            items.append(PreparedWrite(write, (), refusal))
    return items


class Writer:
    """Makes the commits of one owner.  Used by one thread at a time, on whichever connection belongs to that thread."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        # Cached journal states of the open transactions that we hold and have written to
        self._states: dict[str, JournalState] = {}

    def commit(self, connection: sqlite3.Connection, items: Sequence[PreparedWrite]) -> list[Refusal]:
        """Keep `items` in one database transaction; those that are refused leave no trace.

        Raises:
            StaleOwner: our lease was taken from us; nothing was written.
            sqlite3.Error: nothing was written; when busy, the same call can be made again.
        """
        try:
            batch = _Batch(self._owner, self._states, connection)
            self._begin(connection)
            try:
                batch.write(items)
            except _ROW_ERRORS:
                connection.execute("ROLLBACK")
                batch = _Batch(self._owner, self._states, connection)
                self._begin(connection)
                batch.write_one_by_one(items)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self.invalidate(item.write.transaction for item in items)
            raise
        self._cache_states(batch.changes)
        return batch.refusals

    def become(self, owner: str) -> None:
        """Write as another owner from now on; nothing that was known of any transaction is true for that one."""
        self._owner = owner
        self._states.clear()

    def invalidate(self, transactions: Iterable[str]) -> None:
        """Drop the cached states of `transactions`; the next write of each reads its state from the journal."""
        for transaction in transactions:
            self._states.pop(transaction, None)

    def _begin(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        require_lease(connection, self._owner)

    def _cache_states(self, changes: dict[str, JournalState]) -> None:
        states = self._states
        for transaction, state in changes.items():
            if state.open:
                states[transaction] = state
            else:
                states.pop(transaction, None)


class _Batch:
    """A database transaction in the making, with the writes of one commit."""

    def __init__(self, owner: str, states: Mapping[str, JournalState], connection: sqlite3.Connection) -> None:
        self._owner = owner
        self._states = states
        self._connection = connection
        self._refused: dict[str, Exception] = {}
        self.changes: dict[str, JournalState] = {}  # journal states that become true once this batch is committed
        self.refusals: list[Refusal] = []

    def write(self, items: Iterable[PreparedWrite], first: int = 0) -> None:
        """Write all items in one go; raises one of `_ROW_ERRORS` if that will not do.  `first` is the index of the
        first item."""
        connection, states, changes = self._connection, self._states, self.changes
        created: list[tuple[str | int, ...]] = []
        updated: list[tuple[str | int, ...]] = []
        rows: list[PulseRow] = []
        for index, item in enumerate(items, first):
            write, item_rows, error = item
            transaction, epoch, _, status, is_open, _, dead = write
            creates = bool(item_rows) and item_rows[0][SEQ] == 0
            state = changes.get(transaction) or states.get(transaction)
            if state is None and not creates:
                state = self._load_state(transaction)
            error = error or self._refused.get(transaction) or conflict(write, state, creates)
            if error is not None:
                self._refuse(index, transaction, error)
                continue
            rows += item_rows
            if state is None:
                created.append(_transaction_row(write, self._owner))
                changes[transaction] = JournalState(epoch, status, is_open, len(item_rows), dead)
                continue
            if status != state.status or is_open != state.open or epoch != state.epoch or dead != state.dead:
                at_ns = item_rows[-1][AT_NS] if item_rows and status != state.status else 0
                updated.append((status, is_open, self._owner, epoch, at_ns, dead, transaction))
            changes[transaction] = JournalState(epoch, status, is_open, state.next_seq + len(item_rows), dead)
        if created:
            connection.executemany(_INSERT_TRANSACTION, created)
        connection.executemany(_INSERT_PULSE, rows)
        if updated:
            connection.executemany(_UPDATE_TRANSACTION, updated)

    def write_one_by_one(self, items: Iterable[PreparedWrite]) -> None:
        """Write the items one by one, refusing each that cannot be stored and taking the others."""
        connection = self._connection
        for index, item in enumerate(items):
            transaction = item.write.transaction
            before = self.changes.get(transaction)
            connection.execute("SAVEPOINT one")
            try:
                self.write((item,), index)
            except _ROW_ERRORS as error:
                connection.execute("ROLLBACK TO one")
                if before is None:
                    self.changes.pop(transaction, None)
                else:
                    self.changes[transaction] = before
                self._refuse(index, transaction, self._storage_error(item.write, error))
            connection.execute("RELEASE one")

    def _refuse(self, index: int, transaction: str, error: Exception) -> None:
        self._refused[transaction] = error
        self.refusals.append(Refusal(index, error))

    def _load_state(self, transaction: str) -> JournalState | None:
        row = self._connection.execute(
            "SELECT epoch, status, open, dead, owner, (SELECT max(seq) FROM pulses WHERE pulses.transaction_id = ?1)"
            " FROM transactions WHERE transaction_id = ?1",
            (transaction,),
        ).fetchone()
        if row is None:
            return None
        epoch, status, is_open, dead, owner, last_seq = row
        other_owner = owner if is_open and owner != self._owner else ""
        next_seq = 0 if last_seq is None else last_seq + 1
        return JournalState(epoch, status, bool(is_open), next_seq, bool(dead), other_owner)

    def _storage_error(self, write: Write, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.IntegrityError):
            return StoreError(f"transaction {write.transaction}: a pulse cannot be stored: {error}")
        taken = None
        if write.key:
            taken = self._connection.execute(
                "SELECT transaction_id FROM transactions WHERE workflow = ? AND key = ? AND key <> ''",
                (write.pulses[0].workflow, write.key),
            ).fetchone()
        if taken and taken[0] != write.transaction:
            return DuplicateTransaction(
                f"key {write.key!r} of {write.pulses[0].workflow!r} was used before, by transaction {taken[0]}"
            )
        if error.sqlite_errorname == "SQLITE_CONSTRAINT_PRIMARYKEY":
            if write.pulses[0].seq == 0:
                return DuplicateTransaction(f"transaction {write.transaction} is in the journal already")
            return StaleOwner(
                f"transaction {write.transaction}: another process wrote pulse {write.pulses[0].seq} before"
            )
        return StoreError(f"transaction {write.transaction}: a pulse cannot be stored: {error}")


def conflict(
    write: Write, state: JournalState | None, creates: bool, others: str = ", by another process or twice"
) -> Exception | None:
    """Why a write must not be made, from what the journal holds of its transaction; `others` says by whom a pulse may
    have been written before."""
    transaction, epoch = write.transaction, write.epoch
    if state is None:
        return None if creates else StoreError(f"transaction {transaction} is not in the journal")
    if state.other_owner:
        return StaleOwner(f"transaction {transaction} belongs to {state.other_owner!r}")
    if epoch < state.epoch:
        return StaleOwner(f"transaction {transaction} is in epoch {state.epoch}; this was decided in epoch {epoch}")
    seq = write.pulses[0].seq if write.pulses else state.next_seq
    if seq == state.next_seq:
        return None
    if creates:
        return DuplicateTransaction(f"transaction {transaction} is in the journal already")
    if seq < state.next_seq:
        return StaleOwner(f"transaction {transaction}: pulse {seq} was written before{others}")
    return StoreError(
        f"transaction {transaction}: pulse {seq} follows pulse {state.next_seq - 1}; a write between was lost"
    )


def _transaction_row(write: Write, owner: str) -> tuple[str | int, ...]:
    accepted = write.pulses[0]
    parent = accepted.data.get("parent", "") if accepted.data else ""
    return (
        write.transaction, accepted.root, parent, accepted.workflow, accepted.digest, write.key, write.status,
        write.open, owner, write.epoch, accepted.at_ns, write.pulses[-1].at_ns, write.dead,
    )  # fmt: skip
