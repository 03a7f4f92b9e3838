"""Real processes for the end-to-end tests, each reaped when its test is over."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests import warm

PATIENCE = 30.0
"""Seconds to wait for something that takes milliseconds on an idle machine."""


class Process:
    """A child that talks in lines."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, stderr: int | IO[Any] = 2) -> None:
        given = {"PYTHONPATH": str(warm.ROOT)} | (environment or {})
        self.child = warm.start(arguments, env=os.environ | given, stderr=stderr, text=True)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def expect(self, beginning: str) -> list[str]:
        """The words of the next line that begins so."""
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            if line.startswith(beginning):
                return line.split()
        raise AssertionError(f"the child ended (code {self.child.wait()}) without saying {beginning!r}")

    def tell(self, line: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def kill(self) -> None:
        self.child.kill()
        self.child.wait(PATIENCE)

    def close(self) -> None:
        """End of file on stdin; a child that does not end by itself is a failure."""
        assert self.child.stdin is not None and self.child.stdout is not None
        with suppress(BrokenPipeError):
            self.child.stdin.close()
        try:
            self.child.wait(PATIENCE)
        finally:
            if self.child.poll() is None:
                self.child.kill()
                self.child.wait()
            self._reader.join(PATIENCE)
            self.child.stdout.close()


def stop(process: Process) -> None:
    os.kill(process.child.pid, signal.SIGSTOP)


def wake(process: Process) -> None:
    os.kill(process.child.pid, signal.SIGCONT)


class Town:
    """A registry and nodes around a test."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ba-"))
        self.users = self.directory / "users"
        self.users.mkdir()
        self.notes = self.directory / "notes"
        self.notes.mkdir()
        self.registry = f"ipc://{self.directory}/registry"
        self.processes: list[Process] = []

    def serve_registry(self) -> Process:
        process = self._add(Process("-m", "tests.e2e.registry_process", self.registry, str(self.directory / "boot")))
        process.expect("ready")
        return process

    def node(self, *uses: str, program: str = "node_process", **options: Any) -> Process:
        options = {"uses": uses, "registry": self.registry} | options
        process = self._add(
            Process("-m", f"tests.e2e.{program}", json.dumps(options), environment={"USERS": str(self.users)})
        )
        process.expect("ready")
        return process

    def counted(self, what: str) -> int:
        path = self.notes / what
        return path.stat().st_size if path.exists() else 0

    def _add(self, process: Process) -> Process:
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self.processes):
            process.close()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def town() -> Iterator[Town]:
    """A town that is gone afterwards."""
    made = Town()
    os.environ["USERS"] = str(made.users)
    try:
        yield made
    finally:
        os.environ.pop("USERS", None)
        made.close()
