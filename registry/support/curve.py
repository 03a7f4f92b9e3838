"""CurveZMQ for a mesh: one key pair shared by all its members, and the gatekeeper that lets nobody else in.

Both ends of a connection use the same pair, so each proves to the other that it has the mesh's secret.  CURVE alone
only lets a client check the server; that the server checks the client is ZAP's part (RFC 27), answered by `Gatekeeper`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from typing_extensions import override
from zmq.utils import z85

from bitactor.errors import ConfigurationError
from registry.support.wakeup import Wakeup

ZAP_DOMAIN: Final = b"bitactor"
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_ZAP_VERSION: Final = b"1.0"
_STOP_TIMEOUT: Final = 2.0

Options = Mapping[int, int | bytes]


class Curve(NamedTuple):
    """The key pair of a mesh, both keys as Z85 (40 bytes).  Its `repr` does not show the secret."""

    public: bytes
    """The public key."""
    secret: bytes
    """The secret key."""

    @override
    def __repr__(self) -> str:
        return f"Curve(public={self.public!r})"

    @classmethod
    def generate(cls) -> Curve:
        """A fresh key pair."""
        public, secret = zmq.curve_keypair()
        return cls(public, secret)

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """The key pair that `save` wrote.

        Raises:
            ConfigurationError: no such file, others than its owner may read or write it, or it holds no key pair.
        """
        file = Path(path)
        try:
            with file.open("rb") as opened:
                mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
                lines = opened.read(1024).split()
        except OSError as error:
            raise ConfigurationError(
                f"no key pair of the mesh: {error}; make one with Curve.generate().save(path)"
            ) from error
        if mode & 0o077:
            raise ConfigurationError(f"{file} has mode {mode:o}: others can read the mesh's secret; chmod 600 it")
        if len(lines) != 2 or not _is_pair(lines[0], lines[1]):
            raise ConfigurationError(
                f"{file} holds no key pair: two lines of 40 Z85 characters, public then secret, are expected"
            )
        return cls(lines[0], lines[1])

    def save(self, path: str | Path) -> None:
        """Write the key pair to `path`, mode 0600, replacing what was there in one step."""
        file = Path(path)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            os.fchmod(descriptor, 0o600)
            opened.write(self.public + b"\n" + self.secret + b"\n")
            opened.flush()
            os.fsync(descriptor)
        draft.replace(file)


def _is_pair(public: bytes, secret: bytes) -> bool:
    try:
        return len(public) == len(secret) == 40 and zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        return False


def set_options(socket: zmq.Socket[bytes], options: Options) -> None:
    """Set ZeroMQ options of `socket`, in order."""
    for option, value in options.items():
        socket.setsockopt(option, value)


def secure_server(socket: zmq.Socket[bytes], curve: Curve) -> None:
    """Make `socket` take only CURVE connections; call before `bind`, with a `Gatekeeper` started on the socket's
    context.

    Without a gatekeeper nobody gets in at all, rather than everybody who knows the public key.
    """
    options: Options = {zmq.CURVE_SERVER: 1, zmq.ZAP_DOMAIN: ZAP_DOMAIN, zmq.ZAP_ENFORCE_DOMAIN: 1}
    set_options(socket, {**options, zmq.CURVE_PUBLICKEY: curve.public, zmq.CURVE_SECRETKEY: curve.secret})


def secure_client(socket: zmq.Socket[bytes], curve: Curve) -> None:
    """Make `socket` speak CURVE and only to a server that has the mesh's secret; call before `connect`."""
    keys: Options = {zmq.CURVE_PUBLICKEY: curve.public, zmq.CURVE_SECRETKEY: curve.secret}
    set_options(socket, {zmq.CURVE_SERVERKEY: curve.public, **keys})


class Gatekeeper:
    """Answers ZAP requests of one context: the mesh's own key is let in, anything else is turned away.

    One per context, started before the sockets of the context bind and stopped after they are closed.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], curve: Curve) -> None:
        self._context = context
        self._public = curve.public
        self._stopping: Wakeup | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to answer requests.  Raises `ConfigurationError` when this context has a gatekeeper already."""
        with self._lock:
            if self._thread is not None:
                return
            zap_socket = self._context.socket(zmq.REP)
            zap_socket.setsockopt(zmq.LINGER, 0)
            try:
                zap_socket.bind(_ZAP_ENDPOINT)
            except zmq.ZMQError as error:
                zap_socket.close()
                raise ConfigurationError(f"this ZeroMQ context has a ZAP handler already: {error}") from error
            self._stopping = Wakeup()
            self._thread = threading.Thread(
                target=self._run, args=(zap_socket, self._stopping.fileno()), name="mesh-gatekeeper", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop answering, and release the sockets.  A second call does nothing."""
        with self._lock:
            thread, stopping = self._thread, self._stopping
            self._thread = self._stopping = None
        if thread is None or stopping is None:
            return
        stopping.set()
        thread.join(_STOP_TIMEOUT)
        stopping.close()

    def _run(self, zap_socket: zmq.Socket[bytes], stopped: int) -> None:
        poller = zmq.Poller()
        poller.register(zap_socket, zmq.POLLIN)
        poller.register(stopped, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if stopped in ready:
                    return
                if zap_socket in ready:
                    zap_socket.send_multipart(self._reply(zap_socket.recv_multipart()))
        except zmq.ContextTerminated:
            return
        finally:
            with contextlib.suppress(zmq.ZMQError):
                zap_socket.unbind(
                    _ZAP_ENDPOINT
                )  # at once; closing frees the address only when the context gets round to it
            zap_socket.close()

    def _reply(self, request: list[bytes]) -> list[bytes]:
        identifier = request[1] if len(request) > 1 else b""
        admitted = (
            len(request) == 7
            and request[0] == _ZAP_VERSION
            and request[2] == ZAP_DOMAIN
            and request[5] == b"CURVE"
            and len(request[6]) == 32
            and z85.encode(request[6]) == self._public
        )
        if admitted:
            return [_ZAP_VERSION, identifier, b"200", b"OK", b"mesh", b""]
        return [_ZAP_VERSION, identifier, b"400", b"not a key of this mesh", b"", b""]
