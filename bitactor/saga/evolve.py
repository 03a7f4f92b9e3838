"""Evolution: each pulse is checked against the state before it, and taken in by the rule that a table names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from bitactor.errors import StoreError
from bitactor.messages.pulse import (
    ACCEPTED,
    COMPENSATED,
    COMPLETED,
    EMITTED,
    FAILED,
    FINISHED,
    HALTED,
    LATE,
    RESUMED,
    RETRIED,
    RUNNING,
    SKIPPED,
    SPAWNED,
    TIMED_OUT,
    TOMBSTONE,
    UNDO_FAILED,
    UNDONE,
    Pulse,
)
from bitactor.messages.signal import FORWARD, UNDO
from bitactor.saga.phases import (
    BACKING_OFF,
    COMPENSATING,
    ENDED,
    FAILING,
    HALTING,
    IN_DOUBT,
    NEW,
    OPEN,
    STEP_STATES,
    UNDO_RUNNING,
    UNDOABLE,
    UNDOING,
    WAITING,
)
from bitactor.saga.rules import scopes, steps, transaction
from bitactor.saga.state import SagaState, damaged


def fold(state: SagaState, pulses: Sequence[Pulse]) -> None:
    """Take a journal, or its beginning, into a new state, which is then equal to the live one after the same pulses.

    Raises:
        StoreError: the journal has a gap, or does not fit the plan.
    """
    for pulse in pulses:
        try:
            evolve(state, pulse)
        except StoreError:
            raise
        except Exception as error:
            raise damaged(
                state, pulse, f"lacks what a pulse of its kind has ({type(error).__name__}: {error})"
            ) from error
    state.ready_candidates.clear()
    state.pending_containers.clear()


def evolve(state: SagaState, pulse: Pulse) -> None:
    """Take one pulse into the state.

    Raises:
        StoreError: the pulse does not follow from the state; the journal is damaged or of another workflow.
    """
    if pulse.seq != state.seq:
        raise StoreError(
            f"transaction {state.transaction}: pulse {pulse.seq} where {state.seq} was expected; the journal has a gap"
        )
    if pulse.step:
        index = _index_of(state, pulse)
        before = state.states[index]
        row = STEP_EVOLUTION.get((before, pulse.kind, pulse.direction))
        if row is None:
            raise damaged(state, pulse, f"of a step that is {before}")
        if state.phase not in row.phases:
            raise damaged(state, pulse, f"in a transaction that is {state.phase}")
        if before == WAITING and pulse.kind != LATE:
            _check_beginning(state, pulse, index)
        if pulse.kind == SPAWNED and before != OPEN:
            _check_spawn(state, pulse, index)
        row.rule(state, pulse, index)
    else:
        whole = TRANSACTION_EVOLUTION.get(pulse.kind)
        if whole is None or state.phase not in whole.phases:
            raise damaged(state, pulse, f"in a transaction that is {state.phase}")
        whole.rule(state, pulse)
    state.seq += 1


def _check_beginning(state: SagaState, pulse: Pulse, index: int) -> None:
    step = state.steps[index]
    if state.unmet_dependencies[index]:
        raise damaged(state, pulse, "before what the step waits for")
    expired = state.ttl_of_causes(step) <= 0 or (
        state.plan.max_hops is not None and state.hops_spent >= state.plan.max_hops
    )
    unspawned = {
        FAILED: step.needs_evaluation or expired,
        SKIPPED: step.needs_evaluation,
        COMPLETED: step.needs_evaluation,
        TOMBSTONE: expired,
    }
    if not unspawned.get(pulse.kind, True):
        raise damaged(state, pulse, "although it was never spawned")


def _check_spawn(state: SagaState, pulse: Pulse, index: int) -> None:
    delivery = (pulse.data or {}).get("delivery")
    before = state.undo_attempts if pulse.direction == UNDO else state.attempts
    running = state.states[index] in (
        RUNNING,
        COMPENSATING,
        IN_DOUBT if pulse.direction == FORWARD else UNDO_RUNNING,
    )
    if running != (delivery is not None):
        raise damaged(state, pulse, "which is neither its next attempt nor its next delivery")
    if pulse.direction == UNDO and state.undoing not in (-1, index):
        raise damaged(state, pulse, "while another undo runs")
    is_next = pulse.attempt == before[index] + (not running) or (
        # Older journals have undos that failed without a run and spent no attempt.
        pulse.direction == UNDO and not running and pulse.attempt == before[index] and not state.failures[index]
    )
    if not is_next or (running and delivery != state.deliveries[index] + 1):
        raise damaged(state, pulse, f"attempt {pulse.attempt}, delivery {delivery or 1}, which is not the next one")


def _index_of(state: SagaState, pulse: Pulse) -> int:
    try:
        return state.by_name[pulse.step]
    except KeyError:
        raise damaged(state, pulse, f"of a step that {state.plan.workflow!r} does not have") from None


class StepEvolution(NamedTuple):
    """One row of the table of steps: in any of `phases`, `rule` takes in a pulse of `kind` and `direction` of a step
    that is in any of `states`."""

    kind: str
    direction: str
    states: tuple[str, ...]
    phases: tuple[str, ...]
    rule: Callable[[SagaState, Pulse, int], None]
    leads_to: Mapping[str, str] = {}
    """Phase before the pulse → phase that it may lead to."""


class TransactionEvolution(NamedTuple):
    """One row of the table of transactions: in any of `phases`, `rule` takes in a pulse of `kind` of the transaction
    itself."""

    kind: str
    phases: tuple[str, ...]
    rule: Callable[[SagaState, Pulse], None]
    leads_to: Mapping[str, str] = {}
    """As of `StepEvolution`."""


_FORWARD: Final = (RUNNING, HALTING)
_IN_FLIGHT: Final = (RUNNING, HALTING, FAILING)
_STOPPING: Final = (FAILING, UNDOING)
_BEGUN: Final = (RUNNING, HALTING, HALTED, FAILING, UNDOING, ENDED)
_FLYING: Final = (RUNNING, COMPENSATING)
_FAILABLE: Final = (RUNNING, HALTING, HALTED, ENDED)
_FINISHABLE: Final = (RUNNING, FAILING, UNDOING)

STEP_RULES: Final = (
    StepEvolution(LATE, FORWARD, STEP_STATES, _BEGUN, steps.late),
    StepEvolution(SPAWNED, FORWARD, (WAITING, BACKING_OFF), _FORWARD, steps.spawned),
    StepEvolution(SPAWNED, FORWARD, (*_FLYING, IN_DOUBT), _FORWARD, steps.spawned_again),
    StepEvolution(SPAWNED, FORWARD, (OPEN,), _FORWARD, scopes.opened_more_scopes),
    StepEvolution(SKIPPED, FORWARD, (WAITING,), (RUNNING,), steps.settled_without_run),
    StepEvolution(COMPLETED, FORWARD, (WAITING,), _IN_FLIGHT, steps.settled_without_run),
    StepEvolution(COMPLETED, FORWARD, _FLYING, _IN_FLIGHT, steps.completed),
    StepEvolution(COMPLETED, FORWARD, (OPEN,), _IN_FLIGHT, scopes.closed_container),
    StepEvolution(COMPENSATED, FORWARD, _FLYING, _IN_FLIGHT, steps.completed),
    StepEvolution(
        FAILED,
        FORWARD,
        (WAITING, *_FLYING, BACKING_OFF, IN_DOUBT),
        _IN_FLIGHT,
        steps.failed,
        dict.fromkeys(_FORWARD, FAILING),
    ),
    StepEvolution(FAILED, FORWARD, (OPEN,), (*_FORWARD, HALTED), steps.failed, dict.fromkeys(_FORWARD, FAILING)),
    StepEvolution(RETRIED, FORWARD, (*_FLYING, IN_DOUBT), _FORWARD, steps.retried),
    StepEvolution(TIMED_OUT, FORWARD, _FLYING, _IN_FLIGHT, steps.timed_out),
    StepEvolution(TOMBSTONE, FORWARD, (WAITING, *_FLYING, BACKING_OFF), _IN_FLIGHT, steps.tombstoned),
    StepEvolution(HALTED, FORWARD, _FLYING, _FORWARD, steps.halted, {RUNNING: HALTING}),
    StepEvolution(SPAWNED, UNDO, UNDOABLE, _STOPPING, steps.undo_spawned, {FAILING: UNDOING}),
    StepEvolution(UNDONE, UNDO, (UNDO_RUNNING,), (UNDOING,), steps.undone),
    StepEvolution(RETRIED, UNDO, (UNDO_RUNNING,), (UNDOING,), steps.undo_retried),
    StepEvolution(TOMBSTONE, UNDO, (UNDO_RUNNING,), (UNDOING,), steps.undo_tombstoned),
    StepEvolution(UNDO_FAILED, UNDO, UNDOABLE, _STOPPING, steps.undo_failed, {FAILING: UNDOING}),
)

STEP_EVOLUTION: Final[Mapping[tuple[str, str, str], StepEvolution]] = {
    (state, row.kind, row.direction): row for row in STEP_RULES for state in row.states
}
"""(state of the step, kind of pulse, direction) → its row; a pulse that is not here cannot follow."""

TRANSACTION_RULES: Final = (
    TransactionEvolution(ACCEPTED, (NEW,), transaction.accepted, {NEW: RUNNING}),
    TransactionEvolution(FAILED, _FAILABLE, transaction.failed, dict.fromkeys(_FAILABLE, FAILING)),
    TransactionEvolution(TOMBSTONE, _BEGUN, transaction.tombstoned),
    TransactionEvolution(EMITTED, _BEGUN, transaction.emitted),
    TransactionEvolution(HALTED, (HALTING,), transaction.halted, {HALTING: HALTED}),
    TransactionEvolution(RESUMED, _BEGUN, transaction.resumed, {HALTED: RUNNING, ENDED: UNDOING}),
    TransactionEvolution(FINISHED, _FINISHABLE, transaction.finished, dict.fromkeys(_FINISHABLE, ENDED)),
)

TRANSACTION_EVOLUTION: Final[Mapping[str, TransactionEvolution]] = {row.kind: row for row in TRANSACTION_RULES}
"""Kind of a pulse of the transaction itself → its row."""
