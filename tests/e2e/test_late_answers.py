"""Stores that answer later, in any order: what may happen between a question and its answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from bitactor import Context, Halt, Workflow, consumer
from bitactor.errors import BitActorError, DuplicateTransaction, InvalidInput, StaleOwner, StoreError
from bitactor.messages.codec import encode_token
from bitactor.messages.signal import Receipt, Signal, Stimulus
from bitactor.ports import Claim
from mesh import Mesh, Transaction
from mesh.stores import SqliteStore, register_store
from tests.amounts import amount
from tests.e2e.support import BOUND, audit, turns, until
from tests.extensions import LateAnswers, TardyStore

SHUT_AT_FIRST: dict[str, asyncio.Event] = {}
"""What a store holds back from the moment that it is made."""


class Gate(LateAnswers):
    """Questions, and answers, that wait until they are let through."""

    shut: dict[str, asyncio.Event]
    seen: Counter[str]
    """How many have come to a moment, since it was shut."""
    here: Counter[str]
    most: int
    """How many claims were under way at once."""

    def hold(self, moment: str) -> asyncio.Event:
        """Hold everything back at this moment, until the event is set."""
        self.seen[moment] = 0
        self.shut[moment] = asyncio.Event()
        return self.shut[moment]

    async def reached(self, moment: str, times: int = 1) -> None:
        """Wait until so many are, or were, at a moment."""
        await until(lambda: self.seen[moment] >= times, moment)

    @override
    async def pause(self, moment: str) -> None:
        self.seen[moment] += 1
        self.here[moment] += 1
        self.most = max(self.most, self.here["claim"] + self.here["claim answered"])
        try:
            if moment in self.shut:
                await self.shut[moment].wait()
            await super().pause(moment)
        finally:
            self.here[moment] -= 1


class GatedMemory(Gate, TardyStore): ...


class GatedFile(Gate, SqliteStore): ...


def _gated(kind: Callable[..., Gate], *arguments: Any, **options: Any) -> Gate:
    store = kind(*arguments, **options)
    store.shut, store.seen, store.here, store.most = dict(SHUT_AT_FIRST), Counter(), Counter(), 0
    return store


register_store("gated", lambda url, *, notify, **_: _gated(GatedMemory, notify))
register_store("gated-file", lambda url, **options: _gated(GatedFile, url.partition("://")[2], **options))


@pytest.fixture(params=["gated", "gated-file"])
def late(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store that answers late."""
    return "gated://" if request.param == "gated" else f"gated-file://{tmp_path}/pulses.db"


def gate(mesh: Mesh) -> Any:
    return mesh.node.store


def doubling() -> tuple[Workflow, list[int]]:
    workflow, runs = Workflow("doubling", input={"x": int}), list[int]()

    @workflow.step
    async def double(x: int) -> int:
        runs.append(x)
        return 2 * x

    return workflow, runs


def halting() -> tuple[Workflow, list[str]]:
    """Halts each time it runs, until its list of answers is empty."""
    workflow, answers = Workflow("halting"), ["look", "again"]

    @workflow.step
    async def ask() -> Any:
        return Halt(answers.pop(0)) if answers else "fine"

    @ask.undo
    async def forget() -> None: ...

    return workflow, answers


async def halted(mesh: Mesh) -> Transaction:
    tx = await mesh.stimulate("halting")
    assert await tx.ended(BOUND) == "halted"
    return tx


async def outcomes(*attempts: Any) -> list[Any]:
    async with asyncio.timeout(BOUND):
        return await asyncio.gather(*attempts, return_exceptions=True)


# Keys


async def test_two_hundred_at_once_with_twenty_keys_are_twenty(late: str) -> None:
    workflow, runs = doubling()
    async with Mesh(workflow, store=late) as mesh:
        begun = await outcomes(*(mesh.stimulate(workflow, {"x": n % 20}, key=f"k{n % 20}") for n in range(200)))
        ids = {(n % 20, tx.id) for n, tx in enumerate(begun)}
        assert len(ids) == 20
        assert await outcomes(*(tx.result(BOUND) for tx in begun)) == [2 * (n % 20) for n in range(200)]
        assert sorted(runs) == list(range(20)) and len(await mesh.transactions()) == 20
        assert mesh.node.about()["keyed"] == mesh.node.about()["running"] == 0
        audit(begun[0])


@pytest.mark.parametrize("seed", range(amount(quick=2, long=300)))
async def test_requests_in_any_order(seed: int, late: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a key, the same input or another, some of them cancelled."""
    workflow, runs = doubling()
    drawn = random.Random(seed)
    monkeypatch.setattr(LateAnswers, "turns", random.Random(seed))
    async with Mesh(workflow, store=late, max_in_flight=drawn.choice([2, 100]), patience=BOUND) as mesh:
        tasks: list[tuple[str, int, asyncio.Task[Transaction]]] = []
        for _ in range(30):
            key, x = drawn.choice(["", "a", "b", "c"]), drawn.choice([1, 1, 1, 2])
            tasks.append((key, x, asyncio.create_task(mesh.stimulate(workflow, {"x": x}, key=key or None))))
            for _ in range(drawn.randrange(3)):
                await asyncio.sleep(0)
            if not drawn.randrange(6):
                tasks[drawn.randrange(len(tasks))][2].cancel()
        answers = await outcomes(*(task for _, _, task in tasks))
        known: dict[str, str] = {}
        for (key, x, _), answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Transaction):
                assert await answer.result(BOUND) == 2 * x
                assert not key or known.setdefault(key, answer.id) == answer.id
            else:
                assert isinstance(answer, asyncio.CancelledError) or (key and isinstance(answer, DuplicateTransaction))
        await until(lambda: not mesh.node.supervisor.running_count)
        rows = await mesh.transactions(limit=1_000)
        assert len(runs) == len(rows) and all(row.status == "completed" for row in rows)
        assert len([row for row in rows if row.key]) == len({row.key for row in rows if row.key})


async def test_who_asks_without_a_key_asks_nothing(late: str) -> None:
    workflow, _ = doubling()
    async with Mesh(workflow, store=late) as mesh:
        store = gate(mesh)
        before = Counter(store.seen)
        tx = await mesh.stimulate(workflow, {"x": 1})
        assert await tx.result(BOUND) == 2
        asked = {moment for moment in store.seen - before if "claim" not in moment}
        assert asked == set()


async def test_a_caller_that_is_cancelled_has_begun_nothing(late: str) -> None:
    workflow, runs = doubling()
    async with Mesh(workflow, store=late) as mesh:
        go = gate(mesh).hold("find answered")
        asking = asyncio.create_task(mesh.stimulate(workflow, {"x": 1}, key="k"))
        await gate(mesh).reached("find answered")
        asking.cancel()
        go.set()
        assert [type(answer) for answer in await outcomes(asking)] == [asyncio.CancelledError]
        assert runs == [] and not await mesh.transactions()
        assert await (await mesh.stimulate(workflow, {"x": 2}, key="k")).result(BOUND) == 4


async def test_an_answer_that_is_stale_when_it_comes_is_refused_by_the_store(late: str) -> None:
    """The same request has begun and ended while the answer, that there is none, was on its way."""
    workflow, runs = doubling()
    async with Mesh(workflow, store=late) as mesh:
        go = gate(mesh).hold("find answered")
        asking = asyncio.create_task(mesh.stimulate(workflow, {"x": 1}, key="k"))
        await gate(mesh).reached("find answered")
        del gate(mesh).shut["find answered"]
        first = await mesh.stimulate(workflow, {"x": 1}, key="k")
        await first.result(BOUND)
        go.set()
        assert (await asking).id == first.id and runs == [1]


async def test_what_is_fenced_or_closed_when_the_answer_comes_begins_nothing(late: str) -> None:
    workflow, runs = doubling()
    async with Mesh(workflow, store=late) as mesh:
        go = gate(mesh).hold("find")
        asking = asyncio.create_task(mesh.stimulate(workflow, {"x": 1}, key="k"))
        await gate(mesh).reached("find")
        mesh.node.ownership.lost = "it is another's"
        go.set()
        assert "it is another's" in str((await outcomes(asking))[0])
        mesh.node.ownership.lost = ""
    assert runs == []


# Consumers


def hearing() -> tuple[Any, list[int], Stimulus]:
    heard: list[int] = []

    @consumer("told", group="all")
    async def hears(signal: Signal) -> None:
        heard.append(signal.token)

    return hears, heard, Stimulus("0" * 16 + ":0>all", "told", "all", encode_token(7), 5, None, "")


async def test_a_delivery_that_comes_again_while_it_is_looked_for_is_taken_once(late: str) -> None:
    hears, heard, delivery = hearing()
    receipts: list[Receipt] = []
    async with Mesh(hears, store=late) as mesh:
        go = gate(mesh).hold("find answered")
        for _ in range(3):
            mesh.node.intake.receive(delivery, receipts.append)
        await gate(mesh).reached("find answered", 3)
        asyncio.get_running_loop().call_soon(mesh.node.intake.receive, delivery, receipts.append)
        go.set()
        await until(lambda: len(receipts) == 4)
        (row,) = await mesh.transactions()
        assert {(receipt.transaction, receipt.error) for receipt in receipts} == {(row.transaction, "")}
        await until(lambda: heard == [7])


async def test_what_is_emitted_is_heard_once(late: str) -> None:
    hears, heard, _ = hearing()
    workflow = Workflow("telling")

    @workflow.step
    async def tell(ctx: Context) -> None:
        for number in range(20):
            await ctx.emit("told", number)

    async with Mesh(workflow, hears, store=late) as mesh:
        await (await mesh.stimulate(workflow)).result(BOUND)
        await until(lambda: len(heard) == 20 and not mesh.node.supervisor.running_count)
        assert sorted(heard) == list(range(20))


@pytest.mark.parametrize("fault", [StoreError("no"), ZeroDivisionError("a defect")])
async def test_a_store_that_cannot_say_refuses_a_delivery(
    fault: Exception, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears, heard, delivery = hearing()
    receipts: list[Receipt] = []

    async def broken(*_: str) -> str | None:
        raise fault

    async with Mesh(hears, store=late) as mesh:
        monkeypatch.setattr(mesh.node.store, "find", broken)
        mesh.node.intake.receive(delivery, receipts.append)
        await until(lambda: receipts)
        assert receipts[0].error == str(fault)
    assert heard == []


# Going on


@pytest.mark.parametrize("moment", ["pulses", "pulses answered"])
async def test_of_two_that_resume_at_once_one_does(moment: str, late: str) -> None:
    workflow, answers = halting()
    async with Mesh(workflow, store=late) as mesh:
        tx = await halted(mesh)
        answers.clear()
        other = await mesh.transaction(tx.id)
        go = gate(mesh).hold(moment)
        attempts = [asyncio.create_task(handle.resume()) for handle in (tx, other)]
        await gate(mesh).reached(moment, 2)
        go.set()
        done = await outcomes(*attempts)
        assert {type(one) for one in done} == {InvalidInput, type(None)}
        assert await tx.result(BOUND) == await other.result(BOUND) == "fine"
        audit(tx)


async def test_who_resumes_what_went_on_and_halted_again_meanwhile_resumes_that(late: str) -> None:
    workflow, answers = halting()
    async with Mesh(workflow, store=late) as mesh:
        tx = await halted(mesh)
        other = await mesh.transaction(tx.id)
        go = gate(mesh).hold("pulses answered")
        late_one = asyncio.create_task(other.resume())
        await gate(mesh).reached("pulses answered")
        del gate(mesh).shut["pulses answered"]
        await tx.resume()
        assert await tx.ended(BOUND) == "halted"
        assert answers == []
        go.set()
        await late_one
        assert await other.result(BOUND) == "fine"
        audit(other)


async def test_cancel_and_undo_at_once(late: str) -> None:
    workflow, _ = halting()
    doubles, _ = doubling()
    async with Mesh(workflow, doubles, store=late) as mesh:
        tx = await halted(mesh)
        assert await outcomes(tx.cancel(), tx.cancel(), (await mesh.transaction(tx.id)).cancel()) == ["cancelled"] * 3
        done = await mesh.stimulate(doubles, {"x": 1})
        await done.result(BOUND)
        first, second = await outcomes(done.undo(), (await mesh.transaction(done.id)).undo())
        assert {type(first), type(second)} == {str, InvalidInput}
        assert (await mesh.transaction(done.id)).status == "compensated"


async def test_who_is_cancelled_while_it_resumes_changes_nothing(late: str) -> None:
    workflow, answers = halting()
    async with Mesh(workflow, store=late) as mesh:
        tx = await halted(mesh)
        answers.clear()
        go = gate(mesh).hold("pulses answered")
        resuming = asyncio.create_task(tx.resume())
        await gate(mesh).reached("pulses answered")
        resuming.cancel()
        go.set()
        assert [type(answer) for answer in await outcomes(resuming)] == [asyncio.CancelledError]
        assert tx.status == "halted" and mesh.node.supervisor.running_count == 0
        await tx.resume()
        assert await tx.result(BOUND) == "fine"


# Closing


QUESTIONS: dict[str, tuple[str, Callable[[Mesh, Transaction], Any]]] = {
    "stimulate": ("find", lambda mesh, tx: mesh.stimulate("doubling", {"x": 1}, key="new")),
    "transaction": ("pulses", lambda mesh, tx: mesh.transaction(tx.id)),
    "journal": ("get", lambda mesh, tx: mesh.journal(tx.id)),
    "transactions": ("list", lambda mesh, tx: mesh.transactions()),
    "resume": ("pulses", lambda mesh, tx: tx.resume()),
    "cancel": ("pulses", lambda mesh, tx: tx.cancel()),
    "ended": ("get", lambda mesh, tx: tx.ended()),
}


@pytest.mark.parametrize("question", list(QUESTIONS))
@pytest.mark.parametrize("answered", ["", " answered"])
async def test_closing_while_the_store_is_asked(question: str, answered: str, late: str) -> None:
    """Whoever asked gets an answer, or an error of ours; nothing goes on."""
    halts, _ = halting()
    doubles, runs = doubling()
    moment, ask = QUESTIONS[question]
    async with Mesh(halts, doubles, store=late) as mesh:
        tx = await halted(mesh)
        store = gate(mesh)
        go = store.hold(moment + answered)
        asking = asyncio.create_task(ask(mesh, tx))
        await store.reached(moment + answered)
        await mesh.close(0)
        go.set()
        (answer,) = await outcomes(asking)
        assert not isinstance(answer, BaseException) or isinstance(answer, BitActorError), answer
        assert isinstance(answer, BitActorError) or question not in ("stimulate", "resume", "cancel")
        assert runs == [] and tx.status == "halted"
        assert (await mesh.transaction(tx.id)).status == "halted", "what is closed answers at once"
    assert mesh.state == "closed" and tx.pulses()


async def test_a_delivery_that_is_looked_for_when_its_node_closes_is_refused(late: str) -> None:
    hears, heard, delivery = hearing()
    receipts: list[Receipt] = []
    async with Mesh(hears, store=late) as mesh:
        gate(mesh).hold("find")
        mesh.node.intake.receive(delivery, receipts.append)
        await gate(mesh).reached("find")
        await mesh.close(0)
        await turns()
        assert [receipt.error for receipt in receipts] == ["this node stops"]
    assert heard == []


# Recovery


async def left_behind(url: str) -> str:
    """The id of a transaction that its mesh has left in the journal."""
    never = asyncio.Event()

    async def double(x: int) -> int:
        await never.wait()
        return 0

    waiting = Workflow("doubling", input={"x": int})
    waiting.step(double)
    async with Mesh(waiting, store=url) as mesh:
        tx = await mesh.stimulate(waiting, {"x": 3})
        await until(lambda: mesh.node.supervisor.running_count == 1)
        await mesh.close(0)
    return tx.id


@pytest.mark.parametrize("moment", ["claim", "claim answered", "pulses", "unclaimed"])
async def test_closing_while_what_was_left_behind_is_taken_over_loses_nothing(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{tmp_path}/pulses.db"
    transaction = await left_behind(f"sqlite:///{url}")
    workflow, runs = doubling()
    go = asyncio.Event()
    monkeypatch.setitem(SHUT_AT_FIRST, moment, go)
    mesh = Mesh(workflow, store=f"gated-file://{url}")
    opening = asyncio.create_task(mesh.__aenter__())
    await until(lambda: mesh.state == "open")
    await gate(mesh).reached(moment)
    closing = asyncio.create_task(mesh.close(0))
    await until(lambda: mesh.state in ("draining", "closed"))
    go.set()
    opened, _ = await outcomes(opening, closing)
    assert isinstance(opened, BitActorError)
    async with Mesh(workflow, store=f"sqlite:///{url}") as heir:
        assert await (await heir.transaction(transaction)).result(BOUND) == 6
    assert runs[-1] == 3


async def test_a_look_does_not_overlap_another_and_a_stopped_one_has_no_effect(tmp_path: Path) -> None:
    workflow, _ = doubling()
    async with Mesh(workflow, store=f"gated-file://{tmp_path}/pulses.db", lease=30.0) as mesh:
        store, recovery = gate(mesh), mesh.node.recovery
        go, _ = store.hold("claim answered"), store.hold("unclaimed")
        polls = [asyncio.create_task(recovery.poll()) for _ in range(3)]
        await store.reached("claim answered")
        await turns()
        assert store.seen["claim answered"] == store.most == 1
        recovery.stop()
        go.set()
        await outcomes(*polls)
        assert store.seen["claim answered"] == 1 and store.seen["unclaimed"] == 0, "it is not gone on with"
        assert recovery.failures == 0
        store.shut.clear()
        recovery.begin_again(mesh.node.ownership.owner)
        await store.reached("unclaimed answered", 2)


async def test_fenced_while_it_looks(tmp_path: Path) -> None:
    workflow, runs = doubling()
    async with Mesh(workflow, store=f"gated-file://{tmp_path}/pulses.db", lease=30.0) as mesh:
        store, node = gate(mesh), mesh.node
        store.hold("claim")
        node.recovery.begin_again(node.ownership.owner)
        await store.reached("claim")
        del store.shut["claim"]
        node.ownership.fenced(StaleOwner("it hung"))
        await until(lambda: not node.ownership.lost)
        await store.reached("unclaimed answered", 2)
        assert store.most == 1 and node.recovery.failures == 0
        assert await (await mesh.stimulate(workflow, {"x": 1}, key="k")).result(BOUND) == 2
    assert runs == [1]


async def test_a_question_that_is_cancelled_by_somebody_else_is_a_look_that_failed(tmp_path: Path) -> None:
    """The next one comes."""
    workflow, _ = doubling()
    async with Mesh(workflow, store=f"gated-file://{tmp_path}/pulses.db", lease=0.02) as mesh:
        store = gate(mesh)
        store.hold("claim")
        await store.reached("claim")
        (look,) = [task for task in asyncio.all_tasks() if task.get_name() == "recovery"]
        look.cancel()
        store.shut.clear()
        await store.reached("claim", 3)
        assert mesh.about()["recovery"]["failures"] == 1


async def test_what_begins_and_what_fails_while_it_is_reclaimed(late: str) -> None:
    """The one is not taken from us, and the other is reclaimed the next time."""
    workflow, runs = doubling()
    async with Mesh(workflow, store=late, lease=30.0) as mesh:
        node, store = mesh.node, gate(mesh)
        node.supervisor.healthy = False
        go = store.hold("reclaim")
        polling = asyncio.create_task(node.recovery.poll())
        await store.reached("reclaim")
        tx = await mesh.stimulate(workflow, {"x": 1})
        node.supervisor.failures += 1  # as if a write had failed now
        go.set()
        await polling
        assert await tx.result(BOUND) == 2 and runs == [1]
        row = store.reader().get(tx.id)
        assert row is not None and row.epoch == 0
        assert not node.supervisor.healthy, "what failed meanwhile is still to be reclaimed"


async def test_what_a_claim_has_read_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow, _ = doubling()
    async with Mesh(workflow, store=f"gated-file://{tmp_path}/pulses.db", lease=30.0) as mesh:
        store = gate(mesh)
        transaction = await left_behind(f"sqlite:///{tmp_path}/pulses.db")
        claim = store.claim

        async def claim_and_read(*shapes: Any) -> list[Claim]:
            claims = await claim(*shapes)
            return [claimed._replace(pulses=store.reader().pulses(claimed.transaction)) for claimed in claims]

        monkeypatch.setattr(store, "claim", claim_and_read)
        await mesh.node.recovery.poll()
        assert store.seen["pulses"] == 0
        assert await (await mesh.transaction(transaction)).result(BOUND) == 6
