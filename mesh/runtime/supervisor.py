"""The supervisor: owns transactions, keeps their pulses, has their commands obeyed.

Everything happens in *turns* on the loop's thread.  A turn gives what has come in to the sagas, appends the pulses that
follow in one commit, and only then obeys the commands; hops that finish while being dispatched are dealt with in the
same turn.  Append, then obey.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bitactor.errors import BitActorError, DuplicateTransaction, StaleOwner, StoreError
from bitactor.messages.pulse import RUNNING, Pulse
from bitactor.messages.signal import Reply
from bitactor.plan.plan import Plan
from bitactor.ports import Clock, Refusal, Store, Write
from bitactor.saga import Accept, Command, Lost, Recovered, Replied, SagaState
from mesh.hops.executor import Executor
from mesh.hops.ports import ENDED, QUEUED, Actor
from mesh.limits.pools import Pools
from mesh.limits.timing_wheel import TimingWheel
from mesh.runtime.admission import DELIVERY_ENDS, Admission
from mesh.runtime.live import HopPermits, LiveTransaction
from mesh.runtime.obey import CommandHandler
from registry.support.log_throttle import LogThrottle

logger = logging.getLogger("bitactor.supervisor")

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the tuples that every hop needs."""

TURN_BUDGET_NS = 5_000_000
"""Nanoseconds after which a turn gives the loop back, so that sockets and timers are served."""

Order = tuple[LiveTransaction, list[Pulse], list[Command], int]
"""What a transaction reacted with, and which write of the append its pulses are (-1: none)."""


class Supervisor:
    """The owner of all transactions of this process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        wheel: TimingWheel,
        store: Store,
        executor: Executor,
        pools: Pools,
        on_pulses: Callable[[Sequence[Pulse]], None] | None,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.store = store
        self.pools = pools
        self.synchronous_store = store.synchronous
        """Whether an append is done when the call returns, so that waiting to share a commit is not worth it."""
        self._executor = executor
        self._on_pulses = on_pulses
        self.transactions: dict[str, LiveTransaction] = {}
        """Id → open transaction; emitted signals may still be on their way after the rest has settled."""
        self.running_count = 0
        self.on_takeover: list[Callable[[Sequence[Pulse]], None]] = []
        """Who is told of the journal of a transaction that is taken over."""
        self.on_settled: list[Callable[[LiveTransaction], None]] = []
        self.healthy = True
        self.failures = 0
        """How many appends have failed."""
        self.park: Callable[[str, BaseException], None] = lambda transaction, error: None
        """Told of a transaction that was given up for a fault of its own, and of the fault."""
        self.on_fenced: Callable[[StaleOwner], None] = lambda error: None
        """Told when a write was refused because another process has all that runs here."""
        self._unwritten = LogThrottle(logger)
        self._keys: dict[tuple[str, str], LiveTransaction] = {}
        self._events: deque[tuple[LiveTransaction, Any]] = deque()
        self._being_written: deque[list[Order]] = deque()
        """What the store has not answered yet; those it has answered since are empty."""
        self._scheduled = False
        self._turning = False
        self._refusals: tuple[Sequence[Refusal], BaseException | None] | None = None
        self.admission = Admission(loop, pools, self._launch)
        self.commands = CommandHandler(
            loop, clock, wheel, executor, self.admission,
            enqueue=self.enqueue, hop_done=self._hop_done, settled=self._notify_settled,
        )  # fmt: skip

    @property
    def keyed(self) -> int:
        """How many open transactions have an idempotency key."""
        return len(self._keys)

    def is_being_written(self, live: LiveTransaction) -> bool:
        """Whether what a transaction's state says need not be kept yet; on any thread."""
        return any(order[0] is live for orders in list(self._being_written) for order in list(orders))

    # Coming in

    async def find(self, workflow: str, key: str) -> LiveTransaction | str | None:
        """The transaction that has an idempotency key: the open one, or the id of one that is only in the store.  If it
        is None, the key is free here until the caller awaits something else."""
        live = self._keys.get((workflow, key))
        if live is not None:
            return live
        transaction = await self.store.find(workflow, key)
        live = self._keys.get((workflow, key))  # it may have begun while the store was asked
        if live is not None:
            return live
        return None if transaction is None else self.transactions.get(transaction, transaction)

    def accept(self, live: LiveTransaction, event: Accept, now_ns: int) -> None:
        """Begin a transaction at `now_ns` of its time; `live.accepted`, if there is one, is resolved once its
        `accepted` pulse is durable."""
        self._own(live)
        if live.key:
            self._keys[live.plan.workflow, live.key] = live
        if not self.synchronous_store or self._turning:
            self.enqueue(live, event)
            return
        # Kept now, without waiting for the next turn; its commands are still obeyed there, outside of any task.
        state = live.state
        pulses, commands = live.saga.react(event, now_ns)
        write = _write_of(state, pulses, state.open, live.key)
        self._refusals = None
        self.store.append((write,), self._note_refusals)
        order = [(live, pulses, commands, 0)]
        refusals, error = self._refusals or ((), None)
        if refusals:
            self._appended(order, refusals, error)  # now, for who has begun it may have to look for another
        else:
            self.loop.call_soon(self._turn, partial(self._appended, order, refusals, error))

    def recover(self, plan: Plan, pulses: Sequence[Pulse], owner: str, epoch: int, *, given_back: bool = False) -> None:
        """Take over a transaction from its journal; `given_back`: its owner ended in order."""
        live = LiveTransaction.fold(plan, pulses)
        live.continue_time(self.clock, pulses[-1].at_ns)
        for tell in self.on_takeover:
            tell(pulses)
        live.settled = False
        self._own(live)
        self.commands.revoke_in_flight(live)
        # Who has not written that it took over has run nothing of it: the owner before that one did, and may have died.
        given_back = given_back and live.state.epoch == epoch - 1
        self.enqueue(live, Recovered(owner, epoch, given_back))

    def reopen(self, live: LiveTransaction, since_ns: int, *, stays_settled: bool = False) -> None:
        """Let a settled transaction go on, whose latest pulse is of `since_ns`; `stays_settled`: only with a signal
        that it has emitted."""
        if stays_settled and live.settled and live.state.transaction not in self.transactions:
            live.continue_time(self.clock, since_ns)
            self.transactions[live.state.transaction] = live
        elif live.settled and not stays_settled:
            live.continue_time(self.clock, since_ns)
            live.settled = False
            self._own(live)

    def _own(self, live: LiveTransaction) -> None:
        self.transactions[live.state.transaction] = live
        self.running_count += 1
        if self.pools.with_nested_limits:
            self.admission.register(live)

    def enqueue(self, live: LiveTransaction, event: Any, *, first: bool = False) -> None:
        """Take an event of a transaction; `first`: ahead of what else has come in.  On the loop's thread only."""
        if live.limits is not None and type(event) in DELIVERY_ENDS:
            self.admission.delivery_ended(live, event)
        if first:
            self._events.appendleft((live, event))
        else:
            self._events.append((live, event))
        if not self._turning:
            self._schedule()

    def _hop_done(self, live: LiveTransaction, actor: Actor, reply: Reply, error: BaseException | None) -> None:
        index = actor.step.index
        if reply.outcome == "ok":
            self._events.append((live, _new(Replied, (index, reply, actor.holder))))
        elif reply.outcome == "lost":
            if reply.hop in (live.state.hops[index], live.state.undo_hop(index)):
                self._events.append((live, Lost(index, reply.delivery, reply.reason or "worker", hop=reply.hop)))
        else:
            if error is not None:
                live.errors.setdefault(reply.hop, error)
            self._events.append((live, Replied(index, reply, actor.holder)))
        if live.actors.get(index) is actor and actor.state == ENDED:
            del live.actors[index]
        if not self._turning:
            self._schedule()

    # Turning

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self, first: Callable[[], None] | None = None) -> None:
        """Take a turn, which begins with `first`."""
        self._scheduled = False
        self._turning = True
        try:
            if first is not None:
                first()
            now_ns = self.clock.monotonic_ns()
            if self.synchronous_store:
                self._react_singly(now_ns)
            else:
                until = now_ns + TURN_BUDGET_NS
                while self._events and now_ns <= until:
                    self._react_in_batch(now_ns)
                    now_ns = self.clock.monotonic_ns()
        finally:
            self._turning = False
            if self._events:
                self._schedule()

    def _react_singly(self, now_ns: int) -> None:
        """Give the sagas their events, keep and obey what follows of each, for a store that keeps at once: there is no
        commit to share."""
        # What it is worth to have this beside `_react_in_batch`: docs/decisions/0021-two-ways-through-a-turn.md
        events, store, executor, monotonic_ns = self._events, self.store, self._executor, self.clock.monotonic_ns
        until = now_ns + TURN_BUDGET_NS
        while events and now_ns <= until:
            live, event = events.popleft()
            if live.failure is not None:
                continue
            state = live.state
            try:
                pulses, commands = live.saga.react(event, now_ns + live.offset_ns)
            except Exception as error:
                self._relinquish(live, error)
                continue
            is_open = state.phase is RUNNING or state.open
            if pulses:
                key = live.key
                if key and pulses[0].seq:
                    key = ""
                self._refusals = None
                store.append((_write_of(state, pulses, is_open, key),), self._note_refusals)
                if self._refusals is not None:
                    self._appended([(live, pulses, commands, 0)], *self._refusals)
                    continue
            self._obey(live, pulses, commands, is_open)
            if events:  # a hop that has replied meanwhile has looked at the clock, which is dear
                replied_ns = executor.replied_ns
                now_ns = replied_ns if replied_ns > now_ns else monotonic_ns()

    def _note_refusals(self, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        if refusals or error is not None:
            self._refusals = (refusals, error)

    def _react_in_batch(self, now_ns: int) -> None:
        """Give the sagas all that has come in, keep what follows in one commit, then obey."""
        events = self._events
        writes: list[Write] = []
        orders: list[Order] = []
        while events:
            live, event = events.popleft()
            if live.failure is not None:
                continue
            state = live.state
            try:
                pulses, commands = live.saga.react(event, now_ns + live.offset_ns)
            except Exception as error:
                self._relinquish(live, error)
                continue
            if pulses:
                orders.append((live, pulses, commands, len(writes)))
                key = live.key if pulses[0].seq == 0 else ""
                writes.append(_write_of(state, pulses, state.open, key))
            elif commands:
                orders.append((live, pulses, commands, -1))
        if writes:
            self.store.append(writes, partial(self._appended, orders))
            if orders:
                while self._being_written and not self._being_written[0]:
                    self._being_written.popleft()
                self._being_written.append(orders)
        elif orders:
            self._appended(orders, (), None)

    def _launch(self, granted: list[HopPermits]) -> None:
        self._turn(partial(self._dispatch, granted))

    def _dispatch(self, granted: list[HopPermits]) -> None:
        """Begin the hops that had to wait for these permits."""
        for permits in granted:
            live, command = permits.live, permits.command
            if command is None or live.failure is not None:
                continue
            permits.command = None
            try:
                self.commands.dispatch(live, command, None if permits.is_transaction_permit else permits)
            except Exception as error:  # as in `_obey`
                self._relinquish(live, error)

    def _appended(self, orders: list[Order], refusals: Sequence[Refusal], error: BaseException | None) -> None:
        """Obey the orders whose pulses are durable, and deal with the refused ones."""
        if error is not None:
            self.healthy = False
            self.failures += 1
            if isinstance(error, StaleOwner):
                self.on_fenced(error)
            else:
                text = "the journal could not be written: %s; giving up %d transactions here"
                self._unwritten.log(logging.CRITICAL, self.clock.monotonic_ns(), text, error, len(orders))
            for live, pulses, *_ in orders:  # who stimulates is told, and may do so again and again
                self._relinquish(live, error, expected=bool(pulses) and pulses[0].seq == 0, parks=False)
            orders.clear()
            return
        refused = {refusal.index: refusal.error for refusal in refusals} if refusals else None
        for live, pulses, commands, index in orders:
            if refused is not None and index in refused:
                self._relinquish(live, refused[index])
            else:
                self._obey(live, pulses, commands, live.state.open)
        orders.clear()
        if self._events and not self._turning:
            self._schedule()

    def _obey(self, live: LiveTransaction, pulses: list[Pulse], commands: list[Command], is_open: bool) -> None:
        if self._on_pulses is not None and pulses:
            self._on_pulses(pulses)
        if live.accepted is not None:
            if not live.accepted.done():
                live.accepted.set_result(None)
            live.accepted = None
        if live.failure is not None:
            return
        try:
            obey = self.commands.obey
            for command in commands:
                obey[type(command)](live, command)
        except Exception as error:  # ours, not the user's: other transactions must not suffer for it
            self._relinquish(live, error)
        if not is_open:
            self._remove(live)

    def relinquish_all(self, error: StoreError) -> int:
        """Give up all that runs here, for another process has it, or nobody can write it; returns how many had not
        settled.  Whoever waits for the outcome of a write that is under way still learns it."""
        self._abandon_queued()
        transactions = list(self.transactions.values())
        unsettled = sum(not live.settled for live in transactions)
        for live in transactions:
            self._relinquish(live, error, expected=True, tells=live.state.seq == 0)
        return unsettled

    def _abandon_queued(self) -> None:
        """Drop the hops that have not started, before permits become free, or they would start then."""
        for live in self.transactions.values():
            for actor in list(live.actors.values()):
                if actor.state == QUEUED:
                    actor.abandon()

    def _relinquish(
        self,
        live: LiveTransaction,
        error: BaseException,
        *,
        expected: bool = False,
        parks: bool = True,
        tells: bool = True,
    ) -> None:
        """Give up a transaction that this process can say nothing more about; its journal is what holds.

        `expected`: it is nothing to be logged.  `parks`: the fault is its own, so that it is not taken up again here.
        `tells`: who waits for it to be accepted is told that it was not.
        """
        if tells and live.accepted is not None:
            if not live.accepted.done():
                live.accepted.set_exception(_failure_of(live, error))
            live.accepted = None
        if live.failure is not None:
            return
        if not expected and not isinstance(error, DuplicateTransaction | StaleOwner):
            logger.error(
                "transaction %s of %s is given up here: %s",
                live.state.transaction,
                live.plan.workflow,
                error,
                exc_info=error,
            )
            if parks:
                self.park(live.state.transaction, error)
        was_running = not live.settled
        live.failure = _failure_of(live, error)
        live.fail_resent(live.failure)
        live.disarm()
        for actor in list(live.actors.values()):
            actor.fence()
        self.admission.release_all(live)
        self._remove(live)
        if was_running:
            self._notify_settled(live)

    def _remove(self, live: LiveTransaction) -> None:
        if self.transactions.get(live.state.transaction) is live:
            del self.transactions[live.state.transaction]
        if live.key and self._keys.get((live.plan.workflow, live.key)) is live:
            del self._keys[live.plan.workflow, live.key]

    def _notify_settled(self, live: LiveTransaction) -> None:
        """Wake who waits for a transaction that has settled or is relinquished, and release its permits."""
        self.running_count -= 1
        for waiter in live.waiters:
            if not waiter.done():
                waiter.set_result(None)
        live.waiters.clear()
        for listener in self.on_settled:
            listener(live)
        self.admission.release_all(live)

    def close(self) -> None:
        """Stop all hops that run here; what has not settled is still in the journal, and its waiters are told."""
        self._abandon_queued()
        for live in list(self.transactions.values()):
            error = StoreError(f"transaction {live.state.transaction} was still running when its mesh was closed")
            live.fail_resent(error)
            if not live.settled:
                self._relinquish(live, error, expected=True)
        self.transactions.clear()
        self._events.clear()


def _failure_of(live: LiveTransaction, error: BaseException) -> BitActorError:
    """What whoever waits for a transaction that was given up is told."""
    return error if isinstance(error, BitActorError) else StoreError(f"transaction {live.state.transaction}: {error!r}")


def _write_of(state: SagaState, pulses: Sequence[Pulse], is_open: bool, key: str) -> Write:
    """What the store is to keep of a transaction's turn; built without the class's call, for each hop has one."""
    write: Write = _new(
        Write, (state.transaction, state.epoch, pulses, state.status, is_open, key, state.dead, 0, False, (), 0)
    )
    return write
