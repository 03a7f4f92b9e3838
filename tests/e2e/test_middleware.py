"""Middleware: who is told of what, exactly once, and what becomes of one that misbehaves."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bitactor import ConfigurationError, Context, Continue, Resource, Workflow, consumer
from bitactor.declare.backoff import Backoff
from bitactor.patterns import RetryPolicy
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.e2e import process_steps
from tests.e2e.support import BOUND, finish, for_spawner, pass_time, pulse_lines, turns, until

everywhere = pytest.mark.parametrize("where", ["inline", "loop", "thread"])


class Telling:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def before(self, event: Any) -> None:
        self.events.append((">", event))

    def after(self, event: Any) -> None:
        self.events.append(("<", event))

    def lines(self) -> list[str]:
        """What was told, in short."""
        return [f"{sign} {event.callback} {event.step}" for sign, event in self.events]


@everywhere
async def test_an_event_says_what_is_called_and_what_came_of_it(where: str) -> None:
    telling = Telling()
    workflow = Workflow("telling", input={"item": str}, resources=[Resource("client", lambda: "client")])

    def works(item: str, client: str, ctx: Context) -> str:
        return item.upper()

    workflow.step(name="works", spawn=where)(for_spawner(where, works))
    async with Mesh(workflow, middleware=[telling]) as mesh:
        transaction = await finish(mesh, workflow, {"item": "x"})
    (_, before), (_, after) = telling.events
    assert before[:6] == after[:6] == ("run", "telling", "works", transaction.id, transaction.pulses()[1].hop, 1)
    assert before.arguments["item"] == "x" and (before.value, before.error) == (None, None)
    with pytest.raises(TypeError):
        before.arguments["item"] = "y"
    assert (after.value, after.error) == ("X", None) and after.elapsed_ns > 0


async def test_each_run_inside_policies_is_told_of() -> None:
    telling, calls = Telling(), list[int]()
    workflow = Workflow("again")

    @workflow.step(policies=[RetryPolicy("r", attempts=3, backoff=Backoff(initial=0.0))])
    async def works() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError

    async with Mesh(workflow, middleware=[telling]) as mesh:
        assert (await finish(mesh, workflow)).status == "completed"
    assert telling.lines() == ["> run works", "< run works"] * 3


async def test_a_consumer_is_told_of() -> None:
    telling = Telling()

    @consumer("happened")
    async def notes(signal: Any) -> None: ...

    workflow = Workflow("tells")

    @workflow.step
    async def tell(ctx: Context) -> None:
        await ctx.emit("happened", 7)

    async with Mesh(workflow, notes, middleware=[telling]) as mesh:
        await finish(mesh, workflow)
        await until(lambda: len(telling.events) == 4)
    assert telling.events[2][1].arguments["signal"].token == 7


async def test_a_trip_to_a_worker_process_is_told_of_once() -> None:
    telling = Telling()
    async with Mesh(process_steps.remembering, middleware=[telling], processes=1) as mesh:
        transaction = await finish(mesh, process_steps.remembering, {"value": 3})
    assert transaction.status == "compensated"
    assert telling.lines() == [
        "> run remember", "< run remember", "> run fail", "< run fail", "> undo remember", "< undo remember",
    ]  # fmt: skip
    by_line = dict(zip(telling.lines(), (event for _, event in telling.events), strict=True))
    assert by_line["< run remember"].value["done"] == 3 and dict(by_line["> run remember"].arguments) == {"value": 3}
    assert "ValueError" in repr(by_line["< run fail"].error)


@pytest.mark.parametrize("error", [SystemExit(1), ValueError("no"), asyncio.CancelledError()])
@everywhere
async def test_whatever_middleware_raises_the_run_goes_on(
    where: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __eq__(self, other: object) -> bool:
            raise LookupError("even when it is compared")

        __hash__ = object.__hash__

        def after(self, event: Any) -> None:
            raise error

    telling = Telling()
    workflow = Workflow("sturdy")
    workflow.step(name="works", spawn=where)(for_spawner(where, lambda: "done"))
    async with Mesh(workflow, middleware=[Broken(), telling, Broken()]) as mesh:
        for _ in range(2):
            assert await (await finish(mesh, workflow)).result() == "done"
        assert mesh.node.about()["middleware_disabled"] == ["Broken.after", "Broken.after"]
    assert len(telling.events) == 4
    assert caplog.text.count("is not called any more") == 2


async def test_middleware_that_breaks_on_the_way_to_a_worker_process_breaks_nothing() -> None:
    class Broken:
        def before(self, event: Any) -> None:
            raise SystemExit(1)

    async with Mesh(process_steps.remembering, middleware=[Broken()], processes=1) as mesh:
        assert (await finish(mesh, process_steps.remembering, {"value": 3})).status == "compensated"


async def test_many_threads_may_find_it_broken_at_once() -> None:
    meeting = threading.Barrier(4)

    class Broken:
        def before(self, event: Any) -> None:
            meeting.wait(BOUND)
            raise ValueError

    workflow = Workflow("crowd")
    workflow.step(name="works")(lambda: "done")
    async with Mesh(workflow, middleware=[Broken()], threads=4) as mesh:
        began = [await mesh.stimulate(workflow) for _ in range(4)]
        assert [await transaction.result(BOUND) for transaction in began] == ["done"] * 4
        assert mesh.node.about()["middleware_disabled"] == ["Broken.before"]


async def test_a_function_that_is_stopped_has_ended_for_middleware_too() -> None:
    clock, telling = FakeClock(), Telling()
    workflow = Workflow("slow")

    @workflow.step(timeout=1.0)
    async def waits() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, clock=clock, middleware=[telling]) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 1.1)
        assert await transaction.ended(BOUND) == "compensated"
    assert telling.lines() == ["> run waits", "< run waits"]
    assert isinstance(telling.events[1][1].error, asyncio.CancelledError)


async def test_compensation_that_is_asked_after_the_fact_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, telling = FakeClock(), Telling()
    workflow = Workflow("late")

    @workflow.step(timeout=1.0)
    async def waits() -> None:
        await asyncio.Event().wait()

    @waits.compensate
    def instead(error: Exception) -> Continue:
        return Continue("instead")

    async with Mesh(workflow, clock=clock, middleware=[telling]) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 1.1)
        assert await transaction.result(BOUND) == "instead", pulse_lines(transaction)
    assert sorted(telling.lines()) == ["< compensate waits", "< run waits", "> compensate waits", "> run waits"]


class Nothing:
    pass


class TakesTwo:
    def before(self, event: Any, more: Any) -> None: ...


class Awaits:
    async def after(self, event: Any) -> None: ...


class IsNoFunction:
    before = 3


@pytest.mark.parametrize(
    "wrong", [Nothing(), Nothing, Telling, TakesTwo(), Awaits(), IsNoFunction(), None, lambda event: None]
)
def test_what_has_another_shape_is_refused(wrong: Any) -> None:
    workflow = Workflow("fine")
    workflow.step(name="works")(lambda: "done")
    with pytest.raises(ConfigurationError, match="middleware"):
        Mesh(workflow, middleware=[wrong])
