"""Waiting: until a clock says so, or for what runs beside; everything started here is awaited by who started it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

from bitactor.ports import TimerHandle


class Timers(Protocol):
    """What waiting needs of a `Clock`."""

    def monotonic_ns(self) -> int:
        """See `Clock`."""

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""


class LoopTimers:
    """The timers of the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def monotonic_ns(self) -> int:
        """The loop's own time."""
        return int(self._loop.time() * 1e9)

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See the port."""
        return self._loop.call_at(when_ns / 1e9, callback)


async def sleep_until(timers: Timers, when_ns: int) -> None:
    """Return once the monotonic clock has reached `when_ns`."""
    while timers.monotonic_ns() < when_ns:  # a timer may be early by what was rounded
        woken = asyncio.get_running_loop().create_future()
        timer = timers.call_at(when_ns, partial(_wake, woken))
        try:
            await woken
        finally:
            timer.cancel()


class TaskResult(NamedTuple):
    """How an awaitable ended: by `error`, or with `value`."""

    value: Any
    error: BaseException | None

    def get(self) -> Any:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


async def capture(function: Callable[[], Awaitable[Any]]) -> TaskResult:
    """Await what `function` returns; whatever it raises, `SystemExit` included, which in a task of its own would end
    the loop."""
    try:
        awaitable = function()
        if not inspect.isawaitable(awaitable):
            raise TypeError(f"{function!r} returned {awaitable!r}, which cannot be awaited; make it an `async def`")
        return TaskResult(await awaitable, None)
    except GeneratorExit:
        raise
    except BaseException as error:
        return TaskResult(None, error)


def start(function: Callable[[], Awaitable[Any]]) -> asyncio.Task[TaskResult]:
    """A task for it."""
    return asyncio.get_running_loop().create_task(capture(function))


def result_of(task: asyncio.Task[TaskResult]) -> TaskResult:
    """How a task of `start` that is done has ended."""
    return TaskResult(None, asyncio.CancelledError()) if task.cancelled() else task.result()


async def wait_for_end(task: asyncio.Task[Any], timers: Timers, when_ns: int) -> bool:
    """Wait for the task's end or for `when_ns`, whichever is first; whether it has ended.  The task is left as it
    is."""
    while not task.done() and timers.monotonic_ns() < when_ns:
        woken = asyncio.get_running_loop().create_future()
        wake = partial(_wake, woken)
        timer = timers.call_at(when_ns, wake)
        task.add_done_callback(wake)
        try:
            await woken
        finally:
            task.remove_done_callback(wake)
            timer.cancel()
    return task.done()


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel those that still run, and wait until all have ended, also if cancelled meanwhile; that is then passed
    on."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while left:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            cancelled = error
        left = [task for task in left if not task.done()]
    if cancelled is not None:
        raise cancelled


async def with_timeout(
    function: Callable[[], Awaitable[Any]], timers: Timers, seconds: float | None
) -> tuple[bool, TaskResult]:
    """Await what `function` returns for at most `seconds`, then cancel it and wait for its end; whether it was in time,
    and the ending.

    A value counts, also one that came of being cancelled.
    """
    if seconds is None:
        return True, await capture(function)
    task = start(function)
    try:
        in_time = await wait_for_end(task, timers, timers.monotonic_ns() + round(seconds * 1e9))
    except asyncio.CancelledError:
        await cancel_and_wait([task])
        raise
    await cancel_and_wait([task])
    task_result = result_of(task)
    return in_time or task_result.error is None, task_result


def _wake(waiter: asyncio.Future[None], _task: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)
