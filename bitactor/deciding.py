"""What is decided about a step before it can be spawned: transforms, predicate, guard; what a container opens, and what
follows a round of it.

User code runs here, once; the saga records what came of it, and nothing is evaluated again.
"""

from __future__ import annotations

from typing import Any

from bitactor.arguments import Bound, argument_values, transformed
from bitactor.codec import encode_token
from bitactor.kinds.port import Close, Given, Open, Skip
from bitactor.outcome import Continue, Ok
from bitactor.plan import PlanStep
from bitactor.saga.phases import OPENED
from bitactor.saga.state import SagaState
from bitactor.saga.stimuli import Decided


def decide(saga: SagaState, index: int) -> Decided:
    """The decision about a step whose dependencies are settled, or about a container whose round is over.

    Raises:
        InvalidInput: a path leads nowhere, or a nested workflow's input does not fit.
        BaseException: whatever the user's functions raise.
    """
    step = saga.steps[index]
    if saga.states[index] == OPENED:
        return _follow(saga, step)
    arguments = transformed(step.arguments, saga.tokens, step.address)
    if step.when is not None or step.guard is not None:
        values = Bound(step.arguments, saga.tokens, step.address, arguments)()
        values |= argument_values(step.when_arguments, saga.tokens, step.address)
        if step.when is not None and not step.when.function(**{name: values[name] for name in step.when.takes}):
            return Decided(index, False)
        if step.guard is not None:
            answer = step.guard.function(**{name: values[name] for name in step.guard.takes})
            if answer is not None:
                return Decided(
                    index, True, answer=(encode_token(answer.value if isinstance(answer, Ok | Continue) else answer),)
                )
    if step.container is None:
        return Decided(index, True, arguments)
    return _outcome(index, step.container.open(Given(step.arguments, saga.tokens, step.address, arguments)), arguments)


def _follow(saga: SagaState, step: PlanStep) -> Decided:
    assert step.container is not None
    given = Given(step.arguments, saga.tokens, step.address, saga.decided.get(step.index, {}))
    return _outcome(step.index, step.container.consult(given, saga.progress[step.index]), {})


def _outcome(index: int, said: Open | Skip | Close, arguments: dict[str, Any]) -> Decided:
    if isinstance(said, Open):
        return Decided(index, True, arguments, opening=said.scopes)
    if isinstance(said, Close):
        return Decided(index, True, answer=(said.token,))
    return Decided(index, False)
