"""The bridge from threads to the mesh's loop: whatever a call raises reaches its caller, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from bitactor import Workflow
from bitactor.errors import BitActorError
from mesh import Mesh
from mesh.transaction import bridge as bridges
from mesh.transaction.bridge import Bridge, LoopThread
from tests.e2e.support import BOUND

ROOT = Path(__file__).parents[2]


class Own(BaseException):
    pass


ERRORS = [
    TypeError("wrong"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(),
    TimeoutError("t"), Own("own"), StopAsyncIteration(), MemoryError(), InvalidStateError(),
    asyncio.InvalidStateError(),
]  # fmt: skip


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("bitactor-test-bridge")
    yield thread
    thread.close()


async def goes_on() -> str:
    return "it goes on"


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives or raises, in a thread of its own; it hangs nobody."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_result(error)

    threading.Thread(target=run, daemon=True).start()
    return found.result(BOUND)


def test_an_error_is_seen_within_a_second() -> None:
    assert 2 * bridges.PATROL_SECONDS < 1


@pytest.mark.parametrize("error", [*ERRORS, StopIteration(1)], ids=lambda error: repr(type(error))[8:-2])
def test_what_a_function_raises(thread: LoopThread, error: BaseException) -> None:
    def raises() -> None:
        raise error

    assert outcome(lambda: thread.bridge.call(raises)) is error
    assert thread.call(goes_on) == "it goes on"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: repr(type(error))[8:-2])
@pytest.mark.parametrize("turns", [0, 2])
def test_what_a_coroutine_raises(thread: LoopThread, error: BaseException, turns: int) -> None:
    async def raises() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise error

    assert outcome(lambda: thread.call(raises)) is error
    assert thread.call(goes_on) == "it goes on"


def test_a_call_that_cannot_even_begin(thread: LoopThread) -> None:
    async def takes(one: int) -> None: ...

    wrong: Any = thread.call
    assert "unexpected keyword argument 'two'" in str(outcome(lambda: wrong(takes, two=2)))
    assert "missing 1 required" in str(outcome(lambda: wrong(takes)))
    assert "not callable" in str(outcome(lambda: wrong(3)))


def test_a_task_factory_that_raises(thread: LoopThread) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise Own("no tasks")

    thread.bridge.call(thread.loop.set_task_factory, refuses)
    assert isinstance(outcome(lambda: thread.call(goes_on)), Own)
    thread.bridge.call(thread.loop.set_task_factory, None)
    assert thread.call(goes_on) == "it goes on"


def test_who_gives_up_cancels_the_call(thread: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the waiting thread, at any moment."""
    begun, cancelled = threading.Event(), threading.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupted(*_: Any, **__: Any) -> Any:
        begun.wait(BOUND)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bridges, "wait", interrupted)
        assert isinstance(outcome(lambda: thread.call(waits)), KeyboardInterrupt)
    assert cancelled.wait(BOUND)
    assert thread.call(goes_on) == "it goes on"


def test_a_call_that_is_given_up_before_it_begins_is_not_made(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        release.wait(BOUND)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    thread.loop.call_soon_threadsafe(hold)
    assert held.wait(BOUND)
    with monkeypatch.context() as patch:
        patch.setattr(bridges, "wait", interrupted)
        assert isinstance(outcome(lambda: thread.bridge.call(made.append, 1)), KeyboardInterrupt)
    release.set()
    assert thread.call(goes_on) == "it goes on" and made == []


def test_the_loop_ends_meanwhile() -> None:
    thread = LoopThread("bitactor-test-bridge")
    begun = threading.Event()

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(thread.call, waits)
        assert begun.wait(BOUND)
        thread.close()
        with pytest.raises(BitActorError, match="was closed meanwhile"):
            waiting.result(BOUND)
    with pytest.raises(BitActorError, match="does not run any more"):
        thread.call(goes_on)
    thread.close()


def test_a_loop_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of somebody who runs it now and then: what is asked meanwhile is refused, and not done later."""
    monkeypatch.setattr(bridges, "PATROL_SECONDS", 0.01)
    loop = asyncio.new_event_loop()
    done: list[int] = []
    try:

        async def made() -> Bridge:
            return Bridge()

        bridge = loop.run_until_complete(made())
        error = outcome(lambda: bridge.call(done.append, 1))
        assert isinstance(error, BitActorError) and "does not run any more" in str(error)
        loop.run_until_complete(asyncio.sleep(0))
        assert done == []
    finally:
        loop.close()
    assert "does not run any more" in str(outcome(lambda: bridge.call(done.append, 1)))


# Of a mesh


def doubling(model: Any = None) -> Workflow:
    workflow = Workflow("doubling", input=model or {"x": int}, ttl=2)

    @workflow.step
    async def twice(x: int) -> int:
        return x * 2

    return workflow


WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda mesh: mesh.submit("doubling", timeout=5), r"submit\(\) got .* 'timeout'; `result` and `run` wait"),
    (lambda mesh: mesh.run("doubling", x=1), r"run\(\) got .* 'x'; an input is one mapping: \{'x': …\}"),
    (lambda mesh: mesh.stimulate("doubling", x=1), r"stimulate\(\) got .* 'x'; an input is one mapping"),
    (lambda mesh: mesh.run("doubling", {"x": 1}, prioritty=1), r"Did you mean 'priority'\?"),
    (lambda mesh: mesh.run(), "missing 1 required"),
    (lambda mesh: mesh.run("doubling", {"x": 1}, {"x": 2}), "positional"),
    (lambda mesh: mesh.begin("doubling"), "missing 2 required"),
    (lambda mesh: mesh.transactions(3), "positional"),
    (lambda mesh: mesh.submit("doubling", {"x": 1}).result(BOUND, 1), "positional"),
    (lambda mesh: mesh.submit("doubling", {"x": 1}).undo(why="so"), "why"),
]


def test_wrong_arguments_under_with() -> None:
    with Mesh(doubling()) as mesh:
        for call, words in WRONG:
            error = outcome(lambda call=call: call(mesh))
            assert isinstance(error, TypeError), error
            with pytest.raises(TypeError, match=words):
                raise error
        assert mesh.run("doubling", {"x": 1}) == 2


async def test_wrong_arguments_beside_a_loop() -> None:
    async with Mesh(doubling()) as mesh:
        for call, words in WRONG[:2]:
            with pytest.raises(TypeError, match=words):
                await asyncio.to_thread(call, mesh)
        with pytest.raises(TypeError, match=WRONG[2][1]):
            await WRONG[2][0](mesh)
        assert await asyncio.to_thread(mesh.run, "doubling", {"x": 1}) == 2


def test_wrong_arguments_of_a_mesh_that_is_not_open() -> None:
    mesh = Mesh(doubling())
    for call, words in WRONG[:2]:
        with pytest.raises(TypeError, match=words):
            call(mesh)
    assert mesh.state == "new"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: repr(type(error))[8:-2])
def test_what_a_validator_raises_is_the_same_in_both_faces(error: BaseException) -> None:
    class Hostile(BaseModel):
        x: int

        @field_validator("x", mode="before")
        @classmethod
        def _raises(cls, value: int) -> int:
            if value < 0:
                raise error
            return value

    workflow = doubling(Hostile)

    async def awaited() -> BaseException | None:
        async with Mesh(workflow) as mesh:
            try:
                await mesh.stimulate(workflow, {"x": -1})
            except BaseException as raised:
                return raised
        return None

    with Mesh(workflow) as mesh:
        raised = outcome(lambda: mesh.stimulate(workflow, {"x": -1}))
        assert outcome(lambda: mesh.run(workflow, {"x": 2}, timeout=BOUND)) == 4, "the loop goes on"
    other = asyncio.run(awaited())
    assert isinstance(raised, BaseException)
    assert (type(raised), str(raised)) == (type(other), str(other))


async def test_awaiting_on_another_loop_is_refused(store: str) -> None:
    workflow = doubling()
    mesh = Mesh(workflow, store=store)
    with mesh as blocking:
        transaction = blocking.submit(workflow, {"x": 1})
        assert await asyncio.to_thread(transaction.result, BOUND) == 2
        calls = (
            mesh.stimulate(workflow, {"x": 1}), mesh.transaction(transaction.id), mesh.journal(transaction.id),
            mesh.transactions(), mesh.close(),
        )  # fmt: skip
        for call in calls:
            with pytest.raises(
                BitActorError, match=r"another event loop: await this where it was opened, or .*blocking"
            ):
                await call
        assert await asyncio.to_thread(mesh.run, workflow, {"x": 2}) == 4
    assert mesh.state == "closed"


async def test_waiting_on_another_loop_is_refused() -> None:
    workflow = Workflow("hangs", ttl=1)

    @workflow.step
    async def hangs() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, drain=0) as mesh:
        transaction = await mesh.stimulate(workflow)

        def elsewhere() -> None:
            asyncio.run(transaction.ended(BOUND))

        with pytest.raises(BitActorError, match="another event loop"):
            await asyncio.to_thread(elsewhere)


FORK = """
import os, sys
from bitactor import Workflow
from mesh import Mesh

workflow = Workflow("plain", ttl=1)

@workflow.step
async def plain() -> str:
    return "done"

with Mesh(workflow) as mesh:
    transaction = mesh.submit(workflow)
    transaction.result()
    child = os.fork()
    if child == 0:
        find = lambda: mesh.transaction(transaction.id)
        for call in (lambda: mesh.run(workflow), transaction.result, mesh.close, find):
            try:
                call()
                os._exit(9)
            except Exception as error:
                print(type(error).__name__, "fork" in str(error), flush=True)
        print(transaction.status, Mesh(workflow).run(workflow), flush=True)
    else:
        os.waitpid(child, 0)
        print("parent", mesh.run(workflow), flush=True)
print("left", flush=True)
"""


def test_a_fork_is_told() -> None:
    """A child has a copy of the mesh, whose loop and threads are not there; leaving the block there hurts nobody."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["BitActorError True"] * 4 + ["completed done", "left", "parent done", "left"]


INTERRUPTED = """
import _thread, threading
from bitactor import Workflow
from mesh import Mesh
from mesh.transaction import bridge

workflow = Workflow("plain", ttl=1)

@workflow.step
async def plain() -> str:
    return "done"

waiting = bridge.wait
def interrupted(*arguments, **options):
    bridge.wait = waiting
    waiting(*arguments)
    raise KeyboardInterrupt

mesh = Mesh(workflow)
bridge.wait = interrupted
try:
    with mesh:
        print("in")
except KeyboardInterrupt:
    print("interrupted", mesh.state, [each.name for each in threading.enumerate() if each.name.startswith("bitactor")])
print(mesh.run(workflow))
"""


def test_control_c_while_it_opens() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=BOUND, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (["interrupted closed []", "done"], "")
