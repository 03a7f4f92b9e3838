"""What is particular to ZeroMQ: addresses, directories, connections and the edge-triggered reader."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bitactor.errors import ConfigurationError, Overloaded, Unroutable
from bitactor.messages.wire import join_frame
from mesh.network.transports.addresses import is_peer_address
from mesh.network.transports.zmq import FRAMES_IN_FLIGHT, ZmqTransport
from registry.support.curve import Curve

PATIENCE = 30.0


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ba-"))
    yield path
    shutil.rmtree(path)


Open = Callable[..., ZmqTransport]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    made: list[ZmqTransport] = []

    def make(bind: str, receive: Callable[[list[bytes]], None] = lambda messages: None, **options: Any) -> ZmqTransport:
        transport = ZmqTransport(bind, loop=asyncio.get_running_loop(), **options)
        made.append(transport)
        transport.open(receive)
        return transport

    yield make
    for transport in made:
        transport.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (the other end may not be asyncio)
            await asyncio.sleep(0.002)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def open_files() -> int:
    return len(names_in(Path("/proc/self/fd")))


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


# Addresses


async def test_a_missing_directory_is_made_for_us_alone(directory: Path, opened: Open) -> None:
    node = opened(f"ipc://{directory}/deep/er/a")
    assert mode_of(directory / "deep/er") == 0o700
    assert node.endpoint == f"ipc://{directory}/deep/er/a"
    node.close()
    assert names_in(directory / "deep/er") == []


async def test_a_directory_that_others_may_write_is_refused(directory: Path, opened: Open) -> None:
    os.chmod(directory, 0o770)  # noqa: PTH101
    with pytest.raises(ConfigurationError, match=f"can be written by others.*chmod 700 {directory}"):
        opened(f"ipc://{directory}/a")
    assert names_in(directory) == []


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
async def test_nobody_else_can_connect_to_a_socket_whoever_may_enter_its_directory(
    directory: Path, opened: Open, mode: int
) -> None:
    """As a registry has it: what the umask leaves to others is taken away."""
    os.chmod(directory, mode)  # noqa: PTH101
    before = os.umask(0)
    try:
        node = opened(f"ipc://{directory}/a")
    finally:
        os.umask(before)
    assert mode_of(directory / "a") == 0o600 and node.endpoint == f"ipc://{directory}/a"


async def test_a_relative_path_is_made_absolute(directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    assert opened("ipc://run/a").endpoint == f"ipc://{directory}/run/a"


async def test_a_dead_nodes_socket_file_is_replaced(directory: Path, opened: Open) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "a"))
    got: list[bytes] = []
    node = opened(f"ipc://{directory}/a", got.extend)
    node.send(node.endpoint, b"x")
    await until(lambda: got)


async def test_a_file_of_the_users_is_not(directory: Path, opened: Open) -> None:
    (directory / "a").write_text("precious")
    with pytest.raises(ConfigurationError, match="no socket"):
        opened(f"ipc://{directory}/a")
    assert (directory / "a").read_text() == "precious"


async def test_a_directory_that_cannot_be_made_is_named(directory: Path, opened: Open) -> None:
    (directory / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot make the directory"):
        opened(f"ipc://{directory}/file/a")


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("ipc://" + "/long" * 22 + "/a", "112 bytes, the system allows 107"),
        ("ipc://@abstract", "abstract"),
        ("ipc://*", "file name"),
        ("ipc://", "file name"),
        ("ipc:///tmp/", "file name"),
        ("tcp://127.0.0.1:5555", "CURVE"),
        ("inproc://a", "ipc:///directory/name or tcp"),
        ("", "ipc:///directory/name or tcp"),
    ],
)
async def test_an_address_that_cannot_be_bound_says_why(bind: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ZmqTransport(bind, loop=asyncio.get_running_loop())


@pytest.mark.parametrize(
    ("bind", "advertise"),
    [
        ("tcp://*:*", ""),
        ("tcp://0.0.0.0:5555", ""),
        ("tcp://[::]:5555", ""),
        ("tcp://127.0.0.1", ""),
        ("tcp://127.0.0.1:99999", ""),
        ("tcp://127.0.0.1:http", ""),
        ("tcp://127.0.0.1:*", "ipc:///x"),
        ("tcp://127.0.0.1:*", "tcp://host:*"),
        ("ipc:///tmp/ba-x/a", "host"),
    ],
)
async def test_a_tcp_address_that_others_could_not_use_is_refused(bind: str, advertise: str) -> None:
    with pytest.raises(ConfigurationError):
        ZmqTransport(bind, loop=asyncio.get_running_loop(), curve=Curve.generate(), advertise=advertise)


async def test_the_cure_for_an_address_that_binds_every_interface_keeps_the_port() -> None:
    with pytest.raises(ConfigurationError, match=r"such as endpoint='tcp://10\.0\.0\.5:5555'$"):
        ZmqTransport("tcp://0.0.0.0:5555", loop=asyncio.get_running_loop(), curve=Curve.generate())


async def test_tcp_picks_a_port_and_tells_it(opened: Open) -> None:
    curve = Curve.generate()
    host, port = opened("tcp://127.0.0.1:*", curve=curve).endpoint.removeprefix("tcp://").split(":")
    assert host == "127.0.0.1"
    assert 0 < int(port) < 65_536


@pytest.mark.parametrize(
    ("advertise", "expected"), [("localhost", "tcp://localhost:{port}"), ("tcp://outside:7000", "tcp://outside:7000")]
)
async def test_a_wildcard_address_is_advertised(opened: Open, advertise: str, expected: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = opened(f"tcp://*:{port}", curve=Curve.generate(), advertise=advertise)
    assert node.endpoint == expected.format(port=port)


async def test_a_port_in_use_is_a_clear_error(opened: Open) -> None:
    curve = Curve.generate()
    first = opened("tcp://127.0.0.1:*", curve=curve)
    with pytest.raises(ConfigurationError, match="in use"):
        opened(first.endpoint, curve=curve)


async def test_without_keys_a_tcp_peer_is_unroutable(directory: Path, opened: Open) -> None:
    node = opened(f"ipc://{directory}/a")
    with pytest.raises(Unroutable, match="CURVE"):
        node.send("tcp://127.0.0.1:5555", b"x")
    assert node.statistics()["connections"] == 0


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc://relative", "ipc:///" + "x" * 107, "ipc:///a\nb", "ipc:///a\0", "ipc:///\udc80", "tcp://a b:1", "tcp://*:1",
        "tcp://a;b:1", "tcp://h:+1", "tcp://h:\u0661", "tcp://h:100000", "udp://a:1",
    ],
)  # fmt: skip
def test_addresses_a_stranger_may_make_up(endpoint: str) -> None:
    assert not is_peer_address(endpoint)


# Connections


async def test_a_peer_that_comes_late_gets_what_was_queued(directory: Path, opened: Open) -> None:
    sender = opened(f"ipc://{directory}/a", queue_limit=5_000)
    late = f"ipc://{directory}/late"
    for number in range(1_000):
        sender.send(late, b"%d" % number)
        if number % 2 == 0:
            await asyncio.sleep(0)
    assert sender.statistics()["frames_out"] == FRAMES_IN_FLIGHT
    got: list[bytes] = []
    opened(late, got.extend)
    await until(lambda: len(got) == 1_000)
    assert got == [b"%d" % number for number in range(1_000)]


async def test_a_peer_that_never_comes_fills_its_queue_and_no_more(directory: Path, opened: Open) -> None:
    sender, never = opened(f"ipc://{directory}/a", queue_limit=100), f"ipc://{directory}/never"
    sent = 0
    with pytest.raises(Overloaded, match="never"):
        for _ in range(1_000):
            sender.send(never, b"x")
            sent += 1
            await asyncio.sleep(0)
    assert sent == FRAMES_IN_FLIGHT + 100
    sender.forget(never)
    assert sender.statistics()["dropped"] == 100
    sender.send(never, b"room again")


async def test_a_peer_that_came_back_is_reached_again(directory: Path, opened: Open) -> None:
    sender, address = opened(f"ipc://{directory}/a"), f"ipc://{directory}/b"
    for life in range(3):
        got: list[bytes] = []
        peer = opened(address, got.extend)
        async with asyncio.timeout(PATIENCE):
            while b"life %d" % life not in got:  # what is sent while nobody notices the death is lost
                sender.send(address, b"life %d" % life)
                await asyncio.sleep(0.005)
        peer.close()


async def test_the_connection_unused_longest_makes_room(directory: Path, opened: Open) -> None:
    sender = opened(f"ipc://{directory}/a", connections=3)
    got: list[bytes] = []
    peers = [opened(f"ipc://{directory}/b{index}", got.extend) for index in range(10)]
    for round_ in range(3):
        for peer in peers:
            sender.send(peer.endpoint, peer.endpoint.encode())
            await asyncio.sleep(0)
            assert sender.statistics()["connections"] <= 3
        await until(lambda: len(got) == 10 * (round_ + 1))  # noqa: B023  (awaited at once)
    assert sorted(got) == sorted(peer.endpoint.encode() for peer in peers for _ in range(3))
    assert sender.statistics()["dropped"] == 0


async def test_connections_with_messages_waiting_do_not_make_room(directory: Path, opened: Open) -> None:
    sender = opened(f"ipc://{directory}/a", connections=2)
    for name in ("b", "c"):
        sender.send(f"ipc://{directory}/{name}", b"x")
    with pytest.raises(Overloaded, match="connections="):
        sender.send(f"ipc://{directory}/d", b"x")


async def test_no_file_descriptor_is_left(directory: Path) -> None:
    loop = asyncio.get_running_loop()

    async def live_once() -> None:
        curve = Curve.generate()
        nodes = [ZmqTransport("tcp://127.0.0.1:*", loop=loop, curve=curve) for _ in range(2)]
        nodes += [ZmqTransport(f"ipc://{directory}/{name}", loop=loop, curve=curve) for name in "ab"]
        got: list[bytes] = []
        for node in nodes:
            node.open(got.extend)
        for node in nodes:
            for peer in nodes:
                node.send(peer.endpoint, b"x")
            node.send(f"ipc://{directory}/never", b"x")
        await until(lambda: len(got) == 16)
        nodes[0].forget(nodes[1].endpoint)
        for node in nodes:
            node.close(0.05)

    await live_once()
    before = open_files(), threading.active_count()
    for _ in range(3):
        await live_once()
    assert (open_files(), threading.active_count()) == before


async def test_a_failed_open_leaves_nothing(directory: Path) -> None:
    (directory / "a").mkdir()
    before = open_files()
    node = ZmqTransport(f"ipc://{directory}/a", loop=asyncio.get_running_loop(), curve=Curve.generate())
    with pytest.raises(ConfigurationError):
        node.open(lambda messages: None)
    node.close()
    assert open_files() == before


def test_it_can_be_closed_after_its_loop(directory: Path) -> None:
    async def make() -> ZmqTransport:
        node = ZmqTransport(f"ipc://{directory}/a", loop=asyncio.get_running_loop())
        node.open(lambda messages: None)
        node.send(f"ipc://{directory}/never", b"x")
        return node

    node = asyncio.run(make())
    node.close(0.01)
    assert not (directory / "a").exists()


# The reader


async def test_a_flood_leaves_turns_to_others(directory: Path, opened: Open) -> None:
    got: list[bytes] = []
    turns = 0
    turns_at: list[int] = []

    def receive(messages: list[bytes]) -> None:
        got.extend(messages)
        turns_at.append(turns)

    node = opened(f"ipc://{directory}/a", receive)
    context = zmq.Context()
    flood = context.socket(zmq.PUSH)
    flood.setsockopt(zmq.SNDHWM, 100_000)
    flood.connect(node.endpoint)
    for number in range(5_000):
        flood.send(join_frame([b"%d" % number]))
    async with asyncio.timeout(PATIENCE):
        while len(got) < 5_000:
            turns += 1
            await asyncio.sleep(0)
    flood.close()
    context.term()
    assert got == [b"%d" % number for number in range(5_000)]
    assert max(turns_at.count(turn) for turn in set(turns_at)) <= 64 * 2


async def test_an_empty_frame_is_no_message(directory: Path, opened: Open) -> None:
    batches: list[list[bytes]] = []
    node = opened(f"ipc://{directory}/a", batches.append)
    context = zmq.Context()
    stranger = context.socket(zmq.PUSH)
    stranger.connect(node.endpoint)
    stranger.send(join_frame([]))
    stranger.send(join_frame([b"x"]))
    await until(lambda: batches)
    stranger.close()
    context.term()
    assert batches == [[b"x"]]


@pytest.mark.parametrize("budget", [1, 2, 3])
async def test_no_frame_is_stranded_between_edges(
    directory: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr("mesh.network.transports.zmq.FRAMES_PER_TURN", budget)
    monkeypatch.setattr("mesh.network.transports.zmq.FRAMES_IN_FLIGHT", 2)
    nodes: list[ZmqTransport] = []
    hops = 0

    def pass_on(index: int) -> Callable[[list[bytes]], None]:
        def receive(messages: list[bytes]) -> None:
            nonlocal hops
            for message in messages:
                hops += 1
                if message != b"0":
                    nodes[(index + 1) % 3].send(nodes[index].endpoint, b"%d" % (int(message) - 1))
                    nodes[index].send(nodes[(index + 2) % 3].endpoint, b"0")

        return receive

    nodes.extend(opened(f"ipc://{directory}/{index}", pass_on(index)) for index in range(3))
    for node in nodes:
        node.send(nodes[0].endpoint, b"300")
    await until(lambda: hops == 3 * (301 + 300))


async def test_it_runs_on_uvloop(directory: Path) -> None:
    uvloop = pytest.importorskip("uvloop")
    got: list[bytes] = []

    async def scenario() -> None:
        nodes = [ZmqTransport(f"ipc://{directory}/{name}", loop=asyncio.get_running_loop()) for name in "ab"]
        for node in nodes:
            node.open(got.extend)
        for number in range(2_000):
            nodes[0].send(nodes[1].endpoint, b"%d" % number)
            if number % 3 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(got) == 2_000)
        for node in nodes:
            node.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scenario())

    await asyncio.to_thread(run)
    assert got == [b"%d" % number for number in range(2_000)]


async def test_two_processes(directory: Path, opened: Open) -> None:
    got: list[bytes] = []
    node = opened(f"ipc://{directory}/a", got.extend)
    script = (
        "import asyncio, sys\n"
        "from mesh.network.transports.zmq import ZmqTransport\n"
        "async def main(mine, theirs):\n"
        "    done = asyncio.Event()\n"
        "    node = ZmqTransport(mine, loop=asyncio.get_running_loop())\n"
        "    def echo(messages):\n"
        "        for message in messages:\n"
        "            node.send(theirs, message)\n"
        "            if message == b'last': done.set()\n"
        "    node.open(echo)\n"
        "    await done.wait()\n"
        "    node.close(10)\n"
        "asyncio.run(main(*sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, f"ipc://{directory}/child", node.endpoint), env=environment
    )
    expected = [b"%d" % number for number in range(2_000)] + [b"last"]
    for message in expected:
        node.send(f"ipc://{directory}/child", message)
    await until(lambda: len(got) == len(expected))
    assert got == expected
    assert await asyncio.wait_for(child.wait(), PATIENCE) == 0
