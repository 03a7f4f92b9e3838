"""Pulses as people read them: tokens as values, references as the values they refer to."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from bitactor.errors import BitActorError, ProtocolError
from bitactor.kinds.batch_result import readable_batch
from bitactor.messages.codec import decode_token, token_from_bytes
from bitactor.messages.pulse import MASKED, SECRET_MARK, SPAWNED, Pulse
from bitactor.messages.signal import FORWARD
from bitactor.plan.arguments import argument_values
from bitactor.plan.plan import Plan
from bitactor.saga import SagaState, evolve


def readable_pulses(plan: Plan | None, pulses: Sequence[Pulse]) -> list[Pulse]:
    """The same pulses with `token_out` decoded (of a batch of a map: a mapping of what it took and made), and
    `token_in` of spawned hops as a mapping of arguments.

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
        readable.append(
            pulse._replace(token_in=token_in, token_out=readable_batch(pulse, decode_token(pulse.token_out)))
        )
    return readable


def readable_token(token: Any) -> Any:
    """The value of a token; of one that cannot be decoded `{"undecodable": base64}`, or a mask if there may be a secret
    in it."""
    try:
        return decode_token(token)
    except ProtocolError:
        return MASKED if SECRET_MARK in bytes(token) else {"undecodable": b64encode(token).decode()}


def readable_opening(opening: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """What a container opens, as its pulse records it (key, body, inputs), with the tokens among the inputs as values;
    the other inputs are places of tokens."""
    return [[key, body, [_value(given) for given in inputs]] for key, body, inputs in opening]


def _value(given: Any) -> Any:
    try:
        return decode_token(token_from_bytes(given)) if isinstance(given, bytes) else given
    except BitActorError:
        return given


def _arguments(state: SagaState, pulse: Pulse) -> Any:
    step = state.steps[state.by_name[pulse.step]]
    try:
        return argument_values(step.arguments, state.tokens, step.address, state.evaluated.get(step.index))
    except (BitActorError, KeyError):
        return pulse.token_in
