"""The registry as a process or thread: one thread owns the ROUTER socket and the timers.

    with RegistryServer("ipc:///run/user/1000/mesh/registry.sock", state_path=Path("registry.boot")):
        ...

Without `state_path` the boot epoch is the wall clock's seconds, and nothing settles: after a restart a unique name can
be granted while its former holder still believes to have it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import zmq

from bitactor.errors import BitActorError, ConfigurationError
from bitactor.messages.duration import LONGEST, nanoseconds
from registry.protocol.server import ServerProtocol, Statistics
from registry.support.bind import Binding, BootEpoch, check_endpoint
from registry.support.curve import Curve, Gatekeeper, Options, secure_server, set_options
from registry.support.wakeup import Wakeup
from registry.table import DEFAULT_LEASE_NS, Table
from registry.wire import MAX_FRAME_BYTES

_FRAMES_PER_TURN: Final = 512
_OPTIONS: Final[Options] = {
    zmq.ROUTER_MANDATORY: 1,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
    zmq.RCVHWM: 256,
    zmq.SNDHWM: 4_096,
    zmq.LINGER: 0,
    zmq.BACKLOG: 1_024,
}
_STOP_TIMEOUT: Final = 5.0
# Wall time in seconds, at 2020, from which stateless boot epochs count, so that they fit 31 bits
_STATELESS_ERA: Final = 1_577_836_800

_log = logging.getLogger("bitactor.registry")


class RegistryServer:
    """Serves one table of names on one endpoint."""

    def __init__(
        self,
        endpoint: str,
        state_path: Path | None = None,
        curve: Curve | None = None,
        *,
        lease: float = DEFAULT_LEASE_NS / 1e9,
        heartbeat: float = 0.3,
        max_clients: int = 4_096,
        max_entries: int = 500_000,
        max_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        """`lease` and `heartbeat` are seconds; clients are told both.

        Raises:
            ConfigurationError: the endpoint is no ipc path and no tcp address with keys, or the times make no sense.
        """
        check_endpoint(endpoint, curve)
        if not 0 < heartbeat * 2 <= lease <= LONGEST:
            raise ConfigurationError(
                f"lease={lease!r} must be at least twice heartbeat={heartbeat!r}, both above 0 seconds, and at most "
                f"{LONGEST:,.0f}"
            )
        self._endpoint = endpoint
        self._state_path = state_path
        self._curve = curve
        self._lease_ns = nanoseconds(lease)
        self._heartbeat_ns = nanoseconds(heartbeat)
        self._max_clients = max_clients
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running = False
        self._bound = threading.Event()
        self._stopping = threading.Event()
        self._wakeup: Wakeup | None = None
        self._failure: BaseException | None = None
        self.failures = 0
        """How often it has failed by a defect of ours, and gone on."""
        self._protocol: ServerProtocol | None = None
        self._bound_endpoint = endpoint

    @property
    def endpoint(self) -> str:
        """The endpoint that clients connect to; once bound, with the port that was found for `tcp://host:*`."""
        return self._bound_endpoint

    def start(self) -> None:
        """Serve in a thread of its own; returns once bound.

        Raises:
            EndpointInUse, ConfigurationError: see `Binding` and `BootEpoch`.
        """
        self._begin()
        self._thread = threading.Thread(target=self._guarded, name="registry-server", daemon=True)
        self._thread.start()
        self._bound.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            self.stop()
            raise failure

    def serve(self) -> None:
        """Serve on this thread until `stop` is called from another one or from a signal handler; raises as `start`."""
        self._begin()
        self._guarded()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def join(self) -> None:
        """Wait until it serves no more, after `start`; raises what it ended of, if that was not `stop`."""
        if self._thread is not None:
            self._thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Stop serving; after `start`, returns once socket, files and thread are released.  A second call does
        nothing."""
        self._stopping.set()
        wakeup = self._wakeup
        if wakeup is not None:
            wakeup.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_TIMEOUT)

    def statistics(self) -> Statistics:
        """The counts since the start; all zero before it."""
        protocol = self._protocol
        return protocol.statistics() if protocol is not None else Statistics(*([0] * len(Statistics._fields)))

    def __enter__(self) -> RegistryServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # On the serving thread

    def _begin(self) -> None:
        with self._lock:
            if self._running:
                raise BitActorError("this registry server is running already")
            self._running = True
            self._bound.clear()
            self._stopping.clear()
            self._failure = None
            self._wakeup = Wakeup()

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._failure = error
            if self._bound.is_set():
                _log.exception("the registry server ends because of a defect")
        finally:
            with self._lock:
                self._running = False
                if self._wakeup is not None:
                    self._wakeup.close()
            self._bound.set()

    def _run(self) -> None:
        with contextlib.ExitStack() as files, contextlib.ExitStack() as stack:
            # ZeroMQ removes the socket file in its own time, by `term` at the latest; only then may another server have
            # the place.
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(context.term)
            if self._curve is not None:
                gatekeeper = Gatekeeper(context, self._curve)
                gatekeeper.start()
                stack.callback(gatekeeper.stop)
            listener = context.socket(zmq.ROUTER)
            stack.callback(listener.close, 0)
            set_options(listener, _OPTIONS)
            if self._curve is not None:
                secure_server(listener, self._curve)
            binding = Binding(listener, self._endpoint)
            files.callback(binding.release)
            boot, settles = int(time.time()) - _STATELESS_ERA, False
            if self._state_path is not None:
                state = BootEpoch(self._state_path)
                files.callback(state.release)
                boot, settles = state.number, state.number > 1
            self._bound_endpoint = binding.endpoint
            protocol = self._protocol = self._make_protocol(boot, settles)
            self._bound.set()
            self._loop(listener, protocol)

    def _make_protocol(self, boot: int, settles: bool) -> ServerProtocol:
        now_ns = time.monotonic_ns()
        table = Table(boot=boot, lease_ns=self._lease_ns, max_entries=self._max_entries, max_bytes=self._max_bytes)
        return ServerProtocol(
            table,
            incarnation=os.urandom(16),
            heartbeat_ns=self._heartbeat_ns,
            settle_until_ns=now_ns + self._lease_ns if settles else now_ns,
            now_ns=now_ns,
            max_clients=self._max_clients,
        )

    def _loop(self, listener: zmq.Socket[bytes], protocol: ServerProtocol) -> None:
        assert self._wakeup is not None
        poller = zmq.Poller()
        poller.register(listener, zmq.POLLIN)
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        tick_ns = max(self._heartbeat_ns // 3, 10_000_000)
        next_tick_ns = time.monotonic_ns() + tick_ns
        while not self._stopping.is_set():
            wait_ms = max(0, next_tick_ns - time.monotonic_ns()) // 1_000_000 + 1
            poller.poll(wait_ms)
            now_ns = time.monotonic_ns()
            _receive(listener, protocol, now_ns)
            if now_ns >= next_tick_ns:
                next_tick_ns = now_ns + tick_ns
                try:
                    protocol.tick(now_ns)
                except Exception:  # the leases of all others hang on the next one
                    self.failures += 1
                    _log.exception("the registry server failed to look at its leases, by a defect; it goes on")
            _send(listener, protocol)


def _receive(listener: zmq.Socket[bytes], protocol: ServerProtocol, now_ns: int) -> None:
    for _ in range(_FRAMES_PER_TURN):
        if protocol.full:
            return
        try:
            routing = listener.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        parts = 0
        frame = b""
        # Part by part, so that a message of very many parts is never gathered.
        while listener.getsockopt(zmq.RCVMORE):
            frame = listener.recv()
            parts += 1
        if parts == 1:
            protocol.receive(routing, frame, now_ns)
        else:
            protocol.malformed(f"a message of {parts:,} parts", now_ns)


def _send(listener: zmq.Socket[bytes], protocol: ServerProtocol) -> None:
    for routing, frame in protocol.take_outgoing():
        try:
            listener.send_multipart((routing, frame), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            protocol.undeliverable(routing)
