"""Answers of users' functions that are called where nothing can be awaited and nothing runs yet that could be tried
again: predicates, transforms, guards, and what makes one value of others."""

from __future__ import annotations

from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from bitactor.declare.then import Then
from bitactor.errors import InvalidOutcome
from bitactor.messages.outcome import Continue, Ok, Outcome
from bitactor.messages.values import shown, type_name


def plain_answer(what: str, answer: Any) -> Any:
    """`answer` itself, if it is nothing to be awaited; a coroutine is closed.

    Raises:
        InvalidOutcome: it is.
    """
    kind = type(answer)
    if kind is CoroutineType:
        answer.close()
    elif not hasattr(kind, "__await__"):
        return answer
    raise InvalidOutcome(f"{what} answered a {type_name(answer)}, which is not awaited there; make it a plain function")


def predicate_answer(what: str, answer: Any) -> Any:
    """The answer of a predicate, whose truth counts.

    Raises:
        InvalidOutcome: it is true whatever was meant: something to be awaited or iterated, or a verdict's `Ok(…)`.
        Outcome: it is that verdict.
    """
    plain_answer(what, answer)
    kind = type(answer)
    if issubclass(kind, Outcome):
        raise answer
    if issubclass(kind, (Ok, Continue, Then, GeneratorType, AsyncGeneratorType)):
        raise InvalidOutcome(f"{what} answered {shown(answer)}, which is neither true nor false; return True or False")
    return answer
