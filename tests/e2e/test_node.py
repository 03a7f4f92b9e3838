"""What a node does about trouble: another release's transactions, a journal that cannot be written, workers that keep
dying."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from bitactor import Context, Halt, Signal, Workflow, consumer
from bitactor.errors import BitActorError, InvalidInput, StoreError, UnknownWorkflow, Unroutable, WorkflowFailed
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Stimulus
from bitactor.ports import Sink
from mesh import Mesh
from mesh.runtime.node import Node
from mesh.runtime.ports import Network
from mesh.runtime.recovery import Recovery
from mesh.runtime.settings import settings
from mesh.sinks import JsonlSink
from mesh.spawners.process import spawner as process
from registry import Entry, LocalRegistry, Notice
from tests.e2e.process_dying import dying
from tests.e2e.processes import town
from tests.e2e.support import BOUND, audit, chain, pulse_lines, until
from tests.store_faults import Disk

ROOT = Path(__file__).parents[2]


def release(number: int, answers: list[Any]) -> Workflow:
    """`ask` gives what `answers` has next; the second release has one more step."""
    workflow = Workflow("released", ttl=2)

    @workflow.step
    async def ask() -> Any:
        answer = answers.pop(0)
        if answer == "wait":
            await asyncio.Event().wait()
        return answer

    if number == 2:

        @workflow.step
        async def then(ask: str) -> str:
            return ask + " by the second"

    return workflow


# Releases


async def test_another_release_leaves_to_the_old_one_what_that_began(
    sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Mesh(release(1, ["wait"]), store=sqlite, drain=0) as old:
        begun = await old.stimulate("released")
    async with Mesh(release(2, ["new"]), store=sqlite, lease=0.1) as new:
        assert "changed" in new.node.about()["parked"][begun.id]
        assert begun.id in caplog.text
        assert await (await new.stimulate("released")).result(BOUND) == "new by the second"
        async with Mesh(release(1, ["old"]), store=sqlite) as again:
            assert await (await again.transaction(begun.id)).result(BOUND) == "old"
        await until(lambda: not new.node.about()["parked"])
    said = [
        record for record in caplog.records if record.levelno == logging.ERROR and "cannot go on here" in record.message
    ]
    assert len(said) == 1, "once, however often it looked"


async def test_a_halted_transaction_waits_for_its_own_release(sqlite: str) -> None:
    async with Mesh(release(1, [Halt("look")]), store=sqlite) as old:
        tx = await old.stimulate("released")
        assert await tx.ended(BOUND) == "halted"
    async with Mesh(release(2, []), store=sqlite) as new:
        found = await new.transaction(tx.id)
        for attempt in (found.resume, found.cancel):
            with pytest.raises(
                Unroutable, match=r"has changed since it began; finish it with the release that began it"
            ):
                await attempt()
        assert found.status == "halted" and (await new.transactions(status="halted"))[0].transaction == tx.id
    async with Mesh(release(1, ["fine"]), store=sqlite) as old:
        found = await old.transaction(tx.id)
        await found.resume()
        assert await found.result(BOUND) == "fine"


async def test_what_cannot_even_be_read_here_says_so(sqlite: str) -> None:
    async with Mesh(release(2, ["old"]), store=sqlite) as old:
        tx = await old.stimulate("released")
        await tx.ended(BOUND)
    async with Mesh(release(1, []), store=sqlite) as new:
        with pytest.raises(StoreError, match="has changed since it began"):
            await new.transaction(tx.id)


# Waiting for others


async def test_waiting_ends_when_the_mesh_does(sqlite: str) -> None:
    async with Mesh(release(1, ["wait"]), store=sqlite, drain=0) as one:
        tx = await one.stimulate("released")
        async with Mesh(release(1, []), store=sqlite) as other:
            waiting = asyncio.ensure_future((await other.transaction(tx.id)).ended())
            await asyncio.sleep(0)
        with pytest.raises(StoreError):
            await waiting


async def test_waiting_goes_on_through_a_take_over(sqlite: str) -> None:
    """The process that ran it closes; this one takes it over, and its waiter gets the result."""
    async with Mesh(release(1, ["taken"]), store=sqlite, lease=0.1) as heir:
        async with Mesh(release(1, ["wait"]), store=sqlite, drain=0) as one:
            tx = await one.stimulate("released")
            waiting = asyncio.ensure_future((await heir.transaction(tx.id)).result(BOUND))
            await until(lambda: "spawned ask" in pulse_lines(tx))
        assert await waiting == "taken"


# A journal that cannot be written


async def test_what_was_given_up_goes_on_when_the_journal_can_be_written_again(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    workflow = Workflow("large", ttl=2)
    go, runs = asyncio.Event(), 0

    @workflow.step
    async def large() -> str:
        nonlocal runs
        runs += 1
        await go.wait()
        return "x" * 1_000_000

    @workflow.step
    async def size(large: str) -> int:
        return len(large)

    async with Mesh(workflow, store=sqlite, lease=0.2) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: runs == 1)
        disk.fill()
        go.set()
        with pytest.raises(StoreError, match="disk is full"):
            await tx.result(BOUND)
        disk.free()
        assert not mesh.node.supervisor.healthy
        again = await mesh.transaction(tx.id)
        assert await again.result(BOUND) == 1_000_000
        assert mesh.node.supervisor.healthy and runs == 2
        assert mesh.node.about()["running"] == 0
        row = mesh.node.store.reader().get(tx.id)
        assert row is not None and row.epoch == 1 and "resumed" in pulse_lines(again)
        audit(again)


async def test_a_journal_that_fails_again_and_again_is_tried_ever_more_rarely(sqlite: str) -> None:
    class Loop:
        """A loop whose time a test sets, and on which nothing happens by itself."""

        now = 1_000.0

        def time(self) -> float:
            return self.now

        def call_later(self, delay: float, callback: Any) -> Any:
            return self

        def cancel(self) -> None:
            pass

    async with Mesh(release(1, []), store=sqlite) as mesh:
        node, loop = mesh.node, Loop()
        recovery = Recovery(
            cast("asyncio.AbstractEventLoop", loop), node.store, node.supervisor, node.id, node.plans, lease=5.0
        )
        node.supervisor.healthy = False
        await recovery.poll()
        assert node.supervisor.healthy, "the first time at once"
        pauses = []
        for _ in range(8):
            node.supervisor.healthy = False
            began = loop.now
            for _ in range(100):
                await recovery.poll()
                if node.supervisor.healthy:
                    break
                loop.now += 1
            assert node.supervisor.healthy
            pauses.append(loop.now - began)
        assert pauses == [5, 10, 20, 40, 60, 60, 60, 60]
        node.supervisor.healthy = False
        await recovery.poll()
        assert not node.supervisor.healthy, "not yet"
        recovery.stop()


# Worker processes that keep dying


async def test_a_node_whose_workers_keep_dying_ends(
    sqlite: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DEATH_WINDOW", 600.0)  # however slow this machine is
    async with Mesh(dying, store=sqlite, processes=1) as mesh:
        begun = [await mesh.stimulate(dying, {"value": number}) for number in range(3)]
        async with asyncio.timeout(BOUND * (process.MAX_DEATHS + 1)):
            await mesh.node.collapse.wait()
        assert not mesh.node.supervisor.healthy
        for tx in begun:
            with pytest.raises(StoreError, match="closed"):
                await tx.result(BOUND)
        await until(lambda: mesh.node.state == "closed")
        with pytest.raises(BitActorError, match="has ended: worker processes keep failing"):
            await mesh.stimulate(dying, {"value": 4})
        about = mesh.node.about()
        assert "exit status 9" in about["collapsed"] and about["processes"]["collapses"] == 1
        assert any(record.levelno == logging.CRITICAL and record.name == "bitactor.node" for record in caplog.records)
    async with Mesh(release(1, []), store=sqlite) as other:
        rows = await other.transactions(workflow=dying)
        assert [row.status for row in rows] == ["running"] * 3, (
            "in the journal, for whoever comes next; none was buried"
        )


def test_bitactor_run_ends_with_an_error_when_its_workers_keep_dying(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(
        textwrap.dedent("""
        import os, sys
        from bitactor import Workflow

        if "mesh.cli.run" not in sys.modules:
            os._exit(9)

        from mesh.spawners.process import spawner
        spawner.DEATH_WINDOW = 600.0  # however slow this machine is

        deadly = Workflow("deadly")

        @deadly.step(spawn="process")
        def never() -> int:
            return 1
    """)
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BITACTOR_")}
    command = [
        sys.executable,
        "-m",
        "mesh.cli",
        "run",
        "deadly:deadly",
        "--store",
        "sqlite:///pulses.db",
        "--http",
        "0",
        "--json",
    ]
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT), "BITACTOR_PROCESSES": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        url = json.loads(child.stdout.readline())["http"]
        for _ in range(3):
            request = urllib.request.Request(
                f"{url}/stimuli/deadly", b"{}", {"Content-Type": "application/json", "Prefer": "respond-async"}
            )
            with urllib.request.urlopen(request, timeout=BOUND) as answer:
                assert answer.status == 202
        _, errors = child.communicate(timeout=BOUND * (process.MAX_DEATHS + 1))
    finally:
        child.kill()
        with child:  # closes its pipes
            pass
    assert child.returncode == 1, errors
    assert "error: the node has ended: worker processes keep failing" in errors


# Opening


class SlowNetwork(Network):
    """A network that opens when it is let, and notes that it is closed."""

    def __init__(self) -> None:
        self.registry = LocalRegistry("nobody")
        self.registry.start()
        self.router = None
        self.let = asyncio.Event()
        self.closed = 0

    @property
    def endpoint(self) -> str:
        return ""

    async def open(self) -> None:
        await self.let.wait()

    async def announce(self, consumers: Mapping[str, Any]) -> None:
        raise AssertionError("it never opens")

    async def withdraw(self) -> None:
        raise AssertionError("it never opens")

    def send_stimulus(self, entry: Entry, stimulus: Stimulus) -> None:
        raise AssertionError("it never opens")

    def on_notice(self, notice: Notice) -> None:
        raise AssertionError("it never opens")

    def about(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        self.closed += 1
        self.registry.close()


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_a_node_that_is_left_while_it_opens_takes_down_what_it_has_started(how: str) -> None:
    network, sink = SlowNetwork(), Closable()
    node = Node([chain("left", 1)], settings(), network=lambda parts: network, sinks=[sink])
    opening = asyncio.ensure_future(node.open())
    await until(lambda: node.state == "opening")
    with pytest.raises(BitActorError, match="opening"):
        node.require_open()
    if how == "closed":
        await node.close()
        network.let.set()
        with pytest.raises(BitActorError, match="this mesh is closed"):
            await opening
    else:
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert (node.state, network.closed, sink.closed) == ("closed", 1, 1)


async def test_a_mesh_whose_store_cannot_be_opened_is_closed(tmp_path: Path) -> None:
    sink = Closable()
    mesh = Mesh(chain("left", 1), store=f"sqlite:///{tmp_path}", sinks=[sink])
    with pytest.raises(BitActorError):
        await mesh.__aenter__()
    assert (mesh.state, sink.closed) == ("closed", 1)


class Closable(Sink):
    """A sink that counts how often it is closed."""

    closed = 0

    def receive(self, pulses: Sequence[Pulse]) -> None:
        raise AssertionError("nothing happens")

    def close(self, timeout: float) -> None:
        self.closed += 1


# Looking


async def test_a_mesh_says_how_it_stands(store: str) -> None:
    workflow = Workflow("looked.at", ttl=1, deadline=3_600.0)
    go = asyncio.Event()

    @workflow.step(timeout=600.0)
    async def waits() -> str:
        await go.wait()
        return "done"

    mesh = Mesh(workflow, store=store)
    with pytest.raises(BitActorError, match="open the mesh first"):
        mesh.about()
    async with mesh:
        tx = await mesh.stimulate(workflow, key="one", priority=2)
        waiting = asyncio.ensure_future(tx.result())
        await until(lambda: tx.about()["waiting"] == 1 and mesh.about()["timers"]["armed"] == 2)
        about = mesh.about()
        assert (about["running"], about["keyed"], about["deliveries"], about["turns"]) == (1, 1, 0, {})
        assert about["threads"] == {
            "threads": 0, "claimed": 0, "running": 0, "places": mesh.node.settings.threads, "taken": 0, "waiting": 0,
            "lent": 0, "depths": {},
        }  # fmt: skip
        assert decode_token(encode_token(about)) == about, "it can be told to others"
        assert tx.about() == {
            "transaction": tx.id, "workflow": "looked.at", "status": "running", "priority": 2, "max_concurrency": None,
            "scopes": 0, "waiting": 1, "here": True,
        }  # fmt: skip
        go.set()
        assert await waiting == "done"
        after = mesh.about()
        assert (after["running"], after["keyed"], after["timers"]["armed"]) == (0, 0, 0) and tx.about()["waiting"] == 0


class Counting:
    """A sink without statistics of its own."""

    def receive(self, pulses: Sequence[Pulse]) -> None:
        pass

    def close(self, timeout: float) -> None:
        pass


async def test_about_says_what_each_part_counts(tmp_path: Path) -> None:
    workflow = chain("about", 1)
    async with Mesh(workflow, sinks=[JsonlSink(tmp_path / "pulses.jsonl"), Counting()]) as mesh:
        await (await mesh.stimulate(workflow, {"start": 1})).result(BOUND)
        about = mesh.node.about()
        assert (
            about["transport"] == {} and about["refused"] == {} and about["repeated"] == 0 and about["collapsed"] == ""
        )
        assert about["processes"]["starts"] == 0
        jsonl, counting = about["sinks"]
        assert (jsonl["name"], jsonl["offered"], jsonl["lost"]) == ("JsonlSink", 4, 0)
        assert set(jsonl["own"]) == {"written", "dropped", "lost"} and "own" not in counting


async def test_about_counts_messages_where_there_are_others() -> None:
    with town() as place:
        place.serve_registry()
        async with Mesh(chain("about", 1), registry=place.registry) as mesh:
            about = mesh.node.about()
            assert about["transport"]["frames_in"] == 0 and about["refused"] == {} and about["repeated"] == 0


async def test_transactions_are_listed(store: str) -> None:
    one, other = chain("one", 1), chain("other", 1)
    async with Mesh(one, other, store=store) as mesh:
        begun = [await mesh.stimulate(workflow, {"start": number}) for number in range(3) for workflow in (one, other)]
        for tx in begun:
            await tx.result(BOUND)
        ids = [tx.id for tx in reversed(begun)]
        assert [row.transaction for row in await mesh.transactions()] == ids
        assert [row.transaction for row in await mesh.transactions(limit=2, before=ids[1])] == ids[2:4]
        assert {row.workflow for row in await mesh.transactions(workflow=one)} == {"one"}
        assert await mesh.transactions(status="stuck") == []
        with pytest.raises(InvalidInput, match="Did you mean 'completed'"):
            await mesh.transactions(status="complete")
        with pytest.raises(InvalidInput, match="limit=0"):
            await mesh.transactions(limit=0)
    with pytest.raises(BitActorError, match="open the mesh first"):
        await Mesh(one).transactions()


def test_transactions_of_a_consumer_are_listed_by_itself_and_by_its_name(store: str) -> None:
    @consumer("x")
    def other(signal: Signal) -> None: ...

    emitting, taken = Workflow("emitting"), threading.Event()

    @emitting.step
    async def emits(ctx: Context) -> None:
        await ctx.emit("x", 1)

    @consumer("x")
    def takes(signal: Signal) -> None:
        taken.set()

    with Mesh(emitting, takes, store=store) as mesh:
        mesh.run(emitting)
        assert taken.wait(BOUND)
        (row,) = mesh.transactions(workflow=takes)
        assert row.workflow == takes.name == "takes@x" and mesh.transactions(workflow=takes.name) == [row]
        assert [row.workflow for row in mesh.transactions(workflow=emitting)] == ["emitting"]
        assert mesh.transactions(workflow=other) == mesh.transactions(workflow="takes") == []
        with pytest.raises(UnknownWorkflow, match="5 is no workflow, nor the name of one"):
            mesh.transactions(workflow=5)  # type: ignore[arg-type]


def test_a_blocking_transaction_can_do_what_the_other_can(store: str) -> None:
    with Mesh(release(1, [Halt("look"), "fine"]), store=store) as mesh:
        tx = mesh.submit("released")
        assert tx.ended(BOUND) == "halted"
        assert (tx.workflow, tx.root) == ("released", tx.id) and tx.errors() == []
        with pytest.raises(WorkflowFailed, match="look"):
            tx.result(BOUND)
        tx.resume()
        assert tx.result(BOUND) == "fine"
        with pytest.raises(InvalidInput, match="completed"):
            tx.resume()
