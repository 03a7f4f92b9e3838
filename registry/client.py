"""A registry that is served elsewhere, with everything it knows kept at hand.

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
from types import TracebackType
from typing import Any, Final, TypeVar

import zmq

from registry.binding import check_endpoint
from registry.conversation import Conversation
from registry.curve import Curve, secure_client
from registry.entry import Entry, Loss, Notice
from registry.errors import RegistryClosed, RegistryError, RegistryTimeout
from registry.limits import check_name, name_filter, normal_value
from registry.wakeup import Wakeup
from registry.watches import Watch, Watches, wait_for_name
from registry.wire import MAX_FRAME_BYTES

_SECOND: Final = 1_000_000_000
_FRAMES_PER_TURN: Final = 64
_SEND_QUEUE: Final = 10_000
_RECEIVE_QUEUE: Final = 4_096
_RECONNECT_MS: Final = 50
_SILENT_NS: Final = 3 * _SECOND
_LEAVE_TIMEOUT: Final = 0.5
_JOIN_TIMEOUT: Final = 2.0

_log = logging.getLogger("bitactor.registry")
_Value = TypeVar("_Value")


class RegistryClient:
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
        self._conversation = Conversation(holder, os.urandom(16), time.monotonic_ns())
        self._cache = self._conversation.cache
        self._watches = Watches(self._cache.lookup)
        self._wakeup = Wakeup()
        self._work: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open = False
        self._closed = False
        self._ending = False
        self._ended = False

    @property
    def endpoint(self) -> str:
        """Where the server is looked for."""
        return self._endpoint

    @property
    def holder(self) -> str:
        """Whose registrations these are."""
        return self._conversation.holder

    @property
    def connected(self) -> bool:
        """Whether the server was heard within the last three heartbeats."""
        return self._conversation.connected

    def start(self, timeout: float = 5.0) -> None:
        """Take part; returns once all that is registered is known.  After a failure, make another client.

        Raises:
            RegistryTimeout, HolderInUse, RegistryFull, RegistryClosed: see the port.
        """
        with self._lock:
            if self._closed:
                raise RegistryClosed("this registry client is closed; make another one")
            if self._thread is None:
                self._open = True
                self._thread = threading.Thread(target=self._run, name=f"registry-client-{self.holder}", daemon=True)
                self._thread.start()
        try:
            self._conversation.synced.result(timeout)
        except TimeoutError:
            refusal = self._conversation.refusal
            self.close(leave=False)
            if refusal is not None:
                raise refusal from None
            raise RegistryTimeout(
                f"no registry answered at {self._endpoint} within {timeout:g} s; is it running?"
            ) from None

    def close(self, leave: bool = True) -> None:
        """Take part no more, within seconds; with `leave`, all our names are gone at once for everybody.  Twice is
        once."""
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
                self._post(lambda: self._conversation.leave(left))
                try:
                    left.result(_LEAVE_TIMEOUT)
                except (TimeoutError, RegistryError):
                    _log.info("%r could not say goodbye to the registry; its names go with its lease", self.holder)
            elif leave:
                self._conversation.leave(left)
            self._ending = True
            self._wakeup.set()
        if not inside:
            thread.join(_JOIN_TIMEOUT)

    def __enter__(self) -> RegistryClient:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # The port

    def register(
        self, name: str, value: Mapping[str, Any] | None = None, *, unique: bool = False, timeout: float = 5.0
    ) -> Entry:
        """Hold `name`.  Raises `AlreadyRegistered`, `InvalidEntry`, `RegistryFull`, `RegistryTimeout`,
        `RegistryClosed`."""
        check_name(name)
        normal, _ = normal_value(value)
        waiting: Future[Entry] = Future()
        self._ask(lambda: self._conversation.want(name, normal, unique, waiting))
        try:
            return self._answer(waiting, timeout, f"register {name!r}")
        except BaseException:
            # Interrupted as well as too late: who got no entry must not hold the name.
            self._post(lambda: self._conversation.withdraw(name, waiting))
            raise

    def unregister(self, name: str, *, timeout: float = 5.0) -> None:
        """Hold `name` no more.  Raises `RegistryTimeout` when the registry is away; the name goes all the same."""
        waiting: Future[None] = Future()
        self._ask(lambda: self._conversation.unwant(name, waiting))
        self._answer(waiting, timeout, f"unregister {name!r}")

    def update(self, name: str, value: Mapping[str, Any] | None, *, timeout: float = 5.0) -> Entry:
        """Change the value of a name we hold.  Raises `NotRegistered`, `InvalidEntry`, `RegistryFull`,
        `RegistryTimeout`."""
        normal, _ = normal_value(value)
        waiting: Future[Entry] = Future()
        self._ask(lambda: self._conversation.change(name, normal, waiting))
        return self._answer(waiting, timeout, f"update {name!r}")

    def lookup(self, name: str) -> tuple[Entry, ...]:
        """All entries of a name, from the cache."""
        return self._cache.lookup(name)

    def get(self, name: str) -> Entry | None:
        """The entry of a unique name, from the cache."""
        entries = self._cache.lookup(name)
        return entries[0] if entries and entries[0].unique else None

    def keys(self, holder: str | None = None) -> tuple[str, ...]:
        """The names a holder has; by default ours."""
        return self._cache.keys(self.holder if holder is None else holder)

    def count(self) -> int:
        """How many entries there are, of all holders."""
        return self._cache.count()

    def match(self, pattern: str = "*") -> tuple[Entry, ...]:
        """The entries whose name matches a glob."""
        wanted = name_filter(pattern)
        return tuple(entry for name, entries in self._cache.names().items() if wanted(name) for entry in entries)

    def await_name(self, name: str, timeout: float) -> tuple[Entry, ...]:
        """The entries of `name`, as soon as there are any.  Raises `RegistryTimeout`, `RegistryClosed`."""
        self._refuse_own_thread()
        return wait_for_name(self.when_name(name), name, timeout)

    def when_name(self, name: str) -> Future[tuple[Entry, ...]]:
        """The same as a future, completed on the client's thread; cancelled when the client closes."""
        waiting: Future[tuple[Entry, ...]] = Future()
        entries = self._cache.lookup(name)
        if entries:
            waiting.set_result(entries)
            return waiting
        self._ask(lambda: self._watches.add_name(name, waiting))
        waiting.add_done_callback(lambda done: self._post(lambda: self._watches.remove_name(name, done)))
        return waiting

    def watch(self, callback: Callable[[Notice], None], pattern: str = "*") -> Watch:
        """Call back for each change of matching names, first with `appeared` for what is there."""
        name_filter(pattern)
        watch = Watch(callback, self._cancelled)
        self._ask(lambda: self._begin_watch(watch, pattern))
        return watch

    def on_lost(self, callback: Callable[[tuple[Loss, ...]], None]) -> Watch:
        """Call back when unique names we held are not ours any more."""
        watch = Watch(callback, self._cancelled)
        self._ask(lambda: self._watches.add_loss(watch))
        return watch

    def is_current(self, entry: Entry) -> bool:
        """Whether this registration of ours holds this moment, by our own clock."""
        return self._conversation.is_current(entry, time.monotonic_ns())

    def ping(self, timeout: float = 5.0) -> float:
        """Seconds to the server and back.  Raises `RegistryTimeout`."""
        waiting: Future[None] = Future()
        began = time.monotonic_ns()
        self._ask(lambda: self._conversation.ping(waiting))
        try:
            self._answer(waiting, timeout, "answer a ping")
        finally:
            waiting.cancel()
        return (time.monotonic_ns() - began) / _SECOND

    # From callers to the thread

    def _post(self, work: Callable[[], None]) -> None:
        if not self._ended:
            self._work.append(work)
            self._wakeup.set()

    def _ask(self, work: Callable[[], None]) -> None:
        with self._lock:
            if not self._open:
                raise RegistryClosed(f"the registry client of {self.holder!r} is not started, or closed")
            self._work.append(work)
        self._wakeup.set()

    def _answer(self, waiting: Future[_Value], timeout: float, what: str) -> _Value:
        self._refuse_own_thread()
        try:
            return waiting.result(timeout)
        except TimeoutError:
            refusal = self._conversation.refusal
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
            self._converse(context)
        except BaseException:
            _log.exception("the registry client of %r ends because of a defect", self.holder)
        finally:
            with self._lock:
                self._open = False
            self._conversation.fail_all(RegistryClosed(f"the registry client of {self.holder!r} is closed"))
            while self._work:
                self._work.popleft()()
            self._conversation.fail_all(RegistryClosed(f"the registry client of {self.holder!r} is closed"))
            self._ended = True
            self._watches.close()
            context.destroy(0)
            self._wakeup.close()

    def _converse(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        conversation = self._conversation
        socket = self._connect(context)
        try:
            while not self._ending:
                self._wait(socket)
                self._do_work()
                _receive(socket, conversation)
                now_ns = time.monotonic_ns()
                conversation.tick(now_ns)
                if now_ns - conversation.heard_ns > max(_SILENT_NS, 2 * conversation.lease_ns):
                    socket.close(0)
                    socket = self._connect(context)
                    conversation.reopened(now_ns)
                conversation.flush(now_ns)
                _send(socket, conversation)
                self._tell()
            _send(socket, conversation)
        finally:
            # A goodbye from within a callback is sent and not waited for.
            socket.close(100)

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
        socket.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.LINGER, 0)
        if self._curve is not None:
            secure_client(socket, self._curve)
        socket.connect(self._endpoint)
        return socket

    def _wait(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if self._conversation.blocked else 0))
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        wait_ms = max(0, self._conversation.wake_ns() - time.monotonic_ns() + 999_999) // 1_000_000
        if self._wakeup.fileno() in dict(poller.poll(wait_ms)):
            self._wakeup.clear()

    def _do_work(self) -> None:
        for _ in range(len(self._work)):
            self._work.popleft()()

    def _tell(self) -> None:
        conversation = self._conversation
        if conversation.notices:
            notices, conversation.notices = conversation.notices, []
            self._watches.tell(notices)
        if conversation.losses:
            losses, conversation.losses = conversation.losses, []
            self._watches.tell_losses(tuple(losses))


def _receive(socket: zmq.Socket[bytes], conversation: Conversation) -> None:
    for _ in range(_FRAMES_PER_TURN):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) == 1:
            conversation.receive(frames[0], time.monotonic_ns())
        else:
            conversation.malformed += 1


def _send(socket: zmq.Socket[bytes], conversation: Conversation) -> None:
    outgoing = conversation.outgoing
    while outgoing:
        try:
            socket.send(outgoing[0], zmq.NOBLOCK)
        except zmq.Again:
            break
        outgoing.popleft()
    conversation.blocked = bool(outgoing)
