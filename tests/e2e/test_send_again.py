"""Dead letters that somebody has sent again: taken once, whoever asks, however often, from wherever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bitactor import Consumer, Context, InvalidInput, Signal, UnknownTransaction, Unroutable, Workflow, consumer
from bitactor.testing import FakeClock
from mesh import DeadLetter, Mesh
from tests.e2e.support import BOUND, audit, finish, pass_time, tombstones, until
from tests.e2e.test_dead_letters import booking, emitting

NAME = "user.created"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pulses.db"


class Heard:
    """What consumers of `user.created` were given, each in a group of its own."""

    def __init__(self) -> None:
        self.values: list[tuple[str, Any]] = []

    def by(self, group: str) -> Consumer:
        @consumer(NAME, group=group)
        async def hear(signal: Signal) -> None:
            self.values.append((group, signal.token))

        return hear


async def died(store: str, workflow: Workflow) -> list[DeadLetter]:
    """The dead letters of one run of a workflow that emits, the first emitted first."""
    clock = FakeClock()
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await finish(mesh, workflow)
        await pass_time(clock, 6.0, steps=5)
        await until(lambda: not mesh.node.store.reader().get(transaction.id).open)  # type: ignore[union-attr]
        return (await mesh.dead_letters())[::-1]


async def test_a_signal_is_taken_once_however_often_it_is_sent_again(sqlite: str) -> None:
    value = {"id": 7, "key": SecretStr("s3cret")}
    workflow, heard = emitting(value), Heard()
    (letter,) = await died(sqlite, workflow)
    async with Mesh(workflow, heard.by("mail"), store=sqlite) as mesh:
        found = await mesh.send_again(letter)
        assert (found.id, found.status) == (letter.transaction, "completed")
        assert await mesh.dead_letters() == []
        await until(lambda: not mesh.node.store.reader().get(letter.transaction).open)  # type: ignore[union-attr]
        with pytest.raises(InvalidInput, match="it was sent again, and taken"):
            await mesh.send_again(letter.id)
        (taken,) = await mesh.transactions(workflow=f"hear@{NAME}")
        assert (taken.parent, taken.root) == (letter.transaction, letter.transaction)
        await (await mesh.transaction(taken.transaction)).result(BOUND)
        assert heard.values == [("mail", value)]
        audit(await mesh.transaction(letter.transaction))
    async with Mesh(workflow, store=sqlite) as mesh:
        assert await mesh.dead_letters() == []


async def test_of_two_who_ask_at_once_one_is_refused(sqlite: str) -> None:
    """In one process, and in two nodes on one file."""
    workflow, heard = emitting(*range(20)), Heard()
    letters = await died(sqlite, workflow)
    assert len(letters) == 20
    async with Mesh(workflow, heard.by("mail"), store=sqlite) as one, Mesh(workflow, store=sqlite) as two:
        for letter, (first, second) in zip(letters, [(one, one), (one, two)] * 10, strict=True):
            answers = await asyncio.gather(first.send_again(letter), second.send_again(letter), return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, BaseException)]
            assert len(refused) == 1 and isinstance(refused[0], InvalidInput | Unroutable), answers
            await until(lambda: not one.about()["undelivered"] and not two.about()["undelivered"])
        await until(lambda: len(heard.values) >= 20)
        assert sorted(value for _, value in heard.values) == list(range(20))
        assert await one.dead_letters() == await two.dead_letters() == []


async def test_those_of_one_transaction_that_are_asked_at_once_take_one_reading_of_its_journal(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow, heard = emitting(*range(40)), Heard()
    letters = await died(sqlite, workflow)
    async with Mesh(workflow, heard.by("mail"), store=sqlite) as mesh:
        queries, reads = mesh.node.transactions.queries, list[str]()
        read = queries.pulses

        async def counted(transaction: str) -> Any:
            reads.append(transaction)
            return await read(transaction)

        monkeypatch.setattr(queries, "pulses", counted)
        asked = [
            asyncio.create_task(mesh.send_again(letter))
            for letter in (*letters[:30], letters[1], f"{letters[0].transaction}-0")
        ]
        await asyncio.sleep(0)
        asked[0].cancel()  # who began the turn; it goes on for the others
        answers = await asyncio.gather(*asked[1:], return_exceptions=True)
        assert {answer.id for answer in answers[:29]} == {letters[0].transaction}  # type: ignore[union-attr]
        assert "is being sent again at this moment" in str(answers[29]) and "there is no dead letter" in str(
            answers[30]
        )
        assert len(reads) == 2, "as it is taken up, and as it stands then"
        for letter in letters[30:]:
            await mesh.send_again(letter)
        assert len(reads) == 12, "what went on here is not folded anew"
        expected = {*range(40)} - {letters[0].payload}
        await until(lambda: {value for _, value in heard.values} >= expected)
        await until(lambda: mesh.about()["undelivered"] == 0)
        audit(await mesh.transaction(letters[0].transaction))
        assert len(heard.values) == len({value for _, value in heard.values})


async def test_a_group_that_took_it_before_does_not_begin_once_more(sqlite: str) -> None:
    """It was a dead letter for the other group's sake."""
    workflow, heard, clock = emitting(1), Heard(), FakeClock()

    @consumer(NAME, group="full")
    async def full(signal: Signal) -> None: ...

    async with Mesh(workflow, heard.by("mail"), full, store=sqlite, clock=clock) as mesh:
        receive, begin = mesh.node.intake.receive, asyncio.Event()

        def refusing(stimulus: Any, answer: Any) -> None:
            if stimulus.group != "full":
                receive(stimulus, answer)
            begin.set()

        mesh.node.intake.receive = refusing  # type: ignore[method-assign]
        transaction = await finish(mesh, workflow)
        await until(lambda: heard.values)
        await pass_time(clock, 6.0, steps=5)
        await until(lambda: tombstones(transaction) == ["unroutable"])
        mesh.node.intake.receive = receive  # type: ignore[method-assign]
        (letter,) = await mesh.dead_letters()
        assert "not taken by full" in letter.why
        await mesh.send_again(letter)
        await until(lambda: mesh.about()["undelivered"] == 0)
        assert {row.workflow for row in await mesh.transactions()} == {"emitting", f"hear@{NAME}", f"full@{NAME}"}
        assert len(await mesh.transactions()) == 3 and heard.values == [("mail", 1)]
        audit(await mesh.transaction(letter.transaction))


async def test_what_was_sent_again_survives_its_node(sqlite: str) -> None:
    """Nobody listened then; whoever opens the store brings it, although the deadline is long over."""
    workflow, heard = emitting(1), Heard()
    (letter,) = await died(sqlite, workflow)
    async with Mesh(workflow, store=sqlite) as mesh:
        await mesh.send_again(letter)
        assert mesh.about()["undelivered"] == 1
        with pytest.raises(InvalidInput, match="it was sent again, and is on its way"):
            await mesh.send_again(letter)
    async with Mesh(workflow, heard.by("mail"), store=sqlite) as mesh:
        await until(lambda: heard.values == [("mail", 1)])
        assert await mesh.dead_letters() == []


async def test_what_nobody_takes_again_is_a_dead_letter_again(store: str) -> None:
    workflow, clock = emitting(1), FakeClock()
    async with Mesh(workflow, store=store, clock=clock, delivery_timeout=60.0) as mesh:
        transaction = await finish(mesh, workflow)
        await pass_time(clock, 6.0, steps=5)
        (first,) = await until_letters(mesh)
        await mesh.send_again(first)
        assert await mesh.dead_letters() == [] and transaction.status == "completed"
        await pass_time(clock, 55.0, steps=5)
        assert mesh.about()["undelivered"] == 1, "the transaction's deadline does not count"
        await pass_time(clock, 6.0, steps=5)
        (second,) = await until_letters(mesh)
        assert second.seq > first.seq and second.payload == 1
        with pytest.raises(InvalidInput, match=f"nobody took it; that is dead letter {second.id}"):
            await mesh.send_again(first)
        audit(await mesh.transaction(transaction.id))


async def until_letters(mesh: Mesh) -> list[DeadLetter]:
    async with asyncio.timeout(BOUND):
        while not (found := await mesh.dead_letters()):  # noqa: ASYNC110 (the store is asked)
            await asyncio.sleep(0.001)
    return found


async def test_an_undo_is_tried_again_and_a_step_is_not(store: str) -> None:
    broken = [True]
    books = booking(broken)
    async with Mesh(books, emitting(), store=store) as mesh:
        stuck = await finish(mesh, books, {"seat": 7})
        (letter,) = await mesh.dead_letters()
        broken.clear()
        again = await mesh.send_again(letter)
        assert await again.ended(BOUND) == "compensated" and await mesh.dead_letters() == []
        with pytest.raises(InvalidInput, match="its transaction was resumed since, and is compensated"):
            await mesh.send_again(letter)
        for given in ("", stuck.id, f"{stuck.id}-", 7):
            with pytest.raises(InvalidInput, match="is no id of a dead letter"):
                await mesh.send_again(given)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidInput, match=f"there is no dead letter {stuck.id}-0"):
            await mesh.send_again(f"{stuck.id}-0")
        with pytest.raises(UnknownTransaction):
            await mesh.send_again(f"{'0' * 32}-0")


async def test_a_signal_of_what_was_taken_back_is_refused(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("regrets", ttl=4, deadline=5.0)

    @workflow.step
    async def signup(ctx: Context) -> None:
        await ctx.emit(NAME, 1)

    @signup.undo
    async def leave(result: None, ctx: Context) -> None:
        await ctx.emit("user.gone", 1)

    async with Mesh(workflow, store=store, clock=clock, delivery_timeout=60.0) as mesh:
        transaction = await finish(mesh, workflow)
        await pass_time(clock, 6.0, steps=5)
        (letter,) = await until_letters(mesh)
        assert await transaction.undo() == "compensated"
        with pytest.raises(InvalidInput, match="of a transaction that is compensated: what it tells was taken back"):
            await mesh.send_again(letter)
        await pass_time(clock, 61.0, steps=5)
        await until(lambda: tombstones(transaction) == ["unroutable"] * 2)
        undo, _ = await mesh.dead_letters()
        assert undo.name == "user.gone"
        assert (await mesh.send_again(undo)).id == transaction.id


def test_threads_send_again_too(sqlite: str) -> None:
    heard = Heard()
    workflow = emitting("x")
    (letter,) = asyncio.run(died(sqlite, workflow))
    with Mesh(workflow, heard.by("mail"), store=sqlite) as mesh:
        assert mesh.send_again(letter).id == letter.transaction
        with pytest.raises(InvalidInput, match="sent again"):
            mesh.send_again(letter)
        mesh.close()
    assert heard.values == [("mail", "x")]
