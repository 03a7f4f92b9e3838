"""`Transaction`: a transaction as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Generic

from typing_extensions import TypeVar, override

from bitactor.errors import BitActorError, InvalidInput, WorkflowFailed
from bitactor.export.display import readable_pulses
from bitactor.export.failure import errors_as_plain, failure_of, halt_as_plain
from bitactor.messages.codec import decode_token
from bitactor.messages.faults import beside, utf8_safe
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault
from bitactor.messages.values import exact_text, shown
from bitactor.plan.plan import Plan
from bitactor.ports import AsyncStoreQueries
from mesh.limits.pools import LENDER, lend_permits
from mesh.runtime.live import LiveTransaction, TransactionLimits
from mesh.runtime.settled import Transactions, at_once

KEPT_PULSES: Final = 1_000
"""Most pulses of a settled transaction that its handle keeps once they were read, for when the store is gone."""

R_co = TypeVar("R_co", covariant=True, default=Any)


class Handle:
    """What a handle of a transaction says in one word: the same on the mesh's loop, in other threads, and after the
    mesh was closed."""

    def _look(self) -> LiveTransaction:
        """The transaction as this process knows it."""
        raise NotImplementedError

    def _current(self, *, closely: bool = True) -> LiveTransaction:
        """The transaction as it stands now; see `Transactions.current`."""
        raise NotImplementedError

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.workflow!r}: {self.status}>"

    @property
    def id(self) -> str:
        """The transaction's id, 32 hex digits; for a root transaction the trace id in Jaeger."""
        return self._look().state.transaction

    @property
    def root(self) -> str:
        """The id of the root transaction, which is the trace id of the whole causal tree."""
        return self._look().state.root

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self._look().plan.workflow

    @property
    def status(self) -> str:
        """The transaction's status: `running | completed | compensated | cancelled | halted | stuck`; as it is now,
        whoever resumed, cancelled or undid it, and after the mesh was closed as last known."""
        return _status_of(self._current(closely=False))

    @property
    def plan(self) -> Plan:
        """The workflow as it was declared, checked: its steps and what they need."""
        return self._look().plan


class Transaction(Handle, Generic[R_co]):
    """A transaction that was accepted.  Used on the mesh's loop; `BlockingTransaction` is for other threads.

    It still answers after the mesh was closed: how the transaction ended is kept with it, and its pulses can be read as
    long as its store has them.
    """

    _kept: Sequence[Pulse] = ()
    _has_ended = False  # True once `ended` has answered: from then on it looks whether somebody let it go on

    def __init__(self, transactions: Transactions, live: LiveTransaction) -> None:
        self._transactions = transactions
        self._live = live

    @override
    def _look(self) -> LiveTransaction:
        return self._transactions.known(self._live)

    @override
    def _current(self, *, closely: bool = True) -> LiveTransaction:
        return self._follow(self._transactions.current(self._live, closely=closely))

    async def _latest(self, *, closely: bool = True) -> LiveTransaction:
        """`_current`, for those that can wait for the store."""
        return self._follow(await self._transactions.latest(self._live, closely=closely))

    def _follow(self, live: LiveTransaction) -> LiveTransaction:
        """Keep how the transaction stands; one that was given up here only once it has gone on, for who waits is told
        why."""
        known, was = self._look(), self._live
        if self._transactions.owns(known):
            self._live = known
        elif not was.given_up or was.was_taken or live.settled or live.state.epoch > was.state.epoch:
            self._live = live
        return live

    def _kept_state(self) -> LiveTransaction:
        """`_current`, unless nothing that is kept can be said.

        Raises:
            StoreError: it was given up here, and the store cannot be asked.
        """
        live = self._current()
        live.require_kept()
        return live

    def _is_certain(self) -> bool:
        """Whether how it stands now is known without asking the store; on any thread."""
        return self._transactions.is_certain(self._look())

    def about(self) -> dict[str, Any]:
        """The transaction's bounds and who waits for it here, as plain data: `priority` and `max_concurrency`; how many
        `scopes` (itself, and nested workflows) are bounded and have a hop that runs or waits; how many callers are
        `waiting` for its end; whether it runs `here`, in this process.
        """
        live = self._current(closely=False)
        limits = live.limits or TransactionLimits()
        return {
            "transaction": self.id,
            "workflow": self.workflow,
            "status": _status_of(live),
            "priority": limits.priority,
            "max_concurrency": limits.max_concurrency,
            "scopes": len(limits.scope_pools),
            "waiting": len(live.waiters),
            "here": self._transactions.owns(live),
        }

    def snapshot(self) -> dict[str, Any]:
        """The transaction's state in this process, for comparing with what its pulses say: `Saga.fold(tx.plan,
        tx.raw_pulses()).snapshot()`."""
        return self._kept_state().state.snapshot()

    async def result(self, timeout: float | None = None) -> R_co:
        """The value of the workflow's returning step, once the transaction has ended.

        Raises:
            WorkflowFailed: the transaction ended in another way than `completed`; `errors` has the original error
                first.
            TimeoutError: it has not ended within `timeout` seconds; it goes on.
            StoreError: its journal could not be written, or nobody here can see how it ends.
        """
        await self.ended(timeout)
        live = self._live
        if live.state.status == "completed":
            value: R_co = _value_of(live)
            return value
        raise await self._failure()

    async def ended(self, timeout: float | None = None) -> str:
        """Wait until nothing more happens by itself, and return the status; never raises for how it ended.

        A hop that waits lends to others what bounds it (its place in a pool, its transaction's `max_concurrency`, its
        thread), and takes it again, ahead of others, before this returns; of several waits at once, the last to end.

        Of a transaction that another process runs, this one learns it from the store, a quarter of a second later at
        most.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds; it goes on.
            StoreError: its journal could not be written, so that this process has given it up for now; or nobody here
                can carry it on, or see how it ends.
            InvalidInput: `timeout` is no number.
        """
        if timeout is not None and (not isinstance(timeout, int | float) or timeout != timeout):
            raise InvalidInput(f"timeout={shown(timeout)}; give a number of seconds, or None")
        self._live = live = self._look()
        if live.given_up or (live.settled and (self._has_ended or live.state.status != "completed")):
            now = await self._latest()
            self._transactions.require_gone_on(live, now)
            live = now
        if not live.settled:
            self._transactions.require_running(live.state.transaction)
            if timeout is None and LENDER.get() is None:
                await self._wait_settled()
            else:
                async with lend_permits(asyncio.get_running_loop()), asyncio.timeout(timeout):
                    await self._wait_settled()
        self._live.require_kept()
        self._has_ended = True
        return _status_of(self._live)

    async def _wait_settled(self) -> None:
        while not self._live.given_up or self._live.was_taken:
            if not self._transactions.owns(self._live):
                self._live = await self._transactions.wait_elsewhere(self.id)
            live = self._live
            if live.settled:
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            live.waiters.append(waiter)
            try:
                await waiter
            finally:
                if not waiter.done() or waiter.cancelled():
                    live.waiters = [other for other in live.waiters if other is not waiter]
            if not live.was_taken:
                return

    def value(self) -> R_co:
        """The result of a completed transaction, without waiting; None of one that has none, or not yet."""
        live = self._kept_state()
        value: R_co = _value_of(live)
        return value

    def results(self) -> dict[str, Any]:
        """Step → value of every step that is done, also when the transaction fails; None for skipped steps."""
        return {name: decode_token(token) for name, token in self._kept_state().state.results().items()}

    def progress(self) -> dict[str, Any]:
        """Step → data of its latest heartbeat, for the steps that run here now."""
        live = self._look()
        actors = [] if live.given_up else list(live.actors.values())
        return {actor.step.name: actor.progress for actor in actors if actor.progress is not None}

    def errors(self) -> list[BaseException]:
        """The errors so far: the original one first, then those of compensation and undo."""
        return self._errors_of(self._kept_state())

    def _errors_of(self, live: LiveTransaction) -> list[BaseException]:
        found: list[BaseException] = []
        for failed in live.state.errors:
            error = live.error_for(failed.hop, failed.fault)
            found += [error, *beside(failed.fault, error, live.plan.errors)]
        return found

    def faults(self) -> list[Fault]:
        """The errors so far, in the order of `errors`, as they were recorded."""
        return [failed.fault for failed in self._kept_state().state.errors]

    def pulses(self) -> list[Pulse]:
        """The pulses so far, with tokens as values."""
        return readable_pulses(self._live.plan, self.raw_pulses())

    def raw_pulses(self) -> Sequence[Pulse]:
        """The pulses as the journal has them.

        Raises:
            StoreError: the store does not have them any more, and they were not read before.
        """
        return at_once(self._journal(self._transactions.at_once))

    async def _journal(self, ask: AsyncStoreQueries | None = None) -> Sequence[Pulse]:
        """`raw_pulses`, of the store, or of whom to `ask`."""
        try:
            pulses = await self._transactions.pulses(self.id, ask)
        except BitActorError:
            if not self._kept:
                raise
            return list(self._kept)
        self._kept = tuple(pulses) if self._look().settled and len(pulses) <= KEPT_PULSES else ()
        return pulses

    async def cancel(self, reason: str = "") -> str:
        """Stop the transaction, undo what was done, and return the status it ended with.  Without effect if it has
        ended.

        Raises:
            Unroutable: another process runs the transaction; or it is halted, and only the release that began it can
                undo it.
            StoreError: it ran when this mesh was closed, or was given up here.
        """
        await begin_cancel(self, reason)
        return await self.ended()

    def request_cancel(self, reason: str = "") -> None:
        """Begin to `cancel` the transaction; does not wait for its end."""
        at_once(begin_cancel(self, reason, self._transactions.at_once))

    async def resume(self) -> None:
        """Let a halted or stuck transaction go on.

        Raises:
            InvalidInput: the transaction is neither halted nor stuck.
            Unroutable: it began in another shape of its workflow, and only the release that declares that one can carry
                it on.
        """
        status = _status_of(await self._latest(closely=False))
        if status not in ("halted", "stuck"):
            raise InvalidInput(f"transaction {self.id} is {status}; only a halted or stuck one can be resumed")
        self._live = await self._transactions.resume(self._live)

    async def undo(self, reason: str = "") -> str:
        """Take back what a completed transaction did, last first, once; return the status it ended with: `compensated`,
        or `stuck`.

        Its undo time begins afresh, and its deadline does not count.

        Raises:
            InvalidInput: the transaction runs, did not complete, or was undone already.
            Unroutable: it began in another shape of its workflow, and only the release that declares that one can undo
                it.
        """
        await begin_undo(self, reason)
        return await self.ended()

    async def _failure(self) -> WorkflowFailed:
        state = self._live.state
        hint = f" [transaction {self.id}; `bitactor trace {self.id}` shows what happened]"
        pulses: Sequence[Pulse] = ()
        if not state.errors:  # the pulses say why it halted
            with suppress(BitActorError):
                pulses = await self._journal()
        return failure_of(state, self._errors_of(self._live), pulses, hint)


def _status_of(live: LiveTransaction) -> str:
    return live.state.status if live.settled else "running"


def _value_of(live: LiveTransaction) -> Any:
    return decode_token(live.state.result()) if live.settled else None


def _asked_for(reason: Any, otherwise: str) -> Fault:
    """The fault of a transaction that somebody cancels, or takes back; its reason as a journal can keep it."""
    if reason is not None and not isinstance(reason, str):
        raise InvalidInput(f"reason={shown(reason)}; give a text")
    return Fault("bitactor.errors:Cancelled", utf8_safe(exact_text(reason or otherwise)))


async def begin_cancel(transaction: Transaction, reason: Any, ask: AsyncStoreQueries | None = None) -> None:
    """Begin to cancel a transaction; its end is another matter.  `ask`: whom, instead of the store."""
    fault = _asked_for(reason, "cancelled on request")
    transaction._live = await transaction._transactions.cancel(transaction._live, fault, ask)


async def begin_undo(transaction: Transaction, reason: Any = "") -> None:
    """Begin to take a transaction back; its end is another matter."""
    fault = _asked_for(reason, "undone on request")
    if _status_of(await transaction._latest(closely=False)) == "running":
        raise InvalidInput(
            f"transaction {transaction.id} is running; only a completed one can be undone; cancel takes it back"
        )
    transaction._live = await transaction._transactions.undo(transaction._live, fault)


async def standing_of(transaction: Transaction) -> tuple[str, bool]:
    """A transaction's status, and whether it runs in this process."""
    live = await transaction._latest(closely=False)
    return _status_of(live), transaction._transactions.owns(live)


async def why_not_here(transaction: Transaction) -> BitActorError:
    """Why a transaction that runs, and not in this process, cannot be changed here."""
    transactions = transaction._transactions
    return transactions.not_here(transaction.id, (await transactions.row(transaction.id)).owner)


async def pulses_of(transaction: Transaction) -> list[Pulse]:
    """`Transaction.pulses`, for those that can wait for the store."""
    return readable_pulses(transaction.plan, await transaction._journal())


async def transaction_as_plain(transaction: Transaction) -> dict[str, Any]:
    """How a transaction stands, with its result, its errors or why it halted, as they were recorded: the same whether
    it is looked at live or from the store."""
    live = await transaction._latest()
    live.require_kept()
    status = _status_of(live)
    about: dict[str, Any] = {
        "transaction": transaction.id,
        "root": transaction.root,
        "workflow": transaction.workflow,
        "status": status,
    }
    if status == "completed":
        about["result"] = _value_of(live)
    if errors := errors_as_plain(live.state):
        about["errors"] = errors
    if status == "halted":
        with suppress(BitActorError):  # its journal cannot be read now
            about["halt"] = halt_as_plain(await transaction._journal())
    return about
