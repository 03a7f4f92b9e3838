"""Objects of the user's are code that can do anything: what they do is their step's failure, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from bitactor import StepExited, Workflow
from bitactor.declare.stimulus import StimulusOptions
from bitactor.errors import InvalidInput, InvalidOutcome
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.network.client import Client
from registry import RegistryServer
from tests.conformance.claims import claim
from tests.conformance.hostile import HOMES
from tests.conformance.support import failure_of
from tests.e2e.support import BOUND, SPAWNERS, finish, for_spawner, undone


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
    "A `SystemExit` or `KeyboardInterrupt` of a task that a step made is the step's failure, `StepExited`, also if the "
    "step does not await that task; the node goes on.",
)
@pytest.mark.parametrize("awaits", [True, False])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_a_task_of_a_step_exits(store: str, kind: type[BaseException], awaits: bool) -> None:
    workflow, innocent = Workflow("exiting", ttl=1), Workflow("innocent", ttl=1)
    gate = asyncio.Event()

    @workflow.step
    async def it() -> None:
        async def child() -> None:
            raise kind

        task = asyncio.create_task(child())
        await (task if awaits else asyncio.wait([task]))

    @innocent.step
    async def waits() -> str:
        await gate.wait()
        return "done"

    async with Mesh(workflow, innocent, store=store) as mesh:
        beside = await mesh.stimulate(innocent)
        failure = await failure_of(await finish(mesh, workflow))
        assert type(failure.__cause__) is StepExited and type(failure.__cause__.__cause__) is kind
        assert "a task of 'exiting/it', attempt 1, raised" in str(failure)
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
        with pytest.raises(InvalidInput, match="input of 'asked': validating it raised SystemExit: 0 in _checked"):
            await mesh.stimulate(asked, {"number": 0})
        failure = await failure_of(await finish(mesh, bound, {"number": 0}))
        assert failure.step == "bound/it" and type(failure.__cause__) is SystemExit
        assert await (await finish(mesh, bound, {"number": 1})).result() == 1


class Reading(dict[str, Any]):
    """A mapping that raises whenever it is read."""

    def _raises(self, *_: Any) -> Any:
        raise self.error

    error: BaseException
    __getitem__ = __iter__ = __len__ = keys = items = get = __contains__ = __repr__ = _raises  # type: ignore[assignment]


class Listed(Leaving):
    """A mapping of no dict's kind that raises when it is read."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def _raises(self, *_: Any) -> Any:
        raise self._error

    __getitem__ = __iter__ = __len__ = keys = get = _raises  # type: ignore[assignment]


def reading(error: BaseException) -> Any:
    found = Reading(number=1)
    found.error = error
    return found


async def stimulated(workflow: Workflow, given: Any, tmp_path: Path) -> None:
    async with Mesh(workflow) as mesh:
        try:
            await mesh.stimulate(workflow, given)
        finally:
            assert await mesh.transactions() == []


async def with_a_key(workflow: Workflow, given: Any, tmp_path: Path) -> None:
    async with Mesh(workflow) as mesh:
        await mesh.stimulate(workflow, {"number": given}, key="k")


async def begun(workflow: Workflow, given: Any, tmp_path: Path) -> None:
    async with Mesh(workflow) as mesh:
        await mesh.begin(workflow, given, StimulusOptions())


async def blocking(workflow: Workflow, given: Any, tmp_path: Path) -> None:
    await asyncio.to_thread(lambda: Mesh(workflow).run(workflow, given, timeout=BOUND))


async def without_a_mesh(workflow: Workflow, given: Any, tmp_path: Path) -> None:
    run_workflow(workflow, given)


async def within_an_input_without_a_mesh(workflow: Workflow, given: Any, tmp_path: Path) -> None:
    run_workflow(workflow, {"number": given})


async def of_a_client(workflow: Workflow, given: Any, tmp_path: Path) -> None:
    registry = f"ipc://{tmp_path}/registry"
    with RegistryServer(registry):
        async with Mesh(workflow, registry=registry), Client(registry) as client:
            await client.stimulate(workflow.name, given)


@claim(
    "Arguments",
    "An input that raises when it is read, whatever it raises, is refused before anything begins, in words that name "
    "the workflow and what was raised; that is the refusal's cause.",
)
@pytest.mark.parametrize("error", [ValueError("gone"), SystemExit(0), asyncio.CancelledError(), LookupError("gone")])
@pytest.mark.parametrize("make", [reading, Listed])
@pytest.mark.parametrize(
    "way", [stimulated, with_a_key, begun, blocking, without_a_mesh, within_an_input_without_a_mesh, of_a_client]
)
async def test_an_input_that_cannot_be_read(
    way: Callable[[Workflow, Any, Path], Awaitable[None]],
    make: Callable[[BaseException], Any],
    error: BaseException,
    tmp_path: Path,
) -> None:
    workflow = Workflow("reads", input={"number": Any}, ttl=1)
    workflow.step(name="it", spawn="inline")(lambda number: 1)
    with pytest.raises(InvalidInput, match="input of 'reads'") as caught:
        await way(workflow, make(error), tmp_path)
    if way is begun:
        return  # what it takes is no caller's
    causes: list[BaseException | None] = [caught.value]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
    assert type(error) in map(type, causes)
    assert type(error).__name__ in str(caught.value) or "gone" in str(caught.value)


@claim("Arguments", "A validator that raises what is no `ValueError` refuses the input as well, and names itself.")
async def test_a_validator_that_breaks() -> None:
    class Breaking(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def _looked_up(cls, number: int) -> int:
            return {1: 1}[number]

    asked = Workflow("asked", input=Breaking, ttl=2)
    asked.step(name="it", spawn="inline")(lambda number: number)
    outer = Workflow("outer", input={"number": int}, ttl=2)
    outer.compose("nested", asked)
    async with Mesh(asked, outer) as mesh:
        with pytest.raises(InvalidInput, match=r"'asked': validating it raised KeyError: 2 in _looked_up \(test"):
            await mesh.stimulate(asked, {"number": 2})
        failure = await failure_of(await finish(mesh, outer, {"number": 2}))
        assert failure.step == "outer/nested" and "input of 'asked'" in str(failure)
        assert type(failure.__cause__) is InvalidInput and type(failure.__cause__.__cause__) is KeyError
        assert await (await finish(mesh, outer, {"number": 1})).result() == 1


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
