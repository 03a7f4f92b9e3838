"""A program that runs hops in worker processes until it is killed; `python -m tests.e2e.process_parent <gate>…`, one
hop each."""

from __future__ import annotations

import asyncio
import sys

from mesh.spawners.process.spawner import ProcessSpawner
from tests.e2e.process_steps import alone
from tests.spawning import Stage


async def main() -> None:
    gates = sys.argv[1:]
    stage = Stage(ProcessSpawner(len(gates)))
    for gate in gates:
        stage.launch(alone, "keep_the_interpreter", gate)
    await asyncio.Event().wait()


asyncio.run(main())
