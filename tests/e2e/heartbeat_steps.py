"""A workflow whose step runs in a worker process; that imports this module by its name."""

from __future__ import annotations

from bitactor import BitActorError, Context, Workflow

beats_in_a_process = Workflow("process.beats")


@beats_in_a_process.step(spawn="process")
def beats(ctx: Context) -> str:
    try:
        ctx.heartbeat()
    except BitActorError as error:
        return str(error)
    return "heard"
