"""How pulses of the transaction itself change the state."""

from __future__ import annotations

from bitactor.messages.pulse import COMPLETED, FAILED, HALTED, RUNNING, UNDELIVERED, UNDO_FAILED, Pulse
from bitactor.messages.signal import FORWARD, Fault
from bitactor.messages.values import MAX_TOKEN_BYTES
from bitactor.saga.phases import BACKING_OFF, ENDED, FAILING, IN_DOUBT, OPEN, UNDOABLE, UNDOING, WAITING
from bitactor.saga.state import EMPTY, Failure, SagaState, damaged, input_tokens, writable


def accepted(state: SagaState, pulse: Pulse) -> None:
    data = pulse.data or {}
    state.phase = RUNNING
    state.accepted_at_ns = pulse.at_ns
    state.ttl = data["ttl"]
    state.deadline_ns = data["deadline_ns"]
    state.metadata = data.get("metadata")
    state.payload_limit = data.get("payload_limit", MAX_TOKEN_BYTES)
    if len(state.tokens) == len(state.plan.steps):
        state.tokens += input_tokens(state.plan, pulse.token_out)


def failed(state: SagaState, pulse: Pulse) -> None:
    data = pulse.data or {}
    if state.phase == ENDED and state.status != COMPLETED:
        raise damaged(state, pulse, f"in a transaction that ended {state.status}")
    fault = Fault(*data["fault"])
    place = state.at_work_longest() if fault.type == "bitactor.errors:DeadlineExceeded" else None
    blamed = ("", FORWARD, 0) if place is None else place[1:]
    state.errors.append(Failure(pulse.hop, fault, *blamed))
    state.cancelling = state.cancelling or bool(data.get("cancel"))
    begin_failing(state, pulse)


def begin_failing(state: SagaState, pulse: Pulse) -> None:
    if state.phase in (FAILING, UNDOING):
        return
    state.phase = FAILING
    state.status = RUNNING
    state.stopping_since_ns = pulse.at_ns
    for index, now in enumerate(state.states):
        if now == BACKING_OFF:
            state.states[index] = state.unless_in_doubt(index, FAILED)
        elif now == OPEN:
            state.states[index] = FAILED
        elif now == WAITING and index in state.steps_in_doubt:
            # It halted after an attempt of which nobody knows.
            state.states[index] = IN_DOUBT


def tombstoned(state: SagaState, pulse: Pulse) -> None:
    emission = state.emissions.pop((pulse.data or {}).get("emit", ""), None) if state.emissions else None
    if pulse.error in UNDELIVERED:
        state.dead = True
        if emission is not None:
            writable(state, "undelivered")[emission.id] = emission


def emitted(state: SagaState, pulse: Pulse) -> None:
    """Every group has taken a signal; or, with `again`, one that nobody took is on its way again."""
    data = pulse.data or {}
    if not data.get("again"):
        del state.emissions[data["emit"]]
        return
    if data["emit"] not in state.undelivered:
        raise damaged(state, pulse, "of a signal that is no dead letter")
    emission = state.undelivered.pop(data["emit"])
    writable(state, "emissions")[emission.id] = emission._replace(again=True)
    state.dead = state.lost_step or bool(state.undelivered)


def halted(state: SagaState, pulse: Pulse) -> None:
    state.phase = HALTED
    state.status = HALTED
    for index, now in enumerate(state.states):
        if now == BACKING_OFF:
            state.states[index] = WAITING


def resumed(state: SagaState, pulse: Pulse) -> None:
    data = pulse.data or {}
    state.stopping_since_ns = pulse.at_ns
    if "epoch" in data:
        state.epoch = data["epoch"]
        state.awaited_runs = EMPTY  # they ended with the process they ran in, or will be late
        return
    if state.phase == HALTED:
        state.phase = RUNNING
        state.status = RUNNING
        state.deadline_ns = data["deadline_ns"]
        return
    if state.phase != ENDED or not state.undo_failed:
        raise damaged(state, pulse, f"in a transaction that is {state.phase}")
    state.status = RUNNING
    state.phase = UNDOING
    state.undo_failed = False
    for index, now in enumerate(state.states):
        if now == UNDO_FAILED:
            state.failures[index] = 0  # whoever resumed it has mended the cause: its retries begin anew
            state.states[index] = state.unless_in_doubt(index, COMPLETED)


def finished(state: SagaState, pulse: Pulse) -> None:
    status = (pulse.data or {})["status"]
    if (
        (status == COMPLETED) != (state.phase == RUNNING)
        or (status == COMPLETED and state.unsettled_count)
        or state.in_flight
    ):
        raise damaged(state, pulse, f"{status!r}, which it cannot be yet")
    if status != COMPLETED and any(
        state.steps[index].undo is not None and state.states[index] in UNDOABLE for index in state.completion_order
    ):
        raise damaged(state, pulse, f"{status!r}, although something is left to undo")
    state.phase = ENDED
    state.status = status
