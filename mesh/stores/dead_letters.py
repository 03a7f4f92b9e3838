"""Dead letters of a store, page by page: of each transaction whose row says that it has some, those in its pulses."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from bitactor.errors import InvalidInput
from bitactor.export.dead_letters import UNREADABLE, DeadLetter, dead_letters_of
from bitactor.messages.pulse import STUCK, Pulse
from bitactor.messages.values import is_text, named_text, shown
from bitactor.plan.plan import Plan
from bitactor.ports import TransactionRow

_PAGE: Final = 100
"""Rows of transactions that are asked for at once, at most."""
_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9]{1,12})", re.ASCII)


class Rows(Protocol):
    """Lists transactions that have dead letters, as `StoreQueries.list` does."""

    def __call__(
        self, *, workflow: str | None, limit: int, before: str | None
    ) -> Awaitable[Sequence[TransactionRow]]: ...


async def find_dead_letters(
    rows: Rows,
    pulses: Callable[[str], Awaitable[Sequence[Pulse]]],
    plans: Mapping[str, Plan],
    *,
    workflow: str | None,
    limit: int,
    before: str | None,
) -> list[DeadLetter]:
    """At most `limit` dead letters: those of the newest transaction first, and of one the last to die first.

    Args:
        rows, pulses: what is asked for transactions that have some, and for the pulses of one.
        plans: name → plan, of the workflows that are declared here.
        before: the id of the last letter of the page before.

    Raises:
        InvalidInput: `before` is no such id.
    """
    last, seq = _cursor(before)
    upto = None if before is None else f"{last}0"  # ids sort as texts; this is the first after the transaction's own
    found: list[DeadLetter] = []
    while len(found) < limit:
        wanted = min(_PAGE, limit - len(found) + 1)
        page = await rows(workflow=workflow, limit=wanted, before=upto)
        for row in page:
            letters = await _letters(row, pulses, plans.get(row.workflow))
            found += [letter for letter in letters if row.transaction != last or letter.seq < seq]
            if len(found) >= limit:
                break
        if len(page) < wanted:
            break
        upto = page[-1].transaction
    return found[:limit]


async def _letters(
    row: TransactionRow, pulses: Callable[[str], Awaitable[Sequence[Pulse]]], plan: Plan | None
) -> list[DeadLetter]:
    try:
        return dead_letters_of(await pulses(row.transaction), row.status, plan)
    except Exception as error:  # of a damaged journal, whatever; the letters of others are read
        reason = STUCK if row.status == STUCK else UNREADABLE
        why = named_text(error)
        return [
            DeadLetter(
                transaction=row.transaction, seq=0, workflow=row.workflow, kind="transaction", name=row.workflow,
                reason=reason, why=why, step="", hop="", attempt=None, deliveries=None, at_ns=row.updated_ns, parts=(),
            )
        ]  # fmt: skip


def _cursor(before: Any) -> tuple[str, int]:
    if before is None:
        return "", 0
    matched = _ID.fullmatch(before) if is_text(before) else None
    if matched is None:
        raise InvalidInput(f"before={shown(before)}: the id of the last dead letter of the page before")
    return matched[1], int(matched[2])
