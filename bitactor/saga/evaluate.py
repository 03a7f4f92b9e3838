"""Evaluation of a step before it can be spawned: transforms, predicate, guard; of a container, what to open, and what
follows a round.

User code runs here, once; the saga records what came of it, and nothing is evaluated again.
"""

from __future__ import annotations

from typing import Any

from bitactor.messages.codec import encode_token
from bitactor.messages.outcome import Continue, Ok
from bitactor.plan.arguments import BoundArguments, argument_values, transform_arguments
from bitactor.plan.container import Close, ContainerArguments, Open, Skip
from bitactor.plan.plan import PlanStep
from bitactor.saga.events import Evaluated
from bitactor.saga.phases import OPEN
from bitactor.saga.state import SagaState


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
        values |= argument_values(step.when_arguments, state.tokens, step.address)
        if step.when is not None and not step.when.function(**{name: values[name] for name in step.when.takes}):
            return Evaluated(index, False)
        if step.guard is not None:
            answer = step.guard.function(**{name: values[name] for name in step.guard.takes})
            if answer is not None:
                return Evaluated(
                    index, True, answer=(encode_token(answer.value if isinstance(answer, Ok | Continue) else answer),)
                )
    if step.container is None:
        return Evaluated(index, True, arguments)
    return _evaluated(
        index, step.container.open(ContainerArguments(step.arguments, state.tokens, step.address, arguments)), arguments
    )


def _consult(state: SagaState, step: PlanStep) -> Evaluated:
    given = ContainerArguments(step.arguments, state.tokens, step.address, state.evaluated.get(step.index, {}))
    return _evaluated(step.index, state.container_of(step.index).consult(given, state.progress[step.index]), {})


def _evaluated(index: int, said: Open | Skip | Close, arguments: dict[str, Any]) -> Evaluated:
    if isinstance(said, Open):
        return Evaluated(index, True, arguments, opening=said.scopes)
    if isinstance(said, Close):
        return Evaluated(index, True, answer=(said.token,))
    return Evaluated(index, False)
