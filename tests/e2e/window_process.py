"""A node that stops itself, once, between the look whether a hop may still begin and its function's first instruction:
`python -m tests.e2e.window_process '{"uses": ["errand"], …}'`; else as `node_process`."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import signal
import sys
from itertools import count
from typing import Any

from mesh.hops.executor import Executor
from tests.e2e.node_process import live

BEGUN_BEFORE = 20

_begun = count()
_contextvars_for = Executor.contextvars_for


def stop_once(executor: Executor, actor: Any) -> contextvars.Context:
    """What the spawner on the loop calls between the two."""
    if actor.step.spawn == "loop" and actor.signal.direction == "forward" and next(_begun) == BEGUN_BEFORE:
        os.kill(os.getpid(), signal.SIGSTOP)
    return _contextvars_for(executor, actor)


if __name__ == "__main__":
    Executor.contextvars_for = stop_once  # type: ignore[method-assign]
    asyncio.run(live(json.loads(sys.argv[1])))
