"""What stands between a hop and its function: resources that have to be made first, and policies around each attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitactor.patterns.port import Call
from bitactor.signal import UNDO
from mesh.actor import ENDED, QUEUED, REPLIED, STARTED, BitActor
from mesh.faults import fault_of

if TYPE_CHECKING:
    from mesh.host import Host
    from mesh.spawners.port import Spawner


class Preparing:
    """Stands in a spawner's place until a hop's function can be given to the real one.

    Time spent here before the function first runs does not count towards the step's timeout; what policies take afterwards, between one run of it and
    the next, does.  A hop that is stopped takes with it what its policies have started: a coroutine is cancelled and awaited, a thread is fenced.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tasks: dict[BitActor, asyncio.Task[None]] = {}

    def start(self, actor: BitActor) -> None:
        """Prepare the actor, which is queued; then its own spawner has it."""
        spawner, actor.spawner = actor.spawner, self
        work = self._prepare(actor, spawner)
        task = self._host.loop.create_task(work, name=f"prepare {actor.signal.name}", context=self._host.context_for(actor))
        self._tasks[actor] = task
        task.add_done_callback(lambda _: self._tasks.pop(actor, None))

    def abandon(self, actor: BitActor) -> None:
        """See the spawners' port."""
        task = self._tasks.get(actor)
        if task is not None:
            task.cancel()

    async def close(self, timeout: float) -> None:
        """Cancel what runs and wait for it."""
        tasks = list(self._tasks.values())
        for actor, task in self._tasks.items():
            actor.stopping = True
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)

    async def _prepare(self, actor: BitActor, spawner: Spawner) -> None:
        host, callback, step = self._host, actor.callback, actor.step
        policies = step.policies if actor.signal.direction != UNDO else ()
        try:
            resources = await host.provide(callback)
            if policies and host.policies is not None:
                value = await host.policies.run(policies, self._call(actor), lambda: self._attempt(actor, spawner, resources))
            else:
                actor.kwargs = host.kwargs_of(actor, callback, resources)
                host.loop.call_soon(_hand_over, actor, spawner)
                return
        except BaseException as error:
            if actor.state == QUEUED and isinstance(error, Exception):
                actor.begin()
            if actor.state != ENDED:
                actor.settle(None, error)
        else:
            if actor.state == QUEUED:
                actor.begin()  # a policy has answered by itself
            if actor.state != ENDED:
                actor.settle(value, None)

    def _call(self, actor: BitActor) -> Call:
        signal = actor.signal
        path = signal.path or signal.name.removeprefix(f"{actor.plan.workflow}/")
        return Call(actor.plan.workflow, path, signal.transaction, signal.attempt, actor.arguments())

    async def _attempt(self, actor: BitActor, spawner: Spawner, resources: Mapping[str, Any]) -> Any:
        """One run of the function."""
        if actor.context is not None:
            actor.context.forget_emitted()
        attempt = Attempt(actor, spawner, self._host.kwargs_of(actor, actor.callback, resources))
        self._host.loop.call_soon(_hand_over, attempt, spawner)
        try:
            return await asyncio.shield(attempt.ended)
        except asyncio.CancelledError:
            if not attempt.ended.done():
                attempt.give_up()
                if actor.callback.is_async:
                    await asyncio.wait([attempt.ended])
            raise


class Attempt(BitActor):
    """One run of a hop's function inside its policies: what becomes of it is theirs to judge."""

    __slots__ = ("ended", "outer")

    def __init__(self, outer: BitActor, spawner: Spawner, kwargs: dict[str, Any]) -> None:
        super().__init__(outer.host, outer.plan, outer.step, outer.signal, outer.callback, outer.arguments, spawner, outer.done)
        self.outer = outer
        self.kwargs = kwargs
        if outer.place is not None:
            self.place = outer.place
        self.ended: asyncio.Future[Any] = outer.host.loop.create_future()
        self.ended.add_done_callback(lambda future: future.cancelled() or future.exception())

    def begin(self) -> None:
        """The function starts; so does the time of the hop, if this is the first run."""
        self.state = STARTED
        if self.outer.state == QUEUED:
            self.outer.begin()

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The function returned or raised."""
        self.state = ENDED
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(value)
        elif isinstance(error, StopIteration):
            self.ended.set_exception(RuntimeError(f"{self.signal.name!r} raised StopIteration"))
        else:
            self.ended.set_exception(error)

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        if self.state == QUEUED:
            self.state = ENDED
            self.spawner.abandon(self)
            self.ended.cancel()
            return
        self.stopping = True
        self.state = REPLIED
        self.spawner.abandon(self)


def _hand_over(actor: BitActor, spawner: Spawner) -> None:
    """Outside of any task, where a task of its own can be begun at once."""
    if actor.state != QUEUED:
        return
    actor.spawner = spawner
    try:
        spawner.start(actor)
    except Exception as error:
        actor.judge(None, error, fault_of(error))
