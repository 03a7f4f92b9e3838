"""Bytes to messages and back, and what strangers may send."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitactor.errors import MalformedSignal, ProtocolError, SignalTooLarge, UnsupportedVersion
from registry import Entry, wire
from tests.amounts import examples

MESSAGES: list[wire.RegistryMessage] = [
    wire.Hello(1, "node-1", b"12345678"),
    wire.Welcome(1, b"12345678", 1_500_000_000, 300_000_000, True),
    wire.Refused(1, wire.REFUSED_FULL, "full"),
    wire.Heartbeat(2, 3),
    wire.Acknowledged(2, 3),
    wire.Unknown(),
    wire.Register(4, (b"row", b"row")),
    wire.Registered(4, 0, bytes([wire.GRANTED, wire.TAKEN]), (b"row", b"row")),
    wire.Unregister(5, ("a", "b")),
    wire.Leave(6),
    wire.Done(6),
    wire.Sync(7, 0),
    wire.Part(7, 12, False, 99, (b"row",)),
    wire.Notices(8, b"\x00\x01", (b"row", b"row")),
    wire.Ping(9),
    wire.Pong(9),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message: wire.RegistryMessage) -> None:
    again = wire.decode(wire.encode(message))
    assert again == message and type(again) is type(message)


def test_entries_and_wishes_come_back_as_they_were() -> None:
    entry = Entry("n", "h", {"endpoint": "ipc:///x", "deep": [{"a": [1, 2.5, None]}]}, True, (5 << 32) + 1)
    assert wire.decode_entry(wire.encode_row(entry)) == entry
    registration = wire.Registration("n", {"a": 1}, False, 0)
    assert wire.decode_registration(wire.encode_row(registration)) == registration
    assert wire.decode_detail(wire.encode_detail("x" * 9_999)) == "x" * 512
    assert wire.decode_detail(wire.encode_detail(7)) == 7


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"", MalformedSignal),
        (b"\xc1", MalformedSignal),
        (msgpack.packb([]), MalformedSignal),
        (msgpack.packb({"version": 1}), MalformedSignal),
        (msgpack.packb([2, 0, 1]), UnsupportedVersion),
        (msgpack.packb([True, 14, 1]), UnsupportedVersion),
        (msgpack.packb([1, 99]), MalformedSignal),
        (msgpack.packb([1, -1]), MalformedSignal),
        (msgpack.packb([1, 14]), MalformedSignal),
        (msgpack.packb([1, 14, 1, 2]), MalformedSignal),
        (msgpack.packb([1, 14, "1"]), MalformedSignal),
        (msgpack.packb([1, 14, -1]), MalformedSignal),
        (msgpack.packb([1, 0, 1, "x" * 256, b"12345678"]), MalformedSignal),
        (msgpack.packb([1, 0, 1, "x", b"short"]), MalformedSignal),
        (msgpack.packb([1, 6, 1, [b"x"] * 3_000]), MalformedSignal),
        (msgpack.packb([1, 14, 1]) + b"\x00", MalformedSignal),
        (b"\x91" * 100 + b"\x00", MalformedSignal),
        (b"x" * (wire.MAX_FRAME_BYTES + 1), SignalTooLarge),
    ],
)
def test_what_is_no_message_is_refused(frame: bytes, error: type[ProtocolError]) -> None:
    with pytest.raises(error):
        wire.decode(frame)


@given(st.sampled_from(MESSAGES), st.data())
@examples(quick=100, long=3_000)
def test_mutated_frames_are_messages_or_protocol_errors(message: wire.RegistryMessage, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ProtocolError):
        wire.decode(bytes(frame))


@given(st.binary(max_size=200))
@examples(quick=100, long=3_000)
def test_random_rows_are_refused_as_protocol_errors(row: bytes) -> None:
    for decode in (wire.decode, wire.decode_entry, wire.decode_registration, wire.decode_detail):
        with suppress(ProtocolError):
            decode(row)


@given(st.lists(st.integers(0, 70_000), max_size=40))
@examples(quick=50, long=1_000)
def test_rows_are_divided_into_frames_without_loss(sizes: list[int]) -> None:
    rows = [b"x" * size for size in sizes]
    ranges = list(wire.in_frames(rows))
    assert [at for begin, end in ranges for at in range(begin, end)] == list(range(len(rows)))
    assert all(sum(sizes[begin:end]) < wire.MAX_FRAME_BYTES - 4_096 for begin, end in ranges)
    assert len(list(wire.in_frames([b""] * 5_000))) == 3
    assert list(wire.in_frames([])) == [(0, 0)]
