"""Scatter-gather: one question to many targets, and the answers of enough of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from bitactor.errors import ConfigurationError
from bitactor.messages.duration import nanoseconds
from bitactor.patterns.errors import TimedOut, TooFewAnswers
from bitactor.patterns.options import is_number
from bitactor.patterns.parallel import Fetched
from bitactor.patterns.tasks import LoopTimers, TaskResult, Timers, cancel_and_wait, result_of, sleep_until, start
from bitactor.ports import Clock

Target = TypeVar("Target")
Value = TypeVar("Value")


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
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise ConfigurationError(f"scatter_gather: timeout={timeout!r}; give a number of seconds, more than zero")
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


def _needed(asked: list[Any], at_least: int | None) -> int:
    if len(set(asked)) < len(asked):
        raise ConfigurationError(f"scatter_gather: a target is there twice in {asked!r}; targets name the answers")
    if at_least is None:
        return len(asked)
    if isinstance(at_least, bool) or not isinstance(at_least, int) or not 0 <= at_least <= len(asked):
        raise ConfigurationError(
            f"scatter_gather: at_least={at_least!r}; give a whole number from 0 to {len(asked)}, the number of targets"
        )
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
    errors = "; ".join(f"{target!r}: {error!r}" for target, error in list(gathered.failed.items())[:3])
    came, asked = len(gathered.successful), len(gathered.successful) + len(gathered.failed)
    error = TooFewAnswers(
        f"{came} of {asked} answered, {needed} were needed ({errors}{', …' if len(gathered.failed) > 3 else ''})",
        successful=gathered.successful,
        failed=gathered.failed,
    )
    error.__cause__ = next(iter(gathered.failed.values()), None)
    return error
