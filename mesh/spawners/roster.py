"""Which worker process has which hop."""

from __future__ import annotations

import asyncio

from mesh.actor import BitActor
from mesh.spawners.child import Child

Known = tuple[str, ...]
"""A plan's workflow and digest, and the resources that a hop of it takes."""
Key = tuple[str, str, int, int]
"""Transaction, hop, delivery and epoch: what a reply names."""


def known_as(actor: BitActor) -> Known:
    """What has to be there for an actor's hop."""
    return actor.plan.workflow, actor.plan.digest, *actor.callback.resources


class Member:
    """One worker process and what it is doing: starting, importing a workflow's modules, running a hop, or nothing."""

    __slots__ = ("actor", "child", "endpoint", "error", "key", "loaded", "loading", "number", "patience", "ready")

    def __init__(self, number: str, endpoint: str) -> None:
        self.number = number
        self.endpoint = endpoint
        self.child: Child
        self.ready = False
        self.loaded: set[Known] = set()
        self.loading: Known | None = None
        self.patience: asyncio.TimerHandle | None = None
        self.actor: BitActor | None = None
        """Whose hop it has, or will have once the modules are imported."""
        self.key: Key | None = None
        """Of the hop that runs."""
        self.error: BaseException | None = None
        """Set when we end it: how its actor ends."""

    def __repr__(self) -> str:
        return f"worker process {self.child.pid}"

    def stop_waiting(self) -> None:
        """It has done what we were waiting for."""
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    def doing(self) -> str:
        """What to call it in a message."""
        if self.key is not None and self.actor is not None:
            return f"running {self.actor.signal.name!r}"
        if self.loading is not None:
            return f"importing what {self.loading[0]!r} needs"
        return "idle" if self.ready else "starting"


class Roster:
    """All worker processes of one spawner."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self._idle: dict[Member, None] = {}
        self._assigned: dict[BitActor, Member] = {}
        self._running: dict[Key, Member] = {}

    def __len__(self) -> int:
        return len(self.members)

    @property
    def has_idle(self) -> bool:
        """Whether somebody is free."""
        return bool(self._idle)

    @property
    def starting(self) -> int:
        """How many will be free soon."""
        return sum(not member.ready for member in self.members.values())

    @property
    def running(self) -> int:
        """How many hops run."""
        return len(self._running)

    def add(self, member: Member) -> None:
        """A process has been started."""
        self.members[member.number] = member

    def remove(self, member: Member) -> bool:
        """A process is gone; false if that is known."""
        self._idle.pop(member, None)
        return self.members.pop(member.number, None) is not None

    def assign(self, actor: BitActor) -> Member:
        """A free one that has the actor's workflow imported already, else the one used last."""
        known = known_as(actor)
        found = next((idle for idle in reversed(self._idle) if known in idle.loaded), None) or next(
            reversed(self._idle)
        )
        del self._idle[found]
        found.actor = actor
        self._assigned[actor] = found
        return found

    def run(self, member: Member, key: Key) -> bool:
        """Its hop starts; false if the same delivery runs already, for their replies could not be told apart."""
        if key in self._running:
            return False
        member.key = key
        self._running[key] = member
        return True

    def whose(self, actor: BitActor) -> Member | None:
        """Who has the hop of this actor."""
        return self._assigned.get(actor)

    def runner(self, key: Key) -> Member | None:
        """Who runs this hop."""
        return self._running.get(key)

    def detach(self, member: Member) -> BitActor | None:
        """It has nobody's hop any more; answers whose it had."""
        actor, member.actor = member.actor, None
        if actor is not None:
            del self._assigned[actor]
        if member.key is not None:
            del self._running[member.key]
            member.key = None
        return actor

    def release(self, member: Member) -> BitActor | None:
        """`detach`, and it is free for the next hop, unless its end is near."""
        actor = self.detach(member)
        if member.error is None:
            self._idle[member] = None
        return actor

    def retire(self, member: Member) -> None:
        """It gets no more hops."""
        self._idle.pop(member, None)
