"""User code at its worst: what it may raise, and what it may return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final

import pytest
from pydantic import BaseModel, model_serializer

from bitactor import Continue
from tests.e2e.support import SPAWNERS

HOMES: Final = pytest.mark.parametrize(
    ("store", "place"), [*(("memory", place) for place in SPAWNERS), ("sqlite", "loop")], indirect=["store"]
)
"""Everywhere that a step without a process of its own runs, and once on a store that keeps what was raised as text."""


class Unprintable(Exception):
    """One whose message cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def _kind_of(make: Callable[[], BaseException]) -> str:
    return type(make()).__name__


EXCEPTIONS: Final[list[Callable[[], BaseException]]] = [
    lambda: SystemExit(3),
    lambda: KeyboardInterrupt(),
    lambda: GeneratorExit(),
    lambda: asyncio.CancelledError(),
    lambda: StopIteration(7),
    lambda: StopAsyncIteration(),
    lambda: RecursionError("deep"),
    lambda: MemoryError(),
    lambda: BaseExceptionGroup("two", [SystemExit(), ValueError("x")]),
    lambda: Unprintable(),
    lambda: ValueError("half a surrogate: \ud800"),
    lambda: ValueError(object()),
    lambda: TimeoutError("my own"),
    lambda: KeyError("of no harm"),
]

RAISED: Final = pytest.mark.parametrize("make", EXCEPTIONS, ids=_kind_of)


class Stubborn(BaseModel):
    """A model that cannot be written down."""

    @model_serializer
    def serialise(self) -> Any:
        raise LookupError("not today")


def cyclic() -> list[Any]:
    """A list that contains itself."""
    found: list[Any] = []
    found.append(found)
    return found


def deep() -> list[Any]:
    """A hundred lists in each other."""
    found: list[Any] = []
    for _ in range(100):
        found = [found]
    return found


UNCARRIABLE: Final[dict[str, tuple[Callable[[], Any], str]]] = {
    "object": (object, "a object cannot be carried"),
    "lambda": (lambda: lambda: 1, "a function cannot be carried"),
    "exception": (lambda: ValueError("returned"), "a ValueError cannot be carried"),
    "surrogate": (lambda: "\ud800", "a str cannot be carried"),
    "surrogate inside": (lambda: {"a": ["\ud800"]}, "a dict cannot be carried"),
    "cyclic": (cyclic, "a list cannot be carried"),
    "deep": (deep, "nested deeper than"),
    "too large": (lambda: b"x" * (5 * 1024 * 1024), "the limit is"),
    "too large text": (lambda: "x" * (5 * 1024 * 1024), "the limit is"),
    "lock": (threading.Lock, "a lock cannot be carried"),
    "stubborn model": (lambda: Stubborn(), "a Stubborn cannot be carried"),
    "class": (lambda: ValueError, "a type cannot be carried"),
    "continue": (lambda: Continue(1), "Continue is for compensate"),
}
"""Name → what makes it, and what the error says of it."""
