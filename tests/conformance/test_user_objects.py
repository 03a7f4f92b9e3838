"""Objects of the user's are code that can do anything: what they do is their step's failure, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from bitactor import StepExited, Workflow
from bitactor.errors import InvalidInput, InvalidOutcome
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.hostile import HOMES
from tests.conformance.support import failure_of
from tests.e2e.support import SPAWNERS, finish, for_spawner, undone


class Detached:
    """A record whose session is gone: nothing of it can be had."""

    def _gone(self, *_: Any) -> Any:
        raise RuntimeError("detached")

    __repr__ = __str__ = __eq__ = __hash__ = __getattr__ = __reduce_ex__ = _gone  # type: ignore[assignment]


class Leaving(Mapping[str, Any]):
    """A mapping that exits when it is read."""

    def __getitem__(self, name: str) -> Any:
        raise SystemExit(0)

    def __iter__(self) -> Iterator[str]:
        raise SystemExit(0)

    def __len__(self) -> int:
        raise SystemExit(0)


class Lying:
    """An object that says it is something else."""

    __class__ = property(lambda self: StopAsyncIteration)  # type: ignore[assignment]


def broken() -> ValueError:
    """An exception, no part of which can be encoded."""
    error = ValueError("cannot be saved", Detached())
    error.__dict__.update(record=Detached(), __notes__=["at midnight", Detached()])
    error.__cause__ = KeyError(Detached())
    return error


def raising(role: str, place: str) -> Workflow:
    """A workflow in which `role` raises it, after a step that is undone."""
    workflow = Workflow("raising", ttl=4)
    workflow.step(name="before", spawn="inline")(lambda: 1).undo(lambda result: None)

    def breaks(*_: Any, **__: Any) -> Any:
        raise broken()

    def fine(before: int) -> int:
        return 2

    if role == "when":
        workflow.step(name="it", spawn=place, when=lambda before: breaks())(for_spawner(place, fine))
        return workflow
    if role == "undo":
        step = workflow.step(name="it", spawn=place)(for_spawner(place, fine))
        step.undo(for_spawner(place, lambda result: breaks()), retries=0)
        workflow.flunk("end", "{it}")
        return workflow
    step = workflow.step(name="it", spawn=place, after=["before"])(for_spawner(place, lambda: breaks()))
    if role == "compensate":
        step.compensate(for_spawner(place, lambda error: breaks()))
    return workflow


@claim(
    "Outcomes of a step",
    "An exception whose arguments, notes or cause cannot be encoded or shown is a failure like any other, with as much "
    "of it as can be had: raised in a step, `when`, `compensate` or `undo`.",
)
@HOMES
@pytest.mark.parametrize("role", ["step", "when", "compensate", "undo"])
async def test_an_exception_of_which_nothing_can_be_had(store: str, place: str, role: str) -> None:
    workflow = raising(role, place)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == ("stuck" if role == "undo" else "compensated")
        assert undone(transaction) == ["before"]
        failure = await failure_of(transaction)
        told = str(failure) + str(transaction.faults())
        assert ("raising/end" if role == "undo" else "raising/it") in told
        assert type(failure.errors[-1]) is ValueError
        assert "cannot be saved" in told and "whose repr raises RuntimeError" in told and "KeyError" in told
    if store.startswith("sqlite"):
        async with Mesh(workflow, store=store) as mesh:
            again = await mesh.transaction(transaction.id)
            assert "cannot be saved" in str(again.errors()[-1])


@claim(
    "Outcomes of a step",
    "A result that exits while it is read, or that lies about its class, fails its step; the mesh goes on.",
)
@HOMES
@pytest.mark.parametrize("make", [Leaving, Lying, Detached, lambda: {"rows": [Leaving()]}])
async def test_a_result_that_exits(store: str, place: str, make: Callable[[], Any]) -> None:
    workflow = Workflow("reading", input={"good": bool}, ttl=2)
    workflow.step(name="it", spawn=place)(for_spawner(place, lambda good: 1 if good else make()))
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow, {"good": False})
        failure = await failure_of(transaction)
        assert type(failure.__cause__) is InvalidOutcome and "the result of 'reading/it'" in str(failure)
        assert await (await finish(mesh, workflow, {"good": True})).result() == 1


@claim(
    "Outcomes of a step",
    "A `SystemExit` or `KeyboardInterrupt` of a task that a step made is the step's failure, `StepExited`; the node "
    "goes on.",
)
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_a_task_of_a_step_exits(store: str, kind: type[BaseException]) -> None:
    workflow, innocent = Workflow("exiting", ttl=1), Workflow("innocent", ttl=1)
    gate = asyncio.Event()

    @workflow.step
    async def it() -> None:
        async def child() -> None:
            raise kind

        await asyncio.create_task(child())

    @innocent.step
    async def waits() -> str:
        await gate.wait()
        return "done"

    async with Mesh(workflow, innocent, store=store) as mesh:
        beside = await mesh.stimulate(innocent)
        failure = await failure_of(await finish(mesh, workflow))
        assert type(failure.__cause__) is StepExited and type(failure.__cause__.__cause__) is kind
        gate.set()
        assert await beside.result() == "done"


class Guarded(BaseModel):
    """A model that exits when it is made of 0."""

    number: int

    @field_validator("number")
    @classmethod
    def _checked(cls, number: int) -> int:
        if not number:
            raise SystemExit(0)
        return number


@claim(
    "Arguments", "A validator that exits refuses the input, or fails the step whose argument it is; the mesh goes on."
)
@pytest.mark.parametrize("place", SPAWNERS)
async def test_a_validator_exits(place: str) -> None:
    asked = Workflow("asked", input=Guarded, ttl=1)
    asked.step(name="it", spawn=place)(for_spawner(place, lambda number: number))
    bound = Workflow("bound", input={"number": int}, ttl=2)

    def it(made: Guarded) -> int:
        return made.number

    bound.step(name="made", spawn="inline")(lambda number: {"number": number})
    bound.step(name="it", spawn=place)(for_spawner(place, it))
    async with Mesh(asked, bound) as mesh:
        with pytest.raises(InvalidInput, match="input of 'asked': a validator raised SystemExit: 0"):
            await mesh.stimulate(asked, {"number": 0})
        failure = await failure_of(await finish(mesh, bound, {"number": 0}))
        assert failure.step == "bound/it" and type(failure.__cause__) is SystemExit
        assert await (await finish(mesh, bound, {"number": 1})).result() == 1


@claim("Kinds: map", "What a source raises while it is closed is logged: its map has ended, and the mesh goes on.")
@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("closing")])
async def test_a_source_that_does_not_close(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    workflow = Workflow("closing", ttl=4)

    def rows() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            raise error

    def each(element: int) -> int:
        if element == 3:
            raise ValueError(element)
        return element

    workflow.map(each, name="it", over=rows, batch=2, spawn="inline")
    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "compensated"
        assert isinstance(transaction.errors()[0], ValueError)
        assert "the source of a map, raised while it was closed" in caplog.text
