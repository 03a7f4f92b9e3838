"""Strangers at a node's socket: noise, wounded messages, replays."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from bitactor.messages.codec import encode_token
from bitactor.messages.signal import Answer, Cancel, Question, Receipt, Reply, Signal, Stimulus
from bitactor.messages.wire import decode_message, encode_message, join_frame
from mesh import Mesh
from mesh.network.transports import open_transport
from tests.e2e.apps import chain, greet, signup
from tests.e2e.processes import PATIENCE, Town, town

FRAMES = 10_000

SAMPLES = [
    Signal(
        "chain/one", "0" * 32, "0" * 32, "1" * 16, (), "forward", 1, 1, 0, 7, 10**9,
        encode_token([{"notes": "/nowhere"}, b"\xc0"]), "ipc:///nowhere",
    ),
    Reply("0" * 32, "1" * 16, 1, 0, "ok", encode_token({"a": 1}), None, None, (("x", encode_token([1])),), 5),
    Cancel("0" * 32, "1" * 16, 1, 0),
    Stimulus("1" * 16 + ":0>g", "user.created", "nobody", encode_token({"email": "x"}), 5, None, "ipc:///nowhere"),
    Receipt("1" * 16 + ":0>g", "0" * 32),
    Question("1", "node", encode_token({}), "ipc:///nowhere"),
    Answer("1", encode_token([1, 2])),
]  # fmt: skip


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        made.serve_registry()
        yield made


class Stranger:
    """Somebody who can reach the socket."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUSH)
        self.socket.connect(endpoint)

    async def send(self, frame: bytes) -> None:
        """As fast as the other side takes it, which may be on this very loop."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    self.socket.send(frame, zmq.NOBLOCK)
                except zmq.Again:
                    await asyncio.sleep(0.001)  # a PUSH socket has no event of its own on this loop
                else:
                    return

    def close(self) -> None:
        self.context.destroy(linger=2_000)


def wounded(rng: random.Random, data: bytes) -> bytes:
    wound = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        wound[rng.randrange(len(wound))] = rng.randrange(256)
    return bytes(wound[: rng.randint(1, len(wound))] if rng.random() < 0.3 else wound)


def noise(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.2:
        return rng.randbytes(rng.randint(0, 200))
    messages = [wounded(rng, encode_message(rng.choice(SAMPLES))) for _ in range(rng.randint(1, 4))]
    frame = join_frame(messages)
    return wounded(rng, frame) if kind < 0.4 else frame


async def test_ten_thousand_hostile_frames_are_counted_and_do_no_harm(place: Town) -> None:
    rng = random.Random(7)
    worker = place.node("chain")
    async with Mesh(chain, signup, greet, registry=place.registry, hosts=False) as mesh:
        await ask(mesh, place)
        (elsewhere,) = {entry.value["endpoint"] for entry in mesh.node.registry.lookup("step:chain/one")}
        strangers = [Stranger(mesh.node.endpoint), Stranger(elsewhere)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            for number in range(FRAMES):
                frame = noise(rng)
                for stranger in strangers:
                    await stranger.send(frame)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            assert await ask(mesh, place) == "end"
        finally:
            for stranger in strangers:
                stranger.close()
        assert await ask(mesh, place) == "end"
        refused = mesh.about()["refused"]
        assert refused["MalformedSignal"] > 1_000 and refused["UnsupportedVersion"] > 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert worker.child.poll() is None


async def test_replayed_messages_change_nothing(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    place.node("chain")
    heard: list[bytes] = []

    def open_overheard(*arguments: Any, **options: Any) -> Any:
        transport = open_transport(*arguments, **options)
        opened = transport.open

        def open_it(receive: Callable[[list[bytes]], None]) -> None:
            opened(lambda messages: (heard.extend(messages), receive(messages))[1])

        monkeypatch.setattr(transport, "open", open_it)
        return transport

    monkeypatch.setattr("mesh.network.links.open_transport", open_overheard)
    async with Mesh(chain, registry=place.registry, hosts=False) as mesh:
        transaction = await mesh.stimulate("chain", {"notes": str(place.notes)})
        await transaction.result(timeout=PATIENCE)
        assert sum(type(decode_message(data)) is Reply for data in heard) == 3
        before = transaction.raw_pulses()
        stranger = Stranger(mesh.node.endpoint)
        try:
            for _ in range(1_000):
                await stranger.send(join_frame(heard))
            assert await ask(mesh, place) == "end"
        finally:
            stranger.close()
        assert transaction.raw_pulses() == before
        assert transaction.status == "completed"


async def ask(mesh: Mesh, place: Town) -> str:
    transaction = await mesh.stimulate("chain", {"notes": str(place.notes)})
    return await transaction.result(timeout=PATIENCE)
