"""Undo: what was done is taken back, last first, when something fails or somebody asks for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from bitactor import Context, Continue, Halt, InvalidInput, InvalidOutcome, Retry, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, finished, journal, ran
from tests.e2e.support import BOUND, Peak, audit, finish, for_spawner, pass_time, turns, undone, until


async def fails() -> None:
    raise ValueError("the last step fails")


def three_then_failure(*, broken: dict[str, Exception] | None = None) -> tuple[Workflow, list[str]]:
    """a → b → c, each with an undo, `async def` and `def`, then one that fails; and what undo did. It raises for
    results in `broken`."""
    workflow = Workflow("three", input={"order": str}, ttl=8)
    log: list[str] = []
    before: list[str] = []

    def undoes(result: str, order: str) -> None:
        if broken and result in broken:
            raise broken[result]
        log.append(f"{result} of {order}")

    for name in ("a", "b", "c"):

        @workflow.step(name=name, after=list(before))
        async def does(order: str, name: str = name) -> str:
            return name.upper()

        does.undo(undoes if name == "c" else for_spawner("loop", undoes))
        before = [name]
    workflow.step(name="fails", after=before)(fails)
    return workflow, log


@claim("Compensation and undo", "`undo(result, **args)` → `None`: taken back.")
@claim("Where Reactor was caught", "Undo ran oldest first, although the documentation says last first.")
async def test_undo(store: str) -> None:
    workflow, log = three_then_failure()
    async with finished(workflow, {"order": "17"}, store=store) as transaction:
        assert transaction.status == "compensated"
        assert log == ["C of 17", "B of 17", "A of 17"]
        assert undone(transaction) == ["c", "b", "a"]
        assert isinstance((await failure_of(transaction)).__cause__, ValueError)


@claim("Compensation and undo", "Undo is in reverse order of completion.")
async def test_undo_order(store: str) -> None:
    """a → (b, c) → d; c is declared after b but completes first, and d fails."""
    workflow = Workflow("diamond", ttl=4)
    b_may = asyncio.Event()
    taken_back: list[str] = []

    @workflow.step
    async def a() -> str:
        return "a"

    @workflow.step
    async def b(a: str) -> str:
        await b_may.wait()
        return "b"

    @workflow.step
    async def c(a: str) -> str:
        b_may.set()
        return "c"

    @workflow.step
    async def d(b: str, c: str) -> str:
        raise ValueError("d")

    for step in (a, b, c, d):
        step.undo(lambda result: taken_back.append(result))
    async with finished(workflow, store=store) as transaction:
        assert transaction.status == "compensated"
        assert journal(transaction, "completed") == ["a", "c", "b"]
        assert taken_back == undone(transaction) == ["b", "c", "a"]


@claim("Compensation and undo", "Undo is one after the other, of steps that ran side by side, too.")
async def test_undo_is_serial(store: str) -> None:
    workflow = Workflow("serial", ttl=2)
    inside = Peak()

    async def take_back(result: int) -> None:
        with inside:
            await turns(1)

    for number in range(5):

        async def make(number: int = number) -> int:
            return number

        workflow.step(name=f"s{number}")(make).undo(take_back)
    workflow.step(name="fails", after=[f"s{number}" for number in range(5)])(fails)
    async with finished(workflow, store=store) as transaction:
        assert len(undone(transaction)) == 5 and inside.most == 1


@claim("Compensation and undo", "A step without an `undo` is passed over, and its result is kept.")
async def test_a_step_without_undo(store: str) -> None:
    workflow = Workflow("no undo", ttl=2)
    workflow.step(name="plain")(lambda: 1)
    workflow.step(name="fails", after=["plain"])(fails)
    async with finished(workflow, store=store) as transaction:
        assert transaction.status == "compensated" and undone(transaction) == []
        assert transaction.results() == {"plain": 1}


@claim("Compensation and undo", "`undo` → `Retry(...)`: again, bounded, with backoff.")
@pytest.mark.parametrize("after", [None, 0])
async def test_undo_retry(store: str, after: float | None) -> None:
    clock = FakeClock()
    options: dict[str, Any] = {"clock": clock} if after is None else {}
    workflow = Workflow("slow undo", undo_timeout=3600)
    attempts: list[int] = []

    @workflow.step
    async def a() -> str:
        return "a"

    @a.undo(retries=2)
    async def una(attempt: int) -> Retry:
        attempts.append(attempt)
        return Retry(after=after, reason="not yet")

    workflow.step(name="fails", after=["a"])(fails)
    async with Mesh(workflow, store=store, **options) as mesh:
        transaction = await mesh.stimulate(workflow)
        if after is None:
            await until(lambda: attempts == [1])
            await turns()
            assert attempts == [1], "the next try waits"
            await pass_time(clock, 60, steps=10)
        await until(lambda: attempts == [1, 2, 3])
        assert await transaction.ended(BOUND) == "stuck"
        assert "not yet" in str(transaction.errors()[1])
        audit(transaction)


@claim("Compensation and undo", "A stuck transaction that is resumed has all retries of its undo again.")
@pytest.mark.parametrize("given_up_by", ["retries", "raising"])
async def test_undo_retries_begin_anew_when_it_is_resumed(store: str, given_up_by: str) -> None:
    workflow = Workflow("slow undo", undo_timeout=3600)
    left: list[tuple[int, int]] = []

    @workflow.step(retries=5)
    async def a() -> str:
        return "a"

    @a.undo(retries=2)
    async def una(ctx: Context) -> Retry | None:
        left.append((ctx.attempt, ctx.retries_left))
        if given_up_by == "raising" and len(left) == 2:
            raise ValueError("the disk is full")
        return Retry(after=0) if len(left) < 6 else None

    workflow.step(name="fails", after=["a"])(fails)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        while await transaction.ended(BOUND) == "stuck" and len(left) < 6:
            await transaction.resume()
        assert transaction.status == "compensated"
        retries = [2, 1, 2, 1, 0, 2] if given_up_by == "raising" else [2, 1, 0, 2, 1, 0]
        assert left == [*enumerate(retries, start=1)]
        audit(transaction)


@claim(
    "Compensation and undo",
    "`undo` → `Continue` or `Halt`: refused, and stuck; any other value is no answer, and it is taken back.",
)
@pytest.mark.parametrize(
    ("verdict", "status"), [(Continue(1), "stuck"), (Halt("x"), "stuck"), (17, "compensated"), ("done", "compensated")]
)
async def test_what_an_undo_answers(store: str, verdict: Any, status: str) -> None:
    workflow = Workflow("odd undo", ttl=2)
    workflow.step(name="a")(lambda: "a").undo(lambda result: verdict)
    workflow.step(name="fails", after=["a"])(fails)
    transaction = await ran(workflow, store=store)
    assert transaction.status == status
    assert [type(error) for error in transaction.errors()[1:]] == ([InvalidOutcome] if status == "stuck" else [])


class Receipt(BaseModel):
    number: int


@claim(
    "Compensation and undo",
    "An `undo` whose annotation the result does not fit is not called: stuck, and the mesh goes on.",
)
async def test_an_undo_whose_result_does_not_fit(store: str) -> None:
    workflow = Workflow("misfit", ttl=2)

    @workflow.step
    async def a() -> dict:
        return {"number": "not a number"}

    @a.undo
    async def una(result: Receipt) -> None:
        raise AssertionError("never called")

    workflow.step(name="fails", after=["a"])(fails)
    async with Mesh(workflow, store=store) as mesh:
        for _ in range(2):
            transaction = await finish(mesh, workflow)
            assert transaction.status == "stuck"
            assert len(transaction.errors()) == 2 and not isinstance(transaction.errors()[1], AssertionError)


@claim(
    "Compensation and undo",
    "`undo` raising: collected, the rollback goes on, the transaction ends `stuck` and can be resumed.",
)
async def test_undo_raises(store: str) -> None:
    broken: dict[str, Exception] = {"C": OSError("third"), "B": KeyError("second")}
    workflow, log = three_then_failure(broken=broken)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow, {"order": "17"})
        assert (transaction.status, log) == ("stuck", ["A of 17"])
        failure = await failure_of(transaction)
        assert [type(error) for error in failure.errors] == [ValueError, OSError, KeyError]
        assert isinstance(failure.__cause__, ValueError)
        assert [row.transaction for row in await mesh.transactions(status="stuck")] == [transaction.id]

        await transaction.resume()
        assert await transaction.ended(BOUND) == "stuck", "it is as broken as it was"
        broken.clear()
        await transaction.resume()
        assert await transaction.ended(BOUND) == "compensated"
        assert log == ["A of 17", "C of 17", "B of 17"], "what was undone is not undone again"
        with pytest.raises(InvalidInput, match="compensated"):
            await transaction.resume()
        audit(transaction)


@claim("Compensation and undo", "A completed transaction can be undone later, once: `await tx.undo()`.")
async def test_undo_later(store: str) -> None:
    workflow = Workflow("later")
    log: list[str] = []
    for name in ("a", "b"):
        workflow.step(name=name, after=["a"] if name == "b" else [])(lambda: None).undo(
            lambda name=name: log.append(name)
        )
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
