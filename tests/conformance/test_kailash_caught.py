"""Where Kailash (2.65) was caught failing; each case passes here."""

from __future__ import annotations

import asyncio
import builtins
import time
from typing import Any

import pytest

from bitactor import DeadlineExceeded, DefinitionError, DuplicateTransaction, InvalidInput, Result, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, ran, result_of
from tests.e2e.support import BOUND, finish, pass_time, pulse_lines, spawned

SECTION = "Where Kailash was caught"


@claim(SECTION, "A retry policy was accepted and without effect.")
async def test_retries() -> None:
    workflow = Workflow("retried")

    @workflow.step(retries=2, backoff=lambda error: 0.0)
    async def tries(attempt: int) -> int:
        if attempt < 3:
            raise ConnectionError
        return attempt

    assert await result_of(workflow) == 3


@claim(SECTION, "Items were lost in batches.")
@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 29, 30, 1_003])
async def test_no_item_is_lost(length: int) -> None:
    workflow = Workflow("batched", input={"length": int})
    seen: list[int] = []

    @workflow.map(over=lambda length: iter(range(length)), batch=10, on_error="collect")
    def each(element: int) -> int:
        seen.append(element)
        if element % 7 == 3:
            raise ValueError(element)
        return element

    result = await result_of(workflow, {"length": length})
    assert seen == list(range(length))
    assert sorted([*result["results"], *(error["element"] for error in result["errors"])]) == list(range(length))


@claim(SECTION, "A missing path gave `None`.")
async def test_a_missing_path() -> None:
    workflow = Workflow("missing")
    workflow.step(name="load")(lambda: {"user": {}})
    workflow.step(name="use", bind={"email": Result("load", "user", "email")})(lambda email: email)
    failure = await failure_of(await ran(workflow))
    assert isinstance(failure.__cause__, InvalidInput) and "'email'" in str(failure)


@claim(SECTION, "One output to two inputs silently dropped one.")
async def test_one_output_to_two_inputs() -> None:
    workflow = Workflow("both")
    workflow.step(name="load")(lambda: {"a": 1})
    workflow.step(name="use", bind={"one": Result("load"), "two": Result("load"), "three": Result("load", "a")})(
        lambda one, two, three: [one, two, three]
    )
    assert await result_of(workflow) == [{"a": 1}, {"a": 1}, 1]


@claim(SECTION, "Steps waited at level barriers.")
async def test_no_barriers() -> None:
    workflow = Workflow("levels")
    chain_done = asyncio.Event()

    @workflow.step
    async def slow() -> None:
        await chain_done.wait()

    workflow.step(name="a")(lambda: 1)
    workflow.step(name="b")(lambda a: a + 1)

    @workflow.step
    async def c(b: int) -> int:
        chain_done.set()
        return b + 1

    workflow.returns(c)
    assert await result_of(workflow) == 3


@claim(SECTION, "Fail-fast left siblings running.")
async def test_siblings_of_a_failure() -> None:
    workflow = Workflow("fail fast")
    ended: list[str] = []
    began = asyncio.Event()

    @workflow.step
    async def sibling() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.append("sibling")

    @workflow.step
    async def breaks() -> None:
        await began.wait()
        raise ValueError

    transaction = await ran(workflow)
    assert (transaction.status, ended) == ("compensated", ["sibling"])


@claim(SECTION, "A time limit was checked only after completion.")
async def test_a_time_limit() -> None:
    clock = FakeClock()
    workflow = Workflow("limited", deadline=1.0, grace=0.1)

    @workflow.step
    async def hangs() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "hangs")
        await pass_time(clock, 1.1)
        await pass_time(clock, 1)
        assert await transaction.ended(BOUND) == "compensated"
        assert isinstance((await failure_of(transaction)).__cause__, DeadlineExceeded)


@claim(SECTION, "Global functions were patched, with a recursion error after 200 runs.")
async def test_nothing_global_is_patched() -> None:
    workflow = Workflow("often")
    workflow.step(name="works", spawn="inline")(lambda: 1)
    before = {id(function) for function in _globals()}
    async with Mesh(workflow) as mesh:
        for _ in range(500):
            assert await (await mesh.stimulate(workflow)).result(BOUND) == 1
    assert {id(function) for function in _globals()} == before


def _globals() -> list[Any]:
    """What somebody might be tempted to wrap."""
    found = [builtins.print, builtins.open, builtins.__import__, time.sleep, time.time, time.monotonic]
    return [*found, asyncio.create_task, asyncio.sleep, asyncio.get_running_loop, asyncio.Task, asyncio.Future]


@claim(SECTION, "Two concurrent runs got one id.")
async def test_ids_are_unique() -> None:
    workflow = Workflow("identified")
    workflow.step(name="works")(lambda: 1)
    async with Mesh(workflow) as mesh:
        transactions = await asyncio.gather(*(mesh.stimulate(workflow) for _ in range(1_000)))
        assert len({transaction.id for transaction in transactions}) == 1_000
        await asyncio.gather(*(transaction.ended(BOUND) for transaction in transactions))
        one, same = await asyncio.gather(*(mesh.stimulate(workflow, key="one") for _ in range(2)))
        assert one.id == same.id, "the same only where that was asked for"


@claim(SECTION, "A key used twice with different inputs is refused, not mixed up.")
async def test_keys() -> None:
    workflow = Workflow("keyed", input={"amount": int})
    workflow.step(name="works")(lambda amount: amount)
    async with Mesh(workflow) as mesh:
        first = await mesh.stimulate(workflow, {"amount": 1}, key="k")
        with pytest.raises(DuplicateTransaction):
            await mesh.stimulate(workflow, {"amount": 2}, key="k")
        assert await first.result(BOUND) == 1


@claim(SECTION, "There was no event for a failed node.")
async def test_a_failed_step_is_told() -> None:
    workflow = Workflow("told")

    @workflow.step(retries=1, backoff=lambda error: 0.0)
    async def breaks() -> None:
        raise ValueError("why")

    transaction = await ran(workflow)
    assert pulse_lines(transaction) == [
        "accepted",
        "spawned breaks",
        "retried breaks",
        "spawned breaks",
        "failed breaks",
        "finished",
    ]
    assert [pulse.kind for pulse in transaction.pulses() if "why" in (pulse.error or "")] == [
        "retried",
        "failed",
        "finished",
    ]


@claim(SECTION, "Partial results were lost on failure.")
async def test_partial_results(store: str) -> None:
    workflow = Workflow("partial")
    workflow.step(name="a")(lambda: {"kept": 1})
    workflow.step(name="b")(lambda a: 1 / 0)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "compensated"
        assert transaction.results() == {"a": {"kept": 1}}
        assert (await mesh.transaction(transaction.id)).results() == {"a": {"kept": 1}}


@claim(SECTION, "Code was passed as strings.")
def test_code_is_functions() -> None:
    workflow = Workflow("functions")
    with pytest.raises(DefinitionError, match="function"):
        workflow.step(name="x")("result = 1")
    step = workflow.step(name="add")(lambda number=1: number + 1)
    assert step(2) == 3, "which stay functions"
