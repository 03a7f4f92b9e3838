"""A node that starts while no registry answers waits for it, says so, and can be stopped meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitactor import Workflow
from bitactor.errors import BitActorError
from mesh import Mesh
from mesh.network import links
from registry import AlreadyRegistered, HolderInUse, RegistryClient, RegistryServer, RegistryTimeout
from tests.conformance.claims import claim
from tests.e2e.support import BOUND

SECTION = "Starting and stopping"

ROOT = Path(__file__).parents[2]
WAITS, GOES_ON = "this node waits for its registry", "this node goes on"


def answering() -> Workflow:
    workflow = Workflow("answering")

    @workflow.step
    async def answers() -> str:
        return "answer"

    return workflow


class Said(logging.Handler):
    """Waits for lines of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._loop.call_soon_threadsafe(self._came.set)

    async def wait_for(self, words: str) -> None:
        async with asyncio.timeout(BOUND):
            while not any(words in line for line in self.lines):
                self._came.clear()
                await self._came.wait()


@pytest.fixture
async def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(links, "SAY_AFTER", 0.01)
    handler, logger = Said(), logging.getLogger("bitactor.links")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@claim(
    SECTION,
    "A node that starts while no registry answers waits for one, says so once, and goes on when there is one.",
)
@pytest.mark.parametrize("hosts", [True, False])
async def test_it_waits_and_goes_on_once_there_is_one(hosts: bool, said: Said, tmp_path: Path) -> None:
    registry = f"ipc://{tmp_path}/registry"
    mesh = Mesh(answering(), registry=registry, hosts=hosts)
    opening = asyncio.ensure_future(mesh.__aenter__())
    await said.wait_for(WAITS)
    assert f"nobody answers at {registry}" in said.lines[0] and mesh.state == "opening"
    with RegistryServer(registry):
        async with asyncio.timeout(BOUND):
            await opening
        assert GOES_ON in said.lines[-1]
        assert len(said.lines) == 2, "once"
        async with Mesh(answering(), registry=registry):
            assert await (await mesh.stimulate("answering")).result(BOUND) == "answer"
        await mesh.close()


@claim(SECTION, "A node that waits for a registry is stopped at once.")
async def test_a_stop_while_it_waits_ends_it_at_once(said: Said, tmp_path: Path) -> None:
    registry = f"ipc://{tmp_path}/registry"
    mesh = Mesh(answering(), registry=registry)
    opening = asyncio.ensure_future(mesh.__aenter__())
    await said.wait_for(WAITS)
    async with asyncio.timeout(BOUND):
        await mesh.close()
        with pytest.raises(BitActorError, match="was closed while it waited for a registry"):
            await opening
    assert mesh.state == "closed"
    cancelled = Mesh(answering(), registry=registry)
    opening = asyncio.ensure_future(cancelled.__aenter__())
    said.lines.clear()
    await said.wait_for(WAITS)
    opening.cancel()
    async with asyncio.timeout(BOUND):
        await asyncio.wait([opening])
    assert opening.cancelled() and cancelled.state == "closed"


@claim(SECTION, "A registry that goes away while a node registers its names is waited for too.")
async def test_one_that_goes_away_while_names_are_registered(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: Iterator[bool] = itertools.chain([False, True, True], itertools.repeat(False))

    class Leaving(RegistryClient):
        def register(self, name: str, value: Any = None, *, unique: bool = False, timeout: float = 5.0) -> Any:
            if next(refused):
                raise RegistryTimeout(f"the registry did not register {name!r} within {timeout:g} s")
            return super().register(name, value, unique=unique, timeout=timeout)

    monkeypatch.setattr(links, "RegistryClient", Leaving)
    with RegistryServer(f"ipc://{tmp_path}/registry"):
        async with Mesh(answering(), registry=f"ipc://{tmp_path}/registry") as mesh:
            assert await (await mesh.stimulate("answering")).result(BOUND) == "answer"
    told = [line for line in said.lines if "did not register" in line]
    assert [line.rpartition(" within ")[2] for line in told] == ["5 s", "10 s"], "ever more rarely"
    assert GOES_ON in said.lines[-1]


class OneId:
    """Two nodes get the same."""

    def __init__(self, prefix: str) -> None:
        self._numbers = (f"{prefix}{number:012x}" for number in itertools.count())

    def transaction(self) -> str:
        return f"{0:020x}{next(self._numbers)[-12:]}"


@claim(SECTION, "A registry that refuses a node, whose name is taken, is an error.")
async def test_a_registry_that_refuses_the_node_is_an_error_and_no_reason_to_wait_for_ever(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "REFUSED_FOR", 0.0)
    registry = f"ipc://{tmp_path}/registry"
    with RegistryServer(registry):
        async with Mesh(answering(), registry=registry, ids=OneId("a")):
            with pytest.raises((HolderInUse, AlreadyRegistered), match="n000000000000"):
                async with Mesh(answering(), registry=registry, ids=OneId("a")):
                    pass


@claim(SECTION, "While a registry is missing the log says so ever more rarely, down to once a minute.")
def test_the_pauses_between_lines_grow_to_a_minute() -> None:
    assert list(itertools.islice(links.pauses_between_lines(1.0), 6)) == [1, 10, 20, 40, 60, 60]


@claim(SECTION, "`bitactor run` waits for a registry as a mesh does, and a signal ends it with exit code 0.")
def test_bitactor_run_waits_too_and_a_signal_ends_it(tmp_path: Path) -> None:
    shop = "from bitactor import Workflow\nworkflow = Workflow('w')\n@workflow.step\ndef s(): return 1\n"
    (tmp_path / "shop.py").write_text(shop)
    registry = f"ipc://{tmp_path}/registry"
    words = [sys.executable, "-m", "bitactor", "run", "shop:workflow", "--registry", registry]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    child = subprocess.Popen(words, env=environment, text=True, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if WAITS in line:
                break
        child.send_signal(signal.SIGINT)
        assert child.wait(BOUND) == 0
    finally:
        child.kill()
        child.communicate()
