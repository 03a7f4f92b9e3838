"""The spawners on the event loop: `inline` calls a function on the supervisor's own turn, for those that only compute,
and briefly; `loop` makes a task of each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import CoroutineType
from typing import Any

from typing_extensions import override

from bitactor.declare.spawners import SPAWNERS
from mesh.hops.lifecycle import cancel_all
from mesh.hops.ports import STARTED, Actor, Spawner


class InlineSpawner(Spawner):
    """Calls the function at once, before `start` returns.  The cheapest place; a slow function here stops everything
    else."""

    traits = SPAWNERS["inline"]

    def __init__(self) -> None:
        self._rest = LoopSpawner()

    @override
    def start(self, actor: Actor) -> None:
        if not actor.begin(timed=False):
            return
        context = actor.executor.contextvars_for(actor)
        try:
            value = context.run(actor.callback.function, **actor.kwargs)
        except BaseException as error:
            actor.finish(None, error)
        else:
            if type(value) is CoroutineType:
                self._rest.take_over(actor, value)
            else:
                actor.finish(value, None)

    @override
    def abandon(self, actor: Actor) -> None:
        """Does nothing: the function has ended before anybody could ask."""

    @override
    async def close(self, timeout: float) -> None:
        """Cancels the coroutines that functions have passed on."""
        await self._rest.close(timeout)


class LoopSpawner(Spawner):
    """Runs each function as a task of its own, whose first step runs before `start` returns."""

    traits = SPAWNERS["loop"]

    def __init__(self) -> None:
        self._running: set[Actor] = set()

    @override
    def start(self, actor: Actor) -> None:
        # It has started if its function has passed a coroutine on.
        if actor.state != STARTED and not actor.begin(timed=False):
            return
        executor = actor.executor
        task = executor.start_task(self._drive(actor), actor.signal.name, executor.contextvars_for(actor))
        if not task.done():
            actor.task = task
            self._running.add(actor)
            actor.keep_time()

    def take_over(self, actor: Actor, coroutine: CoroutineType[Any, Any, Any]) -> None:
        """Await a coroutine that an actor's `def` function has passed on, as decorators do, in place of a value."""
        if actor.state != STARTED or actor.stop_requested:
            coroutine.close()
            actor.finish(None, asyncio.CancelledError())
            return
        actor.callback = replace(actor.callback, function=lambda **_: coroutine)
        actor.spawner = self
        self.start(actor)

    @override
    def abandon(self, actor: Actor) -> None:
        """Cancels the task; a function that swallows the cancellation goes on as a zombie."""
        if actor.task is not None:
            actor.task.cancel()

    @override
    async def close(self, timeout: float) -> None:
        """Cancels the tasks that run and waits for them."""
        for actor in self._running:
            actor.stop_requested = True
        await cancel_all([actor.task for actor in self._running], timeout)

    async def _drive(self, actor: Actor) -> None:
        try:
            value = await actor.callback.function(**actor.kwargs)
        except BaseException as error:
            self._running.discard(actor)
            if type(error) is GeneratorExit and not actor.executor.loop.is_running():
                raise  # the loop was closed around us; there is nobody left to tell
            actor.finish(None, error)
        else:
            self._running.discard(actor)
            actor.finish(value, None)
