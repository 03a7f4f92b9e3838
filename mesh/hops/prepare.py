"""Preparation of a hop before its function runs: making its resources, and entering its policies."""

from __future__ import annotations

import asyncio

from typing_extensions import override

from bitactor.declare.spawners import SpawnerTraits
from bitactor.messages.signal import UNDO
from mesh.hops.lifecycle import cancel_all
from mesh.hops.policy_chain import PolicyChain, start_queued
from mesh.hops.ports import ENDED, QUEUED, Actor, ActorExecutor, Spawner


class Preparation(Spawner):
    """A spawner that prepares hops and passes each on to the real one.

    Waiting for resources does not count towards the step's timeout.  What policies do is in `mesh.hops.policy_chain`.
    """

    traits = SpawnerTraits(on_loop=True)

    def __init__(self, executor: ActorExecutor) -> None:
        self._executor = executor
        self._tasks: dict[Actor, asyncio.Task[None]] = {}
        self._chains: dict[Actor, PolicyChain] = {}

    @override
    def start(self, actor: Actor) -> None:
        """Prepare the actor, which is queued, in a task; then its own spawner has it."""
        spawner, actor.spawner = actor.spawner, self
        executor = self._executor
        if actor.step.policies and actor.signal.direction != UNDO and executor.policies is not None:
            chain = self._chains[actor] = PolicyChain(executor, actor, spawner)
            work = chain.execute()
        else:
            work = self._provide_resources(actor, spawner)
        task = executor.start_task(work, f"prepare {actor.signal.name}", executor.contextvars_for(actor))
        if task.done():
            self._forget(actor)
            return
        actor.task = task
        self._tasks[actor] = task
        task.add_done_callback(lambda _: self._forget(actor))

    @override
    def abandon(self, actor: Actor) -> None:
        """Cancels the wait for resources; a policy chain that runs is asked to stop."""
        task, chain = self._tasks.get(actor), self._chains.get(actor)
        first = chain is None or not chain.stop_requested
        if chain is not None:
            chain.stop()
        if task is not None and first:
            task.cancel()

    @override
    async def close(self, timeout: float) -> None:
        """Cancels the preparations and policy chains that run, and waits for them."""
        tasks = list(self._tasks.values())
        for actor in list(self._tasks):
            actor.stop_requested = True
            if actor in self._chains:
                self._chains[actor].stop()
        await cancel_all(tasks, timeout)

    def runs(self, actor: Actor) -> list[Actor]:
        """The runs of a hop's function inside its policies that have not ended."""
        chain = self._chains.get(actor)
        return [] if chain is None else list(chain.runs)

    async def _provide_resources(self, actor: Actor, spawner: Spawner) -> None:
        executor, callback = self._executor, actor.callback
        try:
            resources = await executor.resources_of(callback)
        except BaseException as error:
            if actor.state != ENDED:
                actor.begin()
                actor.finish(None, error)
            return
        if actor.state != QUEUED:
            return
        try:
            actor.kwargs = executor.kwargs_of(actor, callback, resources)
        except Exception as error:  # a user's model may raise anything
            actor.fail(error)
        else:
            actor.task = None
            executor.loop.call_soon(start_queued, actor, spawner)

    def _forget(self, actor: Actor) -> None:
        self._tasks.pop(actor, None)
        self._chains.pop(actor, None)
