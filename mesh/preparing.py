"""What stands between a hop and its function: resources that have to be made first, and policies around each
attempt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bitactor.signal import UNDO
from mesh.actor import ENDED, QUEUED, BitActor
from mesh.attempts import Onion, hand_over
from mesh.faults import fault_of

if TYPE_CHECKING:
    from mesh.host import Host
    from mesh.spawners.port import Spawner


class Preparing:
    """Stands in a spawner's place until a hop's function can be given to the real one.

    Waiting for resources does not count towards the step's timeout.  What policies do is in `mesh.attempts`.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tasks: dict[BitActor, asyncio.Task[None]] = {}
        self._onions: dict[BitActor, Onion] = {}

    def start(self, actor: BitActor) -> None:
        """Prepare the actor, which is queued; then its own spawner has it."""
        spawner, actor.spawner = actor.spawner, self
        host = self._host
        if actor.step.policies and actor.signal.direction != UNDO and host.policies is not None:
            onion = self._onions[actor] = Onion(host, actor, spawner)
            work = onion.drive()
        else:
            work = self._furnish(actor, spawner)
        task = host.start_task(work, f"prepare {actor.signal.name}", host.context_for(actor))
        if task.done():
            self._forget(actor)
            return
        actor.task = task
        self._tasks[actor] = task
        task.add_done_callback(lambda _: self._forget(actor))

    def abandon(self, actor: BitActor) -> None:
        """See the spawners' port."""
        task, onion = self._tasks.get(actor), self._onions.get(actor)
        first = onion is None or not onion.stopped
        if onion is not None:
            onion.stop()
        if task is not None and first:
            task.cancel()

    async def close(self, timeout: float) -> None:
        """Cancel what runs and wait for it."""
        tasks = list(self._tasks.values())
        for actor, task in list(self._tasks.items()):
            actor.stopping = True
            if actor in self._onions:
                self._onions[actor].stop()
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)

    def runs(self, actor: BitActor) -> list[BitActor]:
        """Runs of the function of a hop inside its policies that have not ended."""
        onion = self._onions.get(actor)
        return [] if onion is None else list(onion.runs)

    async def _furnish(self, actor: BitActor, spawner: Spawner) -> None:
        """Resources first, then the function."""
        host, callback = self._host, actor.callback
        try:
            resources = await host.provide(callback)
        except BaseException as error:
            if actor.state != ENDED:
                actor.begin()
                actor.settle(None, error)
            return
        if actor.state != QUEUED:
            return
        try:
            actor.kwargs = host.kwargs_of(actor, callback, resources)
        except Exception as error:  # a user's model may raise anything
            actor.judge(None, error, fault_of(error))
        else:
            actor.task = None
            host.loop.call_soon(hand_over, actor, spawner)

    def _forget(self, actor: BitActor) -> None:
        self._tasks.pop(actor, None)
        self._onions.pop(actor, None)
