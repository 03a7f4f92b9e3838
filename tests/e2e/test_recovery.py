"""A process that dies in the middle; another opens its file and carries on, from the journal alone."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from bitactor import Workflow
from bitactor.errors import InvalidInput, StoreError, UnknownTransaction
from mesh import Mesh
from tests import warm
from tests.e2e import typed_undo_child
from tests.e2e.recovery_child import POINTS, build
from tests.e2e.support import BOUND, audit, chain, pulse_lines, turns, undone, until

ROOT = Path(__file__).parents[2]
UNDONE = ("failing", "in undo", "between undos", "undo backing off")


def die_at(point: str, url: str, log: Path, durability: str = "process") -> str:
    """Runs the child until it is dead; the answer is its transaction."""
    words = ["-m", "tests.e2e.recovery_child", url, point, str(log), durability]
    child = warm.run(words, cwd=ROOT, timeout=BOUND * 3)
    assert child.returncode == 9, child.stderr
    return child.stdout.strip()


@pytest.mark.parametrize("point", POINTS)
async def test_what_was_open_is_finished(point: str, tmp_path: Path, sqlite: str) -> None:
    log = tmp_path / "log"
    transaction = die_at(point, sqlite, log)
    before = log.read_text().splitlines() if log.exists() else []
    after: list[str] = []
    workflow, listen = build("" if point != "halted" else "halted again", after.append, lambda here: None)
    async with Mesh(workflow, listen, store=sqlite) as mesh:
        if not transaction:  # it died in its first hop, before it could tell
            transaction = mesh.node.store.reader().find("recovered", "the one") or ""
        tx = await mesh.transaction(transaction)
        if point == "halted":
            assert tx.status == "halted"
            await tx.resume()
        expected = "compensated" if point in UNDONE else "completed"
        assert await tx.ended(BOUND) == expected
        if expected == "completed":
            assert await tx.result() == "c"
            await until(lambda: "emitted" in pulse_lines(tx))
            await until(lambda: not mesh.node.supervisor.running_count)
            assert [line for line in after if line.startswith("undo")] == []
        else:
            assert undone(tx)[-1] == "a" and set(undone(tx)) == {"a", "b"}
        audit(tx)
        _check_effects(point, tx, before, after)
        same = await mesh.stimulate(workflow, {"fail": point in UNDONE}, key="the one")
        assert same.id == tx.id


def _check_effects(point: str, tx: Any, before: list[str], after: list[str]) -> None:
    done_before = {
        "after a": {"a"}, "in b": {"a"}, "backing off": {"a"}, "in compensate": {"a"}, "joining": {"a", "b", "t"},
        "failing": {"a", "b", "t", "c"}, "in undo": {"a", "b", "t", "c"}, "between undos": {"a", "b", "t", "c"},
        "undo backing off": {"a", "b", "t", "c"}, "halted": {"a", "b", "t"}, "emitting": {"a", "b", "t", "c"},
        "in consumer": {"a", "b", "t", "c"}, "in thread": {"a"},
    }.get(point, set())  # fmt: skip
    again = {line.split()[0] for line in after if not line.startswith(("undo", "heard", "compensate"))}
    assert not again & done_before, f"ran again: {again & done_before}"
    assert len({line.split()[1] for line in before + after if line.startswith("a ")}) <= 1, "one idempotency key"
    if point == "between undos":
        assert not [line for line in after if line.startswith("undo b")], "what was undone is not undone again"
    if point not in UNDONE:
        assert [line for line in before + after if line.startswith("heard")], "the emitted signal was heard"


@pytest.mark.parametrize("spawn", ["loop", "thread", "inline"])
async def test_killed_in_the_undo_of_a_model(spawn: str, tmp_path: Path, sqlite: str) -> None:
    """The undo that was under way comes once more, with an object of the same class, equal to the first; the one that
    had ended does not."""
    log, after = tmp_path / "log", []
    child = warm.run(["-m", "tests.e2e.typed_undo_child", sqlite, str(log), spawn], cwd=ROOT, timeout=BOUND * 3)
    assert child.returncode == -signal.SIGKILL, child.stderr
    given = typed_undo_child.told(typed_undo_child.paid())
    assert log.read_text().splitlines() == [f"again {given}", f"pay {given}"]
    workflow = typed_undo_child.build(spawn, after.append)
    async with Mesh(workflow, store=sqlite) as mesh:
        again = await mesh.stimulate(workflow, key="the one")
        assert await again.ended(BOUND) == "compensated"
        assert undone(again) == ["again", "pay"]
        audit(again)
    assert after == [f"pay {given}"] and "4711" in given and "Europe/Berlin" in given


async def test_with_power_durability(tmp_path: Path, sqlite: str) -> None:
    log = tmp_path / "log"
    transaction = die_at("after a", sqlite, log, "power")
    after: list[str] = []
    workflow, listen = build("", after.append, lambda here: None)
    async with Mesh(workflow, listen, store=sqlite, durability="power") as mesh:
        tx = await mesh.transaction(transaction)
        assert await tx.result(BOUND) == "c"
        assert not [line for line in after if line.startswith("a ")]
        audit(tx)


async def test_dying_again_and_again_ends_as_poison(tmp_path: Path, sqlite: str) -> None:
    """A hop that kills its process each time is delivered 1 + redeliveries times, then buried, and the transaction
    undoes."""
    log = tmp_path / "log"
    transaction = ""
    for _ in range(4):
        transaction = die_at("in b", sqlite, log) or transaction
    after: list[str] = []
    workflow, listen = build("", after.append, lambda here: None)
    async with Mesh(workflow, listen, store=sqlite) as mesh:
        tx = await mesh.transaction(transaction)
        assert await tx.ended(BOUND) == "compensated"
        graves = [pulse for pulse in tx.pulses() if pulse.kind == "tombstone"]
        assert ("b", "poison") in [(pulse.step, pulse.error) for pulse in graves], (
            "and its sibling, if that was in flight each time"
        )
        assert {pulse.error for pulse in graves} == {"poison"}
        undos = [line for line in after if line.startswith("undo")]
        assert undos[0] == "undo b None", "it may have happened"
        assert undos[1].startswith("undo a a")
        assert not [line for line in after if line.startswith("b")]
        audit(tx)


async def test_closing_in_the_middle_and_opening_again(sqlite: str) -> None:
    workflow = Workflow("interrupted", ttl=2)
    runs: list[str] = []
    first_time, go = [True], asyncio.Event()

    @workflow.step
    async def a() -> str:
        runs.append("a")
        return "a"

    @workflow.step
    async def b(a: str) -> str:
        runs.append("b")
        if first_time:
            await asyncio.Event().wait()
        return a + "b"

    async with Mesh(workflow, store=sqlite, drain=0.05) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: runs == ["a", "b"])
    first_time.clear()
    go.set()
    async with Mesh(workflow, store=sqlite) as mesh:
        again = await mesh.transaction(tx.id)
        assert await again.result(BOUND) == "ab"
        assert runs == ["a", "b", "b"]
        audit(again)


async def test_closing_while_a_commit_is_on_its_way(sqlite: str) -> None:
    """Power durability: the appends of the last turn are delivered by `close`; nothing may be started then."""
    workflow = Workflow("last turn", ttl=2)
    runs: list[str] = []

    @workflow.step
    async def a() -> str:
        runs.append("a")
        return "a"

    @workflow.step
    async def b(a: str) -> str:
        runs.append("b")
        return "b"

    for _ in range(5):
        async with Mesh(workflow, store=sqlite, durability="power", drain=0) as mesh:
            transactions = [await mesh.stimulate(workflow) for _ in range(5)]
    async with Mesh(workflow, store=sqlite, durability="power") as mesh:
        for tx in transactions:
            again = await mesh.transaction(tx.id)
            assert await again.result(BOUND) == "b"
        await until(lambda: not mesh.node.supervisor.running_count)
        assert not mesh.node.store.reader().list(status="running", limit=1000)


async def test_a_changed_workflow_is_said_at_once(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transaction = die_at("after a", sqlite, tmp_path / "log")
    changed = Workflow("recovered", input={"fail": bool}, ttl=4)

    @changed.step
    async def a(fail: bool) -> str:
        return "another workflow by now"

    other = Workflow("other", ttl=1)

    @other.step
    async def works() -> int:
        return 1

    async with Mesh(changed, other, store=sqlite) as mesh:
        parked = mesh.node.about()["parked"]
        assert "changed" in parked[transaction]
        assert transaction in caplog.text
        assert await (await mesh.stimulate(other)).result(BOUND) == 1
    async with Mesh(other, store=sqlite) as mesh:
        with pytest.raises(UnknownTransaction, match="recovered"):
            await mesh.transaction(transaction)
    after: list[str] = []
    workflow, listen = build("", after.append, lambda here: None)
    async with Mesh(workflow, listen, store=sqlite) as mesh:
        assert await (await mesh.transaction(transaction)).result(BOUND) == "c", "the release that began it finishes it"


async def test_waiting_for_what_another_process_runs(sqlite: str) -> None:
    """Two meshes on one file stand in for two processes: one runs it, the other waits for it."""
    workflow = Workflow("watched", ttl=1)
    go = asyncio.Event()

    @workflow.step
    async def waits() -> str:
        await go.wait()
        return "done"

    async with Mesh(workflow, store=sqlite) as one, Mesh(workflow, store=sqlite) as other:
        tx = await one.stimulate(workflow)
        theirs = await other.transaction(tx.id)
        with pytest.raises(TimeoutError):
            await theirs.result(timeout=0.02)
        waiting = asyncio.ensure_future(theirs.result(BOUND))
        await turns()
        go.set()
        assert await waiting == "done" and theirs.status == "completed"
        with pytest.raises(InvalidInput, match="completed"):
            await theirs.resume()


async def test_waiting_for_what_cannot_go_on_says_so(sqlite: str, tmp_path: Path) -> None:
    transaction = die_at("after a", sqlite, tmp_path / "log")
    workflow, listen = build("", lambda line: None, lambda here: None)
    workflow.steps["c"].undo(lambda result: None)  # another shape, the same steps
    async with Mesh(workflow, listen, store=sqlite) as mesh:
        tx = await mesh.transaction(transaction)
        with pytest.raises(StoreError, match="changed"):
            await tx.result(BOUND)


async def test_told_only_once_it_is_kept(sqlite: str) -> None:
    """With power durability the end of a transaction is known before it is on the disk; nobody is told before."""
    workflow = Workflow("kept", ttl=3)

    @workflow.step
    async def a() -> str:
        return "a"

    @workflow.step
    async def b(a: str) -> str:
        return "b"

    async with Mesh(workflow, store=sqlite, durability="power") as mesh:
        for _ in range(20):
            tx = await mesh.stimulate(workflow)
            while tx.status == "running":  # noqa: ASYNC110 (the moment it changes is what is looked for)
                await asyncio.sleep(0)
            assert pulse_lines(tx)[-1] == "finished"
            tx = await mesh.stimulate(workflow)
            await tx.result(BOUND)
            assert pulse_lines(tx)[-1] == "finished"


async def test_many_at_once_survive(tmp_path: Path, sqlite: str) -> None:
    """Two hundred in flight when the process ends."""
    script = """
import asyncio, os, sys
from tests.e2e.support import chain
from mesh import Mesh

async def main():
    workflow = chain("many", 4)
    async with Mesh(workflow, store=sys.argv[1]) as mesh:
        for number in range(200):
            await mesh.stimulate(workflow, {"start": number}, key=str(number))
        for _ in range(3):
            await asyncio.sleep(0)
        os._exit(9)

asyncio.run(main())
"""
    child = await asyncio.to_thread(warm.run, ["-c", script, sqlite], cwd=ROOT, timeout=BOUND * 3)
    assert child.returncode == 9, child.stderr
    workflow = chain("many", 4)
    async with Mesh(workflow, store=sqlite) as mesh:
        for number in range(200):
            tx = await mesh.stimulate(workflow, {"start": number}, key=str(number))
            assert await tx.result(BOUND) == number + 4
        assert len(mesh.node.store.reader().list(limit=1000)) == 200
