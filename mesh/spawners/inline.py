"""On the supervisor's own turn: for functions that only compute, and briefly."""

from __future__ import annotations

from mesh.hops.ports import Actor


class InlineSpawner:
    """Calls the function at once.  The cheapest place; a slow function here stops everything else."""

    def start(self, actor: Actor) -> None:
        """See the port."""
        actor.begin()
        context = actor.executor.contextvars_for(actor)
        try:
            value = context.run(actor.callback.function, **actor.kwargs)
        except BaseException as error:
            actor.finish(None, error)
        else:
            actor.finish(value, None)

    def abandon(self, actor: Actor) -> None:
        """Nothing to stop: it has ended before anybody could ask."""

    async def close(self, timeout: float) -> None:
        """Nothing to release."""
