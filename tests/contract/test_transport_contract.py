"""What every transport promises, over all of them; a new transport is one more line in `WORLDS`.  See
`bitactor.ports.Transport`."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitactor.errors import ConfigurationError, Overloaded, SignalTooLarge, Unroutable
from bitactor.messages.wire import MAX_FRAME_BYTES
from bitactor.ports import Transport
from mesh.network.transports import ZmqTransport, open_transport
from registry.support.curve import Curve
from tests.memory_transport import MemoryHub, MemoryTransport

PATIENCE = 30.0


class Inbox:
    """A receive callback that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.messages: list[bytes] = []
        self._came = asyncio.Event()

    def __call__(self, messages: list[bytes]) -> None:
        self.batches.append(messages)
        self.messages.extend(messages)
        self._came.set()

    async def until(self, count: int) -> list[bytes]:
        async with asyncio.timeout(PATIENCE):
            while len(self.messages) < count:
                self._came.clear()
                await self._came.wait()
        return self.messages


class GatedNode:
    """A node on a loop and thread of its own, whose callback blocks that loop until `gate` is set."""

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], Transport]) -> None:
        self.gate = threading.Event()
        self.messages: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._transport = make(self._loop)
        self._call(lambda: self._transport.open(self._take))
        self.endpoint = self._transport.endpoint

    def _take(self, messages: list[bytes]) -> None:
        self.gate.wait(PATIENCE)
        self.messages.extend(messages)

    def _call(self, function: Callable[[], None]) -> None:
        async def on_its_thread() -> None:
            function()

        asyncio.run_coroutine_threadsafe(on_its_thread(), self._loop).result(PATIENCE)

    def close(self) -> None:
        self.gate.set()
        self._call(self._transport.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class World:
    """Makes nodes of one kind of transport and closes them all.

    Args:
        opener: makes a transport of an address.
        address: the address of a node by its name, where it is bound.
        absent: an address that nobody has.
    """

    def __init__(self, opener: Callable[..., Transport], address: Callable[[str], str], absent: str) -> None:
        self._opener = opener
        self.url = address
        self.absent = absent
        self._made: list[Transport | GatedNode] = []

    def make(self, url: str, loop: asyncio.AbstractEventLoop | None = None, **options: Any) -> Transport:
        loop = loop or asyncio.get_running_loop()
        transport = self._opener(url, loop=loop, **options)
        if loop is asyncio.get_running_loop():
            self._made.append(transport)
        return transport

    def open(self, name: str, receive: Callable[[list[bytes]], None] | None = None, **options: Any) -> Transport:
        transport = self.make(self.url(name), **options)
        transport.open(receive or (lambda messages: None))
        return transport

    def gated(self, name: str) -> GatedNode:
        node = GatedNode(lambda loop: self.make(self.url(name), loop))
        self._made.append(node)
        return node

    def close(self) -> None:
        for node in reversed(self._made):
            node.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ba-"))
    yield path
    shutil.rmtree(path)


WORLDS: dict[str, Callable[[Path], World]] = {
    "ipc": lambda path: World(ZmqTransport, lambda name: f"ipc://{path}/{name}", f"ipc://{path}/absent"),
    "tcp": lambda path: World(
        partial(ZmqTransport, curve=Curve.generate()), lambda name: "tcp://127.0.0.1:*", "tcp://127.0.0.1:1"
    ),
    "memory": lambda path: World(
        partial(MemoryTransport, hub=MemoryHub()), lambda name: f"memory://{name}", "memory://absent"
    ),
}


@pytest.fixture(params=list(WORLDS))
async def world(request: pytest.FixtureRequest, directory: Path) -> Any:
    made = WORLDS[request.param](directory)
    yield made
    made.close()


async def send_patiently(transport: Transport, endpoint: str, messages: list[bytes]) -> int:
    """Send all, waiting where there is no room; answer how often there was none."""
    refusals = 0
    async with asyncio.timeout(PATIENCE):
        for message in messages:
            while True:
                try:
                    transport.send(endpoint, message)
                    break
                except Overloaded:
                    refusals += 1
                    await asyncio.sleep(0.001)
    return refusals


async def test_order_is_kept_within_and_across_turns(world: World) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    expected = [b"%d" % number for number in range(3_000)]
    for number, message in enumerate(expected):
        sender.send(receiver.endpoint, message)
        if number % 7 == 0:
            await asyncio.sleep(0)
    assert await inbox.until(len(expected)) == expected


async def test_what_is_sent_in_one_turn_shares_frames(world: World) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    expected = [b"%0100d" % number for number in range(2_000)]
    for message in expected:
        sender.send(receiver.endpoint, message)
    assert await inbox.until(len(expected)) == expected
    assert sender.statistics()["messages_out"] == receiver.statistics()["messages_in"] == 2_000
    assert sender.statistics()["frames_out"] == receiver.statistics()["frames_in"] == len(inbox.batches) == 1


async def test_a_frame_ends_before_it_grows_too_large(world: World) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    sizes = [100_000, 100_000, 100_000, 300_000, 10, *[1] * 5_000]
    for size in sizes:
        sender.send(receiver.endpoint, bytes(size))
    await inbox.until(len(sizes))
    assert [len(message) for message in inbox.messages] == sizes
    assert [len(batch) for batch in inbox.batches] == [2, 1, 1, 4_096, 905]


@pytest.mark.parametrize("size", [0, 4 * 1024 * 1024, MAX_FRAME_BYTES])
async def test_a_message_of_any_allowed_size_arrives_in_its_place(world: World, size: int) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    large = os.urandom(size)
    for message in (b"before", large, b"after"):
        sender.send(receiver.endpoint, message)
    assert await inbox.until(3) == [b"before", large, b"after"]


async def test_a_message_that_fits_no_frame_is_refused(world: World) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    with pytest.raises(SignalTooLarge, match="16,777,217"):
        sender.send(receiver.endpoint, bytes(MAX_FRAME_BYTES + 1))
    sender.send(receiver.endpoint, b"small")
    assert await inbox.until(1) == [b"small"]


@pytest.mark.parametrize("options", [{"queue_limit": 10}, {"queue_bytes": 1_000}])
async def test_a_full_queue_refuses_and_names_the_endpoint(world: World, options: dict[str, Any]) -> None:
    inbox = Inbox()
    receiver, other = world.open("b", inbox), world.open("c")
    sender = world.open("a", **options)
    for _ in range(10):
        sender.send(receiver.endpoint, bytes(100))
    with pytest.raises(Overloaded) as caught:
        sender.send(receiver.endpoint, bytes(100))
    assert receiver.endpoint in str(caught.value)
    sender.send(other.endpoint, b"other endpoints have their own queue")
    await inbox.until(10)
    sender.send(receiver.endpoint, b"room again")
    assert (await inbox.until(11))[10:] == [b"room again"]


async def test_a_receiver_that_stands_still_slows_its_senders_and_loses_nothing(world: World) -> None:
    slow = world.gated("slow")
    inbox = Inbox()
    other, sender = world.open("b", inbox), world.open("a", queue_limit=500, queue_bytes=4 * 1024 * 1024)
    accepted: list[bytes] = []
    with pytest.raises(Overloaded):
        for number in range(20_000):
            message = b"%08d" % number + bytes(20_000)
            sender.send(slow.endpoint, message)
            accepted.append(message[:8])
            if number % 50 == 0:
                await asyncio.sleep(0)
    assert len(accepted) * 20_008 < 64 * 1024 * 1024
    sender.send(other.endpoint, b"the others do not wait")
    await inbox.until(1)

    slow.gate.set()
    more = [b"%08d" % number for number in range(50_000, 51_000)]
    await send_patiently(sender, slow.endpoint, more)
    async with asyncio.timeout(PATIENCE):
        while len(slow.messages) < len(accepted) + len(more):  # noqa: ASYNC110  (another thread appends)
            await asyncio.sleep(0.005)
    assert [message[:8] for message in slow.messages] == accepted + more


async def test_several_senders_each_keep_their_order(world: World) -> None:
    inbox = Inbox()
    receiver = world.open("b", inbox)
    senders = [world.open(f"a{index}") for index in range(5)]
    for number in range(200):
        for index, sender in enumerate(senders):
            sender.send(receiver.endpoint, b"%d %d" % (index, number))
        if number % 20 == 0:
            await asyncio.sleep(0)
    await inbox.until(1_000)
    for index in range(5):
        mine = [message for message in inbox.messages if message.startswith(b"%d " % index)]
        assert mine == [b"%d %d" % (index, number) for number in range(200)]


async def test_answers_can_be_sent_from_the_receive_callback(world: World) -> None:
    asked, answered = Inbox(), Inbox()

    def answer(messages: list[bytes]) -> None:
        asked(messages)
        for message in messages:
            server.send(client.endpoint, message.upper())

    server, client = world.open("server", answer), world.open("client", answered)
    for _ in range(50):
        client.send(server.endpoint, b"ping")
        await answered.until(len(asked.messages) + 1)
    assert answered.messages == [b"PING"] * 50


async def test_a_node_can_send_to_itself(world: World) -> None:
    inbox = Inbox()
    node = world.open("a", inbox)
    node.send(node.endpoint, b"me")
    assert not inbox.messages, "not within the call"
    assert await inbox.until(1) == [b"me"]


async def test_a_callback_that_raises_is_logged_once_and_hurts_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()

    def fails(messages: list[bytes]) -> None:
        inbox(messages)
        raise ValueError("broken")

    receiver, sender = world.open("b", fails), world.open("a")
    with caplog.at_level(logging.WARNING, "bitactor.transport"):
        for number in range(1, 6):
            sender.send(receiver.endpoint, b"x")
            await inbox.until(number)
        await asyncio.sleep(0)
    assert receiver.statistics()["receive_failures"] == 5
    assert len(caplog.records) == 1
    assert "ValueError: broken" in caplog.text


async def test_a_callback_may_close_the_transport(world: World) -> None:
    inbox = Inbox()

    def last(messages: list[bytes]) -> None:
        inbox(messages)
        receiver.close()

    receiver, sender = world.open("b", last), world.open("a")
    sender.send(receiver.endpoint, b"the end")
    assert await inbox.until(1) == [b"the end"]
    with pytest.raises(RuntimeError, match="closed"):
        receiver.send(sender.endpoint, b"x")


async def test_forget_drops_what_is_queued_and_a_later_send_starts_afresh(world: World) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    sender.forget(receiver.endpoint)
    for _ in range(3):
        sender.send(receiver.endpoint, b"dropped")
    sender.forget(receiver.endpoint)
    sender.forget(receiver.endpoint)
    assert sender.statistics()["dropped"] == 3
    assert sender.statistics()["connections"] == 0
    sender.send(receiver.endpoint, b"kept")
    assert await inbox.until(1) == [b"kept"]


async def test_close_flushes_what_was_sent(world: World) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    for number in range(1_000):
        sender.send(receiver.endpoint, b"%d" % number)
    sender.close(PATIENCE)
    assert await inbox.until(1_000) == [b"%d" % number for number in range(1_000)]


async def test_close_twice_is_once_and_nothing_can_be_sent_after(world: World) -> None:
    receiver, sender = world.open("b"), world.open("a")
    sender.send(receiver.endpoint, b"x")
    sender.close()
    sender.close()
    with pytest.raises(RuntimeError, match="closed"):
        sender.send(receiver.endpoint, b"x")
    with pytest.raises(RuntimeError, match="closed"):
        sender.open(lambda messages: None)
    sender.forget(receiver.endpoint)
    assert sender.statistics()["messages_out"] == 1


async def test_close_is_bounded_when_the_peer_takes_nothing(world: World) -> None:
    slow, sender = world.gated("slow"), world.open("a", queue_limit=500)
    with pytest.raises(Overloaded):
        for number in range(20_000):
            sender.send(slow.endpoint, bytes(20_000))
            if number % 50 == 0:
                await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    started = loop.time()
    sender.close(0.2)
    assert loop.time() - started < 10


async def test_it_must_be_open_to_be_used(world: World) -> None:
    node = world.make(world.url("a"))
    with pytest.raises(RuntimeError, match="open"):
        node.send("memory://b", b"x")
    with pytest.raises(RuntimeError, match="open"):
        _ = node.endpoint
    node.close()


async def test_it_opens_once(world: World) -> None:
    node = world.open("a")
    with pytest.raises(RuntimeError, match="open already"):
        node.open(lambda messages: None)


@pytest.mark.parametrize("call", ["send", "forget", "close", "open"])
async def test_other_threads_are_told_so(world: World, call: str) -> None:
    node = world.make(world.url("a")) if call == "open" else world.open("a")
    endpoint = "memory://x" if call == "open" else node.endpoint
    arguments: dict[str, tuple[Any, ...]] = {
        "send": (endpoint, b"x"), "forget": (endpoint,), "close": (), "open": (print,)
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="thread"):
        await asyncio.to_thread(getattr(node, call), *arguments[call])


async def test_an_endpoint_belongs_to_one_node(world: World) -> None:
    first = world.open("a")
    second = world.make(first.endpoint)
    with pytest.raises(ConfigurationError, match=r"in use"):
        second.open(lambda messages: None)
    second.close()
    inbox = Inbox()
    receiver = world.open("b", inbox)
    first.send(receiver.endpoint, b"still there")
    assert await inbox.until(1) == [b"still there"]


async def test_a_closed_nodes_endpoint_can_be_taken_again(world: World) -> None:
    first = world.open("a")
    first.close()
    inbox = Inbox()
    second = world.make(first.endpoint)
    second.open(inbox)
    world.open("b").send(second.endpoint, b"x")
    assert await inbox.until(1) == [b"x"]


@pytest.mark.parametrize(
    "endpoint", ["", "x", "inproc://x", "pgm://x", "ipc://", "tcp://a", "tcp://:1", "ipc://@x", "tcp://a:0"]
)
async def test_an_endpoint_of_no_use_is_unroutable(world: World, endpoint: str) -> None:
    with pytest.raises(Unroutable):
        world.open("a").send(endpoint, b"x")


async def test_one_that_nobody_has_is_no_error(world: World) -> None:
    inbox = Inbox()
    receiver, sender = world.open("b", inbox), world.open("a")
    sender.send(world.absent, b"x")
    sender.send(receiver.endpoint, b"y")
    assert await inbox.until(1) == [b"y"]


async def test_statistics_have_the_same_names_everywhere(world: World) -> None:
    assert set(world.open("a").statistics()) == {
        "frames_in", "frames_out", "messages_in", "messages_out", "bytes_in", "bytes_out",
        "malformed", "too_large", "dropped", "receive_failures", "connections",
    }  # fmt: skip


@pytest.mark.parametrize("url", ["sqlite://x", "inproc://a", "ipc", "tcp", ""])
async def test_an_address_of_no_known_scheme_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="an address is ipc:///directory/name or tcp://host:port"):
        open_transport(url, loop=asyncio.get_running_loop())


@pytest.mark.parametrize("options", [{"queue_limit": 0}, {"queue_bytes": -1}])
async def test_a_queue_without_room_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        ZmqTransport("ipc:///tmp/ba-x/a", loop=asyncio.get_running_loop(), **options)
