"""What a hop with a bound passes before it is launched, and gives back when it has ended.

Three bounds: the named pool of its step; `max_concurrency` of its transaction, and of each nested workflow that it is
in; and for consumers `concurrency`, a turn that the whole transaction keeps over its retries.  The turn comes first,
then the others in one moment; who holds those never waits for a turn.  While a hop waits for another transaction, or
for the steps that it is around, the others are lent.

Undo takes its step's places too, and so does compensation that is asked after the fact; both go ahead of what begins.
A hop that outlives its attempt does not count any more, just as its thread does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from bitactor.kinds.scope import Scope
from bitactor.plan import PlanStep
from bitactor.saga import Dispatch, HopExpired, Lost, Replied, Unrouted
from bitactor.signal import FORWARD
from mesh.line import urgency
from mesh.pools import LENT, RETURNING, Claim, Pool, Pools
from mesh.run import Bounds, Run

Answer = Replied | Lost | HopExpired | Unrouted
ANSWERS: Final = frozenset((Replied, Lost, HopExpired, Unrouted))
"""Stimuli that say that a delivery is over."""


class Hold(Claim):
    """The places of one delivery of one hop; or a consumer's turn, and the hop that waits for it."""

    __slots__ = ("_gate", "command", "delivery", "depth", "hop", "index", "run", "scopes")

    def __init__(
        self, gate: Gate, run: Run, step: PlanStep, command: Dispatch, bounds: tuple[tuple[Pool, ...], tuple[Pool, ...]]
    ) -> None:
        index, direction, fault = command
        own = run.bounds or Bounds()
        priority = step.priority + own.priority
        super().__init__(*bounds, urgency(direction, priority, depth=own.depth, compensating=fault is not None))
        self.depth = own.depth
        """See `Loan.depth`."""
        self._gate = gate
        self.scopes: tuple[Scope | None, ...] = ()
        """Keys of its pools in `Bounds.widths`."""
        self.run = run
        self.command: Dispatch | None = command
        """What it waits to do; None once that has begun, or is not wanted any more."""
        self.index = index
        self.hop = run.saga.hops[index] if direction is FORWARD else run.saga.undo_hop(index)
        self.delivery = run.saga.deliveries[index]

    @property
    def is_turn(self) -> bool:
        """Whether it is a consumer's turn, and its hop may have more to wait for."""
        return self.run.bounds is not None and self.run.bounds.turn is self

    def granted(self) -> None:
        """See `Claim.granted`."""
        self._gate.grant(self)


class Gate:
    """All bounds of the hops that one supervisor dispatches.

    Args:
        launch: called on a turn of its own with the holds that have had to wait and need not any more; what each waited
            to do is its `command`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pools: Pools, launch: Callable[[list[Hold]], None]) -> None:
        self._loop = loop
        self._pools = pools
        self._launch = launch
        self._turns: dict[str, Pool] = {}
        """By consumer."""
        self._granted: list[Hold] = []

    def watch(self, run: Run) -> None:
        """A transaction begins here, or goes on."""
        if run.plan.workflow in self._pools.narrow:
            run.bounds = run.bounds or Bounds()
            run.bounds.always = True

    def enter(self, run: Run, step: PlanStep, command: Dispatch) -> Hold | None:
        """The places of a hop, from now until `leave`; None if it has to wait for them, or for its transaction's turn.

        Raises:
            ConfigurationError: its step is limited by a pool that is not there.
        """
        bounds = run.bounds
        if bounds is None:
            bounds = run.bounds = Bounds()
        if run.plan.concurrency is not None and not self._has_turn(run, bounds, step, command):
            return None
        pool = () if step.limit is None else (self._pools.find(step.limit, f"step {step.address!r}"),)
        widths = self._widths(run, bounds, step)
        hold = Hold(self, run, step, command, ((*pool, *widths.values()), ()))
        hold.scopes = tuple(widths)
        bounds.holds[hold.index] = hold
        if not hold.enter():
            return None
        hold.command = None
        return hold

    def leave(self, hold: Hold) -> None:
        """This delivery is over.  Twice is once."""
        self._take_out(hold)
        self._left(hold)

    def leave_soon(self, hold: Hold) -> None:
        """This delivery is over, but its function may still run: if it obeys at once, it has the time to."""
        self._take_out(hold)
        self._loop.call_soon(self._left, hold)

    def answered(self, run: Run, answer: Answer) -> None:
        """Word of a delivery that ran elsewhere, or could not even begin."""
        hold = run.bounds.holds.get(answer.step) if run.bounds is not None else None
        if hold is None or hold.command is not None:
            return
        if _is_of(answer, hold):
            self.leave(hold)

    def forget(self, run: Run, index: int) -> Dispatch | None:
        """A hop is not wanted any more: if it still waits, what it waited to do, and it waits no more."""
        bounds = run.bounds
        if bounds is None:
            return None
        for hold in (bounds.turn, bounds.holds.get(index)):
            if hold is not None and hold.command is not None and hold.index == index:
                command, hold.command = hold.command, None
                if hold is bounds.turn:
                    bounds.turn = None
                self.leave(hold)
                return command
        return None

    def dismiss(self, run: Run, index: int) -> None:
        """A hop was told to stop: if it has lent its place, it ends without."""
        hold = run.bounds.holds.get(index) if run.bounds is not None else None
        if hold is not None and hold.state in (LENT, RETURNING):
            hold.leave()

    def give_back(self, run: Run, index: int) -> None:
        """Nobody waits for this hop any more, whatever its function still does."""
        hold = run.bounds.holds.get(index) if run.bounds is not None else None
        if hold is not None:
            self.leave(hold)

    def close(self, run: Run) -> None:
        """A transaction has settled, or is given up here: it holds nothing and waits for nothing."""
        bounds = run.bounds
        if bounds is None:
            return
        for hold in (*bounds.holds.values(), *(() if bounds.turn is None else (bounds.turn,))):
            hold.command = None
            hold.leave()
        bounds.holds, bounds.widths, bounds.turn = {}, {}, None

    def waiting(self, workflow: str) -> int:
        """How many transactions of a consumer wait for their turn."""
        pool = self._turns.get(workflow)
        return len(pool.line) if pool is not None else 0

    def about(self) -> dict[str, dict[str, int]]:
        """Consumer → how many of its transactions may run at once, have their turn, and wait for one; see
        `Pool.about`."""
        return {name: pool.about() for name, pool in list(self._turns.items())}

    def grant(self, hold: Hold) -> None:
        """See `Claim.granted`."""
        if not self._granted:
            self._loop.call_soon(self._flush)
        self._granted.append(hold)

    def _take_out(self, hold: Hold) -> None:
        bounds = hold.run.bounds
        if bounds is not None and bounds.holds.get(hold.index) is hold:
            del bounds.holds[hold.index]

    def _left(self, hold: Hold) -> None:
        hold.leave()
        bounds = hold.run.bounds
        if bounds is not None:
            for scope in hold.scopes:
                pool = bounds.widths.get(scope)
                if pool is not None and not pool.taken and not pool.lent and not pool.line:
                    del bounds.widths[scope]  # there may be as many scopes as a map has elements

    def _widths(self, run: Run, own: Bounds, step: PlanStep) -> dict[Scope | None, Pool]:
        """Of the transaction and of the scopes around a step: those that only so many hops at once may run in."""
        bounds: list[tuple[Scope | None, int]] = [] if own.max_concurrency is None else [(None, own.max_concurrency)]
        scope = step.scope
        while scope is not None:
            if scope.body.max_concurrency is not None:
                bounds.append((scope, scope.body.max_concurrency))
            scope = run.saga.steps[scope.container].scope
        return {scope: own.widths.setdefault(scope, Pool(step.address, places)) for scope, places in bounds}

    def _flush(self) -> None:
        granted, self._granted = self._granted, []
        self._launch(granted)

    def _has_turn(self, run: Run, bounds: Bounds, step: PlanStep, command: Dispatch) -> bool:
        if bounds.turn is not None:
            return True
        name = run.plan.workflow
        pool = self._turns.get(name)
        if pool is None:
            pool = self._turns[name] = Pool(name, run.plan.concurrency or 1)
        bounds.turn = turn = Hold(self, run, step, command, ((), (pool,)))
        if not turn.enter():
            return False
        turn.command = None
        return True


def _is_of(answer: Answer, hold: Hold) -> bool:
    if isinstance(answer, Replied):
        return (answer.reply.hop, answer.reply.delivery) == (hold.hop, hold.delivery)
    return answer.delivery == hold.delivery
