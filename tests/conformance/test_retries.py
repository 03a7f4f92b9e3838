"""Trying again: when, how often, and after how long."""

from __future__ import annotations

from typing import Any

import pytest

from bitactor import Backoff, Halt, Retry, Workflow
from bitactor.testing import FakeClock, run_workflow
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, finished, journal
from tests.e2e.support import BOUND, audit, pass_time, pulse_lines, turns, until


@claim(
    "Outcomes of a step",
    "It returns or raises `Retry(after=, reason=)`: tried again, without compensation, up to `retries` more times.",
)
@pytest.mark.parametrize("raises", [False, True])
async def test_retry(store: str, raises: bool) -> None:
    clock = FakeClock()
    workflow = Workflow("retried")
    attempts: list[int] = []
    asked: list[str] = []

    @workflow.step(retries=2)
    async def tries(attempt: int) -> str:
        attempts.append(attempt)
        if attempt == 3:
            return "done"
        if raises:
            raise Retry(after=5, reason="busy")
        return Retry(after=5, reason="busy")  # type: ignore[return-value]

    tries.compensate(lambda error: asked.append("compensate"))
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for number in (1, 2):
            await until(lambda number=number: pulse_lines(transaction).count("retried tries") == number)
            await pass_time(clock, 4.9)
            assert len(attempts) == number
            await pass_time(clock, 0.2)
        assert await transaction.result(BOUND) == "done"
        assert (attempts, asked) == ([1, 2, 3], [])


class Later(Retry):
    """A subclass of an outcome counts as it."""


@claim("Outcomes of a step", "`Retry(after=0)`, or a subclass of it: tried again at once.")
@pytest.mark.parametrize("kind", [Retry, Later])
@pytest.mark.parametrize("raises", [False, True])
async def test_retry_at_once(store: str, kind: type[Retry], raises: bool) -> None:
    workflow = Workflow("soon")

    @workflow.step(retries=2)
    async def tries(attempt: int) -> Any:
        if attempt == 3:
            return "done"
        if raises:
            raise kind(after=0, reason="again")
        return kind(after=0, reason="again")

    async with finished(workflow, store=store) as transaction:
        assert await transaction.result() == "done" and journal(transaction, "spawned") == ["tries"] * 3


@claim("Outcomes of a step", "When no tries are left, `Retry` fails with its reason.")
@pytest.mark.parametrize("retries", [1, 2])
async def test_retry_runs_out(store: str, retries: int) -> None:
    workflow = Workflow("tired")

    @workflow.step(retries=retries)
    async def tries() -> Retry:
        return Retry(after=0, reason="the shop is shut")

    async with finished(workflow, store=store) as transaction:
        assert transaction.status == "compensated" and journal(transaction, "spawned") == ["tries"] * (retries + 1)
        assert "the shop is shut" in str(transaction.errors()[0])
        assert "the shop is shut" in str(await failure_of(transaction))


@claim("Outcomes of a step", "Between tries it waits: `backoff(error, attempt, **args)` says how many seconds.")
async def test_backoff_function(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("patient", input={"base": float})
    asked: list[Any] = []

    def wait(error: Exception, attempt: int, base: float) -> float:
        asked.append((str(error), attempt))
        return base * attempt

    @workflow.step(retries=2, backoff=wait)
    async def tries(base: float, attempt: int) -> int:
        if attempt < 3:
            raise ValueError("not yet")
        return attempt

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow, {"base": 10.0})
        for number, seconds in ((1, 10.0), (2, 20.0)):
            await until(lambda number=number: pulse_lines(transaction).count("retried tries") == number)
            await pass_time(clock, seconds - 0.1)
            assert pulse_lines(transaction).count("spawned tries") == number
            await pass_time(clock, 0.2)
        assert await transaction.result(BOUND) == 3
    assert asked == [("not yet", 1), ("not yet", 2)]


@claim("Outcomes of a step", "Or a `Backoff(initial, factor, cap, jitter)` says it.")
@pytest.mark.parametrize("jitter", [0, 0.5])
async def test_backoff_policy(store: str, jitter: float) -> None:
    workflow = Workflow("exponential", ttl=1)
    clock = FakeClock()
    attempts: list[int] = []

    @workflow.step(retries=4, backoff=Backoff(initial=1, factor=3, cap=10, jitter=jitter))
    async def tries(attempt: int) -> str:
        attempts.append(attempt)
        if attempt <= 4:
            raise ValueError(attempt)
        return "done"

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for number, full in enumerate((1, 3, 9, 10), start=1):
            await until(lambda number=number: pulse_lines(transaction).count("retried tries") == number)
            await turns()
            [*_, retried] = [pulse for pulse in transaction.pulses() if pulse.kind == "retried"]
            seconds = (retried.data or {})["after_ns"] / 1e9
            assert full * (1 - jitter) <= seconds <= full
            await pass_time(clock, seconds - 0.01)
            assert attempts[-1] == number
            await pass_time(clock, 0.02)
        assert await transaction.result(BOUND) == "done"
        audit(transaction)


def growing(error: Exception, attempt: int) -> float:
    return float(0.001 * 2 ** (attempt - 1))


@claim(
    "Outcomes of a step",
    "To a `backoff` function `attempt` is how many have failed, as a `Backoff` counts: an attempt that halted has not.",
)
@pytest.mark.parametrize("backoff", [growing, Backoff(initial=0.001, jitter=0)])
@pytest.mark.parametrize("spawn", ["inline", "loop", "thread"])
@pytest.mark.parametrize("how", ["raises", "compensates", "asks"])
async def test_backoff_counts_failures(store: str, backoff: Any, spawn: str, how: str) -> None:
    workflow = Workflow("halts between", ttl=1)
    seen: list[int] = []

    def tries(attempt: int) -> Any:
        seen.append(attempt)
        if attempt in (1, 3, 4):
            return Halt("look")
        if attempt in (2, 5):
            if how == "asks":
                return Retry()
            raise ValueError("not yet")
        return "done"

    async def atries(attempt: int) -> Any:
        return tries(attempt)

    step = workflow.step(name="tries", retries=2, backoff=backoff, spawn=spawn)(atries if spawn == "loop" else tries)
    told: list[int] = []
    if how == "compensates":
        step.compensate(lambda error, attempt: Retry() if told.append(attempt) is None else None)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        for _ in range(3):
            assert await transaction.ended(BOUND) == "halted"
            await transaction.resume()
        assert await transaction.result(BOUND) == "done"
        retried = [pulse.data or {} for pulse in transaction.pulses() if pulse.kind == "retried"]
        assert [data["after_ns"] for data in retried] == [1_000_000, 2_000_000]
        assert seen == [1, 2, 3, 4, 5, 6] and told == ([2, 5] if how == "compensates" else [])


@claim("Outcomes of a step", "What `backoff` answers and is no number of seconds fails the step, beside its own error.")
@pytest.mark.parametrize("answer", [-1, float("nan"), "soon", None, True, object()])
async def test_backoff_answers_nonsense(store: str, answer: Any) -> None:
    workflow = Workflow("odd backoff", ttl=1)

    @workflow.step(retries=2, backoff=lambda error: answer)
    async def breaks() -> None:
        raise ValueError("first")

    async with finished(workflow, store=store) as transaction:
        assert transaction.status == "compensated"
        [failed] = [pulse.error or "" for pulse in transaction.pulses() if pulse.kind == "failed"]
        assert "ValueError: first" in failed and "backoff" in failed


@claim(
    "Outcomes of a step",
    "`Retry` without `after` waits as `backoff` says, and is no failure: `compensate` is not asked.",
)
@pytest.mark.parametrize("raised", [False, True])
async def test_retry_waits_as_backoff_says(store: str, raised: bool) -> None:
    workflow = Workflow("patient by itself", ttl=1)
    asked: list[str] = []

    def backoff(error: Exception, attempt: int) -> float:
        asked.append(repr(error))
        return 0.002 * attempt

    @workflow.step(retries=2, backoff=backoff)
    async def busy(attempt: int) -> Retry | str:
        if attempt == 3:
            return "done"
        if raised:
            raise Retry(reason="busy")
        return Retry(reason="busy")

    @busy.compensate
    def never(error: Exception) -> None:
        raise AssertionError("asking for another try is no failure")

    async with finished(workflow, store=store) as transaction:
        assert await transaction.result() == "done"
        assert asked == ["Retry(after=None, reason='busy')"] * 2
        for pulses in (transaction.pulses(), run_workflow(workflow).pulses):
            assert [pulse.data["after_ns"] for pulse in pulses if pulse.kind == "retried" and pulse.data] == [
                2_000_000,
                4_000_000,
            ]


@claim("Outcomes of a step", "A wait of a thousand years, or for ever, is waited, and a cancel ends it.")
@pytest.mark.parametrize("after", [float("inf"), 1e200, 1e10])
async def test_a_wait_of_a_thousand_years(store: str, after: float) -> None:
    workflow = Workflow("eternal", ttl=1)

    @workflow.step(retries=2)
    async def waits() -> Retry:
        return Retry(after=after)

    @workflow.step(retries=2, backoff=lambda error: after)
    async def waits_too() -> None:
        raise ValueError("again")

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: {"retried waits", "retried waits_too"} <= set(pulse_lines(transaction)))
        assert await transaction.cancel() == "cancelled"
        audit(transaction)
