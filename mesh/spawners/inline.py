"""On the supervisor's own turn: for functions that only compute, and briefly."""

from __future__ import annotations

from mesh.hops.actor import BitActor


class InlineSpawner:
    """Calls the function at once.  The cheapest place; a slow function here stops everything else."""

    def start(self, actor: BitActor) -> None:
        """See the port."""
        actor.begin()
        context = actor.executor.contextvars_for(actor)
        try:
            value = context.run(actor.callback.function, **actor.kwargs)
        except BaseException as error:
            actor.finish(None, error)
        else:
            actor.finish(value, None)

    def abandon(self, actor: BitActor) -> None:
        """Nothing to stop: it has ended before anybody could ask."""

    async def close(self, timeout: float) -> None:
        """Nothing to release."""
