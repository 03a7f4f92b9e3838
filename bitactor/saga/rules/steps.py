"""How pulses of a step change the state; those that open and settle scopes are in `scopes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitactor.messages.codec import token_from_bytes
from bitactor.messages.pulse import (
    COMPLETED,
    FAILED,
    POISON,
    RUNNING,
    SKIPPED,
    UNDELIVERED,
    UNDO_FAILED,
    UNDONE,
    Pulse,
)
from bitactor.messages.signal import Fault
from bitactor.saga.commands import Emission
from bitactor.saga.phases import (
    BACKING_OFF,
    COMPENSATING,
    FAILING,
    HALTING,
    IN_DOUBT,
    IN_FLIGHT,
    UNDO_BACKING_OFF,
    UNDO_RUNNING,
    UNDOING,
    WAITING,
)
from bitactor.saga.rules.scopes import (
    add_planned_steps,
    fail_scope,
    interrupt_proceed,
    opened_container,
    planned_step_settled,
    release_dependents,
)
from bitactor.saga.rules.transaction import begin_failing
from bitactor.saga.state import Failure, SagaState, writable


def spawned(state: SagaState, pulse: Pulse, index: int) -> None:
    state.states[index] = RUNNING
    state.in_flight += 1
    state.hops_spent += 1
    state.attempts[index] = pulse.attempt
    state.deliveries[index] = 1
    state.ttls[index] = pulse.ttl
    state.hops[index] = pulse.hop
    state.causes[index] = pulse.causes
    state.spawned_at_ns[index] = pulse.at_ns
    if pulse.data is not None:
        arguments = pulse.data.get("decided") or {}
        writable(state, "evaluated")[index] = {name: token_from_bytes(token) for name, token in arguments.items()}
        if "opening" in pulse.data:
            opened_container(state, index, pulse.data["opening"])


def spawned_again(state: SagaState, pulse: Pulse, index: int) -> None:
    """Take in a redelivery, or the dispatch that asks a compensation."""
    data = pulse.data or {}
    interrupt_proceed(state, index)
    _expect_late(state, pulse.hop, index)
    if "lost" in data:
        _record_doubt(state, pulse.hop, index)
        _count_given_back(state, pulse.hop, data)
    state.deliveries[index] = data["delivery"]
    state.spawned_at_ns[index] = pulse.at_ns
    if state.states[index] not in IN_FLIGHT:
        state.in_flight += 1
    if "assess" in data:
        writable(state, "compensating")[index] = Fault(*data["assess"])
        state.states[index] = COMPENSATING


def _count_given_back(state: SagaState, hop: str, data: Mapping[str, Any]) -> None:
    if data.get("given_back"):
        writable(state, "given_back")[hop] = state.given_back.get(hop, 0) + 1


def completed(state: SagaState, pulse: Pulse, index: int) -> None:
    state.states[index] = COMPLETED
    state.in_flight -= 1
    state.unsettled_count -= 1
    state.tokens[index] = pulse.token_out
    if index in state.steps_in_doubt:
        _clear_doubt(state, index)
    step = state.steps[index]
    if index < state.plan_size or step.undo is not None:
        state.completion_order.append(index)
    data = pulse.data
    if data is not None:
        if data.get("emits"):
            _record_emissions(state, pulse, data)
        if "planned" in data and state.goes_forward(index) and add_planned_steps(state, index, data["planned"]):
            return
    unmet_dependencies = state.unmet_dependencies
    for dependent in step.dependents:
        unmet_dependencies[dependent] -= 1
    if index >= state.plan_size:
        planned_step_settled(state, index)


def settled_without_run(state: SagaState, pulse: Pulse, index: int) -> None:
    """Settle a step that is skipped, whose guard has answered, or whose container closed before it opened anything: no
    hop was spent."""
    state.states[index] = pulse.kind
    state.unsettled_count -= 1
    state.tokens[index] = pulse.token_out
    state.ttls[index] = state.ttl_of_causes(state.steps[index])
    state.causes[index] = pulse.causes
    release_dependents(state, index)


def _record_emissions(state: SagaState, pulse: Pulse, data: Mapping[str, Any]) -> None:
    for position, (name, token) in enumerate(data.get("emits") or ()):
        emission = Emission(f"{pulse.hop}:{position}", name, token_from_bytes(token), pulse.ttl, pulse.hop)
        writable(state, "emissions")[emission.id] = emission


def failed(state: SagaState, pulse: Pulse, index: int) -> None:
    data = pulse.data or {}
    if "ended_by" in data:
        return  # an open container; the pulse of what failed follows, and stops it
    if state.states[index] in IN_FLIGHT:
        state.in_flight -= 1
    if "tolerated" in data:
        _tolerated(state, pulse, index, data)
        return
    fault = Fault(*data["fault"])
    if data.get("in_doubt"):
        _put_in_doubt(state, pulse, index)
    else:
        state.states[index] = state.unless_in_doubt(index, FAILED)
    if "caught" in data:
        fail_scope(state, index, fault)
        return
    if state.phase != FAILING or fault.type != "bitactor.errors:Cancelled":
        state.errors.append(Failure(pulse.hop, fault, pulse.step, pulse.direction, pulse.attempt))
    begin_failing(state, pulse)


def _tolerated(state: SagaState, pulse: Pulse, index: int, data: Mapping[str, Any]) -> None:
    """Settle a step that failed and is not required: its result is None.  If it is in doubt, undo asks it like any
    other."""
    if data.get("in_doubt"):
        _put_in_doubt(state, pulse, index)
    state.states[index] = state.unless_in_doubt(index, SKIPPED)
    state.unsettled_count -= 1
    state.tokens[index] = None
    if not state.hops[index]:
        state.ttls[index] = state.ttl_of_causes(state.steps[index])
        state.causes[index] = pulse.causes
    release_dependents(state, index)


def retried(state: SagaState, pulse: Pulse, index: int) -> None:
    interrupt_proceed(state, index)
    if state.states[index] in IN_FLIGHT:
        state.in_flight -= 1
    state.states[index] = BACKING_OFF
    state.failures[index] += 1
    writable(state, "due_ns")[index] = (pulse.data or {})["due_ns"]


def timed_out(state: SagaState, pulse: Pulse, index: int) -> None:
    state.in_flight -= 1
    if state.states[index] == RUNNING:
        writable(state, "awaited_runs")[pulse.hop, state.deliveries[index]] = index
    _put_in_doubt(state, pulse, index)


def _expect_late(state: SagaState, hop: str, index: int) -> None:
    """Expect a late reply to the step's delivery, which is not waited for any more."""
    writable(state, "unanswered_runs")[hop, state.deliveries[index]] = index
    scope = state.steps[index].scope
    if scope is not None:
        scope.pinned = True


def _put_in_doubt(state: SagaState, pulse: Pulse, index: int) -> None:
    _expect_late(state, pulse.hop, index)
    _record_doubt(state, pulse.hop, index)
    state.states[index] = IN_DOUBT


def _record_doubt(state: SagaState, hop: str, index: int) -> None:
    if state.states[index] == RUNNING:
        writable(state, "runs_in_doubt")[hop, state.deliveries[index]] = index
    elif index not in state.steps_in_doubt:
        return  # only its assessment was lost; the run itself is known not to have happened
    if index in state.steps_in_doubt:
        state.completion_order.remove(index)
    state.steps_in_doubt |= {index}
    state.completion_order.append(index)


def _clear_doubt(state: SagaState, index: int) -> None:
    """Take a step out of those in doubt."""
    state.steps_in_doubt -= {index}
    state.completion_order.remove(index)
    state.runs_in_doubt = {run: other for run, other in state.runs_in_doubt.items() if other != index}
    state.awaited_runs = {run: other for run, other in state.awaited_runs.items() if other != index}


def tombstoned(state: SagaState, pulse: Pulse, index: int) -> None:
    if pulse.error in UNDELIVERED:
        state.dead = state.lost_step = True
    if pulse.error == POISON and state.states[index] in IN_FLIGHT:
        state.in_flight -= 1
        _put_in_doubt(state, pulse, index)


def halted(state: SagaState, pulse: Pulse, index: int) -> None:
    if "lost" in (pulse.data or {}):
        _expect_late(state, pulse.hop, index)
        _record_doubt(state, pulse.hop, index)
    interrupt_proceed(state, index)
    state.in_flight -= 1
    state.states[index] = WAITING
    state.phase = HALTING


def late(state: SagaState, pulse: Pulse, index: int) -> None:
    data = pulse.data or {}
    if state.unanswered_runs:
        state.unanswered_runs.pop((pulse.hop, data["delivery"]), None)
    if state.awaited_runs:
        state.awaited_runs.pop((pulse.hop, data["delivery"]), None)
    if data.get("happened") is True:
        if state.states[index] == IN_DOUBT:
            state.states[index] = COMPLETED
        if state.stopping or state.steps[index].required:  # else others have gone on with None
            state.tokens[index] = pulse.token_out
        at = state.completion_order.index(index)
        _clear_doubt(state, index)
        state.completion_order.insert(at, index)
    elif data.get("happened") is False:
        if state.runs_in_doubt:
            state.runs_in_doubt.pop((pulse.hop, data["delivery"]), None)
        if index not in state.runs_in_doubt.values():
            _clear_doubt(state, index)
            if state.states[index] in (IN_DOUBT, UNDO_FAILED):
                state.states[index] = FAILED if state.steps[index].required else SKIPPED


def undo_spawned(state: SagaState, pulse: Pulse, index: int) -> None:
    data = pulse.data or {}
    if "delivery" in data:
        writable(state, "unanswered_runs")[pulse.hop, state.deliveries[index]] = index
        state.deliveries[index] = data["delivery"]
        _count_given_back(state, pulse.hop, data)
    else:
        if pulse.attempt == 1:
            state.failures[index] = 0  # counts those of its undo from now on
        state.undo_attempts[index] = pulse.attempt
        state.deliveries[index] = 1
    state.states[index] = UNDO_RUNNING
    state.undoing = index
    state.spawned_at_ns[index] = pulse.at_ns
    state.phase = UNDOING


def undone(state: SagaState, pulse: Pulse, index: int) -> None:
    state.states[index] = UNDONE
    state.undoing = -1
    at = len(state.completion_order) - 1  # undo goes from the end, and so finds it there
    while state.completion_order[at] != index:
        at -= 1
    del state.completion_order[at]
    if pulse.data is not None:
        _record_emissions(state, pulse, pulse.data)


def undo_retried(state: SagaState, pulse: Pulse, index: int) -> None:
    state.states[index] = UNDO_BACKING_OFF
    state.failures[index] += 1
    writable(state, "due_ns")[index] = (pulse.data or {})["due_ns"]


def undo_failed(state: SagaState, pulse: Pulse, index: int) -> None:
    fault = Fault(*(pulse.data or {})["fault"])
    state.errors.append(Failure(pulse.hop, fault, pulse.step, pulse.direction, pulse.attempt))
    if state.states[index] == UNDO_RUNNING:
        writable(state, "unanswered_runs")[pulse.hop, state.deliveries[index]] = index
    # One that never ran spends its attempt too: the next is another hop, with an end of its own.
    state.undo_attempts[index] = pulse.attempt
    state.states[index] = UNDO_FAILED
    state.undoing = -1
    state.undo_failed = True
    state.phase = UNDOING


def undo_tombstoned(state: SagaState, pulse: Pulse, index: int) -> None:
    """Change nothing: an `undo_failed` pulse follows, which says everything."""
