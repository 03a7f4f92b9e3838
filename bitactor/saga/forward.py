"""The way forward: what a settled hop makes ready, and what follows the failure, timeout or loss of one in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from bitactor.declare.backoff import DEFAULT_BACKOFF, Backoff
from bitactor.errors import DefinitionError, ProtocolError, StepTimeout, WorkerLost
from bitactor.messages.codec import Packed, decode_token
from bitactor.messages.ids import join_hop_id
from bitactor.messages.pulse import (
    COMPENSATED,
    COMPLETED,
    FAILED,
    HALTED,
    LATE,
    POISON,
    REJECTED,
    RETRIED,
    RUNNING,
    SPAWNED,
    TIMED_OUT,
    TOMBSTONE,
    TTL_EXPIRED,
    UNROUTABLE,
    Pulse,
)
from bitactor.messages.signal import FORWARD, Fault, Reply
from bitactor.plan.container import AnswerFunctionAround, Close, FailContainer
from bitactor.saga.commands import (
    AnswerProceed,
    ArmRetry,
    CancelHop,
    Dispatch,
    Evaluate,
)  # fmt: skip
from bitactor.saga.events import (
    HopExpired,
    Lost,
    Replied,
    RetryDue,
    Unrouted,
)
from bitactor.saga.phases import BACKING_OFF, FAILING, HALTING, IN_FLIGHT, UNDOING, WAITING
from bitactor.saga.rollback import (
    continue_stopping,
    deliver_emissions,
    end_containers,
    is_awaited,
    late_reply,
    lost_fault,
    redeliver,
    stop,
)
from bitactor.saga.rules.steps import completed, spawned
from bitactor.saga.state import SagaState
from bitactor.saga.then import resolve
from bitactor.saga.turn import Turn, emits_data, jitter_fraction

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the two pulses and one command of an ordinary hop."""


def replied(turn: Turn, event: Replied) -> None:
    state = turn.state
    index, reply, holder = event
    _, hop, delivery, epoch, outcome, token, _, _, emits, elapsed_ns, _, planned, _ = reply
    if holder or turn.held:
        turn.held = (hop, holder) if holder else None
    if (
        state.states[index] in IN_FLIGHT
        and hop == state.hops[index]
        and delivery == state.deliveries[index]
        and epoch == state.epoch
    ):
        if (
            index >= state.plan_size
            and state.steps[index].around_container is not None
            and returns_early(state, index, reply)
        ):
            address = state.steps[index].address
            text = f"{address!r} answered before the steps it is around were done; let it `await proceed()`"
            fail(turn, index, Fault("bitactor.errors:InvalidOutcome", text), elapsed_ns=elapsed_ns)
        elif outcome == "ok" and not emits and planned is None:
            _complete(turn, index, hop, token, elapsed_ns, holder)
        elif outcome == "ok":
            _complete_with_emissions_or_steps(turn, index, reply)
        else:
            _OUTCOMES.get(outcome, _reply_failed)(turn, index, reply)
    else:
        late_reply(turn, index, reply)


def returns_early(state: SagaState, index: int, reply: Reply) -> bool:
    """Whether a function around nested steps returns while some of them have begun and are not done."""
    scope = state.steps[index].scope
    if reply.outcome not in ("ok", "continue") or scope is None or not state.goes_forward(index):
        return False
    return state.progress[scope.container].open > 1


def _complete(turn: Turn, index: int, hop: str, token: Any, elapsed_ns: int, holder: str | int) -> None:
    """Complete an ordinary hop: what `Turn.record_step` would do, without asking what an ordinary hop rules out."""
    state = turn.state
    step = state.steps[index]
    pulse: Pulse = _new(
        Pulse,
        (
            state.transaction, state.root, state.plan.workflow, state.seq, hop, (), COMPLETED, step.name,
            step.spawn, FORWARD, state.attempts[index], state.ttls[index], turn.now_ns, elapsed_ns, None,
            token, None, {"holder": holder} if holder else None, state.digest,
        ),
    )  # fmt: skip
    turn.pulses.append(pulse)
    completed(state, pulse, index)
    state.seq += 1
    continue_after(turn, index)


def _complete_with_emissions_or_steps(turn: Turn, index: int, reply: Reply) -> None:
    """Complete a hop that has emitted signals or planned steps; steps that cannot be planned fail it."""
    state = turn.state
    data = emits_data(reply)
    if reply.planned is not None and state.goes_forward(index):
        try:
            planned = decode_token(Packed(reply.planned))
            resolve(state, index, planned)
        except (DefinitionError, ProtocolError, LookupError, TypeError, ValueError, AttributeError) as error:
            fail(turn, index, Fault("bitactor.errors:InvalidOutcome", str(error)), elapsed_ns=reply.elapsed_ns)
            return
        data = {**(data or {}), "planned": planned}
    hop = state.hops[index]
    turn.record_step(index, COMPLETED, elapsed_ns=reply.elapsed_ns, token_out=reply.token, data=data)
    deliver_emissions(turn, hop)
    continue_after(turn, index)


def _reply_continue(turn: Turn, index: int, reply: Reply) -> None:
    fault, data = reply.fault, emits_data(reply)
    turn.record_step(index, COMPENSATED, elapsed_ns=reply.elapsed_ns, token_out=reply.token, error=fault, data=data)
    deliver_emissions(turn, reply.hop)
    continue_after(turn, index)


def continue_after(turn: Turn, index: int) -> None:
    """Start what waited for a step that has settled; finish if nothing is left."""
    state = turn.state
    if state.phase is not RUNNING:
        continue_stopping(turn)
        return
    dependents = state.steps[index].dependents
    if dependents:
        spawn_ready(turn, dependents)
    if state.ready_candidates or state.pending_containers:
        start_pending(turn)
    if not state.unsettled_count and state.phase is RUNNING:
        turn.finish(COMPLETED)


def spawn_ready(turn: Turn, candidates: Iterable[int]) -> None:
    state = turn.state
    unmet_dependencies, states = state.unmet_dependencies, state.states
    for index in candidates:
        if not unmet_dependencies[index] and states[index] == WAITING and state.phase is RUNNING:
            if index >= state.plan_size and state.awaits_proceed(index):
                continue
            if state.steps[index].needs_evaluation and index not in state.evaluated:
                _request_evaluation(turn, index)
            else:
                spawn(turn, index)


def spawn(turn: Turn, index: int, data: Mapping[str, Any] | None = None) -> None:
    """Spawn the first attempt of a step, or a further one; the one place where TTL falls."""
    state = turn.state
    step = state.steps[index]
    ttl = state.ttl_of_causes(step)
    if ttl <= 0:
        _expire(turn, index)
        return
    if state.plan.max_hops is not None and state.hops_spent >= state.plan.max_hops:
        _refuse_more_hops(turn, index)
        return
    attempt = state.attempts[index] + 1
    hop = join_hop_id(state.salt, step.forward_code if attempt == 1 else step.code(FORWARD, attempt))
    pulse: Pulse = _new(
        Pulse,
        (
            state.transaction, state.root, state.plan.workflow, state.seq, hop, state.causes_of(step), SPAWNED,
            step.name, step.spawn, FORWARD, attempt, ttl - 1, turn.now_ns, None, step.token_in, None, None, data,
            state.digest,
        ),
    )  # fmt: skip
    turn.pulses.append(pulse)
    spawned(state, pulse, index)
    state.seq += 1
    turn.commands.append(_new(Dispatch, (index, FORWARD, None)))


def _expire(turn: Turn, index: int) -> None:
    state = turn.state
    chain = [*state.trail, *state.chain_to(index)]
    turn.record_step(index, TOMBSTONE, reason=TTL_EXPIRED, data={"chain": chain, "ttl": state.ttl})
    fail(turn, index, state.out_of_hops(index, chain))


def _refuse_more_hops(turn: Turn, index: int) -> None:
    state = turn.state
    address, allowed = state.steps[index].address, state.plan.max_hops
    hop, workflow = state.hops_spent + 1, state.plan.workflow
    message = f"{address!r} would be hop {hop} of {workflow!r}, which may take {allowed} (max_hops)"
    turn.record_step(index, TOMBSTONE, reason=REJECTED)
    fail(turn, index, Fault("bitactor.errors:TooManyHops", message))


def fail(turn: Turn, index: int, fault: Fault, *, elapsed_ns: int | None = None, in_doubt: bool = False) -> None:
    """A step failed for good: cancel what is in flight, then undo; without it the transaction goes on if the step
    is not required, or a container catches the failure."""
    state = turn.state
    if not state.steps[index].required and state.phase in (RUNNING, HALTING):
        tolerated = {"in_doubt": True, "tolerated": True} if in_doubt else {"tolerated": True}
        turn.record_step(index, FAILED, elapsed_ns=elapsed_ns, error=fault, data=tolerated)
        continue_after(turn, index)
        return
    if state.phase in (RUNNING, HALTING) and (scope := state.catching_scope(index)) is not None:
        caught = {"in_doubt": True, "caught": True} if in_doubt else {"caught": True}
        others = [other for other in state.steps_within(scope) if other != index]
        flying = [other for other in others if state.states[other] in IN_FLIGHT]
        end_containers(turn, fault, others, state.steps[index].name)
        turn.record_step(index, FAILED, elapsed_ns=elapsed_ns, error=fault, data=caught)
        turn.commands.extend(CancelHop(other) for other in flying)
        continue_after(turn, index)
        return
    beginning = state.phase not in (FAILING, UNDOING)
    if beginning and state.progress:
        end_containers(turn, fault, [other for other in state.progress if other != index], state.steps[index].name)
    data = {"in_doubt": True} if in_doubt else None
    turn.record_step(index, FAILED, elapsed_ns=elapsed_ns, error=fault, data=data)
    if beginning:
        stop(turn)
    else:
        continue_stopping(turn)


def _reply_failed(turn: Turn, index: int, reply: Reply) -> None:
    fault = reply.fault or Fault("bitactor.outcome:Fail", reply.reason)
    if reply.outcome != "fail":
        address = turn.state.steps[index].address
        fault = Fault("bitactor.errors:InvalidOutcome", f"{address!r} was answered with {reply.outcome!r}")
    fail(turn, index, fault, elapsed_ns=reply.elapsed_ns)


def _reply_cancelled(turn: Turn, index: int, reply: Reply) -> None:
    fault = reply.fault or Fault("bitactor.errors:Cancelled", "cancelled before it had answered")
    fail(turn, index, fault, elapsed_ns=reply.elapsed_ns, in_doubt=True)


def _reply_retry(turn: Turn, index: int, reply: Reply) -> None:
    fault = reply.fault or Fault("bitactor.outcome:Retry", reply.reason or "asked for another try")
    _retry(turn, index, fault, reply.after_ns, reply.elapsed_ns)


def _retry(turn: Turn, index: int, fault: Fault, after_ns: int | None, elapsed_ns: int | None) -> None:
    state = turn.state
    step = state.steps[index]
    failures = state.failures[index] + 1
    if (
        state.phase not in (RUNNING, HALTING)
        or failures > step.retries
        or (index >= state.plan_size and state.failed_scope(index) is not None)
    ):
        fail(turn, index, fault, elapsed_ns=elapsed_ns)
        return
    if after_ns is None:
        backoff = step.backoff if isinstance(step.backoff, Backoff) else DEFAULT_BACKOFF
        after_ns = backoff.delay_ns(failures, jitter_fraction(state.hops[index]))
    due_ns = turn.now_ns + after_ns
    data = {"due_ns": due_ns, "after_ns": after_ns}
    turn.record_step(index, RETRIED, elapsed_ns=elapsed_ns, error=fault, data=data)
    turn.commands.append(ArmRetry(index, due_ns))
    continue_stopping(turn)


def _reply_halt(turn: Turn, index: int, reply: Reply) -> None:
    if not turn.state.goes_forward(index):
        fail(turn, index, Fault("bitactor.outcome:Halt", reply.reason), elapsed_ns=reply.elapsed_ns)
        return
    turn.record_step(index, HALTED, elapsed_ns=reply.elapsed_ns, data={"reason": reply.reason})
    continue_stopping(turn)


def _reply_timed_out(turn: Turn, index: int, reply: Reply) -> None:
    fault = reply.fault or Fault("bitactor.errors:StepTimeout", "timed out where it ran")
    _time_out(turn, index, fault, reply.elapsed_ns)


def hop_expired(turn: Turn, event: HopExpired) -> None:
    state = turn.state
    index, delivery, fault, holder, _ = event
    if state.states[index] in IN_FLIGHT and delivery == state.deliveries[index]:
        turn.held = (state.hops[index], holder)
        _time_out(turn, index, fault, turn.now_ns - state.spawned_at_ns[index])


def _time_out(turn: Turn, index: int, fault: Fault, elapsed_ns: int | None) -> None:
    state = turn.state
    compensate = state.goes_forward(index) and state.states[index] == RUNNING and state.steps[index].asks_compensation
    turn.record_step(index, TIMED_OUT, elapsed_ns=elapsed_ns, error=fault)
    _after_doubt(turn, index, fault, compensate=compensate, retry=_is_retryable(state, index, fault))


def lost(turn: Turn, event: Lost) -> None:
    state = turn.state
    index, delivery, holder, given_back, _ = event
    if state.states[index] not in IN_FLIGHT or delivery != state.deliveries[index]:
        if is_awaited(state, (state.hops[index], delivery)):
            data = {"delivery": delivery, "outcome": "lost", "happened": None}
            turn.record_step(index, LATE, data=data)
            continue_stopping(turn)
        return
    if (given_back or state.losses(index, FORWARD) <= state.plan.redeliveries) and state.goes_forward(index):
        redeliver(turn, index, FORWARD, event)
        return
    compensate = (
        state.goes_forward(index) and state.states[index] == RUNNING and state.steps[index].compensate is not None
    )
    fault = lost_fault(state, index, FORWARD, holder)
    turn.record_step(index, TOMBSTONE, reason=POISON, data={"holder": holder, "fault": fault.fields()})
    _after_doubt(turn, index, fault, compensate=compensate, retry=False)


def _after_doubt(turn: Turn, index: int, fault: Fault, *, compensate: bool, retry: bool) -> None:
    """An attempt ended, and nobody knows what it did: ask its compensation, try again, or fail."""
    state = turn.state
    turn.commands.append(CancelHop(index))
    if state.phase is FAILING:
        continue_stopping(turn)
    elif compensate:
        data = {"assess": fault.fields(), "delivery": state.deliveries[index] + 1}
        turn.record_step(index, SPAWNED, data=data)
        turn.commands.append(Dispatch(index, FORWARD, fault))
    elif retry:
        _retry(turn, index, fault, None, None)
    else:
        fail(turn, index, fault, in_doubt=True)


def _is_retryable(state: SagaState, index: int, fault: Fault) -> bool:
    step = state.steps[index]
    kind = _OWN_ERRORS.get(fault.type)
    return state.failures[index] < step.retries and kind is not None and issubclass(kind, step.retry_on)


def unrouted(turn: Turn, event: Unrouted) -> None:
    state = turn.state
    index, delivery, fault, _ = event
    if state.states[index] in IN_FLIGHT and delivery == state.deliveries[index]:
        turn.record_step(index, TOMBSTONE, reason=UNROUTABLE, data={"fault": fault.fields()})
        fail(turn, index, fault)


def retry_due(turn: Turn, event: RetryDue) -> None:
    if turn.state.states[event.step] == BACKING_OFF:
        spawn(turn, event.step)


def _request_evaluation(turn: Turn, index: int) -> None:
    state = turn.state
    if index not in state.being_evaluated:
        state.being_evaluated = state.being_evaluated or set()
        state.being_evaluated.add(index)
        turn.commands.append(Evaluate(index))


def start_pending(turn: Turn) -> None:
    """While the transaction is not running, what is pending is dropped: a resume looks for it in the state."""
    state = turn.state
    ready_candidates, pending_containers = state.ready_candidates, state.pending_containers
    while state.phase is RUNNING and (ready_candidates or pending_containers):
        if ready_candidates:
            ready = ready_candidates[:]
            ready_candidates.clear()
            spawn_ready(turn, ready)
        else:
            advance_container(turn, pending_containers.pop(0))
    ready_candidates.clear()
    pending_containers.clear()


def advance_container(turn: Turn, index: int) -> None:
    state = turn.state
    progress = state.progress.get(index)
    next_action = None if progress is None else progress.next_action
    if next_action is None:
        return  # seen to already
    if type(next_action) is Close:
        close_container(turn, index, next_action.token)
        spawn_ready(turn, state.steps[index].dependents)
    elif type(next_action) is FailContainer:
        fail(turn, index, next_action.fault)
    elif type(next_action) is AnswerFunctionAround:
        _answer_proceed(turn, index)
    else:
        _request_evaluation(turn, index)


def close_container(turn: Turn, index: int, token: Any) -> None:
    turn.record_step(index, COMPLETED, elapsed_ns=turn.now_ns - turn.state.spawned_at_ns[index], token_out=token)


def _answer_proceed(turn: Turn, index: int) -> None:
    """Answer the `proceed()` of the function around nested steps with their result, if that function waits."""
    state = turn.state
    around = _function_around(state, index)
    if around is not None and state.states[around] == RUNNING and state.progress[index].proceeding:
        turn.commands.append(AnswerProceed(around, state.progress[index].round_results[0]))


def _function_around(state: SagaState, container: int) -> int | None:
    return next(
        (
            index
            for index in range(state.plan_size, len(state.states))
            if state.states[index] in IN_FLIGHT
            and state.steps[index].around_container is not None
            and (scope := state.steps[index].scope) is not None
            and scope.container == container
        ),
        None,
    )


_OWN_ERRORS: Final[Mapping[str, type[BaseException]]] = {
    "bitactor.errors:StepTimeout": StepTimeout,
    "bitactor.errors:WorkerLost": WorkerLost,
}

_OUTCOMES: Final[Mapping[str, Callable[[Turn, int, Reply], None]]] = {
    "continue": _reply_continue,
    "retry": _reply_retry,
    "fail": _reply_failed,
    "halt": _reply_halt,
    "timed_out": _reply_timed_out,
    "cancelled": _reply_cancelled,
}
