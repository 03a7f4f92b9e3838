"""Hops on their way to other nodes: who gets which, how many at once, and what if nobody answers.

A holder is sent at most as many unanswered hops as it said it takes (its window), so a slow one slows its senders
instead of drowning; what finds no room waits here, and what waits too long fails with `Overloaded`.  A holder that
disappears from the registry has lost what it had not answered.  Answers are never held back by a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from cachetools import LRUCache

from bitactor.codec import encode_message, encode_token, token_bytes
from bitactor.errors import BitActorError, Cancelled, Overloaded, ProtocolError, StepTimeout, Unroutable, suggest
from bitactor.plan import PlanStep
from bitactor.ports import Clock
from bitactor.saga import HopExpired, Lost, Replied, Unrouted
from bitactor.signal import Cancel, Reply, Signal
from mesh.faults import fault_of
from mesh.names import step_name
from mesh.wheel import Timer, TimingWheel
from registry import Entry, Registry

if TYPE_CHECKING:
    from mesh.run import Run
    from mesh.supervisor import Supervisor

BACKSTOP_NS: Final = 2_000_000_000
QUEUED_BACKSTOP_NS: Final = 60_000_000_000
"""How much longer than the attempt's own timeout we wait for its holder, which keeps it, to tell that it is over.

An attempt's time counts from its start, and a hop for a thread or a process may wait for a free one, or for a resource
to be made.  A holder that is gone we learn of from the registry; this is for one that is there and has stopped
answering.
"""
DEFAULT_WINDOW: Final = 1_024
MAX_WAITING: Final = 100_000
REMEMBERED: Final = 10_000

Send = Callable[[str, bytes], None]


class Errand:
    """One delivery of one hop to another node."""

    __slots__ = ("holder", "index", "message", "run", "signal", "step", "timer")

    def __init__(self, run: Run, step: PlanStep, signal: Signal, message: bytes) -> None:
        self.run = run
        self.step = step
        self.index = step.index
        self.signal = signal
        self.message = message
        self.holder: Entry | None = None
        self.timer: Timer | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the delivery."""
        return self.signal.hop, self.signal.delivery

    def rest(self) -> None:
        """Disarm its timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Router:
    """All hops of one supervisor that run elsewhere."""

    def __init__(
        self,
        supervisor: Supervisor,
        registry: Registry,
        clock: Clock,
        wheel: TimingWheel,
        send: Send,
        endpoint: str,
        patience_ns: int,
    ) -> None:
        self._supervisor = supervisor
        self._registry = registry
        self._clock = clock
        self._wheel = wheel
        self._send = send
        self._endpoint = endpoint
        self._patience_ns = patience_ns
        self._sent: dict[tuple[str, int], Errand] = {}
        self._by_holder: dict[str, dict[tuple[str, int], Errand]] = {}
        self._waiting: dict[str, deque[Errand]] = {}
        self._past: LRUCache[tuple[str, int], Errand] = LRUCache(REMEMBERED)
        """Deliveries we stopped waiting for, of which a late reply may come."""
        self._turn = 0

    def dispatch(self, run: Run, step: PlanStep, signal: Signal, values: Mapping[str, Any], result: Any) -> None:
        """See `supervisor.Router`."""
        try:
            token = encode_token([bytes(token_bytes(encode_token(dict(values)))), bytes(token_bytes(result))])
            message = encode_message(
                signal._replace(token=token, reply_to=self._endpoint, metadata=_plain(signal.metadata))
            )
        except (BitActorError, ValueError, TypeError) as error:
            self._supervisor.feed(run, Unrouted(step.index, signal.delivery, fault_of(error)))
            return
        errand = Errand(run, step, signal, message)
        if step.address in self._waiting or not self._assign(errand):
            self._wait(errand)

    def abandon(self, run: Run, index: int) -> None:
        """See `supervisor.Router`."""
        saga = run.saga
        hops = (saga.hops[index], saga.undo_hop(index))
        for errand in self._waiting.get(run.saga.steps[index].address, ()):
            if errand.run is run and errand.signal.hop in hops:
                self._drop_waiting(errand)
                self._fail(errand, Cancelled(f"{errand.signal.name!r} was stopped before it was sent"))
                return
        delivery = saga.deliveries[index]
        for hop in hops:
            found = self._sent.get((hop, delivery)) or self._past.get((hop, delivery))
            if found is not None and found.holder is not None:
                signal = found.signal
                cancel = Cancel(signal.transaction, signal.hop, signal.delivery, signal.epoch)
                self._post(found.holder, encode_message(cancel))

    def replied(self, reply: Reply) -> None:
        """A holder has answered; one that comes twice, or to nothing we sent, is passed over."""
        key = (reply.hop, reply.delivery)
        errand = self._sent.get(key)
        if errand is None:
            late = self._past.pop(key, None)
            if late is not None:
                self._supervisor.feed(late.run, Replied(late.index, reply))
            return
        self._forget(errand)
        if reply.outcome == "busy":
            self._wait(errand)
            return
        if reply.outcome == "lost":
            self._supervisor.feed(
                errand.run, Lost(errand.index, reply.delivery, f"a worker process of {errand.signal.name!r}")
            )
        else:
            self._supervisor.feed(errand.run, Replied(errand.index, reply))
        for address in list(self._waiting):  # the room that was made is for any step the holder runs
            self._assign_waiting(address)

    def appeared(self, entry: Entry) -> None:
        """Somebody offers to run steps."""
        for address in list(self._waiting):
            if step_name(address) == entry.name:
                self._assign_waiting(address)

    def disappeared(self, holder: str) -> None:
        """A node is gone, and what it had not answered with it."""
        for errand in list(self._by_holder.pop(holder, {}).values()):
            errand.rest()
            self._sent.pop(errand.key, None)
            self._supervisor.feed(errand.run, Lost(errand.index, errand.signal.delivery, holder))
        for key, errand in list(self._past.items()):
            if errand.holder is not None and errand.holder.holder == holder:
                del self._past[key]

    def close(self) -> None:
        """Wait for nothing any more."""
        for errand in [*self._sent.values(), *(errand for line in self._waiting.values() for errand in line)]:
            errand.rest()
        self._sent.clear()
        self._by_holder.clear()
        self._waiting.clear()

    def _assign(self, errand: Errand) -> bool:
        """Send it to a holder with room, in turn; whether there was one."""
        entries = self._registry.lookup(step_name(errand.step.address))
        self._turn += 1
        for offset in range(len(entries)):
            entry = entries[(self._turn + offset) % len(entries)]
            taken = self._by_holder.setdefault(entry.holder, {})
            fits = entry.value.get("digest") == errand.run.plan.digest
            if fits and len(taken) < entry.value.get("window", DEFAULT_WINDOW) and self._post(entry, errand.message):
                errand.rest()
                errand.holder = entry
                taken[errand.key] = errand
                self._sent[errand.key] = errand
                budget_ns, step = errand.signal.budget_ns, errand.step
                if (
                    budget_ns is not None and not step.policies
                ):  # which may wait as long as they like before the time begins
                    starts_at_once = step.spawn in ("loop", "inline") and not step.run.resources
                    patience_ns = BACKSTOP_NS if starts_at_once else QUEUED_BACKSTOP_NS
                    due_ns = self._clock.monotonic_ns() + budget_ns + patience_ns
                    errand.timer = Timer(self._wheel, due_ns, lambda: self._expired(errand))
                return True
        return False

    def _post(self, entry: Entry, message: bytes) -> bool:
        try:
            self._send(entry.value["endpoint"], message)
        except (Overloaded, ProtocolError):
            return False
        return True

    def _wait(self, errand: Errand) -> None:
        line = self._waiting.setdefault(errand.step.address, deque())
        if len(line) >= MAX_WAITING:
            self._fail(
                errand, Overloaded(f"{len(line):,} hops for {errand.step.address!r} are waiting for a node already")
            )
            return
        line.append(errand)
        errand.timer = Timer(
            self._wheel, self._clock.monotonic_ns() + self._patience_ns, lambda: self._out_of_patience(errand)
        )

    def _assign_waiting(self, address: str) -> None:
        line = self._waiting.get(address)
        while line and self._assign(line[0]):
            line.popleft()
        if line is not None and not line:
            del self._waiting[address]

    def _out_of_patience(self, errand: Errand) -> None:
        errand.timer = None
        self._drop_waiting(errand)
        address = errand.step.address
        seconds = self._patience_ns / 1e9
        entries = self._registry.lookup(step_name(address))
        if not entries:
            known = {entry.name.partition(":")[2] for entry in self._registry.match(step_name("*"))}
            self._fail(
                errand,
                Unroutable(
                    f"no node runs {address!r}, and none appeared within {seconds:g} s.{suggest(address, known)}"
                ),
            )
        elif not any(entry.value.get("digest") == errand.run.plan.digest for entry in entries):
            self._fail(
                errand,
                Unroutable(f"only nodes with another version of the workflow run {address!r}; deploy the same code"),
            )
        else:
            self._fail(errand, Overloaded(f"all {len(entries)} nodes that run {address!r} were full for {seconds:g} s"))

    def _drop_waiting(self, errand: Errand) -> None:
        errand.rest()
        line = self._waiting.get(errand.step.address)
        if line is not None and errand in line:
            line.remove(errand)
            if not line:
                del self._waiting[errand.step.address]

    def _fail(self, errand: Errand, error: BaseException) -> None:
        errand.run.errors[errand.signal.hop] = error
        self._supervisor.feed(errand.run, Unrouted(errand.index, errand.signal.delivery, fault_of(error)))

    def _expired(self, errand: Errand) -> None:
        """Its holder should have told by now: stop waiting, and tell it to stop."""
        errand.timer = None
        self._forget(errand)
        self._past[errand.key] = errand
        seconds = (errand.signal.budget_ns or 0) / 1e9
        error = StepTimeout(
            f"{errand.signal.name!r}, attempt {errand.signal.attempt}, took longer than {seconds:g} s in another "
            "process"
        )
        errand.run.errors[errand.signal.hop] = error
        self._supervisor.feed(errand.run, HopExpired(errand.index, errand.signal.delivery, fault_of(error)))

    def _forget(self, errand: Errand) -> None:
        errand.rest()
        self._sent.pop(errand.key, None)
        if errand.holder is not None:
            self._by_holder.get(errand.holder.holder, {}).pop(errand.key, None)


def _plain(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return dict(metadata) if metadata else None
