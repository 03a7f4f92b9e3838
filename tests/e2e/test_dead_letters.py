"""What ended nowhere, as a mesh lists it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bitactor import Context, InvalidInput, Workflow
from bitactor.errors import UnknownWorkflow
from bitactor.testing import FakeClock
from mesh import DeadLetter, Mesh
from tests.e2e.support import audit, finish, pass_time, tombstones, until
from tests.journal_damage import bodies


def emitting(*values: Any) -> Workflow:
    workflow = Workflow("emitting", ttl=4, deadline=5.0)

    @workflow.step
    async def signup(ctx: Context) -> None:
        for value in values:
            await ctx.emit("user.created", value)

    return workflow


def booking(broken: list[bool]) -> Workflow:
    workflow = Workflow("booking", input={"seat": int})

    @workflow.step
    async def book(seat: int) -> str:
        return f"ticket {seat}"

    book.undo(lambda result: 1 / 0 if broken else None)

    @workflow.step(after=["book"])
    async def fail() -> None:
        raise ValueError("no")

    return workflow


async def test_what_ended_nowhere_is_listed_with_name_and_payload(store: str) -> None:
    clock, broken = FakeClock(), [True]
    signs, books = emitting({"id": 1, "key": SecretStr("s3cret")}, 2, "three"), booking(broken)
    async with Mesh(signs, books, store=store, clock=clock) as mesh:
        signed = await finish(mesh, signs)
        assert await mesh.dead_letters() == []  # as long as somebody may come and take it
        await pass_time(clock, 6.0, steps=10)
        await until(lambda: tombstones(signed) == ["unroutable"] * 3)
        booked = await finish(mesh, books, {"seat": 7})
        assert (signed.status, booked.status) == ("completed", "stuck")
        letters = await mesh.dead_letters()
        assert [(letter.transaction, letter.kind, letter.name, letter.reason) for letter in letters] == [
            (booked.id, "undo", "booking/book", "stuck"),
            *[(signed.id, "signal", "user.created", "unroutable")] * 3,
        ]
        assert letters[0].payload == {"seat": 7, "result": "ticket 7"}
        values: list[Any] = [letter.payload for letter in letters[1:]]  # which of them died first, nobody knows
        assert all(value in values for value in (2, "three", {"id": 1, "key": SecretStr("s3cret")}))
        assert "s3cret" not in repr(letters)
        assert letters[1].step == "signup" and "nobody consumes" in letters[1].why
        assert await mesh.dead_letters(workflow=signs) == letters[1:]
        assert await mesh.dead_letters(workflow="nothing.of.this.name") == []
        for size in (1, 2, 3):
            pages: list[DeadLetter] = []
            while page := await mesh.dead_letters(limit=size, before=pages[-1].id if pages else None):
                assert len(page) <= size
                pages += page
            assert pages == letters
        broken.clear()
        await booked.resume()
        assert await booked.ended(30) == "compensated"
        assert await mesh.dead_letters() == letters[1:]  # its undo was made up for
        audit(booked)


async def test_what_makes_no_sense_is_refused_in_words() -> None:
    async with Mesh(emitting()) as mesh:
        for limit in (0, -1, True, "3", 1.5):
            with pytest.raises(InvalidInput, match="at least 1"):
                await mesh.dead_letters(limit=limit)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        for before in ("", "0" * 32, f"{'0' * 32}-", f"{'0' * 32}-1\n", f"{'g' * 32}-1", 7, b"x"):
            with pytest.raises(InvalidInput, match="the id of the last dead letter of the page before"):
                await mesh.dead_letters(before=before)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(UnknownWorkflow):
            await mesh.dead_letters(workflow=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_threads_list_them_too_also_where_nobody_declares_their_workflow(sqlite: str) -> None:
    """And a journal that cannot be read is one of them, and keeps those of others from nobody."""
    with Mesh(booking([True]), store=sqlite) as mesh:
        stuck = [mesh.stimulate("booking", {"seat": seat}) for seat in (1, 2)]
        assert [transaction.ended(30) for transaction in stuck] == ["stuck", "stuck"]
        letters = mesh.dead_letters()
        assert [letter.payload for letter in letters] == [{"seat": seat, "result": f"ticket {seat}"} for seat in (2, 1)]
    path = Path(sqlite.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as connection:
        bodies(b"\xc1")(connection, stuck[1].id)
    connection.close()
    with Mesh(emitting(), store=sqlite) as mesh:
        damaged, sound = mesh.dead_letters()
        assert (damaged.transaction, damaged.kind, damaged.name) == (stuck[1].id, "transaction", "booking")
        assert damaged.reason == "stuck" and "pulse 0" in damaged.why and damaged.payload == {}
        assert sound.payload == {"input.seat": 1, "result": "ticket 1"}
        assert mesh.dead_letters(before=damaged.id) == mesh.dead_letters(limit=5)[1:] == [sound]
