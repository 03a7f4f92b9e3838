"""The rows of a waterfall: those of each transaction among some pulses, folded without knowing how they will look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bitactor.messages import pulse as kinds
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import UNDO, Fault
from mesh.cli import work

_OUTCOMES = frozenset(
    (
        kinds.COMPLETED, kinds.FAILED, kinds.RETRIED, kinds.TIMED_OUT, kinds.COMPENSATED, kinds.UNDONE,
        kinds.UNDO_FAILED, kinds.HALTED,
    )
)  # fmt: skip


FOLD: Final = "fold"


class Row(NamedTuple):
    """One line of a waterfall: an attempt (`hop`), a moment (`mark`: skipped, tombstone, halted, …), a child
    `transaction`, or one for many (`fold`)."""

    kind: str
    name: str
    hop: str
    causes: tuple[str, ...]
    spawn: str
    direction: str
    attempt: int
    ttl: int | None
    start_ns: int
    end_ns: int
    """When the row ended; for one that still runs, now, or, not knowing that, the time of the last pulse there is."""
    took_ns: int
    """Nanoseconds that the attempt itself took, where that is known; otherwise from `start_ns` to `end_ns`."""
    outcome: str
    """The kind of the pulse that ended the row; `running` if none did, `unknown` if its transaction is over
    nevertheless."""
    notes: tuple[str, ...]
    """Errors, retry times, redeliveries, late replies, emitted names, in the order they happened."""


class Timeline(NamedTuple):
    """One transaction's rows, on one time axis."""

    transaction: str
    root: str
    parent: str
    parent_hop: str
    workflow: str
    status: str
    error: str
    ttl: int | None
    """The TTL that the transaction's stimulus carried; None if its beginning is not among the pulses."""
    ttl_left: int | None
    """The least TTL that any of the transaction's hops carried."""
    start_ns: int
    end_ns: int
    rows: tuple[Row, ...]


def timelines(pulses: Sequence[Pulse], now_ns: int | None = None) -> list[Timeline]:
    """The transactions among `pulses`: the root first if it is there, then in order of their beginning.  Those that run
    have run until `now_ns`, or until their last pulse."""
    logs: dict[str, list[Pulse]] = {}
    for pulse in pulses:
        logs.setdefault(pulse.transaction, []).append(pulse)
    found = [_timeline(sorted(log, key=lambda pulse: pulse.seq), now_ns) for log in logs.values()]
    return sorted(
        found, key=lambda timeline: (timeline.transaction != timeline.root, timeline.start_ns, timeline.transaction)
    )


class _Attempt:
    def __init__(self, pulse: Pulse) -> None:
        self.first = pulse
        self.start_ns = pulse.at_ns
        self.last: Pulse | None = None
        self.notes: list[str] = []
        self.has_tombstone = False

    def end(self, pulse: Pulse) -> None:
        # A timed-out attempt may get a verdict later; what happened to it first is what the row is about.
        if self.last is None:
            self.last = pulse
        _add_error(self.notes, _error_notes(pulse))
        if pulse.kind == kinds.HALTED:
            self.notes.append(_note(pulse))
        elif pulse.kind == kinds.RETRIED:
            self.notes.append(_retry_note(pulse.data or {}))
        elif pulse is not self.last:
            self.notes.append(f"then {pulse.kind}")

    def respawn(self, pulse: Pulse) -> None:
        """Begin again: of an attempt that is redelivered the row shows the delivery that counts, the last."""
        data = pulse.data or {}
        if "opening" in data:  # a container that opens one more scope
            return
        self.notes.append(_respawn_note(data))
        if "assess" not in data and self.last is None:
            self.start_ns = pulse.at_ns

    def row(self, end_ns: int, over: bool) -> Row:
        last = self.last
        ended = max(last.at_ns if last else end_ns, self.start_ns)
        elapsed = last.elapsed_ns if last is not None else None
        return Row(
            kind="hop",
            name=f"undo {self.first.step}" if self.first.direction == UNDO else self.first.step,
            hop=self.first.hop,
            causes=tuple(self.first.causes),
            spawn=self.first.spawn,
            direction=self.first.direction,
            attempt=self.first.attempt,
            ttl=self.first.ttl,
            start_ns=self.start_ns,
            end_ns=ended,
            took_ns=elapsed if elapsed is not None else ended - self.start_ns,
            outcome=last.kind if last is not None else self._open_outcome(over),
            notes=tuple(note for note in self.notes if note),
        )

    def _open_outcome(self, over: bool) -> str:
        if self.has_tombstone:
            return kinds.TOMBSTONE
        return "unknown" if over else "running"


def _timeline(log: Sequence[Pulse], now_ns: int | None) -> Timeline:
    attempts: dict[str, _Attempt] = {}
    marks: list[tuple[int, Row]] = []
    accepted = log[0] if log[0].kind == kinds.ACCEPTED else None
    status, error = "running", ""
    end_ns = max(pulse.at_ns for pulse in log)
    for pulse in log:
        if pulse.kind == kinds.FINISHED:
            status, error = str((pulse.data or {}).get("status") or "completed"), pulse.error or ""
            end_ns = pulse.at_ns
        elif pulse.kind in (kinds.HALTED, kinds.RESUMED) and not pulse.step:
            taken_over = "owner" in (pulse.data or {})
            status = "halted" if pulse.kind == kinds.HALTED else status if taken_over else "running"
            end_ns = end_ns if taken_over else pulse.at_ns
            marks.append((pulse.seq, _mark(pulse)))
        elif pulse.kind != kinds.ACCEPTED:
            _fold(pulse, attempts, marks)
    if status == "running":
        end_ns = max(now_ns or 0, *(pulse.at_ns for pulse in log), 0)
    over = status not in ("running", "halted")
    rows = [(attempt.first.seq, attempt.row(end_ns, over)) for attempt in attempts.values()] + marks
    rows.sort(key=lambda numbered: (numbered[1].start_ns, numbered[0]))
    data = (accepted.data if accepted else None) or {}
    ttl = accepted.ttl if accepted else None
    return Timeline(
        transaction=log[0].transaction,
        root=log[0].root,
        parent=str(data.get("parent") or ""),
        parent_hop=str(data.get("parent_hop") or ""),
        workflow=log[0].workflow,
        status=status,
        error=error,
        ttl=ttl,
        ttl_left=min((row.ttl for _, row in rows if row.kind == "hop" and row.ttl is not None), default=ttl),
        start_ns=log[0].at_ns if accepted else min([log[0].at_ns, *(row.start_ns for _, row in rows)]),
        end_ns=max(log[0].at_ns, end_ns),
        rows=tuple(row for _, row in rows),
    )


def _fold(pulse: Pulse, attempts: dict[str, _Attempt], marks: list[tuple[int, Row]]) -> None:
    attempt = attempts.get(pulse.hop)
    if pulse.kind == kinds.SPAWNED and attempt is None:
        attempts[pulse.hop] = _Attempt(pulse)
    elif pulse.kind == kinds.SPAWNED and attempt is not None:
        attempt.respawn(pulse)
    elif pulse.kind in _OUTCOMES and attempt is None and (not pulse.step or pulse.elapsed_ns is None):
        _end_unspawned(pulse, marks)
    elif pulse.kind in _OUTCOMES:
        if attempt is None:
            attempt = attempts[pulse.hop] = _Attempt(pulse)
            attempt.start_ns = pulse.at_ns - (pulse.elapsed_ns or 0)
        attempt.end(pulse)
    elif attempt is not None and pulse.kind in (kinds.LATE, kinds.EMITTED, kinds.TOMBSTONE):
        attempt.notes.append(_note(pulse))
        _add_chain(attempt.notes, _error_notes(pulse)[1:])
        attempt.has_tombstone = attempt.has_tombstone or pulse.kind == kinds.TOMBSTONE
    else:
        marks.append((pulse.seq, _mark(pulse)))


def _end_unspawned(pulse: Pulse, marks: list[tuple[int, Row]]) -> None:
    """Note the failure of a hop that never ran: below its tombstone if it has one, else by a mark of its own."""
    if marks and pulse.step and marks[-1][1].hop == pulse.hop and marks[-1][1].outcome == kinds.TOMBSTONE:
        seq, tombstone = marks[-1]
        notes = list(tombstone.notes)
        _add_error(notes, _error_notes(pulse) or [pulse.kind])
        marks[-1] = (seq, tombstone._replace(notes=tuple(notes)))
    else:
        marks.append((pulse.seq, _mark(pulse)))


def _mark(pulse: Pulse) -> Row:
    name = f"undo {pulse.step}" if pulse.step and pulse.direction == UNDO else pulse.step or pulse.kind
    return Row(
        kind="mark",
        name=name,
        hop=pulse.hop,
        causes=tuple(pulse.causes),
        spawn="",
        direction=pulse.direction,
        attempt=pulse.attempt,
        ttl=pulse.ttl if pulse.step else None,
        start_ns=pulse.at_ns,
        end_ns=pulse.at_ns,
        took_ns=0,
        outcome=pulse.kind,
        notes=tuple(note for note in (_note(pulse), *_error_notes(pulse)[1:]) if note),
    )


def _error_notes(pulse: Pulse) -> list[str]:
    """The error of a pulse, and, indented below it, what came with that: causes, notes, the members of a group."""
    data = pulse.data or {}
    if not pulse.error:
        return []
    if data.get("ended_by"):
        return [f"{data['ended_by']}: {pulse.error}"]
    fault = data.get("fault")
    return [pulse.error, *(work.chain_lines(Fault(*fault)) if fault else ())]


def _add_error(notes: list[str], error: Sequence[str]) -> None:
    """Add an error and what came with it, of which a row says nothing twice."""
    if not error or error[0] in notes:
        return
    notes.append(error[0])
    _add_chain(notes, error[1:])


def _add_chain(notes: list[str], chain: Sequence[str]) -> None:
    if not set(chain) <= set(notes):
        notes += chain


def _note(pulse: Pulse) -> str:
    data = pulse.data or {}
    if pulse.kind == kinds.TOMBSTONE:
        chain = data.get("chain")
        names = " > ".join(map(str, work.shortened(chain))) if isinstance(chain, list | tuple) else ""
        return f"tombstone: {pulse.error or 'unknown'}" + (f" ({names})" if names else "")
    if pulse.kind == kinds.EMITTED:
        what = "sent again" if data.get("again") else "emitted"
        return f"{what} {data['name']}" if data.get("name") else what
    if pulse.kind == kinds.LATE:
        return f"late reply: {pulse.error}" if pulse.error else "late reply"
    return pulse.error or str(data.get("reason") or "")


def _respawn_note(data: Mapping[str, Any]) -> str:
    if "assess" in data:
        return "compensating"
    number = f"redelivered ({data['delivery']})" if data.get("delivery") else "redelivered"
    return f"{number}: {data['lost']}" if data.get("lost") else number


def _retry_note(data: Mapping[str, Any]) -> str:
    after = data.get("after_ns")
    return f"tried again after {after / 1e9:.3g} s" if isinstance(after, int) else ""
