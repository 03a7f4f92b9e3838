"""Pulses of the saga: each is made here, and taken into the state at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bitactor.messages.codec import token_bytes
from bitactor.messages.ids import join_hop_id
from bitactor.messages.pulse import COMPLETED, FINISHED, SPAWNED, Pulse
from bitactor.messages.signal import FORWARD, UNDO, Fault, Reply
from bitactor.plan.plan import Plan
from bitactor.saga.commands import Command, Settle
from bitactor.saga.evolve import evolve
from bitactor.saga.state import SagaState

NO_STEPS: Final[set[int]] = set()

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the two pulses and one command of an ordinary hop."""


class Recorder(SagaState):
    """A saga state that makes its own pulses."""

    __slots__ = ("awaiting_redelivery", "being_evaluated", "commands", "pulses")

    def __init__(self, plan: Plan, transaction: str, **given: Any) -> None:
        super().__init__(plan, transaction, **given)
        self.pulses: list[Pulse] = []
        self.commands: list[Command] = []
        self.being_evaluated: set[int] = NO_STEPS
        """Steps whose evaluation was ordered and is not answered."""
        self.awaiting_redelivery: set[int] = NO_STEPS
        """Hops that were lost, and are delivered again only once the function around them proceeds."""

    def _finish(self, status: str, now_ns: int) -> None:
        error = self.errors[0][1] if status != COMPLETED and self.errors else None
        self._record(FINISHED, now_ns, error=error, data={"status": status}, elapsed_ns=now_ns - self.accepted_at_ns)
        self.commands.append(Settle(status))

    def _record(
        self,
        kind: str,
        now_ns: int,
        *,
        hop: str | None = None,
        error: Fault | None = None,
        reason: str | None = None,
        data: Mapping[str, Any] | None = None,
        token_out: Any = None,
        direction: str = FORWARD,
        elapsed_ns: int | None = None,
        ttl: int | None = None,
    ) -> None:
        """Make a pulse of the transaction itself."""
        if error is not None:
            data = {**(data or {}), "fault": list(error)}
            reason = error.summary()
        pulse = Pulse(
            self.transaction, self.root, self.plan.workflow, self.seq, hop or self.span_id, (), kind, "", "", direction,
            1, self.ttl if ttl is None else ttl, now_ns, elapsed_ns, None, token_out, reason, data, self.digest,
        )  # fmt: skip
        self.pulses.append(pulse)
        evolve(self, pulse)

    def _record_step(
        self,
        index: int,
        kind: str,
        now_ns: int,
        *,
        hop: str | None = None,
        elapsed_ns: int | None = None,
        token_out: Any = None,
        error: Fault | None = None,
        reason: str | None = None,
        direction: str = FORWARD,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a pulse of one step."""
        step = self.steps[index]
        if error is not None:
            data = {**(data or {}), "fault": list(error)}
            reason = error.summary()
        causes: tuple[str, ...] = ()
        ttl = self.ttls[index]
        if direction == UNDO:
            attempt, hop, causes = self._undo_identity(index, kind, data)
        else:
            attempt = self.attempts[index] or 1
            hop = hop or self.hops[index]
            if not hop:
                hop = join_hop_id(self.salt, step.code(FORWARD, attempt))
                causes = self.causes_of(step)
                ttl = self.ttl_of_causes(step)
            elif kind == SPAWNED:
                causes = self.causes[index]
        pulse: Pulse = _new(
            Pulse,
            (
                self.transaction, self.root, self.plan.workflow, self.seq, hop, causes, kind, step.name, step.spawn,
                direction, attempt, ttl, now_ns, elapsed_ns, None, token_out, reason, data, self.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        evolve(self, pulse)

    def _undo_identity(self, index: int, kind: str, data: Mapping[str, Any] | None) -> tuple[int, str, tuple[str, ...]]:
        """Attempt, hop id and causes of a pulse about an undo; a fresh spawn begins the next attempt."""
        attempt = self.undo_attempts[index]
        if kind == SPAWNED and not (data and "delivery" in data):
            attempt += 1
        hop = join_hop_id(self.salt, self.steps[index].code(UNDO, max(1, attempt)))
        return max(1, attempt), hop, (self.hops[index],) if kind == SPAWNED else ()


def emits_data(reply: Reply) -> dict[str, Any] | None:
    if not reply.emits:
        return None
    return {"emits": [[name, bytes(token_bytes(token))] for name, token in reply.emits]}


def jitter_fraction(hop: str) -> float:
    """Jitter in 0 … 1, derived from the hop id and not random, so that a replay waits as long."""
    return int(hop[:8], 16) / 0xFFFFFFFF
