"""The answers of containers and of what else decides on a step: checked before anything follows from them, for a kind
from outside can answer anything; and the fault of a decision that raised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from bitactor.errors import InvalidOutcome
from bitactor.messages.codec import check_token, encode_token
from bitactor.messages.faults import fault_of
from bitactor.messages.outcome import Fail, Outcome
from bitactor.messages.signal import Fault
from bitactor.messages.values import READABLE_BYTES, type_name
from bitactor.plan.container import (
    AnswerFunctionAround,
    Close,
    Consult,
    FailContainer,
    Open,
    Opening,
    Skip,
    Slot,
    Wait,
)
from bitactor.plan.plan import Plan, PlanStep
from bitactor.saga.state import SagaState

OPENED: Final = (Open, Close, Skip)
"""What `Container.open` may answer."""
CONSULTED: Final = (Open, Close)
"""What `Container.consult` may answer."""
FOLLOWING: Final = (Open, Close, FailContainer, Consult, AnswerFunctionAround, Wait)
"""What `Container.after_scope` and `after_failed_scope` may answer."""

INVALID_OUTCOME: Final = "bitactor.errors:InvalidOutcome"
MAX_KEY: Final = 200


def checked_answer(state: SagaState, index: int, answer: Any, allowed: tuple[type, ...]) -> Any:
    """What the container at `index` has answered, as one of the classes in `allowed`.

    Raises:
        InvalidOutcome, SignalTooLarge: it is none, or nothing could follow from it.
    """
    kind = type(answer)
    if kind not in allowed:
        names = ", ".join(known.__name__ for known in allowed)
        raise _invalid(state, index, f"answered a {type_name(answer)}; it answers one of {names}")
    if kind is Open:
        openings = checked_openings(state, index, answer.scopes)
        if not openings:
            raise _invalid(state, index, "opens no scope, and would wait for ever; with nothing to open it closes")
        return Open(openings)
    progress = state.progress.get(index)
    still_open = 0 if progress is None else progress.open
    if kind is Close:
        if still_open:
            raise _invalid(state, index, f"closes while {still_open} of its scopes are open; it answers Wait till then")
        _check_token(state, index, "closes", answer.token)
    elif kind is FailContainer:
        fault = answer.fault
        if type(fault) is not Fault or not all(type(text) is str for text in fault[:3]):
            raise _invalid(state, index, f"fails with a {type_name(fault)}; it fails with a Fault of texts")
        try:
            encode_token(list(fault), READABLE_BYTES)
        except InvalidOutcome as error:
            raise _invalid(state, index, f"fails with a Fault that no journal can hold: {error}") from None
    elif kind is Wait and not still_open and (progress is None or progress.next_action is None):
        raise _invalid(state, index, "waits, and none of its scopes is open")
    elif kind is AnswerFunctionAround and not (
        progress is not None and state.container_of(index).surrounds and 0 in progress.round_results
    ):
        raise _invalid(state, index, "has no function around it that could be answered")
    return answer


def checked_openings(state: SagaState, index: int, scopes: Iterable[Any]) -> list[Opening]:
    """The scopes that the container at `index` opens.

    Raises:
        InvalidOutcome, SignalTooLarge: one of them cannot be opened.
    """
    container, bodies = state.steps[index].name, state.container_of(index).bodies
    checked: list[Opening] = []
    paths: set[str] = set()
    for opening in scopes:
        if type(opening) is not Opening:
            raise _invalid(state, index, f"opens a {type_name(opening)}; what it opens is an Opening")
        key, number, inputs = opening
        if type(key) is not str or len(key) > MAX_KEY or "/" in key or not key.isprintable():
            said = repr(key[:MAX_KEY]) if type(key) is str else f"a {type_name(key)}"
            problem = f"opens a scope whose key is {said}; a key is a printable text without '/'"
            raise _invalid(state, index, problem)
        if type(number) is not int or not 0 <= number < len(bodies):
            wrong = number if type(number) is int else f"a {type_name(number)}"
            raise _invalid(state, index, f"opens scope {key!r} of body {wrong}; it has {len(bodies)}, from 0 on")
        body = bodies[number]
        for path in scope_paths(container, key, body):
            if path in paths or path in state.by_name:
                raise _invalid(state, index, f"opens scope {key!r} twice; its scopes have different keys")
            paths.add(path)
        checked.append(Opening(key, number, _checked_inputs(state, index, key, body, inputs)))
    return checked


def _checked_inputs(state: SagaState, index: int, key: str, body: Plan, inputs: Any) -> tuple[Any, ...]:
    if type(inputs) is not tuple and type(inputs) is not list:
        problem = f"gives scope {key!r} a {type_name(inputs)}; it gives a tuple of tokens"
        raise _invalid(state, index, problem)
    if len(inputs) != len(body.inputs):
        needed = ", ".join(body.inputs) or "none"
        raise _invalid(state, index, f"gives scope {key!r} {len(inputs)} inputs; its body takes {needed}")
    for token in inputs:
        if type(token) is not Slot:
            _check_token(state, index, f"opens scope {key!r}", token)
        elif type(token.place) is not int or not 0 <= token.place < len(state.tokens):
            raise _invalid(state, index, f"gives scope {key!r} a Slot that is no place of its transaction")
    return tuple(inputs)


def _check_token(state: SagaState, index: int, what: str, token: Any) -> None:
    try:
        check_token(token, state.payload_limit)
    except InvalidOutcome as error:
        raise _invalid(state, index, f"{what} with {error}") from None


def scope_paths(container: str, key: str, body: Plan) -> Sequence[str]:
    """The paths of the steps of a scope: `container/key/step`; the key, or the name of a single step, may be empty."""
    at = f"{container}/{key}" if key else container
    return [f"{at}/{step.name}" if step.name else at for step in body.steps]


def decision_fault(step: PlanStep, error: BaseException) -> Fault:
    """The fault of a step that could not be decided on."""
    fault = fault_of(error)
    if issubclass(type(error), Outcome) and not issubclass(type(error), Fail):
        said = (
            f"{type_name(error)} is for a step's function to say, and nothing runs yet that could halt or be tried "
            f"again ({fault.summary()}); let a step before it say so"
        )
        fault = fault._replace(type=INVALID_OUTCOME, message=said, arguments=None)
    return fault._replace(message=f"deciding on {step.address!r}: {fault.message}")


def _invalid(state: SagaState, index: int, problem: str) -> InvalidOutcome:
    return InvalidOutcome(f"the container of kind {state.steps[index].kind!r} {problem}")
