"""Who keeps a journal's file locked, as far as this machine says, and what the log says of it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_log = logging.getLogger("bitactor.store")

SAY_AGAIN: Final = 60.0
"""Seconds after which it is said again that a file is still locked."""
SAY_ANOTHER: Final = 10.0
"""Seconds after which it is said that a file is locked once more."""


class LockNotice:
    """What the log says of a file that others keep locked: once while that lasts, and again each minute, whoever waits
    for it.  For any thread."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._said = self._quiet_until = float("-inf")
        self._lock = threading.Lock()

    def say(self, patience: float) -> None:
        """Say what is waited for, for up to so many seconds, if it was not said before."""
        now = self._now()
        with self._lock:
            if now < self._quiet_until:
                return
            self._said, self._quiet_until = now, now + SAY_AGAIN
        _log.warning(
            "%s: waits for another process that keeps this file locked%s, for up to %.3g s; end what holds it "
            "(`fuser %s` names who has it open)", self._path, lockers(self._path), patience, self._path,
        )  # fmt: skip

    def end(self) -> None:
        """The file could be written: from now on, a lock is another one."""
        with self._lock:
            self._quiet_until = min(self._quiet_until, self._said + SAY_ANOTHER)


def lockers(path: Path) -> str:
    """The processes that keep others from writing this SQLite file, for a message: ` (process 17: python shop.py)`;
    empty where that cannot be known."""
    pids: dict[int, None] = {}
    with suppress(OSError, ValueError, IndexError):
        files = {_file_id(file) for file in (path, Path(f"{path}-shm")) if file.exists()}
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            # `1: POSIX  ADVISORY  WRITE 17 fd:00:2097 120 120`; a second line of a lock, who waits for it, has `->`.
            fields = line.split()
            if fields[1] != "->" and fields[3] == "WRITE" and fields[5] in files:
                pids[int(fields[4])] = None
    named = [_name(pid) for pid in pids if pid > 0]
    return f" ({', '.join(named)})" if named else ""


def _file_id(path: Path) -> str:
    """How `/proc/locks` names a file: `fd:00:2097`."""
    found = path.stat()
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"


def _name(pid: int) -> str:
    if pid == os.getpid():
        return "this process, by another connection"
    command = b""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    words = " ".join(command.replace(b"\0", b" ").decode(errors="replace").split())[:80]
    return f"process {pid}: {words}" if words and words.isprintable() else f"process {pid}"
