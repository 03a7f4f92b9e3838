"""One program run to its end, or ended: it leads a process group of its own, and nothing of that group outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from typing_extensions import override

from mesh.ready.steps.process_leftovers import end_leftovers, kill_leftovers

_DRAIN_WITHIN: Final = 1.0
"""Seconds for the output's end, once everything that belongs to the program is gone; somebody else may hold the
pipe."""


_REAP_WITHIN: Final = 5.0
"""Seconds for the kernel to hand over what was killed; one that hangs in a device cannot be waited for."""


class ProgramResult(NamedTuple):
    """How a program ended."""

    returncode: int
    """Negative: the signal that killed it."""
    stdout: bytes
    stderr: bytes
    """The last of it."""


class OutputTooLarge(Exception):
    """More than was allowed came out of it; it has been ended."""


class _Capture(asyncio.Protocol):
    """What comes out of one pipe, up to a bound: then either the beginning is dropped, or somebody is told."""

    def __init__(self, max_bytes: int, *, tail: bool) -> None:
        self.data = bytearray()
        self.full = asyncio.Event()
        self.ended = asyncio.Event()
        self._max_bytes = max_bytes
        self._tail = tail
        self._transport: asyncio.BaseTransport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.data += data
        if len(self.data) > self._max_bytes:
            if self._tail:
                del self.data[: -self._max_bytes]
            else:
                self.full.set()
                self.close()

    @override
    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.ended.set()

    def close(self) -> None:
        """Read no more."""
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
    """Run it to its end.  Whoever cancels this waits until nothing of it is left: `SIGTERM`, and after `grace` seconds
    `SIGKILL`.

    Args:
        mark: a variable of its environment and the value, by which all its processes are found; see
            `process_leftovers`.

    Raises:
        OSError: it cannot be started.
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
    """A pipe whose one end is captured; the other is for the program."""
    reading, writing = os.pipe()
    ends.callback(os.close, writing)
    stack.callback(capture.close)
    await asyncio.get_running_loop().connect_read_pipe(lambda: capture, os.fdopen(reading, "rb", buffering=0))
    return writing


def _source(ends: contextlib.ExitStack, given: bytes) -> int:
    """What the program reads: a file in memory, so that nobody has to feed it."""
    handle = os.memfd_create("bitactor-input", os.MFD_CLOEXEC)
    ends.callback(os.close, handle)
    view = memoryview(given)
    while view:
        view = view[os.write(handle, view) :]
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


async def _end(group: int, leader: asyncio.Future[int], mark: str, grace: float) -> None:
    """Nothing of it is left when this returns; whoever cancels it in the meantime has everything killed at once."""
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
    _signal_group(group, signal.SIGKILL)
    kill_leftovers(mark)


async def _drain(*captures: _Capture) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_WITHIN):
            for capture in captures:
                await capture.ended.wait()


def _signal_group(group: int, which: int) -> bool:
    """Whether there is such a group."""
    try:
        os.killpg(group, which)
    except (ProcessLookupError, PermissionError):
        return False
    return True
