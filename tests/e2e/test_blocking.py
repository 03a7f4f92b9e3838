"""The mesh from threads: one blocking call for scripts, a plain context manager for services."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bitactor import Halt, Workflow, WorkflowFailed
from bitactor.errors import BitActorError, ConfigurationError, InvalidInput, UnknownWorkflow
from mesh import Mesh
from tests.e2e.support import BOUND

ROOT = Path(__file__).parents[2]


def doubling() -> Workflow:
    workflow = Workflow("doubling", input={"x": int}, ttl=2)

    @workflow.step
    def twice(x: int) -> int:
        if x < 0:
            raise ValueError("negative")
        return x * 2

    return workflow


def meshes() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bitactor")]


def test_one_call(store: str) -> None:
    workflow = doubling()
    assert Mesh(workflow, store=store).run(workflow, {"x": 21}) == 42
    assert meshes() == []


def test_one_call_that_fails(store: str) -> None:
    workflow = doubling()
    with pytest.raises(WorkflowFailed) as caught:
        Mesh(workflow, store=store).run(workflow, {"x": -1})
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(InvalidInput):
        Mesh(workflow, store=store).run(workflow, {"x": "y"})
    with pytest.raises(UnknownWorkflow):
        Mesh(workflow, store=store).run("dubling", {"x": 1})
    assert meshes() == []


def test_as_a_context_manager(store: str) -> None:
    workflow = doubling()
    with Mesh(workflow, store=store) as mesh:
        assert mesh.run(workflow, {"x": 1}) == 2
        tx = mesh.submit(workflow, {"x": 2}, key="k")
        assert tx.result(BOUND) == 4 and tx.status == "completed" and len(tx.id) == 32
        assert tx.results() == {"twice": 4}
        assert [pulse.kind for pulse in tx.pulses()] == ["accepted", "spawned", "completed", "finished"]
        assert tx.cancel() == "completed"
        assert mesh.submit(workflow, {"x": 2}, key="k").id == tx.id
    assert meshes() == []


def test_from_many_threads(store: str) -> None:
    workflow = doubling()
    with Mesh(workflow, store=store) as mesh, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda x: mesh.submit(workflow, {"x": x}).result(BOUND), range(200))) == [
            x * 2 for x in range(200)
        ]


def test_before_and_after(store: str) -> None:
    workflow = doubling()
    mesh = Mesh(workflow, store=store)
    with pytest.raises(BitActorError, match="open the mesh first"):
        mesh.submit(workflow, {"x": 1})
    with mesh:
        tx = mesh.submit(workflow, {"x": 1})
        tx.result(BOUND)
    for late in (lambda: mesh.submit(workflow, {"x": 1}), tx.undo, tx.resume):
        with pytest.raises(BitActorError, match=r"closed|only a halted"):
            late()
    assert (tx.status, tx.cancel(), tx.result()) == ("completed", "completed", 2)
    mesh.__exit__(None, None, None)


async def test_a_blocking_call_on_the_loop_itself_is_refused() -> None:
    workflow = doubling()
    async with Mesh(workflow) as mesh:
        with pytest.raises(BitActorError, match="await the async one"):
            mesh.run(workflow, {"x": 1})
        with pytest.raises(BitActorError, match="await the async one"):
            mesh.submit(workflow, {"x": 1})
        other = await asyncio.to_thread(mesh.submit, workflow, {"x": 4})
        with pytest.raises(BitActorError, match="await the async one"):
            other.result()
        assert await asyncio.to_thread(other.result, BOUND) == 8


def test_a_blocking_call_from_a_step() -> None:
    """A step in a thread may wait for another transaction; one on the loop is refused, and fails clearly."""
    inner, threaded, looped = doubling(), Workflow("threaded", ttl=1), Workflow("looped", ttl=1)
    here: list[Mesh] = []

    @threaded.step
    def asks() -> Any:
        return here[0].run(inner, {"x": 3})

    @looped.step
    async def asks_too() -> Any:
        return here[0].run(inner, {"x": 3})

    with Mesh(inner, threaded, looped) as mesh:
        here.append(mesh)
        assert mesh.run(threaded, timeout=BOUND) == 6
        with pytest.raises(WorkflowFailed, match="await the async one"):
            mesh.run(looped, timeout=BOUND)


def test_a_result_that_does_not_come(store: str) -> None:
    workflow = Workflow("waits", ttl=1)
    go = threading.Event()

    @workflow.step
    def waits() -> str:
        go.wait(BOUND)
        return "done"

    with Mesh(workflow, store=store) as mesh:
        tx = mesh.submit(workflow)
        with pytest.raises(TimeoutError):
            tx.result(0.01)
        assert tx.status == "running"
        go.set()
        assert tx.result(BOUND) == "done"


def test_opening_fails(tmp_path: Path) -> None:
    workflow = doubling()
    with pytest.raises(ConfigurationError), Mesh(workflow, store="postgresql://nowhere"):
        pass
    (tmp_path / "no.db").write_bytes(b"this is no database, and it is long enough to be seen as none" * 20)
    with pytest.raises(BitActorError), Mesh(workflow, store=f"sqlite:///{tmp_path}/no.db"):
        pass
    with pytest.raises(ConfigurationError, match=r"threads"):
        Mesh(workflow, threads=0)
    with pytest.raises(ConfigurationError, match="no such option"):
        Mesh(workflow, sotre="memory://")
    assert meshes() == []


def test_waiters_in_threads_are_told_when_it_closes(store: str) -> None:
    workflow = Workflow("hangs", ttl=1)

    @workflow.step
    async def hangs() -> None:
        await asyncio.Event().wait()

    caught: list[BaseException] = []
    with Mesh(workflow, store=store, drain=0.05) as mesh:
        tx = mesh.submit(workflow)

        def wait() -> None:
            try:
                tx.result()
            except BaseException as error:
                caught.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
    waiter.join(BOUND)
    assert not waiter.is_alive()
    assert isinstance(caught[0], BitActorError)


def test_halted_and_resumed_in_a_script(sqlite: str) -> None:
    workflow = Workflow("halts", ttl=1)
    answers: list[Any] = [Halt("look"), "fine"]

    @workflow.step
    async def asks() -> Any:
        return answers.pop(0)

    with pytest.raises(WorkflowFailed, match="look") as caught:
        Mesh(workflow, store=sqlite).run(workflow)
    assert caught.value.status == "halted"


SCRIPT = """
import os, signal, sys, threading
from bitactor import Workflow
from mesh import Mesh

workflow = Workflow("slow", ttl=1)

@workflow.step
async def slow():
    import asyncio
    print("begun", flush=True)
    await asyncio.Event().wait()

try:
    Mesh(workflow, drain=0.2).run(workflow)
except KeyboardInterrupt:
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("bitactor")]
    print("interrupted", left, flush=True)
    raise SystemExit(7)
"""


def test_control_c_in_a_script() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        os.kill(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=BOUND)
    finally:
        child.kill()
        child.wait()
    assert (out, child.returncode) == ("interrupted []\n", 7), err
    assert "Traceback" not in err and "never" not in err, err


ASYNC_SCRIPT = """
import asyncio
from bitactor import Workflow
from mesh import Mesh

workflow = Workflow("slow", ttl=2)

@workflow.step
async def slow():
    print("begun", flush=True)
    await asyncio.Event().wait()

async def main():
    async with Mesh(workflow, drain=0.2) as mesh:
        tx = await mesh.stimulate(workflow)
        await tx.result()

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(7)
"""


def test_control_c_in_an_async_script() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", ASYNC_SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        os.kill(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=BOUND)
    finally:
        child.kill()
        child.wait()
    assert (out, child.returncode) == ("interrupted\n", 7), err
    assert "Traceback" not in err and "never" not in err, err
