"""Whatever user code raises, and wherever: it is that step's failure, and the mesh goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitactor import Element, Input, InvalidOutcome, Value, Workflow
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.hostile import HOMES, RAISED
from tests.conformance.support import failure_of
from tests.e2e.support import finish, for_spawner, pulse_lines, undone


@claim(
    "Outcomes of a step",
    "Whatever it raises, exits and cancellations too, is its failure; what was done before is undone.",
)
@claim("Where Reactor was caught", "A throw or an exit in a step crashed the caller, and nothing was undone.")
@HOMES
@RAISED
async def test_a_step_raises(store: str, place: str, make: Callable[[], BaseException]) -> None:
    workflow = Workflow("raising", ttl=2)
    taken_back: list[Any] = []
    workflow.step(name="before", spawn="inline")(lambda: 1).undo(lambda result: taken_back.append(result))

    def breaks(before: int) -> None:
        raise make()

    workflow.step(name="breaks", spawn=place)(for_spawner(place, breaks)).undo(
        lambda result: taken_back.append("not this")
    )
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "compensated", transaction.errors()
        assert (taken_back, undone(transaction)) == ([1], ["before"]), (
            "a step that raised is known not to have happened"
        )
        kind = type(make())
        if kind is StopIteration and place == "loop":
            kind = RuntimeError
        assert type((await failure_of(transaction)).__cause__) is kind
        assert type(next(pulse for pulse in transaction.pulses() if pulse.kind == "failed").error) is str
        assert mesh.node.about()["running"] == 0 and mesh.node.supervisor.healthy
    if store.startswith("sqlite"):
        async with Mesh(workflow, store=store) as mesh:
            again = await mesh.transaction(transaction.id)
            assert isinstance(again.errors()[0], BaseException)


@claim("Compensation and undo", "`compensate` raising: reported beside the original error, then undo.")
@HOMES
@RAISED
async def test_compensate_raises(store: str, place: str, make: Callable[[], BaseException]) -> None:
    workflow = Workflow("considering", ttl=2)
    taken_back: list[Any] = []
    workflow.step(name="before", spawn="inline")(lambda: 1).undo(lambda result: taken_back.append(result))

    def breaks(before: int) -> None:
        raise ConnectionError("the step")

    def consider(error: Exception) -> None:
        raise make()

    step = workflow.step(name="breaks", retries=1, spawn=place)(for_spawner(place, breaks))
    step.compensate(for_spawner(place, consider))
    step.undo(lambda result: taken_back.append("not this"))
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert (transaction.status, taken_back) == ("compensated", [1])
        kind = RuntimeError if isinstance(make(), StopIteration) else type(make())
        assert [type(error) for error in (await failure_of(transaction)).errors] == [ConnectionError, kind]
        [failed] = [pulse.error or "" for pulse in transaction.pulses() if pulse.kind == "failed"]
        assert "the step" in failed and "compensate" in failed
        assert pulse_lines(transaction).count("spawned breaks") == 1, "there was one more try, and nobody asked for it"


@claim(
    "Compensation and undo",
    "Whatever `undo` raises is collected; the rollback goes on, and the transaction ends `stuck`.",
)
@claim("Where Reactor was caught", "An undo that raised crashed the caller in the middle of the rollback.")
@HOMES
@RAISED
async def test_an_undo_raises(store: str, place: str, make: Callable[[], BaseException]) -> None:
    workflow = Workflow("undo raising", ttl=3)
    taken_back: list[Any] = []
    workflow.step(name="before", spawn="inline")(lambda: 1).undo(lambda result: taken_back.append(result))

    def made(before: int) -> int:
        return 2

    def unmake(result: int) -> None:
        raise make()

    workflow.step(name="made", spawn=place)(for_spawner(place, made)).undo(for_spawner(place, unmake))

    @workflow.step(spawn="inline")
    def breaks(made: int) -> None:
        raise ValueError("first")

    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert (transaction.status, taken_back) == ("stuck", [1])
        errors = (await failure_of(transaction)).errors
        assert isinstance(errors[0], ValueError) and len(errors) == 2


@claim(
    "Outcomes of a step",
    "Whatever `when`, a transform or `backoff` raises is that step's failure; of `backoff`, beside its own.",
)
@RAISED
@pytest.mark.parametrize("where", ["when", "transform", "backoff"])
async def test_a_callback_of_the_supervisor_raises(store: str, where: str, make: Callable[[], BaseException]) -> None:
    workflow = Workflow("deciding", input={"x": int}, ttl=2)

    def broken(*given: Any) -> Any:
        raise make()

    def failing(x: int) -> None:
        raise OSError("the step")

    async def fine(x: int) -> int:
        return x

    if where == "when":
        workflow.step(name="only", when=lambda x: broken())(fine)
    elif where == "transform":
        workflow.step(name="only", bind={"x": Input("x").map(broken)})(fine)
    else:
        workflow.step(name="only", retries=2, backoff=lambda error, attempt: broken())(failing)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow, {"x": 1})
        assert transaction.status == "compensated"
        assert type(transaction.errors()[0]) is (OSError if where == "backoff" else type(make()))
        assert mesh.node.about()["running"] == 0


@claim(
    "Outcomes of a step", "Its error names the workflow, the path of the step and the attempt, in words and as data."
)
@claim("Outcomes of a step", "Its error keeps its cause, its notes and the members of a group, also from the journal.")
@claim("Kinds: nested in each other", "What ends because a step in it failed has exactly one end in the journal.")
async def test_an_error_says_where_and_why(tmp_path: Path) -> None:
    inner = Workflow("inner", input={"n": int})

    @inner.step(retries=1, backoff=lambda: 0.0, spawn="inline")
    def adds(n: int) -> None:
        error = ExceptionGroup("both", [ValueError("a"), TypeError("b")])
        error.add_note("of the second column")
        raise error from KeyError("x")

    workflow = Workflow("sums")
    workflow.map(workflow=inner, name="rows", over=Value([7]), bind={"n": Element()})
    store = f"sqlite:///{tmp_path}/sums.db"
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        failures = [await failure_of(transaction)]
        assert pulse_lines(transaction).count("failed rows") == 1
    async with Mesh(workflow, store=store) as mesh:
        failures.append(await failure_of(await mesh.transaction(transaction.id)))
    for failure in failures:
        assert (failure.workflow, failure.step, failure.attempt) == ("sums", "sums/rows/0/adds", 2)
        assert "'sums' ended compensated at 'sums/rows/0/adds', attempt 2: ExceptionGroup: both" in str(failure)
        (error,) = failure.errors
        assert isinstance(error, ExceptionGroup) and [len(error.exceptions), error.__notes__] == [
            2,
            ["of the second column"],
        ]
        assert "'x'" in str(error.__cause__)


@claim(
    "Compensation and undo", "A wrong answer of `compensate` stands beside the original error, which stays the first."
)
async def test_a_wrong_answer_of_compensate_stands_beside_the_error() -> None:
    workflow = Workflow("considering", ttl=1)

    @workflow.step(spawn="inline")
    def breaks() -> None:
        raise ConnectionError("the step")

    breaks.compensate(lambda error: 5)
    async with Mesh(workflow) as mesh:
        failure = await failure_of(await finish(mesh, workflow))
    assert [type(error) for error in failure.errors] == [ConnectionError, InvalidOutcome]
    assert failure.__cause__ is failure.errors[0]
