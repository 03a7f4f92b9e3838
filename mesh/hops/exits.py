"""Steps that exit: a `SystemExit` or `KeyboardInterrupt` that a task of a step, or of another of the user's functions,
raises is an error of that task.

asyncio lets these two out of any task and out of the loop, which would end the whole node for what one step has done.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Final, TypeVar

from typing_extensions import override

from bitactor.errors import StepExited
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import UNDO, Signal
from bitactor.messages.values import shown

logger = logging.getLogger("bitactor.exits")

T = TypeVar("T")


CODE_OF: Final[contextvars.ContextVar[tuple[Signal, list[asyncio.Task[Any]]] | bool]] = contextvars.ContextVar(
    "bitactor_code_of", default=False
)
"""Whose code has this context, or has made the task that has it: a hop's (its signal, and its actor's `exits`), or that
of a resource or a policy (True)."""


class _Containing:
    """A task factory that contains what tasks of the user's functions raise; tasks that are made elsewhere are made as
    before."""

    def __init__(self, before: Callable[..., Any] | None) -> None:
        self.before = before
        self.users = 0

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Any,
        *,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> Any:
        code_of = CODE_OF.get() if context is None else context.get(CODE_OF, False)
        if code_of and asyncio.iscoroutine(coroutine):
            coroutine = ContainedCoroutine(coroutine)
        if context is not None:
            options["context"] = context
        if self.before is not None:
            return self.before(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)


def contain_exits(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Have the loop contain what tasks of the user's functions raise; returns what undoes that, to be called once.

    Nodes that share a loop share what contains, in whatever order they end.
    """
    found = loop.get_task_factory()
    factory = found if isinstance(found, _Containing) else _Containing(found)
    factory.users += 1

    def restore() -> None:
        factory.users -= 1
        if not factory.users and loop.get_task_factory() is factory:
            loop.set_task_factory(factory.before)

    loop.set_task_factory(factory)
    return restore


def unawaited_exit(tasks: Iterable[asyncio.Task[Any]]) -> BaseException | None:
    """The error of a task that exited, if nobody has looked at it yet."""
    for task in tasks:
        if getattr(task, "_log_traceback", False):  # what asyncio knows that by
            return task.exception()
    return None


def run_on(run: Callable[[], T], must_end: Callable[[BaseException], bool] = lambda error: False) -> T:
    """Call `run`, which runs an event loop, again whenever a callback's exit has come out of it, which is logged; one
    by which the program `must_end` is raised.

    Such a callback (`call_soon`, a timer, a future's) is no task, and nobody knows whose it is.
    """
    while True:
        try:
            return run()
        except (SystemExit, KeyboardInterrupt) as error:
            if must_end(error):
                raise
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
    """The error in place of an exit; the actor of the hop whose task this is will look whether anybody has seen it.

    One that comes after its hop has ended and that nobody awaits is logged by asyncio, as any task's error is.
    """
    code_of, task = CODE_OF.get(), asyncio.current_task()
    if isinstance(code_of, bool):
        return StepExited(f"a task of a resource or a policy raised {shown(error)}")
    signal, exits = code_of
    if task is not None:
        exits.append(task)
    undo = "undo of " if signal.direction == UNDO else ""
    return StepExited(f"a task of {undo}{signal.name!r}, attempt {signal.attempt}, raised {shown(error)}")
