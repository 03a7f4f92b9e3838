"""Bounded concurrency, a bounded queue, and places that are always given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pattern_calls import Bench, Step, turns

from bitactor.patterns import Bulkhead, BulkheadFull
from tests.amounts import examples


async def test_so_many_at_once_and_so_many_wait() -> None:
    bench = Bench(Bulkhead("x", concurrent=2, queue=1))
    step = Step()
    tasks = [bench.begin(step) for _ in range(4)]
    await turns()
    assert step.begun == 2 and bench["running"] == 2 and bench["waiting"] == 1
    error = tasks[3].exception()
    assert isinstance(error, BulkheadFull) and str(error) == "bulkhead 'x': 2 calls are under way and 1 wait"
    step.end("a")
    await turns()
    assert step.begun == 3 and bench["waiting"] == 0
    step.end("b")
    step.end("c")
    assert await asyncio.gather(*tasks[:3]) == ["a", "b", "c"]
    assert bench.state.about() == {"calls": 4, "running": 0, "waiting": 0, "waited": 1, "rejected": 1}


async def test_without_a_queue_nobody_waits() -> None:
    bench = Bench(Bulkhead("x", concurrent=1))
    bench.begin(step := Step())
    await turns()
    with pytest.raises(BulkheadFull):
        await bench.now()
    step.end()


@pytest.mark.parametrize("how", ["error", "cancelled"])
async def test_a_place_is_given_back_however_the_call_ends(how: str) -> None:
    bench = Bench(Bulkhead("x", concurrent=1, queue=1))
    step = Step()
    first, second = bench.begin(step), bench.begin(step)
    await turns()
    if how == "error":
        step.end(ValueError())
    else:
        first.cancel()
    await turns()
    assert step.begun == 2
    step.end("second")
    assert await second == "second"
    if how == "error":
        assert isinstance(first.exception(), ValueError)


async def test_who_waits_too_long_fails() -> None:
    bench = Bench(Bulkhead("x", concurrent=1, queue=2, max_wait=3.0))
    step = Step()
    first, second = bench.begin(step), bench.begin(step)
    await bench.pass_time(1.0)
    third = bench.begin(step)
    await bench.pass_time(2.0)
    assert isinstance(second.exception(), BulkheadFull) and "max_wait=3 s" in str(second.exception())
    step.end("first")
    await turns()
    step.end("third")
    assert await first == "first" and await third == "third"
    assert bench.clock.next_timer_ns() is None


async def test_cancelled_when_it_has_just_been_told_to_go() -> None:
    bench = Bench(Bulkhead("x", concurrent=1, queue=2))
    step = Step()
    tasks = [bench.begin(step) for _ in range(3)]
    await turns()
    step.end("first")
    await asyncio.sleep(0)
    tasks[1].cancel()
    await turns()
    assert tasks[1].cancelled() and step.begun == 2 and bench["running"] == 1
    step.end("third")
    assert await tasks[2] == "third"


async def test_nobody_takes_the_place_of_who_has_just_been_told_to_go() -> None:
    bench = Bench(Bulkhead("x", concurrent=1, queue=2))
    step = Step()
    order: list[str] = []

    async def named(name: str) -> None:
        order.append(name)
        await step()

    for name in ("first", "second"):
        bench.begin(lambda name=name: named(name))
    await turns()
    step.end()
    bench.begin(lambda: named("third"))
    await turns()
    assert order == ["first", "second"] and bench["running"] == 1
    for _ in range(2):
        step.end()
        await turns()
    assert order == ["first", "second", "third"]


EVENTS = st.lists(
    st.one_of(st.just("call"), st.tuples(st.just("end"), st.integers(0, 3)), st.integers(0, 12), st.floats(0.0, 2.0)),
    max_size=40,
)


@examples(quick=100, long=3_000)
@given(places=st.integers(1, 3), queue=st.integers(1, 3), events=EVENTS)
def test_never_too_many_and_no_place_is_lost(places: int, queue: int, events: list[Any]) -> None:
    async def scenario() -> None:
        bench = Bench(Bulkhead("x", concurrent=places, queue=queue, max_wait=3.0))
        step = Step()
        for event in events:
            if event == "call":
                bench.begin(step)
            elif isinstance(event, tuple) and event[1] < len(step.open):
                step.end("done", event[1])
            elif isinstance(event, int) and event < len(bench.tasks):
                bench.tasks[event].cancel()
            elif isinstance(event, float):
                bench.clock.advance(event)
            await asyncio.sleep(0)
            assert len(step.open) <= places and bench["waiting"] <= queue
        for _ in range(len(bench.tasks)):
            await turns()
            while step.open:
                step.end("done")
        await turns()
        assert all(task.done() for task in bench.tasks) and bench["running"] == bench["waiting"] == 0
        for task in bench.tasks:
            assert task.cancelled() or isinstance(task.exception(), BulkheadFull | None)

    asyncio.run(scenario())
