"""Many at once: in order, bounded, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from pattern_calls import turns

from bitactor import ConfigurationError
from bitactor.patterns import TimedOut, TooFewAnswers, parallel_fetch, parallel_map, scatter_gather
from bitactor.testing import FakeClock


class Work:
    """A function over elements that end when they are told; counts."""

    def __init__(self) -> None:
        self.open: dict[Any, asyncio.Future[Any]] = {}
        self.most = 0
        self.begun: list[Any] = []
        self.cancelled: list[Any] = []

    async def __call__(self, item: Any) -> Any:
        self.begun.append(item)
        self.open[item] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.open))
        try:
            return await self.open[item]
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            del self.open[item]

    async def end(self, item: Any, outcome: Any = None) -> None:
        if isinstance(outcome, BaseException):
            self.open[item].set_exception(outcome)
        else:
            self.open[item].set_result(outcome)
        await turns()


async def pass_time(clock: FakeClock, seconds: float) -> None:
    await turns()
    clock.advance(seconds)
    await turns()


def alone() -> bool:
    """Whether nothing but this test runs."""
    return len(asyncio.all_tasks()) == 1


# parallel_map


async def test_results_come_in_the_order_of_the_elements_and_not_of_their_ends() -> None:
    work = Work()
    task = asyncio.ensure_future(parallel_map(work, "abcd", concurrency=2))
    await turns()
    assert work.begun == ["a", "b"]
    for item in "bacd":
        await work.end(item, item.upper())
    assert task.result() == ["A", "B", "C", "D"] and work.most == 2 and alone()


async def test_elements_are_taken_as_they_are_needed() -> None:
    taken = []

    def source() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    work = Work()
    task = asyncio.ensure_future(parallel_map(work, source(), concurrency=3))
    await turns()
    assert taken == [0, 1, 2]
    await work.end(1)
    assert taken == [0, 1, 2, 3]
    task.cancel()
    await turns()
    assert sorted(work.cancelled) == [0, 2, 3] and alone()


async def test_none_and_more_places_than_elements() -> None:
    async def double(number: int) -> int:
        return 2 * number

    assert await parallel_map(double, [], concurrency=3) == []
    assert await parallel_map(double, [1, 2], concurrency=50) == [2, 4]
    assert await parallel_map(double, range(1000), concurrency=7) == list(range(0, 2000, 2))


async def test_the_first_error_stops_the_rest_and_is_raised() -> None:
    work = Work()
    task = asyncio.ensure_future(parallel_map(work, "abcdef", concurrency=3))
    await turns()
    await work.end("b", KeyError("b"))
    assert isinstance(task.exception(), KeyError)
    assert work.begun == ["a", "b", "c"] and sorted(work.cancelled) == ["a", "c"] and alone()


async def test_what_is_left_is_awaited_before_the_error_is_raised() -> None:
    cleaned = asyncio.Event()
    done = []

    async def work(number: int) -> None:
        if number == 0:
            raise KeyError(number)
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned.wait()
            done.append(number)

    task = asyncio.ensure_future(parallel_map(work, [1, 0], concurrency=2))
    await turns()
    assert not task.done()
    cleaned.set()
    await turns()
    assert done == [1] and isinstance(task.exception(), KeyError) and alone()


async def test_collect_runs_all_and_keeps_index_element_and_error() -> None:
    async def invert(number: int) -> float:
        return 1 / number

    mapped = await parallel_map(invert, [1, 0, 4, 0], concurrency=2, on_error="collect")
    assert mapped.successful == [1.0, 0.25]
    assert [(failed.index, failed.item, type(failed.error)) for failed in mapped.failed] == [
        (1, 0, ZeroDivisionError),
        (3, 0, ZeroDivisionError),
    ]


async def test_each_has_its_own_time() -> None:
    clock, work = FakeClock(), Work()
    task = asyncio.ensure_future(
        parallel_map(work, "ab", concurrency=1, on_error="collect", timeout_each=2.0, clock=clock)
    )
    await pass_time(clock, 1.9)
    await work.end("a", "A")
    await pass_time(clock, 1.9)
    assert work.cancelled == []
    await pass_time(clock, 0.1)
    mapped = task.result()
    assert mapped.successful == ["A"] and work.cancelled == ["b"]
    assert (
        isinstance(mapped.failed[0].error, TimedOut) and str(mapped.failed[0].error) == "element 1 took longer than 2 s"
    )
    assert alone()


async def test_the_loops_own_time() -> None:
    with pytest.raises(TimedOut):
        await parallel_map(lambda _: asyncio.Event().wait(), [1], concurrency=1, timeout_each=0.01)
    fetched = await parallel_fetch({"never": asyncio.Event().wait}, timeout=0.01)
    assert isinstance(fetched.failed["never"], TimedOut)
    with pytest.raises(TooFewAnswers):
        await scatter_gather(lambda _: asyncio.Event().wait(), [1], timeout=0.01)
    assert alone()


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_a_function_that_swallows_its_cancellation_is_not_given_more(timeout: float | None) -> None:
    begun = []

    async def deaf(number: int) -> None:
        begun.append(number)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(parallel_map(deaf, range(9), concurrency=2, timeout_each=timeout, clock=FakeClock()))
    await turns()
    task.cancel()
    await turns()
    assert begun == [0, 1] and task.cancelled() and alone()


async def test_an_error_of_the_source_is_raised_and_nothing_is_left() -> None:
    def source(count: int) -> Iterator[int]:
        yield from range(count)
        raise OSError("torn tape")

    async def same(number: int) -> int:
        await asyncio.sleep(0)
        return number

    for count in (0, 1, 5):
        with pytest.raises(OSError, match="torn"):
            await parallel_map(same, source(count), concurrency=3, on_error="collect")
    assert alone()


@pytest.mark.parametrize("error", [SystemExit(), asyncio.CancelledError()])
async def test_whatever_is_raised_the_loop_lives(error: BaseException) -> None:
    async def leave(_: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        await parallel_map(leave, [1, 2], concurrency=2)
    mapped = await parallel_map(leave, [1, 2], concurrency=2, on_error="collect")
    assert [type(failed.error) for failed in mapped.failed] == [type(error)] * 2
    fetched = await parallel_fetch({"a": lambda: leave(1)})
    assert type(fetched.failed["a"]) is type(error)
    assert alone()


async def test_a_function_that_is_not_async_is_named() -> None:
    with pytest.raises(TypeError, match=r"cannot be awaited; make it an `async def`"):
        await parallel_map(lambda number: number, [1], concurrency=1)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": True}, "concurrency=True"),
        ({"concurrency": 1, "on_error": "ignore"}, "on_error='ignore'"),
        ({"concurrency": 1, "timeout_each": 0}, "timeout_each=0"),
        ({"concurrency": 1, "timeout_each": "1"}, "timeout_each='1'"),
    ],
)
async def test_options_of_a_map_are_checked(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        await parallel_map(asyncio.sleep, [0], **options)


# parallel_fetch


async def test_one_slow_operation_loses_nobody_elses_result() -> None:
    clock, work = FakeClock(), Work()
    names = ("slow", "fast", "broken")
    operations = {name: (lambda name=name: work(name)) for name in names}
    task = asyncio.ensure_future(parallel_fetch(operations, timeout=1.0, clock=clock))
    await turns()
    await work.end("fast", 1)
    await work.end("broken", KeyError("x"))
    await pass_time(clock, 1.0)
    fetched = task.result()
    assert fetched.successful == {"fast": 1} and list(fetched.failed) == ["slow", "broken"]
    assert str(fetched.failed["slow"]) == "'slow' took longer than 1 s" and isinstance(
        fetched.failed["broken"], KeyError
    )
    assert work.cancelled == ["slow"] and alone()


async def test_each_operation_may_have_its_own_time_or_none() -> None:
    clock, work = FakeClock(), Work()
    operations = {name: (lambda name=name: work(name)) for name in ("short", "long", "any")}
    task = asyncio.ensure_future(parallel_fetch(operations, timeout={"short": 1.0, "long": 5.0}, clock=clock))
    await pass_time(clock, 1.0)
    assert work.cancelled == ["short"]
    await pass_time(clock, 4.0)
    assert work.cancelled == ["short", "long"]
    await pass_time(clock, 1e6)
    await work.end("any", "done")
    assert task.result().successful == {"any": "done"}


async def test_a_fetch_that_is_cancelled_cancels_all() -> None:
    work = Work()
    task = asyncio.ensure_future(parallel_fetch({"a": lambda: work("a"), "b": lambda: work("b")}))
    await turns()
    task.cancel()
    await turns()
    assert sorted(work.cancelled) == ["a", "b"] and task.cancelled() and alone()


async def test_nothing_to_fetch() -> None:
    assert await parallel_fetch({}) == ({}, {})


async def test_options_of_a_fetch_are_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"'user' is <coroutine .*give a function that starts it"):
        await parallel_fetch({"user": asyncio.sleep(0)})  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match=r"timeout= names 'usr', which is no operation\. Did you mean 'user'"):
        await parallel_fetch({"user": lambda: asyncio.sleep(0)}, timeout={"usr": 1.0})
    for timeout in (0, "1", {"user": -1}):
        with pytest.raises(ConfigurationError, match="timeout"):
            await parallel_fetch({"user": lambda: asyncio.sleep(0)}, timeout=timeout)  # type: ignore[arg-type]


# scatter_gather


async def test_all_must_answer_unless_told_otherwise() -> None:
    work = Work()
    task = asyncio.ensure_future(scatter_gather(work, ["a", "b"]))
    await turns()
    await work.end("b", 2)
    assert not task.done()
    await work.end("a", 1)
    assert task.result() == ({"a": 1, "b": 2}, {}) and list(task.result().successful) == ["a", "b"] and alone()


async def test_enough_answers_are_an_answer_when_time_is_up() -> None:
    clock, work = FakeClock(), Work()
    task = asyncio.ensure_future(scatter_gather(work, "abcd", at_least=2, timeout=3.0, clock=clock))
    await turns()
    await work.end("c", 3)
    await work.end("a", 1)
    await work.end("b", KeyError())
    assert not task.done(), "it waits for all while there is time"
    await pass_time(clock, 3.0)
    gathered = task.result()
    assert gathered.successful == {"a": 1, "c": 3}
    assert {name: type(error) for name, error in gathered.failed.items()} == {"b": KeyError, "d": TimedOut}
    assert work.cancelled == ["d"] and alone()


async def test_too_few_answers_are_an_error_that_keeps_them() -> None:
    clock, work = FakeClock(), Work()
    task = asyncio.ensure_future(scatter_gather(work, "abc", at_least=2, timeout=3.0, clock=clock))
    await turns()
    await work.end("a", 1)
    await pass_time(clock, 3.0)
    error = task.exception()
    assert isinstance(error, TooFewAnswers) and str(error).startswith("1 of 3 answered, 2 were needed ('b': TimedOut")
    assert error.successful == {"a": 1} and set(error.failed) == {"b", "c"}
    again = TooFewAnswers(*error.args)
    assert str(again) == str(error) and again.successful == {}


async def test_nobody_is_waited_for_when_it_cannot_be_enough_any_more() -> None:
    work = Work()
    task = asyncio.ensure_future(scatter_gather(work, "abc", at_least=2))
    await turns()
    await work.end("a", KeyError())
    assert not task.done()
    await work.end("b", ValueError())
    assert isinstance(task.exception(), TooFewAnswers) and work.cancelled == ["c"] and alone()


async def test_a_gathering_that_is_cancelled_cancels_all() -> None:
    work = Work()
    task = asyncio.ensure_future(scatter_gather(work, "ab", timeout=5.0, clock=FakeClock()))
    await turns()
    task.cancel()
    await turns()
    assert sorted(work.cancelled) == ["a", "b"] and task.cancelled() and alone()


async def test_nobody_to_ask() -> None:
    assert await scatter_gather(asyncio.sleep, []) == ({}, {})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"at_least": 3}, "at_least=3; give a whole number from 0 to 2"),
        ({"at_least": -1}, "at_least=-1"),
        ({"at_least": True}, "at_least=True"),
        ({"timeout": 0}, "timeout=0"),
        ({"targets": [1, 1]}, "a target is there twice"),
    ],
)
async def test_options_of_a_gathering_are_checked(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        await scatter_gather(asyncio.sleep, **({"targets": [0, 1]} | options))
