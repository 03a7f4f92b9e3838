"""What a node does for those of its sinks that send spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitactor.messages.pulse import Pulse
from bitactor.ports import Sink
from mesh.sinks.otel.own_spans import Take, collect
from mesh.sinks.otel.record import SpanRecord
from mesh.sinks.otel.sink import OtelSink


class SpanSinks:
    """The sinks of a node that send spans; users' own spans go to the first of them."""

    def __init__(self, sinks: Sequence[Sink], node: str) -> None:
        self._sinks = [sink for sink in sinks if isinstance(sink, OtelSink)]
        self._stop: Callable[[], None] | None = None
        for sink in self._sinks:
            sink.serve(node)

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._sinks)

    @property
    def recalls(self) -> list[Callable[[Sequence[Pulse]], None]]:
        """Who is to be told of the journal of a transaction that is taken over."""
        return [sink.recall for sink in self._sinks]

    def collect(self) -> Take | None:
        """Begin to collect the spans that users make; returns who takes them.  None: nobody here, or a tracer provider
        that the user has set."""
        if self._sinks:
            self._stop = collect(self._sinks[0].take)
        return self._sinks[0].take if self._stop is not None else None

    def take_all(self, spans: Sequence[SpanRecord]) -> None:
        """Take spans that were made in a worker process."""
        for span in spans:
            self._sinks[0].take(span)

    def close(self) -> None:
        """Collect no more.  Twice is once."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
