"""The demo's processes: started with the same commands that a user would type, and all ended, whatever happens.

Each is told to stop when its standard input ends, so they go with us even if we are killed.  Each leads a process
group of its own, so Ctrl-C in the terminal reaches only us, and we stop them in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from bitactor.errors import BitActorError

READY_WITHIN: Final = 60.0
STOP_WITHIN: Final = 3.0


class DemoProcess(NamedTuple):
    """A process that has said that it is ready."""

    name: str
    process: asyncio.subprocess.Process
    ready: Mapping[str, Any]
    """The line that the process printed when it was ready."""


class DemoProcesses:
    """The processes of one demo; within `contextlib.aclosing`, none is left at the end."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        ours = {name: value for name, value in os.environ.items() if not name.startswith("BITACTOR_")}
        self._environment = {**ours, **environment}
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, arguments: Sequence[str]) -> DemoProcess:
        """Start `bitactor ARGUMENTS --json --until-stdin-closes`, and wait until it says that it is ready.

        Raises:
            BitActorError: it ended instead, or took too long; with the last it said.
        """
        with (self._logs / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bitactor", *arguments, "--json", "--until-stdin-closes",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._running[name] = process
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_WITHIN):
                line = await process.stdout.readline()
            return DemoProcess(name, process, json.loads(line))
        except (TimeoutError, ValueError):
            raise BitActorError(f"the demo's {name} did not come up: {self._last_log_line(name)}") from None

    async def aclose(self) -> None:
        """Ask all processes to stop, and kill with their groups those that have not in time; twice is once."""
        running = [process for process in reversed(self._running.values()) if process.returncode is None]
        self._running.clear()
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        waiting = asyncio.gather(*(process.wait() for process in running))
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await asyncio.shield(waiting)
        except BaseException as error:
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await waiting
            if not isinstance(error, TimeoutError):
                raise

    def _last_log_line(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
