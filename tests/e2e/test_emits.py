"""Signals that hops emit, and who gets them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from bitactor import Backoff, Context, Continue, Retry, Workflow, consumer
from bitactor.errors import BitActorError, DefinitionError, DuplicateName, InvalidOutcome, SignalTooLarge
from bitactor.testing import FakeClock, run_workflow
from mesh import Mesh
from registry import LocalRegistry
from tests.e2e import process_steps
from tests.e2e.support import BOUND, audit, finish, pass_time, pulse_lines, tombstones, turns, until


def emitting(name: str, signal: str, *values: Any, **options: Any) -> Workflow:
    workflow = Workflow(name, ttl=8, **options)

    @workflow.step
    async def emits(ctx: Context) -> None:
        for value in values:
            await ctx.emit(signal, value)

    return workflow


async def test_delivered_after_commit_only(store: str) -> None:
    workflow = Workflow("commits", ttl=2)
    go, heard = asyncio.Event(), []

    @workflow.step
    async def emits(ctx: Context) -> None:
        await ctx.emit("news", 1)
        await go.wait()

    @consumer("news")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, listen, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "spawned emits" in pulse_lines(tx))
        await turns(50)
        assert heard == []
        go.set()
        await until(lambda: heard)
        await until(lambda: "emitted" in pulse_lines(tx))
        audit(tx)


async def test_nothing_is_sent_by_a_hop_that_fails(store: str) -> None:
    workflow = Workflow("fails", ttl=2)
    heard: list[Any] = []

    @workflow.step(retries=1)
    async def emits(ctx: Context, attempt: int) -> Any:
        await ctx.emit("news", attempt)
        if attempt == 1:
            raise ValueError
        return Retry(after=0)

    @consumer("news")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, listen, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated"
        await turns(50)
    assert heard == []


async def test_an_attempts_signals_are_its_own(store: str) -> None:
    workflow = Workflow("again", ttl=2)
    heard: list[Any] = []

    @workflow.step(retries=2)
    async def emits(ctx: Context, attempt: int) -> None:
        await ctx.emit("news", attempt)
        if attempt < 3:
            raise ValueError

    @consumer("news")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, listen, store=store) as mesh:
        await finish(mesh, workflow)
        await until(lambda: heard)
    assert heard == [3]


async def test_from_every_place_and_from_undo_and_compensate(store: str) -> None:
    workflow = Workflow("places", ttl=3)
    heard: list[str] = []

    @workflow.step
    async def on_loop(ctx: Context) -> int:
        await ctx.emit("news", "loop")
        return 1

    @on_loop.undo
    def unloop(result: int, ctx: Context) -> None:
        ctx.emit_later("news", "undo")

    @workflow.step
    def in_thread(on_loop: int, ctx: Context) -> None:
        ctx.emit_later("news", "thread")

    @workflow.step(spawn="inline")
    def inline(on_loop: int, ctx: Context) -> None:
        ctx.emit_later("news", "inline")

    @workflow.step
    async def mends(on_loop: int) -> None:
        raise OSError

    @mends.compensate
    async def mend(error: Exception, ctx: Context) -> Continue:
        await ctx.emit("news", "compensate")
        return Continue(1)

    @workflow.step
    async def breaks(in_thread: None, inline: None, mends: Any) -> None:
        raise ValueError

    @consumer("news")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, listen, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated"
        await until(lambda: len(heard) == 5)
        await until(lambda: pulse_lines(tx).count("emitted") == 5)
        audit(tx)
    assert sorted(heard) == ["compensate", "inline", "loop", "thread", "undo"]


async def test_what_an_undo_emits_is_heard_although_time_is_up(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("time is up", ttl=2, deadline=5.0, grace=1.0)
    heard: list[Any] = []

    @workflow.step
    async def made() -> int:
        return 1

    @made.undo
    async def unmake(result: int, ctx: Context) -> None:
        await ctx.emit("unmade", result)

    @workflow.step
    async def waits(made: int) -> None:
        await asyncio.Event().wait()

    @consumer("unmade")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, listen, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "spawned waits" in pulse_lines(tx))
        await turns()
        await pass_time(clock, 6)
        assert await tx.ended(BOUND) == "compensated"
        await pass_time(clock, 1)
        await until(lambda: heard)
        assert "unroutable" not in tombstones(tx)
        audit(tx)


async def test_one_of_a_group_gets_each_and_each_group_gets_all(store: str) -> None:
    heard: list[tuple[str, int]] = []

    @consumer("news", group="alpha")
    async def first(signal: Any) -> None:
        heard.append(("alpha", signal.token))

    @consumer("news", group="odd@@name")
    async def second(signal: Any) -> None:
        heard.append(("odd", signal.token))

    @consumer("news", broadcast=True)
    async def everybody(signal: Any) -> None:
        heard.append(("everybody", signal.token))

    workflow = emitting("many", "news", *range(10))
    async with Mesh(workflow, first, second, everybody, store=store) as mesh:
        tx = await finish(mesh, workflow)
        await until(lambda: pulse_lines(tx).count("emitted") == 10)
        await until(lambda: len(heard) == 30)
        await turns()
        assert Counter(heard) == Counter(
            (name, number) for name in ("alpha", "odd", "everybody") for number in range(10)
        )
        receivers = [pulse.data["receivers"] for pulse in tx.pulses() if pulse.kind == "emitted" and pulse.data]
        assert all(len(each) == 3 for each in receivers)
        audit(tx)


@pytest.mark.parametrize(
    "said",
    [
        {}, {"groups": 5}, {"groups": "ab"}, {"groups": [5]}, {"groups": [["alone"]]}, {"groups": None},
        {"groups": [[3, False], [None, True]]}, {"groups": [["", False], {"a": 1}]}, {"groups": {"a": False}},
    ],
    ids=str,
)  # fmt: skip
async def test_what_another_node_says_wrongly_of_its_consumers_harms_no_emitter(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    made: list[LocalRegistry] = []

    def with_a_stranger(holder: str) -> LocalRegistry:
        registry = LocalRegistry(holder)
        stranger = registry.peer("stranger")
        stranger.start()
        stranger.register("signal:news", said)
        made.append(stranger)
        return registry

    monkeypatch.setattr("mesh.runtime.node.LocalRegistry", with_a_stranger)
    heard: list[int] = []

    @consumer("news")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    workflow = emitting("bears", "news", 1)
    async with Mesh(workflow, listen) as mesh:
        tx = await mesh.stimulate(workflow)
        assert await tx.result() is None
        await until(lambda: heard == [1] and "emitted" in pulse_lines(tx))
        audit(tx)
    made[0].close()


def test_two_consumers_of_one_group_in_one_mesh_are_refused() -> None:
    @consumer("news", group="same")
    async def first(signal: Any) -> None: ...

    @consumer("news", group="same")
    async def second(signal: Any) -> None: ...

    with pytest.raises((DuplicateName, DefinitionError), match="group"):
        Mesh(first, second)


async def test_concurrency_is_respected(store: str) -> None:
    running, most, done = 0, 0, []

    @consumer("work", concurrency=3)
    async def worker(signal: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        if signal.token % 7 == 0:
            raise ValueError("every seventh fails, and gives its place back")
        done.append(signal.token)

    workflow = emitting("much", "work", *range(50))
    async with Mesh(workflow, worker, store=store) as mesh:
        await finish(mesh, workflow)
        await until(lambda: len(done) == 42)
        await until(lambda: not mesh.node.supervisor.running_count)
    assert most == 3


async def test_concurrency_holds_over_retries_and_a_cancelled_one_gives_its_turn_up(store: str) -> None:
    go, begun = asyncio.Event(), []

    @consumer("work", concurrency=1)
    async def worker(signal: Any) -> None:
        begun.append(signal.token)
        await go.wait()

    workflow = emitting("three", "work", 1, 2, 3)
    async with Mesh(workflow, worker, store=store) as mesh:
        tx = await finish(mesh, workflow)
        await until(lambda: pulse_lines(tx).count("emitted") == 3)
        receivers = [pulse.data["receivers"][0] for pulse in tx.pulses() if pulse.kind == "emitted" and pulse.data]
        await until(lambda: begun == [1])
        second = await mesh.transaction(receivers[1])
        assert second.status == "running"
        assert await second.cancel() == "cancelled"
        go.set()
        await until(lambda: begun == [1, 3])
        third = await mesh.transaction(receivers[2])
        assert await third.ended(BOUND) == "completed"


async def test_nobody_listens_until_the_deadline(store: str, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    workflow = emitting("unheard", "nobody.listens", 1, deadline=5.0)
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "completed"
        await pass_time(clock, 4.8, steps=10)
        assert tombstones(tx) == [] and mesh.node.about()["undelivered"] == 1
        assert "unroutable" not in caplog.text
        await pass_time(clock, 1.5, steps=5)
        await until(lambda: tombstones(tx) == ["unroutable"])
        (warned,) = [record for record in caplog.records if record.name == "bitactor.emissions"]
        assert tx.id in warned.getMessage() and "nobody consumes 'nobody.listens'" in warned.getMessage()
        grave = tx.pulses()[-1]
        assert grave.data and grave.data["name"] == "nobody.listens" and "nobody consumes" in grave.data["why"]
        assert mesh.node.about()["undelivered"] == 0
        row = mesh.node.store.reader().get(tx.id)
        assert row and not row.open
        assert tx.status == "completed"
        audit(tx)


async def test_a_raising_consumer_is_tried_again(store: str) -> None:
    attempts: list[int] = []

    @consumer("news", retries=2, backoff=lambda error: 0.0)
    async def listen(signal: Any, attempt: int) -> None:
        attempts.append(attempt)
        if attempt < 3:
            raise ValueError

    workflow = emitting("tried", "news", 1)
    async with Mesh(workflow, listen, store=store) as mesh:
        tx = await finish(mesh, workflow)
        await until(lambda: "emitted" in pulse_lines(tx))
        child = await mesh.transaction(tx.pulses()[-1].data["receivers"][0])  # type: ignore[index]
        assert await child.ended(BOUND) == "completed"
        assert attempts == [1, 2, 3]
        audit(child)


async def test_a_consumer_that_fails_for_good_does_not_touch_its_parent(store: str) -> None:
    @consumer("news")
    async def listen(signal: Any) -> None:
        raise SystemExit(1)

    workflow = emitting("parent", "news", 1)
    async with Mesh(workflow, listen, store=store) as mesh:
        tx = await finish(mesh, workflow)
        await until(lambda: "emitted" in pulse_lines(tx))
        child = await mesh.transaction(tx.pulses()[-1].data["receivers"][0])  # type: ignore[index]
        assert await child.ended(BOUND) == "compensated"
        assert tx.status == "completed"
        first = child.pulses()[0]
        assert first.root == tx.id and first.data and first.data["parent"] == tx.id


async def test_a_slow_consumer_has_what_is_left_of_the_deadline(store: str) -> None:
    clock = FakeClock()
    left: list[Any] = []

    @consumer("news")
    async def listen(signal: Any, ctx: Context) -> None:
        left.append(ctx.deadline_left)
        await asyncio.Event().wait()

    workflow = emitting("hurried", "news", 1, deadline=5.0)
    async with Mesh(workflow, listen, store=store, clock=clock) as mesh:
        tx = await finish(mesh, workflow)
        await until(lambda: left and "emitted" in pulse_lines(tx))
        child = await mesh.transaction(tx.pulses()[-1].data["receivers"][0])  # type: ignore[index]
        await pass_time(clock, 5.1)
        assert await child.ended(BOUND) == "compensated"
        assert left == [5.0]
        assert tombstones(child) == ["deadline_exceeded"]


async def test_what_cannot_be_emitted(store: str) -> None:
    workflow = Workflow("odd", input={"case": int}, ttl=2)

    @workflow.step
    async def emits(case: int, ctx: Context) -> None:
        odd: list[tuple[Any, Any]] = [
            ("news", object()),
            ("", 1),
            (None, 1),
            ("news", "\ud800"),
            ("\ud800", 1),
            ("x" * 100_000, 1),
        ]
        name, value = odd[case]
        await ctx.emit(name, value)

    async with Mesh(workflow, store=store) as mesh:
        for case in range(6):
            tx = await finish(mesh, workflow, {"case": case})
            assert tx.status == "compensated", case
            assert isinstance(tx.errors()[0], BitActorError)
        assert mesh.node.about()["undelivered"] == 0


class Gone:
    """A value that raises when it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit("gone")


def emits_in(role: str, value: Any) -> Workflow:
    """A workflow whose step `it` emits a value in that role, at its second attempt where there are any."""
    workflow = Workflow("emitting", ttl=9)

    def emits(ctx: Context, attempt: int) -> int:
        if attempt == 1 and role not in ("compensate", "undo"):
            raise OSError
        ctx.emit_later("news", value)
        return 1

    async def emits_on_loop(ctx: Context, attempt: int) -> int:
        await ctx.emit("news", emits(ctx, attempt) and value)
        return 1

    if role == "loop":
        workflow.step(name="it", retries=1, backoff=Backoff(initial=0.0))(emits_on_loop)
    elif role == "compensate":
        workflow.step(name="it", spawn="inline")(lambda: 1 / 0).compensate(emits)
    elif role == "undo":
        workflow.step(name="it", spawn="inline")(lambda: 1).undo(emits, retries=0)
        workflow.flunk("end", "{it}")
    else:
        workflow.step(name="it", spawn=role, retries=1, backoff=Backoff(initial=0.0))(emits)
    return workflow


@pytest.mark.parametrize(
    "value", [object(), {1: Gone()}, "x" * 5_000_000, "\ud800"], ids=["object", "gone", "long", "half"]
)
@pytest.mark.parametrize("role", ["inline", "loop", "thread", "compensate", "undo"])
async def test_a_value_that_cannot_be_emitted_is_named(role: str, value: Any) -> None:
    """Its error names workflow, step, attempt and signal."""
    workflow = emits_in(role, value)
    async with Mesh(workflow) as mesh:
        error = (await finish(mesh, workflow)).errors()[-1]
    where = {"compensate": "'emitting/it', attempt 1", "undo": "undo of 'emitting/it', attempt 1"}
    place = where.get(role, "'emitting/it', attempt 2")
    assert type(error) in (InvalidOutcome, SignalTooLarge)
    assert str(error).startswith(f"the signal 'news' that {place}, emits: ")
    assert type(error.__cause__) is type(error)


async def test_and_in_a_process_by_a_consumer_and_without_a_mesh() -> None:
    workflow = Workflow("tells", ttl=2)
    workflow.step(name="it", spawn="inline")(lambda ctx: ctx.emit_later("news", 1))

    @consumer("news")
    def passes_on(signal: Any, ctx: Context) -> None:
        ctx.emit_later("more news", object())

    async with Mesh(workflow, passes_on, process_steps.emits_what_cannot_be, processes=1) as mesh:
        tx = await finish(mesh, process_steps.emits_what_cannot_be, {"value": 1})
        assert "the signal 'news' that 'emits.process/it', attempt 1, emits: a object" in str(tx.errors()[0])
        await finish(mesh, workflow)
        async with asyncio.timeout(BOUND):
            while not (rows := await mesh.transactions(workflow=passes_on.name, status="compensated")):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        told = str((await mesh.transaction(rows[0].transaction)).errors())
    assert f"the signal 'more news' that '{passes_on.name}/" in told and "attempt 1, emits: a object cannot" in told
    trace = run_workflow(emits_in("inline", object()))
    assert "the signal 'news' that 'emitting/it', attempt 2, emits: a object cannot be carried" in str(trace.errors[-1])


async def test_a_chain_of_consumers_is_drained_at_the_end(store: str) -> None:
    """Closing waits for what its own consumers still have to do, and not for a timeout."""
    heard: list[str] = []

    @consumer("one")
    async def one(signal: Any, ctx: Context) -> None:
        await asyncio.sleep(0.01)
        heard.append("one")
        await ctx.emit("two")

    @consumer("two")
    async def two(signal: Any, ctx: Context) -> None:
        await asyncio.sleep(0.01)
        heard.append("two")
        await ctx.emit("three")

    @consumer("three")
    async def three(signal: Any) -> None:
        heard.append("three")

    workflow = emitting("chained", "one", 1)
    loop = asyncio.get_running_loop()
    async with Mesh(workflow, one, two, three, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await tx.result(BOUND)
        before = loop.time()
    assert heard == ["one", "two", "three"]
    assert loop.time() - before < 5


async def test_undelivered_is_offered_again_after_a_restart(sqlite: str) -> None:
    workflow = emitting("left over", "later", 17)
    heard: list[Any] = []

    @consumer("later")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, store=sqlite, drain=0) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "completed"
    async with Mesh(workflow, listen, store=sqlite) as mesh:
        await until(lambda: heard == [17])
        again = await mesh.transaction(tx.id)
        await until(lambda: "emitted" in pulse_lines(again))
        audit(again)


async def test_an_accepted_signal_is_accepted_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same delivery twice is one transaction: at least once delivered, once accepted."""
    heard: list[Any] = []

    @consumer("news")
    async def listen(signal: Any) -> None:
        heard.append(signal.token)

    workflow = emitting("repeated", "news", 1)
    async with Mesh(workflow, listen, store=store) as mesh:
        node = mesh.node
        sent: list[Any] = []
        receive = node.intake.receive

        def twice(stimulus: Any, answer: Any) -> None:
            sent.append(stimulus)
            receive(stimulus, answer)
            receive(stimulus, answer)

        monkeypatch.setattr(node.intake, "receive", twice)
        await finish(mesh, workflow)
        await until(lambda: heard)
        await until(lambda: not node.supervisor.running_count)
        receive(sent[0], node.emissions.on_receipt)
        await turns(50)
        assert heard == [1]
        assert len(node.store.reader().list()) == 2
