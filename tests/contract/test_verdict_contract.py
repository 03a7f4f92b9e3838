"""What the end of an attempt means is the same wherever the hop runs: one table, six ways, one expected column."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitactor.testing import run_workflow
from mesh import Mesh
from registry import RegistryServer
from tests.contract.verdict_cases import CASES, SPAWNERS, WORKFLOWS, observed
from tests.e2e.support import BOUND

EXPECTED = {title: case.expected for title, case in CASES.items()}


def test_under_run_workflow() -> None:
    found = {}
    for title, workflow in WORKFLOWS["inline"].items():
        trace = run_workflow(workflow, {"case": title})
        found[title] = observed(workflow.name, trace.status, trace.pulses, trace.results)
    assert found == EXPECTED


@pytest.mark.parametrize("place", SPAWNERS)
async def test_on_each_spawner(place: str) -> None:
    async with Mesh(*WORKFLOWS[place].values()) as mesh:
        assert await _found(mesh, place) == EXPECTED


async def test_on_another_node(tmp_path: Path) -> None:
    endpoint, workflows = f"ipc://{tmp_path}/registry", WORKFLOWS["loop"].values()
    with RegistryServer(endpoint):
        async with Mesh(*workflows, registry=endpoint), Mesh(*workflows, registry=endpoint, hosts=False) as mesh:
            assert await _found(mesh, "loop") == EXPECTED


async def _found(mesh: Mesh, place: str) -> dict[str, str]:
    begun = {title: await mesh.stimulate(workflow, {"case": title}) for title, workflow in WORKFLOWS[place].items()}
    await asyncio.gather(*(transaction.ended(BOUND) for transaction in begun.values()))
    return {
        title: observed(transaction.workflow, transaction.status, transaction.pulses(), transaction.results())
        for title, transaction in begun.items()
    }
