"""Sending dead letters again."""

from __future__ import annotations

from typing import Any, Final

from bitactor.errors import InvalidInput, StaleOwner, Unroutable
from bitactor.export.dead_letters import emission_again, letter_place
from mesh.runtime.live import LiveTransaction
from mesh.runtime.settled import Transactions

_TRIES: Final = 3
"""How often another process may be quicker: what it has done is then in the journal."""


async def send_again(transactions: Transactions, letter: Any) -> LiveTransaction:
    """Bring what is in the dead letter of this id to its receiver once more; returns its transaction, once the journal
    says so.  See `Mesh.send_again`."""
    transaction, seq = letter_place(letter)
    async with transactions.one_at_a_time:
        return await _send_again(transactions, letter, transaction, seq)


async def _send_again(transactions: Transactions, letter: str, transaction: str, seq: int) -> LiveTransaction:
    for left in reversed(range(_TRIES)):
        live = await transactions.load(transaction)
        row = await transactions.queries.get(transaction)
        live, pulses = await transactions.as_it_stands(live)
        emission = emission_again(pulses, live.state, seq)
        if emission is None:
            return await transactions.resume(live)
        if live.resent and emission.id in live.resent:
            raise InvalidInput(f"dead letter {letter} is being sent again at this moment")
        if row is not None and row.open and not transactions.owns(live):
            raise Unroutable(transactions.elsewhere(transaction, row.owner, f"send-again {letter}", "send it again"))
        try:
            await transactions.send_again(live, pulses, emission.id)
        except StaleOwner:
            if not left:
                raise
        else:
            return live
    raise AssertionError("the last try returns or raises")
