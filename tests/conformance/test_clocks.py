"""What clocks that are set, processes that start again and nodes that are asked at once make of a transaction: real
processes, whose wall clock libfaketime moves."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.conformance.claims import claim
from tests.e2e.support import BOUND

SECTION = "Time and clocks"

ROOT = Path(__file__).parents[2]
HOUR = 3_600

TIMED = """
    import asyncio, sys
    from bitactor import Context, DeadlineExceeded, Workflow
    from mesh import Mesh

    workflow = Workflow("timed", ttl=3, deadline=30.0, grace=0.1)
    named = asyncio.Event()

    def say(*words):
        print(*words, flush=True)

    async def told():
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    @workflow.step
    async def reserve() -> None:
        say("reserves")

    @reserve.undo
    async def release() -> None:
        say("releases")

    @workflow.step(after=["reserve"])
    async def pay() -> None:
        await named.wait()
        say("pays")
        await told()

    @workflow.step(after=["pay"])
    async def ship(ctx: Context) -> None:
        say("ships", round(ctx.deadline_left))
        await told()

    async def main(store, began=None):
        async with Mesh(workflow, store=store) as mesh:
            transaction = await (mesh.transaction(began) if began else mesh.stimulate(workflow))
            say("began", transaction.id)
            named.set()
            status = await transaction.ended(30)
            for error in transaction.errors():
                assert isinstance(error, DeadlineExceeded)
                say("error", error.clock, error.unattended, round(error.late_by / 60), error)
            at = [pulse.at_ns for pulse in transaction.pulses()]
            say("ended", status, "in order" if at == sorted(at) else at, round((at[-1] - at[0]) / 1e9 / 60), "min")

    asyncio.run(main(*sys.argv[1:]))
"""


class Clock:
    """The wall clock of the processes that are started with it; their monotonic ones are as they are."""

    def __init__(self, directory: Path) -> None:
        found = importlib.util.find_spec("libfaketime")
        if found is None or found.origin is None or not sys.platform.startswith("linux"):
            pytest.skip("libfaketime is not installed, or not for this system")
        self._file = directory / "clock"
        self.environment = {
            "LD_PRELOAD": str(Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: int) -> None:
        """The clock is so much ahead of the true time from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.rename(self._file)


class Node(subprocess.Popen[str]):
    """A process that talks in lines."""

    def __init__(self, directory: Path, clock: Clock, *arguments: str) -> None:
        program = directory / "timed.py"
        program.write_text(textwrap.dedent(TIMED))
        super().__init__(
            [sys.executable, str(program), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **clock.environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def lines_until(self, beginning: str) -> list[str]:
        """What it says, up to the line that begins so."""
        assert self.stdout is not None
        found: list[str] = []
        for line in self.stdout:
            found.append(line.strip())
            if line.startswith(beginning):
                return found
        raise AssertionError(f"it ended without saying {beginning!r}: {found}")

    def go_on(self) -> None:
        """Let the step that waits go on."""
        assert self.stdin is not None
        self.stdin.write("\n")
        self.stdin.flush()


@contextmanager
def process_of(directory: Path, clock: Clock, *arguments: str) -> Iterator[Node]:
    with Node(directory, clock, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()
            for left in Path("/dev/shm").glob(f"*faketime_s*_{process.pid}"):
                left.unlink(missing_ok=True)


@claim(
    SECTION,
    "Whoever sets the wall clock forward or back while a process runs a transaction moves none of its deadlines, and "
    "no time in its journal.",
)
def test_a_wall_clock_that_is_set(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with process_of(tmp_path, clock, f"sqlite:///{tmp_path}/journal.db") as process:
        process.lines_until("pays")
        clock.set(HOUR)
        process.go_on()
        assert process.lines_until("ships")[-1] in ("ships 30", "ships 29")
        clock.set(-HOUR)
        process.go_on()
        assert process.lines_until("ended")[-1] == "ended completed in order 0 min"


@claim(
    SECTION,
    "Over a restart the wall clock counts: a deadline that passed while no process ran the transaction is over, "
    "nothing is delivered again, all is undone, and the error says which clock it was, and how long ago.",
)
def test_a_deadline_that_passes_between_two_processes(killed: tuple[Path, str], tmp_path: Path) -> None:
    directory, began = killed
    clock = Clock(tmp_path)
    clock.set(HOUR)
    with process_of(tmp_path, clock, f"sqlite:///{directory}/journal.db", began) as process:
        said = process.lines_until("ended")
    assert said[-1] == "ended compensated in order 60 min"
    assert "releases" in said and "pays" not in said
    (error,) = [line for line in said if line.startswith("error")]
    assert error.startswith("error wall True 60 'timed' was taken over 3,5")
    assert "after its deadline, which passed, by the wall clock, while no process ran it" in error


@claim(
    SECTION,
    "A process takes over whose clock is behind: its pulses come after those that there are, and nothing waits for the "
    "clock to catch up.",
)
def test_a_process_whose_clock_is_behind(killed: tuple[Path, str], tmp_path: Path) -> None:
    directory, began = killed
    clock = Clock(tmp_path)
    clock.set(-HOUR)
    with process_of(tmp_path, clock, f"sqlite:///{directory}/journal.db", began) as process:
        process.lines_until("pays")
        process.go_on()
        assert process.lines_until("ships")[-1] in ("ships 30", "ships 29", "ships 28")
        process.go_on()
        assert process.lines_until("ended")[-1] == "ended completed in order 0 min"


RACED = """
    import os
    from bitactor import Workflow

    raced = Workflow("raced", input={"x": int}, ttl=1)

    @raced.step
    async def once(x: int) -> int:
        with open(os.environ["RUNS"], "a") as runs:
            runs.write(f"{x} ")
        return x
"""


def ask(url: str, method: str, path: str, body: str | None = None) -> HTTPConnection:
    """A request that is on its way."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=BOUND)
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"} if body else {}
    connection.request(method, path, body, headers)
    return connection


def answer(connection: HTTPConnection) -> tuple[int, dict[str, Any]]:
    """Its status and body."""
    with closing(connection):
        response = connection.getresponse()
        return response.status, json.loads(response.read() or "{}")


@claim(
    SECTION,
    "The same key and input at two nodes of one store at once begin one transaction, which every caller gets; another "
    "input with that key is refused.",
)
def test_equal_requests_at_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "raced.py").write_text(textwrap.dedent(RACED))
    journal, runs = tmp_path / "journal.db", tmp_path / "runs"
    words = ["-m", "bitactor", "run", "raced:raced", "--store", f"sqlite:///{journal}", "--http", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "RUNS": str(runs)}
    nodes = [warm.start(words, cwd=tmp_path, env=environment, text=True) for _ in range(2)]
    try:
        urls = [json.loads(node.stdout.readline())["http"] for node in nodes if node.stdout is not None]
        with closing(sqlite3.connect(journal, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")  # so that both nodes have begun it before either can keep it
            asked = [ask(url, "POST", "/stimuli/raced", '{"x": 1}') for url in urls * 3]
            others = [ask(url, "POST", "/stimuli/raced", '{"x": 2}') for url in urls]
            assert [answer(ask(url, "GET", "/livez"))[0] for url in urls * 2] == [200] * 4
            lock.execute("COMMIT")
        answers = [answer(one) for one in asked]
        assert {(status, told.get("result")) for status, told in answers} == {(200, 1)}, answers
        assert len({told["transaction"] for _, told in answers}) == 1
        assert {answer(one)[0] for one in others} == {409}
        assert runs.read_text() == "1 "
    finally:
        for node in nodes:
            node.kill()
            node.wait(BOUND)
            for stream in (node.stdin, node.stdout):
                assert stream is not None
                stream.close()


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store whose process was killed while it ran a transaction, and that."""
    directory = tmp_path_factory.mktemp("killed")
    with process_of(directory, Clock(directory), f"sqlite:///{directory}/journal.db") as process:
        began = process.lines_until("began")[-1]
        process.lines_until("pays")
    return directory, began.split()[-1]


@pytest.fixture
def killed(killed_once: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """A copy of it."""
    directory, began = killed_once
    for file in directory.glob("journal.db*"):
        shutil.copy(file, tmp_path)
    return tmp_path, began
