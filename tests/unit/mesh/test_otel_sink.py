"""Spans from pulses: the assembler alone, their encoding, and how the sink behaves towards collectors of all
tempers."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import attach, detach
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bitactor.errors import ConfigurationError
from bitactor.messages import pulse as kinds
from bitactor.messages.ids import hop_id, transaction_span_id
from bitactor.messages.pulse import Pulse
from mesh.sinks import OtelSink, hop_context
from mesh.sinks.buffer import PulseBuffer
from mesh.sinks.otel.context import parse_traceparent
from mesh.sinks.otel.otlp import SpanEncoder, collector_settings
from mesh.sinks.otel.record import CONSUMER, INTERNAL, MAX_EVENTS, MAX_LINKS, PRODUCER, STEP_NS, SpanRecord
from mesh.sinks.otel.spans import SpanAssembler
from tests.amounts import examples
from tests.otlp_receiver import OtlpReceiver, wait_until
from tests.pulse_log import BORN_NS, MS, PulseLog, chain, eventful


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "HEADERS", "PROTOCOL", "COMPRESSION"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def spans(*logs: list[Pulse]) -> list[SpanRecord]:
    return SpanAssembler().feed(pulse for log in logs for pulse in log)


def by_name(records: list[SpanRecord]) -> dict[str, SpanRecord]:
    return {record.name: record for record in records}


# The shape of spans


def test_a_chain_is_a_transaction_and_its_hops() -> None:
    pulses = chain(steps=3)
    *hops, transaction = spans(pulses)
    assert [hop.name for hop in hops] == [f"users.signup/step{index}" for index in range(3)]
    assert transaction.name == "users.signup"
    assert transaction.trace_id == pulses[0].transaction
    assert transaction.span_id == transaction_span_id(pulses[0].transaction)
    assert transaction.parent_id == ""
    assert (transaction.start_ns, transaction.end_ns) == (pulses[0].at_ns, pulses[-1].at_ns)
    assert {hop.parent_id for hop in hops} == {transaction.span_id}
    assert [hop.links for hop in hops] == [
        (),
        ((hops[0].trace_id, hops[0].span_id),),
        ((hops[1].trace_id, hops[1].span_id),),
    ]
    starts = [pulses[0].at_ns, pulses[2].at_ns, pulses[4].at_ns]  # a step begins when what it waits for has ended
    assert [(hop.start_ns, hop.end_ns) for hop in hops] == [
        (start, pulses[place].at_ns - STEP_NS) for start, place in zip(starts, (2, 4, 6), strict=True)
    ]
    assert not any(record.failed or record.description for record in (*hops, transaction))
    assert {record.kind for record in (*hops, transaction)} == {INTERNAL}
    assert transaction.attributes == {
        "bitactor.workflow": "users.signup",
        "bitactor.transaction": pulses[0].transaction,
        "workflow.name": "users.signup",
        "workflow.id": pulses[0].transaction,
        "bitactor.ttl": 8,
        "bitactor.status": "completed",
    }
    assert hops[1].attributes == {
        "bitactor.workflow": "users.signup",
        "bitactor.step": "step1",
        "bitactor.hop": hops[1].span_id,
        "bitactor.transaction": pulses[0].transaction,
        "bitactor.ttl": 6,
        "bitactor.attempt": 1,
        "bitactor.spawn": "loop",
        "bitactor.direction": "forward",
        "workflow.name": "users.signup",
        "workflow.id": pulses[0].transaction,
        "bitactor.elapsed_ns": 10 * MS,
        "bitactor.outcome": "completed",
    }


def test_every_attempt_and_undo_is_a_span_of_its_own() -> None:
    records = spans(eventful().pulses)
    told = [(r.name, r.attributes.get("bitactor.outcome"), r.failed, r.attributes.get("error.type")) for r in records]
    assert told == [
        ("users.signup/normalise", "completed", False, None),
        ("users.signup/create_user", "retried", True, "Busy"),
        ("backoff users.signup/create_user", None, False, None),
        ("users.signup/create_user", "completed", False, None),
        ("undo users.signup/create_user", "undone", False, None),
        ("users.signup/charge", "timed_out", True, "StepTimeout"),
        ("tombstone users.signup/deep", "tombstone", True, "ttl_expired"),
        ("users.signup", None, True, "StepTimeout"),
    ]
    assert len({record.span_id for record in records}) == len(records)


def test_events_are_on_the_hop_while_it_is_open_else_on_the_transaction() -> None:
    records = spans(eventful().pulses)
    charge, transaction = by_name(records)["users.signup/charge"], records[-1]
    assert [event.name for event in transaction.events] == ["skipped", "emitted"]
    assert [event.name for event in records[3].events] == ["redelivered"]
    assert records[3].attributes["bitactor.delivery"] == 2
    assert [event.name for event in charge.events] == ["late", "exception"]
    skipped, emitted = transaction.events
    buried = by_name(records)["tombstone users.signup/deep"]
    (tombstone,) = buried.events
    assert skipped.attributes["bitactor.step"] == "welcome_back"
    assert emitted.attributes["messaging.destination.name"] == "user.created"
    assert emitted.attributes["messaging.operation.type"] == "send"
    assert tombstone.attributes["bitactor.tombstone.reason"] == "ttl_expired"
    assert tombstone.attributes["bitactor.tombstone.chain"] == "normalise → charge"
    assert buried.description == "ttl_expired: normalise → charge"


def test_a_failure_has_the_exception_and_its_type() -> None:
    log = PulseLog()
    log.fail(log.spawn("charge"), "Declined: no money")
    hop, transaction = spans(log.finish("compensated", "Declined: no money"))
    (event,) = hop.events
    assert (hop.failed, hop.description, hop.attributes["error.type"]) == (True, "Declined: no money", "Declined")
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "app.errors.Declined"
    assert event.attributes["exception.message"] == "no money"
    assert "Declined: no money" in event.attributes["exception.stacktrace"]
    assert (transaction.failed, transaction.attributes["error.type"]) == (True, "Declined")


@pytest.mark.parametrize(
    ("status", "error", "failed"),
    [
        ("completed", None, False),
        ("completed", "Busy: an optional step failed", False),
        ("cancelled", "Cancelled: on request", False),
        ("compensated", "Busy: x", True),
        ("stuck", "UndoFailed: y", True),
        ("stuck", None, True),
    ],
)
def test_status_is_error_only_when_something_failed(status: str, error: str | None, failed: bool) -> None:
    (transaction,) = spans(PulseLog().finish(status, error))
    assert transaction.failed is failed
    assert transaction.attributes["bitactor.status"] == status
    assert ("error.type" in transaction.attributes) is failed


def test_a_compensated_hop_did_not_fail() -> None:
    log = PulseLog()
    log.outcome(kinds.COMPENSATED, log.spawn("a"))
    hop, _ = spans(log.finish())
    assert (hop.failed, hop.attributes["bitactor.outcome"]) == (False, "compensated")


def test_a_timed_out_hop_that_is_retried_ends_when_it_timed_out() -> None:
    log = PulseLog()
    hop = log.spawn("a")
    timeout = log.outcome(kinds.TIMED_OUT, hop, error="StepTimeout: 1 s")
    log.outcome(kinds.RETRIED, hop, data={"after_ns": 5})
    (record,) = spans(log.pulses)
    assert record.end_ns == timeout.at_ns - STEP_NS
    assert (record.attributes["bitactor.outcome"], record.attributes["error.type"]) == ("retried", "StepTimeout")


def test_open_hops_end_with_their_transaction() -> None:
    log = PulseLog()
    log.spawn("lost")
    dead = log.spawn("dead")
    log.add(kinds.TOMBSTONE, "dead", hop=dead, error="poison")
    found = by_name(spans(log.finish("compensated")))
    lost, poisoned = found["users.signup/lost"], found["users.signup/dead"]
    assert (lost.failed, lost.attributes["bitactor.outcome"], lost.end_ns) == (False, "unknown", log.now - STEP_NS)
    assert (poisoned.failed, poisoned.attributes["error.type"]) == (True, "poison")
    assert found["users.signup"].attributes["error.type"] == "poison"


def test_a_child_transaction_hangs_below_the_hop_that_emitted_it() -> None:
    parent = PulseLog(1)
    hop = parent.spawn("welcome")
    parent.complete(hop)
    sent = {"parent": parent.id, "parent_hop": hop, "key": f"{hop}:0>mailers"}
    child = chain(2, 2, workflow="greet@user.created", root=parent.id, **sent)
    found = by_name(spans(parent.finish(), child))
    greet = found["greet@user.created"]
    assert greet.trace_id == parent.id
    assert greet.parent_id == found["users.signup/welcome"].span_id
    assert greet.kind == CONSUMER
    assert greet.attributes["messaging.system"] == "bitactor"
    assert greet.attributes["messaging.operation.type"] == "process"
    assert greet.attributes["messaging.destination.name"] == "user.created"
    assert greet.attributes["messaging.message.id"] == f"{hop}:0"
    assert greet.attributes["messaging.consumer.group.name"] == "mailers"
    assert found["greet@user.created/step0"].parent_id == greet.span_id


def test_a_consumers_transaction_and_its_only_hop_are_one_span() -> None:
    sent = {"parent": "ab" * 16, "parent_hop": "cd" * 8, "key": f"{'cd' * 8}:0>mailers@@n1"}
    log = PulseLog(2, workflow="greet@user.created", root="ab" * 16, **sent)
    hop = log.spawn("greet")
    log.complete(hop, data={"emits": [["mail.sent", 1], ["mail.sent", 2]]})
    (record,) = spans(log.finish())
    assert (record.span_id, record.parent_id, record.name) == (hop, "cd" * 8, "greet@user.created")
    assert (record.kind, record.attributes["bitactor.status"]) == (CONSUMER, "completed")
    assert (record.attributes["bitactor.step"], record.attributes["bitactor.outcome"]) == ("greet", "completed")
    assert record.attributes["messaging.operation.type"] == "process"
    assert record.attributes["messaging.consumer.group.name"] == "mailers"
    assert record.end_ns == log.now


def test_a_consumer_that_is_tried_again_has_its_attempts_below_it() -> None:
    log = PulseLog(2, workflow="greet@user.created", parent="ab" * 16, parent_hop="cd" * 8)
    log.fail(log.spawn("greet"), kind=kinds.RETRIED)
    log.complete(log.spawn("greet", attempt=2, after=30))
    records = spans(log.finish())
    assert [record.name for record in records] == [
        "greet@user.created/greet", "backoff greet@user.created/greet", "greet@user.created/greet",
        "greet@user.created",
    ]  # fmt: skip
    assert {record.parent_id for record in records[:3]} == {records[3].span_id}
    assert records[1].end_ns - records[1].start_ns == 30 * MS - STEP_NS


def test_a_hop_that_emits_is_a_producer() -> None:
    log = PulseLog()
    log.complete(log.spawn("a"), data={"emits": [["user.created", 1]]})
    hop, _ = spans(log.finish())
    assert (hop.kind, hop.attributes["messaging.destination.name"]) == (PRODUCER, "user.created")


def test_a_hop_says_who_ran_it() -> None:
    log = PulseLog()
    for number, holder in enumerate((None, 4711, "n2", "n2/4712", "n2/x")):
        data = {} if holder is None else {"data": {"holder": holder}}
        log.complete(log.spawn(f"s{number}"), **data)
    records = SpanAssembler(holder="n1").feed(log.finish())
    assert [record.attributes.get("bitactor.holder") for record in records] == [
        "n1", "n1/4711", "n2", "n2/4712", "n2/x", None,
    ]  # fmt: skip
    assert [record.attributes.get("process.pid") for record in records] == [None, 4711, None, 4712, None, None]


def nested() -> PulseLog:
    """A container with two steps, the second of which fails before it begins, and an undo of the first."""
    log = PulseLog()
    box = log.spawn("box", data={"opening": [["", 0, []]]})
    first = log.spawn("box/first", box)
    log.complete(first)
    log.add(kinds.FAILED, "box", hop=box, elapsed_ns=9, error="Oh: no", data={"ended_by": "box/second"}, after=5)
    second = hop_id(log.id, "box/second")
    log.add(kinds.FAILED, "box/second", hop=second, causes=(first,), error="Oh: no", after=0)
    log.outcome(kinds.UNDONE, log.spawn("box/first", first, direction="undo"))
    log.finish("compensated", "Oh: no")
    return log


def test_the_steps_of_a_container_are_below_it_and_an_undo_below_the_transaction() -> None:
    records = spans(nested().pulses)
    found = {record.name: record for record in records}
    assert len(found) == len(records) == 5
    box, whole = found["users.signup/box"], found["users.signup"]
    assert found["users.signup/box/first"].parent_id == found["users.signup/box/second"].parent_id == box.span_id
    assert box.parent_id == found["undo users.signup/box/first"].parent_id == whole.span_id
    assert box.end_ns == found["users.signup/box/second"].end_ns < found["undo users.signup/box/first"].start_ns


def test_a_span_links_to_what_caused_it_but_not_to_its_parent() -> None:
    found = {record.name: record.links for record in spans(nested().pulses)}
    first = hop_id(PulseLog().id, "box/first")
    assert found["users.signup/box"] == found["users.signup/box/first"] == ()
    assert [link for _, link in found["users.signup/box/second"]] == [first]
    assert [link for _, link in found["undo users.signup/box/first"]] == [first]


def test_a_container_ends_no_earlier_than_what_is_in_it() -> None:
    log = PulseLog()
    box = log.spawn("box", data={"opening": [["1", 0, []], ["2", 0, []]]})
    slow, bad = log.spawn("box/1/slow", box), log.spawn("box/2/bad", box)
    log.add(kinds.FAILED, "box", hop=box, elapsed_ns=9, error="Oh: no", data={"ended_by": "box/2/bad"})
    log.fail(bad, after=0)
    log.fail(slow, "Cancelled: stopped")
    found = by_name(spans(log.finish("compensated", "Oh: no")))
    assert found["users.signup/box"].end_ns == found["users.signup/box/1/slow"].end_ns
    assert found["users.signup/box"].attributes["error.type"] == "Oh"


def test_the_steps_around_which_a_function_is_are_below_the_function() -> None:
    log = PulseLog()
    box = log.spawn("box", data={"opening": [["around", 0, []]]})
    around = log.spawn("box/around", box)
    log.spawn("box", data={"opening": [["", 1, []]]})
    inner = log.spawn("box/inner", box)
    log.complete(inner)
    log.complete(around)
    log.complete(box)
    records = spans(log.finish())
    assert [(record.name, record.parent_id) for record in records[:3]] == [
        ("users.signup/box/inner", around), ("users.signup/box/around", box), ("users.signup/box", log.span),
    ]  # fmt: skip
    assert not any(record.events for record in records), "to open another scope is no redelivery"


def test_times_never_go_back_whatever_the_clocks_say() -> None:
    log = PulseLog()
    before = log.spawn("a")
    log.complete(before)
    log.now -= 3_600_000 * MS
    behind = log.spawn("b", before)
    first = log.complete(behind, after=10)
    log.complete(log.spawn("c", behind), after=20)
    a, b, c, whole = spans(log.finish())
    assert first.at_ns < a.start_ns < a.end_ns < b.start_ns < b.end_ns < c.start_ns < c.end_ns < whole.end_ns
    assert b.end_ns - b.start_ns >= 10 * MS - STEP_NS and c.end_ns - c.start_ns >= 20 * MS - STEP_NS


def test_what_ends_in_the_same_moment_ends_a_microsecond_apart() -> None:
    log = PulseLog()
    hops = [log.spawn(f"s{number}", after=0) for number in range(3)]
    for hop in hops:
        log.complete(hop, after=0)
    log.complete(log.spawn("last", *hops, after=0), after=0)
    *records, whole = spans(log.finish(after=0))
    ends = [record.end_ns // STEP_NS for record in records]
    assert ends == sorted(set(ends))
    assert records[2].end_ns // STEP_NS < records[3].start_ns // STEP_NS
    assert all(record.start_ns < record.end_ns <= whole.end_ns for record in records)


def test_a_transaction_taken_over_goes_on_with_the_same_spans() -> None:
    log = PulseLog(2, parent="ab" * 16, parent_hop="cd" * 8)
    box = log.spawn("box", data={"opening": [["", 0, []]]})
    log.complete(log.spawn("box/a", box))
    lost = log.spawn("box/b", box)
    seen = len(log.pulses)
    log.add(kinds.RESUMED, data={"owner": "n2", "epoch": 2})
    log.add(kinds.SPAWNED, "box/b", hop=lost, data={"delivery": 2, "lost": "n1"})
    log.complete(lost)
    log.complete(box)
    log.finish()
    assembler = SpanAssembler()
    assembler.recall(log.pulses[:seen])
    records = assembler.feed(log.pulses[seen:])
    assert [(record.name, record.parent_id) for record in records] == [
        ("users.signup/box/b", box), ("users.signup/box", log.span), ("users.signup", "cd" * 8),
    ]  # fmt: skip
    assert records[0].attributes["bitactor.delivery"] == 2
    assert records[0].start_ns == log.spawned_at[lost].at_ns


def test_a_root_links_to_the_trace_that_called_it() -> None:
    header = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    (transaction,) = spans(PulseLog(traceparent=header).finish())
    assert transaction.parent_id == ""
    assert transaction.links == (("ab" * 16, "cd" * 8),)


@pytest.mark.parametrize(
    "header",
    [None, 5, "", "00-xyz", "00-" + "0" * 32 + "-" + "cd" * 8 + "-01", "00-" + "ab" * 16 + "-" + "0" * 16 + "-01",
     "ff-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "00-" + "AB" * 16 + "-" + "cd" * 8 + "-01"],
)  # fmt: skip
def test_a_malformed_traceparent_does_not_matter(header: Any) -> None:
    assert parse_traceparent(header) is None
    assert spans(PulseLog(traceparent=header).finish())[0].links == ()


# Edges of the assembler


def test_events_and_links_are_bounded_and_counted() -> None:
    log = PulseLog()
    causes = tuple(hop_id(log.id, f"s{index}") for index in range(MAX_LINKS + 10))
    log.complete(log.spawn("collect", *causes))
    for index in range(MAX_EVENTS + 5):
        log.add(kinds.SKIPPED, f"s{index}", hop=causes[0])
    hop, transaction = spans(log.finish())
    assert (len(hop.links), hop.dropped_links) == (MAX_LINKS, 10)
    assert (len(transaction.events), transaction.dropped_events) == (MAX_EVENTS, 5)


def test_pulses_told_twice_make_no_second_span() -> None:
    assembler = SpanAssembler()
    pulses = chain()
    first = assembler.feed([pulse for pulse in pulses for _ in range(2)])
    assert len(first) == 4
    assert assembler.feed(pulses) == []
    assert assembler.repeated == 2 * len(pulses)


def test_a_transaction_recovered_elsewhere_is_adopted() -> None:
    pulses = chain(steps=2, start_ms=500)
    assembler = SpanAssembler()
    hop0, hop1, transaction = assembler.feed(pulses[2:])
    assert transaction.start_ns == BORN_NS
    assert transaction.span_id == transaction_span_id(pulses[0].transaction)
    assert (hop0.start_ns, hop0.end_ns) == (pulses[1].at_ns, pulses[2].at_ns - STEP_NS)
    assert hop1.attributes["bitactor.step"] == "step1"
    assert assembler.adopted == 1


def test_a_gap_loses_only_what_was_in_it() -> None:
    pulses = chain(steps=2)
    names = [record.name for record in spans([pulses[0], *pulses[2:]])]
    assert names == ["users.signup/step0", "users.signup/step1", "users.signup"]


def test_the_oldest_open_transaction_makes_room() -> None:
    assembler = SpanAssembler(max_transactions=2)
    logs = [chain(number, 1) for number in range(3)]
    assert assembler.feed(log[0] for log in logs) == []
    assert (len(assembler), assembler.adopted, assembler.evicted) == (2, 0, 1)
    rest = assembler.feed(pulse for log in logs for pulse in log[1:])
    assert sorted(record.name for record in rest) == ["users.signup"] * 3 + ["users.signup/step0"] * 3
    assert len(assembler) == 0


def test_after_the_end_late_and_tombstones_are_moments_and_emitted_is_left_out() -> None:
    log = PulseLog()
    hop = log.spawn("a")
    log.complete(hop)
    log.finish()
    log.add(kinds.EMITTED, "a", hop=hop, data={"name": "x"})
    late = log.add(kinds.LATE, "a", hop=hop)
    log.add(kinds.TOMBSTONE, "a", hop=hop, error="unroutable")
    moments = spans(log.pulses)[2:]
    assert [(moment.name, moment.failed) for moment in moments] == [
        ("late users.signup/a", False), ("tombstone users.signup/a", True),
    ]  # fmt: skip
    assert moments[0].start_ns == moments[0].end_ns == late.at_ns
    assert moments[0].parent_id == log.span
    assert moments[1].attributes["error.type"] == "unroutable"
    assert len({moment.span_id for moment in moments} | {log.span, hop}) == 4


def test_an_undo_on_request_gets_a_span_below_the_first() -> None:
    log = PulseLog()
    log.complete(log.spawn("a"))
    log.finish()
    log.outcome(kinds.UNDONE, log.spawn("a", direction="undo"))
    log.finish("compensated")
    *_, undo, resumed = spans(log.pulses)
    assert undo.parent_id == resumed.parent_id == log.span
    assert (resumed.name, resumed.failed, resumed.attributes["bitactor.status"]) == (
        "resume users.signup",
        False,
        "compensated",
    )
    assert resumed.span_id != log.span


def test_a_halted_transaction_stays_open_until_it_ends_or_the_sink_does() -> None:
    log = PulseLog()
    log.complete(log.spawn("a"))
    halted = log.add(kinds.HALTED, error="Halt: wait")
    assembler = SpanAssembler()
    assert len(assembler.feed(log.pulses)) == 1
    (record,) = assembler.close()
    assert (record.end_ns, record.attributes["bitactor.status"], record.failed) == (halted.at_ns, "halted", False)
    log.add(kinds.RESUMED)
    log.complete(log.spawn("b"))
    log.finish()
    *_, transaction = spans(log.pulses)
    assert [event.name for event in transaction.events] == ["halted", "resumed"]


def test_a_takeover_goes_on_with_the_same_span() -> None:
    log = PulseLog()
    log.complete(log.spawn("a"))
    seen = len(log.pulses)
    log.add(kinds.RESUMED, data={"owner": "node-b", "epoch": 2})
    log.complete(log.spawn("b"))
    log.finish()
    _, transaction = spans(log.pulses[seen:])
    assert (transaction.span_id, transaction.name, transaction.start_ns) == (log.span, "users.signup", BORN_NS)
    assert [event.name for event in transaction.events] == ["resumed"]


def test_a_resumption_elsewhere_is_a_span_below_the_halted_one() -> None:
    log = PulseLog()
    log.outcome(kinds.HALTED, log.spawn("ask"), data={"reason": "a person"})
    log.add(kinds.HALTED, data={"status": "halted"})
    seen = len(log.pulses)
    first = SpanAssembler()
    assert [record.attributes["bitactor.outcome"] for record in first.feed(log.pulses)] == ["halted"]
    assert [record.span_id for record in first.close()] == [log.span]
    log.add(kinds.RESUMED, data={"owner": "node-b", "epoch": 2})
    log.add(kinds.RESUMED, data={"deadline_ns": None})
    log.complete(log.spawn("b"))
    log.finish()
    hop, transaction = spans(log.pulses[seen:])
    assert (transaction.name, transaction.parent_id, hop.parent_id) == ("resume users.signup", log.span, log.span)


@pytest.mark.parametrize("known", [True, False])
def test_what_is_taken_over_and_halts_here_goes_on_with_the_same_span(known: bool) -> None:
    log = PulseLog()
    log.complete(log.spawn("a"))
    seen = len(log.pulses)
    log.add(kinds.RESUMED, data={"owner": "node-b", "epoch": 2})
    log.outcome(kinds.HALTED, log.spawn("ask"), data={"reason": "a person"})
    log.add(kinds.HALTED, data={"status": "halted"})
    log.add(kinds.RESUMED, data={"deadline_ns": None})
    log.finish()
    assembler = SpanAssembler()
    assembler.recall(log.pulses[:seen] if known else [])
    ask, transaction = assembler.feed(log.pulses[seen:])
    assert (ask.attributes["bitactor.outcome"], ask.parent_id) == ("halted", log.span)
    assert (transaction.name, transaction.span_id) == ("users.signup", log.span)


def test_a_halt_of_which_another_process_told_is_not_told_again() -> None:
    log = PulseLog()
    log.spawn("box", data={"opening": [["", 0, []]]})
    log.add(kinds.HALTED, data={"status": "halted"})
    assembler = SpanAssembler()
    assembler.recall(log.pulses)
    assert assembler.feed([log.add(kinds.RESUMED, data={"owner": "node-b", "epoch": 2})]) == []
    assert assembler.close() == []


def test_what_concerns_the_whole_transaction_is_no_hop() -> None:
    log = PulseLog()
    log.complete(log.spawn("a"))
    log.add(kinds.TOMBSTONE, error="deadline_exceeded")
    log.add(kinds.FAILED, error="DeadlineExceeded: too late")
    log.finish("compensated", "DeadlineExceeded: too late")
    for pulses in (log.pulses, log.pulses[1:]):
        hop, transaction = spans(pulses)
        assert (hop.name, transaction.span_id) == ("users.signup/a", log.span)
        assert [event.name for event in transaction.events] == ["tombstone", "failed"]


def test_a_compensation_after_a_timeout_is_told_on_the_same_span() -> None:
    log = PulseLog()
    hop = log.spawn("a")
    log.outcome(kinds.TIMED_OUT, hop, error="StepTimeout: 1 s")
    log.spawn("a", data={"assess": ["x:StepTimeout", "1 s"], "delivery": 2})
    log.outcome(kinds.COMPENSATED, hop)
    record, _ = spans(log.finish())
    assert [event.name for event in record.events] == ["compensating"]
    assert (record.failed, record.attributes["bitactor.outcome"]) == (False, "compensated")


@examples(quick=100, long=1_000)
@given(st.permutations(eventful().pulses), st.integers(1, 20))
def test_any_order_and_any_part_is_survived(pulses: list[Pulse], length: int) -> None:
    assembler = SpanAssembler(max_transactions=2)
    records = assembler.feed(pulses[:length]) + assembler.close()
    body, left_out = SpanEncoder({}, "test").encode(records)
    assert left_out == 0
    assert all(record.start_ns <= record.end_ns for record in records)
    ExportTraceServiceRequest.FromString(body)


# Encoding


def test_the_encoding_says_everything_and_keeps_types_apart() -> None:
    record = SpanRecord(
        "ab" * 16, "cd" * 8, "", "n", INTERNAL, 1, 2,
        {"a": 1, "b": True, "c": 1.0, "d": "x\ud800", "e": 1 << 70, "f": [1]}, dropped_events=3, dropped_links=4,
    )  # fmt: skip
    more = [
        record._replace(attributes={"a": True, "b": 1, "c": "1"}),
        record._replace(span_id="zz"),
        record._replace(start_ns=-1),
    ]
    body, left_out = SpanEncoder({"service.name": "s"}, "scope", "1.0").encode([record, *more])
    (group,) = ExportTraceServiceRequest.FromString(body).resource_spans
    first, second = group.scope_spans[0].spans
    kinds_of = [pair.value.WhichOneof("value") for pair in first.attributes]
    assert kinds_of == ["int_value", "bool_value", "double_value", "string_value", "string_value", "array_value"]
    assert [pair.value.WhichOneof("value") for pair in second.attributes] == ["bool_value", "int_value", "string_value"]
    assert (first.dropped_events_count, first.dropped_links_count, left_out) == (3, 4, 2)
    assert group.scope_spans[0].scope.version == "1.0"


# The sink and its collector


def test_what_cannot_be_sent_yet_is_tried_again(receiver: OtlpReceiver) -> None:
    with OtlpReceiver([503, 429, 502, 504]) as moody:
        sink = OtelSink(moody.endpoint, linger=0)
        sink.receive(chain())
        moody.wait_for_spans(4)
        sink.close(5)
        assert len(moody.requests) == 5
        assert moody.connections == 1
    assert sink.statistics()[:5] == (8, 0, 4, 4, 0)


@pytest.mark.parametrize(("status", "requests"), [(400, 1), (404, 1), (413, 1), (500, 5)])
def test_what_is_refused_is_given_up_and_the_next_batch_goes_through(status: int, requests: int) -> None:
    with OtlpReceiver([status] * requests) as receiver:
        sink = OtelSink(receiver.endpoint, linger=0)
        sink.receive(chain(1))
        assert wait_until(lambda: sink.statistics().lost == 4)
        sink.receive(chain(2))
        receiver.wait_for_spans(4)
        sink.close(5)
        assert len(receiver.requests) == requests + 1
    assert sink.statistics()[:5] == (16, 0, 8, 4, 4)


def test_rejected_spans_are_counted() -> None:
    with OtlpReceiver(reject=3) as receiver:
        sink = OtelSink(receiver.endpoint)
        sink.receive(chain())
        sink.close(5)
    assert (sink.statistics().exported, sink.statistics().lost) == (1, 3)


def test_a_slow_collector_loses_nothing_within_bounds(receiver: OtlpReceiver) -> None:
    receiver.gate.clear()
    sink = OtelSink(receiver.endpoint, linger=0)
    sink.receive(chain(0))
    receiver.wait_for_requests(1)
    for number in range(1, 5_001):
        sink.receive(chain(number))
    receiver.gate.set()
    got = receiver.wait_for_spans(5_001 * 4, timeout=60)
    sink.close(10)
    assert len({span.span_id for span in got}) == len(got) == 5_001 * 4
    assert sink.statistics()[:5] == (5_001 * 8, 0, 5_001 * 4, 5_001 * 4, 0)


def test_what_does_not_fit_is_dropped_and_counted(receiver: OtlpReceiver) -> None:
    receiver.gate.clear()
    sink = OtelSink(receiver.endpoint, linger=0, max_pulses=80)
    sink.receive(chain(0))
    receiver.wait_for_requests(1)
    for number in range(1, 21):
        sink.receive(chain(number))
    receiver.gate.set()
    sink.close(10)
    assert sink.statistics()[:2] == (88, 80)
    assert len(receiver.spans) == 11 * 4


def test_an_unreachable_collector_costs_little_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    sink = OtelSink("http://127.0.0.1:9", linger=0)
    start = time.thread_time()
    for number in range(1_000):
        sink.receive(chain(number))
    assert time.thread_time() - start < 1
    start = time.monotonic()
    sink.close(120)
    assert time.monotonic() - start < 60
    assert len([record for record in caplog.records if "tried again" in record.message]) <= 1
    assert sink.statistics().exported == 0


def test_a_collector_that_never_answers_cannot_hold_up_closing(receiver: OtlpReceiver) -> None:
    receiver.gate.clear()
    sink = OtelSink(receiver.endpoint, linger=0)
    sink.receive(chain())
    receiver.wait_for_requests(1)
    start = time.monotonic()
    sink.close(0.2)
    assert time.monotonic() - start < 30
    assert wait_until(lambda: sink.statistics().lost == 4)
    assert wait_until(lambda: "bitactor-otel" not in {thread.name for thread in threading.enumerate()})


def test_a_collector_that_comes_back_gets_everything(caplog: pytest.LogCaptureFixture) -> None:
    with OtlpReceiver(listening=False) as receiver:
        sink = OtelSink(receiver.endpoint, linger=0)
        sink.receive(chain(1))
        assert wait_until(lambda: "cannot be sent and are tried again" in caplog.text)
        receiver.listen()
        receiver.wait_for_spans(4)
        sink.close(5)


def test_a_connection_the_collector_closed_is_opened_again(receiver: OtlpReceiver) -> None:
    sink = OtelSink(receiver.endpoint, linger=0)
    sink.receive(chain(1))
    receiver.wait_for_spans(4)
    receiver.hang_up()
    sink.receive(chain(2))
    receiver.wait_for_spans(8)
    sink.close(5)
    assert receiver.connections == 2


def test_a_pulse_that_cannot_be_folded_costs_its_chunk_only(receiver: OtlpReceiver) -> None:
    sink = OtelSink(receiver.endpoint, linger=0)
    sink.receive([chain(1)[0]._replace(transaction=None)])  # type: ignore[arg-type]
    assert wait_until(lambda: sink.statistics().broken == 1)
    sink.receive(chain(2))
    receiver.wait_for_spans(4)
    sink.close(5)


# Exporters of the SDK


def test_an_sdk_exporter_gets_readable_spans() -> None:
    exporter = InMemorySpanExporter()
    sink = OtelSink(exporter=exporter, service_name="users", resource={"team": "a"})
    sink.receive(eventful().pulses)
    assert wait_until(lambda: len(exporter.get_finished_spans()) == 8)
    finished = {span.name: span for span in exporter.get_finished_spans()}
    sink.close(5)
    charge, transaction = finished["users.signup/charge"], finished["users.signup"]
    assert charge.parent is not None
    assert charge.parent.span_id == transaction.context.span_id
    assert (charge.status.status_code, transaction.kind) == (StatusCode.ERROR, SpanKind.INTERNAL)
    assert transaction.resource.attributes["service.name"] == "users"
    assert transaction.resource.attributes["team"] == "a"
    assert [event.name for event in charge.events] == ["late", "exception"]


class _Failing(SpanExporter):
    def __init__(self) -> None:
        self.calls = count(1)

    def export(self, spans: Any) -> SpanExportResult:
        if next(self.calls) == 1:
            raise OSError("no")
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        raise OSError("not even this")


def test_an_exporter_that_fails_loses_its_batch_and_nothing_else() -> None:
    sink = OtelSink(exporter=_Failing(), linger=0)
    for number in (1, 2):
        sink.receive(chain(number))
        assert wait_until(lambda: sink.statistics().lost == 4 * number)  # noqa: B023
    sink.close(5)
    assert sink.statistics().exported == 0


# Settings


def settings(environment: Mapping[str, str], endpoint: str | None = None) -> Any:
    return collector_settings(endpoint, environment={f"OTEL_EXPORTER_OTLP_{k}": v for k, v in environment.items()})


@pytest.mark.parametrize(
    ("endpoint", "environment", "url"),
    [
        (None, {}, "http://localhost:4318/v1/traces"),
        (None, {"ENDPOINT": "http://c:1/base/"}, "http://c:1/base/v1/traces"),
        (None, {"ENDPOINT": "http://c:1", "TRACES_ENDPOINT": "http://t:2/exactly"}, "http://t:2/exactly"),
        ("http://here:3", {"TRACES_ENDPOINT": "http://t:2/exactly"}, "http://here:3/v1/traces"),
        ("http://here:3/v1/traces", {}, "http://here:3/v1/traces"),
    ],
)
def test_where_spans_go(endpoint: str | None, environment: dict[str, str], url: str) -> None:
    assert settings(environment, endpoint).url == url


def test_headers_compression_and_certificates_come_from_the_environment() -> None:
    found = settings(
        {"HEADERS": "api-key=a%20b,x=1", "TRACES_HEADERS": "x=2", "COMPRESSION": "gzip", "ENDPOINT": "https://c"}
    )
    assert found.headers == {"api-key": "a b", "x": "2"}
    assert found.compress
    assert isinstance(found.tls, ssl.SSLContext)


@pytest.mark.parametrize(
    "environment",
    [
        {"PROTOCOL": "grpc"},
        {"TRACES_COMPRESSION": "zstd"},
        {"ENDPOINT": "localhost:4318"},
        {"ENDPOINT": "http://"},
        {"ENDPOINT": "http://c:port"},
        {"HEADERS": "x=a%0ab"},
    ],
)
def test_what_is_not_built_or_makes_no_sense_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        settings(environment)


def test_a_sdk_resource_can_be_given(receiver: OtlpReceiver) -> None:
    sink = OtelSink(exporter=InMemorySpanExporter(), resource=Resource({"service.name": "mine"}))
    sink.close(5)


# The buffer


def test_the_buffer_takes_what_fits() -> None:
    buffer: PulseBuffer[Pulse] = PulseBuffer(10)
    buffer.put(chain())
    buffer.put(chain())
    assert (buffer.accepted, buffer.dropped, buffer.waiting) == (10, 6, 10)
    assert len(buffer.take(1)) == 8
    buffer.put(chain()[:3])
    assert (buffer.accepted, len(buffer.take(100)), buffer.take(1)) == (13, 5, [])
    buffer.close()
    buffer.wait()
    buffer.put(chain())
    assert (buffer.dropped, buffer.waiting) == (14, 0)


# Spans a user makes


def test_a_users_span_inside_a_hop_is_the_hops_child() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    pulses = chain(steps=1)
    hop = pulses[1].hop
    token = attach(hop_context(pulses[0].root, hop))
    try:
        with provider.get_tracer("user").start_as_current_span("query"):
            pass
    finally:
        detach(token)
    with provider.get_tracer("user").start_as_current_span("outside"):
        pass
    inside, outside = exporter.get_finished_spans()
    provider.shutdown()
    assert inside.parent is not None
    assert f"{inside.parent.span_id:016x}" == hop == spans(pulses)[0].span_id
    assert f"{inside.context.trace_id:032x}" == pulses[0].root
    assert outside.parent is None


def test_times_and_durations_are_those_of_the_pulses() -> None:
    log = PulseLog()
    log.complete(log.spawn("a", after=5), after=7)
    hop, transaction = spans(log.finish(after=2))
    assert hop.start_ns == transaction.start_ns, "what comes before it is spawned is part of it"
    assert hop.end_ns - hop.start_ns == 12 * MS - STEP_NS
    assert transaction.end_ns - transaction.start_ns == 14 * MS
