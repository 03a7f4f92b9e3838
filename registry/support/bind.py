"""Exclusive binding of a server to its endpoint, and the boot epoch in its state file: one server per endpoint and per
file, whatever died before.

Exclusion is by `flock` on a file beside the socket or the state: the kernel lets go of it with the process, so what a
killed server leaves behind is known to be stale.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from typing import Final

import zmq

from bitactor.errors import ConfigurationError
from registry.entry import EndpointInUse
from registry.support.curve import Curve
from registry.support.private import private_connections, private_directory, private_socket

IPC: Final = "ipc://"
TCP: Final = "tcp://"
_CLOSING_TIMEOUT: Final = 1.0
_PROBE_TIMEOUT: Final = 0.5
_MAX_BOOT: Final = (1 << 31) - 1


class FileLock:
    """An exclusive lock held until `release`, or until the process is gone.  The file itself stays."""

    def __init__(self, path: Path, what: str) -> None:
        """Raises `EndpointInUse`, saying that `what` is in use, when somebody else has the lock."""
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise EndpointInUse(f"{what} is in use by another server (it holds {path})") from error

    def release(self) -> None:
        """Release the lock.  A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def check_endpoint(endpoint: str, curve: Curve | None) -> None:
    """Raise `ConfigurationError` unless `endpoint` is an `ipc://` path, or `tcp://` with keys."""
    if endpoint.startswith(TCP):
        if curve is None:
            raise ConfigurationError(
                f"{endpoint}: tcp needs the mesh's CURVE keys (curve=Curve.load(path)), or use ipc://"
            )
        return
    if not endpoint.startswith(IPC):
        raise ConfigurationError(
            f"{endpoint!r}: an endpoint is ipc:///path/of/socket, or tcp://host:port with CURVE keys"
        )
    path = endpoint.removeprefix(IPC)
    if not path.startswith("/"):
        raise ConfigurationError(
            f"{endpoint!r}: an ipc endpoint is an absolute path (abstract sockets are open to everybody)"
        )
    if len(path.encode()) >= zmq.IPC_PATH_MAX_LEN:
        raise ConfigurationError(
            f"{endpoint!r}: the path of an ipc socket is shorter than {zmq.IPC_PATH_MAX_LEN} bytes"
        )


class Binding:
    """A socket bound to an endpoint, exclusively; `release` after the socket is closed."""

    def __init__(self, listener: zmq.Socket[bytes], endpoint: str) -> None:
        """Bind.

        Raises:
            EndpointInUse: a live server is bound there.
            ConfigurationError: it cannot be bound, or its directory is open to others.
        """
        self._path = Path(endpoint.removeprefix(IPC)) if endpoint.startswith(IPC) else None
        self._lock: FileLock | None = None
        if self._path is not None:
            private_directory(self._path.parent)
            self._lock = FileLock(self._path.with_name(self._path.name + ".lock"), endpoint)
        try:
            if self._path is not None:
                _remove_stale(self._path, endpoint)
                private_connections(listener)
            listener.bind(endpoint)
            if self._path is not None:
                private_socket(self._path)
        except zmq.ZMQError as error:
            self.release()
            if error.errno == errno.EADDRINUSE:
                raise EndpointInUse(f"{endpoint} is in use by another server") from error
            raise ConfigurationError(f"cannot bind {endpoint}: {error}") from error
        except BaseException:
            self.release()
            raise
        self.endpoint: str = listener.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def release(self) -> None:
        """Remove the socket file and let others bind.  A second call does nothing."""
        lock, self._lock = self._lock, None
        if lock is not None and self._path is not None:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(self._path.lstat().st_mode) and not is_listening(self._path):
                    self._path.unlink()
            lock.release()


def _remove_stale(path: Path, endpoint: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} exists and is no socket; choose another endpoint")
    # We hold the lock, so none of ours is bound there; but a socket that was just closed answers until its context has
    # got round to it.
    until = time.monotonic() + _CLOSING_TIMEOUT
    while is_listening(path):
        if time.monotonic() > until:
            raise EndpointInUse(f"{endpoint} is in use by another server")
        time.sleep(0.01)
    path.unlink(missing_ok=True)


def is_listening(path: Path) -> bool:
    """Whether a living process listens at a socket file, or may: only a refusal tells that it is dead."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


class BootEpoch:
    """A number in a file that rises with every start of a server; the file is locked until `release`."""

    def __init__(self, path: Path) -> None:
        """Raise the number, on disk before this returns.

        Raises:
            EndpointInUse: another server has the file.
            ConfigurationError: the file cannot be written or holds no number (never guessed: fencing rests on it).
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(path.name + ".lock"), f"the registry state {path}")
        except OSError as error:
            raise ConfigurationError(f"cannot open the registry state {path}: {error}") from error
        try:
            self.number = _read_number(path) + 1
            _write_number(path, self.number)
        except OSError as error:
            self._lock.release()
            raise ConfigurationError(f"cannot write the registry state {path}: {error}") from error
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let another server use the file.  A second call does nothing."""
        self._lock.release()


def _read_number(path: Path) -> int:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return 0
    if not text.strip().isdigit() or not 0 < int(text) < _MAX_BOOT:
        raise ConfigurationError(
            f"{path} holds no boot epoch: {text[:40]!r}; restore it, or write a number higher than any before"
        )
    return int(text)


def _write_number(path: Path, number: int) -> None:
    draft = path.with_name(path.name + ".draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(b"%d\n" % number)
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
