"""The bytes of messages, frames and pulses, encoded and decoded within limits, for a wire or a file.

A message is one msgpack array `[version, type, field, …]` whose payload fields are opaque bytes, so that routing never
decodes what it only passes on.  A frame is one msgpack array of such messages.  A pulse is one array
`[version, field, …]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

import msgpack
from pydantic import TypeAdapter, ValidationError

from bitactor.errors import MalformedSignal, SignalTooLarge, UnsupportedVersion
from bitactor.messages.codec import (
    Packed,
    pack,
    refuse_large,
    token_bytes,
    token_from_bytes,
    unpack,
)
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Answer, Cancel, Fault, Message, Question, Receipt, Reply, Sending, Signal, Stimulus
from bitactor.messages.values import READABLE_BYTES

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class."""

WIRE_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
MAX_MESSAGES_PER_FRAME: Final = 4_096
LARGE_MESSAGE_BYTES: Final = 256 * 1024
"""Size above which the fields of a message are checked one by one before it is decoded."""

# Messages

_NO_RESULT: Final = token_bytes(None)
_BINARY: Final = (0xC4, 0xC5, 0xC6)
_TYPES: Final[tuple[type[Message], ...]] = (Signal, Reply, Cancel, Stimulus, Receipt, Question, Answer)
_CODES: Final[dict[type, int]] = {kind: code for code, kind in enumerate(_TYPES)}
_TOKEN_FIELD: Final[tuple[int, ...]] = tuple(
    kind._fields.index(next(name for name in ("token", "argument", "value") if name in kind._fields))
    if any(name in kind._fields for name in ("token", "argument", "value"))
    else -1
    for kind in _TYPES
)
_FAULT_FIELD: Final[tuple[int, ...]] = tuple(
    kind._fields.index("fault") if "fault" in kind._fields else -1 for kind in _TYPES
)
_EMITS: Final = Reply._fields.index("emits")
_LATER_FIELD: Final[dict[int, Any]] = {
    _CODES[Signal]: None,
    _CODES[Reply]: 0,
    _CODES[Stimulus]: None,
    _CODES[Receipt]: 0,
}
"""Code of a kind of message → the value of its last field that is left out, as releases of before do."""

_Fault = (
    tuple[str, str, str, bytes | None, bytes | None, bytes | None]
    | tuple[str, str, str, bytes | None, bytes | None]  # of a release of before
    | None
)
_Sending = tuple[int, int, int, int | None, int] | None
_Metadata = dict[str, Any] | None
_VALIDATORS: Final[tuple[Callable[[Any], Any], ...]] = tuple(
    TypeAdapter(shape).validator.validate_python
    for shape in (
        tuple[
            str, str, str, str, tuple[str, ...], str, int, int, int, int, int | None, bytes,
            str, _Fault, str, _Metadata, bool, int, tuple[str, ...], str, _Sending,
        ],
        tuple[
            str, str, int, int, str, bytes, _Fault, int | None, tuple[tuple[str, bytes], ...], int, str,
            bytes | None, int,
        ],
        tuple[str, str, int, int],
        tuple[
            str, str, str, bytes, int, int | None, str, str, str, str, tuple[str, ...], _Metadata, str, _Sending,
        ],
        tuple[str, str, str, int],
        tuple[str, str, bytes, str],
        tuple[str, bytes, str, str],
    )
)  # fmt: skip


def encode_message(message: Message) -> bytes:
    """One message as bytes.

    The payload field must be a token (`encode_token`'s answer); a Signal's `token` is packed by whoever made its
    arguments.
    """
    code = _CODES[type(message)]
    fields: list[Any] = list(message)
    at = _TOKEN_FIELD[code]
    if at >= 0:
        fields[at] = token_bytes(fields[at])
    fault = _FAULT_FIELD[code]
    if fault >= 0 and fields[fault] is not None:
        fields[fault] = fields[fault].fields()
    if code == 1 and fields[_EMITS]:
        fields[_EMITS] = [(name, token_bytes(token)) for name, token in fields[_EMITS]]
    if code in _LATER_FIELD and fields[-1] == _LATER_FIELD[code]:
        fields.pop()
    data: bytes = msgpack.packb([WIRE_VERSION, code, *fields])
    if len(data) > MAX_FRAME_BYTES:
        raise SignalTooLarge(
            f"a {type(message).__name__} of {len(data):,} bytes, the limit of a frame is {MAX_FRAME_BYTES:,}"
        )
    return data


def decode_message(data: bytes) -> Message:
    """The message in bytes that may come from a stranger; its payload stays a token, not yet decoded.

    Raises:
        UnsupportedVersion, SignalTooLarge, MalformedSignal
    """
    if len(data) > MAX_FRAME_BYTES:
        raise SignalTooLarge(f"{len(data):,} bytes, the limit is {MAX_FRAME_BYTES:,}")
    if len(data) > LARGE_MESSAGE_BYTES:
        _refuse_large_fields(data)
    parts = unpack(data, MAX_FRAME_BYTES)
    if type(parts) is not list or len(parts) < 2:
        raise MalformedSignal("not an array of version, type and fields")
    version, code = parts[0], parts[1]
    if version != WIRE_VERSION or type(version) is not int:
        raise UnsupportedVersion(
            f"version {version!r}; this process speaks {WIRE_VERSION}; run the same release everywhere"
        )
    if type(code) is not int or not 0 <= code < len(_TYPES):
        raise MalformedSignal(f"unknown message type {code!r}")
    kind = _TYPES[code]
    if code in _LATER_FIELD and len(parts) == 1 + len(kind._fields):
        parts.append(_LATER_FIELD[code])
    try:
        fields = list(_VALIDATORS[code](parts[2:]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        index = first["loc"][0] if first["loc"] else None
        where = kind._fields[index] if isinstance(index, int) and index < len(kind._fields) else "fields"
        raise MalformedSignal(f"a {kind.__name__} with a wrong {where}: {first['msg']}") from None
    at = _TOKEN_FIELD[code]
    if at >= 0:
        fields[at] = token_from_bytes(fields[at])
    if code in (0, 3) and fields[-1] is not None:
        fields[-1] = Sending(*fields[-1])
    if code == 0 and fields[13] is not None:
        fields[13] = Fault(*fields[13])
    elif code == 1:
        if fields[6] is not None:
            fields[6] = Fault(*fields[6])
        if fields[_EMITS]:
            fields[_EMITS] = tuple((name, token_from_bytes(token)) for name, token in fields[_EMITS])
    return _new(kind, fields)


def _refuse_large_fields(data: bytes) -> None:
    """Raises `MalformedSignal` if a field of a large message is large and is no payload; payloads are binary."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    try:
        unpacker.feed(data)
        fields = unpacker.read_array_header()
        if fields > 2 + max(len(kind._fields) for kind in _TYPES):
            raise MalformedSignal(f"a message of {fields:,} fields")
        version_and_code = [
            unpacker.unpack() if data[unpacker.tell()] < 0x80 else unpacker.skip() for _ in range(min(fields, 2))
        ]
        emits_at = _EMITS if version_and_code[1:] == [_CODES[Reply]] else -1
        for position in range(fields - 2):
            start = unpacker.tell()
            if position == emits_at:
                _skip_emits(unpacker, data)
            else:
                unpacker.skip()
                if unpacker.tell() - start > LARGE_MESSAGE_BYTES and data[start] not in _BINARY:
                    raise MalformedSignal(f"field {position} has {unpacker.tell() - start:,} bytes and is no payload")
    except (ValueError, TypeError, IndexError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedSignal(f"not a message: {type(error).__name__}: {error}") from error


def _skip_emits(unpacker: msgpack.Unpacker, data: bytes) -> None:
    count = unpacker.read_array_header()
    if count > MAX_MESSAGES_PER_FRAME:
        raise MalformedSignal(f"a reply that emits {count:,} signals, the limit is {MAX_MESSAGES_PER_FRAME:,}")
    for _ in range(count):
        if unpacker.read_array_header() != 2:
            raise MalformedSignal("an emitted signal is a name and a token")
        for _ in range(2):
            if not (
                data[unpacker.tell()] in _BINARY
                or 0xA0 <= data[unpacker.tell()] <= 0xBF
                or 0xD9 <= data[unpacker.tell()] <= 0xDB
            ):
                raise MalformedSignal("an emitted signal is a name and a token")
            unpacker.skip()


def pack_parts(values: Packed, result: Any) -> Packed:
    """The payload of a hop's signal: the tokens of its arguments and of a result, each packed by itself.

    Raises:
        SignalTooLarge: they are too much for one payload.
    """
    data = msgpack.packb((values, _NO_RESULT if result is None else token_bytes(result)))
    refuse_large(len(data), READABLE_BYTES)
    return Packed(data)


# Frames

_BYTES: Final = frozenset((bytes,))


def join_frame(messages: Sequence[bytes]) -> bytes:
    """One frame of many encoded messages."""
    data: bytes = msgpack.packb(messages)
    return data


def split_frame(frame: bytes) -> list[bytes]:
    """The messages in a frame that may come from a stranger; raises `SignalTooLarge` or `MalformedSignal`."""
    if len(frame) > MAX_FRAME_BYTES + 16:
        raise SignalTooLarge(f"a frame of {len(frame):,} bytes, the limit is {MAX_FRAME_BYTES:,}")
    # One by one, and without containers inside: a hostile frame of millions of empty lists would cost a gigabyte to
    # take in.
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(1, len(frame)), max_array_len=0, max_map_len=0, max_ext_len=0, max_str_len=0
    )
    try:
        unpacker.feed(frame)
        count = unpacker.read_array_header()
        if count > MAX_MESSAGES_PER_FRAME:
            raise MalformedSignal(f"a frame of {count:,} messages, the limit is {MAX_MESSAGES_PER_FRAME:,}")
        messages = list(islice(unpacker, count))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedSignal(f"not a frame: {type(error).__name__}: {error}") from error
    if len(messages) != count or unpacker.tell() != len(frame) or not _BYTES.issuperset(map(type, messages)):
        raise MalformedSignal("a frame is an array of binary messages, and nothing after it")
    return messages


# Pulses

_PULSE_TOKEN_OUT: Final = Pulse._fields.index("token_out")
_PULSE_TYPES: Final = tuple(
    (Pulse._fields.index(name), kind)
    for kind, names in (
        (str, ("transaction", "root", "workflow", "hop", "kind", "step", "direction")),
        (int, ("seq", "attempt", "ttl", "at_ns")),
    )
    for name in names
)


def encode_pulse(pulse: Pulse) -> bytes:
    """A pulse as bytes, its payload kept packed."""
    fields: list[Any] = list(pulse)
    fields[_PULSE_TOKEN_OUT] = token_bytes(pulse.token_out)
    return pack([WIRE_VERSION, *fields], MAX_FRAME_BYTES)


def decode_pulse(data: bytes) -> Pulse:
    """The pulse that `encode_pulse` was given, field for field.

    Raises:
        ProtocolError: the bytes are no pulse of this version.
    """
    parts = unpack(data, MAX_FRAME_BYTES)
    if type(parts) is not list or not parts or parts[0] != WIRE_VERSION:
        raise UnsupportedVersion(f"a pulse of version {parts[0] if isinstance(parts, list) and parts else None!r}")
    if len(parts) != len(Pulse._fields) + 1:
        raise MalformedSignal(f"a pulse of {len(parts) - 1} fields, not {len(Pulse._fields)}")
    fields = parts[1:]
    try:
        fields[_PULSE_TOKEN_OUT] = token_from_bytes(fields[_PULSE_TOKEN_OUT])
        fields[5] = tuple(fields[5])
    except TypeError as error:
        raise MalformedSignal(f"a pulse with a field of the wrong type: {error}") from None
    if isinstance(fields[14], list):
        fields[14] = tuple(fields[14])
    if any(type(fields[at]) is not kind for at, kind in _PULSE_TYPES):
        raise MalformedSignal("a pulse with a field of the wrong type")
    return Pulse(*fields)


__all__ = [
    "MAX_FRAME_BYTES", "MAX_MESSAGES_PER_FRAME", "WIRE_VERSION", "decode_message", "decode_pulse", "encode_message",
    "encode_pulse", "join_frame", "pack_parts", "split_frame",
]  # fmt: skip
