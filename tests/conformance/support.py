"""What these tests share."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bitactor import Workflow, WorkflowFailed
from mesh import Mesh, Transaction
from tests.e2e.support import BOUND, finish


@asynccontextmanager
async def finished(workflow: Workflow, value: Any = None, **options: Any) -> AsyncIterator[Transaction]:
    """The workflow's transaction, ended, in a mesh of its own that is open meanwhile; its journal folds to what it
    is."""
    async with Mesh(workflow, **options) as mesh:
        yield await finish(mesh, workflow, value)


async def ran(workflow: Workflow, value: Any = None, **options: Any) -> Transaction:
    """The same when the mesh is closed again; a file's journal can then no longer be read."""
    async with finished(workflow, value, **options) as transaction:
        return transaction


async def result_of(workflow: Workflow, value: Any = None, **options: Any) -> Any:
    """What a workflow that completes comes to."""
    return await (await ran(workflow, value, **options)).result()


async def failure_of(transaction: Transaction) -> WorkflowFailed:
    """What waiting for its result raises."""
    with pytest.raises(WorkflowFailed) as caught:
        await transaction.result(BOUND)
    return caught.value


def passes(annotation: Any, value: Any) -> tuple[Workflow[Any], list[Any]]:
    """A workflow whose second step takes what the first one returns, and says what came."""
    workflow, came = Workflow("passes"), list[Any]()

    @workflow.step
    async def made() -> Any:
        return value

    async def taken(made: Any) -> None:
        came.append(made)

    taken.__annotations__["made"] = annotation
    workflow.add(taken)
    return workflow, came


def journal(transaction: Transaction, *kinds: str) -> list[str]:
    """The steps that have pulses of these kinds, in order."""
    return [pulse.step for pulse in transaction.pulses() if pulse.kind in kinds and pulse.step]


def resident() -> int:
    """Bytes of memory that this process has at the moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Meeting:
    """Nobody leaves before so many have come: whoever waits alone waits for ever."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._came = 0
        self._all = asyncio.Event()

    async def join(self) -> None:
        """Come, and wait for the others."""
        self._came += 1
        if self._came == self._size:
            self._all.set()
        async with asyncio.timeout(BOUND):
            await self._all.wait()
