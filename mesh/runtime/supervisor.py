"""The supervisor: owns transactions, keeps their pulses, obeys their commands.

Everything happens in *turns* on the loop's thread.  A turn gives what has come in to the sagas, appends the pulses that
follow in one commit, and only then obeys the commands; hops that finish while being dispatched are dealt with in the
same turn.  Append, then obey.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from bitactor.errors import (
    BitActorError,
    Cancelled,
    ConfigurationError,
    DuplicateTransaction,
    InvalidInput,
    StaleOwner,
    StoreError,
)
from bitactor.messages.codec import decode_token
from bitactor.messages.faults import error_of, fault_of
from bitactor.messages.ids import join_hop_id
from bitactor.messages.pulse import RUNNING, Pulse
from bitactor.messages.signal import UNDO, Fault, Reply, Signal
from bitactor.plan.arguments import BoundArguments, RawArguments, argument_values
from bitactor.plan.plan import Plan, PlanStep
from bitactor.ports import Clock, Refusal, Store, Write
from bitactor.saga import (
    Accept,
    AnswerProceed,
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    CancelHop,
    Command,
    DeadlineExpired,
    Deliver,
    Dispatch,
    Evaluate,
    Evaluated,
    GraceExpired,
    Lost,
    Proceeded,
    Recovered,
    Replied,
    RetryDue,
    Saga,
    Settle,
)
from bitactor.saga.evaluate import evaluate, signal_of
from bitactor.saga.phases import COMPENSATING, UNDO_RUNNING
from mesh.hops.executor import Executor
from mesh.hops.ports import ENDED, QUEUED, Actor
from mesh.limits.pools import Pools, lend_permits
from mesh.limits.timing_wheel import Timer, TimingWheel
from mesh.runtime.admission import DELIVERY_ENDS, Admission
from mesh.runtime.live import HopPermits, LiveTransaction
from mesh.runtime.ports import EmissionDelivery, Router

logger = logging.getLogger("bitactor.supervisor")

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the tuples that every hop needs."""

TURN_BUDGET_NS = 5_000_000
"""Nanoseconds after which a turn gives the loop back, so that sockets and timers are served."""


class Supervisor:
    """The owner of all transactions of this process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        wheel: TimingWheel,
        store: Store,
        executor: Executor,
        *,
        on_pulses: Callable[[Sequence[Pulse]], None] | None = None,
        pools: Pools | None = None,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.wheel = wheel
        self.store = store
        self.executor = executor
        self.synchronous_store = store.synchronous
        """Whether an append is done when the call returns, so that waiting to share a commit is not worth it."""
        self.on_pulses = on_pulses
        self.router: Router | None = None
        self.runs_here: Callable[[PlanStep], bool] = lambda step: True
        self.emissions: EmissionDelivery | None = None
        self.transactions: dict[str, LiveTransaction] = {}
        """Id → open transaction; emitted signals may still be on their way after the rest has settled."""
        self.running_count = 0
        self.on_settled: list[Callable[[LiveTransaction], None]] = []
        self.healthy = True
        self._events: deque[tuple[LiveTransaction, Any]] = deque()
        self._scheduled = False
        self._turning = False
        self._refusals: tuple[Sequence[Refusal], BaseException | None] | None = None
        self.pools = pools or Pools({})
        self.admission = Admission(loop, self.pools, self._dispatch_acquired)
        self._keys: dict[tuple[str, str], LiveTransaction] = {}

    @property
    def keyed(self) -> int:
        """How many open transactions have an idempotency key."""
        return len(self._keys)

    # Coming in

    def find(self, workflow: str, key: str) -> LiveTransaction | str | None:
        """The transaction that has an idempotency key: the open one, or the id of one that is only in the store."""
        live = self._keys.get((workflow, key))
        if live is not None:
            return live
        transaction = self.store.find(workflow, key)
        return None if transaction is None else self.transactions.get(transaction, transaction)

    def accept(self, live: LiveTransaction, event: Accept) -> None:
        """Begin a transaction; `live.accepted`, if there is one, is resolved once its `accepted` pulse is durable."""
        self.transactions[live.state.transaction] = live
        self.running_count += 1
        if self.pools.with_nested_limits:
            self.admission.register(live)
        if live.key:
            self._keys[live.plan.workflow, live.key] = live
        if self.synchronous_store and not self._turning:
            self._accept_synchronously(live, event)
        else:
            self.enqueue(live, event)

    def recover(self, plan: Plan, pulses: Sequence[Pulse], owner: str, epoch: int) -> LiveTransaction:
        """Take over a transaction from its journal."""
        data = pulses[0].data or {}
        live = LiveTransaction(Saga.fold(plan, pulses), data.get("key", ""), data)
        self.transactions[live.state.transaction] = live
        self.running_count += 1
        self.admission.register(live)
        live.settled = False
        self.enqueue(live, Recovered(owner, epoch))
        return live

    def enqueue(self, live: LiveTransaction, event: Any, *, first: bool = False) -> None:
        """Take an event of a transaction; `first`: ahead of what else has come in.  On the loop's thread only."""
        if live.limits is not None and type(event) in DELIVERY_ENDS:
            self.admission.delivery_ended(live, event)
        if first:
            self._events.appendleft((live, event))
        else:
            self._events.append((live, event))
        if not self._scheduled and not self._turning:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _hop_done(self, live: LiveTransaction, actor: Actor, reply: Reply, error: BaseException | None) -> None:
        index = actor.step.index
        if reply.outcome == "ok":
            self._events.append((live, _new(Replied, (index, reply))))
        elif reply.outcome == "lost":
            if reply.hop in (live.state.hops[index], live.state.undo_hop(index)):
                self._events.append((live, Lost(index, reply.delivery, reply.reason or "worker")))
        else:
            if error is not None:
                live.errors.setdefault(reply.hop, error)
            self._events.append((live, Replied(index, reply)))
        if live.actors.get(index) is actor and actor.state == ENDED:
            del live.actors[index]
        if not self._scheduled and not self._turning:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _limited_hop_done(
        self, live: LiveTransaction, permits: HopPermits, actor: Actor, reply: Reply, error: BaseException | None
    ) -> None:
        if actor.state == ENDED:
            self.admission.release(permits)
        else:
            self.admission.release_soon(permits)
        self._hop_done(live, actor, reply, error)

    # Turning

    def _turn(self) -> None:
        self._scheduled = False
        self._turning = True
        events = self._events
        try:
            if self.synchronous_store:
                self._react_synchronously()
            else:
                until = self.clock.monotonic_ns() + TURN_BUDGET_NS
                while events:
                    self._react_in_batch()
                    if self.clock.monotonic_ns() > until:
                        break
        finally:
            self._turning = False
            if events and not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._turn)

    def _react_synchronously(self) -> None:
        """Take a turn with a store that keeps at once: no commit to share, so nothing to collect first."""
        events, store, wall_ns = self._events, self.store, self.clock.wall_ns
        until = wall_ns() + TURN_BUDGET_NS
        while events:
            live, event = events.popleft()
            if live.failure is not None:
                continue
            state = live.state
            now_ns = wall_ns()
            try:
                pulses, commands = live.saga.react(event, now_ns)
            except Exception as error:
                self._relinquish(live, error)
                continue
            if pulses:
                key = live.key if pulses[0].seq == 0 else ""
                self._refusals = None
                store.append(
                    (_new(Write, (state.transaction, state.epoch, pulses, state.status, state.open, key)),),
                    self._note_refusals,
                )
                if self._refusals is not None:
                    self._appended([(live, pulses, commands, 0)], *self._refusals)
                    continue
            self._obey(live, pulses, commands)
            if now_ns > until:
                break

    def _note_refusals(self, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        if refusals or error is not None:
            self._refusals = (refusals, error)

    def _react_in_batch(self) -> None:
        """Take a turn: collect the pulses that follow from all events, keep them in one commit, then obey."""
        events = self._events
        now_ns = self.clock.wall_ns()
        writes: list[Write] = []
        orders: list[tuple[LiveTransaction, list[Pulse], list[Command], int]] = []
        while events:
            live, event = events.popleft()
            if live.failure is not None:
                continue
            state = live.state
            try:
                pulses, commands = live.saga.react(event, now_ns)
            except Exception as error:
                self._relinquish(live, error)
                continue
            if pulses:
                orders.append((live, pulses, commands, len(writes)))
                key = live.key if pulses[0].seq == 0 else ""
                writes.append(_new(Write, (state.transaction, state.epoch, pulses, state.status, state.open, key)))
            elif commands:
                orders.append((live, pulses, commands, -1))
        if writes:
            self.store.append(writes, partial(self._appended, orders))
        elif orders:
            self._appended(orders, (), None)

    def _accept_synchronously(self, live: LiveTransaction, event: Accept) -> None:
        """Accept a transaction without waiting for the next turn; its commands are still obeyed there, outside of any
        task."""
        state = live.state
        pulses, commands = live.saga.react(event, self.clock.wall_ns())
        write = Write(state.transaction, state.epoch, pulses, state.status, state.open, live.key)
        orders = [(live, pulses, commands, 0)]
        self.store.append((write,), lambda refusals, error: self._appended_synchronously(orders, refusals, error))

    def _appended_synchronously(self, orders: Any, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        self.loop.call_soon(self._obey_later, orders, refusals, error)

    def _obey_later(self, orders: Any, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        self._turning = True
        try:
            self._appended(orders, refusals, error)
        finally:
            self._turning = False
        if self._events:
            self._turn()

    def _appended(self, orders: Any, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        """Obey the orders whose pulses are durable, and deal with the refused ones."""
        if error is not None:
            self._append_failed(orders, error)
            return
        refused = {refusal.index: refusal.error for refusal in refusals} if refusals else None
        for live, pulses, commands, index in orders:
            if refused is not None and index in refused:
                self._relinquish(live, refused[index])
            else:
                self._obey(live, pulses, commands)
        if self._events and not self._turning and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _obey(self, live: LiveTransaction, pulses: list[Pulse], commands: list[Command]) -> None:
        if self.on_pulses is not None and pulses:
            self.on_pulses(pulses)
        if live.accepted is not None:
            if not live.accepted.done():
                live.accepted.set_result(None)
            live.accepted = None
        if live.failure is not None:
            return
        try:
            for command in commands:
                if type(command) is Dispatch:
                    self._dispatch(live, command)
                else:
                    _OBEY[type(command)](self, live, command)
        except Exception as error:  # ours, not the user's: other transactions must not suffer for it
            self._relinquish(live, error)
        if not live.state.open:
            self._remove(live)

    def _append_failed(self, orders: Any, error: BaseException) -> None:
        self.healthy = False
        logger.critical("the journal could not be written: %s; giving up %d transactions here", error, len(orders))
        for live, _, _, _ in orders:
            self._relinquish(live, error)

    def _relinquish(self, live: LiveTransaction, error: BaseException) -> None:
        """Give up a transaction that this process can say nothing more about; its journal is what holds."""
        if live.failure is not None:
            return
        if not isinstance(error, DuplicateTransaction | StaleOwner):
            logger.error(
                "transaction %s of %s is given up here: %s",
                live.state.transaction,
                live.plan.workflow,
                error,
                exc_info=error,
            )
        was_running = not live.settled
        live.settled = True
        live.failure = (
            error
            if isinstance(error, BitActorError)
            else StoreError(f"transaction {live.state.transaction}: {error!r}")
        )
        self._disarm(live)
        for actor in list(live.actors.values()):
            actor.fence()
        self.admission.release_all(live)
        self._remove(live)
        if live.accepted is not None and not live.accepted.done():
            live.accepted.set_exception(live.failure)
            live.accepted = None
        if was_running:
            self._notify_settled(live)

    def _remove(self, live: LiveTransaction) -> None:
        if self.transactions.get(live.state.transaction) is live:
            del self.transactions[live.state.transaction]
        if live.key and self._keys.get((live.plan.workflow, live.key)) is live:
            del self._keys[live.plan.workflow, live.key]

    # Obeying

    def _dispatch(self, live: LiveTransaction, command: Dispatch, permits: HopPermits | None = None) -> None:
        index, direction, fault = command
        plan = live.plan
        state = live.state
        step = state.steps[index]
        limits = live.limits
        if (step.limit is not None or (limits is not None and limits.every_hop)) and permits is None:
            permits = self._acquire_permits(live, step, command)
            if permits is None:
                return
        signal = signal_of(state, step, direction, fault)
        evaluated = state.evaluated.get(index) if step.needs_evaluation else None
        result = state.own_result(index) if direction is UNDO and index not in state.steps_in_doubt else None
        if self.router is not None and not step.is_local_only and not self.runs_here(step):
            self._dispatch_remotely(live, step, signal, evaluated, result)
            return
        if live.done is None:
            live.done = partial(self._hop_done, live)
        if step.around_container is not None:
            self._attach(live, step, signal)
        arguments: Any = _new(
            RawArguments if step.takes_raw_arguments else BoundArguments,
            (step.arguments, state.tokens, step.address, evaluated),
        )
        done = live.done if permits is None else partial(self._limited_hop_done, live, permits)
        actor = self.executor.launch(plan, step, signal, arguments, result, done, permits)
        if actor.state != ENDED:
            live.actors[index] = actor

    def _dispatch_remotely(
        self, live: LiveTransaction, step: PlanStep, signal: Signal, evaluated: Mapping[str, Any] | None, result: Any
    ) -> None:
        assert self.router is not None
        try:
            values = argument_values(step.arguments, live.state.tokens, step.address, evaluated)
        except InvalidInput as error:
            self._fail_unstarted(live, step.index, signal.direction, error)
        else:
            self.router.dispatch(live, step, signal, values, result)

    def _fail_unstarted(
        self, live: LiveTransaction, index: int, direction: str, error: BaseException, fault: Fault | None = None
    ) -> None:
        """Fail a hop that cannot even begin; `fault` is what its compensation was to be asked about."""
        state = live.state
        hop = state.undo_hop(index) if direction is UNDO else state.hops[index]
        live.errors[hop] = error
        reply = Reply(
            state.transaction, hop, state.deliveries[index], state.epoch, "fail", fault=fault or fault_of(error)
        )
        self.enqueue(live, Replied(index, reply))

    def _acquire_permits(self, live: LiveTransaction, step: PlanStep, command: Dispatch) -> HopPermits | None:
        try:
            return self.admission.acquire(live, step, command)
        except (
            ConfigurationError
        ) as error:  # a step that was planned meanwhile; for declared ones the mesh was not made
            self._fail_unstarted(live, step.index, command.direction, error)
            return None

    def _dispatch_acquired(self, granted: list[HopPermits]) -> None:
        self._turning = True
        try:
            for permits in granted:
                live, command = permits.live, permits.command
                if command is None or live.failure is not None:
                    continue
                permits.command = None
                try:
                    self._dispatch(live, command, None if permits.is_transaction_permit else permits)
                except Exception as error:  # as in `_obey`
                    self._relinquish(live, error)
        finally:
            self._turning = False
        if self._events:
            self._turn()

    def _evaluate(self, live: LiveTransaction, command: Evaluate) -> None:
        """Ask the step's user code, once, and enqueue its answer, which is recorded."""
        state = live.state
        step = state.steps[command.step]
        try:
            evaluated = evaluate(state, command.step)
        except BaseException as error:
            live.errors[join_hop_id(state.salt, step.forward_code)] = error
            fault = fault_of(error)
            self.enqueue(
                live,
                Evaluated(
                    command.step, True, None, fault._replace(message=f"deciding on {step.address!r}: {fault.message}")
                ),
            )
        else:
            self.enqueue(live, evaluated)

    def _arm_retry(self, live: LiveTransaction, command: ArmRetry) -> None:
        index = command.step
        live.retry_timers[index] = self._timer(command.due_ns, lambda: self._retry_due(live, index))

    def _retry_due(self, live: LiveTransaction, index: int) -> None:
        live.retry_timers.pop(index, None)
        self.enqueue(live, RetryDue(index))

    def _arm_grace(self, live: LiveTransaction, command: ArmGrace) -> None:
        due_ns = self.clock.wall_ns() + command.after_ns
        live.grace_timer = self._timer(due_ns, lambda: self.enqueue(live, GraceExpired()))

    def _arm_deadline(self, live: LiveTransaction, command: ArmDeadline) -> None:
        if live.deadline_timer is not None:
            live.deadline_timer.cancel()
            live.deadline_timer = None
        if command.due_ns is not None:
            forward = command.due_ns == live.state.deadline_ns
            live.deadline_timer = self._timer(command.due_ns, lambda: self._deadline_expired(live, forward))

    def _deadline_expired(self, live: LiveTransaction, forward: bool) -> None:
        """Enqueue the expiry ahead of all other events: a hop that ran into this deadline is told of in the same
        moment, and is not the reason."""
        live.deadline_timer = None
        state = live.state
        if forward and state.phase in ("failing", "undoing"):
            return  # that deadline has been replaced by the one for undo, which is about to be armed
        seconds = (self.clock.wall_ns() - state.accepted_at_ns) / 1e9
        what = "undoing" if state.phase in ("failing", "undoing") else "running"
        fault = Fault(
            "bitactor.errors:DeadlineExceeded",
            f"{live.plan.workflow!r} was still {what} {seconds:.3g} s after it began",
        )
        self.enqueue(live, DeadlineExpired(fault), first=True)

    def _timer(self, due_wall_ns: int, callback: Callable[[], None]) -> Timer:
        return Timer(self.wheel, self.clock.monotonic_ns() + due_wall_ns - self.clock.wall_ns(), callback)

    def _abandon(self, live: LiveTransaction, command: CancelHop) -> None:
        index = command.step
        waiting = self.admission.withdraw(live, index)
        if waiting is not None:
            error = Cancelled(f"{live.state.steps[index].address!r} was stopped before it had started")
            self._fail_unstarted(live, index, waiting.direction, error, waiting.fault)
            return
        actor = live.actors.get(index)
        reply_awaited = live.state.states[index] in _REPLY_AWAITED
        if actor is not None and reply_awaited:
            if actor.task is not None:
                self.admission.release_lent(live, index)
            actor.abandon()
        elif actor is not None:
            actor.fence()
        elif self.router is not None:
            self.router.abandon(live, index)
        if not reply_awaited:
            self.admission.release_hop(live, index)

    def _attach(self, live: LiveTransaction, step: PlanStep, signal: Signal) -> None:
        """Give a function around nested steps, which is about to run, its `proceed()`."""
        assert step.around_container is not None

        async def proceed() -> Any:
            waiting: asyncio.Future[Any] = self.loop.create_future()
            live.proceed_waiters = waiters = live.proceed_waiters or {}
            waiters[step.index] = waiting
            self.enqueue(live, Proceeded(step.index, signal.delivery))
            try:
                async with lend_permits(self.loop):
                    token = await waiting
                return decode_token(token)
            finally:
                if waiters.get(step.index) is waiting:
                    del waiters[step.index]

        step.around_container.attach_proceed(signal.transaction, signal.path, proceed)

    def _resolve_proceed(self, live: LiveTransaction, command: AnswerProceed) -> None:
        waiting = (live.proceed_waiters or {}).get(command.step)
        if waiting is not None and not waiting.done():
            waiting.set_result(command.token)

    def _deliver(self, live: LiveTransaction, command: Deliver) -> None:
        if self.emissions is not None:
            self.emissions.deliver(live, command.emission)

    def _settle(self, live: LiveTransaction, command: Settle) -> None:
        self._disarm(live)
        for step in live.plan.containers:
            step.container.release(live.state.transaction)  # type: ignore[union-attr]
        live.done = None  # it refers back to `live`; without it nothing has to wait for the garbage collector
        if not live.settled:
            live.settled = True
            self._notify_settled(live)

    def _disarm(self, live: LiveTransaction) -> None:
        for timer in (live.deadline_timer, live.grace_timer, *live.retry_timers.values()):
            if timer is not None:
                timer.cancel()
        live.deadline_timer = live.grace_timer = None
        live.retry_timers.clear()

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
        for live in self.transactions.values():
            for actor in list(live.actors.values()):
                if actor.state == QUEUED:
                    actor.abandon()  # before permits become free, or it would start now
        for live in list(self.transactions.values()):
            if not live.settled:
                self._relinquish(
                    live, StoreError(f"transaction {live.state.transaction} was still running when its mesh was closed")
                )
        self.transactions.clear()
        self._events.clear()

    # Looking

    def error_for(self, live: LiveTransaction, hop: str, fault: Fault) -> BaseException:
        """The exception behind a recorded fault: the live one if it happened in this process."""
        raised = live.errors.get(hop)
        if raised is not None and fault.type == f"{type(raised).__module__}:{type(raised).__qualname__}":
            return raised
        return error_of(fault, live.plan.errors)

    def reopen(self, live: LiveTransaction) -> None:
        """Let a halted or stuck transaction go on."""
        if live.settled:
            live.settled = False
            self.transactions[live.state.transaction] = live
            self.running_count += 1
            self.admission.register(live)


_REPLY_AWAITED: Final = frozenset((RUNNING, COMPENSATING, UNDO_RUNNING))
"""States of a step whose actor's answer is still waited for."""

_OBEY: Mapping[type, Callable[[Supervisor, LiveTransaction, Any], None]] = {
    Evaluate: Supervisor._evaluate,
    ArmRetry: Supervisor._arm_retry,
    ArmGrace: Supervisor._arm_grace,
    ArmDeadline: Supervisor._arm_deadline,
    CancelHop: Supervisor._abandon,
    Deliver: Supervisor._deliver,
    AnswerProceed: Supervisor._resolve_proceed,
    Settle: Supervisor._settle,
}
