"""Every kind of step, nested in each other, against a world in which anything may happen at any time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from saga_plans import Random, nested_plans, planner
from saga_world import TRANSACTION, World

from bitactor.errors import StoreError
from bitactor.saga import Recovered, Saga, evolve
from mesh.sinks.otel.spans import SpanAssembler
from tests.amounts import examples

MANY = examples(quick=100, long=4_000, suppress_health_check=list(HealthCheck))
LONGER = examples(quick=40, long=2_000, suppress_health_check=list(HealthCheck))
FEW = examples(quick=20, long=500, suppress_health_check=list(HealthCheck))
TAPES = st.lists(st.integers(0, 2**16), max_size=100)
LONG_TAPES = st.lists(st.integers(0, 2**16), min_size=60, max_size=200)
BUDGETS = st.integers(0, 30)
STOPS = ("deadline_over", "cancel", "undo")
DEADLINES = st.sampled_from([None, 5.0])


@MANY
@given(random=nested_plans(), tape=TAPES, ttl=BUDGETS, deadline=DEADLINES)
def test_whatever_happens_to_nested_steps_the_saga_stays_consistent_and_ends(
    random: Random, tape: list[int], ttl: int, deadline: float | None
) -> None:
    world = World(random.plan, ttl=ttl, deadline_s=deadline, planner=planner)
    world.run(tape)
    _check_spans(world)


def _check_spans(world: World) -> None:
    """Each span that was opened is ended, once."""
    assembler = SpanAssembler()
    spans = Counter(span.span_id for span in [*assembler.feed(world.journal), *assembler.close()])
    assert set(spans.values()) == {1}
    if world.saga.state.status != "halted":
        assert {pulse.hop for pulse in world.journal if pulse.kind == "spawned"} <= set(spans)
        assert not len(assembler)


@MANY
@given(random=nested_plans(), tape=st.lists(st.integers(0, 2**16), max_size=40), how=st.sampled_from(STOPS))
def test_whatever_was_spawned_ends_once_at_a_deadline_a_cancel_and_an_undo(
    random: Random, tape: list[int], how: str
) -> None:
    world = World(random.plan, ttl=60, deadline_s=5.0, planner=planner)
    world.advance(tape)
    if how == "undo":
        world.settle()
    if world.saga.state.status == ("completed" if how == "undo" else "running"):
        getattr(world, how)()
        assert not world.open_containers()
    world.settle()
    _check_spans(world)


@LONGER
@given(random=nested_plans(), tape=LONG_TAPES, ttl=st.integers(8, 60))
def test_and_when_more_happens(random: Random, tape: list[int], ttl: int) -> None:
    World(random.plan, ttl=ttl, planner=planner).run(tape)


@FEW
@given(random=nested_plans(), tape=TAPES, ttl=st.integers(3, 30))
def test_every_prefix_of_a_nested_journal_folds_to_the_live_state_and_can_be_taken_over(
    random: Random, tape: list[int], ttl: int
) -> None:
    world = World(random.plan, ttl=ttl, planner=planner)
    world.run(tape)
    live = Saga(random.plan, TRANSACTION)
    for length, pulse in enumerate(world.journal, 1):
        evolve(live.state, pulse)
        saga = Saga.fold(random.plan, world.journal[:length])
        assert saga.snapshot() == live.snapshot()
        _, commands = saga.react(Recovered("n2", saga.state.epoch + 1), world.now_ns)
        assert saga.state.in_flight or not saga.state.open or commands, "nothing would ever happen again"


@FEW
@given(random=nested_plans(), tape=TAPES, ttl=st.integers(3, 30), where=st.integers(0, 10**6))
def test_a_damaged_nested_journal_is_refused(random: Random, tape: list[int], ttl: int, where: int) -> None:
    world = World(random.plan, ttl=ttl, planner=planner)
    world.run(tape)
    journal = world.journal
    at = where % len(journal)
    with pytest.raises(StoreError):
        Saga.fold(random.plan, [*journal[: at + 1], *journal[at:]])
    if at < len(journal) - 1:
        with pytest.raises(StoreError):
            Saga.fold(random.plan, [*journal[:at], *journal[at + 1 :]])
    for damaged in _hidden_damage(journal, at):
        try:
            Saga.fold(random.plan, damaged)
        except StoreError:
            continue


def _hidden_damage(journal: list[Any], at: int) -> list[list[Any]]:
    """Damage that leaves no gap: what cannot be seen may be read, but it must not crash who reads it."""
    one = journal[at]
    return [
        [*journal[:at], *(pulse._replace(seq=pulse.seq - 1) for pulse in journal[at + 1 :])],
        [*journal[: at + 1], *(pulse._replace(seq=pulse.seq + 1) for pulse in journal[at:])],
        *(
            [*journal[:at], one._replace(kind=kind), *journal[at + 1 :]]
            for kind in (
                "spawned",
                "completed",
                "skipped",
                "failed",
                "undone",
                "finished",
                "halted",
                "resumed",
                "retried",
                "late",
            )
        ),
        *(
            [*journal[:at], one._replace(data=data), *journal[at + 1 :]]
            for data in (
                None,
                {},
                {"opening": [["x", 7, []]]},
                {"planned": [["d0", "x", {}, []]]},
                {"opening": 3},
                {"delivery": 9},
            )
        ),
        *(
            [*journal[:at], one._replace(step=step), *journal[at + 1 :]]
            for step in ("", "nobody", journal[_elsewhere(journal, at)].step)
        ),
    ]


def _elsewhere(journal: list[Any], at: int) -> int:
    return (at * 7 + 3) % len(journal)
