"""Pulses as people read them: tokens as values, references as the values they refer to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitactor.errors import BitActorError
from bitactor.messages.codec import decode_token
from bitactor.messages.pulse import SPAWNED, Pulse
from bitactor.messages.signal import FORWARD
from bitactor.plan.arguments import argument_values
from bitactor.plan.plan import Plan
from bitactor.saga import SagaState, evolve


def readable_pulses(plan: Plan | None, pulses: Sequence[Pulse]) -> list[Pulse]:
    """The same pulses with `token_out` decoded, and `token_in` of spawned hops as a mapping of arguments.

    Without the plan (the workflow is not declared here) references stay references.
    """
    state = SagaState(plan, pulses[0].transaction) if plan is not None and pulses else None
    readable = []
    for pulse in pulses:
        token_in = pulse.token_in
        if state is not None and plan is not None:
            evolve(state, pulse)
            if pulse.kind == SPAWNED and pulse.direction == FORWARD:
                token_in = _arguments(state, pulse)
        readable.append(pulse._replace(token_in=token_in, token_out=decode_token(pulse.token_out)))
    return readable


def _arguments(state: SagaState, pulse: Pulse) -> Any:
    step = state.steps[state.by_name[pulse.step]]
    try:
        return argument_values(step.arguments, state.tokens, step.address, state.evaluated.get(step.index))
    except (BitActorError, KeyError):
        return pulse.token_in
