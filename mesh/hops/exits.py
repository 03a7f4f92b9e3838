"""Steps that exit: a `SystemExit` or `KeyboardInterrupt` that a task of a step, or of another of the user's functions,
raises is an error of that task.

asyncio lets these two out of any task and out of the loop, which would end the whole node for what one step has done.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, TypeVar

from typing_extensions import override

from bitactor.errors import StepExited
from bitactor.messages.faults import fault_of
from bitactor.messages.values import shown

logger = logging.getLogger("bitactor.exits")

T = TypeVar("T")

IN_USER_CODE: Final = contextvars.ContextVar("bitactor_in_user_code", default=False)
"""Whether this is the context of a step, a resource or a policy, or of a task that one of them has made."""


def contain_exits(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Have the loop contain what tasks of the user's functions raise; returns what undoes that.

    Tasks that are made elsewhere are made as before.
    """
    before = loop.get_task_factory()

    def make(
        loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: contextvars.Context | None = None, **options: Any
    ) -> Any:
        is_users = IN_USER_CODE.get() if context is None else context.get(IN_USER_CODE, False)
        if is_users and asyncio.iscoroutine(coroutine):
            coroutine = ContainedCoroutine(coroutine)
        if context is not None:
            options["context"] = context
        if before is not None:
            return before(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)

    def restore() -> None:
        if loop.get_task_factory() is make:
            loop.set_task_factory(before)

    loop.set_task_factory(make)
    return restore


def run_on(run: Callable[[], T]) -> T:
    """Call `run`, which runs an event loop, again whenever a callback's exit has come out of it, which is logged.

    Such a callback (`call_soon`, a timer, a future's) is no task, and nobody knows whose it is.
    """
    while True:
        try:
            return run()
        except (SystemExit, KeyboardInterrupt) as error:
            text = "a callback on the event loop raised %s; the loop goes on\n%s"
            logger.critical(text, shown(error), fault_of(error).traceback)


class ContainedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that raises `StepExited` in place of what would end the loop.

    An object and no `async def` around the other: one that is cancelled before it has begun would leave that one
    unawaited.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        """What the coroutine has: its name, its frame, …"""
        return getattr(self._coroutine, name)

    @override
    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self._coroutine.__await__())

    @override
    def send(self, value: Any) -> Any:
        try:
            return self._coroutine.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _exited(error) from error

    @override
    def throw(self, *error: Any) -> Any:
        try:
            return self._coroutine.throw(*error)
        except (SystemExit, KeyboardInterrupt) as raised:
            raise _exited(raised) from raised

    @override
    def close(self) -> None:
        self._coroutine.close()


def _exited(error: BaseException) -> StepExited:
    return StepExited(f"a task of a step raised {shown(error)}")
