"""Delivery of emitted signals: one consumer of each group gets each signal, at least once, and accepts it once.

Who listens is looked up for each try, so a consumer that appears later still gets what nobody had taken.  A receiver
acknowledges when its own `accepted` pulse is durable; without that in time, or when it disappears, the signal is sent
again, to another of the group if there is one, and not before: what two had on their way both would accept, each in a
store of its own.  Receivers know a delivery by the emission's id and their group, so a second one is not a second
transaction.

A signal waits for its consumers until its transaction's deadline, and without one for `delivery_timeout`; what nobody
takes until then is a tombstone `unroutable`, which can be sent again: under the same ids, so that who has accepted it
does not begin once more, and for `delivery_timeout`.  While nobody listens to a name its signals have no timer but that
one: a notice that somebody has appeared, or one look for all names now and then, sets them going.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from bitactor.messages.signal import UNDO, Receipt, Stimulus
from bitactor.messages.values import shown
from bitactor.ports import Clock
from bitactor.saga import Emission, EmissionAccepted, EmissionUnrouted
from mesh.limits.timing_wheel import Timer, TimingWheel
from mesh.runtime.live import LiveTransaction
from mesh.runtime.names import consumer_name
from mesh.runtime.ports import Enqueue
from registry import Entry, Registry
from registry.support.log_throttle import LogThrottle

_log = logging.getLogger("bitactor.emissions")

FIRST_WAIT_NS: Final = 50_000_000
LONGEST_WAIT_NS: Final = 1_000_000_000
RECEIPT_WITHIN_NS: Final = 2_000_000_000
LOOK_AGAIN_NS: Final = 30_000_000_000
"""Nanoseconds after which consumers are looked for again, should no notice have told of one."""
MAX_UNHEARD: Final = 100_000
"""Signals of one name that wait while nobody listens to it; of more, the oldest is given up."""
OFFERED_AT_ONCE: Final = 500
OFFERED_EVERY_NS: Final = 50_000_000
"""How many signals that have waited are offered to a consumer which has appeared, and after what time as many more."""
TRAIL_LENGTH: Final = 32


class Send(Protocol):
    """Sends a signal to a consumer; `asked_ns`: once more, for it asked at that moment whether that is still wanted."""

    def __call__(self, entry: Entry, stimulus: Stimulus, asked_ns: int = 0) -> None: ...


class Emissions:
    """The emission delivery of one node: all emitted signals that have not been taken by every group yet.

    Args:
        timeout_ns: nanoseconds that a signal without a deadline of its own is offered.
    """

    def __init__(
        self,
        enqueue: Enqueue,
        registry: Registry,
        clock: Clock,
        wheel: TimingWheel,
        send: Send,
        timeout_ns: int,
    ) -> None:
        self._enqueue = enqueue
        self._registry = registry
        self.clock = clock
        self.wheel = wheel
        self._send = send
        self.timeout_ns = timeout_ns
        self._parcels: dict[str, Parcel] = {}
        self._by_name: dict[str, OrderedDict[str, Parcel]] = {}
        """Registered name of the consumers → the parcels for it by their ids, in order of emission."""
        self._look_again: Timer | None = None
        self._told: set[str] = set()  # names of which the log has said that nobody listens
        self._deliveries: dict[str, tuple[Parcel, str]] = {}
        self._round_robin: dict[str, int] = {}
        self._given_up = LogThrottle(_log)
        self._unreadable = LogThrottle(_log)

    def __len__(self) -> int:
        return len(self._parcels)

    def delivering(self) -> bool:
        """Whether a signal is being delivered to a consumer that is there; what nobody listens to is no reason to
        wait."""
        return any(
            any(groups.keys() - parcel.accepted_by.keys() for parcel in parcels.values())
            for name, parcels in self._by_name.items()
            if (groups := self._groups(name))
        )

    def about(self) -> dict[str, Any]:
        """Keys: `undelivered` (signals), `deliveries` (not answered by a consumer's group), and `unheard`: of what
        nobody listens to, name → how many `signals` wait, and for how long the first has been offered (`for_s`)."""
        now_ns = self.clock.monotonic_ns()
        unheard = {
            first.emission.name: {"signals": len(parcels), "for_s": round((now_ns - first.since_ns) / 1e9, 3)}
            for name, parcels in self._by_name.items()
            if not self._groups(name) and (first := next(iter(parcels.values()), None)) is not None
        }
        return {"undelivered": len(self), "unheard": unheard, "deliveries": len(self._deliveries)}

    def deliver(self, live: LiveTransaction, emission: Emission) -> None:
        """Bring the signal to one consumer of each group; an emission whose id is under way already is not sent
        again."""
        known = self._parcels.get(emission.id)
        if known is not None and known.live is not live:
            self._drop(known)  # of a former life of the transaction, which was given up here and has come back
            known = None
        if known is None:
            parcel = self._parcels[emission.id] = Parcel(self, live, emission)
            self._by_name.setdefault(consumer_name(emission.name), OrderedDict())[emission.id] = parcel
            self.offer(parcel)

    def offer(self, parcel: Parcel) -> None:
        """Send the parcel to one consumer of each group that has not taken it and that it is not on its way to; try
        again later if one has not, or when somebody listens."""
        now_ns = self.clock.monotonic_ns()
        if now_ns >= parcel.expires_ns:
            self._expire(parcel)
            return
        name = consumer_name(parcel.emission.name)
        groups = self._groups(name)
        parcel.idle = not groups
        for group, entries in groups.items():
            if group not in parcel.accepted_by and not parcel.is_on_its_way(group, entries, now_ns):
                parcel.sent_to[group] = self._pick(group, entries)
                parcel.due_ns[group] = now_ns + RECEIPT_WITHIN_NS
                self._send_to(parcel, group)
        if groups and groups.keys() <= parcel.accepted_by.keys():
            self._complete(parcel)
        elif parcel.emission.id in self._parcels:
            due = [parcel.due_ns[group] for group in groups if group not in parcel.accepted_by]
            parcel.retry_in(min([parcel.expires_ns, *due]) - now_ns)
            if parcel.idle and self._look_again is None:
                self._look_again = self.after(LOOK_AGAIN_NS, self._look_for_consumers)
            if not groups and len(parcels := self._by_name[name]) > MAX_UNHEARD:
                oldest = next(iter(parcels.values()))
                self._expire(oldest, f"{MAX_UNHEARD:,} signals wait already, and nobody consumes")

    def on_receipt(self, receipt: Receipt) -> None:
        """Take a receiver's receipt: its group has accepted the signal, or could not."""
        parcel, group = self._deliveries.get(receipt.id, (None, ""))
        if parcel is None or group in parcel.accepted_by:
            return
        now_ns = self.clock.monotonic_ns()
        if receipt.asked_ns:
            if group in parcel.sent_to:  # else who asks is gone, as far as is known
                # Not sooner to another: what is confirmed may begin for a second.  What sending tells at once comes
                # after.
                parcel.due_ns[group] = now_ns + RECEIPT_WITHIN_NS
                self._send_to(parcel, group, receipt.asked_ns)
            return
        if receipt.error:
            delay_ns = parcel.next_delay()
            parcel.due_ns[group] = now_ns + delay_ns
            parcel.retry_in(delay_ns)
            return
        del self._deliveries[receipt.id]
        parcel.accepted_by[group] = receipt.transaction
        if self._groups(consumer_name(parcel.emission.name)).keys() <= parcel.accepted_by.keys():
            self._complete(parcel)

    def appeared(self, name: str) -> None:
        """Offer the parcels that wait for a consumer of the name, which has appeared: the first at once, and the others
        as fast as one can take them."""
        self._offer_in_turn(list(self._by_name.get(name, {}).values()))

    def disappeared(self, name: str, holder: str) -> None:
        """Offer to others the parcels for this name that a node which is gone had not acknowledged."""
        for parcel in list(self._by_name.get(name, {}).values()):
            lost = [
                group
                for group, entry in parcel.sent_to.items()
                if entry.holder == holder and group not in parcel.accepted_by
            ]
            for group in lost:
                del parcel.sent_to[group]
            if lost:
                self.offer(parcel)

    def close(self) -> None:
        """Forget all parcels, until others come; what was not taken is still in the journal."""
        for parcel in self._parcels.values():
            parcel.stop()
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        self._parcels.clear()
        self._by_name.clear()
        self._deliveries.clear()

    def after(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        """A timer that calls back after `delay_ns`."""
        return Timer(self.wheel, self.clock.monotonic_ns() + delay_ns, callback)

    def _offer_in_turn(self, parcels: list[Parcel]) -> None:
        for number, parcel in enumerate(parcels):
            parcel.idle = False
            if number < OFFERED_AT_ONCE:
                self.offer(parcel)
            else:
                parcel.retry_in(number // OFFERED_AT_ONCE * OFFERED_EVERY_NS)

    def _look_for_consumers(self) -> None:
        """Offer what waits for a consumer that has come without notice, and say of which names there is none."""
        self._look_again = None
        for name, parcels in list(self._by_name.items()):
            if self._groups(name):
                self._told.discard(name)
                self._offer_in_turn([parcel for parcel in parcels.values() if parcel.idle])
            elif name not in self._told:
                self._told.add(name)
                emitted = next(iter(parcels.values())).emission.name
                _log.info("nobody consumes %r; %d signals wait for somebody who does", emitted, len(parcels))
        if self._parcels:
            self._look_again = self.after(LOOK_AGAIN_NS, self._look_for_consumers)

    def _groups(self, name: str) -> dict[str, list[Entry]]:
        groups: dict[str, list[Entry]] = {}
        for entry in self._registry.lookup(name):
            for group, broadcast in self._said_by(entry):
                groups.setdefault(f"{group}@@{entry.holder}" if broadcast else group, []).append(entry)
        return groups

    def _send_to(self, parcel: Parcel, group: str, asked_ns: int = 0) -> None:
        entry, delivery = parcel.sent_to[group], f"{parcel.emission.id}>{group}"
        self._deliveries[delivery] = (parcel, group)
        stimulus = parcel.stimulus(delivery, group.removesuffix(f"@@{entry.holder}"), self.clock.monotonic_ns())
        self._send(entry, stimulus, asked_ns)

    def _said_by(self, entry: Entry) -> list[tuple[str, bool]]:
        """The groups of a node's consumers, and whether each broadcasts, as the node says; what cannot be read is left
        out."""
        said = entry.value.get("groups", ()) if isinstance(entry.value, Mapping) else None
        pairs = said if isinstance(said, list | tuple) else [said]
        read = [(pair[0], bool(pair[1])) for pair in pairs if _is_group(pair)]
        if len(read) < len(pairs):
            self._unreadable.warn(
                self.clock.monotonic_ns(), "what node %s registers as %r is no list of groups: %s; it is passed over",
                entry.holder, entry.name, shown(said),
            )  # fmt: skip
        return read

    def _pick(self, group: str, entries: list[Entry]) -> Entry:
        turn = self._round_robin.get(group, 0)
        self._round_robin[group] = turn + 1
        return entries[turn % len(entries)]

    def _complete(self, parcel: Parcel) -> None:
        self._drop(parcel)
        self._enqueue(parcel.live, EmissionAccepted(parcel.emission.id, tuple(parcel.accepted_by.values())))

    def _expire(self, parcel: Parcel, why_nobody: str = "nobody consumes") -> None:
        name = parcel.emission.name
        missing = sorted(group for group in self._groups(consumer_name(name)) if group not in parcel.accepted_by)
        if parcel.untried:  # taken over too late, by the wall clock
            why = "the deadline of its transaction had passed before it was offered here"
        else:
            why = f"not taken by {', '.join(missing)}" if missing else f"{why_nobody} {name!r}"
        self._drop(parcel)
        self._given_up.warn(
            self.clock.monotonic_ns(), "a signal of transaction %s is given up as unroutable: %s",
            parcel.live.state.transaction, why,
        )  # fmt: skip
        self._enqueue(parcel.live, EmissionUnrouted(parcel.emission.id, why))

    def _drop(self, parcel: Parcel) -> None:
        parcel.stop()
        self._parcels.pop(parcel.emission.id, None)
        name = consumer_name(parcel.emission.name)
        parcels = self._by_name.get(name)
        if parcels is not None and parcels.pop(parcel.emission.id, None) is not None and not parcels:
            del self._by_name[name]
            self._told.discard(name)
            if self._look_again is not None and not self._by_name:
                self._look_again.cancel()
                self._look_again = None
        for group in parcel.due_ns:
            self._deliveries.pop(f"{parcel.emission.id}>{group}", None)


class Parcel:
    """One emitted signal, and which groups were asked and have accepted."""

    def __init__(self, emissions: Emissions, live: LiveTransaction, emission: Emission) -> None:
        self.live = live
        self.emission = emission
        self.accepted_by: dict[str, str] = {}
        """Group → the transaction that began there."""
        self.sent_to: dict[str, Entry] = {}
        """Group → whom it was sent to last, as long as that node is there."""
        self.due_ns: dict[str, int] = {}
        """Group → when it is sent again if that was not accepted, by the monotonic clock."""
        self._emitter, undoing = _emitter(live, emission)
        # What an undo tells, and what somebody sends again, is to be heard although time was up
        deadline_ns = None if undoing or emission.again else live.state.deadline_ns
        self._budget_ends_ns = None if deadline_ns is None else deadline_ns - live.offset_ns
        self.since_ns = emissions.clock.monotonic_ns()
        """Monotonic time since when this process offers it."""
        ends_ns = self._budget_ends_ns
        self.expires_ns = self.since_ns + emissions.timeout_ns if ends_ns is None else ends_ns
        self.idle = False
        """Whether nobody listened when it was offered last."""
        self._emissions = emissions
        self._timer: Timer | None = None
        self._delay_ns = FIRST_WAIT_NS

    def stimulus(self, delivery: str, group: str, now_ns: int) -> Stimulus:
        """The stimulus that is sent to a receiver."""
        state = self.live.state
        budget = None if self._budget_ends_ns is None else max(0, self._budget_ends_ns - now_ns)
        trail = (*state.trail, self._emitter)[-TRAIL_LENGTH:]
        return Stimulus(
            delivery, self.emission.name, group, self.emission.token, self.emission.ttl, budget, "", state.root,
            state.transaction, self.emission.hop, trail, dict(state.metadata) if state.metadata else None, delivery,
        )  # fmt: skip

    def is_on_its_way(self, group: str, entries: list[Entry], now_ns: int) -> bool:
        """Whether one of a group's consumers, who are `entries`, has it, and has time left to answer."""
        sent = self.sent_to.get(group)
        return (
            sent is not None and now_ns < self.due_ns[group] and any(entry.holder == sent.holder for entry in entries)
        )

    @property
    def untried(self) -> bool:
        """Whether it has never been offered."""
        return self._timer is None

    def next_delay(self) -> int:
        """Nanoseconds until the next try; longer each time it is asked."""
        delay = self._delay_ns
        self._delay_ns = min(LONGEST_WAIT_NS, delay * 2)
        return delay

    def retry_in(self, delay_ns: int) -> None:
        """Offer the parcel again after `delay_ns`."""
        self.stop()
        self._timer = self._emissions.after(delay_ns, lambda: self._emissions.offer(self))

    def stop(self) -> None:
        """Cancel the next try."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_group(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) and bool(pair[0])


def _emitter(live: LiveTransaction, emission: Emission) -> tuple[str, bool]:
    """The address of the step that emitted the signal, and whether its undo did."""
    place = live.state.place_of(emission.hop)
    return (live.plan.workflow, False) if place is None else (place.address, place.direction == UNDO)
