"""What a journal must know of a transaction before it takes a write of it, and which writes it takes."""

from __future__ import annotations

from typing import NamedTuple

from bitactor.errors import DuplicateTransaction, InboxChanged, StaleOwner, StoreError
from bitactor.ports import Write


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
