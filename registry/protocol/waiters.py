"""Who waits for an answer of the server: a future, answered once; who gave up meanwhile is not told."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

Waiting = Future[Any]


def resolve(waiting: Waiting, value: object) -> None:
    """Answer with a value."""
    with suppress(InvalidStateError):
        waiting.set_result(value)


def fail(waiting: Waiting, error: BaseException) -> None:
    """Answer with an error."""
    with suppress(InvalidStateError):
        waiting.set_exception(error)
