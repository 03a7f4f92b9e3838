"""The context of a running step: what the step may ask about its own hop, and emit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bitactor.errors import BitActorError
from bitactor.messages.codec import encode_token
from bitactor.messages.ids import idempotency_key
from bitactor.messages.signal import FORWARD, Signal
from bitactor.messages.values import exact_text, shown


class Context:
    """A hop's view of itself.  Made afresh for each attempt; of no use once the hop has ended."""

    __slots__ = (
        "_beat",
        "_emits",
        "_monotonic_ns",
        "deadline_ns",
        "resources",
        "retries_left",
        "signal",
        "spawn",
        "workflow",
    )

    def __init__(
        self,
        signal: Signal,
        workflow: str,
        spawn: str,
        deadline_ns: int | None,
        monotonic_ns: Callable[[], int],
        resources: Any = None,
        beat: Callable[[Any], None] | None = None,
    ) -> None:
        self.resources = resources
        """The resources of the step's workflow: `await ctx.resources.get("name")`."""
        self._beat = beat
        self.signal = signal
        self.workflow = workflow
        self.spawn = spawn
        self.deadline_ns = deadline_ns
        self._monotonic_ns = monotonic_ns
        self._emits: list[tuple[str, Any]] | None = None
        self.retries_left = signal.retries_left

    @property
    def transaction(self) -> str:
        """The transaction's id, 32 hex digits."""
        return self.signal.transaction

    @property
    def root(self) -> str:
        """The root transaction's id, which is the trace id."""
        return self.signal.root

    @property
    def hop(self) -> str:
        """This attempt's id, which is its span id."""
        return self.signal.hop

    @property
    def causes(self) -> tuple[str, ...]:
        """Ids of the hops that this one follows from."""
        return self.signal.causes

    @property
    def step(self) -> str:
        """The step's path within the workflow."""
        return self.signal.path or self.signal.name.removeprefix(f"{self.workflow}/")

    @property
    def attempt(self) -> int:
        """Number of this attempt; 1 for the first."""
        return self.signal.attempt

    @property
    def ttl(self) -> int:
        """Number of hops that may still follow."""
        return self.signal.ttl

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata that the caller attached to the stimulus."""
        return dict(self.signal.metadata or ())  # the signal's own is the whole transaction's

    @property
    def in_doubt(self) -> bool:
        """True: this is an undo, and nobody knows whether the step happened."""
        return self.signal.in_doubt

    @property
    def deadline_left(self) -> float | None:
        """Seconds until this attempt is stopped; None if nothing stops it."""
        if self.deadline_ns is None:
            return None
        return max(0.0, (self.deadline_ns - self._monotonic_ns()) / 1e9)

    @property
    def idempotency_key(self) -> str:
        """A key that is the same over all attempts and deliveries of this step in this direction; give it to whoever
        should act once."""
        return idempotency_key(self.signal.transaction, self.step, self.signal.direction)

    @property
    def forward_key(self) -> str:
        """The idempotency key of the step's forward run, by which an undo finds what that did."""
        return idempotency_key(self.signal.transaction, self.step, FORWARD)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records have workflow, step and transaction."""
        extra = {"workflow": self.workflow, "step": self.step, "transaction": self.transaction, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger(f"bitactor.step.{self.workflow}.{self.step}"), extra)

    def heartbeat(self, data: Any = None) -> None:
        """Say that the work goes on: the step's timeout counts from now again.  The transaction's deadline stays.

        Args:
            data: how far it is, for `transaction.progress()`; not kept.

        Raises:
            BitActorError: the hop runs in a worker process or on another node, where its time is not kept.
        """
        if self._beat is not None:
            self._beat(data)

    async def emit(self, name: str, value: Any = None) -> None:
        """Send a signal once this hop has committed; it inherits what is left of the TTL.

        Nothing is sent if the hop fails.  In a `def` step use `emit_later`, which is the same without `await`.
        """
        self.emit_later(name, value)

    def emit_later(self, name: str, value: Any = None) -> None:
        """As `emit`, without `await`."""
        name = exact_text(name) if issubclass(type(name), str) else name
        if type(name) is not str or not name or not name.isprintable() or len(name) > 200:
            raise BitActorError(
                f"emit({shown(name)}) in {self._place()}: a signal's name is a string of 1 to 200 printable characters"
            )
        try:
            token = encode_token(value)
        except BitActorError as error:
            raise type(error)(f"the signal {name!r} that {self._place()} emits: {error}") from error
        if self._emits is None:
            self._emits = []
        self._emits.append((name, token))

    def _place(self) -> str:
        undo = "" if self.signal.direction == FORWARD else "undo of "
        return f"{undo}{f'{self.workflow}/{self.step}'!r}, attempt {self.attempt},"

    def adopt(self, emitted: Iterable[tuple[str, Any]]) -> None:
        """Emit these too, as (name, token): the emissions of other runs within the same attempt, which had contexts of
        their own."""
        self._emits = [*self.emitted(), *emitted]

    def emitted(self) -> tuple[tuple[str, Any], ...]:
        """The signals emitted so far, in order, as (name, token)."""
        return tuple(self._emits) if self._emits else ()
