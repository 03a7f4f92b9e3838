"""Containers: how they open, go on and close, and how user code is asked about steps.

What user code decides (a predicate, a choice, what a round comes to) is asked of the supervisor with `Evaluate` and
answered with `Evaluated`; a function around nested steps asks for them with `Proceeded` and gets `AnswerProceed`.
"""

from __future__ import annotations

from bitactor.messages.codec import token_bytes
from bitactor.messages.pulse import COMPLETED, RUNNING, SKIPPED, SPAWNED
from bitactor.plan.container import Consult
from bitactor.saga.commands import CancelHop
from bitactor.saga.events import Evaluated, Proceeded
from bitactor.saga.forward import (
    advance_container,
    close_container,
    continue_after,
    fail,
    lost,
    spawn,
    spawn_ready,
    start_pending,
)
from bitactor.saga.phases import HALTING, IN_FLIGHT, OPEN, WAITING
from bitactor.saga.rollback import continue_stopping, pause_function_around
from bitactor.saga.rules.answers import checked_openings, decision_fault
from bitactor.saga.rules.scopes import opening_data
from bitactor.saga.turn import Turn


def evaluated(turn: Turn, event: Evaluated) -> None:
    state = turn.state
    index = event.step
    if index not in state.being_evaluated:
        return
    state.being_evaluated.discard(index)
    if state.states[index] == OPEN:
        _apply_consultation(turn, event)
        return
    if state.states[index] != WAITING or state.unmet_dependencies[index] or index in state.evaluated:
        return
    if event.fault is not None:
        fail(turn, index, event.fault)
    elif not event.run:
        turn.record_step(index, SKIPPED)
        continue_after(turn, index)
    elif event.answer is not None:
        turn.record_step(index, COMPLETED, token_out=event.answer[0], data={"answered": True})
        continue_after(turn, index)
    else:
        arguments = {name: bytes(token_bytes(token)) for name, token in (event.arguments or {}).items()}
        if event.opening is not None:
            data = {"decided": arguments, "opening": opening_data(event.opening)}
            turn.record_step(index, SPAWNED, data=data)
            start_pending(turn)
        else:
            spawn(turn, index, {"decided": arguments})


def _apply_consultation(turn: Turn, event: Evaluated) -> None:
    """Apply the answer of user code to a container whose round is over."""
    index = event.step
    progress = turn.state.progress[index]
    if type(progress.next_action) is not Consult:
        return
    if event.fault is not None:
        fail(turn, index, event.fault)
    elif event.answer is not None:
        close_container(turn, index, event.answer[0])
        continue_after(turn, index)
    else:
        turn.record_step(index, SPAWNED, data={"opening": opening_data(event.opening or ())})
        start_pending(turn)


def proceeded(turn: Turn, event: Proceeded) -> None:
    """The function around nested steps has called `proceed()`: open their scope, or, after an interruption, let its
    steps go on."""
    state = turn.state
    index, delivery = event
    step = state.steps[index]
    if (
        state.states[index] != RUNNING
        or delivery != state.deliveries[index]
        or step.scope is None
        or step.around_container is None
    ):
        return
    if not state.goes_forward(index):
        turn.commands.append(CancelHop(index))
        return
    if state.phase is HALTING:
        pause_function_around(turn, index)
        continue_stopping(turn)
        return
    container = step.scope.container
    progress = state.progress[container]
    if not progress.proceeding:
        try:
            opening = checked_openings(state, container, step.around_container.nested(progress))
        except BaseException as error:  # of a kind from outside
            fail(turn, container, decision_fault(state.steps[container], error))
            return
        turn.record_step(container, SPAWNED, data={"opening": opening_data(opening)})
        for other in [other for other in state.awaiting_redelivery if not state.awaits_proceed(other)]:
            loss = state.awaiting_redelivery.pop(other)
            if state.states[other] in IN_FLIGHT:
                lost(turn, loss._replace(delivery=state.deliveries[other]))
        start_pending(turn)
        spawn_ready(turn, range(state.plan_size, len(state.states)))
    if progress.next_action is not None:
        advance_container(turn, container)
