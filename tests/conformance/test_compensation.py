"""What a step's `compensate` may answer when the step has failed, and what comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bitactor import Continue, Fail, Halt, InvalidOutcome, Ok, Retry, Workflow
from bitactor.testing import run_workflow
from mesh import Transaction
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, finished, journal
from tests.e2e.support import SPAWNERS, for_spawner, pulse_lines, undone


class Declined(Exception):
    """What charging fails with."""


@asynccontextmanager
async def charged(
    store: str,
    answer: Any,
    *,
    retries: int = 1,
    raises: bool = False,
    place: str = "loop",
    works_the_second_time: bool = False,
    shipping_fails: bool = False,
) -> AsyncIterator[tuple[Transaction, list[str]]]:
    """Reserve, charge (which fails, and has a compensation that answers so, or raises it), ship; and what was
    called."""
    workflow = Workflow("charging", input={"card": str})
    log: list[str] = []

    @workflow.step
    async def reserve() -> str:
        return "reserved"

    reserve.undo(lambda result: log.append("release"))

    def charge(reserve: str, card: str, attempt: int) -> str:
        log.append(f"charge {attempt}")
        if works_the_second_time and attempt == 2:
            return card
        raise Declined(f"{card} declined")

    def consider(error: Exception, card: str, attempt: int) -> Any:
        log.append(f"compensate {type(error).__name__} {attempt} {card}")
        if raises:
            raise answer
        return answer

    charging = workflow.step(name="charge", retries=retries, spawn=place)(for_spawner(place, charge))
    charging.compensate(for_spawner(place, consider))
    charging.undo(lambda result: log.append(f"refund {result}"))

    @workflow.step
    async def ship(charge: str) -> str:
        if shipping_fails:
            raise OSError("no ship")
        return f"shipped for {charge}"

    async with finished(workflow, {"card": "4711"}, store=store) as transaction:
        yield transaction, log


@claim("Compensation and undo", "It raises, and there is a `compensate(error, **args)`: that decides, not `retries`.")
@claim("Compensation and undo", "`compensate` → `None`: fail and undo.")
@pytest.mark.parametrize("retries", [0, 5])
@pytest.mark.parametrize("answer", [None, Fail("for good")])
async def test_compensate_lets_it_fail(store: str, answer: Any, retries: int) -> None:
    async with charged(store, answer, retries=retries) as (transaction, log):
        assert transaction.status == "compensated"
        assert log == ["charge 1", "compensate Declined 1 4711", "release"]
        assert journal(transaction, "spawned").count("charge") == 1
        assert isinstance((await failure_of(transaction)).__cause__, Declined)


@claim("Compensation and undo", "`compensate` → `Retry(...)`: again, within `retries`.")
@pytest.mark.parametrize("place", SPAWNERS)
@pytest.mark.parametrize("raises", [False, True])
async def test_compensate_retry(store: str, place: str, raises: bool) -> None:
    again = Retry(after=0)
    async with charged(store, again, retries=1, raises=raises, place=place, works_the_second_time=True) as (
        transaction,
        log,
    ):
        assert await transaction.result() == "shipped for 4711"
        assert log == ["charge 1", "compensate Declined 1 4711", "charge 2"]


@claim(
    "Compensation and undo", "When no tries are left, a compensation's `Retry` lets the step fail with its own error."
)
@pytest.mark.parametrize("retries", [0, 2])
async def test_compensate_retry_runs_out(store: str, retries: int) -> None:
    async with charged(store, Retry(after=0), retries=retries) as (transaction, log):
        assert (transaction.status, log[-1]) == ("compensated", "release")
        assert [line for line in log if line.startswith("charge")] == [
            f"charge {number}" for number in range(1, retries + 2)
        ]
        assert undone(transaction) == ["reserve"]
        assert isinstance(transaction.errors()[0], Declined)


@claim(
    "Compensation and undo",
    "A compensation's `Retry` without `after` waits as the step's `backoff(error, attempt)` says.",
)
@pytest.mark.parametrize("raised", [False, True])
async def test_compensate_retry_waits_as_backoff_says(store: str, raised: bool) -> None:
    workflow = Workflow("patient by function", ttl=1)
    asked: list[tuple[str, int]] = []

    def backoff(error: Exception, attempt: int) -> float:
        asked.append((str(error), attempt))
        return 0.002 * attempt

    @workflow.step(retries=2, backoff=backoff)
    async def breaks(attempt: int) -> str:
        if attempt < 3:
            raise ValueError(attempt)
        return "done"

    @breaks.compensate
    def again(error: Exception) -> Retry:
        if raised:
            raise Retry(reason="busy")
        return Retry(reason="busy")

    async with finished(workflow, store=store) as transaction:
        assert await transaction.result() == "done"
        assert asked == [("1", 1), ("2", 2)]
        for pulses in (transaction.pulses(), run_workflow(workflow).pulses):
            assert [pulse.data["after_ns"] for pulse in pulses if pulse.kind == "retried" and pulse.data] == [
                2_000_000,
                4_000_000,
            ]


@claim("Compensation and undo", "`compensate` → `Continue(value)`: the step is done with that value, and undoable.")
@pytest.mark.parametrize("place", SPAWNERS)
async def test_compensate_continue(store: str, place: str) -> None:
    async with charged(store, Continue("cash"), place=place) as (transaction, log):
        assert await transaction.result() == "shipped for cash"
        assert "compensated charge" in pulse_lines(transaction)
        assert log == ["charge 1", "compensate Declined 1 4711"]
    async with charged(store, Continue("cash"), place=place, shipping_fails=True) as (transaction, log):
        assert (transaction.status, log[-2:]) == ("compensated", ["refund cash", "release"])


@claim("Compensation and undo", "`compensate` → `Halt`: the transaction halts.")
@pytest.mark.parametrize("raises", [False, True])
async def test_compensate_halt(store: str, raises: bool) -> None:
    async with charged(store, Halt("ask somebody"), raises=raises) as (transaction, log):
        assert transaction.status == "halted" and undone(transaction) == []
        assert log == ["charge 1", "compensate Declined 1 4711"]


@claim(
    "Compensation and undo",
    "`compensate` → anything else, or a value that cannot be carried: refused, and the step fails with the original "
    "error and that one.",
)
@pytest.mark.parametrize("answer", [17, "retry", True, Ok(1), Retry, object(), Continue(object())])
async def test_compensate_answers_nonsense(store: str, answer: Any) -> None:
    async with charged(store, answer) as (transaction, log):
        assert transaction.status == "compensated"
        assert log == ["charge 1", "compensate Declined 1 4711", "release"]
        original, error = transaction.errors()
        assert isinstance(original, Declined) and isinstance(error, InvalidOutcome)
        assert isinstance(answer, Continue) or "compensate" in str(error)
