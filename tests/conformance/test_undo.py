"""What happens when something fails: compensation of the step that failed, undo of those before it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bitactor import Continue, Halt, Retry, Workflow
from bitactor.errors import InvalidInput
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, journal, ran
from tests.e2e.support import BOUND, audit, finish, pass_time, spawned, told, turns, undone, until


class Declined(Exception):
    """What the steps here fail with."""


def charging(answer: Any, *, retries: int = 0, raises: bool = False) -> tuple[Workflow, list[str]]:
    """Reserve, charge (which fails, and has a compensation that answers so), ship."""
    workflow = Workflow("charging", input={"card": str})
    log: list[str] = []

    @workflow.step
    async def reserve() -> str:
        return "reserved"

    reserve.undo(lambda result: log.append("release"))

    @workflow.step(retries=retries)
    async def charge(reserve: str, card: str, attempt: int) -> str:
        log.append(f"charge {attempt}")
        raise Declined(f"{card} declined")

    @charge.compensate
    async def consider(error: Exception, card: str) -> Any:
        log.append(f"compensate {type(error).__name__} {card}")
        if raises:
            raise answer
        return answer

    charge.undo(lambda result: log.append(f"refund {result}"))

    @workflow.step
    async def ship(charge: str) -> str:
        return f"shipped for {charge}"

    return workflow, log


@claim("Compensation and undo", "It raises, and there is a `compensate(error, **args)`: that decides, not `retries`.")
async def test_compensate_decides() -> None:
    workflow, log = charging(None, retries=5)
    transaction = await ran(workflow, {"card": "4711"})
    assert transaction.status == "compensated"
    assert log == ["charge 1", "compensate Declined 4711", "release"]


@claim("Compensation and undo", "`compensate` → `None`: fail and undo.")
async def test_compensate_none() -> None:
    workflow, log = charging(None)
    transaction = await ran(workflow, {"card": "4711"})
    assert (transaction.status, log[-1]) == ("compensated", "release")
    assert isinstance((await failure_of(transaction)).__cause__, Declined)


@claim("Compensation and undo", "`compensate` → `Retry(...)`: again, within `retries`.")
async def test_compensate_retry() -> None:
    workflow, log = charging(Retry(after=0), retries=2)
    transaction = await ran(workflow, {"card": "4711"})
    assert transaction.status == "compensated"
    assert [line for line in log if line.startswith("charge")] == ["charge 1", "charge 2", "charge 3"]


@claim("Compensation and undo", "`compensate` → `Continue(value)`: the step is done with that value, and undoable.")
async def test_compensate_continue() -> None:
    workflow, log = charging(Continue("cash"))
    transaction = await ran(workflow, {"card": "4711"})
    assert await transaction.result() == "shipped for cash"
    assert "compensated charge" in told(transaction) or "completed charge" in told(transaction)

    failing, log = charging(Continue("cash"))
    failing.step(name="fails", after=["ship"])(fails)
    transaction = await ran(failing, {"card": "4711"})
    assert (transaction.status, log[-2:]) == ("compensated", ["refund cash", "release"])


async def fails() -> None:
    raise ValueError("the last step fails")


@claim("Compensation and undo", "`compensate` → `Halt`: the transaction halts.")
async def test_compensate_halt() -> None:
    workflow, _ = charging(Halt("ask somebody"))
    transaction = await ran(workflow, {"card": "4711"})
    assert transaction.status == "halted" and undone(transaction) == []


@claim("Compensation and undo", "`compensate` raising: reported beside the original error, then undo.")
async def test_compensate_raises() -> None:
    workflow, log = charging(KeyError("compensate"), raises=True)
    transaction = await ran(workflow, {"card": "4711"})
    assert (transaction.status, log[-1]) == ("compensated", "release")
    assert [type(error) for error in (await failure_of(transaction)).errors] == [Declined, KeyError]


def three_then_failure(*, stuck: list[str] | None = None) -> tuple[Workflow, list[str]]:
    """a → b → c, each with an undo, then one that fails; undo raises for those in `stuck`."""
    workflow = Workflow("three", input={"order": str}, ttl=8)
    log: list[str] = []
    before: list[str] = []
    for name in ("a", "b", "c"):

        @workflow.step(name=name, after=list(before))
        async def does(order: str, name: str = name) -> str:
            return name.upper()

        @does.undo
        async def undoes(result: str, order: str) -> None:
            if stuck and result in stuck:
                raise ConnectionError(f"cannot undo {result}")
            log.append(f"{result} of {order}")

        before = [name]
    workflow.step(name="fails", after=before)(fails)
    return workflow, log


@claim("Compensation and undo", "`undo(result, **args)` → `None`: taken back.")
async def test_undo() -> None:
    workflow, log = three_then_failure()
    transaction = await ran(workflow, {"order": "17"})
    assert transaction.status == "compensated"
    assert log == ["C of 17", "B of 17", "A of 17"]
    assert isinstance((await failure_of(transaction)).__cause__, ValueError)


@claim("Compensation and undo", "Undo is in reverse order of completion.")
async def test_undo_order() -> None:
    workflow = Workflow("diamond", ttl=8)
    second_done = asyncio.Event()

    @workflow.step
    async def first() -> None:
        """Declared first, and completed last."""
        await second_done.wait()

    @workflow.step
    async def second() -> None:
        return None

    @workflow.step
    async def third(second: None) -> None:
        second_done.set()

    for step in (first, second, third):
        step.undo(lambda: None)
    workflow.step(name="fails", after=["first", "third"])(fails)
    transaction = await ran(workflow)
    completed = journal(transaction, "completed")
    assert completed[0] == "second" and undone(transaction) == completed[::-1]


@claim("Compensation and undo", "`undo` → `Retry(...)`: again, bounded, with backoff.")
async def test_undo_retry() -> None:
    clock = FakeClock()
    workflow = Workflow("slow undo", undo_timeout=3600)
    attempts: list[int] = []

    @workflow.step
    async def a() -> str:
        return "a"

    @a.undo(retries=2)
    async def una(attempt: int) -> Retry:
        attempts.append(attempt)
        return Retry(reason="not yet")

    workflow.step(name="fails", after=["a"])(fails)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: attempts == [1])
        await turns()
        assert attempts == [1], "the next try waits"
        await pass_time(clock, 60, steps=10)
        await until(lambda: attempts == [1, 2, 3])
        assert await transaction.ended(BOUND) == "stuck"


@claim("Compensation and undo", "`undo` raising: collected, the rollback goes on, the transaction ends `stuck` and can be resumed.")
async def test_undo_raises(store: str) -> None:
    stuck = ["B"]
    workflow, log = three_then_failure(stuck=stuck)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow, {"order": "17"})
        assert (transaction.status, log) == ("stuck", ["C of 17", "A of 17"])
        assert [type(error) for error in (await failure_of(transaction)).errors] == [ValueError, ConnectionError]
        assert [row.transaction for row in await mesh.transactions(status="stuck")] == [transaction.id]
        stuck.clear()
        await transaction.resume()
        assert await transaction.ended(BOUND) == "compensated"
        assert log == ["C of 17", "A of 17", "B of 17"], "what was undone is not undone again"
        audit(transaction)


@claim(
    "Compensation and undo",
    "A bare `undo` is only called when the step is known to have happened; `undo(in_doubt=True)` also when nobody knows.",
)
async def test_undo_in_doubt() -> None:
    workflow = Workflow("doubt")
    seen: list[Any] = []
    began = asyncio.Event()

    @workflow.step
    async def hangs() -> str:
        began.set()
        await asyncio.Event().wait()
        return "never"

    @hangs.undo(in_doubt=True)
    async def unhang(result: str | None) -> None:
        seen.append(result)

    @workflow.step
    async def breaks() -> None:
        await began.wait()
        raise ValueError

    breaks.undo(lambda: seen.append("the failed one is not undone"))
    transaction = await ran(workflow)
    assert (transaction.status, seen) == ("compensated", [None])


@claim("Compensation and undo", "What is in flight when something fails is cancelled or awaited, then undone.")
async def test_in_flight_on_failure() -> None:
    workflow = Workflow("in flight")
    log: list[str] = []
    began, go = asyncio.Event(), asyncio.Event()

    @workflow.step
    async def finishes() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("asked to stop")
            await go.wait()
        log.append("finished all the same")
        return "charged"

    @finishes.undo
    async def unfinish(result: str) -> None:
        log.append(f"undo {result}")

    @workflow.step
    async def breaks() -> None:
        await began.wait()
        raise ValueError

    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: log == ["asked to stop"])
        assert transaction.status == "running"
        go.set()
        assert await transaction.ended(BOUND) == "compensated"
        assert log == ["asked to stop", "finished all the same", "undo charged"]


@claim("Compensation and undo", "Nothing is left running after a failure, and nothing is abandoned.")
async def test_nothing_is_left_running() -> None:
    workflow = Workflow("siblings")
    ended: list[str] = []
    began = [asyncio.Event() for _ in range(5)]
    for number in range(5):

        @workflow.step(name=f"s{number}")
        async def hangs(number: int = number) -> None:
            try:
                began[number].set()
                await asyncio.Event().wait()
            finally:
                ended.append(f"s{number}")

    @workflow.step
    async def breaks() -> None:
        for event in began:
            await event.wait()
        raise ValueError

    async with Mesh(workflow) as mesh:
        before = len(asyncio.all_tasks())
        transaction = await finish(mesh, workflow)
        assert transaction.status == "compensated"
        assert sorted(ended) == [f"s{number}" for number in range(5)]
        await turns()
        assert len(asyncio.all_tasks()) == before and mesh.node.supervisor.running == 0


@claim("Compensation and undo", "A completed transaction can be undone later, once: `await tx.undo()`.")
async def test_undo_later(store: str) -> None:
    workflow = Workflow("later")
    log: list[str] = []
    for name in ("a", "b"):
        workflow.step(name=name, after=["a"] if name == "b" else [])(lambda: None).undo(lambda name=name: log.append(name))
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "completed"
        assert await transaction.undo() == "compensated"
        assert log == ["b", "a"]
        audit(transaction)
        with pytest.raises(InvalidInput, match="compensated"):
            await transaction.undo()
        assert log == ["b", "a"]


@claim("Compensation and undo", "A completed transaction can be undone by another mesh on the same store, too.")
async def test_undo_later_elsewhere(sqlite: str) -> None:
    workflow = Workflow("much later")
    log: list[str] = []
    workflow.step(name="a")(lambda: "a").undo(lambda result: log.append(result))
    async with Mesh(workflow, store=sqlite) as mesh:
        first = await finish(mesh, workflow)
    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await mesh.transaction(first.id)
        assert await transaction.undo() == "compensated"
        audit(transaction)
    assert log == ["a"]


@claim("Compensation and undo", "What is in flight is stopped on a cancel, too, and the rest undone.")
async def test_cancel_undoes() -> None:
    workflow = Workflow("cancelled")
    log: list[str] = []
    workflow.step(name="a")(lambda: "a").undo(lambda result: log.append(result))

    @workflow.step
    async def hangs(a: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("stopped")

    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "hangs")
        assert await transaction.cancel("changed my mind") == "cancelled"
        assert log == ["stopped", "a"]
