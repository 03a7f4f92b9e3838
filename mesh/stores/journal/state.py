"""What a journal must know of a transaction before it takes a write of it, and which writes it takes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from bitactor.errors import DuplicateTransaction, InboxChanged, StaleOwner, StoreError
from bitactor.messages.pulse import ACCEPTED, FAILED, FINISHED, HALTED, RESUMED, RUNNING, Pulse
from bitactor.ports import Write
from mesh.stores.journal.tail import Tail

# Errors that SQLite or its binding raises for one row that it will not take; the rows of others are not at fault
ROW_ERRORS: Final = (
    sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError, sqlite3.ProgrammingError, ValueError,
    OverflowError,
)  # fmt: skip


class JournalState(NamedTuple):
    """The state of a transaction in the journal, as far as its next write must know it."""

    epoch: int
    status: str
    open: bool
    next_seq: int
    dead: bool = False
    other_owner: str = ""
    """The transaction's owner, if it is open and not ours; else empty."""
    due_ns: int = 0
    receives: bool = False


class Held:
    """An open transaction that is ours, as the journal has it, with its frames that are only in the log."""

    __slots__ = (
        "dead", "due_ns", "epoch", "frames", "head", "log_from", "name", "next_seq", "open", "other_owner", "part_seq",
        "receives", "size", "status",
    )  # fmt: skip

    def __init__(self, name: bytes, state: JournalState, tail: Tail) -> None:
        self.name = name
        """The transaction's id, as bytes."""
        self.state = state
        self.head = tail.head
        self.frames = tail.frames
        self.size = sum(map(len, tail.frames))
        self.part_seq = tail.part_seq
        self.log_from = tail.log_from
        """The log's row from which its frames are; 0: it has none there."""

    @property
    def state(self) -> JournalState:
        """Its state; each part is an attribute of its own, of which a hop changes one."""
        return JournalState(
            self.epoch, self.status, self.open, self.next_seq, self.dead, self.other_owner, self.due_ns, self.receives
        )

    @state.setter
    def state(self, state: JournalState) -> None:
        (
            self.epoch, self.status, self.open, self.next_seq, self.dead, self.other_owner, self.due_ns, self.receives,
        ) = state  # fmt: skip


def conflict(
    write: Write, state: JournalState | None, others: str = ", by another process or twice"
) -> Exception | None:
    """Why a write must not be made, from what the journal holds of its transaction; `others` says by whom a pulse may
    have been written before."""
    transaction, epoch = write.transaction, write.epoch
    creates = bool(write.pulses) and write.pulses[0].seq == 0
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


def inbox_conflict(write: Write, there: int, unread: int, closes: bool) -> Exception | None:
    """Why a write must not be made, from what the inbox of its transaction holds: so many of the messages that it says
    it reads, and so many unread ones in all.  `closes`: the transaction receives no more from then on."""
    reads, left = len(write.read), unread - there
    if there != reads:
        return InboxChanged(
            f"transaction {write.transaction}: of {reads} messages that it reads, {reads - there} are not there", left
        )
    if closes and left != write.unread:
        return InboxChanged(
            f"transaction {write.transaction}: it leaves {left} messages unread; this was decided when these were "
            f"{write.unread}", left,
        )  # fmt: skip
    return None


def refusal_of(connection: sqlite3.Connection, write: Write, error: Exception) -> Exception:
    """Why a transaction cannot begin, from what inserting its row raised."""
    if not isinstance(error, sqlite3.IntegrityError):
        return StoreError(f"transaction {write.transaction}: a pulse cannot be stored: {error}")
    taken = None
    if write.key:
        taken = connection.execute(
            "SELECT transaction_id FROM transactions WHERE workflow = ? AND key = ? AND key <> ''",
            (write.pulses[0].workflow, write.key),
        ).fetchone()
    if taken and taken[0] != write.transaction:
        return DuplicateTransaction(
            f"key {write.key!r} of {write.pulses[0].workflow!r} was used before, by transaction {taken[0]}"
        )
    return DuplicateTransaction(f"transaction {write.transaction} is in the journal already")


def new_transaction_row(write: Write, owner: str, log_from: int, receives: bool) -> tuple[str | int, ...]:
    """The row of a transaction that begins."""
    accepted = write.pulses[0]
    parent = accepted.data.get("parent", "") if accepted.data else ""
    return (
        write.transaction, accepted.root, parent, accepted.workflow, accepted.digest, write.key, write.status,
        write.open, owner, write.epoch, accepted.at_ns, write.pulses[-1].at_ns, write.dead,
        log_from, write.due_ns, receives,
    )  # fmt: skip


TOLD_COLUMNS: Final = (
    "CAST(key AS BLOB), CAST(parent AS BLOB), CAST(status AS BLOB), created_ns, open, epoch, updated_ns, dead"
)


class Told:
    """What the pulses of a transaction tell of its row."""

    __slots__ = ("created_ns", "key", "parent", "status")

    def __init__(self) -> None:
        self.status = ""
        """Empty: they do not tell it."""
        self.key = self.parent = ""
        self.created_ns = 0

    def take(self, pulses: Iterable[Pulse]) -> None:
        """Take its next pulses; those of the transaction itself are without a step."""
        for pulse in pulses:
            if not pulse.step:
                self._take(pulse, pulse.data or {})

    def _take(self, pulse: Pulse, data: Any) -> None:
        kind = pulse.kind
        if kind == ACCEPTED and not pulse.seq:
            self.key, self.parent, self.created_ns = data.get("key", ""), data.get("parent", ""), pulse.at_ns
            self.status = RUNNING
        elif not self.status:
            return
        elif kind == FINISHED:
            self.status = data.get("status", "")
        elif kind == HALTED:
            self.status = HALTED
        elif kind == FAILED or (kind == RESUMED and "epoch" not in data):  # with an epoch it says who took it over
            self.status = RUNNING

    def contradiction(self, row: tuple[Any, ...]) -> str:
        """What a row, as `TOLD_COLUMNS` has it, says otherwise; empty: nothing."""
        if not self.status:
            return ""
        key, parent, status, created_ns, is_open, *numbers = row
        for name, said, told in (
            ("key", key, self.key), ("parent", parent, self.parent), ("status", status, self.status),
        ):  # fmt: skip
            if said != told.encode("utf-8", "surrogatepass"):
                return f"{name} {_text(said)!r}, and its pulses {told!r}"
        if created_ns != self.created_ns:
            return f"created_ns {created_ns!r}, and its pulses {self.created_ns}"
        if self.status == RUNNING and is_open == 0:
            return "open 0, and its pulses that something is left to do"
        for name, number in zip(("epoch", "updated_ns", "dead"), numbers, strict=True):
            if type(number) is not int or number < 0 or (name == "dead" and number > 1):
                return f"{name} {number!r}, which no node writes"
        return ""


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "backslashreplace")
