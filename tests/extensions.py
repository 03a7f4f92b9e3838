"""A spawner, a store and a sink that are not ours, each added by one call, and a pattern, which is given to a step;
`memory_transport` has a transport."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.declare.spawners import SpawnerTraits
from bitactor.errors import DefinitionError
from bitactor.messages.pulse import Pulse
from bitactor.ports import (
    Arrived,
    Claim,
    Clock,
    Due,
    Message,
    Refusal,
    Sent,
    Sink,
    Store,
    TransactionRow,
    Write,
)
from mesh.hops.ports import Actor, Spawner
from mesh.sinks import register_sink
from mesh.spawners import register_spawner
from mesh.stores import MemoryStore, register_store

Value = TypeVar("Value")
Dues = list[Due]
Messages = list[Message]


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


class LateAnswers(Store):
    """In front of a store: what it is asked, it answers some turns of the loop later, in any order, as it was at some
    moment between."""

    turns = random.Random(1)

    async def pause(self, moment: str) -> None:
        """What a question takes on its way there (`"find"`), and its answer on the way back (`"find answered"`)."""
        for _ in range(self.turns.randrange(1, 4)):
            await asyncio.sleep(0)

    async def _late(self, question: str, answer: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        await self.pause(question)
        value = await answer()
        await self.pause(f"{question} answered")
        return value

    @override
    async def pulses(self, transaction: str) -> list[Pulse]:
        return await self._late("pulses", partial(super().pulses, transaction))

    @override
    async def find(self, workflow: str, key: str) -> str | None:
        return await self._late("find", partial(super().find, workflow, key))

    @override
    async def get(self, transaction: str) -> TransactionRow | None:
        return await self._late("get", partial(super().get, transaction))

    @override
    async def claim(self, shapes: Mapping[str, str] | None = None) -> list[Claim]:
        claims = await self._late("claim", partial(super().claim, shapes))
        return [claim._replace(pulses=None) for claim in claims]  # they are asked for, and come late too

    @override
    async def unclaimed(self, shapes: Mapping[str, str], limit: int = 100) -> list[TransactionRow]:
        return await self._late("unclaimed", partial(super().unclaimed, shapes, limit))

    @override
    async def reclaim(self, held: Container[str]) -> list[Claim]:
        return await self._late("reclaim", partial(super().reclaim, held))

    @override
    async def due(self, limit: int = 100) -> Dues:
        return await self._late("due", partial(super().due, limit))

    @override
    async def send(self, message: Message) -> Sent:
        return await self._late("send", partial(super().send, message))

    @override
    async def inbox(self, transaction: str) -> Messages:
        return await self._late("inbox", partial(super().inbox, transaction))

    @override
    async def arrived(self, after: int = 0, limit: int = 100) -> Arrived:
        return await self._late("arrived", partial(super().arrived, after, limit))

    @override
    async def forget(self, before_ns: int, limit: int = 100) -> int:
        return await self._late("forget", partial(super().forget, before_ns, limit))

    @override
    async def list(self, **conditions: Any) -> list[TransactionRow]:
        return await self._late("list", partial(super().list, **conditions))


class TardyStore(LateAnswers, MemoryStore):
    """The memory store, telling what it has kept only later, and answering later."""

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
