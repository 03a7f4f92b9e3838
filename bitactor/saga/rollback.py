"""Rollback: wait for the hops in flight once something has failed, then undo what happened, last first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from bitactor.declare.backoff import DEFAULT_BACKOFF
from bitactor.messages.pulse import (
    CANCELLED,
    COMPENSATED,
    COMPLETED,
    DEADLINE_EXCEEDED,
    FAILED,
    HALTED,
    LATE,
    POISON,
    RETRIED,
    SPAWNED,
    STUCK,
    TIMED_OUT,
    TOMBSTONE,
    UNDO_FAILED,
    UNDONE,
    UNROUTABLE,
)
from bitactor.messages.signal import UNDO, Fault, Reply
from bitactor.saga.commands import (
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    CancelHop,
    Deliver,
    Dispatch,
    Settle,
)  # fmt: skip
from bitactor.saga.events import DeadlineExpired, GraceExpired, HopExpired, Lost, Replied, RetryDue, Unrouted
from bitactor.saga.phases import (
    COMPENSATING,
    FAILING,
    HALTING,
    IN_DOUBT,
    IN_FLIGHT,
    OPEN,
    UNDO_BACKING_OFF,
    UNDO_RUNNING,
    UNDOABLE,
)
from bitactor.saga.state import SagaState
from bitactor.saga.turn import Turn, emits_data, jitter_fraction

_OUT_OF_DOUBT: Final = frozenset((COMPLETED, UNDO_RUNNING, UNDO_BACKING_OFF, UNDONE))
"""States in which a late reply about the step's own run changes nothing any more."""


def stop(turn: Turn) -> None:
    """Stop after a failure: cancel the hops in flight; undo begins once they have answered or the grace period is
    over."""
    state = turn.state
    turn.commands.append(ArmDeadline(turn.now_ns + state.plan.grace_ns + state.plan.undo_timeout_ns))
    if not _awaits_replies(state):
        continue_undo(turn)
        return
    turn.commands.extend(CancelHop(index) for index, now in enumerate(state.states) if now in IN_FLIGHT)
    turn.commands.append(ArmGrace(state.plan.grace_ns))


def end_containers(turn: Turn, fault: Fault, indices: Iterable[int], cause: str = "") -> None:
    """Record the end of those steps of `indices` that are open containers: the step at path `cause`, in one of them,
    failed, or, if it is empty, the whole transaction does.  Their states change with the pulse that says so, which
    follows."""
    state = turn.state
    light = Fault(fault.type, fault.message)  # all of it is in the pulse that follows
    for index in sorted(indices, reverse=True):
        if state.states[index] == OPEN:
            elapsed_ns = turn.now_ns - state.spawned_at_ns[index]
            turn.record_step(index, FAILED, elapsed_ns=elapsed_ns, error=light, data={"ended_by": cause})


def _awaits_replies(state: SagaState) -> bool:
    """Whether undo has to wait: a hop is in flight, or a timed-out run may still answer and change what is
    undone."""
    return state.in_flight > 0 or any(state.steps[index].undo is not None for index in state.awaited_runs.values())


def grace_expired(turn: Turn, event: GraceExpired) -> None:
    leave_all_in_doubt(turn)
    continue_undo(turn)


def leave_all_in_doubt(turn: Turn) -> None:
    state = turn.state
    for index, now in enumerate(state.states):
        if now in IN_FLIGHT:
            address = state.steps[index].address
            fault = Fault("bitactor.errors:StepTimeout", f"{address!r} did not answer before undo had to begin")
            turn.record_step(index, TIMED_OUT, elapsed_ns=turn.now_ns - state.spawned_at_ns[index], error=fault)
            turn.commands.append(CancelHop(index))


def continue_stopping(turn: Turn) -> None:
    """Become halted, or begin to undo, once no hop is in flight."""
    state = turn.state
    if state.phase is HALTING and state.in_flight and state.progress:
        _pause_functions_around(turn)
    if state.in_flight:
        return
    if state.phase is HALTING:
        left = None if state.deadline_ns is None else max(0, state.deadline_ns - turn.now_ns)
        turn.record(HALTED, data={"status": HALTED, "left_ns": left})
        turn.commands.append(ArmDeadline(None))
        turn.commands.append(Settle(HALTED))
    elif state.phase is FAILING and not _awaits_replies(state):
        continue_undo(turn)


def _pause_functions_around(turn: Turn) -> None:
    """Stop the functions around nested steps once nothing else is in flight: what they wait for comes only after a
    resume."""
    state = turn.state
    flying = [index for index, now in enumerate(state.states) if now in IN_FLIGHT]
    if not all(index in state.awaiting_redelivery or _awaits_nested(state, index) for index in flying):
        return
    for index in flying:
        if index in state.awaiting_redelivery:
            loss = state.awaiting_redelivery.pop(index)
            turn.record_step(index, HALTED, data={"reason": "", "lost": loss.holder})
        else:
            pause_function_around(turn, index)


def _awaits_nested(state: SagaState, index: int) -> bool:
    """Whether a step is a function around nested steps that waits for them."""
    step = state.steps[index]
    progress = None if step.scope is None else state.progress.get(step.scope.container)
    return step.around_container is not None and progress is not None and progress.proceeding


def pause_function_around(turn: Turn, index: int) -> None:
    turn.record_step(index, HALTED, data={"reason": ""})
    turn.commands.append(CancelHop(index))


def continue_undo(turn: Turn) -> None:
    """Begin the next undo, last first, or finish."""
    state = turn.state
    for index in reversed(state.completion_order):
        step = state.steps[index]
        if step.undo is None or state.states[index] not in (COMPLETED, IN_DOUBT):
            continue
        if index in state.steps_in_doubt and not step.undo.in_doubt:
            fault = Fault(
                "bitactor.errors:UndoFailed",
                f"nobody knows whether {step.address!r} happened, and its undo does not take doubt; look, mend by "
                "hand, or declare undo(in_doubt=True)",
            )
            turn.record_step(index, UNDO_FAILED, error=fault, direction=UNDO)
            continue
        _spawn_undo(turn, index)
        return
    status = STUCK if state.undo_failed else CANCELLED if state.cancelling else COMPENSATED
    turn.finish(status)


def _spawn_undo(turn: Turn, index: int) -> None:
    data = {"in_doubt": True} if index in turn.state.steps_in_doubt else None
    turn.record_step(index, SPAWNED, direction=UNDO, data=data)
    turn.commands.append(Dispatch(index, UNDO))


def undo_replied(turn: Turn, event: Replied) -> None:
    state = turn.state
    index, reply, holder = event
    turn.held = (reply.hop, holder)
    if (
        state.states[index] != UNDO_RUNNING
        or reply.hop != state.undo_hop(index)
        or reply.delivery != state.deliveries[index]
        or reply.epoch != state.epoch
    ):
        late_reply(turn, index, reply)
    elif reply.outcome == "ok":
        turn.record_step(index, UNDONE, elapsed_ns=reply.elapsed_ns, direction=UNDO, data=emits_data(reply))
        deliver_emissions(turn, state.undo_hop(index))
        continue_undo(turn)
    elif reply.outcome == "retry":
        _retry_undo(turn, index, reply)
    else:
        fault = reply.fault or Fault("bitactor.errors:UndoFailed", reply.reason or reply.outcome)
        _fail_undo(turn, index, fault, reply.elapsed_ns)


def _retry_undo(turn: Turn, index: int, reply: Reply) -> None:
    state = turn.state
    undo = state.steps[index].undo
    failures = state.failures[index] + 1
    fault = reply.fault or Fault("bitactor.outcome:Retry", reply.reason or "asked for another try")
    if undo is None or failures > undo.retries:
        _fail_undo(turn, index, fault, reply.elapsed_ns)
        return
    after_ns = reply.after_ns
    if after_ns is None:
        after_ns = DEFAULT_BACKOFF.delay_ns(failures, jitter_fraction(state.undo_hop(index)))
    data = {"due_ns": turn.now_ns + after_ns, "after_ns": after_ns}
    turn.record_step(index, RETRIED, elapsed_ns=reply.elapsed_ns, error=fault, direction=UNDO, data=data)
    turn.commands.append(ArmRetry(index, turn.now_ns + after_ns))


def undo_retry_due(turn: Turn, event: RetryDue) -> None:
    if turn.state.states[event.step] == UNDO_BACKING_OFF:
        _spawn_undo(turn, event.step)


def _is_of_running_undo(state: SagaState, event: HopExpired | Lost | Unrouted) -> bool:
    """Whether an event is about the undo that runs: one about the step's own run, which was left in doubt, may come
    when that is undone."""
    index = event.step
    return (
        state.states[index] == UNDO_RUNNING
        and event.delivery == state.deliveries[index]
        and event.hop in ("", state.undo_hop(index))
    )


def undo_expired(turn: Turn, event: HopExpired) -> None:
    state = turn.state
    if _is_of_running_undo(state, event):
        turn.held = (state.undo_hop(event.step), event.holder)
        _fail_undo(turn, event.step, event.fault)


def undo_lost(turn: Turn, event: Lost) -> None:
    state = turn.state
    index, _, holder, given_back, _ = event
    if not _is_of_running_undo(state, event):
        return
    if given_back or state.losses(index, UNDO) <= state.plan.redeliveries:
        redeliver(turn, index, UNDO, event)
    else:
        fault = lost_fault(state, index, UNDO, holder)
        turn.record_step(index, TOMBSTONE, reason=POISON, direction=UNDO, data={"holder": holder})
        _fail_undo(turn, index, fault)


def undo_unrouted(turn: Turn, event: Unrouted) -> None:
    if _is_of_running_undo(turn.state, event):
        turn.record_step(event.step, TOMBSTONE, reason=UNROUTABLE, direction=UNDO)
        _fail_undo(turn, event.step, event.fault)


def _fail_undo(turn: Turn, index: int, fault: Fault, elapsed_ns: int | None = None) -> None:
    """Record that an undo failed, and go on with the next one."""
    turn.record_step(index, UNDO_FAILED, elapsed_ns=elapsed_ns, error=fault, direction=UNDO)
    turn.commands.append(CancelHop(index))
    continue_undo(turn)


def undo_deadline_expired(turn: Turn, event: DeadlineExpired) -> None:
    """Record as failed each undo that is not done when the time for undo is over."""
    state = turn.state
    undo_until = state.stopping_since_ns + state.plan.undo_timeout_ns
    if turn.now_ns < undo_until:
        # The transaction's own deadline, which was over in the same moment as something failed.
        turn.commands.append(ArmDeadline(undo_until))
        return
    leave_all_in_doubt(turn)
    turn.record(TOMBSTONE, reason=DEADLINE_EXCEEDED, direction=UNDO)
    for index in state.completion_order[::-1]:
        now = state.states[index]
        if state.steps[index].undo is not None and now in UNDOABLE:
            turn.record_step(index, UNDO_FAILED, error=event.fault, direction=UNDO)
            if now == UNDO_RUNNING:
                turn.commands.append(CancelHop(index))
    continue_undo(turn)


def late_reply(turn: Turn, index: int, reply: Reply) -> None:
    """Record a reply that is not waited for any more, once; undo uses it if it has not yet passed the step."""
    state = turn.state
    run = (reply.hop, reply.delivery)
    if run not in state.unanswered_runs or (reply.outcome in ("cancelled", "timed_out") and not is_awaited(state, run)):
        return
    happened = None
    now = state.states[index]
    if (reply.hop, reply.delivery) in state.runs_in_doubt and now not in _OUT_OF_DOUBT:
        if reply.outcome in ("fail", "retry", "halt"):
            happened = False
        elif reply.outcome in ("ok", "continue") and now in (IN_DOUBT, UNDO_FAILED) and reply.hop == state.hops[index]:
            happened = True
    turn.record_step(
        index,
        LATE,
        hop=reply.hop,
        elapsed_ns=reply.elapsed_ns,
        token_out=reply.token if happened else None,
        error=reply.fault,
        data={"delivery": reply.delivery, "outcome": reply.outcome, "happened": happened},
    )
    if state.phase is FAILING:
        continue_stopping(turn)


def is_awaited(state: SagaState, run: tuple[str, int]) -> bool:
    """Whether undo waits for the reply of this run; then a reply that does not end the doubt counts too."""
    return state.phase is FAILING and run in state.awaited_runs


def replied_after_end(turn: Turn, event: Replied) -> None:
    late_reply(turn, event.step, event.reply)


def lost_fault(state: SagaState, index: int, direction: str, holder: str) -> Fault:
    return Fault(
        "bitactor.errors:WorkerLost",
        f"{state.steps[index].address!r} lost its worker ({holder}) on delivery {state.losses(index, direction)} of "
        f"{state.plan.redeliveries + 1}",
    )


def redeliver(turn: Turn, index: int, direction: str, loss: Lost) -> None:
    """Dispatch the same hop again, to another worker: same id, same key, next delivery number."""
    state = turn.state
    data: dict[str, Any] = {"delivery": state.deliveries[index] + 1, "lost": loss.holder}
    if loss.given_back:
        data["given_back"] = True
    fault = state.compensating[index] if state.states[index] == COMPENSATING else None
    if fault is not None:
        data["assess"] = fault.fields()
    turn.record_step(index, SPAWNED, direction=direction, data=data)
    turn.commands.append(Dispatch(index, direction, fault))


def deliver_emissions(turn: Turn, hop: str) -> None:
    turn.commands.extend(Deliver(emission) for emission in turn.state.emissions.values() if emission.hop == hop)
