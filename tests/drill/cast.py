"""The processes of a drill, each killed, stopped, woken and restarted as a plan says that is drawn from a seed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx2
import psutil

from tests.e2e.processes import Process

KINDS = ("kill", "kill", "stop", "stop", "stop", "terminate")
"""Faults, each as often as it stands here."""

STOPPED = (0.2, 6.0)
"""Seconds a stopped process stands still."""

DOWN = (0.0, 2.0)
"""Seconds until a process that ended is started again."""

HEALED_WITHIN = 60.0
"""Seconds after the last fault in which all must be ready."""


class Fault(NamedTuple):
    """One entry of the plan."""

    at: float
    """Seconds after the beginning."""
    victim: str
    kind: str
    seconds: float
    """How long it stands still, or is gone."""


def drawn(seed: int, seconds: float, every: float, victims: Sequence[str]) -> list[Fault]:
    """A plan of faults, one each `every` seconds on the whole."""
    chance = random.Random(seed)
    plan: list[Fault] = []
    at = 0.0
    while (at := at + chance.uniform(0, 2 * every)) < seconds:
        kind = chance.choice(KINDS)
        plan.append(Fault(at, chance.choice(victims), kind, chance.uniform(*(STOPPED if kind == "stop" else DOWN))))
    return plan


class Stop(NamedTuple):
    """A process and its worker processes stood still, until then."""

    pids: frozenset[int]
    until_ns: int
    """`CLOCK_BOOTTIME`."""


class Member:
    """One of the cast, whichever process it is at the moment."""

    def __init__(self, name: str, arguments: Sequence[str], environment: dict[str, str], directory: Path) -> None:
        self.name = name
        self.url = ""
        self.busy = False
        """Whether a fault is on it."""
        self.process: Process | None = None
        self.ends: list[str] = []
        """Ends that nobody had asked for, in words."""
        self.stops: list[Stop] = []
        self.errors = directory / f"{name}.stderr"
        self._arguments = arguments
        self._environment = environment

    async def start(self) -> None:
        with self.errors.open("a") as errors:
            self.process = Process("-m", "mesh.cli", *self._arguments, environment=self._environment, stderr=errors)
        words = await asyncio.to_thread(self.process.expect, "{")
        self.url = json.loads(" ".join(words)).get("http") or ""

    async def suffer(self, fault: Fault) -> None:
        """Let a fault have its course."""
        self.busy = True
        try:
            assert self.process is not None
            if (code := self.process.child.poll()) is not None:
                self.ends.append(f"{self.name} ended by itself with {code}")
            elif fault.kind == "stop":
                await self._stand_still(fault.seconds)
                return
            elif fault.kind == "kill":
                self.process.kill()
            else:
                await self._terminate()
            await asyncio.to_thread(self.process.close)
            await asyncio.sleep(fault.seconds)
            await self.start()
        finally:
            self.busy = False

    async def end(self) -> None:
        """End it in order, for good."""
        if self.process is not None:
            if self.process.child.poll() is None:
                await self._terminate()
            else:
                self.ends.append(f"{self.name} ended by itself with {self.process.child.returncode}")
            await asyncio.to_thread(self.process.close)
            self.process = None

    def abandon(self) -> None:
        """Kill it, whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.close()

    async def healthy(self, client: httpx2.AsyncClient) -> None:
        """Wait until it says that it is ready, if it can be asked."""
        async with asyncio.timeout(HEALED_WITHIN):
            while self.url:
                with suppress(httpx2.TransportError):
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    async def _stand_still(self, seconds: float) -> None:
        """Stop the process, its worker processes too, as a paused container's are."""
        assert self.process is not None
        whole = [
            self.process.child.pid,
            *(child.pid for child in psutil.Process(self.process.child.pid).children(True)),
        ]
        for pid in whole:
            _send(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.stops.append(Stop(frozenset(whole), time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
            for pid in reversed(whole):
                _send(pid, signal.SIGCONT)

    async def _terminate(self) -> None:
        assert self.process is not None
        self.process.child.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.process.child.wait, HEALED_WITHIN)
        if code != 0:
            self.ends.append(f"{self.name} was told to end in order, and ended with {code}")


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).send_signal(number)


class Cast:
    """A registry, two services and two workers; `shared`: the services have one store, and one of them hosts too."""

    def __init__(self, directory: Path, *, shared: bool) -> None:
        self.effects = directory / "effects"
        self.effects.touch()
        self.shared = shared
        registry = f"ipc://{directory}/registry"
        environment = {"DRILL_EFFECTS": str(self.effects), "BITACTOR_PROCESSES": "1", "BITACTOR_THREADS": "4"}
        self.members: dict[str, Member] = {}
        self.services: list[Member] = []
        of = {"a": "a.db", "b": "a.db" if shared else "b.db", "x": "x.db", "y": "y.db"}
        self.stores = sorted({directory / name for name in of.values()})

        def add(name: str, *arguments: str) -> Member:
            member = self.members[name] = Member(name, [*arguments, "--json"], environment, directory)
            return member

        def run(name: str, *arguments: str) -> Member:
            store = f"sqlite:///{directory / of[name]}"
            where = ("--store", store, "--registry", registry, "--drain", "2")
            return add(name, "run", "tests.drill.shop:definitions", *where, *arguments)

        add("registry", "registry", "serve", registry, "--state", str(directory / "boot"))
        for name in ("a", "b"):
            hosting = () if shared and name == "b" else ("--no-host",)
            self.services.append(run(name, "--http", "0", *hosting))
        run("x")
        run("y")

    async def start(self) -> None:
        for member in self.members.values():
            await member.start()

    async def suffer(self, plan: Sequence[Fault]) -> int:
        """Carry the plan out; the answer is how many faults there were, for one that meets a victim still busy with the
        last is left out."""
        loop = asyncio.get_running_loop()
        begun, done = loop.time(), 0
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await asyncio.sleep(begun + fault.at - loop.time())
                member = self.members[fault.victim]
                if not member.busy:
                    member.busy = True
                    done += 1
                    group.create_task(member.suffer(fault))
        return done

    async def end(self) -> list[str]:
        """End all in order, the registry last; the answer is what went wrong with processes."""
        found = []
        for member in reversed(self.members.values()):
            await member.end()
            found += member.ends
            said = member.errors.read_text()
            found += [
                f"{member.name} said {word!r}: {line}"
                for line in said.splitlines()
                for word in ("Traceback", "defect", "critical", "CRITICAL")
                if word in line
            ]
        return found

    def abandon(self) -> None:
        for member in reversed(self.members.values()):
            member.abandon()
