"""Fakes of the `Ids` and `Sink` ports."""

from __future__ import annotations

from collections.abc import Sequence

from bitactor.messages.pulse import Pulse


class SequentialIds:
    """The `Ids` port, predictable: 32 hex digits that count up from `first`, in order like the real ones."""

    def __init__(self, first: int = 1) -> None:
        self._next = first

    def transaction(self) -> str:
        """The next id, in order."""
        number, self._next = self._next, self._next + 1
        # The low half is what hop ids are made from; spread so that hops of neighbouring transactions look unlike.
        return f"{number:016x}{(number * 0x9E3779B97F4A7C15) & (2**64 - 1):016x}"


class RecordingSink:
    """The `Sink` port: keeps every pulse it is told, in order.

    Args:
        raises: raise this from every `receive`, to see that nothing else is harmed.
    """

    def __init__(self, *, raises: BaseException | None = None) -> None:
        self.pulses: list[Pulse] = []
        self.batches = 0
        self.closed = False
        self._raises = raises

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """Keep the pulses, and count the call in `batches`; with `raises`, raise that instead."""
        if self._raises is not None:
            raise self._raises
        self.batches += 1
        self.pulses.extend(pulses)

    def close(self, timeout: float) -> None:
        """Set `closed`."""
        self.closed = True

    def kinds(self, transaction: str | None = None) -> list[str]:
        """The kinds of the pulses so far, of one transaction or of all."""
        return [pulse.kind for pulse in self.pulses if transaction is None or pulse.transaction == transaction]
