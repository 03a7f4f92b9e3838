"""Calls again within an attempt: which errors, how often, after how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pattern_calls import Bench, at, call, turns

from bitactor import Backoff, Fail, Halt, Retry
from bitactor.patterns import CircuitOpen, RetryPolicy

STEADY = Backoff(initial=1.0, factor=2.0, cap=5.0, jitter=0.0)


def failing(*outcomes: Any) -> Any:
    """A step that ends one way after the other."""
    left = list(outcomes)

    async def step() -> Any:
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    step.left = left  # type: ignore[attr-defined]
    return step


async def test_it_calls_again_until_it_works() -> None:
    bench = Bench(RetryPolicy("x", attempts=3, backoff=STEADY))
    task = bench.begin(failing(ValueError(), KeyError(), "done"))
    await bench.pass_time(1.0)
    await bench.pass_time(2.0)
    assert task.result() == "done"
    assert bench.state.about() == {"calls": 1, "retried": 2, "recovered": 1, "exhausted": 0, "waiting": 0}


async def test_after_the_last_attempt_the_last_error_is_the_steps() -> None:
    bench = Bench(RetryPolicy("x", attempts=2, backoff=STEADY))
    step = failing(ValueError("first"), ValueError("second"), "never")
    task = bench.begin(step)
    await bench.pass_time(1.0)
    assert str(task.exception()) == "second" and step.left == ["never"] and bench["exhausted"] == 1


async def test_it_waits_as_long_as_the_backoff_says() -> None:
    bench = Bench(RetryPolicy("x", attempts=4, backoff=STEADY))
    task = bench.begin(failing(ValueError(), ValueError(), ValueError(), 1))
    for seconds in (1.0, 2.0, 4.0):
        await bench.pass_time(seconds - 0.01)
        assert bench["waiting"] == 1
        await bench.pass_time(0.01)
    assert task.result() == 1


async def test_jitter_differs_between_hops_and_not_between_runs() -> None:
    pauses = []
    for transaction in ("a", "a", "b"):
        bench = Bench(RetryPolicy("x", attempts=2, backoff=Backoff(initial=10.0, jitter=1.0)))
        task = bench.begin(failing(ValueError(), 1), transaction=transaction)
        await turns()
        pauses.append(bench.clock.next_timer_ns())
        await bench.pass_time(10.0)
        assert task.result() == 1
    assert pauses[0] == pauses[1] != pauses[2]


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError(), SystemExit()])
async def test_only_errors_worth_another_call_get_one(error: BaseException) -> None:
    bench = Bench(RetryPolicy("x", on=(KeyError, ConnectionError)))
    with pytest.raises(type(error)):
        await bench.state.around(call(), failing(error))
    assert bench["retried"] == 0


@pytest.mark.parametrize("verdict", [Retry(), Fail(), Halt()])
async def test_what_the_step_decides_passes_through(verdict: Exception) -> None:
    bench = Bench(RetryPolicy("x"))
    with pytest.raises(type(verdict)):
        await bench.now(verdict)
    assert bench["retried"] == 0


async def test_an_error_that_says_when_is_believed() -> None:
    bench = Bench(RetryPolicy("x", backoff=Backoff(initial=0.1, jitter=0)))
    task = bench.begin(failing(CircuitOpen("open", 7.0), "done"))
    await bench.pass_time(6.9)
    assert not task.done()
    await bench.pass_time(0.1)
    assert task.result() == "done"


async def test_the_backoff_is_the_least_wait() -> None:
    bench = Bench(RetryPolicy("x", backoff=STEADY))
    task = bench.begin(failing(CircuitOpen("open", 0.1), "done"))
    await bench.pass_time(0.9)
    assert not task.done()
    await bench.pass_time(0.1)
    assert task.result() == "done"


@pytest.mark.parametrize("odd", ["soon", None, float("nan"), -3, True])
async def test_a_retry_after_that_is_no_time_is_as_none(odd: Any) -> None:
    bench = Bench(RetryPolicy("x", backoff=STEADY))
    error = ValueError()
    error.retry_after = odd  # type: ignore[attr-defined]
    task = bench.begin(failing(error, "done"))
    await bench.pass_time(1.0)
    assert task.result() == "done"


async def test_who_asks_for_too_long_a_wait_is_not_called_again() -> None:
    bench = Bench(RetryPolicy("x", max_wait=5.0))
    with pytest.raises(CircuitOpen):
        await bench.now(CircuitOpen("open", 5.1))
    task = bench.begin(failing(CircuitOpen("open", 5.0), "done"))
    await bench.pass_time(5.0)
    assert task.result() == "done"


async def test_nobody_waits_past_the_end_of_the_attempt() -> None:
    bench = Bench(RetryPolicy("x", backoff=STEADY))
    with pytest.raises(ValueError, match="real reason"):
        await bench.now(ValueError("real reason"), deadline=at(bench.clock.monotonic_ns() + 1_000_000_000))


async def test_cancelled_while_waiting() -> None:
    bench = Bench(RetryPolicy("x", backoff=STEADY))
    step = failing(ValueError(), "never")
    task = bench.begin(step)
    await turns()
    task.cancel()
    await bench.pass_time(10.0)
    assert task.cancelled() and step.left == ["never"] and bench["waiting"] == 0
    assert bench.clock.next_timer_ns() is None
