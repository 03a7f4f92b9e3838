"""The token bucket: never too many, in order, and nobody's turn is lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pattern_calls import Bench, Step, answering, at, turns

from bitactor.patterns import RateLimit, RateLimited
from tests.amounts import examples


def starts(bench: Bench, count: int) -> list[float]:
    """Make `count` calls; the list of seconds at which they began grows as they do."""
    began: list[float] = []
    since = bench.clock.monotonic_ns()

    async def step() -> None:
        began.append((bench.clock.monotonic_ns() - since) / 1e9)

    for _ in range(count):
        bench.begin(step)
    return began


async def test_calls_start_at_the_rate() -> None:
    bench = Bench(RateLimit("x", per_second=2))
    began = starts(bench, 4)
    for _ in range(20):
        await bench.pass_time(0.125)
    assert began == [0.0, 0.5, 1.0, 1.5]
    assert bench.state.about() == {"calls": 4, "started": 4, "waited": 3, "rejected": 0, "waiting": 0, "available": 1}


async def test_a_rate_in_any_unit_of_time() -> None:
    bench = Bench(RateLimit("x", rate=6, per=60.0))
    began = starts(bench, 3)
    for _ in range(30):
        await bench.pass_time(1.0)
    assert began == [0.0, 10.0, 20.0]


async def test_a_burst_starts_at_once_and_is_saved_up_in_a_pause() -> None:
    bench = Bench(RateLimit("x", per_second=1, burst=3))
    began = starts(bench, 5)
    await turns()
    assert (began, bench["available"], bench["waiting"]) == ([0.0, 0.0, 0.0], 0, 2)
    for _ in range(4):
        await bench.pass_time(0.5)
    assert began == [0.0, 0.0, 0.0, 1.0, 2.0]
    await bench.pass_time(100.0)
    assert bench["available"] == 3
    again = starts(bench, 4)
    await turns()
    assert again == [0.0, 0.0, 0.0]
    for task in bench.tasks:
        task.cancel()
    await turns()


async def test_who_came_first_starts_first() -> None:
    bench = Bench(RateLimit("x", per_second=1))
    order: list[int] = []

    async def step(number: int) -> None:
        order.append(number)

    for number in range(5):
        bench.begin(lambda number=number: step(number))
        await turns(number)
    for _ in range(5):
        await bench.pass_time(1.0)
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "when it has just been told to go"])
@pytest.mark.parametrize("victim", [1, 2])
async def test_who_is_cancelled_gives_its_turn_to_the_next(victim: int, late: bool) -> None:
    bench = Bench(RateLimit("x", per_second=1))
    began = starts(bench, 4)
    await turns()
    if late:
        for _ in range(victim - 1):
            await bench.pass_time(1.0)
        bench.clock.advance(1.0)
    bench.tasks[victim].cancel()
    await turns()
    for _ in range(8):
        await bench.pass_time(0.5)
    assert began == [0.0, 1.0, 2.0]
    assert bench.tasks[victim].cancelled()
    assert bench["started"] == 3 and bench["waiting"] == 0


async def test_the_rate_counts_calls_however_they_end() -> None:
    bench = Bench(RateLimit("x", per_second=1))
    with pytest.raises(ValueError):
        await bench.now(ValueError())
    assert bench["available"] == 0


async def test_who_would_wait_too_long_fails_at_once_and_hears_how_long() -> None:
    bench = Bench(RateLimit("x", per_second=1, max_wait=2.0))
    began = starts(bench, 3)
    await turns()
    with pytest.raises(RateLimited, match=r"rate limit 'x': the next turn is in 3 s, and max_wait=2 s") as caught:
        await bench.now()
    assert caught.value.retry_after == 3.0
    assert bench["rejected"] == 1 and bench["waiting"] == 2
    await bench.pass_time(1.0)
    bench.begin(answering(None))
    for _ in range(2):
        await bench.pass_time(1.0)
    assert len(began) == 3 and bench["rejected"] == 1 and bench["started"] == 4


async def test_without_waiting_at_all() -> None:
    bench = Bench(RateLimit("x", per_second=1, max_wait=0))
    assert await bench.now(5) == 5
    with pytest.raises(RateLimited):
        await bench.now()


async def test_nobody_waits_for_a_turn_after_its_own_end() -> None:
    bench = Bench(RateLimit("x", per_second=1))
    await bench.now()
    until_ns = bench.clock.monotonic_ns() + 1_000_000_000
    with pytest.raises(RateLimited, match="the attempt would have ended"):
        await bench.now(deadline=at(until_ns))
    task = bench.begin(answering(7), deadline=at(until_ns + 1))
    await bench.pass_time(1.0)
    assert task.result() == 7


async def test_a_limit_is_shared_by_all_calls_under_way() -> None:
    bench = Bench(RateLimit("x", per_second=1000))
    step = Step()
    for _ in range(3):
        bench.begin(step)
        await bench.pass_time(0.001)
    assert step.begun == 3, "it limits starts, not calls under way"
    for _ in range(3):
        step.end()
    await asyncio.gather(*bench.tasks)


EVENTS = st.lists(st.one_of(st.just("call"), st.integers(0, 9), st.floats(0.0, 2.0)), max_size=40)


@examples(quick=100, long=3_000)
@given(rate=st.floats(0.3, 20.0), burst=st.integers(1, 4), events=EVENTS)
def test_never_more_than_the_burst_and_the_rate_in_any_stretch_of_time(
    rate: float, burst: int, events: list[str | int | float]
) -> None:
    async def scenario() -> None:
        bench = Bench(RateLimit("x", per_second=rate, burst=burst))
        began: list[int] = []

        async def step() -> None:
            began.append(bench.clock.monotonic_ns())

        for event in events:
            if event == "call":
                bench.begin(step)
            elif isinstance(event, int) and event < len(bench.tasks):
                bench.tasks[event].cancel()
            elif isinstance(event, float):
                bench.clock.advance(event)  # without a turn of the loop, so that being woken and being cancelled meet
                continue
            await turns(2)
        for first in range(len(began)):
            for last in range(first, len(began)):
                assert last - first + 1 <= burst + rate * (began[last] - began[first]) / 1e9 + 1e-6
        for _ in range(len(bench.tasks)):
            await bench.pass_time(1 / rate + 1e-6)
        assert bench["waiting"] == 0 and all(task.done() for task in bench.tasks), "nobody's turn is lost"
        assert len(began) == sum(not task.cancelled() for task in bench.tasks) == bench["started"]

    asyncio.run(scenario())
