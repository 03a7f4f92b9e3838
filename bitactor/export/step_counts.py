"""Counts of what happened to each step of a plan, folded from pulses: how many hops are done, failed, undone, …

A map, an iterate, a recurse are one place in a plan and many hops in a transaction; so a place has a count for each
state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bitactor.errors import InvalidInput
from bitactor.messages import pulse as kinds
from bitactor.messages.pulse import FAILED, HALTED, RUNNING, SKIPPED, UNDONE, Pulse
from bitactor.messages.signal import UNDO
from bitactor.plan.plan import Container, Plan, PlanStep
from bitactor.saga.phases import IN_DOUBT

DONE: Final = "done"
UNDO_FAILED: Final = "undo failed"
STOPPED: Final = "stopped"
"""State of a hop that was in flight when something else failed, and was cancelled."""

STATES: Final = (FAILED, UNDO_FAILED, IN_DOUBT, HALTED, RUNNING, UNDONE, DONE, SKIPPED, STOPPED)
"""States of hops, the gravest first."""

_FORWARD: Final = {
    kinds.SPAWNED: RUNNING, kinds.COMPLETED: DONE, kinds.COMPENSATED: DONE, SKIPPED: SKIPPED, FAILED: FAILED,
    kinds.RETRIED: RUNNING, kinds.TIMED_OUT: IN_DOUBT, kinds.TOMBSTONE: FAILED, HALTED: HALTED,
}  # fmt: skip
_CANCELLED: Final = "bitactor.errors:Cancelled"
"""The fault of a hop that did not fail itself, but was in flight when something else did."""
_UNDO: Final = {kinds.SPAWNED: RUNNING, UNDONE: UNDONE, kinds.UNDO_FAILED: UNDO_FAILED}

Place = str
"""A step's place in a plan, as an identifier: `s2`, below a container `s2_0_1` (its body and the step there), `d0` for
a deferred step."""


_Found = tuple[Place, PlanStep, Container | None]
"""A place in the plan, the step there, and the container whose function it is, if it is one's."""


class StepCounts:
    """Counts by place of what happened in some transactions of a plan."""

    def __init__(self) -> None:
        self.by_place: dict[Place, Counter[str]] = {}
        """Place → state → number of hops, for each place at which anything happened."""
        self.planned: dict[tuple[Place, Place], None] = {}
        """(place of a step, place of a deferred step that its `Then` asked for), in order."""
        self.statuses: list[str] = []
        """The statuses of the transactions."""


def step_counts(plan: Plan, pulses: Iterable[Pulse]) -> StepCounts:
    """The counts over the transactions of this plan; pulses of other plans are passed over.

    Raises:
        InvalidInput: there are pulses, and none of them is of this plan.
    """
    folds: dict[str, _Fold] = {}
    others: set[str] = set()
    for pulse in pulses:
        if pulse.workflow == plan.workflow:
            folds.setdefault(pulse.transaction, _Fold(plan)).add(pulse)
        else:
            others.add(pulse.workflow)
    if others and not folds:
        raise InvalidInput(f"the pulses are of {', '.join(map(repr, sorted(others)))}, and none of {plan.workflow!r}")
    found = StepCounts()
    for fold in folds.values():
        fold.add_to(found)
    return found


class _Fold:
    """The fold of the pulses of one transaction."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._status = RUNNING
        self._states: dict[str, Counter[str]] = {}
        self._batches: dict[str, Counter[str]] = {}
        """Path of a batch → counts of its elements, which count one by one."""
        self._places: dict[str, _Found | None] = {}
        self._chosen: dict[str, int] = {}
        self._declared: dict[str, str] = {}
        self._planned: dict[tuple[Place, Place], None] = {}

    def add(self, pulse: Pulse) -> None:
        data = pulse.data or {}
        if not pulse.step:
            if pulse.kind == kinds.FINISHED:
                self._status = str(data.get("status") or kinds.COMPLETED)
            elif pulse.kind in (HALTED, kinds.RESUMED):
                self._status = HALTED if pulse.kind == HALTED else RUNNING
            return
        if data.get("opening"):
            self._chosen.setdefault(pulse.step, data["opening"][0][1])
        state = _state(pulse, data)
        if state is not None:
            self._count(pulse, state)
        for declared, name, *_ in data.get("planned") or ():
            self._record_planned(pulse.step, declared, name)

    def _count(self, pulse: Pulse, state: str) -> None:
        found = self._find(pulse.step)
        container = found[2] if found is not None else None
        done = container.elements(pulse.token_out) if container is not None and state == DONE else None
        if done is not None:
            self._batches[pulse.step] = self._states[pulse.step] = +Counter({DONE: done[0], FAILED: done[1]})
            return
        before = self._batches.get(pulse.step, Counter())
        self._states[pulse.step] = +Counter({state: before[DONE] or 1}) + Counter({FAILED: before[FAILED]})

    def _record_planned(self, emitter: str, declared: str, name: str) -> None:
        prefix, separator, _ = emitter.rpartition("/")
        path = f"{prefix}{separator}{name}"
        self._declared.setdefault(path, declared)
        here, there = self._find(emitter), self._find(path)
        if here is not None and there is not None and here[0] != there[0]:
            self._planned[here[0], there[0]] = None

    def add_to(self, found: StepCounts) -> None:
        """Add the counts of this transaction to `found`."""
        over = self._status not in (RUNNING, HALTED)
        within = self._states_within() if over else {}
        for path, counts in self._states.items():
            located = self._find(path)
            if located is None:
                continue
            place, step, _ = located
            if over:
                counts = self._final_counts(counts, step, within.get(path, frozenset()))
            found.by_place.setdefault(place, Counter()).update(counts)
        found.planned |= self._planned
        found.statuses.append(self._status)

    def _states_within(self) -> dict[str, set[str]]:
        """Path of a container → states of everything in it."""
        within: dict[str, set[str]] = {}
        for path, counts in self._states.items():
            above = path
            while "/" in above:
                above = above.rpartition("/")[0]
                within.setdefault(above, set()).update(counts)
        return within

    def _final_counts(self, counts: Counter[str], step: PlanStep, within: frozenset[str] | set[str]) -> Counter[str]:
        """The counts of a step in a transaction that is over: nothing is running any more, and the state of a container
        is that of its steps."""
        if step.container is None:
            return Counter({IN_DOUBT if state == RUNNING else state: number for state, number in counts.items()})
        if within & {UNDO_FAILED, UNDONE} and counts[DONE]:
            return Counter((UNDO_FAILED if UNDO_FAILED in within else UNDONE,))
        if counts[RUNNING]:
            return Counter(
                (next((state for state in (FAILED, IN_DOUBT, UNDO_FAILED, UNDONE) if state in within), STOPPED),)
            )
        return counts

    # Places

    def _find(self, path: str) -> _Found | None:
        if path not in self._places:
            self._places[path] = self._locate(self._plan, "", path.split("/"), "")
        return self._places[path]

    def _locate(self, plan: Plan, at: Place, rest: list[str], walked: str) -> _Found | None:
        """What a path leads to in the plan; None: there is nothing."""
        name = rest[0].partition("#")[0]
        path = walked + rest[0]
        found = _named(plan, name) or _named(plan, self._declared.get(walked + name, ""))
        if found is None:
            return None
        local, step = found
        place = at + local
        if len(rest) == 1:
            return place, step, None
        if step.container is None:
            return None
        container = step.container
        keyed = container.keyed
        chosen = self._chosen.get(path) if container.cases else None
        for number, body in enumerate(container.bodies):
            if chosen not in (None, number):
                continue
            below = f"{place}_{number}_"
            if body.steps[0].name == "":
                if len(rest) == 2 and (keyed or rest[1] == container.function_key):
                    return f"{below}s0", body.steps[0], container
            elif len(rest) > 1 + keyed:
                walked_on = "/".join((walked + rest[0], *rest[1 : 1 + keyed], ""))
                deeper = self._locate(body, below, rest[1 + keyed :], walked_on)
                if deeper is not None:
                    return deeper
        return None


def _named(plan: Plan, name: str) -> tuple[str, PlanStep] | None:
    """The place within a plan, and the step, of that name; None if there is none."""
    if name in plan.by_name:
        return f"s{plan.by_name[name]}", plan.steps[plan.by_name[name]]
    if name in plan.deferred:
        return f"d{list(plan.deferred).index(name)}", plan.deferred[name]
    return None


def _state(pulse: Pulse, data: Mapping[str, Any]) -> str | None:
    """The state in which a pulse puts its step; None if the pulse changes none."""
    if pulse.direction == UNDO:
        return UNDO_FAILED if pulse.kind == kinds.TOMBSTONE else _UNDO.get(pulse.kind)
    if pulse.kind == kinds.LATE:
        happened = data.get("happened")
        return None if happened is None else DONE if happened else FAILED
    if "ended_by" in data:
        return None  # a container: its state is that of its steps
    if pulse.kind == FAILED and (data.get("fault") or ("",))[0] == _CANCELLED:
        return STOPPED
    return _FORWARD.get(pulse.kind)
