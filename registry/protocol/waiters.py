"""Futures of those who wait for an answer of the server: each is answered once; one whose caller gave up is left
alone."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

Waiting = Future[Any]


def resolve(waiting: Waiting, value: object) -> None:
    """Answer `waiting` with a value."""
    with suppress(InvalidStateError):
        waiting.set_result(value)


def fail(waiting: Waiting, error: BaseException) -> None:
    """Answer `waiting` with an error."""
    with suppress(InvalidStateError):
        waiting.set_exception(error)
