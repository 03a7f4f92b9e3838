"""Which worker process has which hop."""

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
    """What has to be there for an actor's hop."""
    return actor.plan.workflow, actor.plan.digest, *actor.callback.resources


class WorkerHandle:
    """One worker process and what it is doing: starting, importing a workflow's modules, running a hop, or nothing."""

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
        self.actor: Actor | None = None
        """Whose hop it has, or will have once the modules are imported."""
        self.key: DeliveryKey | None = None
        """Of the hop that runs."""
        self.error: BaseException | None = None
        """Set when we end it: how its actor ends."""

    @override
    def __repr__(self) -> str:
        return f"worker process {self.process.pid}"

    def disarm(self) -> None:
        """It has done what we were waiting for."""
        if self.patience_timer is not None:
            self.patience_timer.cancel()
            self.patience_timer = None

    def doing(self) -> str:
        """What to call it in a message."""
        if self.key is not None and self.actor is not None:
            return f"running {self.actor.signal.name!r}"
        if self.loading is not None:
            return f"importing what {self.loading[0]!r} needs"
        return "idle" if self.ready else "starting"


class WorkerTable:
    """All worker processes of one spawner."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerHandle] = {}
        self._idle: dict[WorkerHandle, None] = {}
        self._assigned: dict[Actor, WorkerHandle] = {}
        self._running: dict[DeliveryKey, WorkerHandle] = {}

    def __len__(self) -> int:
        return len(self.workers)

    @property
    def has_idle(self) -> bool:
        """Whether somebody is free."""
        return bool(self._idle)

    @property
    def starting(self) -> int:
        """How many will be free soon."""
        return sum(not worker.ready for worker in self.workers.values())

    @property
    def running(self) -> int:
        """How many hops run."""
        return len(self._running)

    def add(self, worker: WorkerHandle) -> None:
        """A process has been started."""
        self.workers[worker.number] = worker

    def remove(self, worker: WorkerHandle) -> bool:
        """A process is gone; false if that is known."""
        self._idle.pop(worker, None)
        return self.workers.pop(worker.number, None) is not None

    def assign(self, actor: Actor) -> WorkerHandle:
        """A free one that has the actor's workflow imported already, else the one used last."""
        load_key = load_key_of(actor)
        found = next((idle for idle in reversed(self._idle) if load_key in idle.loaded), None) or next(
            reversed(self._idle)
        )
        del self._idle[found]
        found.actor = actor
        self._assigned[actor] = found
        return found

    def run(self, worker: WorkerHandle, key: DeliveryKey) -> bool:
        """Its hop starts; false if the same delivery runs already, for their replies could not be told apart."""
        if key in self._running:
            return False
        worker.key = key
        self._running[key] = worker
        return True

    def worker_with(self, actor: Actor) -> WorkerHandle | None:
        """Who has the hop of this actor."""
        return self._assigned.get(actor)

    def worker_running(self, key: DeliveryKey) -> WorkerHandle | None:
        """Who runs this hop."""
        return self._running.get(key)

    def detach(self, worker: WorkerHandle) -> Actor | None:
        """It has nobody's hop any more; answers whose it had."""
        actor, worker.actor = worker.actor, None
        if actor is not None:
            del self._assigned[actor]
        if worker.key is not None:
            del self._running[worker.key]
            worker.key = None
        return actor

    def release(self, worker: WorkerHandle) -> Actor | None:
        """`detach`, and it is free for the next hop, unless its end is near."""
        actor = self.detach(worker)
        if worker.error is None:
            self._idle[worker] = None
        return actor

    def retire(self, worker: WorkerHandle) -> None:
        """It gets no more hops."""
        self._idle.pop(worker, None)
