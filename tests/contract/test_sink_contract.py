"""What every sink promises, run over each of them; a new sink is one more line in `SINKS`."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread, active_count
from threading import enumerate as threads

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bitactor.errors import ConfigurationError
from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from bitactor.ports import Sink
from mesh.sinks import JsonlSink, LiveSink, OtelSink, SinkRelay, open_sink
from mesh.sinks.jsonl import JsonlStatistics
from tests import extensions  # noqa: F401  (which adds a sink)
from tests.otlp_receiver import OtlpReceiver
from tests.pulse_log import PulseLog, chain, eventful

SINKS: dict[str, Callable[[Path, OtlpReceiver], Sink]] = {
    "otel": lambda path, receiver: OtelSink(receiver.endpoint, service_name="contract"),
    "otel-exporter": lambda path, receiver: OtelSink(exporter=InMemorySpanExporter(), service_name="contract"),
    "jsonl": lambda path, receiver: JsonlSink(path / "pulses.jsonl"),
    "live": lambda path, receiver: LiveSink(),
    "tally": lambda path, receiver: open_sink("tally://"),
    "otel-unreachable": lambda path, receiver: OtelSink("http://127.0.0.1:9"),
}


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(params=list(SINKS))
def sink(request: pytest.FixtureRequest, tmp_path: Path, receiver: OtlpReceiver) -> Iterator[Sink]:
    sink = SINKS[request.param](tmp_path, receiver)
    yield sink
    sink.close(5)


def test_takes_pulses_of_every_kind(sink: Sink) -> None:
    sink.receive(eventful().pulses)
    sink.receive([])
    sink.receive(tuple(chain(2)))


def test_never_blocks(sink: Sink) -> None:
    """50,000 pulses are handed over in far less time than it takes to tell them to anybody."""
    logs = [chain(number) for number in range(6_250)]
    start = time.monotonic()
    for log in logs:
        sink.receive(log)
    assert time.monotonic() - start < 1


def test_takes_what_makes_no_sense(sink: Sink) -> None:
    good = chain(3)
    sink.receive([pulse._replace(transaction="no hex at all", root="nor this", at_ns=-5) for pulse in good])
    sink.receive([good[3]._replace(data={"fault": 17, "delivery": "x"}, error="\ud800")])
    sink.receive([good[0]._replace(data={"traceparent": 5, "parent_hop": 7})])
    sink.receive(good)


def test_does_not_keep_the_callers_list(sink: Sink) -> None:
    pulses = chain(4)
    sink.receive(pulses)
    pulses.clear()


def test_close_is_bounded_and_twice_is_once(sink: Sink) -> None:
    sink.receive(eventful().pulses)
    start = time.monotonic()
    sink.close(5)
    sink.close(5)
    assert time.monotonic() - start < 8


def test_pulses_after_close_are_ignored(sink: Sink) -> None:
    sink.close(5)
    sink.receive(chain())


def test_close_leaves_no_thread(sink: Sink) -> None:
    sink.receive(chain())
    before = active_count()
    sink.close(5)
    assert active_count() <= before
    assert not [thread for thread in threads() if thread.name.startswith("bitactor-")]


class _Broken:
    """A sink that does everything wrong."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def receive(self, pulses: object) -> None:
        self.calls += 1
        raise self.error

    def close(self, timeout: float) -> None:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), RecursionError()])
def test_a_relay_disables_a_sink_that_raises_and_says_so_once(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    broken = _Broken(error)
    relay = SinkRelay(broken)
    for _ in range(3):
        relay.offer(chain(steps=1))
    assert broken.calls == 1
    assert relay.disabled
    assert relay.statistics()[:2] == (12, 12)
    assert type(error).__name__ in relay.statistics().error
    assert len(caplog.records) == 1
    relay.close(1)
    relay.close(1)


def test_a_relay_passes_on_and_counts() -> None:
    sink = LiveSink()
    subscription = sink.subscribe()
    relay = SinkRelay(sink)
    relay.offer(chain(steps=1))
    assert relay.statistics() == (4, 0, "")
    assert len(subscription.drain()) == 4
    relay.close(1)
    relay.offer(chain(steps=1))
    assert relay.statistics() == (8, 4, "")


def test_jsonl_writes_every_pulse_decoded(tmp_path: Path) -> None:
    log = PulseLog(key=b"\x00\xff")
    log.complete(log.spawn("make"), token_out=encode_token({"name": "Ada", "nan": float("nan"), "raw": b"abc"}))
    sink = open_sink(f"jsonl:///{tmp_path}/out.jsonl")
    sink.receive(log.finish())
    sink.close(5)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["accepted", "spawned", "completed", "finished"]
    assert list(rows[0]) == list(Pulse._fields)
    assert rows[0]["data"]["key"] == "AP8="
    assert rows[2]["token_out"] == {"name": "Ada", "nan": "nan", "raw": "YWJj"}


def test_jsonl_appends_and_counts(tmp_path: Path) -> None:
    for _ in range(2):
        sink = JsonlSink(tmp_path / "out.jsonl")
        sink.receive(chain())
        sink.close(5)
        sink.receive(chain())
        assert sink.statistics() == JsonlStatistics(written=8, dropped=8, lost=0)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 16


def test_jsonl_to_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    sink = open_sink("jsonl://-")
    sink.receive(chain(steps=1))
    sink.close(5)
    assert len(out.getvalue().splitlines()) == 4


def test_jsonl_that_cannot_be_written_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = JsonlSink("/dev/full")
    sink.receive(chain())
    sink.close(5)
    assert sink.statistics().dropped == 0
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


async def test_live_hands_out_what_a_subscriber_asked_for() -> None:
    sink = LiveSink()
    everything, finished = sink.subscribe(), sink.subscribe(lambda pulse: pulse.kind == "finished")
    sink.receive(chain(1))
    sink.receive(chain(2))
    sink.close(0)
    assert len([pulse async for pulse in everything]) == 16
    assert [pulse.kind async for pulse in finished] == ["finished", "finished"]


async def test_live_wakes_a_waiting_reader_from_any_thread() -> None:
    sink = LiveSink()
    with sink.subscribe() as subscription:
        for number in range(3):
            thread = Thread(target=sink.receive, args=(chain(number, steps=0)[:1],))
            thread.start()
            assert (await anext(subscription)).kind == "accepted"
            thread.join()
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


def test_live_keeps_the_newest_for_a_slow_subscriber() -> None:
    sink = LiveSink()
    subscription = sink.subscribe(limit=3)
    sink.receive(chain())
    assert subscription.dropped == 5
    assert [pulse.seq for pulse in subscription.drain()] == [5, 6, 7]


def test_live_ends_only_the_subscription_whose_filter_raises() -> None:
    sink = LiveSink()
    bad, good = sink.subscribe(lambda pulse: 1 // 0 > 0), sink.subscribe()
    sink.receive(chain())
    sink.receive(chain(2))
    assert bad.drain() == []
    assert len(good.drain()) == 16


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("jaeger://here", "no sink is called 'jaeger'"),
        ("http://localhost:4318", "otel://localhost:4318"),
        ("jsonl://", "names no file"),
        ("jsonl://relative.jsonl", "names no file"),
        ("otel://here?servicename=x", "did you mean 'service_name'"),
        ("live://?x=1", "no option 'x'"),
        ("otel://user:password@here", "no password"),
        ("otel://here:0", "no collector's URL"),
        ("nothing", "no sink is called"),
    ],
)
def test_urls_that_name_no_sink_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        open_sink(url)
    assert said.lower() in str(refusal.value).lower()
