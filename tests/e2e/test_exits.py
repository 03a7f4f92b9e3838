"""Steps that exit, in whatever way: the step fails, and the node, its process and other transactions go on."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bitactor import Backoff, StepExited, Workflow
from bitactor.messages.faults import fault_of
from bitactor.messages.values import shown
from bitactor.patterns import Fallback
from mesh import Mesh
from mesh.cli.app import main
from tests.e2e import exit_steps
from tests.e2e.support import BOUND, finish
from tests.e2e.test_cli import PATIENCE, Running

EXITS = pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])


def innermost(error: BaseException) -> BaseException:
    """The one error within groups."""
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    return error


async def in_a_group(child: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(child())  # type: ignore[arg-type]


async def in_a_task(child: Callable[[], Awaitable[None]]) -> None:
    await asyncio.create_task(child())  # type: ignore[arg-type]


async def gathered(child: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(child(), child())


async def in_time(child: Callable[[], Awaitable[None]]) -> None:
    await asyncio.wait_for(child(), BOUND)


async def in_a_task_of_a_task(child: Callable[[], Awaitable[None]]) -> None:
    await asyncio.create_task(in_a_group(child))


WAYS = pytest.mark.parametrize("way", [in_a_group, in_a_task, gathered, in_time, in_a_task_of_a_task])


def exiting(way: Callable[..., Awaitable[None]], error: BaseException, role: str) -> Workflow:
    """A workflow, the `role` of whose only step makes a task that raises `error`."""
    workflow = Workflow("exiting", ttl=3)

    async def child() -> None:
        await asyncio.sleep(0)
        raise error

    async def exits() -> None:
        await way(child)

    async def fails() -> None:
        raise ValueError("first")

    async def works() -> int:
        return 1

    if role == "step":
        workflow.step(name="it")(exits)
    elif role == "compensate":
        workflow.step(name="it")(fails).compensate(exits)
    else:
        workflow.step(name="it")(works).undo(exits, retries=0)
        workflow.flunk("end", "{it}")
    return workflow


@EXITS
@WAYS
async def test_a_task_of_a_step(way: Callable[..., Awaitable[None]], error: BaseException, store: str) -> None:
    workflow = exiting(way, error, "step")
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "compensated"
        [found] = transaction.errors()
        exited = innermost(found)
        assert isinstance(exited, StepExited) and exited.__cause__ is error
        assert shown(error) in str(exited)
        assert (await finish(mesh, workflow)).status == "compensated", "the mesh takes more"


async def unnoticed(child: Callable[[], Awaitable[None]]) -> None:
    await asyncio.wait([asyncio.create_task(child())])  # type: ignore[arg-type]


@EXITS
@pytest.mark.parametrize("role", ["step", "compensate", "undo"])
async def test_a_task_that_nobody_awaits(role: str, error: BaseException, store: str) -> None:
    """Its exit is the failure of whoever made it, if that has not ended."""
    workflow = exiting(unnoticed, error, role)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == ("stuck" if role == "undo" else "compensated")
        exited = transaction.errors()[0 if role == "step" else -1]
        undo = "undo of " if role == "undo" else ""
        assert isinstance(exited, StepExited) and exited.__cause__ is error
        assert str(exited) == f"a task of {undo}'exiting/it', attempt 1, raised {shown(error)}"


async def test_a_task_that_nobody_awaits_in_a_policy_and_again() -> None:
    """It fails that one run; the next one is not blamed."""
    workflow, attempts = Workflow("again", ttl=3), []

    @workflow.step(policies=[Fallback("exits", lambda error: f"instead of {type(error).__name__}")])
    async def covered() -> str:
        await unnoticed(exit_steps.child)
        return "done"

    @workflow.step(retries=1, backoff=Backoff(initial=0.0))
    async def tried(attempt: int) -> str:
        attempts.append(attempt)
        if attempt == 1:
            await unnoticed(exit_steps.child)
        return "done"

    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.results() == {"covered": "instead of StepExited", "tried": "done"}
    assert attempts == [1, 2]


async def test_a_task_whose_exit_was_seen() -> None:
    """A step that has looked at it goes on, however it looked."""
    workflow = Workflow("seen", ttl=1)

    @workflow.step
    async def it() -> list[str]:
        seen = await asyncio.gather(exit_steps.child(), return_exceptions=True)
        task = asyncio.create_task(exit_steps.child())
        await asyncio.wait([task])
        try:
            await asyncio.create_task(exit_steps.child())
        except StepExited as error:
            return [type(one).__name__ for one in (*seen, task.exception(), error)]
        return []

    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() == ["StepExited"] * 3


async def test_a_task_that_exits_when_its_step_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the log names the step."""
    workflow = Workflow("late", ttl=1)

    @workflow.step(spawn="inline")
    def it() -> str:
        exit_steps.left.add(asyncio.create_task(exit_steps.child()))
        return "done"

    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() == "done"
        await asyncio.wait(exit_steps.left)
        exit_steps.left.clear()
        gc.collect()
    assert "a task of 'late/it', attempt 1, raised SystemExit(0)" in caplog.text


async def test_a_task_that_is_cancelled_before_it_begins() -> None:
    """It is closed like any other: nothing is left that was never awaited."""
    workflow = Workflow("early", ttl=1)

    @workflow.step
    async def it() -> bool:
        async def child() -> None: ...

        task = asyncio.create_task(child(), name="a child")
        told = repr(task)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled() and "child()" in told and "a child" in told

    async with Mesh(workflow) as mesh:
        assert await (await finish(mesh, workflow)).result() is True
    gc.collect()


async def test_tasks_of_others_are_left_alone() -> None:
    """Who made a task elsewhere, on the same loop, has its exit as always."""
    async with Mesh(exiting(in_a_task, SystemExit(0), "step")):

        async def own() -> None: ...

        task = asyncio.create_task(own())
        assert task.get_coro().__class__.__name__ == "coroutine"
        await task
    assert asyncio.get_running_loop().get_task_factory() is None


async def test_nodes_that_follow_each_other_on_a_loop_leave_it_as_it_was() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    first = await Mesh().__aenter__()
    shared = loop.get_task_factory()
    for _ in range(3):
        second = await Mesh().__aenter__()
        assert loop.get_task_factory() is shared
        await first.close()
        first = second
    workflow = exiting(in_a_task, SystemExit(0), "step")
    async with Mesh(workflow) as mesh:
        await first.close()
        assert (await finish(mesh, workflow)).status == "compensated"
    assert loop.get_task_factory() is before


async def test_in_a_worker_process() -> None:
    async with Mesh(exit_steps.exiting, exit_steps.argued, processes=1) as mesh:
        for way in ("raises", "in a group", "in a task", "unnoticed", "result", "validator"):
            workflow = exit_steps.argued if way == "validator" else exit_steps.exiting
            transaction = await finish(mesh, workflow, {"way": way})
            assert transaction.status == "compensated"
            [error] = transaction.errors()
            assert "SystemExit" in fault_of(innermost(error)).summary()
        for way in ("in a callback", "late", ""):
            assert await (await finish(mesh, exit_steps.exiting, {"way": way})).result() == "still here"
        assert mesh.node.processes.statistics()["starts"] == 1, "the worker went on"


def test_a_blocking_mesh_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """A callback is no task: nobody can say whose it is, so it is logged."""
    workflow = Workflow("calling back", input={"exit": bool}, ttl=1)

    @workflow.step
    async def it(exit: bool) -> str:
        if exit:
            asyncio.get_running_loop().call_soon(sys.exit, 0)
        await asyncio.sleep(0)
        return "done"

    with Mesh(workflow) as mesh:
        assert mesh.run(workflow, {"exit": True}, timeout=BOUND) == "done"
        assert mesh.run(workflow, {"exit": False}, timeout=BOUND) == "done"
    assert "a callback on the event loop raised SystemExit(0)" in caplog.text


def post(url: str, workflow: str, given: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/stimuli/{workflow}",
        json.dumps(given).encode(),
        {"Content-Type": "application/json", "Prefer": "wait=20"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)  # type: ignore[no-any-return]
    except urllib.error.HTTPError as problem:
        return json.load(problem)  # type: ignore[no-any-return]


def test_a_node_of_the_command_line_goes_on(tmp_path: Path) -> None:
    """Whatever way a step exits, its node runs on, an innocent transaction ends well, and the node when it is told."""
    store = f"sqlite:///{tmp_path}/pulses.db"
    node = Running("run", "tests.e2e.exit_steps:everything", "--http", "0", "--store", store, cwd=tmp_path)
    url = node.ready["http"]
    with ThreadPoolExecutor() as pool:
        innocent = pool.submit(post, url, "exits.innocent", {})
        for way in ("raises", "in a group", "in a task", "unnoticed", "result"):
            failed = post(url, "exits.on_loop", {"way": way})
            assert failed["transaction_status"] == "compensated"
            assert ("a TaskGroup" if way == "in a group" else "SystemExit") in failed["detail"]
        assert post(url, "exits.validated", {"way": "validator"})["status"] == 422
        for way in ("in a callback", "interrupted in a callback", "late"):
            assert post(url, "exits.on_loop", {"way": way})["result"] == "still here"
        assert post(url, "exits.on_loop", {"way": "release"})["result"] == "still here"
        assert innocent.result(PATIENCE)["status"] == "completed"
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=PATIENCE) as answer:
        assert "hunter2" not in answer.read().decode(), "the default of a secret"
    code, said = node.stop()
    assert code == 0
    assert "Warning" not in said
    for error in ("SystemExit(0)", "KeyboardInterrupt()"):
        assert f"a callback on the event loop raised {error}" in said


def test_a_command_that_is_ended_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What must end ends with a code that is not 0."""

    def exits(**_: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("mesh.cli.run.StopSignals", exits)
    assert main(["run", "tests.e2e.exit_steps:everything"]) == 1
    assert "the command was ended by SystemExit(0)" in capsys.readouterr().err
