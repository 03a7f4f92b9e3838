"""Planned stops, again and again in the middle of a step: none of them spends a redelivery."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bitactor import Halt, Workflow
from mesh import Mesh, Transaction
from registry import RegistryServer
from tests.conformance.claims import claim
from tests.e2e.support import BOUND, audit, pulse_lines, until

SECTION = "Starting and stopping"

STOPS = 6
"""More than a step has redeliveries."""


class Gate:
    """What a step waits at; once it is open, nobody waits any more."""

    def __init__(self) -> None:
        self.arrived = 0
        self.open = False
        self._told = asyncio.Event()

    async def pass_through(self) -> str:
        self.arrived += 1
        if not self.open:
            await self._told.wait()
        return "through"


def losses(transaction: Transaction) -> list[tuple[int, bool]]:
    """Delivery, and whether the one before was given back, of each redelivery."""
    found = [pulse.data or {} for pulse in transaction.pulses() if pulse.kind == "spawned"]
    return [(data["delivery"], data.get("given_back", False)) for data in found if "lost" in data]


def long_step(gate: Gate) -> Workflow:
    workflow = Workflow("long step")

    @workflow.step
    async def waits() -> str:
        return await gate.pass_through()

    return workflow


def in_undo(gate: Gate) -> Workflow:
    workflow = Workflow("in undo", redeliveries=0)

    @workflow.step
    async def done() -> str:
        return "done"

    @done.undo
    async def takes_back() -> None:
        await gate.pass_through()

    @workflow.step
    async def fails(done: str) -> None:
        raise ValueError("so that it is undone")

    return workflow


def in_compensate(gate: Gate) -> Workflow:
    workflow = Workflow("in compensate", redeliveries=0)

    @workflow.step
    async def fails() -> None:
        raise ValueError("so that its compensate is asked")

    @fails.compensate
    async def considers() -> Halt:
        await gate.pass_through()
        return Halt("somebody is to look")

    return workflow


def nested(gate: Gate) -> Workflow:
    """The step waits in a function around it, and is delivered again once that one proceeds again."""
    workflow = Workflow("nested", redeliveries=0)

    @workflow.around(workflow=long_step(gate))
    async def bounded(proceed: Callable[[], Any]) -> Any:
        return await proceed()

    return workflow


@claim(
    SECTION,
    "Any number of orderly restarts in the middle of a step, its compensation, its undo, or steps nested in it spends "
    "no redelivery; the death of a process does.",
)
@pytest.mark.parametrize(
    "made, status",
    [(long_step, "completed"), (in_undo, "compensated"), (in_compensate, "halted"), (nested, "completed")],
)
async def test_any_number_of_orderly_restarts_spends_no_redelivery(
    made: Callable[[Gate], Workflow], status: str, sqlite: str
) -> None:
    gate, transaction = Gate(), ""
    for stop in range(1, STOPS + 1):
        workflow = made(gate)
        async with Mesh(workflow, store=sqlite, drain=0) as mesh:
            if not transaction:
                transaction = (await mesh.stimulate(workflow)).id
            await until(lambda at=stop: gate.arrived >= at)
    gate.open = True
    workflow = made(gate)
    async with Mesh(workflow, store=sqlite) as mesh:
        found = await mesh.transaction(transaction)
        assert await found.ended(BOUND) == status, found.errors()
        audit(found)
        given_back = losses(found)
        assert len(given_back) >= STOPS - 1 and all(free for _, free in given_back), pulse_lines(found)
        resumed = [pulse.data or {} for pulse in found.pulses() if pulse.kind == "resumed"]
        assert [data.get("given_back") for data in resumed] == [True] * STOPS


@claim(SECTION, "The death of a process counts, although the one that took over was stopped at once.")
async def test_a_death_counts_although_its_heir_was_stopped(sqlite: str) -> None:
    gate = Gate()
    workflow = long_step(gate)
    async with Mesh(workflow, store=sqlite, drain=0) as dead:
        transaction = (await dead.stimulate(workflow)).id
        await until(lambda: gate.arrived)
        with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)) as somebody:
            somebody.execute("UPDATE owners SET process_started = process_started - 1")
        async with Mesh(workflow, store=sqlite, drain=0):
            pass
        gate.open = True
        async with Mesh(workflow, store=sqlite) as mesh:
            found = await mesh.transaction(transaction)
            assert await found.ended(BOUND) == "completed"
            assert [free for _, free in losses(found)].count(False) == 1


@claim(SECTION, "What was given back stays so while nodes of another release look at it.")
async def test_what_another_release_left_behind_was_given_back_too(sqlite: str) -> None:
    """A node with another shape looks at it in between, and leaves it alone."""
    gate = Gate()
    workflow = long_step(gate)
    async with Mesh(workflow, store=sqlite, drain=0) as mesh:
        transaction = (await mesh.stimulate(workflow)).id
        await until(lambda: gate.arrived)
    other = Workflow("long step")
    other.step(lambda: 1, name="otherwise", spawn="inline")
    async with Mesh(other, store=sqlite) as mesh:
        assert transaction in mesh.about()["parked"]
    gate.open = True
    async with Mesh(workflow, store=sqlite) as mesh:
        found = await mesh.transaction(transaction)
        assert await found.ended(BOUND) == "completed"
        assert losses(found) == [(2, True)]


@claim(SECTION, "A node that is stopped gives back the hops that it runs for others, forward and in undo.")
@pytest.mark.parametrize("undoing", [False, True], ids=["forward", "undo"])
async def test_a_node_that_says_goodbye_gives_back_the_hops_of_others(undoing: bool, tmp_path: Path) -> None:
    gate = Gate()
    made = in_undo if undoing else long_step
    registry = f"ipc://{tmp_path}/registry"
    with RegistryServer(registry):
        async with Mesh(made(gate), registry=registry, hosts=False, patience=BOUND) as owner:
            transaction = await start(owner, made)
            for stop in range(1, STOPS + 1):
                async with Mesh(made(gate), registry=registry, drain=0):
                    await until(lambda at=stop: gate.arrived >= at)
            gate.open = True
            async with Mesh(made(gate), registry=registry):
                assert await transaction.ended(BOUND) == ("compensated" if undoing else "completed")
            assert losses(transaction) == [(number, True) for number in range(2, STOPS + 2)]
            audit(transaction)


async def start(mesh: Mesh, made: Callable[[Gate], Workflow]) -> Transaction:
    return await mesh.stimulate(made(Gate()).name)
