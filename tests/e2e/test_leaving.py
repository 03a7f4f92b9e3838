"""A node that leaves with hops of another supervisor says nothing of them: they are run elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bitactor import Resource, Workflow
from bitactor.patterns import RateLimit
from mesh import Mesh
from registry import RegistryServer
from tests.e2e.support import BOUND, pulse_lines, until

SLOW = RateLimit("slow", per_second=0.001)


def serving(begun: list[str], makes: Any, *, limited: bool, **options: Any) -> Workflow:
    workflow = Workflow("served", resources=[Resource("client", makes)])

    @workflow.step(policies=[SLOW] if limited else [], **options)
    async def asks(client: str) -> str:
        begun.append(client)
        return client

    return workflow


@pytest.mark.parametrize("limited", [False, True], ids=["bare", "policies"])
async def test_hops_that_wait_for_a_resource_are_run_elsewhere(limited: bool, tmp_path: Path) -> None:
    begun: list[str] = []
    making = asyncio.Event()

    async def never() -> str:
        making.set()
        await asyncio.Event().wait()
        return "never"

    async def at_once() -> str:
        return "made"

    registry = f"ipc://{tmp_path}/registry"
    with RegistryServer(registry):
        owner = Mesh(serving(begun, at_once, limited=limited), registry=registry, hosts=False, patience=BOUND)
        leaving = Mesh(serving(begun, never, limited=limited), registry=registry)
        async with owner:
            async with leaving:
                transaction = await owner.stimulate("served")
                async with asyncio.timeout(BOUND):
                    await making.wait()
                await leaving.close(drain=0)
            async with Mesh(serving(begun, at_once, limited=limited), registry=registry):
                assert await transaction.result(BOUND) == "made"
                await until(lambda: transaction.status == "completed")
    assert begun == ["made"], pulse_lines(transaction)
    assert not any(line.startswith("failed") for line in pulse_lines(transaction))
