"""A worker as an operating system process: started afresh, watched, killed and reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

# The program that a worker's interpreter starts with; it takes over our import path before it imports anything that is
# not part of the interpreter's own start.  The garbage collector rests meanwhile, since what modules make stays.
# SIGINT gets a handler that does nothing, for processes started by the user's code would inherit SIG_IGN.
_BOOT: Final = (
    "import gc, os, sys; gc.disable(); sys.path[:] = os.fsdecode(sys.stdin.buffer.readline()[:-1]).split('\\0'); "
    "import signal; signal.signal(signal.SIGINT, lambda *_: None); "
    "from mesh.spawners.process.worker import main; gc.freeze(); gc.enable(); main(sys.argv[1:])"
)


class WorkerProcess:
    """One worker process, leader of a process group of its own.

    What the user's code starts in there belongs to the group and dies with it, unless it takes itself out.  `on_exit`
    is called once, on the loop's thread, when the process has ended and is reaped.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, arguments: Sequence[str], on_exit: Callable[[], None]) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._process = subprocess.Popen(
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", _BOOT, *arguments],  # type: ignore[attr-defined]
            stdin=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        self.pid: int = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._close_pipe()
            self._process.wait()
            raise
        loop.add_reader(self._pidfd, self._exited)
        self._send_path()

    def kill(self) -> None:
        """Send SIGKILL to the process and its group; `on_exit` is still to come."""
        self._send_signal(signal.SIGKILL)
        self._kill_group()

    def terminate(self) -> None:
        """Send SIGTERM to the process; `on_exit` is still to come, if it does not resist."""
        self._send_signal(signal.SIGTERM)

    def kill_and_wait(self, timeout: float) -> bool:
        """Send SIGKILL and wait for `timeout` seconds; True: the process is gone and reaped.  `on_exit` is not called
        any more."""
        if self._pidfd < 0:
            return True
        self.kill()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._release()
        return True

    @property
    def exit_text(self) -> str:
        """How the process ended: `exit status 1` or `SIGSEGV`."""
        code = self._process.returncode
        if code is None or code >= 0:
            return f"exit status {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    def _send_signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _send_path(self) -> None:
        """Send the import path, all that ever goes through the pipe; from then on the pipe is there to be closed by our
        death."""
        entries = [entry for entry in sys.path if isinstance(entry, str) and "\n" not in entry]
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(os.fsencode("\0".join(entries)) + b"\n")

    def _exited(self) -> None:
        self._kill_group()
        self._process.poll()
        self._release()
        self._on_exit()

    def _kill_group(self) -> None:
        """Kill the processes that the user's code has started.  While our child is not reaped, its group's number is
        not given to others."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.killpg(self.pid, signal.SIGKILL)

    def _release(self) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
