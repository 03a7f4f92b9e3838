"""Tokens that are too long for a frame: each lies in the file once, and who names one that cannot be read is parked
alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bitactor import DamagedJournal, Result, Workflow
from bitactor.messages.codec import decode_token, token_bytes
from mesh import Mesh
from mesh.stores import SqliteReader
from mesh.stores.journal.blobs import blob_hash
from mesh.stores.journal.verify import Fault
from tests.e2e.support import BOUND, spawned, until
from tests.journal_damage import flip

MIB = 1024 * 1024
STEPS = 20


LONG = {"bytes": bytes(range(256)) * (MIB // 256), "text": "0123456789abcdef" * (MIB // 16), "list": ["x" * MIB]}


def passing(value: Any) -> Workflow:
    """A workflow that makes a token of 1 MiB and passes it through 20 steps."""
    passed = Workflow("passed", ttl=STEPS + 2)
    passed.step(name="step0")(lambda: value)
    for number in range(1, STEPS):
        passed.step(name=f"step{number}", bind={"data": Result(f"step{number - 1}")})(lambda data: data)
    return passed


@pytest.mark.parametrize("kind", LONG)
async def test_a_long_token_that_is_passed_on_lies_in_the_file_once(kind: str, tmp_path: Path) -> None:
    path, value = tmp_path / "pulses.db", LONG[kind]
    async with Mesh(passing(value), store=f"sqlite:///{path}") as mesh:
        transaction = await mesh.stimulate("passed")
        assert await transaction.result(BOUND) == value
        pulses = mesh.node.store.reader().pulses(transaction.id)
    results = [pulse.token_out for pulse in pulses if pulse.kind == "completed"]
    assert len(results) == STEPS and all(decode_token(token) == value for token in results)
    with closing(sqlite3.connect(path)) as file:
        [(blobs, size)] = file.execute("SELECT count(*), sum(length(body)) FROM blobs")
        [(uses,)] = file.execute("SELECT count(*) FROM blob_uses")
    assert (blobs, uses) == (1, 1) and MIB <= size < MIB + 16
    assert path.stat().st_size < MIB * 1.2


def held(go: asyncio.Event) -> Workflow:
    """A workflow that makes a long token and then waits until it is let go on."""
    waits = Workflow("held", input={"letter": str}, ttl=5)
    waits.step(name="make")(lambda letter: letter * 100_000)

    @waits.step
    async def hold(make: str) -> int:
        await go.wait()
        return len(make)

    return waits


def missing(file: sqlite3.Connection, name: bytes) -> None:
    file.execute("DELETE FROM blobs WHERE hash = ?", (name,))


def damaged(file: sqlite3.Connection, name: bytes) -> None:
    [(body,)] = file.execute("SELECT body FROM blobs WHERE hash = ?", (name,))
    file.execute("UPDATE blobs SET body = ? WHERE hash = ?", (flip(body, 77_777), name))


def renamed(file: sqlite3.Connection, name: bytes) -> None:
    file.execute("UPDATE blobs SET hash = ? WHERE hash = ?", (flip(name, 5), name))


@pytest.mark.parametrize("damage", [missing, damaged, renamed])
async def test_who_names_a_blob_that_cannot_be_read_is_parked_and_nobody_else(
    damage: Callable[[sqlite3.Connection, bytes], None], tmp_path: Path
) -> None:
    """It is named, with the blob, by the node, by who verifies, and by who asks for its pulses."""
    path = tmp_path / "pulses.db"
    go = asyncio.Event()
    async with Mesh(held(go), store=f"sqlite:///{path}", drain=0) as mesh:
        ids = [(await mesh.stimulate("held", {"letter": letter})).id for letter in "aab"]
        for id in ids:
            await spawned(await mesh.transaction(id), "hold")
    name = blob_hash(token_bytes("a" * 100_000))
    with closing(sqlite3.connect(path)) as file, file:
        assert file.execute("SELECT count(*) FROM blobs").fetchone() == (2,)
        damage(file, name)
    go.set()
    async with Mesh(held(go), store=f"sqlite:///{path}") as mesh:
        assert await (await mesh.transaction(ids[2])).result(BOUND) == 100_000
        parked = await until(lambda: len(found := mesh.about()["parked"]) == 2 and found, "two are parked")
        assert set(parked) == set(ids[:2]) and all(f"blob {name.hex()}" in why for why in parked.values())
        with pytest.raises(DamagedJournal, match=f"blob {name.hex()}"):
            await mesh.transaction(ids[0])
        with SqliteReader(path) as reader:
            faults = [found for found in reader.verify() if isinstance(found, Fault) and found.transaction]
            assert {fault.transaction for fault in faults} == set(ids[:2])
            assert all(fault.wanted and f"blob {name.hex()}" in fault.why for fault in faults)
        again = await mesh.stimulate("held", {"letter": "a"})
        assert await again.result(BOUND) == 100_000, "who names the same later has it"
        assert not [found for found in SqliteReader(path).verify() if isinstance(found, Fault)]
