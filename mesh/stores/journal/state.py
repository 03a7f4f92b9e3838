"""The state of a transaction as a journal has it, and which writes follow from it."""

from __future__ import annotations

from typing import NamedTuple

from bitactor.errors import DuplicateTransaction, StaleOwner, StoreError
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
