"""Several processes: steps hosted elsewhere, signals between nodes, and what is left when one of them is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitactor import DeadlineExceeded, Unroutable, WorkerLost, WorkflowFailed
from mesh import Mesh
from mesh.stores import open_reader
from registry import Curve, RegistryServer
from tests.e2e.apps import Busy, chain, forgiving, fragile, greet, serve, signup, slow
from tests.e2e.errands import computation
from tests.e2e.processes import PATIENCE, Town, town


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        made.serve_registry()
        yield made


async def until(condition, what: str) -> None:
    """Wait for something that no event tells of in this process."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (what is waited for happens in other processes)
            await asyncio.sleep(0.01)


async def test_the_face_with_its_steps_in_another_process(place: Town) -> None:
    worker = place.node("signup", "greet")
    async with Mesh(
        signup, greet, registry=place.registry, hosts=False, store=f"sqlite:///{place.directory}/pulses.db"
    ) as mesh:
        transaction = await mesh.stimulate("users.signup", {"name": " Ada ", "email": "ADA@example.org"}, key="req-17")
        assert await transaction.result(timeout=PATIENCE) == worker.child.pid
        assert transaction.status == "completed"
        assert transaction.results()["create_user"] == {"name": "Ada", "email": "ada@example.org"}
        assert [pulse.ttl for pulse in transaction.pulses() if pulse.kind == "spawned"] == [7, 6, 5]
        await until(lambda: (place.users / "greeted-ada@example.org").exists(), "the greeting")
        assert (place.users / "greeted-ada@example.org").read_text() == str(worker.child.pid)


def parent_of(pid: str) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_the_worker_process_of_another_node_is_named_beside_the_node(place: Town) -> None:
    worker = place.node("computation", processes=1)
    async with Mesh(computation, registry=place.registry, hosts=False) as mesh:
        transaction = await mesh.stimulate("computation", {"notes": str(place.directory / "computed")})
        assert await transaction.ended(timeout=PATIENCE) == "compensated"
        (ended,) = [pulse for pulse in transaction.pulses() if pulse.step == "compute" and pulse.kind == "completed"]
        node, _, pid = ended.data["holder"].partition("/")
        assert node != mesh.node.id
        assert parent_of(pid) == worker.child.pid


async def test_errors_of_another_process_come_as_declared_and_compensation_runs_there(place: Town) -> None:
    place.node("signup", "greet")
    async with Mesh(signup, registry=place.registry, hosts=False) as mesh:
        transaction = await mesh.stimulate("users.signup", {"name": "busy", "email": "b@example.org"})
        with pytest.raises(WorkflowFailed) as failed:
            await transaction.result(timeout=PATIENCE)
        assert isinstance(failed.value.__cause__, Busy)
        assert failed.value.__cause__.args == ("come back later", 7)
        assert [pulse.kind for pulse in transaction.pulses() if pulse.step == "create_user"] == [
            "spawned", "retried", "spawned", "failed",
        ]  # fmt: skip


async def test_two_processes_emitting_to_each_other_die_after_exactly_the_budget(place: Town) -> None:
    stores = [f"sqlite:///{place.directory}/{name}.db" for name in ("ping", "pong")]
    nodes = [place.node("ping", store=stores[0]), place.node("pong", store=stores[1])]
    async with Mesh(serve, registry=place.registry) as mesh:
        transaction = await mesh.stimulate("serve", {"ball": 0})
        await transaction.result(timeout=PATIENCE)

        def found() -> list:
            pulses = []
            for store in stores:
                with open_reader(store) as reader:
                    pulses += [pulse for row in reader.list(limit=100) for pulse in reader.pulses(row.transaction)]
            return pulses

        await until(lambda: any(pulse.kind == "tombstone" for pulse in found()), "the tombstone")
    for node in nodes:
        node.close()
    pulses = found()
    assert sum(pulse.kind == "completed" for pulse in pulses) == 7  # the eighth hop was the serve
    (tombstone,) = [pulse for pulse in pulses if pulse.kind == "tombstone"]
    assert tombstone.error == "ttl_expired"
    assert tombstone.data["chain"] == ["serve/hit", *(["ping", "pong"] * 4)]
    assert {pulse.root for pulse in pulses} == {transaction.id}
    assert sorted((pulse.ttl for pulse in pulses if pulse.kind == "spawned"), reverse=True) == [6, 5, 4, 3, 2, 1, 0]


async def test_a_worker_killed_in_mid_hop_is_replaced_by_another(place: Town) -> None:
    nodes = [place.node("fragile"), place.node("fragile")]
    async with Mesh(fragile, registry=place.registry, hosts=False) as mesh:
        transaction = await mesh.stimulate("fragile", {"deadly": 1, "notes": str(place.notes)})
        survivor = await transaction.result(timeout=PATIENCE)
        assert survivor in [node.child.pid for node in nodes]
        assert place.counted("prepared") == 1
        assert place.counted("exploded") == 2
        spawned = [pulse for pulse in transaction.pulses() if pulse.kind == "spawned" and pulse.step == "explode"]
        assert len({pulse.hop for pulse in spawned}) == 1
        assert spawned[1].data["delivery"] == 2


async def test_the_only_worker_is_away_for_longer_than_patience_and_nothing_is_undone(place: Town) -> None:
    worker = place.node("chain")
    async with Mesh(chain, registry=place.registry, hosts=False, patience=0.3) as mesh:
        begun = [await mesh.stimulate("chain", {"notes": str(place.notes)}) for _ in range(50)]
        await until(lambda: place.counted("two") >= 10, "work that is going on")
        worker.kill()

        def waited() -> float:
            return max((each["for_s"] for each in mesh.about()["waiting"].values()), default=0.0)

        await until(lambda: waited() > 0.6, "hops that have waited twice as long as patience")
        assert any(transaction.status == "running" for transaction in begun)
        place.node("chain")
        for transaction in begun:
            await transaction.result(timeout=PATIENCE)
        assert {transaction.status for transaction in begun} == {"completed"}
        assert not [pulse for transaction in begun for pulse in transaction.pulses() if pulse.kind == "tombstone"]
        assert mesh.about()["waiting"] == {}


async def test_a_hop_that_kills_all_its_workers_is_poison_and_undone(place: Town) -> None:
    for _ in range(4):
        place.node("fragile")
    async with Mesh(fragile, registry=place.registry, hosts=False) as mesh:
        transaction = await mesh.stimulate("fragile", {"deadly": 99, "notes": str(place.notes)})
        with pytest.raises(WorkflowFailed) as failed:
            await transaction.result(timeout=PATIENCE)
        assert failed.value.status == "compensated"
        assert isinstance(failed.value.__cause__, WorkerLost)
        assert [pulse.error for pulse in transaction.pulses() if pulse.kind == "tombstone"] == ["poison"]
        assert place.counted("exploded") == 3
        assert place.counted("tidied") == 1


async def test_compensation_decides_about_a_lost_worker_where_the_supervisor_can_reach_it(place: Town) -> None:
    place.node("forgiving")
    other = place.node("forgiving")
    async with Mesh(forgiving, registry=place.registry, hosts=False) as mesh:
        transaction = await mesh.stimulate("forgiving", {"notes": str(place.notes)})
        assert await transaction.result(timeout=PATIENCE) == "instead of WorkerLost"
        assert place.counted("vanished") == 1
    other.close()


async def test_a_node_killed_and_started_again_on_its_store_finishes_what_was_open(place: Town) -> None:
    store = f"sqlite:///{place.directory}/node.db"
    first = place.node("chain", store=store, registry="")
    for _ in range(50):
        first.tell(f'run chain {{"notes": "{place.notes}"}}')
    first.expect("ended")
    first.kill()
    async with Mesh(chain, store=store) as mesh:
        await until(lambda: mesh.node.supervisor.running_count == 0, "recovery")
        rows = mesh.node.store.reader().list(limit=1_000)
        assert rows and {row.status for row in rows} == {"completed"}
    assert place.counted("three") >= len(rows)


async def test_the_registry_killed_and_restarted_under_load_loses_nothing(place: Town) -> None:
    place.node("chain")
    place.node("chain")
    async with Mesh(chain, registry=place.registry, hosts=False) as mesh:
        running = [asyncio.create_task(ask(mesh, place)) for _ in range(300)]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        place.processes[0].kill()
        running += [asyncio.create_task(ask(mesh, place)) for _ in range(300)]
        place.serve_registry()
        running += [asyncio.create_task(ask(mesh, place)) for _ in range(300)]
        assert await asyncio.gather(*running) == ["end"] * 900
    assert place.counted("one") == 900


async def ask(mesh: Mesh, place: Town) -> str:
    transaction = await mesh.stimulate("chain", {"notes": str(place.notes)})
    return await transaction.result(timeout=PATIENCE)


async def test_the_deadline_travels(place: Town) -> None:
    place.node("slow")
    async with Mesh(slow, registry=place.registry, hosts=False) as mesh:
        transaction = await mesh.stimulate("slow", {"seconds": 0.0}, deadline=20.0)
        assert 10 < (await transaction.result(timeout=PATIENCE))["left"] <= 20
        late = await mesh.stimulate("slow", {"seconds": 60.0}, deadline=0.3)
        with pytest.raises(WorkflowFailed) as failed:
            await late.result(timeout=PATIENCE)
        assert isinstance(failed.value.__cause__, DeadlineExceeded)


async def test_nobody_to_run_a_step_is_said_by_name(place: Town) -> None:
    async with Mesh(slow, registry=place.registry, hosts=False, patience=0.2) as mesh:
        transaction = await mesh.stimulate("slow", {"seconds": 0.0})
        with pytest.raises(WorkflowFailed, match="no node runs 'slow/wait'") as failed:
            await transaction.result(timeout=PATIENCE)
        assert isinstance(failed.value.__cause__, Unroutable)
        assert [pulse.error for pulse in transaction.pulses() if pulse.kind == "tombstone"] == ["unroutable"]


async def test_a_node_that_appears_later_gets_what_waits(place: Town) -> None:
    async with Mesh(slow, registry=place.registry, hosts=False, patience=PATIENCE) as mesh:
        transaction = await mesh.stimulate("slow", {"seconds": 0.0})
        worker = await asyncio.to_thread(place.node, "slow")
        assert (await transaction.result(timeout=PATIENCE))["pid"] == worker.child.pid


async def test_one_of_a_group_gets_each_signal(place: Town) -> None:
    workers = [place.node("greet"), place.node("greet")]
    async with Mesh(signup, registry=place.registry) as mesh:
        for number in range(20):
            transaction = await mesh.stimulate("users.signup", {"name": "x", "email": f"x{number}@example.org"})
            await transaction.result(timeout=PATIENCE)
        await until(lambda: len(list(place.users.glob("greeted-*"))) == 20, "the greetings")
    greeted = {int(path.read_text()) for path in place.users.glob("greeted-*")}
    assert greeted == {worker.child.pid for worker in workers}


async def test_tcp_with_keys(place: Town) -> None:
    key = place.directory / "mesh.key"
    Curve.generate().save(key)
    options = {"endpoint": "tcp://127.0.0.1:*", "curve": str(key)}
    endpoint = f"ipc://{place.directory}/secured"

    with RegistryServer(endpoint, curve=Curve.load(key)):
        worker = place.node("slow", registry=endpoint, **options)
        async with Mesh(slow, registry=endpoint, hosts=False, **options) as mesh:
            assert mesh.node.endpoint.startswith("tcp://127.0.0.1:")
            transaction = await mesh.stimulate("slow", {"seconds": 0.0})
            assert (await transaction.result(timeout=PATIENCE))["pid"] == worker.child.pid
        worker.close()
