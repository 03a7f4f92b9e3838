"""A spawner, a store and a sink that are not ours, each added by one call, and a pattern, which is given to a step;
`memory_transport` has a transport."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.declare.spawners import SpawnerTraits
from bitactor.errors import DefinitionError
from bitactor.messages.pulse import Pulse
from bitactor.ports import Clock, Refusal, Sink, Write
from mesh.hops.ports import Actor, Spawner
from mesh.sinks import register_sink
from mesh.spawners import register_spawner
from mesh.stores import MemoryStore, register_store


class UnpooledSpawner(Spawner):
    """A thread for each function, which ends with it."""

    traits = SpawnerTraits(refuses_async="cannot await; make it `def` or use 'loop'")

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()

    @override
    def start(self, actor: Actor) -> None:
        if not actor.begin():
            return
        context = actor.executor.contextvars_for(actor)
        thread = threading.Thread(target=self._run, args=(actor, context), name="unpooled", daemon=True)
        self._threads.add(thread)
        thread.start()

    @override
    def abandon(self, actor: Actor) -> None:
        """Does nothing: a thread cannot be stopped."""

    @override
    async def close(self, timeout: float) -> None:
        """Waits for what runs."""
        for thread in list(self._threads):
            await asyncio.to_thread(thread.join, timeout)

    def _run(self, actor: Actor, context: contextvars.Context) -> None:
        value, error = None, None
        try:
            value = context.run(actor.callback.function, **actor.kwargs)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop may be closed
            actor.executor.call_threadsafe(partial(actor.finish, value, error))
        self._threads.discard(threading.current_thread())


class TardyStore(MemoryStore):
    """The memory store, telling what it has kept only later."""

    synchronous = False

    def __init__(self, notify: Callable[[Callable[[], None]], None]) -> None:
        super().__init__()
        self._notify = notify
        self._untold: deque[Callable[[], None]] = deque()

    @override
    def append(self, writes: Sequence[Write], done: Callable[[Sequence[Refusal], BaseException | None], None]) -> None:
        def later(refusals: Sequence[Refusal], error: BaseException | None) -> None:
            if error is not None:
                done(refusals, error)
            else:
                self._untold.append(partial(done, refusals, None))
                self._notify(self._tell)

        super().append(writes, later)

    @override
    def close(self) -> None:
        self._tell()
        super().close()

    def _tell(self) -> None:
        while self._untold:
            self._untold.popleft()()


class Tally(Sink):
    """How many pulses there were of each kind."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self._closed = False

    @override
    def receive(self, pulses: Sequence[Pulse]) -> None:
        if not self._closed:
            self.kinds.update(pulse.kind for pulse in pulses)

    @override
    def close(self, timeout: float) -> None:
        self._closed = True


@dataclass(frozen=True)
class CallCount(Policy):
    """Counts calls, and those that ended with an error.

    Raises:
        DefinitionError: the name is empty.
    """

    pattern: ClassVar[str] = "call count"
    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise DefinitionError(f"CallCount: name={self.name!r}; give it one")

    @override
    def open(self, clock: Clock) -> CallCountState:
        return CallCountState()


class CallCountState(PolicyState):
    """How many there were."""

    def __init__(self) -> None:
        self._calls = self._failed = 0

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        self._calls += 1
        try:
            return await proceed()
        except Exception:
            self._failed += 1
            raise

    @override
    def about(self) -> Mapping[str, Any]:
        return {"calls": self._calls, "failed": self._failed}


def _open_tardy(url: str, *, notify: Callable[[Callable[[], None]], None], **options: Any) -> TardyStore:
    return TardyStore(notify)


register_spawner("unpooled", UnpooledSpawner)
register_store("tardy", _open_tardy)
register_sink("tally", lambda parts, options: Tally())
