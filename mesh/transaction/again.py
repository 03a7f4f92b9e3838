"""Sending dead letters again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from bitactor.errors import BitActorError, InvalidInput, StaleOwner, StoreError, Unroutable
from bitactor.export.dead_letters import deaths_of, emission_again, letter_place
from mesh.runtime.live import LiveTransaction
from mesh.runtime.settled import Transactions

_TRIES: Final = 3
"""How often another process may be quicker: what it has done is then in the journal."""


class _Asked:
    """A dead letter that is to be sent again, and who waits for that."""

    __slots__ = ("answer", "letter", "seq", "tries_left", "turn")

    def __init__(self, letter: str, seq: int) -> None:
        self.letter = letter
        self.seq = seq
        self.tries_left = _TRIES
        self.answer: asyncio.Future[LiveTransaction] = asyncio.get_running_loop().create_future()
        self.turn: asyncio.Task[None] | None = None
        """What takes its turn, of the one that was asked first."""

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def succeed(self, live: LiveTransaction) -> None:
        if not self.answer.done():
            self.answer.set_result(live)


async def send_again(transactions: Transactions, letter: Any) -> LiveTransaction:
    """Bring what is in the dead letter of this id to its receiver once more; returns its transaction, once the journal
    says so.  See `Mesh.send_again`.

    One journal is read at a time; what is asked of one transaction while it waits for its turn takes one turn.
    """
    transaction, seq = letter_place(letter)
    mine = _Asked(letter, seq)
    waiting = transactions.asked_again.get(transaction)
    if waiting is not None:
        waiting.append(mine)
        return await mine.answer
    transactions.asked_again[transaction] = [mine]
    mine.turn = asyncio.create_task(_take_turn(transactions, transaction))  # who asked first may be cancelled
    return await mine.answer


async def _take_turn(transactions: Transactions, transaction: str) -> None:
    async with transactions.one_at_a_time:
        asked: Sequence[_Asked] = transactions.asked_again.pop(transaction)
        while asked := [one for one in asked if not one.answer.done()]:
            try:
                await _send_all(transactions, transaction, asked)
            except asyncio.CancelledError:  # the loop ends
                for one in asked:
                    one.answer.cancel()
                raise
            except Exception as error:
                for one in asked:
                    one.fail(error)


async def _send_all(transactions: Transactions, transaction: str, asked: Sequence[_Asked]) -> None:
    """Send all signals among these again, or one undo; what has no answer then is to be tried once more."""
    live = transactions.reopened(transaction) or await transactions.load(transaction)
    row = await transactions.queries.get(transaction)
    live, pulses = await transactions.as_it_stands(live)
    deaths = deaths_of(pulses, live.state.status)
    sent, undo = dict[asyncio.Future[None], _Asked](), None
    for one in asked:
        try:
            emission = emission_again(pulses, live.state, one.seq, deaths)
            if emission is None:
                undo = undo or one
                continue
            if live.resent and emission.id in live.resent:
                raise InvalidInput(f"dead letter {one.letter} is being sent again at this moment")
            if row is not None and row.open and not transactions.owns(live):
                verb = f"send-again {one.letter}"
                raise transactions.not_here(transaction, row.owner, verb, "send it again")
        except (InvalidInput, StoreError, Unroutable) as error:
            one.fail(error)
        else:
            sent[transactions.send_again(live, pulses, emission.id)] = one
    if sent:
        await _note_sent(live, sent)
    elif undo is not None:
        try:
            undo.succeed(await transactions.resume(live))
        except BitActorError as error:
            undo.fail(error)


async def _note_sent(live: LiveTransaction, sent: dict[asyncio.Future[None], _Asked]) -> None:
    await asyncio.wait(sent)
    for done, one in sent.items():
        error = done.exception()
        one.tries_left -= 1
        if error is None:
            one.succeed(live)
        elif not isinstance(error, StaleOwner) or not one.tries_left:
            one.fail(error)
