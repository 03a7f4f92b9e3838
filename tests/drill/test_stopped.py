"""Nodes that are stopped and woken again and again under load: what was given to others meanwhile is not begun."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitactor import Workflow
from mesh import Mesh
from tests.e2e.errands import computation, effects, errand, knock, left_over, parcel, redelivered, ride
from tests.e2e.processes import Process, Town, stop, town, wake
from tests.e2e.test_mesh_processes import until

TRANSACTIONS = 500
REDELIVERED = 50
AT_ONCE = 40
ASLEEP, AWAKE = 2.5, 1.0
"""Seconds; a lease on a name is 1.5."""

pytestmark = pytest.mark.drill


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        made.serve_registry()
        yield made


async def load(mesh: Mesh, workflow: str, notes: Path, statuses: Counter[str], enough: int) -> None:
    """Keep `AT_ONCE` transactions running until `enough` have ended."""

    async def client() -> None:
        while statuses.total() < enough:
            transaction = await mesh.stimulate(workflow, {"notes": str(notes)})
            await transaction.ended()
            statuses[transaction.status] += 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


async def nap(processes: list[list[int]], until_done: asyncio.Task[None]) -> int:
    """Stop one of these after the other for longer than its lease, and wake it; how often."""
    naps = 0
    for pids in itertools.cycle(processes):
        await asyncio.wait([until_done], timeout=AWAKE)
        if until_done.done():
            return naps
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(ASLEEP)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        naps += 1
    return naps


async def at_rest(mesh: Mesh, running: asyncio.Task[None]) -> int:
    """Wait until all has ended, and what woke late has done what it does; how many were delivered again."""
    await running
    again = redelivered(mesh)
    await asyncio.sleep(ASLEEP)
    return again


def judge(what: str, statuses: Counter[str], notes: Path, again: int) -> None:
    """All were undone, and nothing was begun too late."""
    found = effects(notes)
    late = left_over(found)
    print(f"{what}, {dict(statuses)}, {len(found)} effects, {again} redelivered, {len(late)} left over")
    assert statuses == {"compensated": statuses.total()}
    assert not late


async def test_of_500_compensated_transactions_none_leaves_an_effect(place: Town) -> None:
    workers = [place.node("errand", threads=2), place.node("errand", threads=2)]
    notes = place.directory / "effects"
    statuses: Counter[str] = Counter()
    async with Mesh(errand, registry=place.registry, hosts=False) as mesh:
        running = asyncio.create_task(load(mesh, "errand", notes, statuses, TRANSACTIONS))
        naps = await nap([[worker.child.pid] for worker in workers], running)
        again = await at_rest(mesh, running)
    judge(f"{naps} naps", statuses, notes, again)
    assert statuses.total() >= TRANSACTIONS
    assert again >= REDELIVERED


@pytest.mark.parametrize("whom", ["workers", "parents", "groups"])
async def test_worker_processes_begin_nothing_late_either(place: Town, whom: str) -> None:
    """The worker processes of a node are stopped, or the node alone, or both."""
    nodes = [place.node("computation", processes=2), place.node("computation", processes=2)]
    notes = place.directory / "effects"
    statuses: Counter[str] = Counter()
    async with Mesh(computation, registry=place.registry, hosts=False) as mesh:
        await load(mesh, "computation", notes, statuses, AT_ONCE)
        running = asyncio.create_task(load(mesh, "computation", notes, statuses, 300))
        children = [worker_pids(node) for node in nodes]
        parents = [[node.child.pid] for node in nodes]
        victims = {
            "workers": children,
            "parents": parents,
            "groups": [a + b for a, b in zip(parents, children, strict=True)],
        }
        naps = await nap(victims[whom], running)
        again = await at_rest(mesh, running)
    judge(f"{whom}: {naps} naps", statuses, notes, again)


@pytest.mark.parametrize("workflow", [ride, knock], ids=lambda workflow: workflow.name)
async def test_nor_does_what_waited_for_a_resource_or_for_a_later_run_of_a_policy(
    place: Town, workflow: Workflow
) -> None:
    """A holder is stopped while it makes a resource, again and again; and between two runs of one attempt."""
    name = workflow.name
    workers = [place.node(name), place.node(name)]
    notes = place.directory / "effects"
    statuses: Counter[str] = Counter()
    async with Mesh(workflow, registry=place.registry, hosts=False) as mesh:
        running = asyncio.create_task(load(mesh, name, notes, statuses, 400))
        naps = await nap([[worker.child.pid] for worker in workers], running)
        again = await at_rest(mesh, running)
    judge(f"{name}: {naps} naps", statuses, notes, again)
    assert again >= 10


async def test_nor_when_the_registry_is_another_one_when_they_wake(place: Town) -> None:
    workers = [place.node("errand", threads=2), place.node("errand", threads=2)]
    notes = place.directory / "effects"
    statuses: Counter[str] = Counter()
    async with Mesh(errand, registry=place.registry, hosts=False) as mesh:
        running = asyncio.create_task(load(mesh, "errand", notes, statuses, 400))
        restarts, server = 0, place.processes[0]
        while not running.done():
            asleep = workers[restarts % 2]
            await asyncio.wait([running], timeout=AWAKE)
            stop(asleep)
            try:
                await asyncio.sleep(0.3 * (restarts % 3))  # it may not have missed it yet, or have
                server.kill()
                server = place.serve_registry()
                restarts += 1
                await asyncio.sleep(ASLEEP)
            finally:
                wake(asleep)
        again = await at_rest(mesh, running)
    judge(f"{restarts} restarts", statuses, notes, again)


def worker_pids(process: Process) -> list[int]:
    """The worker processes of a node, by what the kernel says of its children."""
    text = Path(f"/proc/{process.child.pid}/task/{process.child.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def state_of(process: Process) -> str:
    """`T` for one that is stopped."""
    return Path(f"/proc/{process.child.pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_woken_consumer_accepts_nothing_that_another_has_accepted(place: Town) -> None:
    """Each has a store of its own, which cannot know that the signal was accepted before."""
    nodes = [place.node("deliver"), place.node("deliver")]
    notes = place.directory / "effects"
    async with Mesh(parcel, registry=place.registry) as mesh:
        for turn in range(4):
            stopped = nodes[turn % 2]
            stop(stopped)
            for _ in range(50):
                await (await mesh.stimulate("parcel", {"notes": str(notes)})).ended()
            done = 50 * (turn + 1)
            await until(lambda done=done: len(effects(notes)) >= done, "the parcels")
            wake(stopped)
            await until(lambda: not mesh.node.emissions, "the receipts")
            await asyncio.sleep(AWAKE)
    found = effects(notes)
    print(f"{len(found)} effects of 200 signals, by {dict(Counter(effect.pid for effect in found))}")
    assert len(found) == 200


async def test_while_the_registry_is_away_nodes_go_on(place: Town) -> None:
    """For longer than a lease nobody can confirm that a holder has its name, and it asks the sender instead."""
    place.node("errand", threads=2)
    notes = place.directory / "effects"
    statuses: Counter[str] = Counter()
    async with Mesh(errand, registry=place.registry, hosts=False) as mesh:
        running = asyncio.create_task(load(mesh, "errand", notes, statuses, 400))
        await asyncio.sleep(AWAKE)
        place.processes[0].kill()
        before = statuses.total()
        await asyncio.sleep(3 * ASLEEP)
        during = statuses.total() - before
        place.serve_registry()
        await running
        again = redelivered(mesh)
    print(f"{during} transactions while the registry was away, {again} redelivered")
    assert statuses == {"compensated": statuses.total()}
    assert during > 50 and not again
    assert not left_over(effects(notes))


async def test_the_window_that_remains_is_one_hop_wide(place: Town) -> None:
    """Stopped between the look and the function's first instruction, a node begins that hop when it wakes, and no
    other."""
    stopped = place.node("errand", program="window_process", threads=2)
    place.node("errand", threads=2)
    notes = place.directory / "effects"
    statuses: Counter[str] = Counter()
    async with Mesh(errand, registry=place.registry, hosts=False) as mesh:
        await load(mesh, "errand", notes, statuses, 200)
        state = state_of(stopped)
        wake(stopped)
        again = redelivered(mesh)
        await asyncio.sleep(ASLEEP)
    late = left_over(effects(notes))
    print(f"{again} redelivered, {len(late)} left over: {late}")
    assert state == "T" and again >= 10
    assert [effect.pid for effect in late] == [stopped.child.pid]
