"""Running one program to its end: it leads a process group of its own, and nothing of that group outlives it.

Processes of a step, also those of a worker that is gone, are found by a mark in their environment: on Linux only, and
only what runs on this machine for this user.  A process that was started with another environment is not found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from typing_extensions import override

from bitactor.declare.context import Context

KEY_VARIABLE: Final = "BITACTOR_IDEMPOTENCY_KEY"
"""Environment variable with the step's idempotency key: the mark of all its attempts and deliveries."""
ATTEMPT_VARIABLE: Final = "BITACTOR_ATTEMPT"
"""Environment variable with the mark of one delivery of one attempt."""
_POLL_SECONDS: Final = 0.02
_DRAIN_WITHIN: Final = 1.0
"""Seconds to wait for the output's end, once everything that belongs to the program is gone; somebody else may hold the
pipe."""
_REAP_WITHIN: Final = 5.0
"""Seconds for the kernel to end and hand over what was killed; a process that hangs in a device cannot be waited
for."""


class ProgramResult(NamedTuple):
    """How a program ended."""

    returncode: int
    """The program's exit code; negative: the signal that killed it."""
    stdout: bytes
    stderr: bytes
    """The last bytes that the program wrote to its standard error."""


class OutputTooLarge(Exception):
    """The program's output was larger than allowed; the program has been ended."""


class _Capture(asyncio.Protocol):
    """The output that comes through one pipe, up to a bound: beyond it either the beginning is dropped, or a callback
    told."""

    def __init__(self, max_bytes: int, *, tail: bool) -> None:
        self.data = bytearray()
        self.full = asyncio.Event()
        self.ended = asyncio.Event()
        self._max_bytes = max_bytes
        self._tail = tail
        self._transport: asyncio.BaseTransport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > self._max_bytes:
            if self._tail:
                del self.data[: -self._max_bytes]
            else:
                self.full.set()
                self.close()

    @override
    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def run_program(
    arguments: Sequence[str],
    *,
    given: bytes,
    environment: Mapping[str, str],
    directory: str | None,
    mark: str,
    grace: float,
    max_bytes: int,
) -> ProgramResult:
    """Run a program to its end.  Whoever cancels this waits until nothing of the program is left: `SIGTERM`, and after
    `grace` seconds `SIGKILL`.

    Args:
        mark: a variable of its environment and the value, by which all its processes are found.

    Raises:
        OSError: the program cannot be started.
        OutputTooLarge: its output has more than `max_bytes` bytes.
    """
    out, err = _Capture(max_bytes, tail=False), _Capture(max_bytes, tail=True)
    with contextlib.ExitStack() as stack:
        process = await _start(stack, (out, err), given, arguments, directory, environment)
        leader, full = asyncio.ensure_future(process.wait()), asyncio.ensure_future(out.full.wait())
        try:
            await asyncio.wait((leader, full), return_when=asyncio.FIRST_COMPLETED)
            if leader.done():
                if _signal_group(process.pid, 0):  # it has left something behind
                    await end_leftovers(mark, grace, process.pid)
                    _signal_group(process.pid, signal.SIGKILL)
                await _drain(out, err)
            if out.full.is_set():
                raise OutputTooLarge
            return ProgramResult(leader.result(), bytes(out.data), bytes(err.data))
        except GeneratorExit:  # the loop is closed around us: nothing can be awaited
            _kill(process.pid, mark)
            raise
        except BaseException:
            await _end(process.pid, leader, mark, grace)
            raise
        finally:
            full.cancel()


async def _start(
    stack: contextlib.ExitStack,
    captures: Sequence[_Capture],
    given: bytes,
    arguments: Sequence[str],
    directory: str | None,
    environment: Mapping[str, str],
) -> asyncio.subprocess.Process:
    with contextlib.ExitStack() as ends:
        out, err = [await _pipe(stack, ends, capture) for capture in captures]
        return await asyncio.create_subprocess_exec(
            *arguments,
            stdin=_source(ends, given),
            stdout=out,
            stderr=err,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )


async def _pipe(stack: contextlib.ExitStack, ends: contextlib.ExitStack, capture: _Capture) -> int:
    """A pipe whose one end is captured; returns the other, for the program."""
    reading, writing = os.pipe()
    ends.callback(os.close, writing)
    stack.callback(capture.close)
    await asyncio.get_running_loop().connect_read_pipe(lambda: capture, os.fdopen(reading, "rb", buffering=0))
    return writing


def _source(ends: contextlib.ExitStack, given: bytes) -> int:
    """A file in memory from which the program reads `given`, so that nobody has to feed it."""
    handle = os.memfd_create("bitactor-input", os.MFD_CLOEXEC)
    ends.callback(os.close, handle)
    view = memoryview(given)
    while view:
        view = view[os.write(handle, view) :]
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


async def _end(group: int, leader: asyncio.Future[int], mark: str, grace: float) -> None:
    """End all processes of the program and wait until none is left; whoever cancels this in the meantime has them
    killed at once."""
    try:
        await end_leftovers(mark, grace)
    finally:
        _kill(group, mark)
        until = asyncio.get_running_loop().time() + _REAP_WITHIN
        interrupted: asyncio.CancelledError | None = None
        while not leader.done() and (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.wait((leader,), timeout=left)
            except asyncio.CancelledError as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted


def _kill(group: int, mark: str) -> None:
    """Kill all processes of the program and do not wait: for when nothing can be awaited any more."""
    _signal_group(group, signal.SIGKILL)
    _send_signal(mark, None, signal.SIGKILL)


async def _drain(*captures: _Capture) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_WITHIN):
            for capture in captures:
                await capture.ended.wait()


def _signal_group(group: int, which: int) -> bool:
    """Send a signal to a process group; True: there is such a group."""
    try:
        os.killpg(group, which)
    except (ProcessLookupError, PermissionError):
        return False
    return True


async def end_leftovers(mark: str, grace: float, group: int | None = None) -> int:
    """Terminate all processes with that mark, `VARIABLE=value`, kill those that are still there after `grace` seconds,
    and wait.  Returns how many there were.

    `group`: only those of that process group.
    """
    found = _send_signal(mark, group, signal.SIGTERM)
    if found and not await _wait_until_gone(mark, group, grace, None):
        await _wait_until_gone(mark, group, _REAP_WITHIN, signal.SIGKILL)
    return found


def hop_environment(ctx: Context) -> dict[str, str]:
    """The environment variables that the processes of a hop are given."""
    return {KEY_VARIABLE: ctx.idempotency_key, ATTEMPT_VARIABLE: f"{ctx.hop}-{ctx.signal.delivery}"}


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
