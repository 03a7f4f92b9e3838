"""Pulses and dead letters as plain data that JSON can carry."""

from __future__ import annotations

import datetime as dt
import math
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bitactor.errors import ProtocolError
from bitactor.export.dead_letters import DeadLetter
from bitactor.export.display import readable_opening, readable_token
from bitactor.kinds.batch_result import readable_batch
from bitactor.messages.codec import Packed, decode_token, encode_token
from bitactor.messages.faults import fault_as_plain, utf8_safe
from bitactor.messages.pulse import SECRET_MARK, Pulse
from bitactor.messages.signal import Fault
from bitactor.messages.values import READABLE_BYTES

_JSON_SCALARS = (str, bool, int, type(None))
_OF_LETTERS = (
    "id", "transaction", "workflow", "kind", "name", "reason", "why", "step", "hop", "attempt", "deliveries", "at_ns",
)  # fmt: skip


def plain(value: Any) -> Any:
    """`value` as data that JSON can carry.

    Packed tokens are decoded (one that cannot be: `{"undecodable": base64}`), bytes become base64, unless there is a
    packed secret in them, which is masked; datetimes, dates and
    times ISO 8601, durations seconds, sets and tuples lists, NaN and infinities text, anything else its `str`.
    """
    if isinstance(value, _JSON_SCALARS):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Packed):
        return plain(readable_token(value))
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return plain(readable_token(Packed(data))) if SECRET_MARK in data else b64encode(data).decode()
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple | set | frozenset | deque | range):
        return [plain(item) for item in value]
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return str(value)


def masked(value: Any) -> Any:
    """`value`, decoded, with the bytes in it that have a packed secret in them as data where the secret is masked."""
    if isinstance(value, bytes) and SECRET_MARK in value:
        return plain(value)
    if isinstance(value, list):
        return [masked(item) for item in value]
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    return value


def masked_pulse(pulse: Pulse) -> Pulse:
    """The pulse, its values as plain data where a secret is among them, which is masked."""
    token_in, token_out, data = pulse.token_in, pulse.token_out, pulse.data
    if isinstance(token_in, bytes) and SECRET_MARK in token_in:
        token_in = encode_token(plain(token_in), READABLE_BYTES)
    if isinstance(token_out, bytes) and SECRET_MARK in token_out:
        token_out = encode_token(plain(token_out), READABLE_BYTES)
    return pulse._replace(token_in=token_in, token_out=token_out, data=masked(data))


def plain_pulse(pulse: Pulse) -> dict[str, Any]:
    """A pulse as a mapping of its field names, in their order, ready for `json.dumps`; the record of a map's batch, the
    inputs of opened scopes, and the causes, notes and members of an error's exception are spelled out in the place of
    the packed ones."""
    found = {name: plain(value) for name, value in zip(Pulse._fields, pulse, strict=True)}
    with suppress(ProtocolError):
        found["token_out"] = plain(readable_batch(pulse, decode_token(pulse.token_out)))
    if pulse.data and "opening" in pulse.data:
        found["data"]["opening"] = plain(readable_opening(pulse.data["opening"]))
    for name in ("fault", "assess"):
        kept = (pulse.data or {}).get(name)
        if kept is not None and len(kept) == len(Fault._fields):  # with a chain, which is packed
            found["data"][name][-1] = fault_as_plain(Fault(*kept))
    return found


def plain_dead_letter(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as a mapping of its field names, with its `id` and its `payload`, secrets masked."""
    found = {name: getattr(letter, name) for name in _OF_LETTERS}
    shown = {name: utf8_safe(value) if isinstance(value, str) else value for name, value in found.items()}
    return {**shown, "payload": plain(letter.payload)}
