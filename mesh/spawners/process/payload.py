"""The payload that a worker process needs to run a hop, beside its signal; it travels as the signal's token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bitactor.messages.codec import decode_token, encode_token, token_bytes, token_from_bytes
from bitactor.messages.wire import MAX_FRAME_BYTES
from mesh.hops.ports import Actor


class HopPayload(NamedTuple):
    """Which step of which plan to run, and with which arguments."""

    workflow: str
    digest: str
    step: str
    """Address of the step."""
    values: Any
    """Token of the step's arguments, not yet converted as their annotations ask."""
    result: Any
    """Token of the result that an undo takes back."""
    metadata: Mapping[str, Any] | None


def pack_payload(actor: Actor) -> Any:
    """The token for a worker.

    Raises:
        InvalidOutcome, SignalTooLarge: an argument cannot be carried, or all of them together are too much for a frame.
    """
    plan = actor.plan
    values = bytes(token_bytes(encode_token(actor.arguments.raw(), MAX_FRAME_BYTES)))
    result = bytes(token_bytes(actor.result))
    payload = (plan.workflow, plan.digest, actor.step.address, values, result, actor.signal.metadata)
    return encode_token(list(payload), MAX_FRAME_BYTES)


def unpack_payload(token: Any) -> HopPayload:
    """The payload in a token that our parent made."""
    workflow, digest, step, values, result, metadata = decode_token(token)
    return HopPayload(workflow, digest, step, token_from_bytes(values), token_from_bytes(result), metadata)
