"""Pools: how many may be at something at once.

A `Claim` is on one place in each of some pools.  It takes all of them in one moment, or waits and holds none of them:
nobody ever holds one place while waiting for another, so claims cannot block each other in a circle.  Whoever waits
does so in the line of a pool that is full; when that has a free place again and another pool of the claim is full by
then, the claim moves to that one's line, and keeps its turn.

A hop that waits for another transaction *lends* its places meanwhile and takes them again, ahead of everybody else,
before it goes on; so a transaction that needs the same pool as the hop that waits for it can run.  Nothing here knows a
loop, a thread or a clock; everything is called on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Final

from bitactor.errors import ConfigurationError, suggest
from bitactor.plan import Plan
from mesh.line import Line, Urgency

NEW: Final = "new"
WAITING: Final = "waiting"
HELD: Final = "held"
LENT: Final = "lent"
RETURNING: Final = "returning"
"""Waiting to take again what was lent."""
GONE: Final = "gone"

_arrivals = count()


class Pool:
    """A number of places."""

    __slots__ = ("lent", "line", "name", "places", "taken")

    def __init__(self, name: str, places: int) -> None:
        self.name = name
        self.places = places
        self.taken = 0
        self.lent = 0
        """Claims that have lent their place here and will want it again; not counted in `taken`."""
        self.line: Line[Claim] = Line()

    def about(self) -> dict[str, int]:
        """Its `places`, and how many claims have `taken` one, are `waiting` for one, or have `lent` theirs."""
        return {"places": self.places, "taken": self.taken, "waiting": len(self.line), "lent": self.lent}

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}: {self.taken} of {self.places} taken, {len(self.line)} waiting>"


class Claim:
    """On one place in each pool; see the module.

    Args:
        lendable: pools whose place is lent while its holder waits for a transaction.
        kept: pools whose place is kept until the end.
        urgency: its turn among those that wait.
    """

    __slots__ = ("_kept", "_lendable", "_line", "arrival", "on_return", "state", "urgency")

    def __init__(self, lendable: tuple[Pool, ...], kept: tuple[Pool, ...], urgency: Urgency) -> None:
        self.urgency = urgency
        self.state = NEW
        self.on_return: Callable[[], None] | None = None
        """Called when what was lent is held again, or will never be."""
        self.arrival = next(_arrivals)
        """Its turn among those that are as urgent: the smaller number goes first."""
        self._lendable = lendable
        self._kept = kept
        self._line: Line[Claim] | None = None

    def granted(self) -> None:
        """The wait that `enter` began is over.  Called while others are served: only note it."""

    def enter(self) -> bool:
        """Take every place now, or wait until `granted` is called; whether it has them."""
        self.state = WAITING
        return self._take()

    def lend(self) -> None:
        """Its holder waits: others may have the lendable places meanwhile.  Without effect on one that holds
        nothing."""
        if self.state == HELD and self._lendable:
            self.state = LENT
            for pool in self._lendable:
                pool.lent += 1
            _free(self._lendable)
        elif self.state == RETURNING:
            self._step_out()
            self.state = LENT

    def take_again(self) -> bool:
        """Take what was lent, or wait until `on_return` is called; whether there is nothing to wait for."""
        if self.state == LENT:
            self.state = RETURNING
            self.arrival = next(_arrivals)
            self._take()
        return self.state != RETURNING

    def leave(self) -> None:
        """Give everything back, and wait for nothing.  Twice is once."""
        state, self.state = self.state, GONE
        self._step_out()
        on_return, self.on_return = self.on_return, None
        if state == HELD:
            _free(self._lendable + self._kept)
        elif state in (LENT, RETURNING):
            for pool in self._lendable:
                pool.lent -= 1
            _free(self._kept)
            if on_return is not None:
                on_return()

    def _take(self) -> bool:
        """All places, or none and a turn in the line of a pool that is full."""
        again = self.state == RETURNING
        pools = self._lendable if again else self._lendable + self._kept
        for pool in pools:
            if pool.taken >= pool.places:
                self._line = pool.line
                pool.line.add(self, (0, *self.urgency[1:]) if again else self.urgency, self.arrival)
                return False
        for pool in pools:
            pool.taken += 1
            pool.lent -= again
        self._line = None
        self.state = HELD
        return True

    def _step_out(self) -> None:
        if self._line is not None:
            self._line.discard(self)
            self._line = None


def _free(pools: tuple[Pool, ...]) -> None:
    """One place of each is free: whose turn is it?"""
    for pool in pools:
        pool.taken -= 1
    served: list[tuple[Claim, bool]] = []
    while lines := [pool.line for pool in pools if pool.line and pool.taken < pool.places]:
        claim = min(lines, key=Line.head).pop()
        again = claim.state == RETURNING
        if claim._take():
            served.append((claim, again))
    for claim, again in served:
        if not again:
            claim.granted()
        elif claim.on_return is not None:
            claim.on_return()


class Pools:
    """The named pools of one mesh."""

    def __init__(self, places: Mapping[str, int]) -> None:
        self._pools = {name: Pool(name, number) for name, number in places.items()}
        self.narrow: set[str] = set()
        """Workflows that are made of others of which some have a `max_concurrency` of their own."""

    def find(self, name: str, who: str) -> Pool:
        """The pool that `who` is limited by.

        Raises:
            ConfigurationError: this mesh has no such pool.
        """
        pool = self._pools.get(name)
        if pool is None:
            raise ConfigurationError(
                f"{who} is limited by the pool {name!r}, which this mesh does not have; give it places: "
                f"Mesh(…, pools={{{name!r}: 10}}), or BITACTOR_POOLS.{suggest(name, self._pools)}"
            )
        return pool

    def declare(self, plan: Plan) -> None:
        """A workflow or consumer that will run here.

        Raises:
            ConfigurationError: one of its steps is limited by a pool that is not there.
        """
        for step in plan.all_steps():
            if step.limit is not None:
                self.find(step.limit, f"step {step.address!r}")
            if step.container is not None and any(body.max_concurrency is not None for body in step.container.bodies):
                self.narrow.add(plan.workflow)

    def about(self) -> dict[str, dict[str, int]]:
        """Name → `places`, and how many hops have `taken` one, are `waiting` for one, or have `lent` theirs."""
        return {name: pool.about() for name, pool in self._pools.items()}
