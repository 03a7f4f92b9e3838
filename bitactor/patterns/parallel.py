"""Concurrent calls within one step: over the elements of an iterable, over named operations, or one question to many
targets, of which enough have to answer.

Nothing that is started here outlives the call: what is not wanted any more is cancelled and awaited, also when the step
itself is cancelled. (An operation that swallows its cancellation is therefore waited for.)
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, NoReturn, TypeVar, overload

from bitactor.errors import ConfigurationError, suggest
from bitactor.messages.duration import duration_rule, is_duration, nanoseconds
from bitactor.messages.values import shown
from bitactor.patterns.errors import TimedOut, TooFewAnswers
from bitactor.patterns.tasks import (
    LoopTimers,
    TaskResult,
    Timers,
    cancel_and_wait,
    result_of,
    sleep_until,
    start,
    with_timeout,
)
from bitactor.ports import Clock

Item = TypeVar("Item")
Key = TypeVar("Key")
Target = TypeVar("Target")
Value = TypeVar("Value")

RAISE: Final = "raise"
COLLECT: Final = "collect"


@dataclass(frozen=True, slots=True)
class FailedItem(Generic[Item]):
    """An element for which the function failed, with its index and error."""

    index: int
    """Its place among the elements, from 0."""
    item: Item
    """The element."""
    error: BaseException
    """What the function raised."""


class Mapped(NamedTuple, Generic[Item, Value]):
    """The answer of `parallel_map(…, on_error="collect")`: results and failed elements, both in the order of the
    elements."""

    successful: list[Value]
    """The results."""
    failed: list[FailedItem[Item]]
    """The elements for which there is none."""


class Fetched(NamedTuple, Generic[Key, Value]):
    """Results and errors by name, each in the order in which the names were given."""

    successful: dict[Key, Value]
    """Name → result."""
    failed: dict[Key, BaseException]
    """Name → error."""


@overload
async def parallel_map(
    function: Callable[[Item], Awaitable[Value]],
    items: Iterable[Item],
    *,
    concurrency: int,
    on_error: Literal["raise"] = "raise",
    timeout_each: float | None = None,
    clock: Clock | None = None,
) -> list[Value]: ...


@overload
async def parallel_map(
    function: Callable[[Item], Awaitable[Value]],
    items: Iterable[Item],
    *,
    concurrency: int,
    on_error: Literal["collect"],
    timeout_each: float | None = None,
    clock: Clock | None = None,
) -> Mapped[Item, Value]: ...


async def parallel_map(
    function: Callable[[Item], Awaitable[Value]],
    items: Iterable[Item],
    *,
    concurrency: int,
    on_error: Literal["raise", "collect"] = "raise",
    timeout_each: float | None = None,
    clock: Clock | None = None,
) -> list[Value] | Mapped[Item, Value]:
    """`function` of each element, at most `concurrency` at once; results in the order of the elements, which are taken
    as they are needed.

    Args:
        on_error: `"raise"`: the first error cancels the rest and is raised · `"collect"`: all are run, and the answer
            is a `Mapped`.
        timeout_each: seconds for one element, which then fails with `TimedOut`.
        clock: for tests; the loop's own time if None.

    Raises:
        ConfigurationError: an option is invalid.
        Exception: what `function` raised, with `on_error="raise"`; what `items` raised.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        _refuse("parallel_map", "concurrency", concurrency, "give a whole number, 1 or more")
    if on_error not in (RAISE, COLLECT):
        _refuse("parallel_map", "on_error", on_error, "it is 'raise' or 'collect'")
    _check_seconds("parallel_map", "timeout_each", timeout_each)
    run = _Map(function, items, timeout_each, clock or LoopTimers(), stop_at_error=on_error == RAISE)
    await run.run(concurrency)
    successful = [run.results[index] for index in sorted(run.results)]
    if on_error == RAISE:
        return successful
    return Mapped(successful, sorted(run.failed, key=lambda failed: failed.index))


class _Stop(Exception):
    """Raised in a worker: all workers are to stop."""


class _Map(Generic[Item, Value]):
    """Workers that share one iterator."""

    def __init__(
        self,
        function: Callable[[Item], Awaitable[Value]],
        items: Iterable[Item],
        timeout: float | None,
        timers: Timers,
        *,
        stop_at_error: bool,
    ) -> None:
        self._function = function
        self._source: Iterator[tuple[int, Item]] = enumerate(items)
        self._timeout = timeout
        self._timers = timers
        self._stop_at_error = stop_at_error
        self.results: dict[int, Value] = {}
        self.failed: list[FailedItem[Item]] = []
        self._first_error: BaseException | None = None

    async def run(self, concurrency: int) -> None:
        """Run `concurrency` workers until the elements are used up; raises the first error if that is to stop them."""
        workers: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        try:
            for first in self._source:
                workers.append(loop.create_task(self._work(first)))
                if len(workers) == concurrency:
                    break
            if workers:
                await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        except (Exception, asyncio.CancelledError):
            await cancel_and_wait(workers)
            _retrieve(workers)
            raise
        await cancel_and_wait(workers)
        _retrieve(workers)
        if self._first_error is not None:
            raise self._first_error

    async def _work(self, first: tuple[int, Item]) -> None:
        index, item = first
        while True:
            await self._one(index, item)
            if _being_cancelled():  # and the function took no notice
                return
            try:
                index, item = next(self._source)
            except StopIteration:
                return
            except Exception as error:
                raise self._stop(error) from None

    async def _one(self, index: int, item: Item) -> None:
        in_time, task_result = await with_timeout(lambda: self._function(item), self._timers, self._timeout)
        if task_result.error is None:
            self.results[index] = task_result.value
            return
        if isinstance(task_result.error, asyncio.CancelledError) and _being_cancelled():
            raise task_result.error
        error = task_result.error if in_time else _timed_out(f"element {index}", self._timeout, task_result.error)
        if self._stop_at_error:
            raise self._stop(error)
        self.failed.append(FailedItem(index, item, error))

    def _stop(self, error: BaseException) -> _Stop:
        self._first_error = self._first_error or error
        return _Stop()


def _retrieve(workers: Iterable[asyncio.Task[None]]) -> None:
    """Retrieve every worker's error, so that asyncio reports none as never retrieved."""
    for task in workers:
        if not task.cancelled():
            task.exception()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def parallel_fetch(
    operations: Mapping[Key, Callable[[], Awaitable[Value]]],
    *,
    timeout: float | Mapping[Key, float] | None = None,
    clock: Clock | None = None,
) -> Fetched[Key, Value]:
    """All operations at once, each with a time limit of its own; a slow or failing one takes nothing from the others.

        fetched = await parallel_fetch({"customers": crm.customers, "orders": lambda: shop.orders(since)}, timeout=2.0)
        fetched.successful["customers"], fetched.failed.get("orders")

    Args:
        timeout: seconds for each, or for each name (a name that is missing has no limit); what takes longer fails with
            `TimedOut`.
        clock: for tests; the loop's own time if None.

    Raises:
        ConfigurationError: an option is invalid, or an operation is no function.
    """
    for name, operation in operations.items():
        if not callable(operation):
            if inspect.iscoroutine(operation):
                operation.close()
            raise ConfigurationError(
                f"parallel_fetch: {name!r} is {operation!r}; give a function that starts it: lambda: …"
            )
    limits = _limits(operations, timeout)
    timers = clock or LoopTimers()
    tasks = {name: start(lambda name=name: with_timeout(operations[name], timers, limits[name])) for name in operations}  # type: ignore[misc]
    try:
        if tasks:
            await asyncio.wait(tasks.values())
    except asyncio.CancelledError:
        await cancel_and_wait(tasks.values())
        raise
    fetched: Fetched[Key, Value] = Fetched({}, {})
    for name, task in tasks.items():
        in_time, task_result = result_of(task).get()
        if task_result.error is None:
            fetched.successful[name] = task_result.value
        else:
            fetched.failed[name] = (
                task_result.error if in_time else _timed_out(repr(name), limits[name], task_result.error)
            )
    return fetched


async def scatter_gather(
    function: Callable[[Target], Awaitable[Value]],
    targets: Iterable[Target],
    *,
    at_least: int | None = None,
    timeout: float | None = None,
    clock: Clock | None = None,
) -> Fetched[Target, Value]:
    """Ask all targets at once and wait for all of them, at most `timeout` seconds; then those that answered are the
    answer.

        quotes = await scatter_gather(ask_price, suppliers, at_least=2, timeout=1.5)

    Args:
        targets: each once; they name the answers.
        at_least: so many must answer (all of them unless told otherwise); once they cannot any more, nobody is waited
            for.
        timeout: seconds; who has not answered by then is cancelled and counts as failed (`TimedOut`).
        clock: for tests; the loop's own time if None.

    Raises:
        ConfigurationError: an option is invalid.
        TooFewAnswers: fewer answered; it has what came in `successful` and `failed`.
    """
    asked = list(targets)
    needed = _needed(asked, at_least)
    _check_seconds("scatter_gather", "timeout", timeout)
    tasks = {target: start(lambda target=target: function(target)) for target in asked}  # type: ignore[misc]
    try:
        await _gather(tasks.values(), needed, clock or LoopTimers(), timeout)
    except asyncio.CancelledError:
        await cancel_and_wait(tasks.values())
        raise
    late = {task for task in tasks.values() if not task.done()}
    await cancel_and_wait(tasks.values())
    gathered: Fetched[Target, Value] = Fetched({}, {})
    for target, task in tasks.items():
        task_result = result_of(task)
        if task_result.error is None:
            gathered.successful[target] = task_result.value
        else:
            gathered.failed[target] = (
                TimedOut(f"{target!r} had not answered yet") if task in late else task_result.error
            )
    if len(gathered.successful) < needed:
        raise _too_few(gathered, needed)
    return gathered


def _limits(operations: Mapping[Key, Any], timeout: float | Mapping[Key, float] | None) -> dict[Key, float | None]:
    if not isinstance(timeout, Mapping):
        _check_seconds("parallel_fetch", "timeout", timeout)
        return dict.fromkeys(operations, timeout)
    for name, seconds in timeout.items():
        if name not in operations:
            hint = suggest(str(name), map(str, operations))
            raise ConfigurationError(f"parallel_fetch: timeout= names {name!r}, which is no operation.{hint}")
        _check_seconds("parallel_fetch", f"timeout[{name!r}]", seconds)
    return {name: timeout.get(name) for name in operations}


def _timed_out(what: str, seconds: float | None, cause: BaseException) -> TimedOut:
    error = TimedOut(f"{what} took longer than {seconds:g} s")
    error.__cause__ = None if isinstance(cause, asyncio.CancelledError) else cause
    return error


def _check_seconds(function: str, option: str, value: float | None) -> None:
    if value is not None and not is_duration(value):
        _refuse(function, option, value, f"give {duration_rule()}")


def _refuse(function: str, option: str, value: Any, why: str) -> NoReturn:
    raise ConfigurationError(f"{function}: {option}={value!r}; {why}")


def _needed(asked: list[Any], at_least: int | None) -> int:
    if len(set(asked)) < len(asked):
        raise ConfigurationError(f"scatter_gather: a target is there twice in {asked!r}; targets name the answers")
    if at_least is None:
        return len(asked)
    if isinstance(at_least, bool) or not isinstance(at_least, int) or not 0 <= at_least <= len(asked):
        why = f"give a whole number from 0 to {len(asked)}, the number of targets"
        _refuse("scatter_gather", "at_least", at_least, why)
    return at_least


async def _gather(
    tasks: Iterable[asyncio.Task[TaskResult]], needed: int, timers: Timers, timeout: float | None
) -> None:
    """Wait until all tasks have ended, `timeout` is over, or `needed` successes cannot be reached any more."""
    pending = set(tasks)
    reachable = len(pending)
    alarm = None
    if timeout is not None:
        alarm = asyncio.get_running_loop().create_task(
            sleep_until(timers, timers.monotonic_ns() + nanoseconds(timeout))
        )
    try:
        while pending and reachable >= needed and not (alarm is not None and alarm.done()):
            await asyncio.wait([*pending, *([alarm] if alarm else [])], return_when=asyncio.FIRST_COMPLETED)
            done = {task for task in pending if task.done()}
            pending -= done
            reachable -= sum(result_of(task).error is not None for task in done)
    finally:
        if alarm is not None:
            await cancel_and_wait([alarm])


def _too_few(gathered: Fetched[Any, Any], needed: int) -> TooFewAnswers:
    errors = "; ".join(f"{shown(target)}: {shown(error)}" for target, error in list(gathered.failed.items())[:3])
    came, asked = len(gathered.successful), len(gathered.successful) + len(gathered.failed)
    error = TooFewAnswers(
        f"{came} of {asked} answered, {needed} were needed ({errors}{', …' if len(gathered.failed) > 3 else ''})",
        successful=gathered.successful,
        failed=gathered.failed,
    )
    error.__cause__ = next(iter(gathered.failed.values()), None)
    return error
