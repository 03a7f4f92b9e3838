"""Too long is cancelled, in time; what takes its place; and those that do not listen."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from pattern_calls import BOUND, Bench, Step, turns

from bitactor.patterns import TimedOut, Timeout


async def test_what_is_in_time_is_left_alone() -> None:
    bench = Bench(Timeout("x", 1.0, fallback="late"))
    assert await bench.now(3) == 3
    with pytest.raises(KeyError):
        await bench.now(KeyError("own"))
    assert bench.state.about() == {"calls": 2, "timed_out": 0, "fell_back": 0, "zombies": 0}
    assert bench.clock.next_timer_ns() is None


async def test_too_long_is_cancelled_and_an_error() -> None:
    bench = Bench(Timeout("quotes", 1.5))
    step = Step()
    task = bench.begin(step)
    await bench.pass_time(1.4)
    assert not task.done()
    await bench.pass_time(0.1)
    error = task.exception()
    assert isinstance(error, TimedOut) and isinstance(error, TimeoutError)
    assert str(error) == "shop/price: took longer than the 1.5 s of timeout 'quotes'"
    assert step.cancelled == 1 and bench["timed_out"] == 1 and bench["fell_back"] == 0


async def asynchronous(symbol: str, error: Exception) -> str:
    await asyncio.sleep(0)
    return f"{symbol} {type(error).__name__}"


@pytest.mark.parametrize(
    ("fallback", "value"),
    [(None, None), ([1], [1]), (lambda symbol: symbol.lower(), "abc"), (asynchronous, "ABC TimedOut")],
)
async def test_the_fallback_is_the_answer(fallback: Any, value: Any) -> None:
    bench = Bench(Timeout("x", 1.0, fallback=fallback))
    task = bench.begin(Step(), {"symbol": "ABC"})
    await bench.pass_time(1.0)
    assert task.result() == value
    assert bench["timed_out"] == bench["fell_back"] == 1


async def test_an_error_of_the_fallback_is_the_steps() -> None:
    bench = Bench(Timeout("x", 1.0, fallback=lambda: 1 / 0))
    task = bench.begin(Step())
    await bench.pass_time(1.0)
    assert isinstance(task.exception(), ZeroDivisionError)


async def test_its_clean_up_is_awaited() -> None:
    bench = Bench(Timeout("x", 1.0, fallback="late"))
    cleaned = asyncio.Event()
    done = []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned.wait()
            done.append("wholly")

    task = bench.begin(step)
    await bench.pass_time(1.0)
    assert not task.done()
    cleaned.set()
    await turns()
    assert done == ["wholly"] and task.result() == "late"


async def test_but_not_longer_than_the_grace() -> None:
    bench = Bench(Timeout("x", 1.0, fallback="late", grace=2.0))
    go = asyncio.Event()

    async def deaf() -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        raise ValueError("nobody hears this")

    task = bench.begin(deaf)
    await bench.pass_time(1.0)
    await bench.pass_time(1.9)
    assert not task.done()
    await bench.pass_time(0.1)
    assert task.result() == "late" and bench["zombies"] == 1
    await bench.state.close(0.001)
    assert bench["zombies"] == 1
    asyncio.get_running_loop().call_soon(go.set)
    await bench.state.close(BOUND)
    assert bench["zombies"] == 0


async def test_a_value_that_came_after_all_is_the_value() -> None:
    bench = Bench(Timeout("x", 1.0, fallback="late"))

    async def just_done() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "charged"

    task = bench.begin(just_done)
    await bench.pass_time(1.0)
    assert task.result() == "charged" and bench["timed_out"] == 0


async def test_an_error_while_cleaning_up_is_the_cause() -> None:
    bench = Bench(Timeout("x", 1.0))

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("could not hang up")

    task = bench.begin(step)
    await bench.pass_time(1.0)
    error = task.exception()
    assert isinstance(error, TimedOut) and isinstance(error.__cause__, OSError)


async def test_cancelled_it_leaves_nothing_running() -> None:
    bench = Bench(Timeout("x", 1.0, fallback="late"))
    step = Step()
    task = bench.begin(step)
    await turns()
    task.cancel()
    await turns()
    assert task.cancelled() and step.cancelled == 1 and bench["timed_out"] == 0
    assert bench.clock.next_timer_ns() is None


async def test_leaving_the_process_is_an_error_like_any_other() -> None:
    bench = Bench(Timeout("x", 1.0))
    with pytest.raises(SystemExit):
        await bench.now(SystemExit(3))
