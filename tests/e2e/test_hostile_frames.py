"""Strangers at the door: whatever bytes come, they are counted and dropped, memory stays flat, and good peers get
through."""

from __future__ import annotations

import asyncio
import random
import resource
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from bitactor.errors import ProtocolError
from bitactor.messages.codec import encode_token
from bitactor.messages.signal import Answer, Cancel, Fault, Message, Question, Receipt, Reply, Signal, Stimulus
from bitactor.messages.wire import (
    MAX_FRAME_BYTES,
    MAX_MESSAGES_PER_FRAME,
    decode_message,
    encode_message,
    join_frame,
    split_frame,
)
from mesh.network.transports.zmq import ZmqTransport
from registry.support.curve import Curve

PATIENCE = 30.0
ROUNDS = 10_000
MIB = 1024 * 1024

TOKEN = encode_token({"name": "Ada", "list": [1, 2.5, None, True, b"raw"], "deep": {"er": {"est": ["x"] * 5}}})
MESSAGES: tuple[Message, ...] = (
    Signal("users/create", "0" * 32, "1" * 32, "2" * 16, ("3" * 16,), "forward", 1, 1, 0, 7, 10**9, TOKEN, "ipc:///a",
           Fault("m:E", "broken", "at line 1", b"\x90"), "4" * 32, {"k": "v"}, True, 2, ("a", "b")),
    Reply("0" * 32, "2" * 16, 1, 0, "ok", TOKEN, Fault("m:E", "x"), 5, (("user.created", TOKEN), ("n", 1)), 12, "why"),
    Cancel("0" * 32, "2" * 16, 1, 0),
    Stimulus("id", "name", "group", TOKEN, 8, None, "ipc:///a", trail=("x",), metadata={"a": 1}, key="k"),
    Receipt("id", "0" * 32, "error"),
    Question("id", "status", 5, "ipc:///a"),
    Answer("id", TOKEN, "error", "type"),
)  # fmt: skip
ENCODED = tuple(encode_message(message) for message in MESSAGES)
FRAME = join_frame(ENCODED)
GOOD = encode_message(Cancel("good", "peer", 1, 1))

HEADERS = (
    b"\x80", b"\x90", b"\xc0", b"\xc1", b"\xc4\xff", b"\xc6\xff\xff\xff\xff", b"\xc7\x05\x01",
    b"\xc9\x7f\xff\xff\xff\x01", b"\xd4\x01\x00", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"\xd3" + b"\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6, b"\xa4\xff\xfe\xed\xa0", b"\xd5\x08\x90\x90", b"\xd6\x04\x93\x01\x02\x03",
    b"\xc7\x03\x06NaN", b"\xc7\x09\x01not-a-day",
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four wounds."""
    wounded = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(wounded) + 1)
        kind = rng.randrange(6)
        if kind == 0 and wounded:
            wounded[at % len(wounded)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del wounded[at:]
        elif kind == 2:
            del wounded[at : at + rng.randint(1, 9)]
        elif kind == 3:
            wounded[at:at] = rng.choice(HEADERS)
        elif kind == 4:
            header = rng.choice(HEADERS)
            wounded[at : at + len(header)] = header
        else:
            wounded[at:at] = rng.randbytes(rng.randint(1, 30))
    return bytes(wounded)


def bad_bytes(rng: random.Random) -> bytes:
    """Random bytes, or a wounded message."""
    return rng.randbytes(rng.randint(0, 200)) if rng.random() < 0.25 else mutated(rng.choice(ENCODED), rng)


def decode_or_refuse(data: bytes) -> bool:
    """Whether it is a message; anything but a `ProtocolError` escapes."""
    try:
        assert isinstance(decode_message(data), MESSAGES[0].__class__ | tuple)
    except ProtocolError:
        return False
    return True


# The codec


def test_decoding_wounded_messages_gives_messages_or_protocol_errors() -> None:
    rng = random.Random(20_240_607)
    results = [decode_or_refuse(bad_bytes(rng)) for _ in range(ROUNDS)]
    assert results.count(False) > ROUNDS / 2
    assert all(decode_message(data) == message for data, message in zip(ENCODED, MESSAGES, strict=True))


def test_splitting_wounded_frames_gives_messages_or_protocol_errors() -> None:
    rng = random.Random(42)
    for _ in range(ROUNDS):
        frame = rng.randbytes(rng.randint(0, 200)) if rng.random() < 0.25 else mutated(FRAME, rng)
        try:
            messages = split_frame(frame)
        except ProtocolError:
            continue
        assert all(type(message) is bytes for message in messages)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_decoding_any_bytes(data: bytes) -> None:
    decode_or_refuse(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(ENCODED) - 1), st.data())
def test_decoding_messages_with_any_value_in_any_field(which: int, data: st.DataObject) -> None:
    fields: list[Any] = msgpack.unpackb(ENCODED[which], strict_map_key=False)
    at = data.draw(st.integers(0, len(fields) - 1))
    fields[at] = data.draw(VALUES)
    decode_or_refuse(msgpack.packb(fields))


@pytest.mark.parametrize(
    "opener", [b"\x91", b"\x81\x01", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\xdf\x00\x00\x00\x01\x01"]
)
@pytest.mark.parametrize("depth", [65, 1_100, 200_000])
def test_what_is_nested_too_deep_is_refused(opener: bytes, depth: int) -> None:
    deep = opener * depth + b"\xc0"
    assert not decode_or_refuse(deep)
    with pytest.raises(ProtocolError):
        split_frame(deep)


# The door


class Victim:
    """A node that decodes what comes and keeps the messages that are some."""

    def __init__(self, transport: ZmqTransport) -> None:
        self.transport = transport
        self.good = 0
        self.decoded = 0
        self.refused = 0

    def receive(self, messages: list[bytes]) -> None:
        for data in messages:
            self.good += data == GOOD
            if decode_or_refuse(data):
                self.decoded += 1
            else:
                self.refused += 1

    def count(self, name: str) -> int:
        return self.transport.statistics()[name]


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ba-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def victim(directory: Path) -> AsyncIterator[Victim]:
    victim = Victim(ZmqTransport(f"ipc://{directory}/victim", loop=asyncio.get_running_loop()))
    victim.transport.open(victim.receive)
    yield victim
    assert victim.count("receive_failures") == 0
    victim.transport.close()


class Strangers:
    """Makes sockets that are not ours, and closes them."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        self._made.append(self._context.socket(kind))
        return self._made[-1]

    def close(self) -> None:
        for socket_ in self._made:
            socket_.close(0)
        self._context.term()


@pytest.fixture
def strangers() -> Iterator[Strangers]:
    made = Strangers()
    yield made
    made.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (the other end is not asyncio)
            await asyncio.sleep(0.002)


async def push(stranger: zmq.Socket[bytes], parts: list[bytes]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                stranger.send_multipart(parts, zmq.NOBLOCK)
                return
            except zmq.Again:
                await asyncio.sleep(0)


async def a_good_peer_gets_through(victim: Victim, directory: Path) -> None:
    before = victim.good
    peer = ZmqTransport(f"ipc://{directory}/good", loop=asyncio.get_running_loop())
    peer.open(lambda messages: None)
    for _ in range(1_000):
        peer.send(victim.transport.endpoint, GOOD)
    await until(lambda: victim.good == before + 1_000)
    peer.close()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_ten_thousand_bad_frames(
    victim: Victim, strangers: Strangers, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = strangers.socket(zmq.PUSH)
    stranger.connect(victim.transport.endpoint)

    async def attack(seed: int, frames: int) -> None:
        rng = random.Random(seed)
        for number in range(frames):
            if number % 50 == 49:
                await push(stranger, [bad_bytes(rng) for _ in range(rng.randint(2, 20))])
            elif number % 3 == 0:
                await push(stranger, [mutated(FRAME, rng)])
            elif number % 3 == 1:
                await push(stranger, [rng.randbytes(rng.randint(0, 500))])
            else:
                await push(stranger, [join_frame([bad_bytes(rng) for _ in range(rng.randint(1, 5))])])

        await push(stranger, [join_frame([GOOD])])
        await until(lambda: victim.good)
        victim.good = 0

    await attack(seed=1, frames=2_000)
    before, seen = resident(), victim.count("malformed") + victim.count("frames_in")
    await attack(seed=2, frames=ROUNDS)
    assert victim.count("malformed") + victim.count("frames_in") - seen > ROUNDS - 100, "but for the empty ones"
    await a_good_peer_gets_through(victim, directory)
    assert victim.count("malformed") > 4_000
    assert victim.refused > 2_000
    assert resident() - before < 64 * MIB
    assert len(caplog.records) <= 3, "logged now and then, not each"


async def test_oversized_frames_cut_their_sender_off(victim: Victim, strangers: Strangers, directory: Path) -> None:
    stranger = strangers.socket(zmq.PUSH)
    stranger.setsockopt(zmq.RECONNECT_IVL, 10)
    events = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    stranger.connect(victim.transport.endpoint)
    stranger.send(bytes(MAX_FRAME_BYTES + 1_000))
    await until(lambda: events.poll(0))
    stranger.disable_monitor()
    events.close(0)
    assert victim.count("bytes_in") == 0
    await a_good_peer_gets_through(victim, directory)


async def test_frames_just_above_the_limit_and_of_too_many_messages(
    victim: Victim, strangers: Strangers, directory: Path
) -> None:
    stranger = strangers.socket(zmq.PUSH)
    stranger.connect(victim.transport.endpoint)
    await push(stranger, [bytes(MAX_FRAME_BYTES + 17)])
    await until(lambda: victim.count("too_large") == 1)
    await push(stranger, [join_frame([b""] * (MAX_MESSAGES_PER_FRAME + 1))])
    await push(stranger, [b"\x91" * 100_000])
    await push(stranger, [msgpack.packb([b"binary", "text"])])
    await until(lambda: victim.count("malformed") == 3)
    await a_good_peer_gets_through(victim, directory)


async def test_multipart_is_one_malformed_frame(victim: Victim, strangers: Strangers, directory: Path) -> None:
    stranger = strangers.socket(zmq.PUSH)
    stranger.connect(victim.transport.endpoint)
    for count in (2, 1_000, 3):
        await push(stranger, [join_frame([GOOD])] * count)
    await push(stranger, [join_frame([GOOD])])
    await until(lambda: victim.good == 1)
    assert victim.count("malformed") == 3
    await a_good_peer_gets_through(victim, directory)


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ, zmq.PUB, zmq.PAIR, zmq.ROUTER, zmq.PULL, zmq.SUB])
async def test_other_socket_types_stay_outside(
    victim: Victim, strangers: Strangers, directory: Path, kind: int
) -> None:
    stranger = strangers.socket(kind)
    stranger.setsockopt(zmq.RECONNECT_IVL, 10)
    events = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    stranger.connect(victim.transport.endpoint)
    await until(lambda: events.poll(0))
    stranger.disable_monitor()
    events.close(0)
    await a_good_peer_gets_through(victim, directory)
    assert victim.count("frames_in") == victim.decoded / 1_000 == 1


async def test_those_who_do_not_speak_zeromq(victim: Victim, directory: Path) -> None:
    rng = random.Random(3)
    path = victim.transport.endpoint.removeprefix("ipc://")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    for opening in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        greeting,
        greeting[:20],
        greeting + b"\x06" + b"\xff" * 9,
        b"\xff" * 300,
    ):
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(path)
                stranger.settimeout(PATIENCE)
                try:
                    stranger.sendall(opening + rng.randbytes(rng.randint(0, 2_000)))
                except (BrokenPipeError, ConnectionResetError):
                    continue
    await a_good_peer_gets_through(victim, directory)
    assert victim.decoded == 1_000


# CURVE


@pytest.fixture
async def guarded() -> AsyncIterator[tuple[Victim, Curve]]:
    curve = Curve.generate()
    victim = Victim(ZmqTransport("tcp://127.0.0.1:*", loop=asyncio.get_running_loop(), curve=curve))
    victim.transport.open(victim.receive)
    yield victim, curve
    victim.transport.close()


async def test_with_the_meshs_key_one_gets_through(guarded: tuple[Victim, Curve]) -> None:
    victim, curve = guarded
    peer = ZmqTransport("tcp://127.0.0.1:*", loop=asyncio.get_running_loop(), curve=curve)
    peer.open(lambda messages: None)
    peer.send(victim.transport.endpoint, GOOD)
    peer.send(victim.transport.endpoint, bytes(MAX_FRAME_BYTES))
    await until(lambda: victim.good == 1 and victim.refused == 1)
    peer.close()


FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


@pytest.mark.parametrize("who", ["no key", "knows the public key", "another mesh"])
async def test_others_get_nowhere(guarded: tuple[Victim, Curve], strangers: Strangers, who: str) -> None:
    victim, curve = guarded
    stranger = strangers.socket(zmq.PUSH)
    if who != "no key":
        mine = Curve.generate()
        stranger.setsockopt(zmq.CURVE_PUBLICKEY, mine.public)
        stranger.setsockopt(zmq.CURVE_SECRETKEY, mine.secret)
        stranger.setsockopt(zmq.CURVE_SERVERKEY, (curve if who == "knows the public key" else mine).public)
    events = stranger.get_monitor_socket(FAILED | zmq.EVENT_DISCONNECTED)
    stranger.connect(victim.transport.endpoint)
    stranger.send(join_frame([GOOD] * 10))
    await until(lambda: events.poll(0))
    stranger.disable_monitor()
    events.close(0)
    await test_with_the_meshs_key_one_gets_through(guarded)
    assert victim.good == 1


async def test_a_node_of_another_mesh_gets_nowhere(guarded: tuple[Victim, Curve]) -> None:
    victim, _ = guarded
    other = ZmqTransport("tcp://127.0.0.1:*", loop=asyncio.get_running_loop(), curve=Curve.generate(), queue_limit=50)
    other.open(lambda messages: None)
    for _ in range(40):
        other.send(victim.transport.endpoint, GOOD)
        victim.transport.send(other.endpoint, GOOD)
        await asyncio.sleep(0)
    await test_with_the_meshs_key_one_gets_through(guarded)
    assert victim.good == 1
    assert other.statistics()["frames_in"] == 0
    other.close(0)
