"""Middleware: objects that are told before and after each call of a user's function, and cannot break the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from types import CoroutineType, MappingProxyType
from typing import Any, NamedTuple

from bitactor.declare.functions import refuse_uncallable
from bitactor.errors import ConfigurationError, DefinitionError
from bitactor.messages.signal import Signal
from bitactor.plan.plan import Callback

logger = logging.getLogger("bitactor.middleware")

HOOKS = ("before", "after")


class CallEvent(NamedTuple):
    """One call of a user's function."""

    callback: str
    """Which function of the step: `run`, `compensate`, `backoff` or `undo`."""
    workflow: str
    """The workflow's name."""
    step: str
    """Path of the step."""
    transaction: str
    """The transaction's id."""
    hop: str
    """The hop's id, which is its span id."""
    attempt: int
    """Number of the attempt, from 1."""
    arguments: Mapping[str, Any]
    """What the function is called with; not to be changed."""
    value: Any = None
    """In `after`: the value that the function returned."""
    error: BaseException | None = None
    """In `after`: the exception that the function raised."""
    elapsed_ns: int = 0
    """In `after`: how long the call took, in nanoseconds."""


class Middleware:
    """All middleware of one mesh: objects with a method `before(event)`, `after(event)`, or both.

    They are called where the function runs, in a thread if that is where; for a step in a worker process, in this
    process, around the whole trip. The first one's `before` is called first, and its `after` last.  One that raises is
    logged once, and not called any more.

    Raises:
        ConfigurationError: an object has neither method, or one that takes something else.
    """

    def __init__(self, given: Sequence[Any]) -> None:
        self._members = tuple(given)
        self._disabled: set[int] = set()  # `id()` of each middleware that has raised; it is not called any more
        self._lock = threading.Lock()
        self.disabled: list[str] = []
        for member in given:
            _refuse_other_shapes(member)

    def __len__(self) -> int:
        return len(self._members)

    def wrap(self, callback: Callback, role: str, workflow: str, signal: Signal, step: str) -> Callback:
        """The same callback, with all middleware told before and after each call."""

        def event(arguments: Mapping[str, Any]) -> CallEvent:
            shown = MappingProxyType(dict(arguments))
            return CallEvent(role, workflow, step, signal.transaction, signal.hop, signal.attempt, shown)

        async def awaited(call_event: CallEvent, began: int, coroutine: Awaitable[Any]) -> Any:
            try:
                value = await coroutine
            except BaseException as error:
                self.after(call_event._replace(error=error, elapsed_ns=time.monotonic_ns() - began))
                raise
            self.after(call_event._replace(value=value, elapsed_ns=time.monotonic_ns() - began))
            return value

        def called(**arguments: Any) -> Any:
            call_event, began = self.before(event(arguments)), time.monotonic_ns()
            try:
                value = callback.function(**arguments)
            except BaseException as error:
                self.after(call_event._replace(error=error, elapsed_ns=time.monotonic_ns() - began))
                raise
            if type(value) is CoroutineType:  # of an `async def`, or passed on by a decorator
                return awaited(call_event, began, value)
            self.after(call_event._replace(value=value, elapsed_ns=time.monotonic_ns() - began))
            return value

        return replace(callback, function=called)

    def before(self, event: CallEvent) -> CallEvent:
        """Tell all middleware of a call that begins, the first one first; the answer is the event."""
        for member in self._members:
            self._notify(member, "before", event)
        return event

    def after(self, event: CallEvent) -> None:
        """Tell all middleware of a call that has ended, the first one last."""
        for member in reversed(self._members):
            self._notify(member, "after", event)

    def _notify(self, member: Any, hook: str, event: CallEvent) -> None:
        if id(member) in self._disabled:
            return
        try:
            method = getattr(member, hook, None)
            if method is not None:
                method(event)
        except BaseException:  # sys.exit() included: that is not for middleware to decide
            self._disable(member, hook)

    def _disable(self, member: Any, hook: str) -> None:
        with self._lock:  # it may raise in several threads at once
            if id(member) in self._disabled:
                return
            self._disabled.add(id(member))
            self.disabled.append(f"{type(member).__name__}.{hook}")
        logger.exception("middleware %s.%s raised, and is not called any more", type(member).__name__, hook)


def _refuse_other_shapes(member: Any) -> None:
    found = [hook for hook in HOOKS if hasattr(member, hook)]
    if isinstance(member, type) or not found:
        raise ConfigurationError(f"middleware={member!r}: it has a method before(event), after(event), or both")
    for hook in found:
        method, name = getattr(member, hook), f"{type(member).__name__}.{hook}"
        try:
            refuse_uncallable(f"middleware {name}", method, ("event",))
        except DefinitionError as error:
            raise ConfigurationError(str(error)) from None
