"""The supervisor: owns transactions, keeps their pulses, obeys their commands.

Everything happens in *turns* on the loop's thread.  A turn feeds what has come in to the sagas, appends the pulses that
follow in one commit, and only then obeys the commands; hops that finish while being dispatched are fed in the same
turn.  Append, then obey.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from bitactor.arguments import BoundArguments, RawArguments, argument_values
from bitactor.codec import decode_token
from bitactor.deciding import evaluate
from bitactor.errors import (
    BitActorError,
    Cancelled,
    ConfigurationError,
    DuplicateTransaction,
    InvalidInput,
    StaleOwner,
    StoreError,
)
from bitactor.ids import join_hop_id
from bitactor.plan import Plan, PlanStep
from bitactor.ports import Clock, Refusal, Store, Write
from bitactor.pulse import RUNNING, Pulse
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
    Emission,
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
from bitactor.saga.phases import COMPENSATING, UNDO_RUNNING
from bitactor.signal import FORWARD, UNDO, Fault, Reply, Signal
from mesh.actor import ENDED, QUEUED, BitActor
from mesh.faults import error_of, fault_of
from mesh.gate import ANSWERS, Gate, Hold
from mesh.host import Host
from mesh.lending import lending
from mesh.pools import Pools
from mesh.run import Run
from mesh.wheel import Timer, TimingWheel

logger = logging.getLogger("bitactor.supervisor")

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for what every hop needs."""

TURN_BUDGET_NS = 5_000_000
"""A turn gives the loop back after this long, so that sockets and timers are served."""


class Router(Protocol):
    """Takes hops whose steps run elsewhere."""

    def dispatch(self, run: Run, step: PlanStep, signal: Signal, values: Mapping[str, Any], result: Any) -> None:
        """Bring it to a holder; what becomes of it is told with `Supervisor.feed`."""

    def abandon(self, run: Run, index: int) -> None:
        """Tell the holder to stop."""


class Outbox(Protocol):
    """Takes emitted signals."""

    def deliver(self, run: Run, emission: Emission) -> None:
        """Bring it to one of each group; told with `Supervisor.feed`."""


class Supervisor:
    """All transactions that this process owns."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        wheel: TimingWheel,
        store: Store,
        host: Host,
        *,
        at_once: bool,
        told: Callable[[Sequence[Pulse]], None] | None = None,
        pools: Pools | None = None,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.wheel = wheel
        self.store = store
        self.host = host
        self.at_once = at_once
        """Whether an append costs next to nothing, so that waiting to share a commit is not worth it."""
        self.told = told
        self.router: Router | None = None
        self.hosted: Callable[[PlanStep], bool] = lambda step: True
        self.outbox: Outbox | None = None
        self.runs: dict[str, Run] = {}
        """Open transactions; emitted signals may still be on their way after the rest has settled."""
        self.running = 0
        self.on_settled: list[Callable[[Run], None]] = []
        self.healthy = True
        self._events: deque[tuple[Run, Any]] = deque()
        self._scheduled = False
        self._turning = False
        self._refusals: tuple[Sequence[Refusal], BaseException | None] | None = None
        self.pools = pools or Pools({})
        self.gate = Gate(loop, self.pools, self._launch_granted)
        self._keys: dict[tuple[str, str], Run] = {}

    @property
    def keyed(self) -> int:
        """How many open transactions are found by an idempotency key."""
        return len(self._keys)

    # Coming in

    def find(self, workflow: str, key: str) -> Run | str | None:
        """The transaction that has an idempotency key: the open run, or the id of one that is only in the store."""
        run = self._keys.get((workflow, key))
        if run is not None:
            return run
        transaction = self.store.find(workflow, key)
        return None if transaction is None else self.runs.get(transaction, transaction)

    def accept(self, run: Run, event: Accept) -> None:
        """Begin a transaction; `run.accepted`, if there is one, is resolved once that is durable."""
        self.runs[run.saga.transaction] = run
        self.running += 1
        if self.pools.narrow:
            self.gate.watch(run)
        if run.key:
            self._keys[run.plan.workflow, run.key] = run
        if self.at_once and not self._turning:
            self._react_at_once(run, event)
        else:
            self.feed(run, event)

    def recover(self, plan: Plan, pulses: Sequence[Pulse], owner: str, epoch: int) -> Run:
        """Take over a transaction from its journal."""
        data = pulses[0].data or {}
        run = Run(Saga.fold(plan, pulses), data.get("key", ""), data)
        self.runs[run.saga.transaction] = run
        self.running += 1
        self.gate.watch(run)
        run.settled = False
        self.feed(run, Recovered(owner, epoch))
        return run

    def feed(self, run: Run, event: Any, *, first: bool = False) -> None:
        """Something happened to a transaction; `first`: ahead of what else has come in.  On the loop's thread only."""
        if run.bounds is not None and type(event) in ANSWERS:
            self.gate.answered(run, event)
        if first:
            self._events.appendleft((run, event))
        else:
            self._events.append((run, event))
        if not self._scheduled and not self._turning:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _hop_done(self, run: Run, actor: BitActor, reply: Reply, error: BaseException | None) -> None:
        index = actor.step.index
        if reply.outcome == "ok":
            self._events.append((run, _new(Replied, (index, reply))))
        elif reply.outcome == "lost":
            if reply.hop in (run.saga.hops[index], run.saga.undo_hop(index)):
                self._events.append((run, Lost(index, reply.delivery, reply.reason or "worker")))
        else:
            if error is not None:
                run.errors.setdefault(reply.hop, error)
            self._events.append((run, Replied(index, reply)))
        if run.actors.get(index) is actor and actor.state == ENDED:
            del run.actors[index]
        if not self._scheduled and not self._turning:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _bounded_hop_done(
        self, run: Run, hold: Hold, actor: BitActor, reply: Reply, error: BaseException | None
    ) -> None:
        if actor.state == ENDED:
            self.gate.leave(hold)
        else:
            self.gate.leave_soon(hold)
        self._hop_done(run, actor, reply, error)

    # Turning

    def _turn(self) -> None:
        self._scheduled = False
        self._turning = True
        events = self._events
        try:
            if self.at_once:
                self._react_one_by_one()
            else:
                until = self.clock.monotonic_ns() + TURN_BUDGET_NS
                while events:
                    self._react_to_all()
                    if self.clock.monotonic_ns() > until:
                        break
        finally:
            self._turning = False
            if events and not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._turn)

    def _react_one_by_one(self) -> None:
        """For a store that keeps at once: no commit to share, so nothing to collect first."""
        events, store, wall_ns = self._events, self.store, self.clock.wall_ns
        until = wall_ns() + TURN_BUDGET_NS
        while events:
            run, event = events.popleft()
            if run.failure is not None:
                continue
            saga = run.saga
            now_ns = wall_ns()
            try:
                pulses, commands = saga.react(event, now_ns)
            except Exception as error:
                self._give_up(run, error)
                continue
            if pulses:
                key = run.key if pulses[0].seq == 0 else ""
                self._refusals = None
                store.append(
                    (_new(Write, (saga.transaction, saga.epoch, pulses, saga.status, saga.open, key)),),
                    self._note_refusals,
                )
                if self._refusals is not None:
                    self._kept([(run, pulses, commands, 0)], *self._refusals)
                    continue
            self._obey(run, pulses, commands)
            if now_ns > until:
                break

    def _note_refusals(self, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        if refusals or error is not None:
            self._refusals = (refusals, error)

    def _react_to_all(self) -> None:
        """Collect what follows from everything that has come in, keep it in one commit, then obey."""
        events = self._events
        now_ns = self.clock.wall_ns()
        writes: list[Write] = []
        orders: list[tuple[Run, list[Pulse], list[Command], int]] = []
        while events:
            run, event = events.popleft()
            if run.failure is not None:
                continue
            saga = run.saga
            try:
                pulses, commands = saga.react(event, now_ns)
            except Exception as error:
                self._give_up(run, error)
                continue
            if pulses:
                orders.append((run, pulses, commands, len(writes)))
                key = run.key if pulses[0].seq == 0 else ""
                writes.append(_new(Write, (saga.transaction, saga.epoch, pulses, saga.status, saga.open, key)))
            elif commands:
                orders.append((run, pulses, commands, -1))
        if writes:
            self.store.append(writes, partial(self._kept, orders))
        elif orders:
            self._kept(orders, (), None)

    def _react_at_once(self, run: Run, event: Accept) -> None:
        """Accept without waiting for the next turn; the commands are still obeyed there, outside of any task."""
        saga = run.saga
        pulses, commands = saga.react(event, self.clock.wall_ns())
        write = Write(saga.transaction, saga.epoch, pulses, saga.status, saga.open, run.key)
        orders = [(run, pulses, commands, 0)]
        self.store.append((write,), lambda refusals, error: self._kept_at_once(orders, refusals, error))

    def _kept_at_once(self, orders: Any, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        self.loop.call_soon(self._obey_later, orders, refusals, error)

    def _obey_later(self, orders: Any, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        self._turning = True
        try:
            self._kept(orders, refusals, error)
        finally:
            self._turning = False
        if self._events:
            self._turn()

    def _kept(self, orders: Any, refusals: Sequence[Refusal], error: BaseException | None) -> None:
        """The pulses are durable (or were refused): obey."""
        if error is not None:
            self._not_kept(orders, error)
            return
        refused = {refusal.index: refusal.error for refusal in refusals} if refusals else None
        for run, pulses, commands, index in orders:
            if refused is not None and index in refused:
                self._give_up(run, refused[index])
            else:
                self._obey(run, pulses, commands)
        if self._events and not self._turning and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _obey(self, run: Run, pulses: list[Pulse], commands: list[Command]) -> None:
        if self.told is not None and pulses:
            self.told(pulses)
        if run.accepted is not None:
            if not run.accepted.done():
                run.accepted.set_result(None)
            run.accepted = None
        if run.failure is not None:
            return
        try:
            for command in commands:
                if type(command) is Dispatch:
                    self._dispatch(run, command)
                else:
                    _OBEY[type(command)](self, run, command)
        except Exception as error:  # ours, not the user's: other transactions must not suffer for it
            self._give_up(run, error)
        if not run.saga.open:
            self._forget(run)

    def _not_kept(self, orders: Any, error: BaseException) -> None:
        self.healthy = False
        logger.critical("the journal could not be written: %s; giving up %d transactions here", error, len(orders))
        for run, _, _, _ in orders:
            self._give_up(run, error)

    def _give_up(self, run: Run, error: BaseException) -> None:
        """This process can say nothing more about the transaction; its journal is what holds."""
        if run.failure is not None:
            return
        if not isinstance(error, DuplicateTransaction | StaleOwner):
            logger.error(
                "transaction %s of %s is given up here: %s",
                run.saga.transaction,
                run.plan.workflow,
                error,
                exc_info=error,
            )
        was_running = not run.settled
        run.settled = True
        run.failure = (
            error if isinstance(error, BitActorError) else StoreError(f"transaction {run.saga.transaction}: {error!r}")
        )
        self._disarm(run)
        for actor in list(run.actors.values()):
            actor.fence()
        self.gate.close(run)
        self._forget(run)
        if run.accepted is not None and not run.accepted.done():
            run.accepted.set_exception(run.failure)
            run.accepted = None
        if was_running:
            self._wake(run)

    def _forget(self, run: Run) -> None:
        if self.runs.get(run.saga.transaction) is run:
            del self.runs[run.saga.transaction]
        if run.key and self._keys.get((run.plan.workflow, run.key)) is run:
            del self._keys[run.plan.workflow, run.key]

    # Obeying

    def _dispatch(self, run: Run, command: Dispatch, hold: Hold | None = None) -> None:
        index, direction, fault = command
        plan = run.plan
        saga = run.saga
        step = saga.steps[index]
        bounds = run.bounds
        if (step.limit is not None or (bounds is not None and bounds.always)) and hold is None:
            hold = self._enter_gate(run, step, command)
            if hold is None:
                return
        signal = self._signal(run, step, direction, fault)
        evaluated = saga.evaluated.get(index) if step.needs_evaluation else None
        result = saga.own_result(index) if direction is UNDO and index not in saga.steps_in_doubt else None
        if self.router is not None and not step.is_local_only and not self.hosted(step):
            self._send_away(run, step, signal, evaluated, result)
            return
        if run.done is None:
            run.done = partial(self._hop_done, run)
        if step.around_container is not None:
            self._attach(run, step, signal)
        arguments: Any = _new(
            RawArguments if step.takes_raw_arguments else BoundArguments,
            (step.arguments, saga.tokens, step.address, evaluated),
        )
        done = run.done if hold is None else partial(self._bounded_hop_done, run, hold)
        actor = self.host.launch(plan, step, signal, arguments, result, done, hold)
        if actor.state != ENDED:
            run.actors[index] = actor

    def _send_away(
        self, run: Run, step: PlanStep, signal: Signal, evaluated: Mapping[str, Any] | None, result: Any
    ) -> None:
        assert self.router is not None
        try:
            values = argument_values(step.arguments, run.saga.tokens, step.address, evaluated)
        except InvalidInput as error:
            self._answer_for(run, step.index, signal.direction, error)
        else:
            self.router.dispatch(run, step, signal, values, result)

    def _signal(self, run: Run, step: PlanStep, direction: str, fault: Fault | None) -> Signal:
        saga = run.saga
        index = step.index
        budget_ns = step.timeout_ns
        if saga.deadline_ns is not None and direction is FORWARD:
            left = saga.deadline_ns - saga.spawned_at_ns[index]
            if budget_ns is None or left < budget_ns:
                budget_ns = left if left > 0 else 0
        undoing = direction is UNDO
        return _new(
            Signal,
            (
                step.address, saga.transaction, saga.root, saga.undo_hop(index) if undoing else saga.hops[index],
                (saga.hops[index],) if undoing else saga.causes[index], direction,
                saga.undo_attempts[index] if undoing else saga.attempts[index], saga.deliveries[index], saga.epoch,
                saga.ttls[index], budget_ns, None, "", fault, saga.parent, saga.metadata,
                undoing and index in saga.steps_in_doubt, step.retries - saga.failures[index], saga.trail,
                "" if index < saga.plan_size else step.name,
            ),
        )  # fmt: skip

    def _answer_for(
        self, run: Run, index: int, direction: str, error: BaseException, fault: Fault | None = None
    ) -> None:
        """A hop that cannot even begin; `fault`: what its compensation was to be asked about."""
        saga = run.saga
        hop = saga.undo_hop(index) if direction is UNDO else saga.hops[index]
        run.errors[hop] = error
        reply = Reply(saga.transaction, hop, saga.deliveries[index], saga.epoch, "fail", fault=fault or fault_of(error))
        self.feed(run, Replied(index, reply))

    def _enter_gate(self, run: Run, step: PlanStep, command: Dispatch) -> Hold | None:
        try:
            return self.gate.enter(run, step, command)
        except (
            ConfigurationError
        ) as error:  # a step that was planned meanwhile; for declared ones the mesh was not made
            self._answer_for(run, step.index, command.direction, error)
            return None

    def _launch_granted(self, holds: list[Hold]) -> None:
        self._turning = True
        try:
            for hold in holds:
                run, command = hold.run, hold.command
                if command is None or run.failure is not None:
                    continue
                hold.command = None
                try:
                    self._dispatch(run, command, None if hold.is_turn else hold)
                except Exception as error:  # as in `_obey`
                    self._give_up(run, error)
        finally:
            self._turning = False
        if self._events:
            self._turn()

    def _evaluate(self, run: Run, command: Evaluate) -> None:
        """Ask user code, once; what comes of it is recorded."""
        saga = run.saga
        step = saga.steps[command.step]
        try:
            evaluated = evaluate(saga, command.step)
        except BaseException as error:
            run.errors[join_hop_id(saga.salt, step.forward_code)] = error
            fault = fault_of(error)
            self.feed(
                run,
                Evaluated(
                    command.step, True, None, fault._replace(message=f"deciding on {step.address!r}: {fault.message}")
                ),
            )
        else:
            self.feed(run, evaluated)

    def _arm_retry(self, run: Run, command: ArmRetry) -> None:
        index = command.step
        run.retries[index] = self._timer(command.due_ns, lambda: self._retry_due(run, index))

    def _retry_due(self, run: Run, index: int) -> None:
        run.retries.pop(index, None)
        self.feed(run, RetryDue(index))

    def _arm_grace(self, run: Run, command: ArmGrace) -> None:
        due_ns = self.clock.wall_ns() + command.after_ns
        run.grace = self._timer(due_ns, lambda: self.feed(run, GraceExpired()))

    def _arm_deadline(self, run: Run, command: ArmDeadline) -> None:
        if run.deadline is not None:
            run.deadline.cancel()
            run.deadline = None
        if command.due_ns is not None:
            forward = command.due_ns == run.saga.deadline_ns
            run.deadline = self._timer(command.due_ns, lambda: self._deadline_expired(run, forward))

    def _deadline_expired(self, run: Run, forward: bool) -> None:
        """Ahead of what else has come in: a hop that ran into this deadline is told of in the same moment, and is not
        the reason."""
        run.deadline = None
        saga = run.saga
        if forward and saga.phase in ("failing", "undoing"):
            return  # that deadline has been replaced by the one for undo, which is about to be armed
        seconds = (self.clock.wall_ns() - saga.accepted_at_ns) / 1e9
        what = "undoing" if saga.phase in ("failing", "undoing") else "running"
        fault = Fault(
            "bitactor.errors:DeadlineExceeded", f"{run.plan.workflow!r} was still {what} {seconds:.3g} s after it began"
        )
        self.feed(run, DeadlineExpired(fault), first=True)

    def _timer(self, due_wall_ns: int, callback: Callable[[], None]) -> Timer:
        return Timer(self.wheel, self.clock.monotonic_ns() + due_wall_ns - self.clock.wall_ns(), callback)

    def _abandon(self, run: Run, command: CancelHop) -> None:
        index = command.step
        waited = self.gate.forget(run, index)
        if waited is not None:
            error = Cancelled(f"{run.saga.steps[index].address!r} was stopped before it had started")
            self._answer_for(run, index, waited.direction, error, waited.fault)
            return
        actor = run.actors.get(index)
        asked_for = run.saga.states[index] in _ASKED_FOR
        if actor is not None and asked_for:
            if actor.task is not None:
                self.gate.dismiss(run, index)
            actor.abandon()
        elif actor is not None:
            actor.fence()
        elif self.router is not None:
            self.router.abandon(run, index)
        if not asked_for:
            self.gate.give_back(run, index)

    def _attach(self, run: Run, step: PlanStep, signal: Signal) -> None:
        """A function around nested steps is about to run: this is what its `proceed()` does."""
        assert step.around_container is not None

        async def proceed() -> Any:
            waiting: asyncio.Future[Any] = self.loop.create_future()
            run.proceeding = waiters = run.proceeding or {}
            waiters[step.index] = waiting
            self.feed(run, Proceeded(step.index, signal.delivery))
            try:
                async with lending(self.loop):
                    token = await waiting
                return decode_token(token)
            finally:
                if waiters.get(step.index) is waiting:
                    del waiters[step.index]

        step.around_container.attach_proceed(signal.transaction, signal.path, proceed)

    def _answer(self, run: Run, command: AnswerProceed) -> None:
        waiting = (run.proceeding or {}).get(command.step)
        if waiting is not None and not waiting.done():
            waiting.set_result(command.token)

    def _deliver(self, run: Run, command: Deliver) -> None:
        if self.outbox is not None:
            self.outbox.deliver(run, command.emission)

    def _settle(self, run: Run, command: Settle) -> None:
        self._disarm(run)
        for step in run.plan.containers:
            step.container.release(run.saga.transaction)  # type: ignore[union-attr]
        run.done = None  # it refers back to the run; without it nothing has to wait for the garbage collector
        if not run.settled:
            run.settled = True
            self._wake(run)

    def _disarm(self, run: Run) -> None:
        for timer in (run.deadline, run.grace, *run.retries.values()):
            if timer is not None:
                timer.cancel()
        run.deadline = run.grace = None
        run.retries.clear()

    def _wake(self, run: Run) -> None:
        """The transaction has settled, or is given up: tell who waits, and let others through the gate."""
        self.running -= 1
        for waiter in run.waiters:
            if not waiter.done():
                waiter.set_result(None)
        run.waiters.clear()
        for listener in self.on_settled:
            listener(run)
        self.gate.close(run)

    def close(self) -> None:
        """Stop everything that runs here; what has not settled is still in the journal, and its waiters are told."""
        for run in self.runs.values():
            for actor in list(run.actors.values()):
                if actor.state == QUEUED:
                    actor.abandon()  # before places become free, or it would start now
        for run in list(self.runs.values()):
            if not run.settled:
                self._give_up(
                    run, StoreError(f"transaction {run.saga.transaction} was still running when its mesh was closed")
                )
        self.runs.clear()
        self._events.clear()

    # Looking

    def error_for(self, run: Run, hop: str, fault: Fault) -> BaseException:
        """The exception behind a recorded fault: the live one if it happened in this process."""
        live = run.errors.get(hop)
        if live is not None and fault.type == f"{type(live).__module__}:{type(live).__qualname__}":
            return live
        return error_of(fault, run.plan.errors)

    def resumed(self, run: Run) -> None:
        """A halted or stuck transaction goes on."""
        if run.settled:
            run.settled = False
            self.runs[run.saga.transaction] = run
            self.running += 1
            self.gate.watch(run)


_ASKED_FOR: Final = frozenset((RUNNING, COMPENSATING, UNDO_RUNNING))
"""States of a step whose actor's answer is still waited for."""

_OBEY: Mapping[type, Callable[[Supervisor, Run, Any], None]] = {
    Evaluate: Supervisor._evaluate,
    ArmRetry: Supervisor._arm_retry,
    ArmGrace: Supervisor._arm_grace,
    ArmDeadline: Supervisor._arm_deadline,
    CancelHop: Supervisor._abandon,
    Deliver: Supervisor._deliver,
    AnswerProceed: Supervisor._answer,
    Settle: Supervisor._settle,
}
