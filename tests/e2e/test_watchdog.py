"""The watchdog of the loop: a loop that stands still is told of, with who stops it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bitactor import Backoff, Workflow
from bitactor.errors import ConfigurationError
from bitactor.patterns import Timeout
from mesh import Mesh
from mesh.runtime.node import Node
from tests.e2e.support import BOUND, finish, until

SOON = 0.04
"""Seconds after which these loops count as blocked."""


class Blocking:
    """Stops the loop until the watchdog has said so."""

    def __init__(self) -> None:
        self.node: Node | None = None

    def __call__(self) -> None:
        self.until(lambda blocked: blocked["times"] > 0)

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        assert self.node is not None
        end = time.monotonic() + BOUND
        while not condition(self.node.about()["blocked"]) and time.monotonic() < end:
            time.sleep(0.005)


@pytest.fixture
def blocking() -> Blocking:
    return Blocking()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "bitactor.watchdog"]

    with caplog.at_level(logging.WARNING, "bitactor.watchdog"):
        yield said


async def what_is_said(
    workflow: Workflow, blocking: Blocking, warnings: Callable[[], list[str]], **options: Any
) -> str:
    async with Mesh(workflow, blocked_after=SOON, **options) as mesh:
        blocking.node = mesh.node
        await finish(mesh, workflow)
        blocked = mesh.node.about()["blocked"]
    assert blocked["times"] == 1 and blocked["longest"] >= SOON
    [said] = warnings()
    return said


@pytest.mark.parametrize("policies", [(), [Timeout("t", 60.0)]], ids=["bare", "policies"])
@pytest.mark.parametrize("where", ["loop", "inline"])
async def test_the_step_that_blocks_is_named_with_its_stack(
    where: str, policies: Any, blocking: Blocking, warnings: Callable[[], list[str]]
) -> None:
    workflow = Workflow("shop.order")

    async def reserve() -> None:
        blocking()

    def reserve_inline() -> None:
        blocking()

    workflow.step(name="reserve", spawn=where, policies=policies)(reserve if where == "loop" else reserve_inline)
    said = await what_is_said(workflow, blocking, warnings)
    assert f"step 'shop.order/reserve' (spawn={where!r}" in said
    first, *stack = said.splitlines()
    assert "has not turned for" in first and "test_watchdog.py" in stack[0] and "in reserve" in stack[0]
    assert "time.sleep" in said, "down to where it stands"


async def test_a_nested_step_is_named_by_its_path(blocking: Blocking, warnings: Callable[[], list[str]]) -> None:
    inner = Workflow("inner")

    @inner.step
    async def blocks() -> None:
        blocking()

    workflow = Workflow("outer", ttl=4)
    workflow.compose("nested", inner)
    assert "'outer/nested/blocks'" in await what_is_said(workflow, blocking, warnings)


async def test_a_compensation_is_named_as_one(blocking: Blocking, warnings: Callable[[], list[str]]) -> None:
    workflow = Workflow("shop.order")

    @workflow.step(retries=1, backoff=Backoff(initial=0))
    async def reserve() -> None:
        raise ValueError

    @reserve.compensate
    async def because(error: Exception) -> None:
        blocking()

    said = await what_is_said(workflow, blocking, warnings)
    assert "compensation or backoff of step 'shop.order/reserve'" in said and "in because" in said


async def test_a_task_that_a_step_has_begun_is_named_as_such(
    blocking: Blocking, warnings: Callable[[], list[str]]
) -> None:
    workflow = Workflow("shop.order")

    async def aside() -> None:
        blocking()

    @workflow.step
    async def reserve() -> None:
        await asyncio.create_task(aside(), name="aside of ours")

    said = await what_is_said(workflow, blocking, warnings)
    assert "'aside of ours'" in said and "in aside" in said


async def test_it_is_said_once_for_each_blockage(blocking: Blocking, warnings: Callable[[], list[str]]) -> None:
    workflow = Workflow("blocks")

    @workflow.step
    async def blocks() -> None:
        before = blocking.node.about()["blocked"]["times"]  # type: ignore[union-attr]
        blocking.until(lambda blocked: blocked["times"] > before)
        time.sleep(4 * SOON)  # noqa: ASYNC251 (what is to be noticed)

    async with Mesh(workflow, blocked_after=SOON) as mesh:
        blocking.node = mesh.node
        for times in (1, 2):
            await finish(mesh, workflow)
            await until(lambda: mesh.node.about()["blocked"]["longest"] > 2 * SOON)
            assert mesh.node.about()["blocked"]["times"] == times == len(warnings())


async def test_a_loop_that_turns_is_left_in_peace(warnings: Callable[[], list[str]]) -> None:
    workflow = Workflow("busy")
    may = threading.Event()

    @workflow.step
    def blocks_a_thread() -> None:
        may.wait(BOUND)

    async with Mesh(workflow, blocked_after=0.5) as mesh:
        transaction = await mesh.stimulate(workflow)
        await asyncio.sleep(1.0)
        may.set()
        await transaction.result(BOUND)
        assert mesh.node.about()["blocked"] == {"times": 0, "longest": 0.0}
    assert not warnings()


async def test_its_thread_ends_with_the_mesh_and_need_not_be_there() -> None:
    def watching() -> bool:
        return any(thread.name == "bitactor-watchdog" for thread in threading.enumerate())

    workflow = Workflow("w")
    workflow.step(name="a")(lambda: None)
    async with Mesh(workflow, blocked_after=0):
        assert not watching()
    async with Mesh(workflow) as mesh:
        assert watching() and mesh.node.settings.blocked_after == 1.0
    assert not watching()
    with pytest.raises(ConfigurationError, match="BITACTOR_BLOCKED_AFTER"):
        Mesh(workflow, blocked_after=-1)


def test_a_loop_that_nobody_runs_is_not_blocked(warnings: Callable[[], list[str]]) -> None:
    workflow = Workflow("w")
    workflow.step(name="a")(lambda: None)
    with asyncio.Runner() as runner:
        mesh = runner.run(_opened(workflow))
        time.sleep(8 * SOON)
        runner.run(finish(mesh, workflow))
        assert mesh.node.about()["blocked"] == {"times": 0, "longest": 0.0}
        runner.run(mesh.close())
    assert not warnings()


async def _opened(workflow: Workflow) -> Mesh:
    return await Mesh(workflow, blocked_after=SOON).__aenter__()
