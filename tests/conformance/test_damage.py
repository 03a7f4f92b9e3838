"""When the world misbehaves: what cannot be read back, and duties that raise."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import InvalidInput, StoreError
from mesh import Mesh
from mesh.cli import main
from tests.conformance.claims import claim
from tests.e2e.support import until
from tests.e2e.test_damage import BOUND, DAMAGES, damage, interrupted, orders
from tests.journal_damage import flip

SECTION = "When the world misbehaves"


@claim(
    SECTION,
    "One transaction that cannot be read back stops the recovery of no other: it is parked, with the reason, in "
    "`mesh.about()` and the log.",
)
async def test_one_that_cannot_be_read(sqlite: str, caplog: pytest.LogCaptureFixture) -> None:
    hurt, sound = await interrupted(sqlite, 2)
    damage(sqlite, hurt, DAMAGES["an unhashable key"])
    async with Mesh(orders, store=sqlite) as mesh:
        assert await (await mesh.transaction(sound)).result(BOUND) == 2
        assert list(mesh.about()["parked"]) == [hurt] and mesh.about()["healthy"]
    assert f"transaction {hurt} cannot go on here" in caplog.text


@claim(
    SECTION,
    "One bit that is another in what a journal keeps is found by `bitactor verify`, which names the transaction, and "
    "parks that one; of a sound journal it says one line.",
)
async def test_one_bit(sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    hurt, sound = await interrupted(sqlite, 2)
    assert await asyncio.to_thread(main, ["verify", "--store", sqlite]) == 0
    assert capsys.readouterr().out == "2 transactions, 4 pulses: sound\n"
    damage(sqlite, hurt, another_bit)
    assert await asyncio.to_thread(main, ["verify", "--store", sqlite]) == 1
    said = capsys.readouterr()
    assert hurt in said.out and sound not in said.out and "put a sound copy there" in said.err
    async with Mesh(orders, store=sqlite) as mesh:
        assert await (await mesh.transaction(sound)).result(BOUND) == 2
        assert list(mesh.about()["parked"]) == [hurt]


def another_bit(file: sqlite3.Connection, transaction: str) -> None:
    """In the last row of the log, or part of the archive, that has pulses of it."""
    name = bytes.fromhex(transaction)
    for row, body in file.execute("SELECT id, body FROM log ORDER BY id DESC").fetchall():
        if name in body:
            file.execute("UPDATE log SET body = ? WHERE id = ?", (flip(body, 8 * len(body) - 1), row))
            return
    raise AssertionError("nothing of it is in the log")


@claim(
    SECTION,
    "A journal that lacks a table, an index or a column, or whose last owner's number would be given again, is refused "
    "when a node opens it, with what is wrong and what to do; nothing in it is changed.",
)
async def test_a_journal_that_is_not_whole(sqlite: str) -> None:
    await interrupted(sqlite, 1)
    path = Path(sqlite.removeprefix("sqlite:///"))
    for statement, says in (
        ("UPDATE numbers SET last = 0", "a number would be given again"),
        ("DROP INDEX transactions_by_key", "index transactions_by_key is missing"),
    ):
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            file.execute(statement)
        was = content(path)
        with pytest.raises(StoreError, match=says) as raised:
            async with Mesh(orders, store=sqlite):
                pass
        assert str(path) in str(raised.value) and "put a sound copy there" in str(raised.value)
        assert content(path) == was


def content(path: Path) -> bytes:
    return path.read_bytes()


@claim(SECTION, "What a stimulus carries is proved readable when it is accepted.")
async def test_metadata_that_could_not_be_read(store: str) -> None:
    async with Mesh(orders, store=store) as mesh:
        with pytest.raises(InvalidInput, match=r"metadata: \(1, 2\) is the key of a mapping"):
            await mesh.stimulate(orders, {"n": 1}, metadata={"a": {(1, 2): 3}})


@claim(SECTION, "A periodic duty that raises is logged, counted, and comes again.")
async def test_a_duty_that_raises(
    sqlite: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Mesh(orders, store=sqlite, lease=0.02) as mesh:
        looks: list[str] = []

        def broken(*_: object) -> None:
            looks.append("a look")
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr(mesh.node.store, "claim", broken)
        await until(lambda: len(looks) > 2)
        assert mesh.about()["recovery"]["failures"] >= 2
    assert [record for record in caplog.records if record.levelno == logging.ERROR and record.exc_info]
