"""The inline spawner, on the supervisor's own turn: for functions that only compute, and briefly."""

from __future__ import annotations

from typing_extensions import override

from bitactor.declare.spawners import SPAWNERS
from mesh.hops.ports import Actor, Spawner


class InlineSpawner(Spawner):
    """Calls the function at once, before `start` returns.  The cheapest place; a slow function here stops everything
    else."""

    traits = SPAWNERS["inline"]

    @override
    def start(self, actor: Actor) -> None:
        actor.begin()
        context = actor.executor.contextvars_for(actor)
        try:
            value = context.run(actor.callback.function, **actor.kwargs)
        except BaseException as error:
            actor.finish(None, error)
        else:
            actor.finish(value, None)

    @override
    def abandon(self, actor: Actor) -> None:
        """Does nothing: the function has ended before anybody could ask."""

    @override
    async def close(self, timeout: float) -> None:
        """Does nothing: there is nothing to release."""
