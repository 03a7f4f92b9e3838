"""Bytes in, values out, and nothing but `ProtocolError` for what is not ours."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import random
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from pydantic import BaseModel

from bitactor import InvalidOutcome, MalformedSignal, ProtocolError, SignalTooLarge, UnsupportedVersion
from bitactor.messages import codec
from bitactor.messages.classes import AnnotatedClasses
from bitactor.messages.codec import (
    MAX_DEPTH,
    MAX_TOKEN_BYTES,
    Packed,
    decode_token,
    encode_token,
    join_packed_lists,
    pack,
    pack_tokens,
    token_bytes,
    token_from_bytes,
    unpack,
    unpack_tokens,
)
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Answer, Cancel, Fault, Question, Receipt, Reply, Sending, Signal, Stimulus
from bitactor.messages.values import READABLE_BYTES
from bitactor.messages.wire import (
    MAX_FRAME_BYTES,
    MAX_MESSAGES_PER_FRAME,
    decode_message,
    decode_pulse,
    encode_message,
    encode_pulse,
    join_frame,
    split_frame,
)
from tests.amounts import examples

MANY = examples(quick=100, long=3_000, suppress_health_check=list(HealthCheck))

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.uuids()
    | st.decimals(allow_nan=False) | st.dates() | st.datetimes()
    | st.datetimes(timezones=st.just(dt.UTC)) | st.times() | st.timedeltas()
)  # fmt: skip
KEYS = st.text() | st.integers() | st.booleans() | st.binary() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS
    | st.sets(st.integers() | st.text() | st.tuples(st.integers(), st.integers()) | st.frozensets(st.integers())),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Named(str):
    __slots__ = ()


@dataclasses.dataclass
class Point:
    x: int
    inner: Any = None


class Model(BaseModel):
    when: dt.date
    tags: set[str]


@MANY
@given(VALUES)
def test_values_come_back(value: Any) -> None:
    token = encode_token(value)
    assert decode_token(token) == value
    again = token_from_bytes(token_bytes(token))
    assert again == token
    assert type(again) is type(token)
    assert unpack(pack(value)) == value


def test_models_dataclasses_and_enums_come_back_as_plain_data() -> None:
    assert decode_token(encode_token(Point(1, Point(2)))) == {"x": 1, "inner": {"x": 2, "inner": None}}
    assert decode_token(encode_token(Model(when=dt.date(2026, 1, 1), tags={"a"}))) == {
        "when": dt.date(2026, 1, 1),
        "tags": {"a"},
    }
    assert decode_token(encode_token([Colour.RED, Level.HIGH, (1, 2), frozenset((1,))])) == ["red", 3, [1, 2], {1}]
    assert decode_token(encode_token({1: {2: 3}})) == {1: {2: 3}}


@pytest.mark.parametrize("value", [Level.HIGH, Colour.RED, Named("x"), 2**64, -(2**70), b"x", (), {}, set(), 2**64 - 1])
def test_a_token_is_the_same_before_and_after_a_journal(value: Any) -> None:
    token = encode_token(value)
    again = token_from_bytes(token_bytes(token))
    assert (type(again), again) == (type(token), token)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 1,
        {1: object()},
        [1, {2: {object()}}],
        {Point},
        "\ud800",
        {"\ud800": 1},
        iter([1]),
        ValueError("x"),
    ],
)
def test_what_cannot_be_carried_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOutcome, match="cannot be carried"):
        encode_token(value)


def test_a_cycle_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidOutcome):
        encode_token(value)


def test_a_model_as_a_key_would_not_come_back_and_is_refused() -> None:
    frozen = dataclasses.make_dataclass("Frozen", ["x"], frozen=True)
    with pytest.raises(InvalidOutcome, match=r"its key Frozen\(x=1\), a Frozen, is an object, .* a list of pairs"):
        encode_token({frozen(1): 2})
    assert [dict(item) for item in decode_token(encode_token({frozen(1)}))] == [{"x": 1}]
    deep: Any = 1
    for _ in range(60):
        deep = frozenset((deep,))
    with pytest.raises(InvalidOutcome, match="objects and sets within each other"):
        encode_token(deep)


def nested(levels: int, kind: str = "list") -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"k": value}
    return value


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_depth_is_limited(kind: str) -> None:
    assert decode_token(encode_token(nested(MAX_DEPTH, kind))) == nested(MAX_DEPTH, kind)
    with pytest.raises(InvalidOutcome, match="deep"):
        encode_token(nested(MAX_DEPTH + 1, kind))
    bytes_of_65 = b"\x91" * (MAX_DEPTH + 1) + b"\x01"
    with pytest.raises(MalformedSignal, match="deep"):
        unpack(bytes_of_65)
    assert unpack(bytes_of_65[1:]) == nested(MAX_DEPTH)
    with pytest.raises(MalformedSignal):
        unpack(b"\x91" * 100_000)
    assert unpack(pack([[1]] * 10_000)) == [[1]] * 10_000  # wide is not deep


def test_size_is_limited() -> None:
    text = "x" * MAX_TOKEN_BYTES
    assert encode_token(text) == text
    for large in (text + "x", "ä" * MAX_TOKEN_BYTES, b"x" * MAX_TOKEN_BYTES, [text]):
        with pytest.raises(SignalTooLarge, match="limit is 4,194,304"):
            encode_token(large)
    with pytest.raises(SignalTooLarge):
        unpack(b"\xc0" * (READABLE_BYTES + 1))
    with pytest.raises(SignalTooLarge):
        decode_message(b"\xc0" * (MAX_FRAME_BYTES + 1))


FAULT = Fault("builtins:ValueError", "no", "Traceback", b"\x91\x01")
MESSAGES = (
    Signal(
        "w/s", "a" * 32, "b" * 32, "c" * 16, ("d" * 16,), "forward", 1, 2, 3, 4, 5_000, encode_token({"x": 1}),
        "ipc://x", FAULT, "p", {"k": [1]}, True, 2, ("w/r", "w/q"),
    ),
    Signal("w/s", "a" * 32, "b" * 32, "c" * 16, (), "undo", 1, 1, 0, 0, None, None),
    Reply(
        "a" * 32, "c" * 16, 1, 0, "ok", encode_token([1, 2]), None, None, (("out", 1), ("out", encode_token({"a": 1}))),
        17, "why"
    ),
    Reply("a" * 32, "c" * 16, 1, 0, "fail", None, FAULT, 5),
    Reply("a" * 32, "c" * 16, 1, 0, "ok", encode_token(1), pid=4711),
    Cancel("a" * 32, "c" * 16, 1, 0),
    Stimulus("i", "n", "g", encode_token({"x": 1}), 7, None, "ipc://x", "r", "p", "h", ("a",), {"k": 1}, "key"),
    Receipt("i", "t", ""),
    Signal(
        "w/s", "a" * 32, "b" * 32, "c" * 16, (), "forward", 1, 1, 0, 7, None, None, "ipc://x",
        sending=Sending(1 << 33, 2**53, 5, 6, 7),
    ),
    Stimulus("i", "n", "g", encode_token(1), 7, None, "ipc://x", sending=Sending(1, 0, 5, None)),
    Receipt("i", "", "why", 8),
    Question("i", "status", encode_token({"transaction": "x"}), "ipc://x"),
    Answer("i", encode_token([1]), "", ""),
)  # fmt: skip
PULSE = Pulse(
    "a" * 32, "b" * 32, "w", 3, "c" * 16, ("d" * 16,), "completed", "s", "loop", "forward", 1, 7, 10, 5, ("input.x",),
    encode_token({"a": 1}), None, {"due_ns": 5, "emits": [["x", b"\x01"]]}, "digest",
)  # fmt: skip


@pytest.mark.parametrize(
    ("message", "recorded"),
    [
        (
            Signal(
                "w/s", "a" * 32, "b" * 32, "c" * 16, ("d" * 16,), "forward", 1, 2, 3, 4, 5_000, encode_token({"x": 1}),
                "ipc://x", None, "p", {"k": [1]}, True, 2, ("w/r",), "w/s/1",
            ),
            "dc00160100a3772f73d9206161616161616161616161616161616161616161616161616161616161616161d9206262626262"
            "626262626262626262626262626262626262626262626262626262b06363636363636363636363636363636391b064646464"
            "646464646464646464646464a7666f727761726401020304cd1388c40481a17801a76970633a2f2f78c0a17081a16b9101c3"
            "0291a3772f72a5772f732f31",
        ),
        (
            Stimulus("i", "n", "g", encode_token({"x": 1}), 7, None, "ipc://x", "r", "p", "h", ("a",), {"k": 1}, "key"),
            "9f0103a169a16ea167c40481a1780107c0a76970633a2f2f78a172a170a16891a16181a16b01a36b6579",
        ),
        (Receipt("i", "t", ""), "950104a169a174a0"),
        (
            Reply(
                "a" * 32, "c" * 16, 1, 0, "ok", encode_token([1, 2]), None, None, (("out", encode_token(1)),), 17, "why"
            ),
            "9e0101d9206161616161616161616161616161616161616161616161616161616161616161b0636363636363636363636363636363"
            "630100a26f6bc403920102c0c09192a36f7574c4010111a3776879c0",
        ),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_was_not_said_to_whom_it_was_sent_is_as_the_release_before_had_it(message: Any, recorded: str) -> None:
    """Recorded at 30ad4f9, the reply at fb34dda, whose nodes read nothing else."""
    data = bytes.fromhex(recorded)
    assert encode_message(message) == data
    assert decode_message(data) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_comes_back(message: Any) -> None:
    again = decode_message(encode_message(message))
    assert again == message
    assert type(again) is type(message)


@MANY
@given(st.text(), st.integers(0, 2**40), VALUES, st.lists(st.tuples(st.text(), VALUES), max_size=3))
def test_replies_of_all_values_come_back(text: str, number: int, value: Any, emits: list[tuple[str, Any]]) -> None:
    tokens = tuple((name, encode_token(emitted)) for name, emitted in emits)
    reply = Reply("a" * 32, "c" * 16, number, number, "ok", encode_token(value), None, number, tokens, number, text)
    assert decode_message(encode_message(reply)) == reply


@MANY
@given(VALUES, st.text(), st.integers(0, 2**62))
def test_pulses_come_back(value: Any, text: str, number: int) -> None:
    pulse = PULSE._replace(token_out=encode_token(value), error=text, step=text, seq=number)
    assert decode_pulse(encode_pulse(pulse)) == pulse


def test_other_versions_are_refused() -> None:
    for wrong in (2, 0, -1, True, 1.0, "1", None, [1]):
        with pytest.raises(UnsupportedVersion, match="version"):
            decode_message(pack([wrong, 0]))
    with pytest.raises(UnsupportedVersion):
        decode_pulse(pack([2, *PULSE]))


@pytest.mark.parametrize(
    "data", [b"", b"\xc0", b"\x90", b"\x91\x01", b"\xc1", pack([1, 99]), pack([1, -1]), pack([1, 2, 3]), pack({1: 0})]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(data)


def test_frames() -> None:
    messages = [encode_message(message) for message in MESSAGES]
    assert split_frame(join_frame(messages)) == messages
    assert split_frame(join_frame([])) == []
    for wrong in (
        b"",
        b"\x80",
        b"\x91\x01",
        b"\x91\xa1x",
        b"\x91\xc4\x01",
        join_frame(messages) + b"\x00",
        b"\x92\xc4\x00",
    ):
        with pytest.raises(MalformedSignal):
            split_frame(wrong)
    assert len(split_frame(join_frame([b""] * MAX_MESSAGES_PER_FRAME))) == MAX_MESSAGES_PER_FRAME
    with pytest.raises(MalformedSignal):
        split_frame(join_frame([b""] * (MAX_MESSAGES_PER_FRAME + 1)))


def _mutations(count: int) -> list[bytes]:
    chance = random.Random(7)
    whole = [encode_message(message) for message in MESSAGES]
    seeds = [
        *whole,
        encode_pulse(PULSE),
        join_frame(whole),
        pack([dt.datetime(2026, 1, 1, tzinfo=dt.UTC), uuid.UUID(int=1), Decimal(1), 2**80, {1}]),
    ]
    made = []
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        kind = chance.randrange(5)
        if kind == 0:
            data = bytearray(chance.randbytes(chance.randrange(60)))
        elif kind == 1:
            del data[chance.randrange(len(data)) :]
        elif kind == 2:
            at = chance.randrange(len(data))
            data[at:at] = chance.randbytes(chance.randrange(1, 5))
        else:
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        made.append(bytes(data))
    return made


@pytest.mark.parametrize(
    "decode", [decode_message, decode_pulse, unpack, split_frame], ids=lambda decode: decode.__name__
)
def test_whatever_a_stranger_sends_only_protocol_errors_are_raised(decode: Any) -> None:
    taken = 0
    for data in _mutations(5_000):
        try:
            got = decode(data)
        except ProtocolError:
            continue
        taken += 1
        for token in (getattr(got, name, None) for name in ("token", "value", "argument", "token_out")):
            if type(token) is Packed:
                try:
                    decode_token(token)
                except ProtocolError:
                    continue
    assert taken < 4_000


def test_sets_within_sets_are_no_bomb() -> None:
    data = pack(1)
    for _ in range(300):
        data = b"\xc9" + len(b"\x91" + data).to_bytes(4, "big") + b"\x08" + b"\x91" + data
    with pytest.raises(MalformedSignal):
        unpack(data)


class Small(BaseModel):
    number: int = 1
    words: list[str] = ["a"]
    pair: tuple[int, str] = (1, "b")


def test_models_that_are_known_by_their_types_to_come_back_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []
    monkeypatch.setattr(codec, "unpack", lambda data, limit: looked_at.append(data))
    known = [Small(), [Small() for _ in range(100)]]
    tokens = [encode_token(value) for value in known]
    assert looked_at == []
    for uncertain in (Deep(value=Small()), {"a": Small()}, [Small(), {"a": 1}], Deep(value=[[[]] * 70])):
        looked_at.clear()
        encode_token(uncertain)
        assert len(looked_at) == 1
    monkeypatch.undo()
    for value, token in zip(known, tokens, strict=True):
        assert decode_token(token, AnnotatedClasses(Small)) == value


class Deep(BaseModel):
    value: Any


@pytest.mark.parametrize("counts", [(), (0,), (3, 0, 15), (16, 70_000, 1), (65_535, 65_536)])
def test_lists_are_joined_without_being_decoded(counts: tuple[int, ...]) -> None:
    lists = [list(range(count)) for count in counts]
    joined = join_packed_lists(pack(items) for items in lists)
    assert decode_token(joined) == [item for items in lists for item in items]
    with pytest.raises(ValueError, match="not a packed list"):
        join_packed_lists([pack({"a": 1})])


@pytest.mark.parametrize("length", [1, 1_000])
@pytest.mark.parametrize("last", [None, True, 1.5, -(1 << 63), "text", b"bytes", [1, [2]], {"a": 1}, {1}, 1 << 80])
def test_tokens_by_name_come_back_as_they_were(last: Any, length: int) -> None:
    """Whether they are scalars, and short: both are dealt with in a shorter way."""
    tokens = {"first": 1, "second": "é" * length, "last": encode_token(last)}
    packed = pack_tokens(tokens)
    found = unpack_tokens(packed)
    assert found == tokens
    assert [type(token) for token in found.values()] == [type(token) for token in tokens.values()]
    assert decode_token(packed) == {**tokens, "last": last}


def test_a_list_of_models_is_told_from_one_that_holds_models_too() -> None:
    class Point(BaseModel):
        x: int

    for items in ([Point(x=1), Point(x=2)], [Point(x=1), 2], [1, Point(x=2)]):
        plain = [item.model_dump() if isinstance(item, BaseModel) else item for item in items]
        assert decode_token(encode_token(items)) == plain
