"""When the world misbehaves: files, directories, clocks and processes that hang."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import ConfigurationError
from mesh import Mesh
from mesh.cli import main
from registry import RegistryServer
from tests.conformance.claims import claim
from tests.e2e import test_fenced, test_store_file
from tests.e2e.processes import Town, town
from tests.e2e.support import finish, turns
from tests.e2e.test_damage import DAMAGES, damage, interrupted, orders
from tests.e2e.test_wall_clock import HOUR, WallClock, endless

SECTION = "When the world misbehaves"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pulses.db"


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


@claim(
    SECTION,
    "The journal's file is watched: once it was deleted, replaced, moved or overwritten under a running node, that "
    "takes nothing more, within a second, and says which file, and what to do.",
)
async def test_a_file_that_is_gone(tmp_path: Path) -> None:
    await test_store_file.test_within_a_second("deleted", tmp_path)


@claim(
    SECTION,
    "`doctor` looks through the whole journal, and names each transaction of which something is damaged; so does a "
    "node, in small steps beside its work.",
)
async def test_a_look_through_the_journal(sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    hurt, sound = await interrupted(sqlite, 2)
    damage(sqlite, hurt, DAMAGES["half a message"])
    assert await asyncio.to_thread(main, ["doctor", "--store", sqlite]) == 1
    said = capsys.readouterr().out.replace("\n", "")
    assert hurt in said and sound not in said


def modes_in(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


@claim(SECTION, "The journal, its companions and JSON lines are made for their owner alone: mode 0600.")
async def test_modes_of_files(sqlite: str, tmp_path: Path) -> None:
    async with Mesh(orders, store=sqlite, sinks=[f"jsonl:///{tmp_path}/pulses.jsonl"]) as mesh:
        await finish(mesh, orders, {"n": 1})
        modes = modes_in(tmp_path)
    assert modes.keys() >= {"pulses.db", "pulses.db-wal", "pulses.jsonl"} and set(modes.values()) == {0o600}


@claim(
    SECTION,
    "A directory that others may write is refused for sockets, by a registry and by a node alike, with the cure.",
)
async def test_a_directory_of_others(tmp_path: Path, place: Town) -> None:
    here = place.directory / "open"
    here.mkdir()
    here.chmod(0o777)
    with pytest.raises(ConfigurationError, match=rf"can be written by others.*chmod 700 {here}"):
        RegistryServer(f"ipc://{here}/r").start()
    with RegistryServer(f"ipc://{place.directory}/r"):
        mesh = Mesh(orders, registry=f"ipc://{place.directory}/r", endpoint=f"ipc://{here}/n")
        with pytest.raises(ConfigurationError, match=rf"can be written by others.*chmod 700 {here}"):
            await mesh.__aenter__()


@claim(
    SECTION,
    "A process that is there and hangs for longer than `hung_after` is taken over by a peer, which finishes what it "
    "had; when it wakes it writes nothing of that any more, and goes on under another name.",
)
async def test_a_process_that_hangs(place: Town) -> None:
    await test_fenced.test_a_loop_that_hangs_for_too_long_is_taken_over_and_goes_on(place)


@claim(
    SECTION,
    "Who is dead is judged by how long an observer saw nothing of it, never by a wall clock: one that is hours ahead "
    "takes nothing over from a process that lives.",
)
async def test_a_peer_whose_clock_is_ahead(sqlite: str) -> None:
    workflow, _ = endless()
    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        async with Mesh(workflow, store=sqlite, clock=WallClock(time.time_ns() + round(50 * HOUR * 1e9))) as peer:
            for _ in range(3):
                await peer.node.recovery.poll()
            assert transaction.id not in peer.node.supervisor.transactions
        with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"))) as file:
            assert file.execute("SELECT count(*) FROM owners WHERE fenced <> ''").fetchone() == (0,)
        assert mesh.about()["fenced"]["times"] == 0 and transaction.status == "running"
        assert await transaction.cancel() == "cancelled"
