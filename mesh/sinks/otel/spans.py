"""Folds pulses into spans: what a trace viewer shows of a transaction, built after the fact and off the hot path.

A transaction is one span, open from `accepted` to `finished`; each attempt at a step (and at an undo) is one child of
it, with a link to each hop that caused it.  A child transaction's span is a child of the hop that emitted it; a root
that came with a W3C `traceparent` links to it.  What is not an attempt (skipped, tombstone, late, emitted, halted,
resumed) is an event, on the hop's span while that is open, else on the transaction's.

What happens at the edges:

- A hop that timed out stays open until its next pulse, or the transaction's end, so that a late reply lands on it.
- Hops still open when their transaction finishes end then, with the outcome `unknown` (or what a tombstone said).
- A transaction first seen in the middle (recovered from another process, evicted, or pulses were dropped) is
  *adopted*: its span starts when its id was made, and a hop whose start was missed begins `elapsed_ns` before its
  end.
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
from typing import Any, Final

from bitactor.messages import pulse as kinds
from bitactor.messages.faults import full_traceback
from bitactor.messages.ids import NO_HOP, TransactionId, hop_id, transaction_span_id
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import UNDO, Fault
from mesh.sinks.otel.context import parse_traceparent
from mesh.sinks.otel.record import CONSUMER, INTERNAL, Attributes, OpenHop, OpenTransaction, SpanEvent, SpanRecord

MAX_LINKS: Final = 128
"""The most links of one span; more are counted as dropped.  OpenTelemetry's own limit."""
# Longest text kept of a message or traceback, in characters, so that no span outgrows what collectors take
_MAX_TEXT: Final = 16_384


class SpanAssembler:
    """Folds pulses into finished spans; pure.

    Pulses of one transaction come in order of `seq`; those of different transactions mix freely.  Keeps state for at
    most `max_transactions` open transactions; the one opened first is evicted for the next.  Counts the transactions
    first seen in the middle (`adopted`), those forgotten to make room (`evicted`, and adopted when another pulse
    comes), and pulses seen before, which are ignored (`repeated`); its length is the number of those that are open.
    """

    def __init__(self, *, max_transactions: int = 100_000, max_remembered: int = 10_000) -> None:
        self._open: dict[str, OpenTransaction] = {}
        self._max_open = max_transactions
        self._finished: dict[str, int] = {}
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
                fold(state, pulse)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> list[SpanRecord]:
        """Forget all transactions; returns the spans of those that are halted."""
        for state in self._open.values():
            if state.halted_ns:
                self._end_transaction(state, state.halted_ns, "halted", False, "")
        self._open.clear()
        ended, self._ended = self._ended, []
        return ended

    def __len__(self) -> int:
        return len(self._open)

    def _begin(self, pulse: Pulse) -> OpenTransaction | None:
        """The state of a transaction not open here; None if the pulse needs none."""
        if pulse.seq < self._finished.get(pulse.transaction, 0):
            self.repeated += 1
            return None
        if pulse.kind == kinds.EMITTED:
            return None
        if pulse.kind in (kinds.LATE, kinds.TOMBSTONE):
            self._ended.append(_instant_span(pulse))
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
        state.gapless, state.adopted = False, True
        if pulse.transaction in self._finished:
            _begin_resumption(state, pulse)
        else:
            state.start_ns = min(_created_ns(pulse.transaction) or pulse.at_ns, pulse.at_ns)

    def _evict(self) -> None:
        state = self._open.pop(next(iter(self._open)))
        self.evicted += 1
        if state.halted_ns:
            self._end_transaction(state, state.halted_ns, "halted", False, "")
            self._remember(state)

    def _remember(self, state: OpenTransaction) -> None:
        self._finished[state.transaction] = state.next_seq
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
            state.attributes.update(_messaging("process", data.get("name") or pulse.workflow))
        elif link := parse_traceparent(data.get("traceparent")):
            state.links = (link,)

    def _on_spawned(self, state: OpenTransaction, pulse: Pulse) -> None:
        hop = state.hops.get(pulse.hop)
        if hop is None:
            state.hops[pulse.hop] = OpenHop(pulse)
            return
        data = pulse.data or {}
        delivery = data.get("delivery")
        hop.deliveries = delivery if isinstance(delivery, int) else hop.deliveries + 1
        name = "compensating" if "assess" in data else "redelivered"
        hop.add(SpanEvent(name, pulse.at_ns, _details(pulse) | {"bitactor.delivery": hop.deliveries}))

    def _on_timed_out(self, state: OpenTransaction, pulse: Pulse) -> None:
        hop = state.hops.get(pulse.hop)
        if hop is None and _spawn_missed(state, pulse):
            hop = state.hops[pulse.hop] = OpenHop(_inferred_spawn(pulse))
        if hop is None or hop.provisional is not None:
            state.add(SpanEvent(pulse.kind, pulse.at_ns, _details(pulse)))
        else:
            hop.provisional = pulse

    def _on_outcome(self, state: OpenTransaction, pulse: Pulse) -> None:
        hop = state.hops.pop(pulse.hop, None)
        if hop is None and _spawn_missed(state, pulse):
            hop = OpenHop(_inferred_spawn(pulse))
        if hop is None:
            data = pulse.data or {}
            state.add(SpanEvent(pulse.kind, pulse.at_ns, _details(pulse)))
            if pulse.kind in _FAILURES and "fault" in data and not data.keys() & {"cancel", "undo"}:
                # What never began, or the whole; to be cancelled is no error.
                state.add(SpanEvent("exception", pulse.at_ns, _exception_attributes(pulse) | _details(pulse)))
        else:
            self._end_hop(state, hop, pulse)

    def _on_tombstone(self, state: OpenTransaction, pulse: Pulse) -> None:
        reason = pulse.error or "unknown"
        attributes = _details(pulse) | {"bitactor.tombstone.reason": reason}
        if chain := (pulse.data or {}).get("chain"):
            attributes["bitactor.tombstone.chain"] = " > ".join(map(str, chain))
        state.reason = reason
        hop = state.hops.get(pulse.hop)
        if hop is not None:
            hop.reason = reason
        (hop or state).add(SpanEvent(pulse.kind, pulse.at_ns, attributes))

    def _on_event(self, state: OpenTransaction, pulse: Pulse) -> None:
        attributes = _details(pulse)
        if pulse.kind == kinds.EMITTED:
            name = (pulse.data or {}).get("name")
            attributes |= _messaging("send", name if isinstance(name, str) else "")
        elif pulse.kind == kinds.RESUMED:
            state.halted_ns = 0
            if state.adopted and not state.is_resumption and "owner" not in (pulse.data or {}):
                _begin_resumption(state, pulse)
        (state.hops.get(pulse.hop) or state).add(SpanEvent(pulse.kind, pulse.at_ns, attributes))

    def _on_halted(self, state: OpenTransaction, pulse: Pulse) -> None:
        """Add the event of a halt: of the step that asked for it, or of the transaction as a whole."""
        if pulse.step:
            self._on_outcome(state, pulse)
        else:
            state.halted_ns = pulse.at_ns
            self._on_event(state, pulse)

    def _on_finished(self, state: OpenTransaction, pulse: Pulse) -> None:
        status = (pulse.data or {}).get("status") or "completed"
        for hop in state.hops.values():
            self._end_hop(state, hop, hop.provisional or pulse)
        failed = status == "stuck" or (status == "compensated" and bool(pulse.error or not state.is_resumption))
        self._end_transaction(state, pulse.at_ns, status, failed, pulse.error or "")
        del self._open[pulse.transaction]
        self._remember(state)

    # Ends

    def _end_hop(self, state: OpenTransaction, hop: OpenHop, pulse: Pulse) -> None:
        """End a hop's span with `pulse`: the attempt's outcome, its timeout, or its transaction's end."""
        spawned, timeout = hop.spawned, hop.provisional
        attributes = _hop_attributes(spawned, hop.deliveries)
        outcome, failed, error = _outcome(hop, pulse)
        attributes["bitactor.outcome"] = outcome
        end_ns = max((timeout if timeout and failed else pulse).at_ns, spawned.at_ns)
        if failed:
            attributes["error.type"] = _error_name(error) or outcome
            # That of a container is with the step in it that raised it.
            if (pulse.kind in _OUTCOMES or pulse is timeout) and "ended_by" not in (pulse.data or {}):
                hop.add(SpanEvent("exception", end_ns, _exception_attributes(pulse)))
        causes = spawned.causes
        name = f"{spawned.workflow}/{spawned.step}"
        self._ended.append(
            SpanRecord(
                state.root,
                spawned.hop,
                transaction_span_id(TransactionId(state.transaction)) if state.is_resumption else state.span_id,
                f"undo {name}" if spawned.direction == UNDO else name,
                INTERNAL,
                spawned.at_ns,
                end_ns,
                attributes,
                tuple(hop.events),
                tuple((state.root, cause) for cause in causes[:MAX_LINKS]),
                failed,
                _short(error) if failed else "",
                hop.dropped,
                max(0, len(causes) - MAX_LINKS),
            )
        )

    def _end_transaction(self, state: OpenTransaction, at_ns: int, status: str, failed: bool, error: str) -> None:
        attributes = state.attributes | {"bitactor.status": status}
        if failed:
            attributes["error.type"] = _error_name(error) or state.reason or status
        self._ended.append(
            SpanRecord(
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
                _short(error or state.reason) if failed else "",
                state.dropped,
            )
        )


_OUTCOMES: Final = frozenset(
    (kinds.COMPLETED, kinds.FAILED, kinds.RETRIED, kinds.COMPENSATED, kinds.UNDONE, kinds.UNDO_FAILED)
)
_FAILURES: Final = frozenset((kinds.FAILED, kinds.RETRIED, kinds.TIMED_OUT, kinds.UNDO_FAILED))


def _begin_resumption(state: OpenTransaction, pulse: Pulse) -> None:
    """Begin a span below the transaction's own, which has ended before, for what follows."""
    state.is_resumption = True
    state.parent_id = transaction_span_id(TransactionId(pulse.transaction))
    state.span_id = hop_id(TransactionId(pulse.transaction), "", "transaction", pulse.seq)
    state.name = f"resume {pulse.workflow}"
    state.start_ns = pulse.at_ns


def _spawn_missed(state: OpenTransaction, pulse: Pulse) -> bool:
    """Whether the outcome of a hop not open here is that of one whose `spawned` was missed."""
    return not state.gapless and bool(pulse.step) and pulse.elapsed_ns is not None


def _outcome(hop: OpenHop, pulse: Pulse) -> tuple[str, bool, str]:
    """(outcome, whether that is a failure, the error) of an attempt."""
    if pulse.kind == kinds.FINISHED:
        return ("tombstone", True, hop.reason) if hop.reason else ("unknown", False, "")
    error = pulse.error or (hop.provisional.error if hop.provisional else None) or hop.reason
    return pulse.kind, pulse.kind in _FAILURES, error or ""


def _hop_attributes(pulse: Pulse, deliveries: int) -> Attributes:
    attributes = {
        "bitactor.workflow": pulse.workflow,
        "bitactor.step": pulse.step,
        "bitactor.hop": pulse.hop,
        "bitactor.transaction": pulse.transaction,
        "bitactor.ttl": pulse.ttl,
        "bitactor.attempt": pulse.attempt,
        "bitactor.spawn": pulse.spawn,
        "bitactor.direction": pulse.direction,
    }
    if pulse.data and isinstance(pulse.data.get("holder"), str):
        attributes["bitactor.holder"] = pulse.data["holder"]
    if deliveries > 1:
        attributes["bitactor.delivery"] = deliveries
    return attributes


def _details(pulse: Pulse) -> Attributes:
    details: Attributes = {}
    if pulse.step:
        details |= {"bitactor.step": pulse.step, "bitactor.hop": pulse.hop, "bitactor.ttl": pulse.ttl}
    elif pulse.kind == kinds.EMITTED:
        details["bitactor.hop"] = pulse.hop
    if pulse.data and isinstance(pulse.data.get("reason"), str):
        details["bitactor.reason"] = _short(pulse.data["reason"])
    if pulse.error:
        details["bitactor.error"] = _short(pulse.error)
    return details


def _messaging(operation: str, destination: str) -> Attributes:
    attributes = {
        "messaging.system": "bitactor",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }
    return attributes | {"messaging.destination.name": destination} if destination else attributes


def _instant_span(pulse: Pulse) -> SpanRecord:
    """A span without duration for a pulse that came after the transaction's end."""
    transaction = TransactionId(pulse.transaction)
    failed = pulse.kind == kinds.TOMBSTONE
    attributes = {"bitactor.workflow": pulse.workflow, "bitactor.transaction": pulse.transaction, **_details(pulse)}
    attributes["bitactor.outcome"] = pulse.kind
    if failed:
        attributes["error.type"] = pulse.error or "unknown"
    return SpanRecord(
        pulse.root,
        hop_id(transaction, pulse.step, pulse.kind, pulse.seq),
        transaction_span_id(transaction),
        f"{pulse.kind} {pulse.workflow}/{pulse.step}" if pulse.step else f"{pulse.kind} {pulse.workflow}",
        INTERNAL,
        pulse.at_ns,
        pulse.at_ns,
        attributes,
        failed=failed,
        description=_short(pulse.error or "") if failed else "",
    )


def _inferred_spawn(pulse: Pulse) -> Pulse:
    return pulse._replace(at_ns=pulse.at_ns - (pulse.elapsed_ns or 0), token_out=None, data=None)


def _created_ns(transaction: str) -> int:
    """When a uuid7 was made; 0 if the id is no uuid7."""
    return int(transaction[:12], 16) * 1_000_000 if transaction[12:13] == "7" else 0


# The error that a pulse carries, for span attributes and for people


def _error_name(summary: str) -> str:
    """`Name` of a summary `Name: message`; a tombstone's reason is its own name."""
    return _short(summary.partition(":")[0], 256)


def _short(text: str, limit: int = _MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _exception_attributes(pulse: Pulse) -> dict[str, Any]:
    if pulse.data and pulse.data.get("fault"):
        fault = Fault(*pulse.data["fault"])
    else:
        name, _, message = (pulse.error or pulse.kind).partition(": ")
        fault = Fault(name, message)
    module, _, name = fault.type.rpartition(":")
    attributes = {"exception.type": name if module in ("", "builtins") else f"{module}.{name}"}
    if fault.message:
        attributes["exception.message"] = _short(fault.message)
    if fault.chain is not None:
        attributes["exception.stacktrace"] = full_traceback(fault, _MAX_TEXT)
    elif fault.traceback:
        # The end of a traceback tells more than its beginning.
        end = fault.traceback[1 - _MAX_TEXT :]
        attributes["exception.stacktrace"] = fault.traceback if len(fault.traceback) <= _MAX_TEXT else "…" + end
    return attributes
