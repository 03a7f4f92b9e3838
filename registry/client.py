"""A client of a registry that is served elsewhere, with a cache of all that it knows.

One daemon thread owns the DEALER socket, beats the heart, and keeps the cache right; callers hand it work and wait.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import zmq
from typing_extensions import override

from registry.entry import Entry, Loss, Notice, RegistryClosed, RegistryError, RegistryTimeout
from registry.limits import check_name, name_filter, normal_value
from registry.port import Adapter
from registry.protocol.client import ClientProtocol
from registry.support.bind import IPC, check_endpoint
from registry.support.clock import monotonic_ns
from registry.support.curve import Curve, Options, secure_client, set_options
from registry.support.private import check_socket
from registry.support.wakeup import Wakeup
from registry.watches import Watch, Watches, wait_for_name
from registry.wire import MAX_FRAME_BYTES

_FRAMES_PER_TURN: Final = 64
_OPTIONS: Final[Options] = {
    zmq.IMMEDIATE: 1,
    zmq.SNDHWM: 10_000,
    zmq.RCVHWM: 4_096,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
    zmq.RECONNECT_IVL: 50,  # milliseconds
    zmq.LINGER: 0,
}
_SILENT_NS: Final = 3_000_000_000
_REST_AFTER_FAILURE: Final = 0.1
_LEAVE_TIMEOUT: Final = 0.5
_JOIN_TIMEOUT: Final = 2.0

_log = logging.getLogger("bitactor.registry")
_Value = TypeVar("_Value")


class RegistryClient(Adapter):
    """One holder's view of a served registry (the port is `registry.port.Registry`).

    While the server is away, questions are answered from what was known last, `connected` is False, and registering
    waits.  When it is back, restarted or not, everything of ours is registered again.  Callbacks come on the client's
    thread: one that takes longer than a lease loses it.
    """

    def __init__(self, endpoint: str, holder: str, curve: Curve | None = None) -> None:
        """`holder` is the id of this process, used by no other live one.

        Raises:
            ConfigurationError: the endpoint is no ipc path and no tcp address with keys.
            InvalidEntry: `holder` is no name.
        """
        check_endpoint(endpoint, curve)
        check_name(holder, "a holder id")
        self._endpoint = endpoint
        self._curve = curve
        self._protocol = ClientProtocol(holder, os.urandom(16), monotonic_ns())
        self._cache = self._protocol.cache
        self._watches = Watches(self._cache.lookup)
        self._wakeup = Wakeup()
        self._calls: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open = False
        self._closed = False
        self._stopping = False
        self._stopped = False
        self.failures = 0
        """How often the client has failed by a defect of ours, and begun anew."""

    @property
    def endpoint(self) -> str:
        """The endpoint at which the server is looked for."""
        return self._endpoint

    @property
    @override
    def holder(self) -> str:
        return self._protocol.holder

    @property
    @override
    def connected(self) -> bool:
        """Whether the server was heard within the last three heartbeats."""
        return self._protocol.connected

    @property
    def refusal(self) -> RegistryError | None:
        """Why the server does not take this client; None: it does, or has not answered."""
        return self._protocol.refusal

    def connect(self) -> Future[None]:
        """Begin to connect to the server, and try again until `close`; the answer is done once the whole table is
        known.

        Raises:
            ConfigurationError: the socket is another user's, or others could have put it there.
            RegistryClosed: this client was closed before.
        """
        if self._endpoint.startswith(IPC):
            check_socket(Path(self._endpoint.removeprefix(IPC)))
        with self._lock:
            if self._closed:
                raise RegistryClosed("this registry client is closed; make another one")
            if self._thread is None:
                self._open = True
                self._thread = threading.Thread(target=self._run, name=f"registry-client-{self.holder}", daemon=True)
                self._thread.start()
        return self._protocol.synced

    @override
    def start(self, timeout: float = 5.0) -> None:
        """Connect to the server; returns once the whole table is known.  After a failure, make another client.

        Raises:
            RegistryTimeout: the server did not answer in `timeout` seconds.
            HolderInUse: another live process goes by this holder id.
            RegistryFull: the server has as many clients as it takes.
            RegistryClosed: this client was closed before.
        """
        synced = self.connect()
        try:
            synced.result(timeout)
        except TimeoutError:
            refusal = self._protocol.refusal
            self.close(leave=False)
            if refusal is not None:
                raise refusal from None
            raise RegistryTimeout(
                f"no registry answered at {self._endpoint} within {timeout:g} s; is it running?"
            ) from None

    @override
    def close(self, leave: bool = True) -> None:
        """Disconnect, within seconds; with `leave`, all names of the holder are gone at once for everybody.  A second
        call does nothing."""
        with self._lock:
            self._open = False
            closed, self._closed = self._closed, True
        thread = self._thread
        if thread is None:
            self._wakeup.close()
            return
        inside = thread is threading.current_thread()
        if not closed:
            left: Future[None] = Future()
            if leave and not inside:
                self._post(lambda: self._protocol.leave(left))
                try:
                    left.result(_LEAVE_TIMEOUT)
                except (TimeoutError, RegistryError):
                    _log.info("%r could not say goodbye to the registry; its names go with its lease", self.holder)
            elif leave:
                self._protocol.leave(left)
            self._stopping = True
            self._wakeup.set()
        if not inside:
            thread.join(_JOIN_TIMEOUT)

    # The port

    @override
    def register(
        self, name: str, value: Mapping[str, Any] | None = None, *, unique: bool = False, timeout: float = 5.0
    ) -> Entry:
        check_name(name)
        normal, _ = normal_value(value)
        names = self._protocol.names
        return self._ask(
            lambda waiting: names.register(name, normal, unique, waiting),
            timeout,
            f"register {name!r}",
            # Interrupted as well as too late: who got no entry must not hold the name.
            give_up=lambda waiting: names.withdraw(name, waiting),
        )

    @override
    def unregister(self, name: str, *, timeout: float = 5.0) -> None:
        self._ask(lambda waiting: self._protocol.names.unregister(name, waiting), timeout, f"unregister {name!r}")

    @override
    def update(self, name: str, value: Mapping[str, Any] | None, *, timeout: float = 5.0) -> Entry:
        normal, _ = normal_value(value)
        return self._ask(
            lambda waiting: self._protocol.names.update(name, normal, waiting), timeout, f"update {name!r}"
        )

    @override
    def lookup(self, name: str) -> tuple[Entry, ...]:
        return self._cache.lookup(name)

    @override
    def keys(self, holder: str | None = None) -> tuple[str, ...]:
        return self._cache.keys(self.holder if holder is None else holder)

    @override
    def count(self) -> int:
        return self._cache.count()

    @override
    def match(self, pattern: str = "*") -> tuple[Entry, ...]:
        matches = name_filter(pattern)
        return tuple(entry for name, entries in self._cache.names().items() if matches(name) for entry in entries)

    @override
    def await_name(self, name: str, timeout: float) -> tuple[Entry, ...]:
        self._refuse_own_thread()
        return wait_for_name(self.when_name(name), name, timeout)

    @override
    def when_name(self, name: str) -> Future[tuple[Entry, ...]]:
        """The future is completed on the client's thread."""
        waiting: Future[tuple[Entry, ...]] = Future()
        entries = self._cache.lookup(name)
        if entries:
            waiting.set_result(entries)
            return waiting
        self._submit(lambda: self._watches.add_name(name, waiting))
        waiting.add_done_callback(lambda done: self._post(lambda: self._watches.remove_name(name, done)))
        return waiting

    @override
    def watch(self, callback: Callable[[Notice], None], pattern: str = "*") -> Watch:
        name_filter(pattern)
        watch = Watch(callback, self._cancelled)
        self._submit(lambda: self._begin_watch(watch, pattern))
        return watch

    @override
    def on_lost(self, callback: Callable[[tuple[Loss, ...]], None]) -> Watch:
        watch = Watch(callback, self._cancelled)
        self._submit(lambda: self._watches.add_loss(watch))
        return watch

    @override
    def is_current(self, entry: Entry) -> bool:
        """Whether this entry of the holder is still valid, by this process's clock."""
        return self._protocol.is_current(entry, monotonic_ns())

    def granted_until_ns(self, name: str, epoch: int) -> int:
        """Until when our grant of a unique name under this epoch is valid, as far as is known, by the clock that goes
        on while the machine sleeps (`registry.support.clock`); 0: it is not."""
        return self._protocol.granted_until_ns(name, epoch)

    @override
    def ping(self, timeout: float = 5.0) -> float:
        began = monotonic_ns()
        self._ask(self._protocol.ping, timeout, "answer a ping")
        return (monotonic_ns() - began) / 1e9

    # From callers to the thread

    def _post(self, call: Callable[[], object]) -> None:
        if not self._stopped:
            self._calls.append(call)
            self._wakeup.set()

    def _submit(self, call: Callable[[], None]) -> None:
        with self._lock:
            if not self._open:
                raise RegistryClosed(f"the registry client of {self.holder!r} is not started, or closed")
            self._calls.append(call)
        self._wakeup.set()

    def _ask(
        self,
        question: Callable[[Future[_Value]], None],
        timeout: float,
        what: str,
        give_up: Callable[[Future[_Value]], object] = Future.cancel,
    ) -> _Value:
        """The answer to a question that is asked on the thread; `give_up` is called there if none came."""
        waiting: Future[_Value] = Future()
        self._submit(lambda: question(waiting))
        try:
            self._refuse_own_thread()
            return waiting.result(timeout)
        except BaseException as error:
            self._post(lambda: give_up(waiting))
            if not isinstance(error, TimeoutError):
                raise
            refusal = self._protocol.refusal
            reason = f": {refusal}" if refusal is not None else ""
            raise RegistryTimeout(
                f"the registry at {self._endpoint} did not {what} within {timeout:g} s{reason}"
            ) from None

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RegistryError("a registry callback must not wait for the registry: it would wait for itself for ever")

    def _cancelled(self, watch: Watch) -> None:
        self._post(lambda: self._watches.remove(watch))

    # On the thread

    def _begin_watch(self, watch: Watch, pattern: str) -> None:
        present = [entry for entries in self._cache.names().values() for entry in entries]
        self._watches.add(watch, pattern, present)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._exchange(context)
        except BaseException:
            _log.exception("the registry client of %r ends because of a defect", self.holder)
        finally:
            with self._lock:
                self._open = False
            self._protocol.fail_all(RegistryClosed(f"the registry client of {self.holder!r} is closed"))
            while self._calls:
                self._calls.popleft()()
            self._protocol.fail_all(RegistryClosed(f"the registry client of {self.holder!r} is closed"))
            self._stopped = True
            self._watches.close()
            context.destroy(0)
            self._wakeup.close()

    def _exchange(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        protocol = self._protocol
        socket = self._connect(context)
        try:
            while not self._stopping:
                try:
                    self._turn(socket)
                    silent = monotonic_ns() - protocol.last_received_ns > max(_SILENT_NS, 2 * protocol.lease_ns)
                except Exception:
                    # A node whose client had ended would be alone for good, and not know it: the client begins anew.
                    self.failures += 1
                    _log.exception("the registry client of %r failed by a defect, and connects anew", self.holder)
                    time.sleep(_REST_AFTER_FAILURE)
                    silent = True
                if silent:
                    socket.close(0)
                    socket = self._connect(context)
                    protocol.on_reconnect(monotonic_ns())
            _send(socket, protocol)
        finally:
            # A goodbye from within a callback is sent and not waited for.
            socket.close(100)

    def _turn(self, socket: zmq.Socket[bytes]) -> None:
        """Take in what has come, and send what is due."""
        protocol = self._protocol
        self._poll(socket)
        for _ in range(len(self._calls)):
            self._calls.popleft()()
        _receive(socket, protocol)
        now_ns = monotonic_ns()
        protocol.tick(now_ns)
        protocol.flush(now_ns)
        _send(socket, protocol)
        self._deliver()

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        set_options(socket, _OPTIONS)
        if self._curve is not None:
            secure_client(socket, self._curve)
        socket.connect(self._endpoint)
        return socket

    def _poll(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if self._protocol.blocked else 0))
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        wait_ms = max(0, self._protocol.next_wake_ns() - monotonic_ns() + 999_999) // 1_000_000
        if self._wakeup.fileno() in dict(poller.poll(wait_ms)):
            self._wakeup.clear()

    def _deliver(self) -> None:
        protocol = self._protocol
        if protocol.notices:
            notices, protocol.notices = protocol.notices, []
            self._watches.tell(notices)
        if protocol.losses:
            losses, protocol.losses = protocol.losses, []
            self._watches.tell_losses(tuple(losses))


def _receive(socket: zmq.Socket[bytes], protocol: ClientProtocol) -> None:
    for _ in range(_FRAMES_PER_TURN):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) == 1:
            protocol.receive(frames[0], monotonic_ns())
        else:
            protocol.malformed += 1


def _send(socket: zmq.Socket[bytes], protocol: ClientProtocol) -> None:
    outgoing = protocol.outgoing
    while outgoing:
        try:
            socket.send(outgoing[0], zmq.NOBLOCK)
        except zmq.Again:
            break
        outgoing.popleft()
    protocol.blocked = bool(outgoing)
