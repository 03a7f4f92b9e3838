"""Resources where things go wrong: factories that hang, raise or exit, checks that never answer, users that are
cancelled, worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitactor import (
    ConfigurationError,
    Context,
    CycleError,
    DefinitionError,
    DuplicateName,
    Resource,
    Workflow,
    consumer,
)
from bitactor.errors import ResourceUnavailable
from bitactor.patterns import Batching
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.e2e import resource_steps
from tests.e2e.support import BOUND, finish, pass_time, turns, until

BOUND_TO: contextvars.ContextVar[str] = contextvars.ContextVar("bound_to", default="nothing")


class Thing:
    """What a factory makes."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.well = name, log, True
        log.append(f"open {name}")

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def using(*resources: Resource, name: str = "using") -> Workflow:
    """A workflow with one step that asks for the first of these."""
    workflow = Workflow(name, input={}, resources=resources)
    space: dict[str, Any] = {}
    exec(f"async def asks({resources[0].name}):\n return getattr({resources[0].name}, 'name', 'something')", space)
    workflow.step(space["asks"])
    return workflow


async def first_error(mesh: Mesh, workflow: Workflow) -> BaseException:
    transaction = await finish(mesh, workflow)
    assert transaction.status != "completed"
    return transaction.errors()[0]


# Making


async def test_a_factory_does_not_block_the_loop() -> None:
    go = threading.Event()

    def slow() -> Thing:
        assert go.wait(BOUND)
        return Thing("slow", [])

    workflow = using(Resource("slow", slow))
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        go.set()
        assert await transaction.result(BOUND) == "slow"


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError(), ValueError("no")]
)
@pytest.mark.parametrize("place", ["loop", "thread"])
async def test_whatever_a_factory_raises_is_the_steps_error_and_is_tried_again_for_the_next(
    error: BaseException, place: str
) -> None:
    tries: list[int] = []

    def factory() -> Thing:
        tries.append(1)
        if len(tries) == 1:
            raise error
        return Thing("second", [])

    async def factory_on_loop() -> Thing:
        return factory()

    workflow = using(Resource("broken", factory if place == "thread" else factory_on_loop))
    async with Mesh(workflow) as mesh:
        raised = await first_error(mesh, workflow)
        assert isinstance(raised, ResourceUnavailable) and "'broken'" in str(raised)
        assert await (await finish(mesh, workflow)).result() == "second"


async def test_a_making_that_failed_is_worth_a_retry() -> None:
    tries: list[int] = []

    async def factory() -> Thing:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("not up yet")
        return Thing("third", [])

    workflow = Workflow("patient", resources=[Resource("client", factory)])

    @workflow.step(retries=3, retry_on=ResourceUnavailable)
    async def asks(client: Any) -> str:
        return str(client.name)

    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() == "third"


async def test_one_who_is_cancelled_while_waiting_takes_nothing_from_the_others() -> None:
    go, made = asyncio.Event(), []

    async def factory() -> Thing:
        await go.wait()
        made.append(1)
        return Thing("shared", [])

    workflow = using(Resource("shared", factory))
    async with Mesh(workflow) as mesh:
        first, second = await mesh.stimulate(workflow), await mesh.stimulate(workflow)
        await turns()
        assert await first.cancel() == "cancelled"
        go.set()
        assert await second.result(BOUND) == "shared"
        assert made == [1]


async def test_waiting_for_a_resource_is_no_time_of_the_step_but_of_the_transaction() -> None:
    clock, go = FakeClock(), asyncio.Event()

    async def factory() -> Thing:
        await go.wait()
        return Thing("late", [])

    workflow = Workflow("timed", deadline=60.0, resources=[Resource("client", factory)])

    @workflow.step(timeout=1.0)
    async def asks(client: Any) -> str:
        return str(client.name)

    async with Mesh(workflow, clock=clock) as mesh:
        late = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 30.0)
        assert late.status == "running"
        go.set()
        assert await late.result(BOUND) == "late"
    go.clear()
    async with Mesh(workflow, clock=clock) as mesh:
        stopped = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 61.0)
        assert await stopped.ended(BOUND) == "compensated"
        assert "DeadlineExceeded" in str(stopped.faults()[0])


async def test_a_context_manager_is_left_in_the_context_it_was_entered_in() -> None:
    left: list[str] = []

    @contextlib.asynccontextmanager
    async def factory() -> AsyncIterator[Thing]:
        task, token = asyncio.current_task(), BOUND_TO.set("the resource")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
                yield Thing("scoped", [])
                assert asyncio.current_task() is task
        finally:
            left.append(BOUND_TO.get())
            BOUND_TO.reset(token)

    workflow = using(Resource("scoped", factory))
    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() == "scoped"
    assert left == ["the resource"]


async def test_a_resource_that_ends_by_itself_is_made_anew() -> None:
    breaks, made = asyncio.Event(), []

    async def breaking() -> None:
        await breaks.wait()
        raise ConnectionError("the reader died")

    @contextlib.asynccontextmanager
    async def factory() -> AsyncIterator[Thing]:
        made.append(1)
        async with asyncio.TaskGroup() as group:
            if len(made) == 1:
                group.create_task(breaking())
            yield Thing(f"number {len(made)}", [])

    workflow = using(Resource("session", factory))
    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() == "number 1"
        breaks.set()
        await until(lambda: mesh.node.resources.about() == {"session": "not made"})
        assert await (await finish(mesh, workflow)).result() == "number 2"


@pytest.mark.parametrize("factory", [dict, lambda *rest, **more: {}, lambda size=3: {}])
async def test_a_factory_may_have_parameters_that_are_none_of_our_business(factory: Any) -> None:
    workflow = using(Resource("plain", factory))
    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() == "something"


async def test_a_factory_that_can_do_without_a_resource_is_given_it_where_there_is_one() -> None:
    log: list[str] = []
    pool = Resource("pool", lambda: Thing("pool", log))
    session = Resource("session", lambda pool=None: Thing(f"session of {pool.name if pool else None}", log))
    async with Mesh(workflow := using(session, pool)) as mesh:
        assert await (await finish(mesh, workflow)).result() == "session of pool"
    async with Mesh(workflow := using(session)) as mesh:
        assert await (await finish(mesh, workflow)).result() == "session of None"


# Declaring


def test_what_cannot_work_is_said_when_the_mesh_is_made() -> None:
    one, other = Resource("client", dict), Resource("client", dict)
    with pytest.raises(DuplicateName, match="'client'"):
        Mesh(using(one, name="one"), using(other, name="other"))
    with pytest.raises(DefinitionError, match="Did you mean 'pool'"):
        Mesh(using(Resource("session", lambda poll: poll), Resource("pool", dict)))
    with pytest.raises(CycleError, match=r"factories need each other: .*chicken.*egg"):
        Mesh(using(Resource("egg", lambda chicken: chicken), Resource("chicken", lambda egg: egg)))
    with pytest.raises(ConfigurationError, match="Did you mean 'client'"):
        Mesh(using(one), replace={"clinet": {}})


@pytest.mark.parametrize("role", ["run", "undo", "compensate"])
def test_what_is_replaced_cannot_be_wanted_in_a_worker_process(role: str) -> None:
    workflow = resource_steps.in_process_by_role[role]
    with pytest.raises(ConfigurationError, match=r"'marks'.*'process\.\w+/leave_mark'"):
        Mesh(workflow, replace={"marks": {}})


# Checking


async def test_a_check_that_answers_with_nothing_is_content() -> None:
    clock, log = FakeClock(), list[str]()
    checked: list[str] = []
    workflow = using(
        Resource("thing", lambda: Thing("thing", log), check=lambda thing: checked.append("yes"), check_every=10.0)
    )
    async with Mesh(workflow, clock=clock) as mesh:
        await finish(mesh, workflow)
        await pass_time(clock, 11.0)
        await finish(mesh, workflow)
    assert (checked, log) == (["yes"], ["open thing"])


async def test_a_check_that_never_answers_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.hops.resources.CHECK_WITHIN", 0.05)
    log: list[str] = []

    async def never(thing: Thing) -> None:
        await asyncio.Event().wait()

    workflow = using(Resource("thing", lambda: Thing("thing", log), close=Thing.close, check=never, check_every=0.0))
    async with Mesh(workflow) as mesh:
        for _ in range(2):
            assert (await finish(mesh, workflow)).status == "completed"
        assert log == ["open thing", "close thing", "open thing"]


async def test_what_was_made_of_a_broken_resource_goes_with_it() -> None:
    clock, log, pools = FakeClock(), list[str](), list[Thing]()

    def make_pool() -> Thing:
        pools.append(Thing(f"pool {len(pools)}", log))
        return pools[-1]

    pool = Resource("pool", make_pool, close=Thing.close, check=lambda pool: pool.well, check_every=10.0)
    session = Resource("session", lambda pool: Thing(f"session of {pool.name}", log), close=Thing.close)
    workflow = using(session, pool)
    async with Mesh(workflow, clock=clock) as mesh:
        assert await (await finish(mesh, workflow)).result() == "session of pool 0"
        pools[0].well = False
        await pass_time(clock, 11.0)
        assert await (await finish(mesh, workflow)).result() == "session of pool 1"
        assert log[2:] == ["close session of pool 0", "close pool 0", "open pool 1", "open session of pool 1"]
        log.clear()
    assert log == ["close session of pool 1", "close pool 1"]


# Closing


@pytest.mark.parametrize("error", [SystemExit(1), ValueError("no"), asyncio.CancelledError()])
async def test_whatever_closing_raises_the_others_are_closed(error: BaseException) -> None:
    log: list[str] = []

    def refuse(thing: Thing) -> None:
        raise error

    first = Resource("first", lambda: Thing("first", log), close=Thing.close)
    second = Resource("second", lambda first: Thing("second", log), close=refuse)
    workflow = using(second, first)
    async with Mesh(workflow) as mesh:
        await finish(mesh, workflow)
    assert log == ["open first", "open second", "close first"]
    assert mesh.node.state == "closed"


async def test_one_that_does_not_close_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mesh.hops.lifecycle.CLOSE_WITHIN", 0.05)

    async def never(thing: Thing) -> None:
        await asyncio.Event().wait()

    workflow = using(Resource("thing", lambda: Thing("thing", []), close=never))
    async with Mesh(workflow) as mesh:
        await finish(mesh, workflow)
    assert "'thing' did not close" in caplog.text


async def test_what_is_being_made_when_the_mesh_closes_is_closed_too() -> None:
    go, log = threading.Event(), list[str]()

    def slow() -> Thing:
        assert go.wait(BOUND)
        return Thing("slow", log)

    workflow = using(Resource("slow", slow, close=Thing.close))
    mesh = Mesh(workflow, drain=0)
    async with mesh:
        await mesh.stimulate(workflow)
        await until(lambda: bool(mesh.node.resources.lifecycles))
        closing = asyncio.create_task(mesh.close())
        await turns()
        go.set()
        await closing
    assert log == ["open slow", "close slow"]


# Who may use them


async def test_undo_compensation_and_backoff_are_given_them_too() -> None:
    log: list[str] = []
    workflow = Workflow("everywhere", resources=[Resource("log", lambda: log)])

    @workflow.step
    async def begins(log: Any) -> None:
        log.append("begins")

    @begins.undo
    def takes_back(log: Any) -> None:
        log.append("takes back")

    @workflow.step(after=["begins"])
    async def fails() -> None:
        raise ValueError

    @fails.compensate
    async def mends(error: Exception, log: Any) -> None:
        log.append(f"could not mend {type(error).__name__}")

    async with Mesh(workflow) as mesh:
        assert (await finish(mesh, workflow)).status == "compensated"
    assert log == ["begins", "could not mend ValueError", "takes back"]


async def test_a_consumer_is_given_them() -> None:
    seen: list[Any] = []

    @consumer("happened", resources=[Resource("ledger", lambda: seen)])
    async def notes(signal: Any, ledger: Any) -> None:
        ledger.append(signal.token)

    workflow = Workflow("tells")

    @workflow.step
    async def tell(ctx: Context) -> None:
        await ctx.emit("happened", 7)

    async with Mesh(workflow, notes) as mesh:
        await finish(mesh, workflow)
        await until(lambda: seen == [7])


@pytest.mark.filterwarnings("error")
async def test_a_view_is_a_view_of_the_workflows_own() -> None:
    workflow = Workflow("viewing", resources=[Resource("one", lambda: 1), Resource("two", lambda: 2)])

    @workflow.step
    async def looks(ctx: Context) -> list[Any]:
        with pytest.raises(ResourceUnavailable, match="Did you mean 'two'"):
            await ctx.resources.get("twoo")
        return [sorted(ctx.resources), len(ctx.resources), "one" in ctx.resources, await ctx.resources.get("two")]

    @workflow.step
    def looks_from_a_thread(ctx: Context) -> int:
        return asyncio.run(ctx.resources.get("one")) + (asyncio.get_event_loop_policy() is None)

    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.results() == {"looks": [["one", "two"], 2, True, 2], "looks_from_a_thread": 1}


# In worker processes


def marks(path: Path) -> Iterator[str]:
    return iter(path.read_text().split())


async def test_a_worker_has_resources_of_its_own_and_closes_them_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    async with Mesh(resource_steps.in_process, processes=1) as mesh:
        for expected in (1, 2):
            assert await (await finish(mesh, resource_steps.in_process, {"path": str(path)})).result() == expected
        assert list(marks(path)) == ["made"]
        assert mesh.node.resources.about() == {"marks": "not made"}
    assert list(marks(path)) == ["made", "closed"]


async def test_making_a_resource_in_a_worker_is_no_time_of_the_step(tmp_path: Path) -> None:
    async with Mesh(resource_steps.slow_in_process, processes=1) as mesh:
        transaction = await finish(mesh, resource_steps.slow_in_process)
        assert await transaction.result() == "made at last", transaction.errors()


async def test_what_is_replaced_here_is_not_made_there_behind_our_back() -> None:
    workflow = resource_steps.asking_in_process
    async with Mesh(workflow, processes=1, replace={"marks": {}}) as mesh:
        assert "replaced by an object of another process" in str(await first_error(mesh, workflow))


def test_the_module_of_the_workers_is_this_one() -> None:
    assert resource_steps.__name__ in sys.modules


async def exits_in_a_task(*_: Any) -> list[str]:
    """What a task that exits becomes for who made it."""

    async def child() -> None:
        raise SystemExit(3)

    task = asyncio.create_task(child())
    await asyncio.wait([task])
    return [type(task.exception()).__name__]


async def test_a_task_of_a_resource_or_a_policy_that_exits_does_not_end_the_node() -> None:
    workflow = Workflow("exits", resources=[Resource("made", exits_in_a_task)], ttl=2)

    @workflow.step
    async def uses(made: list[str]) -> list[str]:
        return made

    @workflow.step(policies=[Batching("exits", size=1, interval=60.0, handler=exits_in_a_task)])
    async def batched(uses: list[str]) -> Any:
        return uses

    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() == "StepExited"
