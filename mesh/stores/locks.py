"""Who keeps a journal's file locked, as far as this machine says."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


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
