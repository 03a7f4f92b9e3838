"""One transaction that cannot be read back is left alone, and said; the others go on."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import pytest

from bitactor import Workflow
from bitactor.errors import StoreError
from bitactor.ports import Claim, StoreFault
from mesh import Mesh
from mesh.cli import main
from mesh.ingress.http import application
from mesh.ingress.server import HttpServer
from mesh.stores import open_reader
from mesh.stores.read import SqliteQueries
from tests.e2e.support import until
from tests.e2e.test_cli import bitactor
from tests.journal_damage import AFTER, CAUSES, DATA, HOP, STEP, TTL, WORD, Damage, bodies, fields, numbers

BOUND = 30.0
GATE = asyncio.Event()

orders = Workflow("orders", input={"n": int}, ttl=3)


@orders.step
async def take(n: int) -> int:
    await GATE.wait()
    return n


@orders.step
async def ship(take: int) -> int:
    return take + 1


def statement(text: str) -> Damage:
    return lambda file, id: file.execute(text, (id,))


NO_TEXT = "CAST(x'ff' AS TEXT)"


def each(index: int, value: object) -> Damage:
    return fields(lambda pulses: [pulse.__setitem__(index, value) for pulse in pulses])


def second_word(index: int, value: str, **options: Any) -> Damage:
    return fields(lambda pulses: pulses[1][WORD].__setitem__(index, value), **options)


DAMAGED_TIMES = "UPDATE transactions SET created_ns = 'long ago', updated_ns = x'00' WHERE transaction_id = ?"
DAMAGED_OWNER = "INSERT INTO owners VALUES ('odd', 'x', 5, 'x', 'x', '', 1)"
DAMAGES: dict[str, Damage] = {
    "data of other fields": each(DATA, {"metadata": {b"k": 1}}),
    "an unhashable key": bodies(b"\x91\x9b\x00\xa0\x90\x01\x01\x00\xc0\xc0\xc0\xc0\x81\x91\x01\x01"),
    "no message at all": bodies(b"\xc1"),
    "half a message": bodies(b"\x91\x9b\x00"),
    "a message of other fields": bodies(msgpack.packb([[1, 2]])),
    "fields of other types": bodies(msgpack.packb([[5] * 11])),
    "nothing in a body": bodies(b""),
    "no pulses": numbers(),
    "no first pulse": numbers(1),
    "a hole": numbers(0, 6),
    "an unknown kind": second_word(0, "exploded"),
    "a step that is not there": second_word(STEP, "none"),
    "a text that is none": second_word(STEP, "@@", replace=(b"@@", b"\xff\xff")),
    "a number that is a text": each(TTL, "many"),
    "a row of another shape": statement("UPDATE transactions SET digest = 'other' WHERE transaction_id = ?"),
    "a shape that is no text": statement(
        "UPDATE transactions SET digest = CAST(x'ff' AS TEXT) WHERE transaction_id = ?"
    ),
    "open that is a text": statement("UPDATE transactions SET open = 'x' WHERE transaction_id = ?"),
    "open that is another number": statement("UPDATE transactions SET open = 3 WHERE transaction_id = ?"),
    "a name that is no text": statement(f"UPDATE transactions SET workflow = {NO_TEXT} WHERE transaction_id = ?"),
}


OF_THE_ROW = [name for name in DAMAGES if name.startswith(("a row", "a shape", "open", "a name"))]


def close_gate() -> None:
    """Let orders wait, on the loop of this test."""
    global GATE
    GATE = asyncio.Event()


async def interrupted(store: str, number: int) -> list[str]:
    """Transactions of a mesh that was stopped in the middle of them."""
    close_gate()
    async with Mesh(orders, store=store, drain=0) as mesh:
        begun = [await mesh.stimulate(orders, {"n": n}) for n in range(number)]
        await until(lambda: all(len(tx.pulses()) == 2 for tx in begun))
    GATE.set()
    return [tx.id for tx in begun]


def damage(store: str, transaction: str, how: Damage) -> None:
    with sqlite3.connect(store.removeprefix("sqlite:///")) as file:
        how(file, transaction)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pulses.db"


async def test_the_others_go_on(sqlite: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with one: it is parked, and named in the log; a look in the file says so too.  Those that no
    look for what is to be taken over finds are found beside the work."""
    monkeypatch.setattr("mesh.stores.threads.LOOK_INTERVAL", 0.005)
    begun = await interrupted(sqlite, 2 * len(DAMAGES))
    damaged = dict(zip(begun[::2], DAMAGES, strict=True))
    for transaction, name in damaged.items():
        damage(sqlite, transaction, DAMAGES[name])
    async with Mesh(orders, store=sqlite) as mesh:
        await until(lambda: mesh.about()["parked"].keys() == damaged.keys())
        for n, transaction in enumerate(begun):
            if transaction not in damaged:
                assert await (await mesh.transaction(transaction)).result(BOUND) == n + 1
        for transaction, why in mesh.about()["parked"].items():
            assert why and f"transaction {transaction} cannot go on here: {why}" in caplog.text
            with pytest.raises(StoreError):
                await (await mesh.transaction(transaction)).result(BOUND)
        assert mesh.about()["healthy"]
        assert await (await mesh.stimulate(orders, {"n": 7})).result(BOUND) == 8
    assert not [record for record in caplog.records if record.exc_info], "no defect"
    with open_reader(sqlite) as reader:
        assert len(reader.list(limit=1000)) == len(begun) + 1


async def test_a_damaged_row_of_an_owner_or_a_transaction_stops_nobody(sqlite: str) -> None:
    """Neither what a peer takes over, nor a list."""
    begun = await interrupted(sqlite, 2)
    damage(sqlite, begun[0], statement(DAMAGED_TIMES))
    with sqlite3.connect(sqlite.removeprefix("sqlite:///")) as file:
        file.execute(DAMAGED_OWNER)
    listed = command_line("list", "--store", sqlite, "--json")
    assert len(listed.stdout.splitlines()) == 2, listed.stderr
    async with Mesh(orders, store=sqlite) as mesh:
        for n, transaction in enumerate(begun):
            assert await (await mesh.transaction(transaction)).result(BOUND) == n + 1
        assert len(await mesh.transactions()) == 2 and not mesh.about()["recovery"]["failures"]


async def test_a_running_peer_looks_again(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that fails by a defect is logged and counted, and the next one comes."""
    looks = 0
    async with Mesh(orders, store=sqlite, lease=0.02) as mesh:
        claim = mesh.node.store.claim

        async def broken(*shapes: Mapping[str, str]) -> list[Claim]:
            nonlocal looks
            looks += 1
            if looks == 2:
                raise ZeroDivisionError("a defect")
            return await claim(*shapes)

        monkeypatch.setattr(mesh.node.store, "claim", broken)
        await until(lambda: mesh.about()["recovery"]["failures"] == 1 and looks > 3)


async def test_a_journal_that_is_damaged_while_it_is_waited_for(sqlite: str) -> None:
    """A transaction that cannot be read any more, of a mesh that goes on: its handle says so, no other is disturbed."""
    (transaction,) = await interrupted(sqlite, 1)
    async with Mesh(orders, store=sqlite) as mesh:
        assert await (await mesh.transaction(transaction)).result(BOUND) == 1
        damage(sqlite, transaction, DAMAGES["no message at all"])
        with pytest.raises(StoreError, match=f"transaction {transaction} cannot be read: pulse 0"):
            await mesh.transaction(transaction)
        assert await (await mesh.stimulate(orders, {"n": 7})).result(BOUND) == 8


async def test_a_transaction_that_is_given_up_is_listed(
    sqlite: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of ours in the middle of one parks it; it is not taken up again, and the others go on."""
    close_gate()
    async with Mesh(orders, store=sqlite) as mesh:
        hurt, sound = [await mesh.stimulate(orders, {"n": n}) for n in range(2)]
        saga = mesh.node.supervisor.transactions[hurt.id].saga
        monkeypatch.setattr(type(saga), "react", _react_but(saga, type(saga).react))
        GATE.set()
        assert await sound.result(BOUND) == 2
        await until(lambda: hurt.id in mesh.about()["parked"])
        assert mesh.about()["parked"][hurt.id] == "a defect" and mesh.about()["healthy"]
        assert [record for record in caplog.records if record.levelno == logging.ERROR and hurt.id in record.message]


def _react_but(one: object, react: Callable[..., object]) -> Callable[..., object]:
    def hurt(self: object, event: object, now_ns: int) -> object:
        if self is one:
            raise ZeroDivisionError("a defect")
        return react(self, event, now_ns)

    return hurt


async def test_what_goes_on_from_memory_is_off_the_list_when_it_has_settled(sqlite: str) -> None:
    close_gate()
    async with Mesh(orders, store=sqlite) as mesh:
        transaction = await mesh.stimulate(orders, {"n": 1})
        assert mesh.node.store.on_fault is not None
        mesh.node.store.on_fault(StoreFault("pulse 0 cannot be read", transaction.id))
        assert list(mesh.about()["parked"]) == [transaction.id]
        GATE.set()
        assert await transaction.result(BOUND) == 2
        assert not mesh.about()["parked"]


async def test_the_command_line_marks_what_is_parked(sqlite: str) -> None:
    """From the file alone, and over HTTP; as a table, and for machines."""
    hurt, sound = await interrupted(sqlite, 2)
    damage(sqlite, hurt, DAMAGES["no message at all"])
    from_file = command_line("list", "--store", sqlite, "--json")
    parked = {row["transaction"]: row["parked"] for row in map(json.loads, from_file.stdout.splitlines())}
    assert parked[sound] is None and "cannot be read" in parked[hurt]
    table = command_line("list", "--store", sqlite)
    assert f"{hurt} parked" in " ".join(table.stdout.split()) and f"{sound} running" in " ".join(table.stdout.split())
    assert f"{hurt} cannot go on where it is" in table.stderr
    server = HttpServer(Mesh(orders, store=sqlite), port=0)
    running = asyncio.ensure_future(server.run())
    await server.started.wait()
    over_http = await asyncio.to_thread(command_line, "list", "--http", server.url, "--json")
    server.stop()
    await running
    parked = {row["transaction"]: row["parked"] for row in map(json.loads, over_http.stdout.splitlines())}
    assert parked[sound] is None and "cannot be read" in parked[hurt]


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return bitactor(*arguments, cwd=Path.cwd())


UNREADABLE = DAMAGES.keys() - {"data of other fields", "an unknown kind", "a step that is not there"}
"""Those of which not even the pulses can be shown."""


@asynccontextmanager
async def serving(store: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the ingress of a mesh on that store, without a network."""
    mesh = Mesh(orders, store=store)
    async with mesh:
        transport = httpx2.ASGITransport(app=application(mesh))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def test_over_http_damage_is_named_and_nobody_is_asked_to_try_again(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await interrupted(sqlite, len(DAMAGES) + 1)
    damaged = dict(zip(begun, DAMAGES, strict=False))
    for transaction, name in damaged.items():
        damage(sqlite, transaction, DAMAGES[name])
    async with serving(sqlite) as http:
        for transaction, name in damaged.items():
            stands = await http.get(f"/transactions/{transaction}")
            assert stands.status_code == 200 and stands.json()["parked"], name
            pulses = await http.get(f"/transactions/{transaction}/pulses")
            assert pulses.status_code == (500 if name in UNREADABLE else 200), name
            cancelled = await http.post(f"/transactions/{transaction}/cancel")
            for answer in (pulses, cancelled) if name in UNREADABLE else (cancelled,):
                assert answer.json()["type"].endswith(":journal-damaged") and answer.status_code == 500
                assert "Retry-After" not in answer.headers and "pulses.db" not in answer.text
        assert "parked" not in (await http.get(f"/transactions/{begun[-1]}")).json()
        assert (await http.get(f"/transactions/{'0' * 32}")).status_code == 404

        def unreachable(self: object, *_: object, **__: object) -> list[object]:
            raise StoreError("the disk is gone")

        for question in ("get", "list", "pulses"):
            monkeypatch.setattr(SqliteQueries, question, unreachable)
        for path in (begun[0], f"{begun[0]}/pulses"):
            answer = await http.get(f"/transactions/{path}")
            assert answer.status_code == 503 and answer.headers["Retry-After"]


async def test_over_http_a_key_of_one_that_is_damaged(sqlite: str) -> None:
    """Also of one that has ended, which is parked nowhere."""
    async with serving(sqlite) as http:
        begun = await http.post("/stimuli/orders", json={"n": 1}, headers={"Idempotency-Key": "k"})
    transaction = begun.json()["transaction"]
    damage(sqlite, transaction, DAMAGES["half a message"])
    async with serving(sqlite) as http:
        again = await http.post("/stimuli/orders", json={"n": 1}, headers={"Idempotency-Key": "k"})
        assert again.status_code == 500 and again.json()["type"].endswith(":journal-damaged")
        stands = (await http.get(f"/transactions/{transaction}")).json()
        assert stands["status"] == "completed" and "pulse 0" in stands["parked"]


FIELDS: dict[str, Damage] = {
    "a hop that is a number": each(HOP, 7),
    "a step that is no text": second_word(STEP, "@@", replace=(b"@@", b"\xff\xff")),
    "a time that is a text": each(AFTER, "late"),
    "causes that are a number": each(CAUSES, 1),
}


@pytest.mark.parametrize("how", FIELDS)
async def test_a_trace_of_fields_of_other_types(sqlite: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    (transaction,) = await interrupted(sqlite, 1)
    damage(sqlite, transaction, FIELDS[how])
    assert await asyncio.to_thread(main, ["trace", transaction, "--store", sqlite]) == 1
    said = capsys.readouterr().err
    assert f"transaction {transaction} cannot be read: pulse 0" in said and "Traceback" not in said


@pytest.mark.parametrize("how", OF_THE_ROW)
async def test_of_a_damaged_row_the_pulses_are_shown_and_the_damage_is_named(
    sqlite: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (transaction,) = await interrupted(sqlite, 1)
    damage(sqlite, transaction, DAMAGES[how])
    for options in ([], ["--json"]):
        assert await asyncio.to_thread(main, ["trace", transaction, "--store", sqlite, *options]) == 1
        shown, said = capsys.readouterr()
        assert f"transaction {transaction}" in said and "cannot be read" in said and "Traceback" not in said
        assert "take" in shown and ("running" in shown or "accepted" in shown)


async def test_of_damaged_pulses_those_before_are_shown(sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    (transaction,) = await interrupted(sqlite, 1)
    damage(sqlite, transaction, DAMAGES["a hole"])
    assert await asyncio.to_thread(main, ["trace", transaction, "--store", sqlite, "--json"]) == 1
    shown, said = capsys.readouterr()
    assert '"accepted"' in shown and "pulse" in said and transaction in said
