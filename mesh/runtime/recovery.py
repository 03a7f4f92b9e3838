"""Recovery: carrying on with transactions of dead owners, and with our own that had to be given up; and going on as
another owner when we were declared dead ourselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from typing_extensions import override

from bitactor.errors import DamagedJournal, StaleOwner, StoreError
from bitactor.messages.pulse import Pulse
from bitactor.messages.values import text_of
from bitactor.plan.plan import Plan
from bitactor.ports import Claim, Store, StoreFault
from mesh.runtime.live import LiveTransaction

logger = logging.getLogger("bitactor.recovery")

LONGEST_PAUSE: Final = 60.0
SHOWN_UNCLAIMED: Final = 5
STORE_FILE: Final = "store file"
"""In `unready`: the file is gone, another one, or damaged."""

Value = TypeVar("Value")

_FINISH_IT: Final = "finish it with the release that began it, or declare that shape again"


class Owner(Protocol):
    """Runs the transactions of this process."""

    healthy: bool
    """Whether the journal can be written, as far as is known."""
    failures: int
    """How many appends have failed."""
    transactions: dict[str, LiveTransaction]

    def recover(self, plan: Plan, pulses: Sequence[Pulse], owner: str, epoch: int, *, given_back: bool = False) -> None:
        """Take over a transaction from its journal; `given_back`: its owner ended in order."""

    def relinquish_all(self, error: StoreError) -> int:
        """Give up all that runs here; returns how many had not settled."""


class _Stopped(Exception):
    """Recovery was stopped while the store was asked."""


class _Held(Container[str]):
    """The transactions that are not to be reclaimed, as they are when this is asked: some begin, or are parked, while
    the store finds its answer."""

    def __init__(self, *held: Container[str]) -> None:
        self._held = held

    @override
    def __contains__(self, transaction: object) -> bool:
        return any(transaction in some for some in self._held)


class Recovery:
    """Looks in the store for transactions that nobody runs, when the node opens and every half a lease from then on.

    Args:
        owner: the node's name in the store.
        plans: what this node can carry on with; transactions of another shape are left to another release, and said so.
        lease: seconds after which a silent owner counts as dead.
        unready: what keeps the node from taking work; what the store says is noted in it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Store,
        supervisor: Owner,
        owner: str,
        plans: Mapping[str, Plan],
        lease: float,
        unready: dict[str, str] | None = None,
    ) -> None:
        self.unready = {} if unready is None else unready
        """What keeps the node from taking work → why."""
        self.parked: dict[str, str] = {}
        """Transaction that cannot be carried on with here → why."""
        self._loop = loop
        self._store = store
        self._supervisor = supervisor
        self._owner = owner
        self._plans = plans
        self._shapes = {name: plan.digest for name, plan in plans.items()}
        self._lease = lease
        self.failures = 0
        """How many looks in the store have failed."""
        self._unclaimed: set[str] = set()
        self._pause = 0.0
        self._reclaim_at = 0.0
        self._next: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._stopped = False
        self._stops = 0  # what was asked before the last of them is not wanted any more

    async def start(self, *, polling: bool) -> None:
        """Take over now the transactions that nobody runs; with `polling`, look again every half a lease.

        Raises:
            StoreError: the store could not be asked.
        """
        self._store.on_fault = self.on_store_fault
        with suppress(_Stopped):
            await self._look()
            if polling and self._next is None:
                self._arm(self._lease / 2)

    def stop(self) -> None:
        """Look no more; what the store is being asked is dropped.  Twice is once."""
        self._stopped = True
        self._stops += 1
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop, and wait until nothing is asked any more, a lease at most.  What was claimed and not yet taken up is
        ours in the store, which gives it back when it is closed."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._lease)

    def begin_again(self, owner: str) -> None:
        """Look again, after `stop`, for an owner of another name: what was true of transactions for the one before need
        not be now."""
        self._owner = owner
        self._stopped = False
        self.parked.clear()
        self._unclaimed.clear()
        self._poll()

    def _arm(self, seconds: float) -> None:
        self._next = self._loop.call_later(seconds, self._poll)

    def _poll(self) -> None:
        if not self._stopped:
            self._next = None
            self._task = self._loop.create_task(self.poll(), name="recovery")

    async def poll(self) -> None:
        """Look once, after whoever looks now, and schedule the next look, whatever becomes of this one."""
        stops, wait = self._stops, self._lease
        try:
            await self._look()
            wait = self._lease / 2
        except StoreError as error:
            self._count_failure(stops, "could not look for transactions to carry on with: %s", error)
        except (Exception, asyncio.CancelledError):
            text = "looking for transactions to carry on with failed by a defect; it is tried again"
            self._count_failure(stops, text, exc_info=True)
        if stops == self._stops and not self._stopped:
            self._arm(wait)

    async def _look(self) -> None:
        stops = self._stops
        async with self._looking:
            if stops != self._stops:
                raise _Stopped
            await self._reclaim()
            await self._claim_orphans()

    def _count_failure(self, stops: int, text: str, *arguments: Any, exc_info: bool = False) -> None:
        """Log and count a look that failed, unless it was stopped."""
        if stops == self._stops:
            self.failures += 1
            logger.log(logging.ERROR if exc_info else logging.WARNING, text, *arguments, exc_info=exc_info)

    async def _ask(self, answer: Awaitable[Value]) -> Value:
        """The store's answer, if it is still wanted when it comes."""
        stops = self._stops
        value = await answer
        if stops != self._stops:
            raise _Stopped
        return value

    def park(self, transaction: str, error: BaseException) -> None:
        """Leave a transaction alone that cannot be carried on with here: listed, told, and in nobody's way."""
        self.note_parked(transaction, error)
        logger.error("transaction %s cannot go on here: %s", transaction, self.parked[transaction])

    def note_parked(self, transaction: str, error: BaseException) -> None:
        """The same of one that was given up, which the log has told."""
        self.parked[transaction] = text_of(error)

    def note_settled(self, live: LiveTransaction) -> None:
        """Take one off the list that went on here, from memory, and has settled."""
        if self.parked and live.failure is None:
            self.parked.pop(live.state.transaction, None)

    def on_store_fault(self, fault: StoreFault) -> None:
        """Take what the store says to be wrong with itself; it stays so until another node is opened on it."""
        if fault.transaction:
            self.parked[fault.transaction] = fault.why
            logger.error("transaction %s cannot go on here: %s", fault.transaction, fault.why)
        else:
            known = STORE_FILE in self.unready
            self.unready[STORE_FILE] = fault.why
            lost = 0
            if fault.lost:
                self._supervisor.healthy = False
                self._supervisor.failures += 1
                lost = self._supervisor.relinquish_all(StoreError(fault.why))
            if not known:
                text = "%s; this node takes no more work%s"
                doubt = f"; {lost} transactions that run are given up, what their hops do is in doubt" if lost else ""
                logger.critical(text, fault.why, doubt)

    async def _claim_orphans(self) -> None:
        """Take over the transactions of dead owners."""
        for claim in await self._ask(self._store.claim(self._shapes)):
            await self._recover(claim)
        await self._note_unclaimed()

    async def _reclaim(self) -> None:
        """Carry on with transactions of ours that were given up because the journal could not be written, if it can be
        now.

        Their next epoch keeps what their former life still answers from counting.  Each time costs their hops a
        delivery, so a journal that fails again and again is tried ever more rarely.
        """
        now = self._loop.time()
        if self._supervisor.healthy:
            if now > self._reclaim_at + LONGEST_PAUSE:
                self._pause = 0.0
            return
        if now < self._reclaim_at:
            return
        failures = self._supervisor.failures
        claims = await self._ask(self._store.reclaim(_Held(self._supervisor.transactions, self.parked)))
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if self._pause else self._lease
        self._reclaim_at = now + self._pause
        # What was given up while the store was asked is not among these.
        self._supervisor.healthy = self._supervisor.failures == failures
        logger.warning(
            "the journal can be written again; carrying on with %d transactions that were given up", len(claims)
        )
        for claim in claims:
            await self._recover(claim)

    async def _recover(self, claim: Claim) -> None:
        transaction, epoch, given_back, pulses = claim
        try:
            if pulses is None:
                pulses = await self._ask(self._store.pulses(transaction))
            if not pulses:
                raise StoreError("the journal has no pulse of it any more")
            plan = self._plans[pulses[0].workflow]
            self._supervisor.recover(plan, pulses, self._owner, epoch, given_back=given_back)
        except _Stopped:
            raise
        except Exception as error:  # whatever is wrong with one is no reason to leave the others
            self.park(transaction, error)
        else:
            logger.info("took over transaction %s of %s", transaction, pulses[0].workflow)

    async def _note_unclaimed(self) -> None:
        """Log which transactions of our workflows we leave to another release: each once, however often we look."""
        rows = await self._ask(self._store.unclaimed(self._shapes))
        found = {row.transaction: row.workflow for row in rows}
        for transaction in self._unclaimed - found.keys():
            self.parked.pop(transaction, None)
        fresh = {transaction: workflow for transaction, workflow in found.items() if transaction not in self._unclaimed}
        self._unclaimed = set(found)
        for transaction in [*fresh]:
            try:
                await self._ask(self._store.pulses(transaction))
            except DamagedJournal as error:
                del fresh[transaction]
                self.park(transaction, error)
        for transaction, workflow in fresh.items():
            self.parked[transaction] = shape_changed(workflow)
        for workflow in sorted(set(fresh.values())):
            those = sorted(transaction for transaction, name in fresh.items() if name == workflow)
            more = f" and {len(those) - SHOWN_UNCLAIMED} more" if len(those) > SHOWN_UNCLAIMED else ""
            logger.error(
                "%d transactions of %s cannot go on here: it has changed since they began; %s: %s%s",
                len(those), workflow, _FINISH_IT, ", ".join(those[:SHOWN_UNCLAIMED]), more,
            )  # fmt: skip


class Ownership:
    """The name under which this node owns transactions: its own at first, and another each time that all it had was
    taken over by a process that saw it hang, or that could not see it.

    Args:
        node: the node's name, which stays.
        lease: seconds between two tries to take another name, while the store cannot be written.
        forget: drops what is being delivered for transactions that are given up.
        end: ends the node, told why; None: it goes on under another name.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Store,
        supervisor: Owner,
        recovery: Recovery,
        node: str,
        lease: float,
        *,
        forget: Callable[[], None],
        end: Callable[[str], None] | None,
    ) -> None:
        self._loop = loop
        self._store = store
        self._supervisor = supervisor
        self._recovery = recovery
        self._node = node
        self._lease = lease
        self._forget = forget
        self._end = end
        self._closed = False
        self._names = 1
        self._task: asyncio.Task[None] | None = None
        self.owner = node
        """The owner's name in the store."""
        self.lost = ""
        """Why this node owns nothing at the moment; empty if it may."""
        self.times = 0
        """How often all that it had was taken over."""
        self.refused = 0
        """How many stimuli were refused since all was taken over last."""
        self._last = ""

    def about(self) -> dict[str, Any]:
        """How many `times` all that ran here was taken over, what was said of the `last`, and how many stimuli were
        `refused` for it; `now`: why this node takes nothing at the moment."""
        return {"times": self.times, "last": self._last, "refused": self.refused, "now": self.lost}

    def require(self) -> None:
        """Raise `StoreError` while this node owns nothing, and count that."""
        if self.lost:
            self.refused += 1
            raise StoreError(f"this node takes no work at the moment: {self.lost}")

    def fenced(self, error: StaleOwner) -> None:
        """Give up all that runs here, for it is another's, and go on as another owner, or end."""
        if self.lost or self._closed or error.owner not in ("", self.owner):
            return
        self.times += 1
        self.refused = 0
        self.lost = self._last = str(error)
        self._recovery.stop()
        self._forget()
        given_up = self._supervisor.relinquish_all(error)
        logger.error(
            "%s; it was stopped or hung for too long, or could not be seen. %d transactions that ran here are given "
            "up, and their hops in flight are in doubt; this node %s",
            error, given_up, "ends" if self._end is not None else "goes on under another name",
        )  # fmt: skip
        if self._end is not None:
            self._end(self.lost)
        else:
            self._task = self._loop.create_task(self._rejoin(), name="rejoin")

    async def close(self) -> None:
        """Take no other name any more, and end recovery.  Twice is once."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        await self._recovery.close()

    async def _rejoin(self) -> None:
        while True:
            self._names += 1
            name = f"{self._node}.{self._names}"
            try:
                await self._store.rejoin(name)
                break
            except NotImplementedError as error:
                logger.critical("%s; restart this node", error)
                return
            except Exception as error:
                logger.error("this node could not go on as owner %r, and tries again: %s", name, text_of(error))
                await asyncio.sleep(self._lease)
        self.owner, self.lost = name, ""
        self._supervisor.healthy = True
        logger.warning("this node goes on as owner %r; %d stimuli were refused meanwhile", name, self.refused)
        self._recovery.begin_again(name)


def shape_changed(workflow: str) -> str:
    """Why a transaction of another shape cannot go on here, and what to do."""
    return f"workflow {workflow!r} has changed since it began; {_FINISH_IT}"
