"""What a journal has of a transaction, as far as its next write must know it."""

from __future__ import annotations

from typing import NamedTuple

from bitactor.errors import DuplicateTransaction, StaleOwner, StoreError
from bitactor.ports import Write
from mesh.stores.journal.tail import Tail


class JournalState(NamedTuple):
    """The state of a transaction in the journal, as far as its next write must know it."""

    epoch: int
    status: str
    open: bool
    next_seq: int
    dead: bool = False
    other_owner: str = ""
    """The transaction's owner, if it is open and not ours; else empty."""


class Held:
    """An open transaction that is ours, as the journal has it, with its frames that are only in the log."""

    __slots__ = (
        "dead", "epoch", "frames", "head", "log_from", "name", "next_seq", "open", "other_owner", "part_seq", "size",
        "status",
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
        return JournalState(self.epoch, self.status, self.open, self.next_seq, self.dead, self.other_owner)

    @state.setter
    def state(self, state: JournalState) -> None:
        self.epoch, self.status, self.open, self.next_seq, self.dead, self.other_owner = state


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
