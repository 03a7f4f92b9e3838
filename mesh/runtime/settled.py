"""The transactions of a node as their callers see them: those that run here, and those that are only in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from typing_extensions import override

from bitactor.errors import (
    BitActorError,
    DamagedJournal,
    InvalidInput,
    StoreError,
    UnknownTransaction,
    Unroutable,
    suggest,
)
from bitactor.export.dead_letters import DeadLetter
from bitactor.messages.pulse import STATUSES, Pulse
from bitactor.messages.signal import Fault
from bitactor.messages.values import is_text, shown
from bitactor.plan.plan import Plan
from bitactor.ports import AsyncStoreQueries, StoreQueries, TransactionRow
from bitactor.saga import CancelRequested, ResumeRequested, SendAgainRequested, UndoRequested
from mesh.runtime.live import LiveTransaction
from mesh.runtime.recovery import shape_changed
from mesh.runtime.supervisor import Supervisor
from mesh.stores.dead_letters import find_dead_letters

POLL_SECONDS: Final = 0.25
"""Seconds between two looks in the store for a transaction that another process runs."""
MOST_ROWS: Final = 2**31
"""Rows that a store is asked for at most."""
KNOWN_REOPENED: Final = 1_000
"""Most transactions that went on here after they had settled and that handles are led to without asking the store."""


Value = TypeVar("Value")


class AtOnce(AsyncStoreQueries):
    """What a reader answers, for a coroutine whose outcome is needed now."""

    def __init__(self, reader: StoreQueries) -> None:
        self._reader = reader

    @override
    def reader(self) -> StoreQueries:
        return self._reader


class Transactions:
    """Loads transactions, waits for those that other processes run, and lets settled ones go on.

    Args:
        supervisor: runs those that go on here.
        parked: transaction that cannot go on here → why.
        where: the store, as its user named it.
        require_open: raises `BitActorError` unless the node takes work.
        owner: this node's name in the store.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        plans: Mapping[str, Plan],
        parked: Mapping[str, str],
        where: str,
        require_open: Callable[[], None],
        owner: Callable[[], str],
    ) -> None:
        self.queries: AsyncStoreQueries = supervisor.store
        """Who is asked about transactions: the store, and its reader once this is closed."""
        self.at_once = AtOnce(supervisor.store.reader())
        """Who is asked by those that cannot wait."""
        self._supervisor = supervisor
        self._plans = plans
        self._parked = parked
        self._where = where
        self._require_open = require_open
        self._owner = owner
        self._closed = False
        self._reopened: dict[str, LiveTransaction] = {}
        self.one_at_a_time = asyncio.Lock()
        """For what reads whole journals, of which many may be asked for at once."""
        self.asked_again: dict[str, list[Any]] = {}
        """Transaction → those of its dead letters that are to be sent again in its next turn; see
        `mesh.transaction.again`."""

    def close(self) -> None:
        """Wait no more for transactions that other processes run."""
        self._closed = True
        self.queries = self.at_once

    def require_running(self, transaction: str) -> None:
        """Raise unless a transaction's end can be awaited here: the mesh is not closed, and lives on this loop."""
        if self._closed:
            raise StoreError(f"transaction {transaction} had not ended when this mesh was closed")
        require_loop(self._supervisor.loop)

    async def pulses(self, transaction: str, ask: AsyncStoreQueries | None = None) -> Sequence[Pulse]:
        """The pulses that the store has of a transaction, also after the mesh was closed.

        Raises:
            StoreError: it has none any more.
        """
        try:
            pulses = await (ask or self.queries).pulses(transaction)
        except Exception as error:
            if isinstance(error, BitActorError) or not self._closed:
                raise
            raise StoreError(f"{self._where} cannot be read after the mesh was closed: {shown(error)}") from error
        if not pulses:
            raise self._lost(transaction)
        return pulses

    async def rows(
        self, *, status: str | None, workflow: str | None, limit: int, before: str | None
    ) -> list[TransactionRow]:
        """Rows of what the store has, newest first, at most `limit`; `before`: the last id of the page before.

        Raises:
            InvalidInput: there is no such status, `limit` is less than 1, or `before` no text.
        """
        if status is not None and status not in STATUSES:
            raise InvalidInput(f"status={status!r}: no such status.{suggest(str(status), STATUSES)}")
        if before is not None and not is_text(before):
            raise InvalidInput(f"before={shown(before)}: the last id of the page before")
        return await self.queries.list(status=status, workflow=workflow, limit=_page_of(limit), before=before)

    async def dead_letters(self, *, workflow: str | None, limit: int, before: str | None) -> list[DeadLetter]:
        """What ended nowhere, of the newest transaction first, at most `limit`; `before`: the last id of the page
        before.

        Raises:
            InvalidInput: `limit` is less than 1, or `before` no such id.
        """
        limit = _page_of(limit)

        async def rows(*, workflow: str | None, limit: int, before: str | None) -> list[TransactionRow]:
            return await self.queries.list(workflow=workflow, limit=limit, before=before, dead=True)

        async def pulses(transaction: str) -> Sequence[Pulse]:
            if not self._closed:
                await asyncio.sleep(0)  # others may have their turn: a long journal takes a while
            return await self.queries.pulses(transaction)

        return await find_dead_letters(rows, pulses, self._plans, workflow=workflow, limit=limit, before=before)

    async def row(self, transaction: str) -> TransactionRow:
        """What the store has of a transaction beside its pulses, readable or not.

        Raises:
            UnknownTransaction: there is none.
        """
        row = await self.queries.get(transaction)
        if row is None:
            raise UnknownTransaction(f"no transaction {transaction!r} in {self._where}")
        return row

    def _lost(self, transaction: str) -> DamagedJournal:
        return DamagedJournal(f"the journal has no pulse of transaction {transaction} any more")

    def owns(self, live: LiveTransaction) -> bool:
        """Whether `live` is what runs here: nobody else does, and it is no copy from the store."""
        return self._supervisor.transactions.get(live.state.transaction) is live

    def known(self, live: LiveTransaction) -> LiveTransaction:
        """The transaction as this process knows it, whichever of its handles let it go on; on any thread."""
        transaction = live.state.transaction
        running = self._supervisor.transactions.get(transaction)
        if running is not None:
            return running
        last = self._reopened.get(transaction)
        return live if last is None or last.given_up or last.state.seq <= live.state.seq else last

    def reopened(self, transaction: str) -> LiveTransaction | None:
        """The transaction if it runs here, or went on here after it had settled; another process may have had it
        since."""
        return self._supervisor.transactions.get(transaction) or self._reopened.get(transaction)

    def is_certain(self, live: LiveTransaction) -> bool:
        """Whether nobody but this process can let a transaction go on, or find out more; on any thread."""
        over = live.settled and live.failure is None
        over = over and (self._closed or live.state.status in ("compensated", "cancelled"))
        return over or (self.owns(live) and not self._supervisor.is_being_written(live))

    def require_gone_on(self, live: LiveTransaction, now: LiveTransaction) -> None:
        """Raise why a transaction was given up here, if it was, unless it has gone on since, here or elsewhere, as it
        stands `now`; or all was kept."""
        if live.given_up and not live.was_taken and not self.owns(now):
            was_kept = now.settled and now.state.seq >= live.state.seq
            if not was_kept and now.state.epoch <= live.state.epoch:
                live.require_kept()

    def current(self, live: LiveTransaction, *, closely: bool = True) -> LiveTransaction:
        """The transaction as it stands now, also if it went on in another process since; as it is known, once this mesh
        is closed, away from its loop, or where the store has nothing to say.  What was given up here is what the store
        has of it.

        `closely`: with all that has happened, and not only in its status.
        """
        if self.is_certain(self.known(live)) or not self._can_ask():
            return self.known(live)
        return at_once(self.latest(live, closely=closely, ask=self.at_once))

    async def latest(
        self, live: LiveTransaction, *, closely: bool = True, ask: AsyncStoreQueries | None = None
    ) -> LiveTransaction:
        """`current`, for those that can wait for the store."""
        live = self.known(live)
        if self.is_certain(live) or not self._can_ask():
            return live
        ask, before = ask or self.queries, live
        transaction, status = live.state.transaction, live.state.status
        if self.owns(live):
            if closely:
                live = self._fold(transaction, await self.pulses(transaction, ask))
                live.errors = before.errors
            return live
        with suppress(Exception if self._closed else BitActorError, LookupError):
            row = await ask.get(transaction)
            changed = row is not None and (
                live.failure is not None
                or row.status != status
                or (closely and status != "completed" and len(await ask.pulses(transaction)) != live.state.seq)
            )
            if changed:
                live = await self.load(transaction, ask)
                if before.given_up and not self.owns(live):
                    live.errors = before.errors
        known = self.known(live)  # it may have gone on here since the store was asked
        return known if known.failure is None else live

    def _can_ask(self) -> bool:
        """Whether the store answers here: on the mesh's loop, and on any thread once it is closed."""
        return self._closed or is_running(self._supervisor.loop)

    async def wait_elsewhere(self, transaction: str) -> LiveTransaction:
        """The transaction that another process on the same store owns, once it has settled or is ours.

        Raises:
            StoreError: it cannot go on here, or this mesh is closed.
        """
        while True:
            why = self._parked.get(transaction)
            if why is not None:
                raise StoreError(f"transaction {transaction} cannot go on here: {why}")
            if self._closed:
                raise StoreError(f"transaction {transaction} had not ended when this mesh was closed")
            row = await self.queries.get(transaction)
            if row is None or row.status != "running" or transaction in self._supervisor.transactions:
                live = await self.load(transaction)
                if live.settled or self.owns(live):
                    return live
            await asyncio.sleep(POLL_SECONDS)

    async def load(self, transaction: str, ask: AsyncStoreQueries | None = None) -> LiveTransaction:
        """A transaction of ours, or, read only, one from the store.

        Raises:
            UnknownTransaction: there is none, or its workflow is not declared here.
            StoreError: its pulses make no sense, or not to the workflow as it is declared here.
        """
        running, ask = self._supervisor.transactions, ask or self.queries
        if transaction in running:
            return running[transaction]
        pulses = await ask.pulses(transaction)
        if transaction in running:  # since the store was asked
            return running[transaction]
        if not pulses:
            if await ask.get(transaction) is None:
                raise UnknownTransaction(f"no transaction {transaction!r} in {self._where}")
            raise self._lost(transaction)
        return self._fold(transaction, pulses)

    def _fold(self, transaction: str, pulses: Sequence[Pulse]) -> LiveTransaction:
        plan = self._plans.get(pulses[0].workflow)
        if plan is None:
            raise UnknownTransaction(
                f"transaction {transaction} is of workflow {pulses[0].workflow!r}, which is not declared here"
            )
        try:
            return LiveTransaction.fold(plan, pulses)
        except StoreError as error:
            if pulses[0].digest == plan.digest:
                raise DamagedJournal(f"transaction {transaction} cannot be read: {error}") from error
            raise StoreError(
                f"transaction {transaction} cannot be read here: {shape_changed(plan.workflow)}"
            ) from error

    async def cancel(
        self, live: LiveTransaction, fault: Fault, ask: AsyncStoreQueries | None = None
    ) -> LiveTransaction:
        """Enqueue a cancellation; returns the live transaction that goes on.

        Raises:
            Unroutable: another process runs it, or only another release can undo it.
        """
        ask, before = ask or self.queries, self.known(live)
        live = await self.latest(live, closely=False, ask=ask)
        if not live.settled:
            self.require_gone_on(before, live)
        if live.settled and live.state.status == "halted":
            live, pulses = await self.as_it_stands(live, ask)
            if live.settled and live.state.status == "halted":
                self._reopen(live, pulses)
        if not live.settled and not self.owns(live):
            row = await ask.get(live.state.transaction)
            live = self.known(live)  # it may have been taken over meanwhile
            if not live.settled and not self.owns(live):
                raise self.not_here(live.state.transaction, "" if row is None else row.owner)
        if self.owns(live):
            self._supervisor.enqueue(live, CancelRequested(fault))
        return live

    def not_here(self, transaction: str, owner: str, verb: str = "", what: str = "cancel it") -> BitActorError:
        """Why a transaction cannot be changed here: it was given up, or who runs it, and how that one is asked."""
        if owner == self._owner():
            why = self._parked.get(transaction) or "it was given up, and goes on when its journal can be written"
            return StoreError(f"transaction {transaction} does not run at the moment: {why}")
        who = f"node {owner}, another process" if owner else "another process"
        verb = verb or f"cancel {transaction}"
        return Unroutable(
            f"transaction {transaction} is run by {who} on {self._where}, and only that one can {what}: ask it "
            f"with `bitactor {verb}`, --http (its ingress) or --registry; or in its own code"
        )

    async def resume(self, live: LiveTransaction) -> LiveTransaction:
        """Let a halted or stuck transaction go on; its deadline has stood still meanwhile.  Returns the live
        transaction.

        Raises:
            InvalidInput: the transaction is neither halted nor stuck.
            Unroutable: it began in another shape of its workflow, so only the release that declares that one can carry
                it on.
        """
        live, pulses = await self.as_it_stands(live, self.queries)
        live.require_status(("halted", "stuck"), "a halted or stuck one can be resumed")
        self._reopen(live, pulses)
        data = next((pulse.data or {} for pulse in reversed(pulses) if pulse.kind == "halted"), {})
        left = data.get("left_ns")
        due_ns = None if left is None else live.now_ns(self._supervisor.clock) + left
        self._supervisor.enqueue(live, ResumeRequested(due_ns))
        return live

    async def undo(self, live: LiveTransaction, fault: Fault) -> LiveTransaction:
        """Take back what a completed transaction did.  Returns the live transaction.

        Raises:
            InvalidInput: the transaction did not complete, or was undone already.
            Unroutable: it began in another shape of its workflow, so only the release that declares that one can undo
                it.
        """
        live, pulses = await self.as_it_stands(live, self.queries)
        live.require_status(("completed",), "a completed one can be undone, and only once")
        self._reopen(live, pulses)
        self._supervisor.enqueue(live, UndoRequested(fault))
        return live

    def send_again(self, live: LiveTransaction, pulses: Sequence[Pulse], emission: str) -> asyncio.Future[None]:
        """Take up a transaction, as `as_it_stands` gives it, to bring a signal that nobody took to its consumers once
        more; the future is of when the journal says so."""
        self._reopen(live, pulses, stays_settled=True)
        live.resent = live.resent or {}
        done = live.resent[emission] = self._supervisor.loop.create_future()
        self._supervisor.enqueue(live, SendAgainRequested(emission))
        return done

    async def as_it_stands(
        self, live: LiveTransaction, ask: AsyncStoreQueries | None = None
    ) -> tuple[LiveTransaction, Sequence[Pulse]]:
        """A transaction that is to go on, and its pulses; it may have gone on since `live` was made, through another
        handle or in another process.  Until the caller awaits something, no other handle comes in between."""
        self._require_open()
        ask = ask or self.queries
        transaction, running = live.state.transaction, self._supervisor.transactions
        while True:
            before = self.known(live)
            seq = before.state.seq
            pulses = await ask.pulses(transaction)
            self._require_open()
            known = self.known(live)
            if (known is before and known.state.seq == seq) or not (known.settled or known.given_up):
                break  # otherwise it has gone on here while the store was asked, which may have answered before
        if not pulses:
            raise self._lost(transaction)
        if transaction in running:
            return running[transaction], pulses
        if pulses[0].digest != live.plan.digest:
            raise Unroutable(f"transaction {transaction} cannot go on here: {shape_changed(live.plan.workflow)}")
        fits = live.failure is None and len(pulses) == live.state.seq
        return live if fits else self._fold(transaction, pulses), pulses

    def _reopen(self, live: LiveTransaction, pulses: Sequence[Pulse], *, stays_settled: bool = False) -> None:
        """Take up a transaction that has settled; see `Supervisor.reopen`."""
        transaction = live.state.transaction
        self._supervisor.reopen(live, pulses[-1].at_ns, stays_settled=stays_settled)
        self._reopened.pop(transaction, None)
        self._reopened[transaction] = live
        if len(self._reopened) > KNOWN_REOPENED:
            del self._reopened[next(iter(self._reopened))]


def at_once(answer: Coroutine[Any, Any, Value]) -> Value:
    """The value of a coroutine that asks nobody but readers."""
    try:
        answer.send(None)
    except StopIteration as end:
        value: Value = end.value
        return value
    finally:
        answer.close()
    raise AssertionError("it waits for something, which nobody does here")


def _page_of(limit: Any) -> int:
    """How many rows are asked for.

    Raises:
        InvalidInput: `limit` is no whole number, or less than 1.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInput(f"limit={limit!r}: a whole number, at least 1")
    return min(limit, MOST_ROWS)


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is called on `loop`, in its thread."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def require_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Raise `BitActorError` unless this runs on `loop`, a mesh's."""
    if not is_running(loop):
        raise BitActorError(
            "this mesh lives on another event loop: await this where it was opened, or call `mesh.blocking` from a "
            "thread"
        )
