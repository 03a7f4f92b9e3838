"""Timers and tasks: waiting until a time, or for other tasks; every task started here is awaited by whoever started
it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from bitactor.messages.duration import nanoseconds
from bitactor.ports import TimerHandle


class Timers(Protocol):
    """The part of a `Clock` that waiting needs."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that never goes back."""

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """Call `callback` once `monotonic_ns()` has reached `when_ns`."""


class LoopTimers(Timers):
    """The clock and timers of the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    @override
    def monotonic_ns(self) -> int:
        """The loop's own time."""
        return nanoseconds(self._loop.time())

    @override
    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        return self._loop.call_at(when_ns / 1e9, callback)


class TaskResult(NamedTuple):
    """How an awaitable ended: by `error`, or with `value`."""

    value: Any
    error: BaseException | None

    def get(self) -> Any:
        """The value; raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        return self.value


async def capture(function: Callable[[], Awaitable[Any]]) -> TaskResult:
    """Await what `function` returns, and answer with how that ended; no error is raised, not even `SystemExit`, which
    would end the loop if a task raised it."""
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
    """A task that runs `function`; its result is how that ended."""
    return asyncio.get_running_loop().create_task(capture(function))


def result_of(task: asyncio.Task[TaskResult]) -> TaskResult:
    """How the function of a task that `start` made, and that is done, has ended."""
    return TaskResult(None, asyncio.CancelledError()) if task.cancelled() else task.result()


async def sleep_until(timers: Timers, when_ns: int) -> None:
    """Return once the monotonic clock has reached `when_ns`."""
    await wait_for_end(asyncio.get_running_loop().create_future(), timers, when_ns)


async def wait_for_end(task: asyncio.Future[Any], timers: Timers, when_ns: int) -> bool:
    """Wait until the task has ended or `when_ns` has come; True: it has ended.  The task is not cancelled."""
    while not task.done() and timers.monotonic_ns() < when_ns:  # a timer may be early by what was rounded
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
    """Cancel the tasks that still run, and wait until all have ended; a cancellation that comes meanwhile is raised
    after that."""
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
    """Await what `function` returns for at most `seconds`, then cancel it and wait for its end; answers (True if it was
    in time, how it ended).

    A value counts, also one that came of being cancelled.
    """
    if seconds is None:
        return True, await capture(function)
    task = start(function)
    try:
        in_time = await wait_for_end(task, timers, timers.monotonic_ns() + nanoseconds(seconds))
    except asyncio.CancelledError:
        await cancel_and_wait([task])
        raise
    await cancel_and_wait([task])
    task_result = result_of(task)
    return in_time or task_result.error is None, task_result


def _wake(waiter: asyncio.Future[None], _task: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)
