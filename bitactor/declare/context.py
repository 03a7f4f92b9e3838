"""The context of a running step: what the step may ask about its own hop, and emit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from typing import Any

from typing_extensions import override

from bitactor.errors import BitActorError
from bitactor.messages.codec import encode_token
from bitactor.messages.ids import idempotency_key
from bitactor.messages.signal import FORWARD, Signal
from bitactor.messages.values import exact_text, shown


class Emitting(Coroutine[Any, Any, None]):
    """What `ctx.emit(…)` answers with: it emits once it is awaited, or runs as a task; its context knows it until then.

    An object and no coroutine of Python's, which would only warn of one that was not awaited, and that at random.
    """

    __slots__ = ("_context", "name", "value")

    def __init__(self, context: Context, name: str, value: Any) -> None:
        self.name = name
        self.value = value
        self._context: Context | None = context

    @override
    def __await__(self) -> Generator[Any, None, None]:
        self._emit()
        return iter(())  # type: ignore[return-value]  # it has ended

    @override
    def send(self, value: Any) -> None:
        self._emit()
        raise StopIteration

    @override
    def throw(self, *error: Any) -> Any:
        """Its task was cancelled before it began."""
        self._begin()
        return super().throw(*error)

    @override
    def close(self) -> None:
        """It is not wanted."""
        self._begin()

    def _emit(self) -> None:
        context = self._begin()
        if context is None:
            raise RuntimeError("cannot reuse already awaited coroutine")
        context.emit_later(self.name, self.value)

    def _begin(self) -> Context | None:
        context, self._context = self._context, None
        if context is not None and context.unawaited:
            if context.unawaited[-1] is self:
                context.unawaited.pop()
            else:
                context.unawaited.remove(self)
        return context


class Context:
    """A hop's view of itself.  Made afresh for each attempt; of no use once the hop has ended."""

    __slots__ = (
        "_beat",
        "_emits",
        "_ended",
        "_monotonic_ns",
        "deadline_ns",
        "resources",
        "retries_left",
        "signal",
        "spawn",
        "unawaited",
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
        """The signal that the step's actor got."""
        self.workflow = workflow
        """The workflow's name."""
        self.spawn = spawn
        """Where the step runs: `inline | loop | thread | process`."""
        self.deadline_ns = deadline_ns
        """The monotonic time, in nanoseconds, at which this attempt is stopped; None if nothing stops it."""
        self._monotonic_ns = monotonic_ns
        self._emits: list[tuple[str, Any]] | None = None
        self._ended = False
        self.unawaited: list[Emitting] | None = None
        """What `emit` was called for and nobody has awaited yet."""
        self.retries_left = signal.retries_left
        """How many retries are left after this attempt."""

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

    def emit(self, name: str, value: Any = None) -> Coroutine[Any, Any, None]:
        """Send a signal once this hop has committed; it inherits what is left of the TTL.  To be awaited: a step that
        returns and has left one unawaited has failed.

        Nothing is sent if the hop fails.  In a `def` step use `emit_later`, which is the same without `await`.
        """
        emitting = Emitting(self, name, value)
        if self.unawaited is None:
            self.unawaited = [emitting]
        else:
            self.unawaited.append(emitting)
        return emitting

    def emit_later(self, name: str, value: Any = None) -> None:
        """As `emit`, without `await`.

        Raises:
            BitActorError: the name is none, the value cannot be carried, or the hop has ended.
        """
        if self._ended:
            raise BitActorError(
                f"emit({shown(name)}): {self.signal.name!r} has ended, so nothing would be sent; await what emits (a "
                "task, for instance) before the step returns"
            )
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

    def end(self) -> tuple[tuple[str, Any], ...]:
        """Note that the function has ended, and can emit no more; the answer is what it has emitted."""
        self._ended = True
        return self.emitted()
