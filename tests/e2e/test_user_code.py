"""User code in a step sees what it sees in a task, or a thread, of its own: from its first line to its last."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from bitactor import Context, Workflow
from bitactor.errors import StepTimeout
from mesh import Mesh
from tests.e2e.support import BOUND, finish, pulse_lines, until

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop] | None] = {"asyncio": None}
try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS["uvloop"] = uvloop.new_event_loop

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="untouched")


@pytest.fixture(params=LOOPS, ids=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on each kind of loop."""

    def running(main: Coroutine[Any, Any, Any], *, debug: bool = False) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[request.param], debug=debug) as runner:
            return runner.run(main)

    return running


def step_result(run: Any, function: Callable[..., Any], *, debug: bool = False, **options: Any) -> Any:
    """What `function` returns as the only step of a workflow, on a loop of the kind `run` stands for."""
    workflow = Workflow("one step", ttl=1)
    workflow.step(name="only", **options)(function)

    async def main() -> Any:
        async with Mesh(workflow) as mesh:
            return await (await finish(mesh, workflow)).result()

    return run(main(), debug=debug)


@pytest.mark.parametrize("debug", [False, True])
def test_the_current_task_is_one_and_the_same(run: Any, debug: bool) -> None:
    async def looks() -> list[bool]:
        first = asyncio.current_task()
        listed = first in asyncio.all_tasks()
        await asyncio.sleep(0)
        second = asyncio.current_task()
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        third = asyncio.current_task()
        return [
            isinstance(first, asyncio.Task),
            listed,
            first is second is third,
            not first.done(),
            first.cancelling() == 0,
        ]  # type: ignore[union-attr]

    assert step_result(run, looks, debug=debug) == [True] * 5


def test_timeout_in_the_first_line(run: Any) -> None:
    async def waits() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "?"

    assert step_result(run, waits) == "timed out"


def test_timeout_at_once(run: Any) -> None:
    async def waits() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out"
        return "?"

    assert step_result(run, waits) == "timed out"


def test_wait_for_and_gather(run: Any) -> None:
    async def waits() -> Any:
        async def one(number: int) -> int:
            await asyncio.sleep(0)
            return number

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        return await asyncio.gather(one(1), one(2), asyncio.wait_for(one(3), 5))

    assert step_result(run, waits) == [1, 2, 3]


def test_task_group_in_the_first_line(run: Any) -> None:
    async def groups() -> list[int]:
        async def one(number: int) -> int:
            await asyncio.sleep(0)
            return number

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(3)]
        return [task.result() for task in tasks]

    assert step_result(run, groups) == [0, 1, 2]


def test_a_failing_task_group_cancels_its_other_tasks(run: Any) -> None:
    async def groups() -> list[str]:
        seen: list[str] = []

        async def waits() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("cancelled")

        async def breaks() -> None:
            await asyncio.sleep(0)
            raise ValueError("one of many")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(waits())
                group.create_task(breaks())
                await asyncio.Event().wait()
        except* ValueError:
            seen.append("caught")
        await asyncio.sleep(0)
        return seen

    assert step_result(run, groups) == ["cancelled", "caught"]


def test_anyio_cancel_scopes_and_task_groups(run: Any) -> None:
    async def scopes() -> list[str]:
        seen = []
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep(10)
        seen.append(f"moved on {scope.cancelled_caught}")
        try:
            with anyio.fail_after(0):
                await anyio.sleep(10)
        except TimeoutError:
            seen.append("failed after")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 10)
            group.cancel_scope.cancel()
        seen.append("group")
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        seen.append(str(await anyio.to_thread.run_sync(lambda: "thread")))
        return seen

    assert step_result(run, scopes) == ["moved on True", "failed after", "group", "thread"]


def test_cancelling_oneself(run: Any) -> None:
    async def cancels() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            task.uncancel()
            return "caught"
        return "?"

    assert step_result(run, cancels) == "caught"


def test_a_step_may_start_and_await_others(run: Any) -> None:
    """From its first line: stimulate another transaction on the same mesh, and wait for it."""
    outer, inner = Workflow("outer", ttl=1), Workflow("inner", ttl=1)
    meshes: list[Mesh] = []

    @inner.step
    async def answer() -> int:
        return 42

    @outer.step
    async def asks() -> int:
        tx = await meshes[0].stimulate(inner)
        return await tx.result(BOUND)

    async def main() -> int:
        async with Mesh(outer, inner) as mesh:
            meshes.append(mesh)
            return await (await mesh.stimulate(outer)).result(BOUND)

    assert run(main()) == 42


@pytest.mark.parametrize("place", ["loop", "thread", "inline"])
def test_context_variables_are_each_hops_own(run: Any, place: str) -> None:
    workflow = Workflow("variables", ttl=3)
    seen: list[tuple[str, str]] = []

    def touch(name: str) -> str:
        seen.append((name, VARIABLE.get()))
        VARIABLE.set(name)
        return name

    for name, after in (("a", ()), ("b", ("a",)), ("c", ("b",))):
        if place == "loop":

            async def body(name: str = name) -> str:
                touch(name)
                await asyncio.sleep(0)
                return VARIABLE.get()
        else:

            def body(name: str = name) -> str:  # type: ignore[misc]
                touch(name)
                return VARIABLE.get()

        workflow.step(name=name, after=after, spawn=place)(body).undo(lambda ctx: touch("undo"))

    @workflow.step(spawn="inline")
    def side() -> None:
        VARIABLE.set("side")

    async def main() -> dict[str, Any]:
        VARIABLE.set("opener's")
        async with Mesh(workflow) as mesh:
            VARIABLE.set("caller's")
            tx = await finish(mesh, workflow)
            assert VARIABLE.get() == "caller's"
            return tx.results()

    assert run(main()) == {"a": "a", "b": "b", "c": "c", "side": None}
    assert seen == [("a", "opener's"), ("b", "opener's"), ("c", "opener's")]


def test_a_variable_set_before_an_await_is_there_after_it(run: Any) -> None:
    async def sets() -> list[str]:
        seen = [VARIABLE.get()]
        VARIABLE.set("mine")
        token = VARIABLE.set("mine too")
        await asyncio.sleep(0)
        seen.append(VARIABLE.get())
        VARIABLE.reset(token)

        async def child() -> str:
            return VARIABLE.get()

        return [*seen, VARIABLE.get(), await asyncio.create_task(child())]

    assert step_result(run, sets) == ["untouched", "mine too", "mine", "mine"]


def test_a_thread_step_sees_a_thread(run: Any) -> None:
    def looks() -> list[Any]:
        try:
            asyncio.get_running_loop()
            looped = True
        except RuntimeError:
            looped = False
        return [
            threading.current_thread() is threading.main_thread(),
            looped,
            asyncio.run(asyncio.sleep(0, "own loop")),
        ]

    assert step_result(run, looks) == [False, False, "own loop"]


def test_resources_are_left_on_cancellation(run: Any) -> None:
    """`async with` in a step that is stopped at its timeout leaves as it does in a cancelled task, also if leaving
    takes time."""
    workflow = Workflow("resources", ttl=1)
    left: list[str] = []

    class Resource:
        async def __aenter__(self) -> None:
            return None

        async def __aexit__(self, *error: Any) -> None:
            await asyncio.sleep(0.02)
            left.append(error[0].__name__)

    @workflow.step(timeout=0.02)
    async def holds() -> None:
        async with Resource():
            await asyncio.Event().wait()

    async def main() -> None:
        async with Mesh(workflow) as mesh:
            tx = await mesh.stimulate(workflow)
            assert await tx.ended(BOUND) == "compensated"
            assert isinstance(tx.errors()[0], StepTimeout)
            await until(lambda: left)
            assert left == ["CancelledError"]

    run(main())


def test_a_step_cancelled_by_its_own_code_is_its_own_failure(run: Any) -> None:
    workflow = Workflow("own cancel", ttl=1)

    @workflow.step
    async def awaits() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    awaits.undo(lambda result: None)

    async def main() -> list[str]:
        async with Mesh(workflow) as mesh:
            tx = await finish(mesh, workflow)
            assert tx.status == "compensated"
            return pulse_lines(tx)

    assert run(main()) == ["accepted", "spawned awaits", "failed awaits", "finished"]


def test_async_callbacks_see_a_task_as_well(run: Any) -> None:
    workflow = Workflow("callbacks", ttl=2)
    seen: list[str] = []

    async def limited(what: str) -> None:
        assert asyncio.current_task() is not None
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append(what)

    @workflow.step
    async def a() -> str:
        return "a"

    @a.undo
    async def una(result: str) -> None:
        await limited("undo")

    @workflow.step
    async def b(a: str) -> None:
        raise ValueError

    @b.compensate
    async def consider(error: Exception) -> None:
        await limited("compensate")

    async def main() -> str:
        async with Mesh(workflow) as mesh:
            return (await finish(mesh, workflow)).status

    assert run(main()) == "compensated"
    assert seen == ["compensate", "undo"]


def test_context_tells(run: Any) -> None:
    workflow = Workflow("telling", input={"x": int}, ttl=5, deadline=30.0)
    keys: list[str] = []

    @workflow.step(timeout=10.0, retries=2)
    async def tells(x: int, ctx: Context) -> dict:
        keys.append(ctx.idempotency_key)
        if ctx.attempt == 1:
            raise ValueError
        assert ctx.deadline_left is not None and 0 < ctx.deadline_left <= 10
        ctx.logger.info("hello")
        return {
            "transaction": ctx.transaction, "root": ctx.root, "step": ctx.step, "attempt": ctx.attempt, "ttl": ctx.ttl,
            "retries_left": ctx.retries_left, "metadata": ctx.metadata, "workflow": ctx.workflow, "causes": ctx.causes,
        }  # fmt: skip

    async def main() -> None:
        async with Mesh(workflow) as mesh:
            tx = await finish(mesh, workflow, {"x": 1}, metadata={"user": "ada"})
            assert await tx.result() == {
                "transaction": tx.id, "root": tx.id, "step": "tells", "attempt": 2, "ttl": 4,
                "retries_left": 1, "metadata": {"user": "ada"}, "workflow": "telling", "causes": [],
            }  # fmt: skip
            assert keys[0] == keys[1] and len(keys[0]) == 32

    run(main())


def test_the_face_on_this_loop_too(run: Any, tmp_path: Any) -> None:
    """Stores, threads and timers on the other loop: a mixed workflow, kept in a file."""
    workflow = Workflow("mixed", ttl=4)

    @workflow.step
    def in_thread() -> int:
        return 1

    @workflow.step(retries=1)
    async def on_loop(in_thread: int, attempt: int) -> int:
        if attempt == 1:
            raise ValueError
        return in_thread + 1

    @workflow.step(spawn="inline")
    def inline(on_loop: int) -> int:
        return on_loop + 1

    async def main() -> int:
        async with Mesh(workflow, store=f"sqlite:///{tmp_path}/pulses.db", durability="power") as mesh:
            return await (await finish(mesh, workflow)).result()

    assert run(main()) == 3
