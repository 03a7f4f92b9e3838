"""Worker processes as real processes: how they start, what they run, how they die, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bitactor import Workflow
from bitactor.errors import DefinitionError
from bitactor.messages.codec import decode_token
from bitactor.messages.signal import UNDO, Reply
from mesh import Mesh
from mesh.spawners.process import spawner as process
from mesh.spawners.process.definitions import modules_of
from mesh.spawners.process.restart_intensity import RestartIntensity
from mesh.spawners.process.spawner import ProcessSpawner
from tests.e2e.process_broken import broken
from tests.e2e.process_dying import dying
from tests.e2e.process_mismatch import shifty
from tests.e2e.process_steps import alone, async_process, def_process, once, typed, undone
from tests.spawning import Hop, Stage, until


class ProcessStage(Stage):
    """A stage with one worker process, unless told otherwise."""

    def __init__(self, processes: int = 1, intensity: RestartIntensity | None = None) -> None:
        self.processes = ProcessSpawner(processes, intensity)
        super().__init__(self.processes)

    @property
    def pid(self) -> int:
        """The only worker's."""
        [(pid, _)] = self.processes.workers()
        return pid


@asynccontextmanager
async def staged(intensity: RestartIntensity | None = None) -> AsyncIterator[ProcessStage]:
    """A stage with one worker, which leaves nothing behind."""
    made = ProcessStage(intensity=intensity)
    try:
        yield made
    finally:
        await made.close()
    assert made.processes.workers() == []


@pytest.fixture
async def stage() -> AsyncIterator[ProcessStage]:
    async with staged() as made:
        yield made


@pytest.fixture
def short_directory() -> Iterator[str]:
    """For the sockets of a program that is killed and cannot remove them."""
    with tempfile.TemporaryDirectory(prefix="ba-") as directory:
        yield directory


def sockets_in(directory: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": directory}


def is_there(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_reaped(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def pids_in(gate: Path) -> list[int]:
    """The worker's and that of the process it has started."""
    return [int(pid) for pid in Path(f"{gate}.pids").read_text().split()]


def listing(directory: str) -> list[Path]:
    return list(Path(directory).iterdir())


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def value_of(reply: Reply) -> Any:
    assert reply.outcome == "ok", reply
    return decode_token(reply.token)


async def begun(hop: Hop, gate: Path) -> Hop:
    await until(Path(f"{gate}.begun").exists)
    return hop


# Starting


async def test_workers_start_when_needed_fresh_and_stay_warm(stage: ProcessStage) -> None:
    assert stage.processes.workers() == []
    seen = [value_of(await stage.run(alone, "who_am_i", None)) for _ in range(3)]
    assert {who["pid"] for who in seen} == {stage.pid}
    assert stage.pid != os.getpid()
    assert seen[0]["main_thread"]
    assert not seen[0]["pytest"]
    assert seen[0]["path"] == [entry for entry in sys.path if isinstance(entry, str)]
    assert seen[0]["stdin"] == ""
    assert stage.processes.statistics() == {
        "starts": 1, "deaths": 0, "kills": 0, "collapses": 0, "waiting": 0, "busy": 0,
    }  # fmt: skip


async def test_no_more_workers_than_hops_or_than_allowed(tmp_path: Path) -> None:
    stage = ProcessStage(3)
    await stage.run(def_process, "echo", 1)
    assert len(stage.processes.workers()) == 1
    gate = tmp_path / "gate"
    hops = [stage.launch(def_process, "wait_for_file", str(gate)) for _ in range(7)]
    await until(lambda: stage.processes.statistics()["busy"] == 3)
    assert stage.processes.statistics()["waiting"] == 4
    busy = {hop for _, hop in stage.processes.workers()}
    assert busy <= {hop.signal.hop for hop in hops}
    gate.touch()
    assert [(await hop.reply()).outcome for hop in hops] == ["ok"] * 7
    assert stage.processes.statistics()["starts"] == 3
    await stage.close()


async def test_arguments_are_converted_where_they_are_used(stage: ProcessStage) -> None:
    assert value_of(await stage.run(typed, "convert", "/a/b", {"fullName": "Ada"})) == "Ada at b"
    reply = await stage.run(typed, "convert", "/a/b", {"full": "Ada"})
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert reply.fault.type == "bitactor.errors:InvalidInput"


async def test_large_arguments_and_results_pass(stage: ProcessStage) -> None:
    value = "x" * (4 * 1024 * 1024 - 1024)
    assert (await stage.run(def_process, "echo", value)).token == value
    assert (await stage.run(def_process, "echo", [1, [2]])).outcome == "ok"


async def test_an_undo_gets_the_result_and_the_arguments(stage: ProcessStage) -> None:
    result = value_of(await stage.run(undone, "remember", 4))
    assert result == {"done": 4, "pid": stage.pid}
    reply = await stage.run(undone, "remember", 4, direction=UNDO, result=result)
    assert value_of(reply) == "took back 4 given 4"


async def test_spans_of_the_users_are_children_of_the_hop(stage: ProcessStage) -> None:
    await stage.run(alone, "trace_parent", None)
    hop = stage.launch(alone, "trace_parent", None)
    assert value_of(await hop.reply()) == [hop.signal.root, hop.signal.hop]


# What cannot be loaded


async def test_a_module_that_cannot_be_imported_fails_the_hop_and_not_the_worker(stage: ProcessStage) -> None:
    reply = await stage.run(broken, "never", 1)
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert reply.fault.type == "bitactor.errors:StepFailed"
    for said in ("'broken/never'", "'tests.e2e.process_broken'", "SystemExit: not here"):
        assert said in reply.fault.message
    pid = stage.pid
    assert value_of(await stage.run(alone, "who_am_i", None))["pid"] == pid


async def test_a_workflow_of_another_shape_fails_the_hop_and_not_the_worker(stage: ProcessStage) -> None:
    reply = await stage.run(shifty, "steady", 1)
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert "'shifty'" in reply.fault.message
    assert "another shape" in reply.fault.message
    pid = stage.pid
    assert value_of(await stage.run(alone, "who_am_i", None))["pid"] == pid


async def test_a_workflow_that_is_no_global_fails_by_name(stage: ProcessStage) -> None:
    hidden = Workflow("hidden", input={"value": int})
    hidden.step(name="echo", spawn="process")(def_process.steps["echo"].function)
    reply = await stage.run(hidden, "echo", 1)
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert "'hidden' is not among the globals of module 'tests.e2e.process_steps'" in reply.fault.message


async def test_a_workflow_declared_in_main_is_refused_by_name(
    stage: ProcessStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Workflow("local", input={"value": int})
    local.step(name="echo", spawn="process")(def_process.steps["echo"].function)
    monkeypatch.setattr(sys.modules["__main__"], "local_workflow", local, raising=False)
    with pytest.raises(DefinitionError, match="__main__"):
        modules_of(local.check())
    reply = await stage.run(local, "echo", 1)
    assert reply.outcome == "fail"
    assert stage.processes.workers() == []


def test_the_modules_of_a_plan_are_where_it_is_found_first() -> None:
    assert modules_of(alone.check()) == ["tests.e2e.process_steps"]


async def test_a_hop_forgotten_while_its_modules_are_imported_leaves_a_usable_worker(stage: ProcessStage) -> None:
    hop = stage.launch(alone, "who_am_i", None)
    await until(lambda: hop.state is not None and stage.processes.importing == 1)
    hop.actor.abandon()
    assert (await hop.reply()).outcome == "fail"
    assert value_of(await stage.run(alone, "who_am_i", None))["pid"] == stage.pid
    assert len(hop.replies) == 1


# Dying


@pytest.mark.parametrize("step", ["exit_hard", "crash"])
async def test_a_worker_that_dies_with_a_hop_loses_it(stage: ProcessStage, step: str) -> None:
    await stage.run(alone, "who_am_i", None)
    pid = stage.pid
    hop = stage.launch(alone, step, None)
    assert (await hop.reply()).outcome == "lost"
    assert is_reaped(pid)
    assert value_of(await stage.run(alone, "who_am_i", None))["pid"] != pid
    assert len(hop.replies) == 1
    assert stage.processes.statistics()["deaths"] == 1


async def test_a_worker_killed_from_outside_loses_its_hop(stage: ProcessStage, tmp_path: Path) -> None:
    hop = await begun(stage.launch(async_process, "wait_for_file", str(tmp_path / "a")), tmp_path / "a")
    os.kill(stage.pid, signal.SIGKILL)
    assert (await hop.reply()).outcome == "lost"


async def test_an_idle_worker_that_dies_is_replaced(stage: ProcessStage) -> None:
    await stage.run(alone, "who_am_i", None)
    pid = stage.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: stage.processes.workers() == [])
    assert is_reaped(pid)
    assert value_of(await stage.run(alone, "who_am_i", None))["pid"] != pid


async def test_a_fenced_hop_is_killed_and_nobody_knows_how_far_it_came(stage: ProcessStage, tmp_path: Path) -> None:
    hop = await begun(stage.launch(def_process, "wait_for_file", str(tmp_path / "a")), tmp_path / "a")
    pid = stage.pid
    hop.actor.fence()
    assert (await hop.reply()).outcome == "cancelled"
    assert is_reaped(pid)


async def test_interrupting_workers_does_nothing(stage: ProcessStage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hop = await begun(stage.launch(def_process, "wait_for_file", str(gate)), gate)
    os.kill(stage.pid, signal.SIGINT)
    gate.touch()
    assert (await hop.reply()).outcome == "ok"
    os.kill(stage.pid, signal.SIGINT)
    assert (await stage.run(def_process, "echo", 1)).outcome == "ok"


async def test_a_hop_whose_time_is_up_dies_with_its_worker_and_what_it_started(
    stage: ProcessStage, tmp_path: Path
) -> None:
    await stage.run(alone, "who_am_i", None)
    gate = tmp_path / "gate"
    hop = stage.launch(alone, "keep_the_interpreter", str(gate), timeout=2)
    assert (await hop.reply()).outcome == "timed_out"
    worker, sleeper = pids_in(gate)
    assert (await hop.reply(2)).outcome == "cancelled"
    assert is_reaped(worker)
    await until(lambda: not is_there(sleeper))
    assert stage.processes.statistics()["kills"] == 1


async def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path, short_directory: str) -> None:
    gates = [tmp_path / "a", tmp_path / "b"]
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.process_parent", *map(str, gates), env=sockets_in(short_directory)
    )
    try:
        await until(lambda: all(Path(f"{gate}.begun").exists() for gate in gates))
        pids = [pid for gate in gates for pid in pids_in(gate)]
        assert all(is_there(pid) for pid in pids)
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: not any(is_there(pid) for pid in pids))


# Collapsing


async def test_workers_that_die_on_import_lose_their_hops_and_then_the_spawner_rests() -> None:
    told: list[str] = []
    async with staged(RestartIntensity(process.MAX_DEATHS, 600.0)) as stage:  # however slow this machine is
        stage.processes.on_collapse = told.append
        outcomes = [(await stage.run(dying, "never", 1)).outcome for _ in range(8)]
        assert outcomes == ["lost"] * 8
        statistics = stage.processes.statistics()
    assert (statistics["starts"], statistics["deaths"], statistics["collapses"]) == (6, 6, 1)
    assert len(told) == 1
    assert "exit status 9" in told[0]


def interpreter(directory: Path, does: str) -> str:
    """A program in the place of Python that does something else."""
    path = directory / "python"
    path.write_text(f"#!/bin/sh\nexec {does}\n")
    path.chmod(0o700)
    return str(path)


async def test_workers_that_cannot_start_are_given_up_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    async with staged(intensity := RestartIntensity(2, 2.0)) as stage:
        stage.processes.on_collapse = told.append
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", interpreter(tmp_path, "false"))
            hops = [stage.launch(alone, "who_am_i", None) for _ in range(3)]
            assert [(await hop.reply()).outcome for hop in hops] == ["lost"] * 3
            assert stage.processes.statistics()["starts"] == 3
            assert len(told) == 1
        await until(lambda: not intensity.cooling_down(stage.loop.time()))
        assert (await stage.run(alone, "who_am_i", None)).outcome == "ok"


async def test_a_python_that_is_not_there_is_a_worker_that_cannot_start(
    stage: ProcessStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert (await stage.run(alone, "who_am_i", None)).outcome == "lost"
    assert stage.processes.statistics()["collapses"] == 1


async def test_a_worker_that_never_gets_ready_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, "sleep 600"))
    async with staged(RestartIntensity(1, 60.0)) as stage:
        hop = stage.launch(alone, "who_am_i", None)
        assert (await hop.reply()).outcome == "lost"
        assert stage.processes.statistics()["kills"] == 2


def test_intensity_counts_failures_within_its_window() -> None:
    intensity = RestartIntensity(2, 10.0)
    assert not any(intensity.record(now) for now in (0.0, 1.0, 10.5, 11.5))
    assert not intensity.cooling_down(11.5)
    assert intensity.record(11.6)
    assert intensity.cooling_down(21.5)
    assert not intensity.cooling_down(21.7)
    assert not any(intensity.record(now) for now in (22.0, 22.1))
    assert intensity.record(22.2)


# Closing


async def test_closing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ba-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        before = children(), len(listing("/proc/self/fd"))
        stage = ProcessStage(3)
        gate = tmp_path / "gate"
        running = await begun(stage.launch(def_process, "wait_for_file", str(gate)), gate)
        await stage.run(def_process, "echo", 1)
        stage.launch(alone, "who_am_i", None)  # for a worker that is still starting
        await asyncio.sleep(0)
        [made] = listing(directory)
        assert made.stat().st_mode & 0o777 == 0o700
        await stage.close()
        assert (await running.reply()).outcome == "cancelled"
        assert (children(), len(listing("/proc/self/fd"))) == before
        assert listing(directory) == []


async def test_closing_kills_who_resists(stage: ProcessStage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    await begun(stage.launch(def_process, "wait_for_file", str(gate)), gate)
    pid = stage.pid
    os.kill(pid, signal.SIGSTOP)
    await stage.processes.close(0.4)
    assert is_reaped(pid)


async def test_a_hop_that_comes_after_closing_is_lost(stage: ProcessStage) -> None:
    await stage.processes.close(1)
    assert (await stage.run(alone, "who_am_i", None)).outcome == "lost"


async def test_a_close_that_is_cancelled_still_leaves_nothing(tmp_path: Path) -> None:
    stage = ProcessStage()
    gate = tmp_path / "gate"
    await begun(stage.launch(def_process, "wait_for_file", str(gate)), gate)
    pid = stage.pid
    os.kill(pid, signal.SIGSTOP)
    closing = asyncio.create_task(stage.processes.close(60))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert is_reaped(pid)
    await stage.close()


# Elsewhere


def test_it_runs_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> list[str]:
        stage = ProcessStage()
        await stage.run(alone, "who_am_i", None)
        outcomes = [(await stage.run(alone, step, None)).outcome for step in ("who_am_i", "exit_hard", "who_am_i")]
        await stage.close()
        return outcomes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == ["ok", "lost", "ok"]


async def test_a_lost_hop_is_delivered_again(tmp_path: Path) -> None:
    async with Mesh(once, processes=1) as mesh:
        transaction = await mesh.stimulate("once", {"value": str(tmp_path / "died")})
        pid = await transaction.result(timeout=60)
        assert pid != os.getpid()
        assert transaction.status == "completed"
        deliveries = [pulse for pulse in transaction.pulses() if pulse.kind == "spawned"]
        assert len(deliveries) == 2
    assert is_reaped(pid)


def test_a_program_that_ends_without_closing_leaves_no_worker(short_directory: str) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from mesh.spawners.process.spawner import ProcessSpawner\n"
        "from tests.e2e.process_steps import alone\n"
        "from tests.spawning import Stage\n"
        "async def main():\n"
        "    stage = Stage(ProcessSpawner(1))\n"
        "    reply = await stage.run(alone, 'who_am_i', None)\n"
        "    print(stage.spawner.workers()[0][0], flush=True)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=sockets_in(short_directory),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pid = int(done.stdout)
    asyncio.run(until(lambda: not is_there(pid)))
    assert done.stderr == ""
