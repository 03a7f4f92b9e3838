"""A task whose first step runs at once.

Most hops never suspend, or suspend late; waiting a turn of the loop to begin costs more than the rest of the hop.  Yet
the user's code must see what it sees in any task, from its first line on: `current_task()`, `timeout()`, `TaskGroup`,
context variables, cancellation.  So it is a real task.  Python 3.12 starts tasks eagerly on request; before, a task
asks its loop's `call_soon` to run its first step, and this module catches that one call.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Coroutine
from typing import Any


class EagerTaskStarter:
    """Starts tasks on one loop.  Must be called from a loop callback, not from inside a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._attributes = loop.__dict__
        self._intercepted: list[Callable[[], None]] = []
        self.start: Callable[[Coroutine[Any, Any, None], str, contextvars.Context], asyncio.Task[None]]
        # Makes a task of a coroutine and runs its first step before returning
        self.start = self._start_natively if sys.version_info >= (3, 12) else self._start_intercepted

    def _start_natively(
        self, coroutine: Coroutine[Any, Any, None], name: str, context: contextvars.Context
    ) -> asyncio.Task[None]:
        return asyncio.Task(coroutine, loop=self._loop, name=name, context=context, eager_start=True)  # type: ignore[call-arg, unused-ignore]

    def _start_intercepted(
        self, coroutine: Coroutine[Any, Any, None], name: str, context: contextvars.Context
    ) -> asyncio.Task[None]:
        attributes = self._attributes
        attributes["call_soon"] = self._intercept
        try:
            task = asyncio.Task(coroutine, loop=self._loop, name=name, context=context)
        finally:
            del attributes["call_soon"]
        context.run(self._intercepted.pop())
        return task

    def _intercept(self, callback: Callable[[], None], *, context: contextvars.Context | None = None) -> None:
        self._intercepted.append(callback)
