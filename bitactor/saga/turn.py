"""A turn of the saga: what follows from one event.  Its pulses are made here, and taken into the state at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitactor.messages.codec import token_bytes
from bitactor.messages.ids import join_hop_id
from bitactor.messages.pulse import COMPLETED, FINISHED, SPAWNED, Pulse
from bitactor.messages.signal import FORWARD, UNDO, Fault, Reply
from bitactor.saga.commands import Command, Settle
from bitactor.saga.evolve import evolve
from bitactor.saga.phases import BACKING_OFF, UNDO_RUNNING, WAITING
from bitactor.saga.state import SagaState

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class."""


class Turn:
    """What follows from one event at wall time `now_ns`: pulses, which have changed the state already, and commands.

    A saga has one, which it gives a time and two fresh lists for each event.
    """

    __slots__ = ("commands", "held", "now_ns", "pulses", "state")

    now_ns: int
    pulses: list[Pulse]
    commands: list[Command]

    def __init__(self, state: SagaState) -> None:
        self.state = state
        self.held: tuple[str, str | int] | None = None
        """The hop that has replied, and who ran it if that was not the owner; None: no hop, or the owner."""

    def finish(self, status: str) -> None:
        """End the transaction."""
        state = self.state
        error = state.errors[0].fault if status != COMPLETED and state.errors else None
        self.record(FINISHED, error=error, data={"status": status}, elapsed_ns=self.now_ns - state.accepted_at_ns)
        self.commands.append(Settle(status))

    def record(
        self,
        kind: str,
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
        state = self.state
        if error is not None:
            data = {**(data or {}), "fault": error.fields()}
            reason = error.summary()
        pulse: Pulse = _new(
            Pulse,
            (
                state.transaction, state.root, state.plan.workflow, state.seq, hop or state.span_id, (), kind, "", "",
                direction, 1, state.ttl if ttl is None else ttl, self.now_ns, elapsed_ns, None, token_out, reason,
                data, state.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        evolve(state, pulse)

    def record_step(
        self,
        index: int,
        kind: str,
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
        state = self.state
        step = state.steps[index]
        if error is not None:
            data = {**(data or {}), "fault": error.fields()}
            reason = error.summary()
        causes: tuple[str, ...] = ()
        ttl = state.ttls[index]
        if direction == UNDO:
            attempt, hop, causes = self._undo_identity(index, kind)
        else:
            attempt = state.attempts[index]
            if hop is None and state.states[index] in (WAITING, BACKING_OFF):  # of the next attempt, which never began
                attempt += 1
                hop = join_hop_id(state.salt, step.code(FORWARD, attempt))
                if attempt == 1:
                    causes = state.causes_of(step)
                    ttl = state.ttl_of_causes(step)
            elif kind == SPAWNED:
                causes = state.causes[index]
            hop = hop or state.hops[index]
        held = self.held
        if held is not None and hop == held[0] and held[1] and kind != SPAWNED:
            data = {**(data or {}), "holder": held[1]}
        pulse: Pulse = _new(
            Pulse,
            (
                state.transaction, state.root, state.plan.workflow, state.seq, hop, causes, kind, step.name, step.spawn,
                direction, attempt, ttl, self.now_ns, elapsed_ns, None, token_out, reason, data, state.digest,
            ),
        )  # fmt: skip
        self.pulses.append(pulse)
        evolve(state, pulse)

    def _undo_identity(self, index: int, kind: str) -> tuple[int, str, tuple[str, ...]]:
        """Attempt, hop id and causes of a pulse about an undo: of the attempt that runs, else of the next one."""
        state = self.state
        attempt = state.undo_attempts[index] + (state.states[index] != UNDO_RUNNING)
        hop = join_hop_id(state.salt, state.steps[index].code(UNDO, attempt))
        return attempt, hop, (state.hops[index],) if kind == SPAWNED else ()


def emits_data(reply: Reply) -> dict[str, Any] | None:
    if not reply.emits:
        return None
    return {"emits": [[name, bytes(token_bytes(token))] for name, token in reply.emits]}


def jitter_fraction(hop: str) -> float:
    """Jitter in 0 … 1, derived from the hop id and not random, so that a replay waits as long."""
    return int(hop[:8], 16) / 0xFFFFFFFF
