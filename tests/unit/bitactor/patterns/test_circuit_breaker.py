"""The circuit: what opens it, what it lets through, what closes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pattern_calls import Bench, Step, at, turns

from bitactor import Fail, Halt, Retry
from bitactor.patterns import CircuitBreaker, CircuitOpen, RateLimited
from tests.amounts import examples


async def fail(bench: Bench, times: int = 1, error: Callable[[], Exception] = ValueError) -> None:
    for _ in range(times):
        with pytest.raises(type(error())):
            await bench.now(error())


async def opened(**options: Any) -> Bench:
    bench = Bench(CircuitBreaker("api", failures=1, **options))
    await fail(bench)
    assert bench["state"] == "open"
    return bench


async def half_open(**options: Any) -> Bench:
    bench = await opened(**options)
    await bench.pass_time(30.0)
    assert bench["state"] == "half-open"
    return bench


async def test_failures_in_a_row_open_it() -> None:
    bench = Bench(CircuitBreaker("api", failures=3))
    await fail(bench, 2)
    assert await bench.now("ok") == "ok"
    await fail(bench, 2)
    assert bench["state"] == "closed", "a success between them starts the count again"
    await fail(bench)
    assert bench["state"] == "open" and bench["opened"] == 1 and bench["failed"] == 5


async def test_five_unless_told_otherwise() -> None:
    bench = Bench(CircuitBreaker("api"))
    await fail(bench, 4)
    assert bench["state"] == "closed"
    await fail(bench)
    assert bench["state"] == "open"


async def test_an_open_circuit_fails_at_once_with_the_time_that_is_left() -> None:
    bench = await opened(open_for=20.0)
    await bench.pass_time(5.0)
    step = Step()
    with pytest.raises(
        CircuitOpen, match=r"circuit 'api' is open; try again in 15 s \(last failure: ValueError\(\)\)"
    ) as caught:
        await bench.begin(step)
    assert caught.value.retry_after == bench["retry_after"] == 15.0
    assert step.begun == 0 and bench["rejected"] == 1


async def test_a_probe_that_succeeds_closes_it() -> None:
    bench = await half_open()
    assert await bench.now("up again") == "up again"
    assert bench["state"] == "closed"


async def test_a_probe_that_fails_opens_it_for_as_long_again() -> None:
    bench = await half_open()
    await fail(bench)
    assert (bench["state"], bench["opened"], bench["retry_after"]) == ("open", 2, 30.0)


async def test_the_number_of_probes_is_bounded() -> None:
    bench = await half_open(probes=2)
    step = Step()
    for _ in range(4):
        bench.begin(step)
    await turns()
    assert step.begun == bench["probing"] == 2 and bench["rejected"] == 2
    assert [type(task.exception()) for task in bench.tasks[2:]] == [CircuitOpen, CircuitOpen]
    assert bench.tasks[3].exception().retry_after == 1.0  # type: ignore[union-attr]
    step.end("ok")
    await turns()
    assert bench["state"] == "closed"
    step.end(ValueError())
    with pytest.raises(ValueError):
        await bench.tasks[1]
    assert bench["failures"] == 0, "a probe that ends after the circuit closed does not count"


async def test_so_many_successes_close_it() -> None:
    bench = await half_open(successes=3)
    for state in ("half-open", "half-open", "closed"):
        await bench.now()
        assert bench["state"] == state


async def test_successes_before_a_failure_do_not_count_afterwards() -> None:
    bench = await half_open(successes=2)
    await bench.now()
    await fail(bench)
    await bench.pass_time(30.0)
    await bench.now()
    assert bench["state"] == "half-open"
    await bench.now()
    assert bench["state"] == "closed"


async def test_a_cancelled_probe_frees_its_place() -> None:
    bench = await half_open()
    probe = bench.begin(Step())
    await turns()
    with pytest.raises(CircuitOpen):
        await bench.now()
    probe.cancel()
    await turns()
    assert bench["state"] == "half-open" and bench["probing"] == 0
    await bench.now()
    assert bench["state"] == "closed"


@pytest.mark.parametrize("late", ["success", "failure", "cancelled"])
async def test_what_began_before_it_opened_says_nothing_about_what_comes_after(late: str) -> None:
    bench = Bench(CircuitBreaker("api", failures=1, probes=1))
    step = Step()
    slow = bench.begin(step)
    await turns()
    await fail(bench)
    await bench.pass_time(30.0)
    probe = bench.begin(step)
    await turns()
    if late == "cancelled":
        slow.cancel()
    else:
        step.end("fine" if late == "success" else ValueError())
    await turns()
    assert slow.done() and bench["state"] == "half-open" and bench["probing"] == 1
    step.end("ok")
    await probe
    assert bench["state"] == "closed"


async def test_only_what_counts_is_a_failure_and_the_rest_is_an_answer() -> None:
    bench = Bench(CircuitBreaker("api", failures=2, counts=(ConnectionError,)))
    await fail(bench, 1, ConnectionError)
    await fail(bench, 5, KeyError)
    await fail(bench, 1, ConnectionResetError)
    assert bench["state"] == "closed", "somebody answered in between, if only with an error"
    await fail(bench, 1, ConnectionError)
    assert bench["state"] == "open"


async def test_what_is_ignored_is_neither() -> None:
    bench = Bench(CircuitBreaker("api", failures=2, ignores=(KeyError,)))
    await fail(bench, 1)
    await fail(bench, 5, KeyError)
    assert bench["state"] == "closed"
    await fail(bench, 1)
    assert bench["state"] == "open", "it did not interrupt the row"


async def test_a_pattern_inside_that_refuses_is_ignored_unless_told_otherwise() -> None:
    bench = Bench(CircuitBreaker("api", failures=1))
    await fail(bench, 3, lambda: RateLimited("later", 1.0))
    assert bench["state"] == "closed"
    strict = Bench(CircuitBreaker("api", failures=1, ignores=()))
    await fail(strict, 1, lambda: RateLimited("later", 1.0))
    assert strict["state"] == "open"


@pytest.mark.parametrize("returned", [False, True], ids=["raised", "returned"])
@pytest.mark.parametrize(("verdict", "state"), [(Retry(), "open"), (Fail(), "open"), (Halt(), "closed")])
async def test_a_step_that_says_retry_or_fail_has_failed(verdict: Exception, state: str, returned: bool) -> None:
    bench = Bench(CircuitBreaker("api", failures=1))

    async def step() -> Any:
        if returned:
            return verdict
        raise verdict

    task = bench.begin(step)
    await asyncio.wait([task])
    assert (task.result() if returned else task.exception()) is verdict
    assert bench["state"] == state


async def test_an_attempt_whose_time_was_over_is_a_failure() -> None:
    bench = Bench(CircuitBreaker("api", failures=1))
    early = bench.begin(Step(), deadline=at(bench.clock.monotonic_ns() + 1_000_000_000))
    await turns()
    early.cancel()
    await turns()
    assert bench["state"] == "closed", "being cancelled says nothing"
    slow = bench.begin(Step(), deadline=at(bench.clock.monotonic_ns() + 1_000_000_000))
    await bench.pass_time(1.0)
    slow.cancel()
    await turns()
    assert slow.cancelled() and bench["state"] == "open"


async def test_a_share_of_failures_opens_it_once_there_were_enough_calls() -> None:
    bench = Bench(CircuitBreaker("api", failure_rate=0.5, window=10.0, minimum=4))
    await fail(bench, 3)
    assert bench["state"] == "closed", "three calls are too few to say"
    for _ in range(4):
        await bench.now()
    assert (bench["counted"], bench["failures"], bench["state"]) == (7, 3, "closed")
    await fail(bench)
    assert bench["state"] == "open"


async def test_ten_calls_unless_told_otherwise() -> None:
    bench = Bench(CircuitBreaker("api", failure_rate=1.0, window=10.0))
    await fail(bench, 9)
    assert bench["state"] == "closed"
    await fail(bench)
    assert bench["state"] == "open"


async def test_what_happened_before_the_window_is_forgotten() -> None:
    bench = Bench(CircuitBreaker("api", failure_rate=1.0, window=10.0, minimum=3))
    await fail(bench, 2)
    await bench.pass_time(8.9)
    assert bench["counted"] == 2
    await bench.pass_time(1.2)
    assert bench["counted"] == 0
    await fail(bench, 2)
    assert bench["state"] == "closed"
    await fail(bench)
    assert bench["state"] == "open"


class Circuit(RuleBasedStateMachine):
    """Against a model: the rules of the docstring, written as plainly as they can be."""

    FAILURES, PROBES, SUCCESSES, OPEN_FOR = 2, 2, 2, 10

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench = Bench(
            CircuitBreaker(
                "api", failures=self.FAILURES, probes=self.PROBES, successes=self.SUCCESSES, open_for=self.OPEN_FOR
            )
        )
        self.step = Step()
        self.under_way: list[tuple[asyncio.Task[Any], int]] = []
        self.now = 0
        self.state, self.era, self.until = "closed", 0, 0
        self.row = self.good = self.probing = 0

    def teardown(self) -> None:
        for task, _ in self.under_way:
            task.cancel()
        self.loop.run_until_complete(turns())
        self.loop.close()

    def become(self, state: str) -> None:
        self.state, self.era, self.row, self.good, self.probing = state, self.era + 1, 0, 0, 0
        if state == "open":
            self.until = self.now + self.OPEN_FOR

    @rule()
    def call(self) -> None:
        if self.state == "open" and self.now >= self.until:
            self.become("half-open")
        allowed = self.state == "closed" or (self.state == "half-open" and self.probing < self.PROBES)
        self.probing += allowed and self.state == "half-open"

        async def begin() -> asyncio.Task[Any]:
            task = self.bench.begin(self.step)
            await turns()
            return task

        task = self.loop.run_until_complete(begin())
        assert task.done() != allowed
        if allowed:
            self.under_way.append((task, self.era))
        else:
            error = task.exception()
            assert isinstance(error, CircuitOpen)
            assert error.retry_after == (self.until - self.now if self.state == "open" else 1.0)

    @rule(index=st.integers(0, 5), outcome=st.sampled_from(["ok", "fail", "ignored", "cancel"]))
    def end(self, index: int, outcome: str) -> None:
        if index >= len(self.under_way):
            return
        task, era = self.under_way.pop(index)

        async def finish() -> None:
            if outcome == "cancel":
                task.cancel()
            else:
                self.step.end({"ok": 1, "fail": ValueError(), "ignored": RateLimited("x", 1.0)}[outcome], index)
            await asyncio.wait([task])

        self.loop.run_until_complete(finish())
        if not task.cancelled():
            task.exception()
        if era == self.era:
            self.count(outcome)

    def count(self, outcome: str) -> None:
        if self.state == "half-open":
            self.probing -= 1
            self.good += outcome == "ok"
            if outcome == "fail":
                self.become("open")
            elif self.good >= self.SUCCESSES:
                self.become("closed")
        elif outcome in ("ok", "fail"):
            self.row = self.row + 1 if outcome == "fail" else 0
            if self.row >= self.FAILURES:
                self.become("open")

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.bench.clock.advance(seconds)

    @invariant()
    def alike(self) -> None:
        shown = "half-open" if self.state == "open" and self.now >= self.until else self.state
        assert self.bench["state"] == shown
        assert self.bench["probing"] == self.probing
        assert self.step.begun - len(self.step.open) >= 0 and len(self.step.open) == len(self.under_way)


TestCircuit = Circuit.TestCase
TestCircuit.settings = examples(quick=60, long=1_000, stateful_step_count=30)
