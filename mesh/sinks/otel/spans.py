"""Folds pulses into spans: what a trace viewer shows of a transaction, built after the fact and off the hot path.

A transaction is one span, open from `accepted` to `finished`; each attempt at a step, and at an undo, is one below it,
with a link to each hop that caused it and is not its parent.  The steps of a container are below the container, those
around which a function is below that function; an undo is below the transaction, for undo goes backwards through all
containers, one step at a time, when these have long ended.  The wait before another attempt is a span too (`backoff
…`).  A child transaction's span is a child of the hop that emitted it, which is a producer; a consumer's transaction
with one hop is one span, that of the hop.  A root that came with a W3C `traceparent` links to it.  What is not an
attempt (skipped, late, emitted, halted, resumed, redelivered) is an event, on the hop's span while that is open, else
on the transaction's.

Times are those of the pulses, made such that Jaeger's critical path is the true one (see `OpenTransaction`): a span
ends a microsecond before what it caused begins, and before what ended after it.  A step begins when the last of its
causes had ended: what is evaluated before it is spawned is part of it.

What happens at the edges:

- A step that never began (no hops left, a guard that raised) is a span all the same, at its place; one that a
  tombstone tells of is called `tombstone …`, with the chain in words.
- A hop that timed out stays open until its next pulse, or the transaction's end, so that a late reply lands on it.
- A container is told of once nothing within it runs, and ends no earlier.
- Hops still open when their transaction finishes end then, with the outcome `unknown` (or what a tombstone said).
- A transaction that another process began, of whose journal `recall` tells, goes on with the same spans.  One first
  seen in the middle without that (evicted, or pulses were dropped) is *adopted*: its span starts when its id was made,
  and a hop whose start was missed begins `elapsed_ns` before its end; its containers are not known.
- Pulses after `finished`: `emitted` is left out (the child transaction tells it), `late` and `tombstone` become spans
  without duration, and work (a resumption, an undo on request) gets a span of its own, `resume {workflow}`, below the
  first.
- A resumption that a takeover brought (its data names an `owner`) continues the same span; one that was asked for,
  of a transaction whose halt this process did not see, is a `resume {workflow}` too.
- Halted transactions stay open.  `close` ends them; one that is still running has no span until whoever recovers it
  finishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from bitactor.messages import pulse as kinds
from bitactor.messages.ids import NO_HOP, TransactionId, hop_id
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import FORWARD
from mesh.sinks.otel.attributes import (
    chain_words,
    details,
    error_name,
    exception_attributes,
    hop_attributes,
    hop_name,
    sent_attributes,
    short,
    step_attributes,
    taken_attributes,
)
from mesh.sinks.otel.context import parse_traceparent
from mesh.sinks.otel.record import (
    CONSUMER,
    INTERNAL,
    MAX_LINKS,
    PRODUCER,
    STEP_NS,
    OpenHop,
    OpenTransaction,
    SpanEvent,
    SpanRecord,
)
from mesh.sinks.otel.shape import (
    FAILURES,
    begin_resumption,
    created_ns,
    instant_span,
    is_function_around,
    joined,
    outcome,
    parent_of,
    span_above,
    spawn_missed,
    without_payloads,
)

_OUTCOMES: Final = frozenset(
    (kinds.COMPLETED, kinds.FAILED, kinds.RETRIED, kinds.COMPENSATED, kinds.UNDONE, kinds.UNDO_FAILED)
)


class SpanAssembler:
    """Folds pulses into finished spans; pure.

    Pulses of one transaction come in order of `seq`; those of different transactions mix freely.  Keeps state for at
    most `max_transactions` open transactions; the one opened first is evicted for the next.  Counts the transactions
    first seen in the middle (`adopted`), those forgotten to make room (`evicted`, and adopted when another pulse
    comes), and pulses seen before, which are ignored (`repeated`); its length is the number of those that are open.

    Args:
        holder: the node that runs what no pulse says another has run.
    """

    def __init__(self, *, holder: str = "", max_transactions: int = 100_000, max_remembered: int = 10_000) -> None:
        self.holder = holder
        self._open: dict[str, OpenTransaction] = {}
        self._max_open = max_transactions
        self._finished: dict[str, tuple[int, str]] = {}  # transaction → its next pulse, and its span
        self._max_finished = max_remembered
        self._ended: list[SpanRecord] = []
        self.adopted = self.evicted = self.repeated = 0
        self._folds: dict[str, Callable[[OpenTransaction, Pulse], None]] = {
            kinds.ACCEPTED: self._on_accepted,
            kinds.SPAWNED: self._on_spawned,
            kinds.TIMED_OUT: self._on_timed_out,
            kinds.TOMBSTONE: self._on_tombstone,
            kinds.HALTED: self._on_halted,
            kinds.FINISHED: self._on_finished,
            **dict.fromkeys((kinds.SKIPPED, kinds.LATE, kinds.EMITTED, kinds.RESUMED), self._on_event),
            **dict.fromkeys(_OUTCOMES, self._on_outcome),
        }

    def feed(self, pulses: Iterable[Pulse]) -> list[SpanRecord]:
        """Fold `pulses`; returns the spans that they ended."""
        for pulse in pulses:
            state = self._open.get(pulse.transaction) or self._begin(pulse)
            if state is None:
                continue
            if pulse.seq != state.next_seq:
                if pulse.seq < state.next_seq:
                    self.repeated += 1
                    continue
                state.gapless = False
            state.next_seq = pulse.seq + 1
            fold = self._folds.get(pulse.kind)
            if fold is not None:
                state.tick(pulse.at_ns)
                fold(state, pulse)
                if state.ending and "ended_by" not in (pulse.data or {}):
                    self._release(state)
        ended, self._ended = self._ended, []
        return ended

    def recall(self, pulses: Iterable[Pulse]) -> None:
        """Fold pulses of which another process has told, so that what follows them is known to belong to it."""
        for pulse in pulses:
            self.feed((pulse,))
            if (state := self._open.get(pulse.transaction)) is not None:
                state.halt_unseen = bool(state.halted_ns)

    def close(self) -> list[SpanRecord]:
        """Forget all transactions; returns the spans of those that are halted."""
        for state in self._open.values():
            self._end_halted(state)
        self._open.clear()
        ended, self._ended = self._ended, []
        return ended

    def __len__(self) -> int:
        return len(self._open)

    def _begin(self, pulse: Pulse) -> OpenTransaction | None:
        """The state of a transaction not open here; None if the pulse needs none."""
        next_seq, span = self._finished.get(pulse.transaction, (0, ""))
        if pulse.seq < next_seq:
            self.repeated += 1
            return None
        if pulse.kind == kinds.EMITTED:
            return None
        if pulse.kind in (kinds.LATE, kinds.TOMBSTONE):
            self._ended.append(instant_span(pulse, span))
            return None
        state = OpenTransaction(pulse)
        if pulse.kind != kinds.ACCEPTED:
            self._adopt(state, pulse)
        if len(self._open) >= self._max_open:
            self._evict()
        self._open[pulse.transaction] = state
        return state

    def _adopt(self, state: OpenTransaction, pulse: Pulse) -> None:
        self.adopted += 1
        state.gapless, state.halt_unseen = False, True
        if pulse.transaction in self._finished:
            begin_resumption(state, pulse, self._finished[pulse.transaction][1])
        else:
            state.start_ns = min(created_ns(pulse.transaction) or pulse.at_ns, pulse.at_ns)

    def _evict(self) -> None:
        state = self._open.pop(next(iter(self._open)))
        self.evicted += 1
        if self._end_halted(state):
            self._remember(state)

    def _remember(self, state: OpenTransaction) -> None:
        self._finished[state.transaction] = state.next_seq, state.span_id
        if len(self._finished) > self._max_finished:
            del self._finished[next(iter(self._finished))]

    # One method per kind of pulse

    def _on_accepted(self, state: OpenTransaction, pulse: Pulse) -> None:
        data = pulse.data or {}
        state.attributes["bitactor.ttl"] = pulse.ttl
        parent_hop = data.get("parent_hop")
        if parent_hop and parent_hop != NO_HOP:
            state.parent_id = parent_hop
            state.kind = CONSUMER
            state.attributes["bitactor.parent"] = data.get("parent") or ""
            state.attributes.update(taken_attributes(pulse))
        elif link := parse_traceparent(data.get("traceparent")):
            state.links = (link,)

    def _on_spawned(self, state: OpenTransaction, pulse: Pulse) -> None:
        hop = state.hops.get(pulse.hop)
        data = pulse.data or {}
        if hop is None:
            self._begin_hop(state, pulse)
        elif "opening" not in data:  # else it is a container that opens one more scope
            delivery = data.get("delivery")
            hop.deliveries = delivery if isinstance(delivery, int) else hop.deliveries + 1
            name = "compensating" if "assess" in data else "redelivered"
            hop.add(SpanEvent(name, state.now_ns, details(pulse) | {"bitactor.delivery": hop.deliveries}))

    def _on_timed_out(self, state: OpenTransaction, pulse: Pulse) -> None:
        hop = state.hops.get(pulse.hop)
        if hop is None and spawn_missed(state, pulse):
            hop = self._begin_missed(state, pulse)
        if hop is None or hop.provisional is not None:
            state.add(SpanEvent(pulse.kind, state.now_ns, details(pulse)))
        else:
            hop.provisional = pulse
            hop.ended_ns = self._end_time(state, hop, pulse)

    def _on_outcome(self, state: OpenTransaction, pulse: Pulse) -> None:
        hop = state.hops.get(pulse.hop)
        if hop is None and spawn_missed(state, pulse):
            hop = self._begin_missed(state, pulse)
        if hop is None and pulse.step and pulse.kind in FAILURES:
            hop = self._begin_hop(state, pulse)  # it never began, and ends where it would have
        if hop is not None:
            self._end_hop(state, hop, pulse)
            return
        data = pulse.data or {}
        state.add(SpanEvent(pulse.kind, state.now_ns, details(pulse)))
        if pulse.kind in FAILURES and "fault" in data and not data.keys() & {"cancel", "undo"}:
            # Of the whole; to be cancelled is no error.
            state.add(SpanEvent("exception", state.now_ns, {**exception_attributes(pulse), **details(pulse)}))

    def _on_tombstone(self, state: OpenTransaction, pulse: Pulse) -> None:
        hop = state.hops.get(pulse.hop)
        if hop is None and pulse.step:
            hop = self._begin_hop(state, pulse)  # the pulse that it failed follows
        state.reason = pulse.error or "unknown"
        if hop is not None:
            hop.reason = state.reason
        (hop or state).add(SpanEvent(pulse.kind, state.now_ns, details(pulse)))

    def _on_event(self, state: OpenTransaction, pulse: Pulse) -> None:
        if pulse.kind == kinds.RESUMED:
            state.resumed_ns = state.now_ns
            if "owner" not in (pulse.data or {}):
                state.halted_ns = 0
                if state.halt_unseen and not state.is_resumption:
                    begin_resumption(state, pulse, state.span_id)
        (state.hops.get(pulse.hop) or state).add(SpanEvent(pulse.kind, state.now_ns, details(pulse)))

    def _on_halted(self, state: OpenTransaction, pulse: Pulse) -> None:
        """Add the event of a halt: of the step that asked for it, or of the transaction as a whole."""
        if pulse.step:
            self._on_outcome(state, pulse)
        else:
            state.halted_ns, state.halt_unseen = state.now_ns, False
            self._on_event(state, pulse)

    def _on_finished(self, state: OpenTransaction, pulse: Pulse) -> None:
        status = (pulse.data or {}).get("status") or "completed"
        self._end_open_hops(state, kinds.FINISHED)
        failed = status == "stuck" or (status == "compensated" and bool(pulse.error or not state.is_resumption))
        self._end_transaction(state, state.now_ns, status, failed, pulse.error or "")
        del self._open[pulse.transaction]
        self._remember(state)

    # Beginnings

    def _begin_hop(self, state: OpenTransaction, pulse: Pulse) -> OpenHop:
        """Open the span of a hop that is spawned, or never will be."""
        if state.first_record is not None:  # a consumer's first attempt was not its only hop
            self._ended.append(state.first_record)
            state.first_record = None
        parent, start_ns = parent_of(state, pulse), state.now_ns
        if pulse.attempt == 1 and pulse.direction == FORWARD:
            start_ns = min(start_ns, state.ready_ns(pulse.causes))
        elif (since_ns := state.backing_off.pop(pulse.hop, 0)) and pulse.kind == kinds.SPAWNED:
            self._end_backoff(state, pulse, parent, since_ns)
            start_ns = state.now_ns
        hop = state.hops[pulse.hop] = OpenHop(without_payloads(pulse), start_ns, parent)
        state.hops_begun += 1
        if hop.is_container:
            state.containers[pulse.step] = hop
        elif parent is not None and is_function_around(pulse, parent):
            parent.function = hop
        return hop

    def _begin_missed(self, state: OpenTransaction, pulse: Pulse) -> OpenHop:
        """Open the span of a hop whose `spawned` was missed, when it ends."""
        hop = self._begin_hop(state, pulse._replace(data=None))
        hop.start_ns = max(state.start_ns, state.now_ns - (pulse.elapsed_ns or 0))
        return hop

    # Ends

    def _end_time(self, state: OpenTransaction, hop: OpenHop, pulse: Pulse) -> int:
        if pulse.at_ns < state.now_ns and pulse.elapsed_ns is not None:  # by a clock that is behind
            state.tick(hop.start_ns + pulse.elapsed_ns)
        return state.end(hop.start_ns, hop.latest_ns if hop.is_container else 0)

    def _end_hop(self, state: OpenTransaction, hop: OpenHop, pulse: Pulse) -> None:
        """End a hop with `pulse`: the attempt's outcome, its timeout, or its transaction's end."""
        del state.hops[hop.spawned.hop]
        if "ended_by" in (pulse.data or {}):
            hop.children += 1  # what ended it follows, and may be a step of it that never began
            state.ending.append(hop)
        elif state.containers.get(hop.spawned.step) is hop:
            del state.containers[hop.spawned.step]
        if hop.provisional is None or not outcome(hop, pulse)[1]:
            hop.ended_ns = self._end_time(state, hop, pulse)
        state.note_end(hop.spawned.hop)
        if pulse.kind == kinds.RETRIED:
            again = hop_id(TransactionId(pulse.transaction), pulse.step, pulse.direction, pulse.attempt + 1)
            state.backing_off[again] = state.now_ns
        hop.ended = pulse
        self._tell_if_done(state, hop)

    def _release(self, state: OpenTransaction) -> None:
        """Let those containers go of which is told what ended them."""
        ending, state.ending = state.ending, []
        for hop in ending:
            hop.children -= 1
            if state.containers.get(hop.spawned.step) is hop:
                del state.containers[hop.spawned.step]
            self._tell_if_done(state, hop)

    def _tell_if_done(self, state: OpenTransaction, hop: OpenHop) -> None:
        """Make the record of a hop that has an outcome and nothing within that runs, and of what waited for that."""
        within: OpenHop | None = hop
        while within is not None and within.ended is not None and not within.children:
            end_ns = max(within.ended_ns, within.latest_ns)
            self._tell(state, within, within.ended, end_ns)
            above = within.parent
            if above is not None:
                above.children -= 1
                above.latest_ns = max(above.latest_ns, end_ns)
            within = above

    def _tell(self, state: OpenTransaction, hop: OpenHop, pulse: Pulse, end_ns: int) -> None:
        if hop.is_told:
            return
        spawned, emits = hop.spawned, (pulse.data or {}).get("emits") or ()
        attributes = hop_attributes(hop, pulse, self.holder)
        said, failed, error = outcome(hop, pulse)
        attributes["bitactor.outcome"] = said
        if emits:
            attributes |= sent_attributes([name for name, *_ in emits])
        if failed:
            attributes["error.type"] = error_name(error) or said
            # That of a container is with the step in it that raised it.
            if (pulse.kind in _OUTCOMES or pulse is hop.provisional) and "ended_by" not in (pulse.data or {}):
                hop.add(SpanEvent("exception", end_ns, exception_attributes(pulse)))
        is_tombstone = spawned.kind == kinds.TOMBSTONE
        above = span_above(state, hop)
        causes = [cause for cause in spawned.causes if cause != above]  # to what is its parent it has a way
        words = f"{hop.reason}: {chain_words(spawned)}" if is_tombstone and chain_words(spawned) else error
        record = SpanRecord(
            state.root,
            spawned.hop,
            above,
            f"tombstone {hop_name(spawned)}" if is_tombstone else hop_name(spawned),
            PRODUCER if emits else INTERNAL,
            hop.start_ns,
            end_ns,
            attributes,
            tuple(hop.events),
            tuple((state.root, cause) for cause in causes[:MAX_LINKS]),
            failed,
            short(words) if failed else "",
            hop.dropped,
            max(0, len(causes) - MAX_LINKS),
        )
        if state.kind == CONSUMER and state.hops_begun == 1 and not is_tombstone and not state.is_resumption:
            state.first_record = record
        else:
            self._ended.append(record)

    def _end_backoff(self, state: OpenTransaction, pulse: Pulse, parent: OpenHop | None, since_ns: int) -> None:
        """Make the record of the wait before an attempt that begins now."""
        if state.now_ns - since_ns <= STEP_NS:
            return
        end_ns = state.end(since_ns)
        span_id = hop_id(TransactionId(pulse.transaction), pulse.step, f"backoff {pulse.direction}", pulse.attempt)
        waited = OpenHop(pulse, since_ns, parent)
        if parent is not None:
            parent.children -= 1
            parent.latest_ns = max(parent.latest_ns, end_ns)
        record = SpanRecord(
            state.root, span_id, span_above(state, waited), f"backoff {hop_name(pulse)}", INTERNAL, since_ns, end_ns,
            step_attributes(pulse),
        )  # fmt: skip
        self._ended.append(record)

    def _end_open_hops(self, state: OpenTransaction, kind: str) -> None:
        """End what is open when its transaction finishes or, halted, is forgotten."""
        for hop in list(state.hops.values()):
            ends = hop.spawned._replace(kind=kind, elapsed_ns=None, error=None, data=None)
            self._end_hop(state, hop, hop.provisional or ends)

    def _end_halted(self, state: OpenTransaction) -> bool:
        """End a transaction that is to be forgotten, if it is halted and no other process has told of that; whether it
        is."""
        if not state.halted_ns or state.halt_unseen:
            return False
        self._end_open_hops(state, kinds.HALTED)
        self._end_transaction(state, max(state.halted_ns, state.ended_ns), "halted", False, "")
        return True

    def _end_transaction(self, state: OpenTransaction, at_ns: int, status: str, failed: bool, error: str) -> None:
        attributes = state.attributes | {"bitactor.status": status}
        if failed:
            attributes["error.type"] = error_name(error) or state.reason or status
        record = SpanRecord(
            state.root,
            state.span_id,
            state.parent_id,
            state.name,
            state.kind,
            state.start_ns,
            max(at_ns, state.start_ns),
            attributes,
            tuple(state.events),
            state.links,
            failed,
            short(error or state.reason) if failed else "",
            state.dropped,
        )
        if state.first_record is not None:
            record = joined(record, state.first_record)
            state.span_id = record.span_id
        self._ended.append(record)
