"""The spans of random workflows to which anything may happen: one tree, in an order that a trace viewer can follow."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from saga_plans import Random, nested_plans, planner
from saga_world import TRANSACTION, World

from bitactor.messages.ids import transaction_span_id
from bitactor.messages.pulse import Pulse
from mesh.sinks.otel.record import SpanRecord
from mesh.sinks.otel.spans import SpanAssembler
from tests.amounts import examples
from tests.critical_path import Bar, drawn, said

MANY = examples(quick=100, long=4_000, suppress_health_check=list(HealthCheck))
TAPES = st.lists(st.integers(0, 2**16), max_size=100)
ROOT = transaction_span_id(TRANSACTION)
US = 1_000


def until_first_end(journal: list[Pulse]) -> list[Pulse]:
    """The journal without what an undo on request, or a resumption of what was stuck, adds to it."""
    ends = [number for number, pulse in enumerate(journal, 1) if pulse.kind == "finished"]
    return journal[: ends[0]] if ends else journal


def bars(spans: list[SpanRecord]) -> list[Bar]:
    return [Bar(s.span_id, s.parent_id, s.start_ns // US, s.end_ns // US, s.kind) for s in spans]


@MANY
@given(
    random=nested_plans(),
    tape=TAPES,
    ttl=st.integers(0, 60),
    deadline=st.sampled_from([None, 5.0]),
    where=st.integers(0, 10**6),
)
def test_every_trace_is_one_tree_whose_critical_path_is_what_the_pulses_say(
    random: Random, tape: list[int], ttl: int, deadline: float | None, where: int
) -> None:
    world = World(random.plan, ttl=ttl, deadline_s=deadline, planner=planner)
    world.run(tape)
    journal = until_first_end(world.journal)
    check_takeover(journal, where % len(journal))
    assembler = SpanAssembler()
    spans = [*assembler.feed(journal), *assembler.close()]
    found = {span.span_id: span for span in spans}
    if ROOT not in found:
        return  # it runs
    assert max(Counter(span.span_id for span in spans).values()) == 1
    assert {pulse.hop for pulse in journal if pulse.kind == "spawned"} <= set(found)
    for span in spans:
        assert span.start_ns <= span.end_ns
        assert bool(span.parent_id) == (span.span_id != ROOT)
        if span.parent_id:
            above = found[span.parent_id]
            assert above.start_ns <= span.start_ns and span.end_ns <= above.end_ns
    holding = {span.parent_id for span in spans}  # containers and functions around steps, which are as long as those
    hops = {pulse.hop for pulse in journal if pulse.step} - holding
    path = [section.id for section in drawn(bars(spans), ROOT) if section.id in hops]
    assert path == [hop for hop in said(journal) if hop in hops]


def check_takeover(journal: list[Pulse], at: int) -> None:
    """Who is told the journal of before a takeover tells of the rest as who has seen it all."""
    is_halted = False
    for pulse in journal[:at]:
        if pulse.kind in ("halted", "resumed") and not pulse.step and "owner" not in (pulse.data or {}):
            is_halted = pulse.kind == "halted"
    if is_halted:
        return  # of which the other has told, and what follows has a span below the first
    one, other = SpanAssembler(), SpanAssembler()
    one.feed(journal[:at])
    other.recall(journal[:at])
    assert [*one.feed(journal[at:]), *one.close()] == [*other.feed(journal[at:]), *other.close()]
