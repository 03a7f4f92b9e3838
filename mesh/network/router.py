"""Routing of hops to other nodes: who gets which, how many at once, and what if nobody answers.

A holder is sent at most as many unanswered hops as it said it takes (its window), so a slow one slows its senders
instead of drowning; what finds no room, or nobody, waits here.  The first hop of a transaction of which nothing has run
fails after `patience`, which harms nobody; any other waits until its transaction's deadline, and without one for
`delivery_timeout`.  A holder that disappears from the registry has lost what it had not answered.  Answers are never
held back by a window.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from cachetools import LRUCache
from typing_extensions import override

from bitactor.declare.spawners import SPAWNERS
from bitactor.errors import (
    BitActorError,
    Cancelled,
    Overloaded,
    ProtocolError,
    StepTimeout,
    StoreError,
    Unroutable,
    suggest,
)
from bitactor.messages.codec import Packed
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import UNDO, Cancel, Reply, Signal, addressed
from bitactor.messages.wire import encode_message, pack_parts
from bitactor.plan.plan import PlanStep
from bitactor.ports import Clock
from bitactor.saga import HopExpired, Lost, Replied, Unrouted
from mesh.hops.executor import Executor
from mesh.limits.payload import within_limit
from mesh.limits.timing_wheel import Timer, TimingWheel
from mesh.network.grant import NodeGrant
from mesh.network.remote_delivery import RemoteDelivery, not_started
from mesh.runtime.live import LiveTransaction
from mesh.runtime.names import node_name, step_name
from mesh.runtime.ports import Enqueue, Router
from registry import Entry, Registry

_log = logging.getLogger("bitactor.router")

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for what every hop needs."""

BACKSTOP_NS: Final = 2_000_000_000
QUEUED_BACKSTOP_NS: Final = 60_000_000_000
"""Nanoseconds beyond the attempt's own timeout that we wait for its holder, which keeps the timeout, to tell that the
attempt is over; `QUEUED_…` for a hop that may have to queue there.

An attempt's time counts from its start, and a hop for a thread or a process may wait for a free one, or for a resource
to be made.  A holder that is gone we learn of from the registry; this is for one that is there and has stopped
answering.
"""
DEFAULT_WINDOW: Final = 1_024
MAX_WAITING: Final = 100_000
REMEMBERED_DELIVERIES: Final = 10_000
LOOK_AGAIN_NS: Final = 2_000_000_000
"""Nanoseconds after which a holder is looked for again for all that waits, should nothing have told of one."""

_NO_LEASE: Final = "this node could not renew its lease on its transactions in the store"

Send = Callable[[str, bytes], None]


class HopRouter(Router):
    """The router of one supervisor: all its hops that run elsewhere."""

    def __init__(
        self,
        enqueue: Enqueue,
        registry: Registry,
        clock: Clock,
        wheel: TimingWheel,
        send: Send,
        endpoint: Callable[[], str],
        patience_ns: int,
        delivery_timeout_ns: int,
        grant: NodeGrant,
        executor: Executor,
    ) -> None:
        self._enqueue = enqueue
        self._registry = registry
        self._monotonic_ns = clock.monotonic_ns
        self._wheel = wheel
        self._send = send
        self._endpoint = endpoint
        self._patience_ns = patience_ns
        self._delivery_timeout_ns = delivery_timeout_ns
        self._grant = grant
        self._executor = executor
        self._sent: dict[tuple[str, int], RemoteDelivery] = {}
        self._by_holder: defaultdict[str, dict[tuple[str, int], RemoteDelivery]] = defaultdict(dict)
        self._waiting: dict[str, OrderedDict[tuple[str, int], RemoteDelivery]] = {}
        """Step address → its hops that wait for a holder, in order of arrival."""
        self._look_again: Timer | None = None
        self._told: set[str] = set()  # addresses of which the log has said that their hops wait
        self._late: LRUCache[tuple[str, int], RemoteDelivery] = LRUCache(REMEMBERED_DELIVERIES)
        # no longer waited for; a late reply may come
        self._round_robin = 0

    @override
    def dispatch(self, live: LiveTransaction, step: PlanStep, signal: Signal, values: Packed, result: Any) -> None:
        """A hop for which no holder has room waits here; see the module for how long."""
        try:
            token = pack_parts(values, result)
        except (BitActorError, ValueError, TypeError) as error:
            self._enqueue(live, Unrouted(step.index, signal.delivery, fault_of(error), signal.hop))
            return
        remote = RemoteDelivery(live, step, signal, token, self._wheel)
        budget_ns = signal.budget_ns
        if budget_ns is not None and budget_ns != step.timeout_ns:
            remote.deadline_ns = self._monotonic_ns() + budget_ns
        if step.address in self._waiting or not self._assign(remote):
            self._wait(remote)

    @override
    def abandon(self, live: LiveTransaction, index: int) -> None:
        """A hop that has not been sent is failed as cancelled at once."""
        state = live.state
        hops = (state.hops[index], state.undo_hop(index))
        delivery = state.deliveries[index]
        queue = self._waiting.get(state.steps[index].address)
        for hop in hops:
            remote = None if queue is None else queue.get((hop, delivery))
            if remote is not None:
                self._drop_waiting(remote)
                self._fail(remote, Cancelled(f"{remote.signal.name!r} was stopped before it was sent"))
                return
        for hop in hops:
            found = self._sent.get((hop, delivery)) or self._late.get((hop, delivery))
            if found is not None and found.holder is not None:
                found.stopped = True
                if found.question is not None:
                    self._on_question(found, found.question)
                    return
                signal = found.signal
                cancel = Cancel(signal.transaction, signal.hop, signal.delivery, signal.epoch)
                self._post(found.holder, encode_message(cancel))

    def on_reply(self, reply: Reply) -> None:
        """Take a holder's reply; one that comes twice, or to nothing we sent, is passed over."""
        key = (reply.hop, reply.delivery)
        remote = self._sent.get(key)
        if reply.token is not None or reply.emits:
            reply = within_limit(reply)
        if remote is None:
            late = self._late.pop(key, None)
            if late is not None:
                answered = not_started(reply) if reply.outcome == "busy" else reply
                self._enqueue(late.live, Replied(late.index, answered, late.ran_by(reply)))
            return
        outcome = reply.outcome
        if outcome == "busy":
            if reply.after_ns is None:
                self._refused(remote)
            else:
                self._on_question(remote, reply)
            return
        self._remove(remote)
        if outcome == "lost":
            what = f"a worker process of {remote.signal.name!r}"
            self._enqueue(remote.live, Lost(remote.index, reply.delivery, what, hop=reply.hop))
        else:
            self._enqueue(remote.live, _new(Replied, (remote.index, reply, remote.ran_by(reply))))
        if self._waiting:
            for address in list(self._waiting):  # the room that was made is for any step the holder runs
                self._assign_waiting(address)

    def _on_question(self, remote: RemoteDelivery, reply: Reply) -> None:
        """Answer a holder that is not sure whether a hop is still wanted, and has not begun it: send it once more if it
        is."""
        if not self._owns(lambda: self.on_reply(reply)):
            return
        if remote.live.failure is not None:
            self._remove(remote)
        elif remote.stopped:
            self._remove(remote)
            self._enqueue(remote.live, Replied(remote.index, not_started(reply)))
        elif remote.deadline_ns is not None and self._monotonic_ns() >= remote.deadline_ns:
            remote.question = reply  # answered when its transaction, whose time is over, stops it
        elif remote.holder is not None and not self._give(
            remote, remote.holder, self._monotonic_ns(), reply.after_ns or 0
        ):
            self._refused(remote)

    def appeared(self, entry: Entry) -> None:
        """Send waiting hops of a step that a node has begun to offer, or of any if it is the node itself."""
        is_node = entry.name == node_name(entry.holder)
        for address in list(self._waiting):
            if is_node or step_name(address) == entry.name:
                self._assign_waiting(address)

    def disappeared(self, holder: str, *, said_goodbye: bool = False) -> None:
        """Report as lost the hops that a node which is gone had not answered, as given back if it said goodbye."""
        what = f"{holder}, which was stopped" if said_goodbye else holder
        for remote in list(self._by_holder.pop(holder, {}).values()):
            remote.disarm()
            self._sent.pop(remote.key, None)
            hop, delivery = remote.key
            self._enqueue(remote.live, Lost(remote.index, delivery, what, said_goodbye, hop))
        for key, remote in list(self._late.items()):
            if remote.holder is not None and remote.holder.holder == holder:
                del self._late[key]

    def close(self) -> None:
        """Forget all deliveries: none is waited for any more."""
        for remotes in (self._sent, *self._waiting.values()):
            for remote in remotes.values():
                remote.disarm()
        if self._look_again is not None:
            self._look_again.cancel()
        self._sent.clear()
        self._by_holder.clear()
        self._waiting.clear()

    def _assign(self, remote: RemoteDelivery) -> bool:
        """Send a delivery to a holder with room, in turn; True: there was one, or its transaction was given up here."""
        if remote.live.failure is not None:
            remote.disarm()
            return True
        now_ns = self._monotonic_ns()
        address = remote.step.address
        if now_ns >= self._executor.lease_until_ns and not self._owns(partial(self._assign_waiting, address)):
            return False
        entries = self._registry.lookup(step_name(address))
        self._round_robin += 1
        digest = remote.live.plan.digest
        for offset in range(len(entries)):
            entry = entries[(self._round_robin + offset) % len(entries)]
            holder, value = entry.holder, entry.value
            if (
                value.get("digest") == digest
                and self._grant.is_there(holder)
                and len(self._by_holder.get(holder, ())) < value.get("window", DEFAULT_WINDOW)
                and self._give(remote, entry, now_ns)
            ):
                return True
        return False

    def _owns(self, callback: Callable[[], None]) -> bool:
        """Whether the transactions of this node are surely its own; if not, `callback` is called once they are."""
        if self._is_leased():
            return True
        self._executor.when_leased(callback)
        return False

    def _give(self, remote: RemoteDelivery, holder: Entry, now_ns: int, asked_ns: int = 0) -> bool:
        """Send a delivery to this holder, perhaps once more, for it asked; False: it cannot be reached."""
        step, budget_ns = remote.step, remote.signal.budget_ns
        due_ns = None
        if budget_ns is not None and not step.policies:  # which may wait as long as they like before the time begins
            starts_at_once = SPAWNERS[step.spawn].on_loop and not step.run.resources
            due_ns = now_ns + budget_ns + (BACKSTOP_NS if starts_at_once else QUEUED_BACKSTOP_NS)
        ends_ns = due_ns if remote.deadline_ns is None else remote.deadline_ns
        within_ns = None if ends_ns is None else max(0, ends_ns - now_ns)
        sending = self._grant.sending(holder, within_ns, asked_ns, now_ns)
        try:
            message = encode_message(addressed(remote.signal, remote.token, self._endpoint(), sending))
        except (BitActorError, ValueError, TypeError) as error:
            remote.disarm()
            self._fail(remote, error)
            return True
        if not self._post(holder, message):
            return False
        remote.holder = holder
        key = remote.key
        if key not in self._sent:
            remote.live.sent += 1
            remote.waited_ns = now_ns - remote.since_ns if remote.since_ns else 0
        self._sent[key] = self._by_holder[holder.holder][key] = remote
        if due_ns is None:
            remote.disarm()
        else:
            remote.arm(due_ns, self._expired)
        return True

    def _post(self, entry: Entry, message: bytes) -> bool:
        try:
            self._send(entry.value["endpoint"], message)
        except (Overloaded, ProtocolError):
            return False
        return True

    def _refused(self, remote: RemoteDelivery) -> None:
        """Wait again with what its holder has not begun."""
        self._remove(remote)
        remote.live.sent -= 1
        self._wait(remote)

    def _wait(self, remote: RemoteDelivery) -> None:
        queue = self._waiting.setdefault(remote.step.address, OrderedDict())
        if len(queue) >= MAX_WAITING:
            self._fail(
                remote, Overloaded(f"{len(queue):,} hops for {remote.step.address!r} are waiting for a node already")
            )
            return
        queue[remote.key] = remote
        now_ns = self._monotonic_ns()
        remote.since_ns = now_ns - remote.waited_ns
        remote.arm(remote.since_ns + self._patience_ns, self._patience_over)
        if self._look_again is None:
            self._look_again = Timer(self._wheel, now_ns + LOOK_AGAIN_NS, self._assign_all_waiting)

    def _assign_all_waiting(self) -> None:
        self._look_again = None
        for address in list(self._waiting):
            self._assign_waiting(address)
        if self._waiting:
            due_ns = self._monotonic_ns() + LOOK_AGAIN_NS
            self._look_again = Timer(self._wheel, due_ns, self._assign_all_waiting)

    def _assign_waiting(self, address: str) -> None:
        queue = self._waiting.get(address)
        while queue and self._assign(next(iter(queue.values()))):
            queue.popitem(last=False)
        if queue is not None and not queue:
            self._forget_queue(address)

    def _patience_over(self, remote: RemoteDelivery) -> None:
        """Fail the first hop of a transaction of which nothing has run; any other waits on."""
        if not remote.has_begun:
            self._waited_too_long(self._patience_ns, remote)
            return
        address = remote.step.address
        if address not in self._told:
            self._told.add(address)
            _log.warning(
                "hops of %r have waited %g s: %s; they wait on, %d of them",
                address, self._patience_ns / 1e9, self._why_waiting(remote), len(self._waiting[address]),
            )  # fmt: skip
        if remote.signal.direction is not UNDO and remote.live.state.deadline_ns is None:
            due_ns = remote.since_ns + max(self._patience_ns, self._delivery_timeout_ns)
            remote.arm(due_ns, partial(self._waited_too_long, self._delivery_timeout_ns))

    def _waited_too_long(self, limit_ns: int, remote: RemoteDelivery) -> None:
        self._drop_waiting(remote)
        address = remote.step.address
        within = f"within {limit_ns / 1e9:g} s"
        entries = self._holders(remote)
        if not self._is_leased():
            error: Exception = StoreError(f"{address!r} was not sent {within}: {_NO_LEASE}")
        elif not entries:
            known = {entry.name.partition(":")[2] for entry in self._registry.match(step_name("*"))}
            error = Unroutable(f"no node runs {address!r}, and none appeared {within}.{suggest(address, known)}")
        elif not self._fitting(remote):
            error = Unroutable(f"only nodes with another version of the workflow run {address!r}; deploy the same code")
        else:
            error = Overloaded(f"none of the {len(entries)} nodes that run {address!r} had room {within}")
        self._fail(remote, error)

    def _holders(self, remote: RemoteDelivery) -> list[Entry]:
        """The holders of its step, of the nodes that are there."""
        entries = self._registry.lookup(step_name(remote.step.address))
        return [entry for entry in entries if self._grant.is_there(entry.holder)]

    def _fitting(self, remote: RemoteDelivery) -> list[Entry]:
        """The holders of its step in the shape that its transaction has."""
        return [entry for entry in self._holders(remote) if entry.value.get("digest") == remote.live.plan.digest]

    def _is_leased(self) -> bool:
        """Whether the transactions of this node are surely its own."""
        return self._monotonic_ns() < self._executor.own_lease_until_ns()

    def _why_waiting(self, remote: RemoteDelivery) -> str:
        if not self._is_leased():
            return _NO_LEASE
        if self._fitting(remote):
            return "all nodes that run it are full"
        return "only nodes with another version of the workflow run it" if self._holders(remote) else "no node runs it"

    @override
    def waits_for(self, live: LiveTransaction) -> str:
        """What a transaction waits for here, and since when; empty if for nothing."""
        state = live.state
        for index, delivery in enumerate(state.deliveries):
            step = state.steps[index] if delivery and self._waiting else None
            queue = self._waiting.get(step.address) if step is not None else None
            for hop in (state.hops[index], state.undo_hop(index)):
                remote = None if queue is None else queue.get((hop, delivery))
                if remote is not None:
                    seconds = (self._monotonic_ns() - remote.since_ns) / 1e9
                    why = self._why_waiting(remote)
                    what = "to be sent" if why == _NO_LEASE else "for a node with room for it"
                    return f"{remote.step.address!r} has waited {seconds:.3g} s {what} ({why})"
        return ""

    def about(self) -> dict[str, Any]:
        """The steps whose hops wait for a holder: address → how many `hops`, for how long the first (`for_s`), and
        `why`."""
        now_ns = self._monotonic_ns()
        return {
            address: {
                "hops": len(queue),
                "for_s": round((now_ns - first.since_ns) / 1e9, 3),
                "why": self._why_waiting(first),
            }
            for address, queue in self._waiting.items()
            if (first := next(iter(queue.values()), None)) is not None
        }

    def _drop_waiting(self, remote: RemoteDelivery) -> None:
        remote.disarm()
        queue = self._waiting.get(remote.step.address)
        if queue is not None and queue.pop(remote.key, None) is not None and not queue:
            self._forget_queue(remote.step.address)

    def _forget_queue(self, address: str) -> None:
        self._waiting.pop(address, None)
        self._told.discard(address)
        if self._look_again is not None and not self._waiting:
            self._look_again.cancel()
            self._look_again = None

    def _fail(self, remote: RemoteDelivery, error: BaseException) -> None:
        remote.live.errors[remote.signal.hop] = error
        hop, delivery = remote.key
        self._enqueue(remote.live, Unrouted(remote.index, delivery, fault_of(error), hop))

    def _expired(self, remote: RemoteDelivery) -> None:
        """Stop waiting for a holder that should have replied by now, and tell it to stop."""
        self._remove(remote)
        self._late[remote.key] = remote
        seconds = (remote.signal.budget_ns or 0) / 1e9
        error = StepTimeout(
            f"{remote.signal.name!r}, attempt {remote.signal.attempt}, took longer than {seconds:g} s in another "
            "process"
        )
        remote.live.errors[remote.signal.hop] = error
        hop, delivery = remote.key
        self._enqueue(remote.live, HopExpired(remote.index, delivery, fault_of(error), remote.holder_name, hop))

    def _remove(self, remote: RemoteDelivery) -> None:
        remote.disarm()
        key, holder = remote.key, remote.holder
        self._sent.pop(key, None)
        if holder is not None:
            self._by_holder[holder.holder].pop(key, None)
