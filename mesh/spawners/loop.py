"""On the event loop, as a task of its own."""

from __future__ import annotations

import asyncio

from typing_extensions import override

from mesh.hops.ports import Actor, Spawner


class LoopSpawner(Spawner):
    """One task per hop; its first step runs at once."""

    def __init__(self) -> None:
        self._running: set[Actor] = set()

    @override
    def start(self, actor: Actor) -> None:
        """See the port."""
        actor.begin()
        executor = actor.executor
        task = executor.start_task(self._drive(actor), actor.signal.name, executor.contextvars_for(actor))
        if not task.done():
            actor.task = task
            self._running.add(actor)

    @override
    def abandon(self, actor: Actor) -> None:
        """Cancel the task; a function that swallows that goes on as a zombie."""
        if actor.task is not None:
            actor.task.cancel()

    @override
    async def close(self, timeout: float) -> None:
        """Cancel what runs and wait for it."""
        tasks = []
        for actor in self._running:
            actor.stop_requested = True
            actor.task.cancel()
            tasks.append(actor.task)
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)

    async def _drive(self, actor: Actor) -> None:
        try:
            value = await actor.callback.function(**actor.kwargs)
        except BaseException as error:
            self._running.discard(actor)
            if isinstance(error, GeneratorExit) and not actor.executor.loop.is_running():
                raise  # the loop was closed around us; there is nobody left to tell
            actor.finish(None, error)
        else:
            self._running.discard(actor)
            actor.finish(value, None)
