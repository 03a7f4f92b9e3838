"""Python programs forked from a process that has imported the packages already: what a test would wait for most, where
a program's start is not what it asks.

A program gets a process of its own, with its own arguments, directory, environment and streams, as the parameter list
says; it runs as `__main__` from its first line to the interpreter's own end, and what it does, prints and exits with is
its own.  Only what it imports is there before.  Programs that say how they are started (what is imported when, which
files are found, how signals arrive meanwhile) are started afresh instead, with `subprocess`.

This file is the program of that process too; `Warm` starts one for each set of environment variables that imports
depend on.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import IO, Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
IMPORTED: Final = ("bitactor", "registry", "mesh", "uvicorn.lifespan.off", "uvicorn.protocols.http.h11_impl")
"""What programs find imported, each with what is below it, and with all that is imported there."""
APART: Final = ("mesh.ready", "mesh.testing")
"""What only some tests need, and what it needs."""

_SEEN_BY_IMPORTS: Final = ("PYTHON", "OTEL_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "LANG", "LC_", "TZ")
_LARGEST: Final = 1 << 20
_OPTIONS: Final = frozenset(("-m", "-c", "-P"))


# --- In the test's process.


class Child:
    """A running program, with those attributes of `subprocess.Popen` that tests need."""

    def __init__(self, words: Sequence[str], connection: socket.socket) -> None:
        self.args = tuple(words)
        self.returncode: int | None = None
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._connection = connection
        self.pid = int(self._told())

    def poll(self) -> int | None:
        """The exit code, as `subprocess` has it; None while the program runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one.

        Raises:
            TimeoutExpired: it runs still.
        """
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._told())
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _told(self) -> bytes:
        told = self._connection.recv(64)
        assert told, f"the process that {self.args} was to be forked from is gone"
        return told


class Warm:
    """A process that has imported the packages, and forks programs."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno()), *IMPORTED],
                env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self.close)

    def start(
        self, words: Sequence[str], cwd: str | Path, environment: Mapping[str, str], streams: Sequence[int]
    ) -> Child:
        """Fork a program: `words` are what would follow `python`, `streams` its standard ones."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = json.dumps([list(words), str(cwd), dict(environment)]).encode()
        with theirs:
            socket.send_fds(self._control, [asked], [theirs.fileno(), *streams])
        return Child(words, ours)

    def close(self) -> None:
        """End the process; programs that run are left alone."""
        self._control.close()
        self._process.wait()


_LOCK: Final = threading.Lock()
_WARM: Final[dict[tuple[int, frozenset[tuple[str, str]]], Warm]] = {}


def _warm(environment: Mapping[str, str]) -> Warm:
    seen = frozenset(item for item in environment.items() if item[0].startswith(_SEEN_BY_IMPORTS))
    key = (os.getpid(), seen)  # what a fork of ours inherits is not its own
    if key not in _WARM:
        _WARM[key] = Warm(environment)
    return _WARM[key]


def start(
    words: Sequence[str],
    *,
    cwd: str | Path = ROOT,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] = subprocess.PIPE,
    stdout: int | IO[Any] = subprocess.PIPE,
    stderr: int | IO[Any] = 2,
    text: bool = False,
) -> Child:
    """Start `python WORDS…`; `env` is ours if None, and a stream is PIPE, an open file or its number."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if env is None else env
    ours: list[IO[Any] | None] = []
    theirs: list[int] = []
    with ExitStack() as given:
        for stream, mode in ((stdin, "w"), (stdout, "r"), (stderr, "r")):
            if stream != subprocess.PIPE:
                ours.append(None)
                theirs.append(stream if isinstance(stream, int) else stream.fileno())
                continue
            ends = os.pipe()
            ours.append(os.fdopen(ends[mode == "w"], mode if text else f"{mode}b"))
            theirs.append(ends[mode == "r"])
            given.callback(os.close, theirs[-1])
        with _LOCK:
            child = _warm(environment).start(words, cwd, environment, theirs)
    child.stdin, child.stdout, child.stderr = ours
    return child


def run(
    words: Sequence[str],
    *,
    cwd: str | Path = ROOT,
    env: Mapping[str, str] | None = None,
    input: str = "",
    together: bool = False,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS…` to its end; `together` puts what it says to stderr into `stdout`, as it comes.

    Raises:
        TimeoutExpired: it takes longer; it has been killed.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input.encode())
        given.seek(0)
        child = start(words, cwd=cwd, env=env, stdin=given, stdout=out, stderr=out if together else err)
        try:
            code = child.wait(timeout)
        except BaseException:
            child.kill()
            child.wait()
            raise
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
        return subprocess.CompletedProcess(list(words), code, *said)


# --- In the process that has imported, and in its forks.


class Request(NamedTuple):
    """A program that is to be run."""

    words: list[str]
    cwd: str
    environment: dict[str, str]
    connection: socket.socket
    streams: list[int]


def _import(name: str) -> None:
    """Import a module and, since packages import late what they name, all that is below it."""
    if name in APART or name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    for below in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        _import(below.name)


def _serve(control: socket.socket) -> Request | None:
    """Fork what is asked for; the value is a request in its fork, and None here, when nobody will ask any more."""
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fileobj)
                    _tell_end(key.fd, *running.pop(key.fd))
                    continue
                request = _receive(control)
                if request is None:
                    return None
                pid = os.fork()
                if pid == 0:
                    for handle, (_, connection) in running.items():
                        os.close(handle)
                        connection.close()
                    request.connection.close()
                    return request
                handle = os.pidfd_open(pid)
                request.connection.send(str(pid).encode())
                running[handle] = pid, request.connection
                selector.register(handle, selectors.EVENT_READ)
                for stream in request.streams:
                    os.close(stream)


def _tell_end(handle: int, pid: int, connection: socket.socket) -> None:
    os.close(handle)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with connection:
        try:
            connection.send(str(code).encode())
        except BrokenPipeError:  # who asked is gone
            return


def _receive(control: socket.socket) -> Request | None:
    asked, handles, _, _ = socket.recv_fds(control, _LARGEST, 4)
    if not asked:
        return None
    connection, *streams = handles
    return Request(*json.loads(asked), socket.socket(fileno=connection), streams)


def _become(request: Request) -> CodeType:
    """Make this process one in which the program begins; the value is its code, for `__main__`."""
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = sys.modules["__main__"] = ModuleType("__main__")
    words = list(request.words)
    sys.path.pop(0)
    elsewhere = words[0] == "-P" and bool(words.pop(0))
    option = words.pop(0) if words[0] in _OPTIONS else ""
    if option == "-c":
        sys.argv = ["-c", *words[1:]]
        if not elsewhere:
            sys.path.insert(0, "")
        return compile(words[0], "<string>", "exec")
    if not option:
        sys.argv, program = words, Path(words[0])
        folder = program if program.is_dir() else program.resolve().parent
        program = program / "__main__.py" if program.is_dir() else program
        main.__file__ = str(program)
        sys.path.insert(0, str(folder))
        return compile(program.read_bytes(), str(program), "exec")
    if not elsewhere:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(words[0])
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{words[0]}.__main__")
    assert spec is not None and spec.loader is not None, f"there is no module {words[0]}"
    main.__spec__, main.__file__, main.__package__ = spec, spec.origin, spec.parent
    sys.argv = [spec.origin or words[0], *words[1:]]
    code: CodeType = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends us
    _control = socket.socket(fileno=int(sys.argv[1]))
    for _name in sys.argv[2:]:
        _import(_name)
    gc.freeze()
    _request = _serve(_control)
    _control.close()
    if _request is not None:
        exec(_become(_request), vars(sys.modules["__main__"]))
