"""What users of durable systems complain of; each case passes here."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bitactor import Backoff, Halt, InvalidInput, SignalTooLarge, Value, Workflow
from bitactor.errors import Unroutable
from bitactor.messages.codec import MAX_TOKEN_BYTES
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import ROOT, Notes, begin, dying, dying_beside
from tests.conformance.support import failure_of
from tests.e2e.support import BOUND, audit, chain, finish, for_spawner, pulse_lines, until

SECTION = "What users of durable systems complain of"


async def taken_over(mesh: Mesh, workflow: Workflow) -> Any:
    """The one transaction that another process has left."""
    [row] = await mesh.transactions(workflow=workflow)
    return await mesh.transaction(row.transaction)


@claim(
    SECTION,
    "Parallel steps change the order of recording, and recovery loops or refuses (our journal is keyed by hop, never "
    "by call order).",
)
async def test_recovery_of_parallel_steps(sqlite: str, tmp_path: Path) -> None:
    begin("dying_beside", sqlite, tmp_path)
    notes = Notes(tmp_path)
    before = notes.lines
    assert 0 < len(before) < 10
    workflow = dying_beside(notes)
    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await taken_over(mesh, workflow)
        assert await transaction.result(BOUND) == list(range(10))
        audit(transaction)


@claim(
    SECTION,
    "Recovery works only for the same process, or needs a paid or second server (ours: any process with the store, by "
    "lease).",
)
async def test_recovery_by_a_mesh_that_was_there_all_along(sqlite: str, tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    workflow = dying(notes)
    async with Mesh(workflow, store=sqlite, lease=0.2) as mesh:
        begin("dying", sqlite, tmp_path)
        await until(lambda: mesh.node.store.reader().list())
        [row] = await mesh.transactions()
        transaction = await mesh.transaction(row.transaction)
        assert await transaction.result(BOUND) == "lives"
    assert notes.lines == ["first", "dies", "dies", "last"]


def versions() -> tuple[Workflow, Workflow]:
    """A workflow that halts, and its next release."""
    old = Workflow("order")
    old.step(name="asks")(lambda: Halt("ask somebody"))
    new = Workflow("order")
    new.step(name="asks")(lambda: "answered")
    new.step(name="ships")(lambda asks: asks)
    return old, new


@claim(
    SECTION,
    "After an edit of the code a pending run silently never resumes (ours says so, at once, and offers what to do).",
)
async def test_after_an_edit(sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin("dying", sqlite, tmp_path)
    edited = Workflow("dying")
    edited.step(name="first")(lambda: "edited")
    with caplog.at_level(logging.ERROR, "bitactor"):
        async with Mesh(edited, store=sqlite) as mesh:
            [row] = await mesh.transactions()
            assert row.transaction in caplog.text and "has changed since" in caplog.text
            assert "finish it with the release that began it" in mesh.node.about()["parked"][row.transaction]


@claim(SECTION, 'A run stays "Running" for ever when its worker died.')
async def test_a_dead_worker(sqlite: str, tmp_path: Path) -> None:
    begin("dying", sqlite, tmp_path)
    notes = Notes(tmp_path)
    workflow = dying(notes)
    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await taken_over(mesh, workflow)
        await transaction.ended(BOUND)
        assert [row.status for row in await mesh.transactions()] == ["completed"]


SLEEPER = """
    import asyncio, os
    from bitactor import Workflow

    sleeper = Workflow("sleeper")

    @sleeper.step
    async def first() -> str:
        return "first"

    @sleeper.step
    async def sleeps(first: str) -> str:
        if os.environ.get('SLEEPS'):
            await asyncio.sleep(3600)
        return "awake"
"""


@claim(
    SECTION,
    "SIGTERM leaves a run behind as running (ours is drained, and what is not done by then goes to the next process at "
    "once).",
)
async def test_sigterm(sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeping.py").write_text(textwrap.dedent(SLEEPER))
    monkeypatch.syspath_prepend(str(tmp_path))
    began = begun_and_terminated(tmp_path, sqlite)
    sleeping = importlib.import_module("sleeping").sleeper
    async with Mesh(sleeping, store=sqlite) as mesh:
        transaction = await mesh.transaction(began)
        assert await transaction.result(BOUND) == "awake"
        assert pulse_lines(transaction).count("completed first") == 1


def begun_and_terminated(directory: Path, store: str) -> str:
    """A transaction of a node that was asked to end while it ran."""
    bitactor = [sys.executable, "-P", "-m", "bitactor"]
    environment = {"PYTHONPATH": f"{ROOT}:{directory}", "SLEEPS": "yes"}
    run = [*bitactor, "run", "sleeping:sleeper", "--store", store, "--http", "0", "--drain", "0", "--json"]
    with subprocess.Popen(run, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        stimulate = [*bitactor, "stimulate", "sleeper", "--async", "--http", ready["http"], "--json"]
        began = subprocess.run(stimulate, cwd=ROOT, capture_output=True, text=True, check=True, timeout=BOUND * 6)
        child.send_signal(signal.SIGTERM)
        child.wait(BOUND * 3)
    transaction: str = json.loads(began.stdout)["transaction"]
    return transaction


WRITER = """
    import asyncio, sys
    from mesh import Mesh
    from tests.e2e.support import chain

    async def main():
        workflow = chain("busy", 5)
        async with Mesh(workflow, store=sys.argv[1]) as mesh:
            sys.stdin.readline()
            began = [await mesh.stimulate(workflow, {"start": n}) for n in range(100)]
            print(sum([await transaction.result(60) for transaction in began]))

    asyncio.run(main())
"""


@claim(
    SECTION,
    '"database is locked" in the first example (one writer, WAL, busy handling; several processes on one file work).',
)
def test_several_processes_on_one_file(sqlite: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), sqlite], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    told_to = [child.communicate("go\n", timeout=BOUND * 9) for child in children]
    assert [out.strip() for out, _ in told_to] == [str(sum(range(5, 105)))] * 3, told_to
    assert not [err for _, err in told_to if "locked" in err]


@claim(
    SECTION,
    "The deploy of a changed workflow breaks what is in flight (ours has a digest per workflow: each release carries "
    "on with its own).",
)
async def test_two_releases_on_one_file(sqlite: str) -> None:
    old, new = versions()
    async with Mesh(old, store=sqlite) as mesh:
        pending = await finish(mesh, old)
        assert pending.status == "halted"
    async with Mesh(new, store=sqlite) as mesh:
        assert await (await mesh.stimulate(new)).result(BOUND) == "answered"
        found = await mesh.transaction(pending.id)
        with pytest.raises(Unroutable, match="release"):
            await found.resume()
        assert found.status == "halted", "it is as it was"
    async with Mesh(old, store=sqlite) as mesh:
        found = await mesh.transaction(pending.id)
        await found.resume()
        assert await found.ended(BOUND) == "halted"


@claim(
    SECTION, "The journal says which version of it a file has, from the first day; a file of a later one is refused."
)
async def test_the_journals_version(sqlite: str) -> None:
    workflow = chain("versioned", 1)
    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await finish(mesh, workflow, {"start": 0})
        assert {pulse.digest for pulse in transaction.raw_pulses()} == {workflow.check().digest}
    path = sqlite.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        assert version >= 1
        connection.execute(f"PRAGMA user_version = {version + 1}")
    connection.close()
    with pytest.raises(Exception, match=r"version|newer|later"):
        async with Mesh(workflow, store=sqlite):
            pass


@claim(
    SECTION,
    "A payload limit is found in production (ours is checked at the stimulus and at each hop, and named in the error).",
)
async def test_payload_limits() -> None:
    workflow = Workflow("large", input={"text": str})
    workflow.step(name="grows")(lambda text: text * 2)
    async with Mesh(workflow) as mesh:
        with pytest.raises((SignalTooLarge, InvalidInput), match=f"{MAX_TOKEN_BYTES:,}"):
            await mesh.stimulate(workflow, {"text": "x" * (MAX_TOKEN_BYTES + 1)})
        assert not await mesh.transactions()
        transaction = await finish(mesh, workflow, {"text": "x" * (MAX_TOKEN_BYTES // 2 + 1)})
        failure = await failure_of(transaction)
        assert (
            isinstance(failure.__cause__, SignalTooLarge)
            and f"{MAX_TOKEN_BYTES:,}" in str(failure)
            and "grows" in str(failure)
        )


@claim(
    SECTION,
    "A worker that was declared dead stays a zombie, and nobody outside can tell (ours goes on as another owner, or "
    "ends with a code).",
)
async def test_a_fenced_node(sqlite: str) -> None:
    workflow = Workflow("fenced")
    went = asyncio.Event()
    runs: list[int] = []

    @workflow.step
    async def waits() -> str:
        runs.append(len(runs))
        await went.wait()
        return "done"

    async with Mesh(workflow, store=sqlite, lease=0.15) as mesh:
        waiting = asyncio.ensure_future((await mesh.stimulate(workflow)).result(BOUND))
        await until(lambda: runs)
        with sqlite3.connect(sqlite.removeprefix("sqlite:///"), timeout=BOUND) as somebody:
            somebody.execute("UPDATE owners SET fenced = 'somebody'")
        somebody.close()
        await until(lambda: len(runs) == 2)
        about = mesh.about()
        assert (about["owner"], about["healthy"], about["fenced"]["times"]) == (f"{about['node']}.2", True, 1)
        went.set()
        assert await waiting == "done"


@claim(
    SECTION,
    "A blocked event loop makes a living worker look dead and duplicates its work (our leases are renewed off the "
    "loop).",
)
async def test_a_blocked_loop(sqlite: str) -> None:
    workflow = Workflow("blocking")
    runs: list[str] = []
    went, looked_at = threading.Event(), threading.Event()
    taken: list[int] = []

    @workflow.step
    async def blocks() -> str:
        runs.append("blocks")
        went.set()
        looked_at.wait(BOUND)  # which stops the loop, and is what the users complain of
        return "done"

    def looks() -> None:
        """Another mesh, on a loop of its own, that would take over what is dead."""
        went.wait(BOUND)
        with Mesh(workflow, store=sqlite, lease=0.1) as other:
            time.sleep(0.5)
            taken.append(other.node.about()["running"])
        looked_at.set()

    async with Mesh(workflow, store=sqlite, lease=0.1) as mesh:
        looking = threading.Thread(target=looks)
        looking.start()
        assert await (await mesh.stimulate(workflow)).result(BOUND) == "done"
        looking.join(BOUND)
    assert (runs, taken) == (["blocks"], [0])


@claim(
    SECTION,
    "A blocked event loop stops everything, and nobody knows what blocks it (a watchdog names the step, and shows its "
    "stack).",
)
@pytest.mark.parametrize("where", ["loop", "inline"])
async def test_who_blocks_the_loop(where: str, caplog: pytest.LogCaptureFixture) -> None:
    workflow = Workflow("blocking")

    def blocks() -> None:
        until = time.monotonic() + BOUND
        while not mesh.node.about()["blocked"]["times"] and time.monotonic() < until:
            time.sleep(0.01)

    workflow.step(name="blocks", spawn=where)(for_spawner(where, blocks))
    with caplog.at_level(logging.WARNING, "bitactor.watchdog"):
        async with Mesh(workflow, blocked_after=0.05) as mesh:
            await finish(mesh, workflow)
            assert mesh.node.about()["blocked"]["times"] == 1
    [said] = [record.getMessage() for record in caplog.records if record.name == "bitactor.watchdog"]
    assert "'blocking/blocks'" in said and "in blocks" in said and "time.sleep" in said


@claim(SECTION, "A priority left unset is the highest.")
async def test_an_unset_priority() -> None:
    order: list[str] = []
    go = asyncio.Event()
    workflow = Workflow("queued", input={"name": str})

    @workflow.step(limit="one")
    async def works(name: str) -> None:
        order.append(name)
        await go.wait()

    async with Mesh(workflow, pools={"one": 1}) as mesh:
        began = [await mesh.stimulate(workflow, {"name": "first"})]
        await until(lambda: order)
        began += [
            await mesh.stimulate(workflow, {"name": "unset"}),
            await mesh.stimulate(workflow, {"name": "high"}, priority=1),
        ]
        go.set()
        for transaction in began:
            await transaction.ended(BOUND)
    assert order == ["first", "high", "unset"]


@claim(
    SECTION,
    "Checkpoint tables grow by dozens of rows a turn (ours: a row a commit, two commits a hop at most, and two rows a "
    "transaction).",
)
async def test_rows(sqlite: str) -> None:
    workflow = chain("rows", 5)
    grown: list[int] = []
    async with Mesh(workflow, store=sqlite) as mesh:
        for _ in range(2):  # the first one names its steps in a table of their own
            await finish(mesh, workflow, {"start": 0})
            grown.append(rows_in(sqlite))
    assert grown[1] - grown[0] <= 2 * 5 + 2 + 2, grown


def rows_in(store: str) -> int:
    """All rows of all tables of a journal."""
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return sum(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for (table,) in tables)


@claim(SECTION, "Fan-out of a thousand falls over.")
async def test_fan_out_of_a_thousand(store: str) -> None:
    """A thousand side by side, joined; then the same with a join that fails, and a thousand undos, last first."""
    workflow = Workflow("thousand", input={"fail": bool}, ttl=4)
    taken_back: list[int] = []

    async def take_back(result: int) -> None:
        taken_back.append(result)

    for number in range(1_000):
        workflow.step(name=f"s{number}", bind={"number": Value(number)})(same).undo(take_back)
    workflow.collect("all", [f"s{number}" for number in range(1_000)], transform=lambda found: sum(found.values()))

    @workflow.step
    async def joins(all: int, fail: bool) -> int:
        if fail:
            raise ValueError
        return all

    async with Mesh(workflow, store=store) as mesh:
        assert await (await mesh.stimulate(workflow, {"fail": False})).result(BOUND * 3) == sum(range(1_000))
        transaction = await mesh.stimulate(workflow, {"fail": True})
        assert await transaction.ended(BOUND * 3) == "compensated"
        assert taken_back == list(range(999, -1, -1))


async def same(number: int) -> int:
    return number


@claim(SECTION, "A timer that polls sets the speed limit (50 ms quanta in two systems).")
async def test_no_polling() -> None:
    """A hundred waits of a millisecond, one after the other; with quanta of 50 ms they would take five seconds."""
    workflow = Workflow("soon")

    @workflow.step(retries=100, backoff=Backoff(initial=0.001, factor=1, jitter=0))
    async def tries(attempt: int) -> int:
        if attempt <= 100:
            raise ValueError
        return attempt

    async with Mesh(workflow) as mesh:
        before = time.perf_counter()
        assert await (await mesh.stimulate(workflow)).result(BOUND) == 101
        assert time.perf_counter() - before < 2.5


@claim(SECTION, "An install breaks through its own version caps (ours has none).")
def test_no_version_caps() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project.get("optional-dependencies", {}).values() for one in extra),
    ]
    assert wanted and not [one for one in wanted if "<" in one or "==" in one or "~=" in one]
    assert "<" not in project["requires-python"]
