"""A table of worker processes and the hops they have."""

from __future__ import annotations

import asyncio

from typing_extensions import override

from mesh.hops.ports import Actor
from mesh.spawners.process.child import WorkerProcess

LoadKey = tuple[str, ...]
"""A plan's workflow and digest, and the resources that a hop of it takes."""
DeliveryKey = tuple[str, str, int, int]
"""Transaction, hop, delivery and epoch: what a reply names."""


def load_key_of(actor: Actor) -> LoadKey:
    """The load key of an actor's hop: what a worker has to have loaded for it."""
    return actor.plan.workflow, actor.plan.digest, *actor.callback.resources


class WorkerHandle:
    """A worker process and what it is doing: starting, importing a workflow's modules, running a hop, or nothing."""

    __slots__ = (
        "actor",
        "endpoint",
        "error",
        "key",
        "loaded",
        "loading",
        "number",
        "patience_timer",
        "process",
        "ready",
    )

    def __init__(self, number: str, endpoint: str) -> None:
        self.number = number
        self.endpoint = endpoint
        self.process: WorkerProcess
        self.ready = False
        self.loaded: set[LoadKey] = set()
        self.loading: LoadKey | None = None
        self.patience_timer: asyncio.TimerHandle | None = None
        # The actor whose hop this worker has, or will have once the modules are imported
        self.actor: Actor | None = None
        self.key: DeliveryKey | None = None  # the delivery that this worker runs
        self.error: BaseException | None = None  # the error that its actor ends with; set when we end the worker

    @override
    def __repr__(self) -> str:
        return f"worker process {self.process.pid}"

    def disarm(self) -> None:
        """Cancel the patience timer: the worker has done what we were waiting for."""
        if self.patience_timer is not None:
            self.patience_timer.cancel()
            self.patience_timer = None

    def doing(self) -> str:
        """What the worker is doing, for a message."""
        if self.key is not None and self.actor is not None:
            return f"running {self.actor.signal.name!r}"
        if self.loading is not None:
            return f"importing what {self.loading[0]!r} needs"
        return "idle" if self.ready else "starting"


class WorkerTable:
    """The worker processes of one spawner, and which of them has which hop."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerHandle] = {}
        self.idle: dict[WorkerHandle, None] = {}
        self.assigned: dict[Actor, WorkerHandle] = {}
        self.running: dict[DeliveryKey, WorkerHandle] = {}

    def __len__(self) -> int:
        return len(self.workers)

    @property
    def starting(self) -> int:
        """How many workers will be free soon."""
        return sum(not worker.ready for worker in self.workers.values())

    def remove(self, worker: WorkerHandle) -> bool:
        """Remove a worker whose process is gone; False: it was removed before."""
        self.idle.pop(worker, None)
        return self.workers.pop(worker.number, None) is not None

    def assign(self, actor: Actor) -> WorkerHandle:
        """Give the actor's hop to a free worker: one that has the workflow imported already, else the one used last."""
        load_key = load_key_of(actor)
        found = next((idle for idle in reversed(self.idle) if load_key in idle.loaded), None) or next(
            reversed(self.idle)
        )
        del self.idle[found]
        found.actor = actor
        self.assigned[actor] = found
        return found

    def run(self, worker: WorkerHandle, key: DeliveryKey) -> bool:
        """Note that a worker starts its hop; False if the same delivery runs already, for their replies could not be
        told apart."""
        if key in self.running:
            return False
        worker.key = key
        self.running[key] = worker
        return True

    def detach(self, worker: WorkerHandle) -> Actor | None:
        """Take a worker's hop away; returns the actor whose hop it was."""
        actor, worker.actor = worker.actor, None
        if actor is not None:
            del self.assigned[actor]
        if worker.key is not None:
            del self.running[worker.key]
            worker.key = None
        return actor

    def release(self, worker: WorkerHandle) -> Actor | None:
        """`detach` a worker and make it free for the next hop, unless its end is near."""
        actor = self.detach(worker)
        if worker.error is None:
            self.idle[worker] = None
        return actor

    def retire(self, worker: WorkerHandle) -> None:
        """Give a worker no more hops."""
        self.idle.pop(worker, None)
