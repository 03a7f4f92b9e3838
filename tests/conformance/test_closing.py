"""What the log says of an orderly close, whatever is under way: nothing that alarms."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitactor import Backoff, Context, Resource, Retry, Workflow
from bitactor.patterns import RateLimit
from mesh import Mesh
from mesh.hops import lifecycle
from mesh.ingress.server import HttpServer
from mesh.sinks import JsonlSink
from registry import RegistryServer
from tests.conformance.claims import claim
from tests.e2e.support import BOUND, until

SECTION = "Starting and stopping"

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resource that is still being made when the mesh closes is not waited for."""
    monkeypatch.setattr(lifecycle, "CLOSE_WITHIN", 0.01)


@contextmanager
def quiet(caplog: pytest.LogCaptureFixture, *allowed: str) -> Iterator[None]:
    """Nothing is logged as a warning or worse, but lines with these words."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield
    said = [f"{record.levelname} {record.name}: {record.getMessage()}" for record in caplog.records]
    assert [line for line in said if not any(words in line for words in allowed)] == []


class Busy:
    """A workflow with something under way of each kind, until `release`."""

    def __init__(self) -> None:
        self.workflow = workflow = Workflow("busy", ttl=8, deadline=600.0, resources=[Resource("slow", self._make)])
        self._free = threading.Event()
        self.begun: set[str] = set()

        @workflow.step
        async def on_loop() -> None:
            self.begun.add("loop")
            await asyncio.Event().wait()

        @workflow.step
        async def swallows() -> None:
            self.begun.add("swallows")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

        @workflow.step
        def in_thread() -> None:
            self.begun.add("thread")
            self._free.wait(BOUND)

        @workflow.step(retries=3, backoff=Backoff(initial=100.0, jitter=0))
        async def backs_off(ctx: Context) -> Retry:
            self.begun.add("backs off")
            return Retry("later")

        @workflow.step
        async def makes(slow: Any) -> None: ...

        @workflow.step(policies=[RateLimit("one", per_second=0.001)])
        async def limited() -> None:
            self.begun.add("limited")
            await asyncio.Event().wait()

        @workflow.step
        async def compensated() -> None:
            raise ValueError("so that it is asked")

        @compensated.compensate
        async def considers() -> None:
            self.begun.add("compensate")
            await asyncio.Event().wait()

        @workflow.step
        async def emits(ctx: Context) -> None:
            await ctx.emit("nobody listens", 1)
            self.begun.add("emits")

    async def _make(self) -> Any:
        self.begun.add("resource")
        await asyncio.Event().wait()

    def release(self) -> None:
        self._free.set()

    async def wait(self) -> None:
        await until(lambda: len(self.begun) == 8, f"{self.begun}")


@claim(
    SECTION,
    "Closing logs no warning, whatever is under way: steps on the loop and in threads, retries, resources, policies, "
    "compensations, signals, sinks.",
)
@pytest.mark.parametrize("drain", [0, 0.05])
async def test_with_everything_under_way(
    drain: float, sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Busy()
    with quiet(caplog):
        async with Mesh(busy.workflow, store=sqlite, drain=drain, sinks=[JsonlSink(tmp_path / "pulses")]) as mesh:
            waiting = asyncio.ensure_future((await mesh.stimulate("busy")).result())
            await busy.wait()
            busy.release()
        await asyncio.wait([waiting])
        assert "still running when its mesh was closed" in str(waiting.exception())


@claim(SECTION, "What a store in memory loses when it is closed is said in one line of the log.")
async def test_what_a_store_in_memory_loses_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    busy = Busy()
    with quiet(caplog, "1 transactions that still ran after 0 s of draining are gone"):
        async with Mesh(busy.workflow, drain=0) as mesh:
            await mesh.stimulate("busy")
            await busy.wait()
            busy.release()
    assert len(caplog.records) == 1


@claim(SECTION, "Closing with the registry gone, or with hops on another node, logs no warning.")
async def test_with_the_registry_gone_and_with_hops_elsewhere(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    busy, registry = Busy(), f"ipc://{tmp_path}/registry"
    with RegistryServer(registry) as server, quiet(caplog):
        owner = Mesh(busy.workflow, store=sqlite, drain=0, registry=registry, hosts=False, patience=BOUND)
        async with owner, Mesh(busy.workflow, drain=0, registry=registry):
            await owner.stimulate("busy")
            await busy.wait()
            busy.release()
            await asyncio.to_thread(server.stop)


@claim(SECTION, "Closing with HTTP clients that wait logs no warning, and they are told where to look.")
async def test_with_clients_of_the_ingress(sqlite: str, caplog: pytest.LogCaptureFixture) -> None:
    busy = Busy()
    server = HttpServer(Mesh(busy.workflow, store=sqlite, drain=0), port=0)

    def ask() -> tuple[int, Any]:
        request = urllib.request.Request(f"{server.url}/stimuli/busy", b"{}", {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=BOUND) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    with quiet(caplog):
        serving = asyncio.ensure_future(server.run())
        await server.started.wait()
        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        await busy.wait()
        server.stop()
        busy.release()
        status, problem = await asking
        await serving
    assert status == 503 and "look for it later" in problem["detail"]


@claim(
    SECTION,
    "`bitactor run` says nothing on stderr when SIGTERM ends it in the middle of its work, in a worker process too.",
)
def test_bitactor_run_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        textwrap.dedent("""
        import asyncio, sys
        from bitactor import Context, Workflow

        busy = Workflow("busy", ttl=4)

        @busy.step
        async def waits() -> None:
            print("at work", flush=True)
            await asyncio.Event().wait()

        @busy.step(spawn="process")
        def computes() -> None:
            import threading
            threading.Event().wait()
        """)
    )
    words = ["run", "shop:busy", "--store", f"sqlite:///{tmp_path}/pulses.db", "--http", "0", "--drain", "0"]
    child = subprocess.Popen(
        [sys.executable, "-m", "bitactor", *words],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        url = next(part for part in child.stdout.readline().split("; ") if part.startswith("http"))
        headers = {"Prefer": "respond-async", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/stimuli/busy", b"{}", headers)
        with urllib.request.urlopen(request, timeout=BOUND) as answer:
            assert answer.status == 202
        assert child.stdout.readline() == "at work\n"
        child.send_signal(signal.SIGTERM)
        said, complained = child.communicate(timeout=BOUND * 3)
        assert (child.returncode, said, complained) == (0, "", "")
    finally:
        child.kill()
        child.communicate()
