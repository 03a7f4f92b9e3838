"""Middleware: who is told before and after each call of a user's function."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from bitactor import Workflow
from bitactor.errors import ConfigurationError
from mesh import Mesh
from tests.conformance.claims import claim
from tests.e2e.support import finish


class Telling:
    """Notes what it is told."""

    def __init__(self, log: list[Any], name: str = "") -> None:
        self.log, self.name = log, name

    def before(self, event: Any) -> None:
        self.log.append(f"{self.name}> {event.callback} {event.step} {event.attempt}")

    def after(self, event: Any) -> None:
        came = type(event.error).__name__ if event.error is not None else event.value
        self.log.append(f"{self.name}< {event.callback} {event.step} {came}")


class Raising:
    """What a middleware may not do."""

    def before(self, event: Any) -> None:
        raise RuntimeError("a broken middleware")


def failing() -> Workflow:
    """Has every callback that there is."""
    workflow = Workflow("told", ttl=8)
    workflow.step(name="a")(lambda: "a").undo(lambda result: None)

    @workflow.step(retries=1, backoff=lambda error: 0.0)
    async def b(a: str) -> None:
        raise ValueError

    return workflow


@claim("Running", "Middleware is told before and after each callback.")
async def test_middleware() -> None:
    log: list[Any] = []
    workflow = failing()
    async with Mesh(workflow, middleware=[Telling(log)]) as mesh:
        await finish(mesh, workflow)
    assert [line for line in log if "run" in line or "undo" in line] == [
        "> run a 1", "< run a a", "> run b 1", "< run b ValueError", "> run b 2", "< run b ValueError", "> undo a 1",
        "< undo a None",
    ]  # fmt: skip
    assert "> backoff b 1" in log and "< backoff b 0.0" in log


@claim("Running", "Middleware may not break the run: one that raises is logged, and not called any more.")
async def test_a_broken_middleware(caplog: pytest.LogCaptureFixture) -> None:
    log: list[Any] = []
    workflow = Workflow("fine")
    workflow.step(name="a")(lambda: "a")
    with caplog.at_level(logging.ERROR, "bitactor.middleware"):
        async with Mesh(workflow, middleware=[Raising(), Telling(log)]) as mesh:
            for _ in range(3):
                assert (await finish(mesh, workflow)).status == "completed"
    assert len(log) == 6 and len(caplog.records) == 1
    with pytest.raises(ConfigurationError, match="middleware"):
        Mesh(workflow, middleware=[object()])
