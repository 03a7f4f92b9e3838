"""Processes of a step, found by a mark in their environment: children and theirs, also of a worker that is gone.

Linux only, and only what runs on this machine for this user.  A process that was started with another environment is
not found.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bitactor.declare.context import Context

KEY_VARIABLE: Final = "BITACTOR_IDEMPOTENCY_KEY"
"""Environment variable with the step's idempotency key: the mark of all its attempts and deliveries."""
ATTEMPT_VARIABLE: Final = "BITACTOR_ATTEMPT"
"""Environment variable with the mark of one delivery of one attempt."""
_POLL_SECONDS: Final = 0.02
_KILL_TIMEOUT: Final = 5.0
"""Seconds that the kernel may take to end what was killed; one that hangs in a device cannot be waited for."""


async def end_leftovers(mark: str, grace: float, group: int | None = None) -> int:
    """Terminate all processes with that mark, `VARIABLE=value`, kill those that are still there after `grace` seconds,
    and wait.  Returns how many there were.

    `group`: only those of that process group.
    """
    found = _send_signal(mark, group, signal.SIGTERM)
    if found and not await _wait_until_gone(mark, group, grace, None):
        await _wait_until_gone(mark, group, _KILL_TIMEOUT, signal.SIGKILL)
    return found


def hop_environment(ctx: Context) -> dict[str, str]:
    """The environment variables that the processes of a hop are given."""
    return {KEY_VARIABLE: ctx.idempotency_key, ATTEMPT_VARIABLE: f"{ctx.hop}-{ctx.signal.delivery}"}


def format_mark(variable: str, value: str) -> str:
    """A mark as it stands in an environment."""
    return f"{variable}={value}"


def kill_leftovers(mark: str) -> None:
    """Kill all processes with that mark and do not wait: for when nothing can be awaited any more."""
    _send_signal(mark, None, signal.SIGKILL)


async def _wait_until_gone(mark: str, group: int | None, within: float, which: signal.Signals | None) -> bool:
    """Wait until the processes with that mark are gone; True: they are in time.  `which` goes to all that are not,
    again and again, for there may be new ones."""
    until = asyncio.get_running_loop().time() + within
    while any(_marked_pids(mark, group)):
        if asyncio.get_running_loop().time() >= until:
            return False
        if which is not None:
            _send_signal(mark, group, which)
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _send_signal(mark: str, group: int | None, which: signal.Signals) -> int:
    count = 0
    for pid in list(_marked_pids(mark, group)):
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if _has_mark(
                pid, mark
            ):  # once more, for the number may have gone to another process before the handle was opened
                signal.pidfd_send_signal(handle, which)
                count += 1
        except OSError:
            continue
        finally:
            os.close(handle)
    return count


def _marked_pids(mark: str, group: int | None) -> Iterator[int]:
    own = os.getpid()
    everybody = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return (
        pid for pid in everybody if pid != own and _has_mark(pid, mark) and (group is None or _group_of(pid) == group)
    )


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _has_mark(pid: int, mark: str) -> bool:
    """Whether the process runs with the mark; one that has ended and is only not yet reaped does not."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return mark.encode() in environment.split(b"\0")
