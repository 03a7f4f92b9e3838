"""The saga against a world in which anything may happen at any time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from saga_world import TRANSACTION, World

from bitactor import Backoff, Value, Workflow
from bitactor.errors import DeadlineExceeded, StoreError
from bitactor.messages.faults import error_of
from bitactor.plan.plan import Plan
from bitactor.saga import GraceExpired, Recovered, Saga
from bitactor.saga.phases import HALTING, RUNNING
from tests.amounts import examples

MANY = examples(quick=100, long=4_000, suppress_health_check=list(HealthCheck))
FEW = examples(quick=20, long=500, suppress_health_check=list(HealthCheck))


def _declare(name: str, options: dict[str, Any], workflow: Workflow) -> None:
    if options.pop("transforms"):
        options["bind"] = {"x": Value(1).map(lambda value: value + 1)}

        def run(x: int) -> int:
            return x
    else:

        def run() -> int:  # type: ignore[misc]
            return 1

    undo, compensate = options.pop("undo"), options.pop("compensate")
    step = workflow.step(name=name, **options)(run)
    if undo is not None:
        step.undo(in_doubt=undo == "in_doubt", retries=1)(lambda ctx: None)
    if compensate:
        step.compensate(lambda error: None)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A random DAG with random options."""
    count = draw(st.integers(1, 12))
    workflow = Workflow("w", ttl=12, grace=2.0, undo_timeout=60.0, redeliveries=draw(st.integers(0, 2)))
    for index in range(count):
        after = draw(st.lists(st.integers(0, index - 1), unique=True, max_size=3)) if index else []
        options = {
            "after": [f"s{other}" for other in after],
            "retries": draw(st.integers(0, 2)),
            "timeout": draw(st.sampled_from([None, 1.0])),
            "when": (lambda: True) if draw(st.booleans()) and index % 2 else None,
            "undo": draw(st.sampled_from([None, "known", "in_doubt", "in_doubt"])),
            "compensate": draw(st.booleans()),
            "transforms": index % 5 == 4 and draw(st.booleans()),
            "spawn": "thread",
        }
        if options["retries"]:
            options["backoff"] = draw(st.sampled_from([None, Backoff(0.1), Backoff(0.0)]))
        _declare(f"s{index}", options, workflow)
    return workflow.check()


TAPES = st.lists(st.integers(0, 2**16), max_size=70)


@MANY
@given(plan=plans(), tape=TAPES, ttl=st.integers(0, 12), deadline=st.sampled_from([None, 5.0]))
def test_whatever_happens_the_saga_stays_consistent_and_ends(
    plan: Plan, tape: list[int], ttl: int, deadline: float | None
) -> None:
    World(plan, ttl=ttl, deadline_s=deadline).run(tape)


@FEW
@given(plan=plans(), tape=TAPES, ttl=st.integers(3, 12), where=st.integers(0, 10**6))
def test_a_damaged_journal_is_refused(plan: Plan, tape: list[int], ttl: int, where: int) -> None:
    world = World(plan, ttl=ttl)
    world.run(tape)
    journal = world.journal
    at = where % len(journal)
    if at < len(journal) - 1:
        with pytest.raises(StoreError):
            Saga.fold(plan, [*journal[:at], *journal[at + 1 :]])
        with pytest.raises(StoreError):
            Saga.fold(plan, [*journal[:at], journal[at + 1], journal[at], *journal[at + 2 :]])
    for kind in ("spawned", "completed", "undone", "finished", "halted", "retried", "nonsense"):
        changed = [*journal[:at], journal[at]._replace(kind=kind), *journal[at + 1 :]]
        try:
            Saga.fold(plan, changed)
        except StoreError:
            continue


@FEW
@given(plan=plans(), tape=st.lists(st.integers(0, 2**16), max_size=25), ttl=st.integers(3, 12))
def test_every_prefix_of_a_journal_can_be_taken_over(plan: Plan, tape: list[int], ttl: int) -> None:
    """A crash after any pulse at all, also in the middle of what one stimulus did."""
    world = World(plan, ttl=ttl)
    world.run(tape)
    for length in range(1, len(world.journal) + 1):
        saga = Saga.fold(plan, world.journal[:length])
        assert saga.state.transaction == TRANSACTION
        _, commands = saga.react(Recovered("n2", saga.state.epoch + 1), world.now_ns)
        assert saga.state.in_flight or not saga.state.open or commands, "nothing would ever happen again"


@FEW
@given(plan=plans(), tape=st.lists(st.integers(0, 2**16), max_size=25), ttl=st.integers(3, 12))
def test_what_is_taken_over_after_its_deadline_starts_nothing(plan: Plan, tape: list[int], ttl: int) -> None:
    world = World(plan, ttl=ttl, deadline_s=5.0)
    world.run(tape)
    for length in range(1, len(world.journal) + 1):
        saga = Saga.fold(plan, world.journal[:length])
        deadline_ns, runs = saga.state.deadline_ns, saga.state.phase in (RUNNING, HALTING)
        if not runs or deadline_ns is None:
            continue
        now_ns = max(world.now_ns, deadline_ns) + 10**12
        pulses, _ = saga.react(Recovered("n2", saga.state.epoch + 1), now_ns)
        assert next(pulse.error for pulse in pulses if pulse.kind == "tombstone") == "deadline_exceeded"
        assert not any(pulse.kind == "spawned" and pulse.direction == "forward" for pulse in pulses)
        error = error_of(saga.state.errors[-1].fault, {})
        assert isinstance(error, DeadlineExceeded) and error.unattended and error.late_by >= 1_000
        more, _ = saga.react(GraceExpired(), now_ns)
        assert saga.state.phase not in (RUNNING, HALTING), "it undoes, or has"
        assert Saga.fold(plan, [*world.journal[:length], *pulses, *more]).snapshot() == saga.snapshot()
