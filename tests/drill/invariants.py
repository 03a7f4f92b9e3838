"""What must hold after a drill, read from the journals and from the effects outside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bitactor import Pulse
from bitactor.messages import pulse as kinds
from bitactor.messages.codec import decode_token
from bitactor.messages.signal import FORWARD, UNDO
from bitactor.ports import TransactionRow
from mesh.stores.read import SqliteReader
from tests.drill.cast import Stop
from tests.drill.load import Order
from tests.drill.shop import GROUPS, STEPS, Effect, result_of

ENDS = frozenset(
    (
        kinds.COMPLETED,
        kinds.FAILED,
        kinds.RETRIED,
        kinds.COMPENSATED,
        kinds.UNDONE,
        kinds.UNDO_FAILED,
    )
)
"""Kinds of pulses that end an attempt."""

DOUBTS = frozenset((kinds.TIMED_OUT, kinds.TOMBSTONE))
"""Kinds that may come before such an end, or stand for it."""

REASONS = ("Unroutable", "Overloaded", "DeadlineExceeded")
"""What may fail a transaction that nothing was wrong with, when the others are away for too long."""


class Violation(NamedTuple):
    """One thing that does not hold."""

    what: str
    """Which invariant."""
    transaction: str
    text: str


class Journal(NamedTuple):
    """One transaction as its store has it, and what it did outside."""

    store: Path
    row: TransactionRow
    pulses: list[Pulse]
    effects: list[Effect]


class Journals:
    """All that the stores have, and all effects."""

    def __init__(self, stores: Sequence[Path], effects: Sequence[Effect], stops: Sequence[Stop] = ()) -> None:
        outside: dict[str, list[Effect]] = defaultdict(list)
        for effect in effects:
            outside[effect.transaction].append(effect)
        self.all: dict[str, Journal] = {}
        for store in stores:
            with SqliteReader(store) as reader:
                for row in reader.list(limit=1_000_000):
                    told = reader.pulses(row.transaction)
                    self.all[row.transaction] = Journal(store, row, told, outside.pop(row.transaction, []))
        self.unknown = dict(outside)
        """Effects of transactions that no store has."""
        began_late = [effect for journal in self.all.values() for effect in _late(journal)]
        self.in_window = [effect for effect in began_late if _in_the_window(effect, effects, stops)]
        """Effects of steps that began after their undo had, where nothing could have kept them from it."""
        self.late = [effect for effect in began_late if effect not in self.in_window]
        """Such effects that should not be."""


def violations(journals: Journals, orders: Sequence[Order]) -> Iterator[Violation]:
    """Everything that does not hold."""
    for transaction, effects in journals.unknown.items():
        yield Violation("unknown", transaction, f"no store has it, and it did {effects}")
    by_transaction = {order.transaction: order for order in orders}
    for order in orders:
        if order.transaction not in journals.all:
            yield Violation("lost", order.transaction, f"{order} was accepted, and no store has it")
    keys = Counter((journal.store, journal.row.workflow, journal.row.key) for journal in journals.all.values())
    for (_, workflow, key), times in keys.items():
        if times > 1:
            yield Violation("key", "", f"key {key!r} of {workflow!r} began {times} transactions in one store")
    for journal in journals.all.values():
        for what, text in _of_one(journal, by_transaction.get(journal.row.transaction)):
            yield Violation(what, journal.row.transaction, text)
    for effect in journals.late:
        yield Violation("late", effect.transaction, f"began after its undo had: {effect}")
    yield from _emitted(journals)


def _of_one(journal: Journal, order: Order | None) -> Iterator[tuple[str, str]]:
    row = journal.row
    if row.open:
        yield "open", f"{row.status}, and not over: {row}"
        return
    yield from _journal(journal)
    if row.status == kinds.COMPLETED:
        yield from _completed(journal)
        if order is not None and not order.completes:
            yield "outcome", f"{order} was to fail, and has completed"
    elif row.status == kinds.COMPENSATED:
        yield from _compensated(journal)
        if order is None or order.completes:
            yield from _excused(journal)
    else:
        yield "outcome", f"ended {row.status}"


def _completed(journal: Journal) -> Iterator[tuple[str, str]]:
    row, effects = journal.row, journal.effects
    did = {effect.step for effect in effects if effect.direction == FORWARD}
    if did != STEPS[row.workflow]:
        yield "effects", f"completed, with the effects of {sorted(did)}"
    if any(effect.direction == UNDO for effect in effects):
        yield "effects", "completed, with the effect of an undo"
    if row.workflow in ("saga", "parcels", "hurried"):
        step, expected = result_of(row.workflow, _input_of(journal)["number"])
        found = [decode_token(pulse.token_out) for pulse in journal.pulses if _is(pulse, kinds.COMPLETED, step)]
        if found != [expected]:
            yield "result", f"{step} told {found}, not {expected}"


def _compensated(journal: Journal) -> Iterator[tuple[str, str]]:
    """Each step that did something was undone, one after another, the last first."""
    did: set[str] = set()
    first_undo: dict[str, int] = {}
    for position, effect in enumerate(journal.effects):
        if effect.direction == UNDO:
            first_undo.setdefault(effect.step, position)
        else:
            did.add(effect.step)
    for step in did - first_undo.keys():
        yield "undo", f"{step} did something, and its undo nothing"
    told = [pulse.step for pulse in journal.pulses if pulse.kind == kinds.SPAWNED and pulse.direction == UNDO]
    order = list(dict.fromkeys(told))
    if (seen := sorted(first_undo, key=first_undo.__getitem__)) != [step for step in order if step in first_undo]:
        yield "order", f"undone in the order {seen}, and told as {order}"
    undone = {pulse.step for pulse in journal.pulses if pulse.kind == kinds.UNDONE}
    if undone - first_undo.keys():
        yield "undo", f"{sorted(undone - first_undo.keys())} undone, and nothing was done outside"
    completed = [pulse.step for pulse in journal.pulses if pulse.kind == kinds.COMPLETED]
    sure = [step for step in completed if step in first_undo]
    if sure != [step for step in reversed(order) if step in sure]:
        yield "order", f"completed in the order {sure}, undone as {order}"


def _late(journal: Journal) -> list[Effect]:
    """Effects of steps that began after their undo had."""
    undone: set[str] = set()
    found = []
    for effect in journal.effects:
        if effect.direction == UNDO:
            undone.add(effect.step)
        elif effect.step in undone:
            found.append(effect)
    return found


def _in_the_window(effect: Effect, effects: Sequence[Effect], stops: Sequence[Stop]) -> bool:
    """Whether a process was stopped between its last check and the first instruction of the step: what no check can
    prevent.  That is one call of each thread, so the effect is the first that its thread had after it woke."""
    woke = [stop.until_ns for stop in stops if effect.pid in stop.pids and stop.until_ns <= effect.at_ns]
    return bool(woke) and not any(
        (other.pid, other.thread) == (effect.pid, effect.thread) and max(woke) <= other.at_ns < effect.at_ns
        for other in effects
    )


def _excused(journal: Journal) -> Iterator[tuple[str, str]]:
    why = reason_of(journal)
    if not why.startswith(REASONS):
        yield "outcome", f"was to complete, and was compensated for {why}"


def reason_of(journal: Journal) -> str:
    """Why a transaction failed."""
    return next((pulse.error or "" for pulse in journal.pulses if pulse.kind == kinds.FINISHED), "")


def _journal(journal: Journal) -> Iterator[tuple[str, str]]:
    """Pulses are numbered without gaps, begin and end once, and each attempt has one end."""
    pulses = journal.pulses
    if [pulse.seq for pulse in pulses] != list(range(len(pulses))):
        yield "journal", f"numbered {[pulse.seq for pulse in pulses]}"
    for kind in (kinds.ACCEPTED, kinds.FINISHED):
        if (times := sum(pulse.kind == kind for pulse in pulses)) != 1:
            yield "journal", f"{times} times {kind}"
    spawned = {pulse.hop for pulse in pulses if pulse.kind == kinds.SPAWNED and pulse.step}
    ends = Counter(pulse.hop for pulse in pulses if pulse.kind in ENDS and pulse.step)
    doubted = {pulse.hop for pulse in pulses if pulse.kind in DOUBTS}
    for hop in spawned:
        if ends[hop] != 1 and not (hop in doubted and not ends[hop]):
            found = [(pulse.seq, pulse.kind) for pulse in pulses if pulse.hop == hop]
            yield "journal", f"hop {hop} has {ends[hop]} ends: {found}"


def _emitted(journals: Journals) -> Iterator[Violation]:
    """Each signal of a completed hop was accepted by each group, in one store once."""
    taken: dict[str, list[Path]] = defaultdict(list)
    for journal in journals.all.values():
        if journal.row.parent:
            taken[journal.row.key].append(journal.store)
    for journal in journals.all.values():
        for pulse in journal.pulses:
            for position, (name, _) in enumerate((pulse.data or {}).get("emits", ())):
                for group in GROUPS[name]:
                    stores = taken.pop(f"{pulse.hop}:{position}>{group}", [])
                    if not stores and not journal.row.open:
                        told = [other.error for other in journal.pulses if other.error and "unroutable" in other.error]
                        text = f"{name} of {pulse.step} was never taken by {group}; {told}"
                        yield Violation("signal", journal.row.transaction, text)
                    if len(stores) != len(set(stores)):
                        text = f"{name} of {pulse.step} was accepted {len(stores)} times by {group} in one store"
                        yield Violation("signal", journal.row.transaction, text)
    for key in taken:
        yield Violation("signal", "", f"{key} was accepted, and nobody has emitted it")


def _is(pulse: Pulse, kind: str, step: str) -> bool:
    return pulse.kind == kind and pulse.step == step and pulse.direction == FORWARD


def _input_of(journal: Journal) -> dict[str, int]:
    given = decode_token(journal.pulses[0].token_out)
    return given if isinstance(given, dict) else {}
