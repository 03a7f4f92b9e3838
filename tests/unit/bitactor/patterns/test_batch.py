"""Batches: when they are handed over, what each caller gets, and that nothing is lost."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pattern_calls import BOUND, Bench, Step, answering, turns

from bitactor import Fail, Halt, Ok, Retry
from bitactor.patterns import BatchFailed, Batching
from tests.amounts import examples


class Handler:
    """Keeps its batches; answers when it may."""

    def __init__(self, *, waits: bool = False) -> None:
        self.batches: list[list[Any]] = []
        self.may = asyncio.Event()
        self.cancelled = 0
        if not waits:
            self.may.set()

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [f"<{item}>" for item in items]


def gathering(size: int = 3, interval: float = 1.0, handler: Any = None, **options: Any) -> tuple[Bench, Handler]:
    handler = handler or Handler(**options)
    return Bench(Batching("x", size, interval, handler)), handler


async def test_a_full_batch_is_handed_over_at_once_and_each_gets_its_own() -> None:
    bench, handler = gathering()
    tasks = [bench.begin(answering(number)) for number in range(7)]
    await turns()
    assert handler.batches == [[0, 1, 2], [3, 4, 5]]
    assert [task.result() for task in tasks[:6]] == [f"<{number}>" for number in range(6)]
    assert bench["waiting"] == 1 and bench["flushed"] == 2 and bench["handled"] == 6
    await bench.state.close(BOUND)
    assert await tasks[6] == "<6>"


async def test_the_interval_hands_over_what_there_is() -> None:
    bench, handler = gathering()
    first = bench.begin(answering("a"))
    await bench.pass_time(0.6)
    second = bench.begin(answering("b"))
    await bench.pass_time(0.3)
    assert handler.batches == []
    await bench.pass_time(0.1)
    assert handler.batches == [["a", "b"]] and first.result() == "<a>" and second.result() == "<b>"
    third = bench.begin(answering("c"))
    await bench.pass_time(0.9)
    assert len(handler.batches) == 1, "the interval begins with the first item"
    await bench.pass_time(0.1)
    assert third.result() == "<c>" and bench.clock.next_timer_ns() is None


async def test_batches_do_not_wait_for_each_other() -> None:
    bench, handler = gathering(size=1, waits=True)
    tasks = [bench.begin(answering(number)) for number in range(3)]
    await turns()
    assert len(handler.batches) == 3 and bench["under_way"] == 3
    handler.may.set()
    await asyncio.gather(*tasks)
    assert bench["under_way"] == 0


async def test_closing_hands_over_and_waits() -> None:
    bench, handler = gathering(waits=True)
    task = bench.begin(answering("a"))
    await turns()
    closing = asyncio.ensure_future(bench.state.close(BOUND))
    await turns()
    assert handler.batches == [["a"]] and not closing.done()
    late = bench.begin(answering("b"))
    await turns()
    assert handler.batches == [["a"], ["b"]], "while it closes nobody is kept waiting for others"
    handler.may.set()
    await closing
    assert (await task, await late) == ("<a>", "<b>")
    with pytest.raises(BatchFailed, match="is closed"):
        await bench.now("c")


async def test_what_is_not_done_when_the_time_to_close_is_over_fails_loudly(caplog: pytest.LogCaptureFixture) -> None:
    bench, handler = gathering(size=2, waits=True)
    tasks = [bench.begin(answering(number)) for number in range(2)]
    await turns()
    await bench.state.close(0.01)
    assert [type(task.exception()) for task in tasks] == [BatchFailed, BatchFailed]
    assert "not done within the 0.01 s" in str(tasks[0].exception())
    assert "batch 'x' with 2 items was not done" in caplog.text
    assert handler.cancelled == 1 and bench["under_way"] == 0


async def test_so_it_does_when_whoever_closes_loses_patience_first(caplog: pytest.LogCaptureFixture) -> None:
    bench, handler = gathering(size=1, waits=True)
    task = bench.begin(answering("a"))
    await turns()
    closing = asyncio.ensure_future(bench.state.close(BOUND))
    await turns()
    closing.cancel()
    await turns()
    assert closing.cancelled() and isinstance(task.exception(), BatchFailed)
    assert "batch 'x' with 1 items was not done" in caplog.text and handler.cancelled == 1


async def test_draining_holds_nothing_back() -> None:
    bench, handler = gathering(size=9)
    first = bench.begin(answering("a"))
    await turns()
    bench.state.drain()
    assert await bench.now("b") == "<b>" and first.result() == "<a>"
    assert handler.batches == [["a"], ["b"]] and bench.clock.next_timer_ns() is None


async def test_an_error_of_the_handler_is_everyones() -> None:
    async def broken(items: list[Any]) -> list[Any]:
        raise ConnectionError("gone")

    bench, _ = gathering(size=2, handler=broken)
    tasks = [bench.begin(answering(number)) for number in range(2)]
    await turns()
    assert [repr(task.exception()) for task in tasks] == ["ConnectionError('gone')"] * 2
    assert bench["failed"] == 2 and bench["handled"] == 0
    again = [bench.begin(answering(number)) for number in range(2)]
    await turns()
    assert all(task.exception() for task in again), "and the next batch is handled"


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([1], "1 results for 2 items"),
        ([1, 2, 3], "3 results for 2 items"),
        (None, "a NoneType for 2 items"),
        ("ab", "a str for 2 items"),
        ({"a": 1, "b": 2}, "a dict for 2 items"),
        (5, "a int for 2 items"),
    ],
)
async def test_a_wrong_number_of_results_is_an_error_for_all(results: Any, said: str) -> None:
    async def handler(items: list[Any]) -> Any:
        return results

    bench, _ = gathering(size=2, handler=handler)
    tasks = [bench.begin(answering(number)) for number in range(2)]
    await turns()
    for task in tasks:
        assert isinstance(task.exception(), BatchFailed) and said in str(task.exception())


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(2)])
async def test_whatever_a_handler_ends_with_the_callers_hear_of_it(error: BaseException) -> None:
    async def handler(items: list[Any]) -> Any:
        raise error

    bench, _ = gathering(size=1, handler=handler)
    with pytest.raises(BatchFailed if isinstance(error, asyncio.CancelledError) else SystemExit):
        await bench.now("a")


async def test_a_result_that_is_an_error_is_that_items() -> None:
    async def handler(items: list[int]) -> list[Any]:
        return [ValueError(item) if item % 2 else item for item in items]

    bench, _ = gathering(size=3, handler=handler)
    tasks = [bench.begin(answering(number)) for number in range(3)]
    await turns()
    assert [tasks[0].result(), tasks[2].result()] == [0, 2] and isinstance(tasks[1].exception(), ValueError)
    assert (bench["handled"], bench["failed"]) == (2, 1)


async def test_a_handler_may_do_with_its_list_what_it_likes() -> None:
    async def handler(items: list[Any]) -> list[Any]:
        return [items.pop(0) for _ in range(len(items))]

    bench, _ = gathering(size=2, handler=handler)
    assert await asyncio.gather(*(bench.begin(answering(number)) for number in range(2))) == [0, 1]


async def test_who_is_cancelled_before_takes_the_item_back() -> None:
    bench, handler = gathering(size=2)
    task = bench.begin(answering("a"))
    await turns()
    task.cancel()
    await turns()
    assert bench["waiting"] == 0 and bench["withdrawn"] == 1 and bench.clock.next_timer_ns() is None
    tasks = [bench.begin(answering(item)) for item in "bc"]
    await turns()
    assert handler.batches == [["b", "c"]] and tasks[0].result() == "<b>"


async def test_who_is_cancelled_in_the_turn_of_handing_over_takes_it_back_too() -> None:
    bench, handler = gathering(size=9)
    tasks = [bench.begin(answering(item)) for item in "ab"]
    await turns()
    bench.clock.advance(1.0)
    tasks[0].cancel()
    await turns()
    assert handler.batches == [["b"]] and tasks[1].result() == "<b>" and bench["withdrawn"] == 1


async def test_who_is_cancelled_after_leaves_the_others_theirs() -> None:
    bench, handler = gathering(size=2, waits=True)
    tasks = [bench.begin(answering(item)) for item in "ab"]
    await turns()
    tasks[0].cancel()
    await turns()
    handler.may.set()
    assert await tasks[1] == "<b>" and tasks[0].cancelled() and handler.cancelled == 0
    assert bench["withdrawn"] == 0 and bench["handled"] == 2


@pytest.mark.parametrize("verdict", [Retry(), Fail(), Halt()])
async def test_what_the_step_decides_is_no_item(verdict: Any) -> None:
    bench, handler = gathering(size=1)

    async def step() -> Any:
        return verdict

    assert await bench.begin(step) is verdict
    assert handler.batches == []


async def test_ok_is_its_value() -> None:
    bench, handler = gathering(size=1)
    assert await bench.now(Ok("a")) == "<a>" and handler.batches == [["a"]]


async def test_a_step_that_fails_has_no_item() -> None:
    bench, handler = gathering(size=1)
    with pytest.raises(ValueError):
        await bench.now(ValueError())
    assert bench["calls"] == 1 and handler.batches == []


async def test_a_batch_belongs_to_none_of_its_hops() -> None:
    variable = contextvars.ContextVar("variable", default="nobody")
    seen = []

    async def handler(items: list[Any]) -> list[Any]:
        seen.append(variable.get())
        return items

    bench, _ = gathering(size=1, handler=handler)
    variable.set("somebody")
    await bench.now("a")
    assert seen == ["nobody"]


async def test_a_slow_step_is_no_item_yet() -> None:
    bench, handler = gathering(size=2)
    step = Step()
    slow = bench.begin(step)
    fast = [bench.begin(answering(item)) for item in "ab"]
    await turns()
    assert handler.batches == [["a", "b"]] and fast[0].done() and not slow.done()
    step.end("c")
    await bench.pass_time(1.0)
    assert slow.result() == "<c>"


EVENTS = st.lists(st.one_of(st.just("call"), st.just("turn"), st.integers(0, 12), st.floats(0.0, 0.7)), max_size=40)


@examples(quick=100, long=3_000)
@given(size=st.integers(1, 4), events=EVENTS)
def test_every_item_is_handled_once_or_taken_back(size: int, events: list[Any]) -> None:
    async def scenario() -> None:
        bench, handler = gathering(size=size)
        for event in events:
            if event == "call":
                bench.begin(answering(len(bench.tasks)))
            elif event == "turn":
                await turns(3)
            elif isinstance(event, int) and event < len(bench.tasks):
                bench.tasks[event].cancel()
            elif isinstance(event, float):
                bench.clock.advance(event)
        await turns()
        await bench.state.close(BOUND)
        await turns()
        handled = [item for batch in handler.batches for item in batch]
        assert len(set(handled)) == len(handled)
        for number, task in enumerate(bench.tasks):
            assert task.cancelled() or (number in handled and task.result() == f"<{number}>")
        assert all(0 < len(batch) <= size for batch in handler.batches)
        assert handled == sorted(handled), "in the order in which they came"

    asyncio.run(scenario())
