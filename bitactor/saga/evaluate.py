"""What is made of a step before it runs: its evaluation (transforms, predicate, guard; of a container, what to open,
and what follows a round), and the signal that its hop gets.

User code runs here, once; the saga records what came of it, and nothing is evaluated again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitactor.declare.answer import plain_answer, predicate_answer
from bitactor.errors import InvalidOutcome
from bitactor.messages.codec import encode_token
from bitactor.messages.faults import traceback_of
from bitactor.messages.outcome import Continue, Ok, Outcome
from bitactor.messages.signal import FORWARD, UNDO, Fault, Signal
from bitactor.plan.arguments import BoundArguments, transform_arguments
from bitactor.plan.container import Close, ContainerArguments, Open, Skip
from bitactor.plan.plan import Callback, PlanStep
from bitactor.saga.events import Evaluated
from bitactor.saga.phases import OPEN
from bitactor.saga.rules.answers import CONSULTED, INVALID_OUTCOME, OPENED, checked_answer, decision_fault
from bitactor.saga.state import SagaState

_new = tuple.__new__


def decide(state: SagaState, index: int) -> tuple[Evaluated, BaseException | None]:
    """What `evaluate` says; or that the step fails, and the error it fails with."""
    try:
        return evaluate(state, index), None
    except BaseException as error:
        fault = decision_fault(state.steps[index], error)
        if fault.type == INVALID_OUTCOME:  # what it is made of in another process
            error = InvalidOutcome(fault.message).with_traceback(traceback_of(error))
        return Evaluated(index, True, None, fault), error


def evaluate(state: SagaState, index: int) -> Evaluated:
    """The decision about a step whose dependencies are settled, or about a container whose round is over.

    Raises:
        InvalidInput: a path leads nowhere, or a nested workflow's input does not fit.
        BaseException: whatever the user's functions raise.
    """
    step = state.steps[index]
    if state.states[index] == OPEN:
        return _consult(state, step)
    arguments = transform_arguments(step.arguments, state.tokens, step.address)
    if step.when is not None or step.guard is not None:
        values = BoundArguments(step.arguments, state.tokens, step.address, arguments)()
        asked = transform_arguments(step.when_arguments, state.tokens, step.address)
        values |= BoundArguments(step.when_arguments, state.tokens, step.address, asked)()
        if step.when is not None and not predicate_answer("`when`", _asked(step.when, values)):
            return Evaluated(index, False)
        if step.guard is not None:
            answer = plain_answer("`guard`", _asked(step.guard, values))
            if answer is not None:
                return Evaluated(
                    index,
                    True,
                    answer=(encode_token(answer.value if issubclass(type(answer), Ok | Continue) else answer),),
                )
    if step.container is None:
        return Evaluated(index, True, arguments)
    answer = step.container.open(ContainerArguments(step.arguments, state.tokens, step.address, arguments))
    return _evaluated(index, checked_answer(state, index, answer, OPENED), arguments)


def _asked(callback: Callback, values: Mapping[str, Any]) -> Any:
    answer = callback.function(**{name: values[name] for name in callback.takes})
    if issubclass(type(answer), Outcome):
        raise answer
    return answer


def _consult(state: SagaState, step: PlanStep) -> Evaluated:
    given = ContainerArguments(step.arguments, state.tokens, step.address, state.evaluated.get(step.index, {}))
    answer = state.container_of(step.index).consult(given, state.progress[step.index])
    return _evaluated(step.index, checked_answer(state, step.index, answer, CONSULTED), {})


def _evaluated(index: int, said: Open | Skip | Close, arguments: dict[str, Any]) -> Evaluated:
    if isinstance(said, Open):
        return Evaluated(index, True, arguments, opening=said.scopes)
    if isinstance(said, Close):
        return Evaluated(index, True, answer=(said.token,))
    return Evaluated(index, False)


def signal_of(state: SagaState, step: PlanStep, direction: str, fault: Fault | None) -> Signal:
    """The signal of a step's latest hop in one direction; whoever carries it adds the arguments.

    Its time is the step's timeout, or what was left of the deadline when the hop was spawned, if that is less.
    """
    index = step.index
    budget_ns = step.timeout_ns
    if state.deadline_ns is not None and direction is FORWARD:
        left = state.deadline_ns - state.spawned_at_ns[index]
        if budget_ns is None or left < budget_ns:
            budget_ns = left if left > 0 else 0
    undoing = direction is UNDO
    retries = step.undo.retries if undoing and step.undo is not None else step.retries
    return _new(
        Signal,
        (
            step.address, state.transaction, state.root, state.undo_hop(index) if undoing else state.hops[index],
            (state.hops[index],) if undoing else state.causes[index], direction,
            state.undo_attempts[index] if undoing else state.attempts[index], state.deliveries[index], state.epoch,
            state.ttls[index], budget_ns, None, "", fault, state.parent, state.metadata,
            undoing and index in state.steps_in_doubt, retries - state.failures[index], state.trail,
            "" if index < state.plan_size else step.name, None,
        ),
    )  # fmt: skip
