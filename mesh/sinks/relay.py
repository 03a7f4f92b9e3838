"""A relay between a node and a sink: whatever the sink does, the run goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from bitactor.messages.pulse import Pulse
from bitactor.messages.values import named_text
from bitactor.ports import Sink

_log = logging.getLogger("bitactor.sinks")


class RelayStatistics(NamedTuple):
    """What a relay has seen so far."""

    offered: int
    """Pulses given to `offer`."""
    lost: int
    """Pulses the sink did not take, because it raised on them or was disabled by then."""
    error: str
    """The error that disabled the sink, as `Name: message`; empty while the sink works."""


class SinkRelay:
    """Guards a run against one sink: a sink that raises is disabled for good, logged once, and what it misses is
    counted.

    The relay adds a call and two counters a batch.  It cannot stop a sink that blocks: that a `receive` does not is the
    port's promise.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._name = type(sink).__name__
        self._offered = 0
        self._lost = 0
        self._error = ""
        self._closed = False

    @property
    def disabled(self) -> bool:
        """Whether the sink raised once, or was closed."""
        return self._closed or bool(self._error)

    def offer(self, pulses: Sequence[Pulse]) -> None:
        """Tell the sink of `pulses`; called on the loop's thread, after the pulses are kept.  Never raises."""
        self._offered += len(pulses)
        if self._closed or self._error:
            self._lost += len(pulses)
            return
        try:
            self._sink.receive(pulses)
        except KeyboardInterrupt:
            raise
        except (
            BaseException
        ) as error:  # SystemExit or CancelledError from a sink would end the loop or a stranger's task
            self._lost += len(pulses)
            self._error = named_text(error)
            _log.exception("sink %s raised and is disabled; the run goes on without it", self._name)

    def statistics(self) -> RelayStatistics:
        """The relay's counts so far."""
        return RelayStatistics(self._offered, self._lost, self._error)

    def about(self) -> dict[str, Any]:
        """The sink's `name`, the relay's counters, and under `own` the sink's own statistics if it has any."""
        statistics = getattr(self._sink, "statistics", None)
        own: Any = statistics() if callable(statistics) else None
        counted = {"own": own._asdict()} if hasattr(own, "_asdict") else {}
        return {"name": self._name, **self.statistics()._asdict(), **counted}

    def close(self, timeout: float) -> None:
        """Close the sink, a disabled one too.  Never raises; twice is once.  Called off the loop's thread."""
        if self._closed:
            return
        self._closed = True
        try:
            self._sink.close(timeout)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._error = self._error or named_text(error)
            _log.exception("sink %s raised while closing", self._name)


class SinkRelays:
    """The relays of all sinks of a node."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._relays = [SinkRelay(sink) for sink in sinks]

    def __len__(self) -> int:
        return len(self._relays)

    def offer(self, pulses: Sequence[Pulse]) -> None:
        """Tell each sink of `pulses`."""
        for relay in self._relays:
            relay.offer(pulses)

    async def close(self, within: float) -> None:
        """Close all sinks at once, each within so many seconds."""
        await asyncio.gather(*(asyncio.to_thread(relay.close, within) for relay in self._relays))

    def about(self) -> list[dict[str, Any]]:
        """What each relay says."""
        return [relay.about() for relay in self._relays]
