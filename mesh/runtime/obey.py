"""Obeying commands of sagas: a hop is dispatched, a timer armed, user code asked, an emitted signal sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from bitactor.errors import Cancelled, ConfigurationError
from bitactor.messages.codec import decode_token
from bitactor.messages.faults import fault_of
from bitactor.messages.ids import join_hop_id
from bitactor.messages.pulse import RUNNING
from bitactor.messages.signal import UNDO, Cancel, Fault, Reply, Signal
from bitactor.plan.arguments import BoundArguments, RawArguments
from bitactor.plan.plan import PlanStep
from bitactor.ports import Clock
from bitactor.saga import (
    AnswerProceed,
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    CancelHop,
    DeadlineExpired,
    Deliver,
    Dispatch,
    Emission,
    Evaluate,
    GraceExpired,
    Proceeded,
    Replied,
    RetryDue,
    Settle,
)
from bitactor.saga.evaluate import decide, signal_of
from bitactor.saga.machine import overdue
from bitactor.saga.phases import COMPENSATING, UNDO_RUNNING
from mesh.hops.executor import Executor
from mesh.hops.ports import ENDED, Actor
from mesh.limits.pools import lend_permits
from mesh.limits.timing_wheel import Timer, TimingWheel
from mesh.runtime.admission import Admission
from mesh.runtime.live import HopPermits, LiveTransaction
from mesh.runtime.ports import Enqueue, Router

logger = logging.getLogger("bitactor.supervisor")

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the tuples that every hop needs."""
_REPLY_AWAITED: Final = frozenset((RUNNING, COMPENSATING, UNDO_RUNNING))
"""States of a step whose actor's answer is still waited for."""


class CommandHandler:
    """Obeys the commands of all sagas of this process, once the pulses they came with are kept.

    Args:
        hop_done: called when a hop has replied.
        settled: called when nothing more happens to a transaction by itself.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        wheel: TimingWheel,
        executor: Executor,
        admission: Admission,
        *,
        enqueue: Enqueue,
        hop_done: Callable[[LiveTransaction, Actor, Reply, BaseException | None], None],
        settled: Callable[[LiveTransaction], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._wheel = wheel
        self._executor = executor
        self._admission = admission
        self._enqueue = enqueue
        self._hop_done = hop_done
        self._settled = settled
        self.router: Router | None = None
        """Where hops go whose steps run elsewhere; None: all run here."""
        self.revoke: Callable[[str, Cancel], None] | None = None
        """Asks whoever runs a step elsewhere to stop a delivery that another process has sent; None: nobody does."""
        self.deliver: Callable[[LiveTransaction, Emission], None]
        """Brings an emitted signal to its consumers."""
        self.obey: Mapping[type, Callable[[LiveTransaction, Any], None]] = {
            Dispatch: self.dispatch,
            Evaluate: self._evaluate,
            ArmRetry: self._arm_retry,
            ArmGrace: self._arm_grace,
            ArmDeadline: self._arm_deadline,
            CancelHop: self._abandon,
            Deliver: self._deliver,
            AnswerProceed: self._resolve_proceed,
            Settle: self._settle,
        }
        """Kind of command → what obeys it."""

    def dispatch(self, live: LiveTransaction, command: Dispatch, permits: HopPermits | None = None) -> None:
        """Begin a hop, here or elsewhere, once it has the `permits` that it needs."""
        index, direction, fault = command
        plan = live.plan
        state = live.state
        step = state.steps[index]
        limits = live.limits
        if (step.limit is not None or (limits is not None and limits.every_hop)) and permits is None:
            try:
                permits = self._admission.acquire(live, step, command)
            except ConfigurationError as error:  # a step planned meanwhile; with a declared one no mesh was made
                self._fail_unstarted(live, index, direction, error)
                return
            if permits is None:
                return
        signal = signal_of(state, step, direction, fault)
        evaluated = state.evaluated.get(index) if step.needs_evaluation else None
        result = state.own_result(index) if direction is UNDO and index not in state.steps_in_doubt else None
        if self.router is not None and not step.is_local_only:
            try:
                bound: BoundArguments = _new(BoundArguments, (step.arguments, state.tokens, step.address, evaluated))
                values = bound.packed()
            except BaseException as error:  # a path may lead through a user's object
                self._fail_unstarted(live, index, direction, error)
            else:
                self.router.dispatch(live, step, signal, values, result)
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
        actor = self._executor.launch(plan, step, signal, arguments, result, done, permits)
        if actor.state != ENDED:
            live.actors[index] = actor

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
        self._enqueue(live, Replied(index, reply))

    def _limited_hop_done(
        self, live: LiveTransaction, permits: HopPermits, actor: Actor, reply: Reply, error: BaseException | None
    ) -> None:
        if actor.state == ENDED:
            self._admission.release(permits)
        else:
            self._admission.release_soon(permits)
        self._hop_done(live, actor, reply, error)

    def _evaluate(self, live: LiveTransaction, command: Evaluate) -> None:
        """Ask the step's user code, once, and enqueue its answer, which is recorded."""
        state = live.state
        evaluated, error = decide(state, command.step)
        if error is not None:
            live.errors[join_hop_id(state.salt, state.steps[command.step].forward_code)] = error
        self._enqueue(live, evaluated)

    def _arm_retry(self, live: LiveTransaction, command: ArmRetry) -> None:
        index = command.step
        live.retry_timers[index] = self._timer(live, command.due_ns, lambda: self._retry_due(live, index))

    def _retry_due(self, live: LiveTransaction, index: int) -> None:
        live.retry_timers.pop(index, None)
        self._enqueue(live, RetryDue(index))

    def _arm_grace(self, live: LiveTransaction, command: ArmGrace) -> None:
        due_ns = live.now_ns(self._clock) + command.after_ns
        live.grace_timer = self._timer(live, due_ns, lambda: self._enqueue(live, GraceExpired()))

    def _arm_deadline(self, live: LiveTransaction, command: ArmDeadline) -> None:
        if live.deadline_timer is not None:
            live.deadline_timer.cancel()
            live.deadline_timer = None
        if command.due_ns is not None:
            forward = command.due_ns == live.state.deadline_ns
            live.deadline_timer = self._timer(live, command.due_ns, lambda: self._deadline_expired(live, forward))

    def _deadline_expired(self, live: LiveTransaction, forward: bool) -> None:
        """Enqueue the expiry ahead of all other events: a hop that ran into this deadline is told of in the same
        moment, and is not the reason."""
        live.deadline_timer = None
        state = live.state
        if forward and state.phase in ("failing", "undoing"):
            return  # that deadline has been replaced by the one for undo, which is about to be armed
        waits = "" if self.router is None else self.router.waits_for(live)
        self._enqueue(live, DeadlineExpired(overdue(state, live.now_ns(self._clock), waits=waits)), first=True)

    def _timer(self, live: LiveTransaction, due_ns: int, callback: Callable[[], None]) -> Timer:
        """A timer that fires when the transaction's time has reached `due_ns`."""
        return Timer(self._wheel, due_ns - live.offset_ns, callback)

    def _abandon(self, live: LiveTransaction, command: CancelHop) -> None:
        index = command.step
        waiting = self._admission.withdraw(live, index)
        if waiting is not None:
            error = Cancelled(f"{live.state.steps[index].address!r} was stopped before it had started")
            self._fail_unstarted(live, index, waiting.direction, error, waiting.fault)
            return
        actor = live.actors.get(index)
        reply_awaited = live.state.states[index] in _REPLY_AWAITED
        if actor is not None and reply_awaited:
            if actor.task is not None:
                self._admission.release_lent(live, index)
            actor.abandon()
        elif actor is not None:
            actor.fence()
        elif self.router is not None:
            self.router.abandon(live, index)
        if not reply_awaited:
            self._admission.release_hop(live, index)

    def revoke_in_flight(self, live: LiveTransaction) -> None:
        """Ask other nodes to stop what the owner before has sent them of a transaction that is taken over: it is
        delivered again, or undone, and what waits there must not begin after that."""
        if self.revoke is None:
            return
        state = live.state
        for index, now in enumerate(state.states):
            if now in _REPLY_AWAITED:
                hop = state.undo_hop(index) if now == UNDO_RUNNING else state.hops[index]
                cancel = Cancel(state.transaction, hop, state.deliveries[index], state.epoch)
                self.revoke(state.steps[index].address, cancel)

    def _attach(self, live: LiveTransaction, step: PlanStep, signal: Signal) -> None:
        """Give a function around nested steps, which is about to run, its `proceed()`."""
        assert step.around_container is not None

        async def proceed() -> Any:
            waiting: asyncio.Future[Any] = self._loop.create_future()
            live.proceed_waiters = waiters = live.proceed_waiters or {}
            waiters[step.index] = waiting
            self._enqueue(live, Proceeded(step.index, signal.delivery))
            try:
                async with lend_permits(self._loop):
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
        self.deliver(live, command.emission)
        future = live.resent.pop(command.emission.id, None) if live.resent else None
        if future is not None and not future.done():
            future.set_result(None)

    def _settle(self, live: LiveTransaction, command: Settle) -> None:
        live.disarm()
        for step in live.plan.containers:
            try:
                step.container.release(live.state.transaction)  # type: ignore[union-attr]
            except BaseException as error:  # of a kind from outside; who waits for the end waits no longer
                said = fault_of(error).summary()
                logger.warning("%r, a %s, raised when a transaction had settled: %s", step.address, step.kind, said)
        live.done = None  # it refers back to `live`; without it nothing has to wait for the garbage collector
        if not live.settled and live.failure is None:
            live.settled = True
            self._settled(live)
