"""What ended nowhere, and is not forgotten for that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from bitactor import Context, InvalidInput, Signal, Workflow, consumer
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes
from tests.conformance.workers import deadly
from tests.e2e.support import BOUND, finish, pass_time, tombstones, until

SECTION = "When the world misbehaves"


@claim(
    SECTION,
    "A signal that nobody takes until its deadline is listed as a dead letter, with its name and its value, whose "
    "secrets are masked; the transaction that emitted it stays `completed`.",
)
async def test_a_signal_that_nobody_takes(store: str) -> None:
    workflow, clock = Workflow("signs", ttl=4, deadline=5.0), FakeClock()

    @workflow.step
    async def signup(ctx: Context) -> None:
        await ctx.emit("user.created", {"id": 7, "key": SecretStr("s3cret")})

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await finish(mesh, workflow)
        assert await mesh.dead_letters() == []
        await pass_time(clock, 6.0, steps=5)
        await until(lambda: tombstones(transaction) == ["unroutable"])
        (letter,) = await mesh.dead_letters()
        assert (letter.transaction, letter.kind, letter.name) == (transaction.id, "signal", "user.created")
        assert (letter.reason, letter.step, transaction.status) == ("unroutable", "signup", "completed")
        assert letter.payload == {"id": 7, "key": SecretStr("s3cret")} and "s3cret" not in str(letter.payload)


@claim(
    SECTION,
    "A dead letter that is sent again reaches its consumers once, also if two ask for it at the same moment, and if "
    "the node dies that was asked; one that cannot be sent again is refused, with the reason.",
)
async def test_a_dead_letter_sent_again(tmp_path: Path) -> None:
    workflow, store, clock = Workflow("signs", ttl=4, deadline=5.0), f"sqlite:///{tmp_path}/pulses.db", FakeClock()
    heard: list[object] = []

    @workflow.step
    async def signup(ctx: Context) -> None:
        await ctx.emit("user.created", {"id": 7})

    @consumer("user.created")
    async def hear(signal: Signal) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await finish(mesh, workflow)
        await pass_time(clock, 6.0, steps=5)
        await until(lambda: tombstones(transaction) == ["unroutable"])
        (letter,) = await mesh.dead_letters()
        answers = await asyncio.gather(*(mesh.send_again(letter) for _ in range(2)), return_exceptions=True)
        assert [type(answer).__name__ for answer in answers] == ["Transaction", "InvalidInput"]
        with pytest.raises(InvalidInput, match="there is no dead letter"):
            await mesh.send_again(f"{transaction.id}-0")
        assert await mesh.dead_letters() == []
    async with Mesh(workflow, hear, store=store) as mesh:
        await until(lambda: heard)
        with pytest.raises(InvalidInput, match="sent again"):
            await mesh.send_again(letter)
    assert heard == [{"id": 7}]


@claim(
    SECTION,
    "A step of which workers die again and again is a dead letter `poison`, with its arguments and how often it was "
    "delivered, whatever becomes of its transaction.",
)
async def test_a_step_of_which_workers_die(tmp_path: Path) -> None:
    async with Mesh(deadly, processes=1) as mesh:
        transaction = await finish(mesh, deadly, {"directory": str(tmp_path), "times": 9})
        assert len([line for line in Notes(tmp_path).lines if line == "explode"]) == 3
        (letter,) = await mesh.dead_letters(workflow=deadly)
        assert (letter.kind, letter.name, letter.reason) == ("step", "deadly/explode", "poison")
        assert (letter.transaction, letter.deliveries) == (transaction.id, 3)
        assert letter.payload == {"directory": str(tmp_path), "times": 9}


@claim(SECTION, "An undo that failed is a dead letter as long as its transaction is `stuck`, with what it takes back.")
async def test_an_undo_that_failed(store: str) -> None:
    workflow, broken = Workflow("books", input={"seat": int}), [True]

    @workflow.step
    async def book(seat: int) -> str:
        return f"ticket {seat}"

    book.undo(lambda result: 1 / 0 if broken else None)

    @workflow.step(after=["book"])
    async def fail() -> None:
        raise ValueError("no")

    async with Mesh(workflow, store=store) as mesh:
        stuck = await finish(mesh, workflow, {"seat": 7})
        (letter,) = await mesh.dead_letters()
        assert (letter.kind, letter.name, letter.reason) == ("undo", "books/book", "stuck")
        assert "ZeroDivisionError" in letter.why and letter.payload == {"seat": 7, "result": "ticket 7"}
        broken.clear()
        await stuck.resume()
        assert await stuck.ended(BOUND) == "compensated" and await mesh.dead_letters() == []
