"""The registry over real processes and sockets: killed, stopped, restarted, attacked."""

from __future__ import annotations

import json
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bitactor.errors import ConfigurationError
from registry import (
    AlreadyRegistered,
    Curve,
    EndpointInUse,
    Entry,
    HolderInUse,
    Loss,
    Notice,
    RegistryClient,
    RegistryServer,
    RegistryTimeout,
    wire,
)
from tests import warm

PATIENCE = 20.0


class Child:
    """This file as another process, which answers one line per line, and goes when its input ends."""

    def __init__(self, *arguments: str) -> None:
        self.process = warm.start([__file__, *arguments])
        self.hear()

    def ask(self, *question: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the child is gone"
        return json.loads(line)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        if self.process.poll() is None:
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ba-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def endpoint(directory: Path) -> str:
    return f"ipc://{directory}/run/registry.sock"


@pytest.fixture
def spawn() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(*arguments: str) -> Child:
        children.append(Child(*arguments))
        return children[-1]

    yield start
    for child in children:
        child.close()


def gone_from(registry: RegistryClient, name: str) -> threading.Event:
    gone = threading.Event()
    registry.watch(lambda notice: gone.set() if notice.kind == "disappeared" else None, name)
    return gone


def until(condition: Callable[[], bool]) -> None:
    """For what no event tells: polls, with patience."""
    ends = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        pause.wait(0.01)


def test_names_of_a_killed_process_are_gone_within_two_seconds(
    endpoint: str, directory: Path, spawn: Callable[..., Child], record_property: Callable[[str, object], None]
) -> None:
    with RegistryServer(endpoint, directory / "boot"), RegistryClient(endpoint, "here") as here:
        child = spawn("client", endpoint, "there")
        child.ask("register", "x", True)
        child.ask("register", "y", False)
        here.await_name("y", PATIENCE)
        gone_x, gone_y = gone_from(here, "x"), gone_from(here, "y")
        child.kill()
        killed = time.monotonic()
        assert gone_x.wait(PATIENCE) and gone_y.wait(PATIENCE)
        took = time.monotonic() - killed
        record_property("seconds_until_gone", round(took, 3))
        print(f"names of a killed process gone after {took:.3f} s")
        assert took < 3.0
        assert here.register("x", unique=True).holder == "here"


def test_a_clean_leave_is_seen_at_once(endpoint: str, spawn: Callable[..., Child]) -> None:
    with RegistryServer(endpoint), RegistryClient(endpoint, "here") as here:
        child = spawn("client", endpoint, "there")
        child.ask("register", "x", True)
        here.await_name("x", PATIENCE)
        gone = gone_from(here, "x")
        asked = time.monotonic()
        child.ask("leave")
        assert gone.wait(PATIENCE)
        assert time.monotonic() - asked < 1.0


def test_a_stopped_process_is_fenced_and_told_so(endpoint: str, directory: Path, spawn: Callable[..., Child]) -> None:
    with RegistryServer(endpoint, directory / "boot"), RegistryClient(endpoint, "here") as here:
        child = spawn("client", endpoint, "there")
        before = child.ask("register", "x", True)
        child.ask("register", "y", True)
        here.await_name("y", PATIENCE)
        gone = gone_from(here, "x")
        child.signal(signal.SIGSTOP)
        assert gone.wait(PATIENCE)
        taken = here.register("x", unique=True)
        assert taken.epoch > before
        child.signal(signal.SIGCONT)
        assert child.ask("current", "x", before) is False
        assert child.ask("lost", "x") == [before, None]
        assert child.ask("lost", "x") == [before, "here"]
        until(lambda: here.is_current(taken))  # on a busy machine a lease may run out for a moment
        assert here.await_name("y", PATIENCE)[0].holder == "there"


def test_a_killed_server_is_repopulated_by_its_clients(
    endpoint: str, directory: Path, spawn: Callable[..., Child]
) -> None:
    state = str(directory / "boot")
    server = spawn("server", endpoint, state)
    assert (directory / "run").stat().st_mode & 0o777 == 0o700
    there = spawn("client", endpoint, "there")
    first = there.ask("register", "x", True)
    there.ask("register", "worker", False)
    with RegistryClient(endpoint, "here") as here:
        mine = here.register("mine", {"n": 1}, unique=True)
        here.register("worker")
        here.await_name("x", PATIENCE)
        notices: list[Notice] = []
        here.watch(notices.append)
        server.kill()
        until(lambda: not here.connected)
        assert here.count() == 4 and here.lookup("x")[0].epoch == first
        with pytest.raises(RegistryTimeout):
            here.register("while away", timeout=0.05)
        began = time.monotonic()
        again = spawn("server", endpoint, state)
        # A unique name nobody had is granted once the server has settled, within the call.
        later = here.register("later", unique=True, timeout=PATIENCE)
        until(lambda: again.ask("count") == 5)
        print(f"repopulated and settled {time.monotonic() - began:.3f} s after the server was started again")
        until(lambda: (entry := here.get("mine")) is not None and here.is_current(entry))
        held = here.get("mine")
        assert held is not None and held.epoch >= mine.epoch
        assert later.epoch > max(mine.epoch, first, held.epoch >> 32 << 32)
        assert later.epoch >> 32 == 2
        until(lambda: there.ask("current", "x", here.lookup("x")[0].epoch) is True)
        assert here.lookup("x")[0].epoch >= first
        assert "while away" not in {entry.name for entry in here.match()}
        here.ping(PATIENCE)
        assert [notice for notice in notices if notice.kind == "disappeared"] == []
        third = spawn("client", endpoint, "third")
        assert third.ask("count") == 5


def test_hostile_frames_are_counted_and_survived(endpoint: str) -> None:
    chance = random.Random(7)
    valid = [
        wire.encode(message)
        for message in (
            wire.Hello(1, "stranger", b"12345678"),
            wire.Register(1, (wire.encode_row(wire.Registration("n", {"a": 1}, True, 0)),)),
            wire.Heartbeat(1, 1),
            wire.Sync(1, 0),
            wire.Unregister(1, ("a",)),
            wire.Notices(1, b"\x00", (b"x",)),
            wire.Welcome(1, b"12345678", 1, 1, True),
        )
    ]

    def nonsense() -> list[bytes]:
        if chance.random() < 0.3:
            return [chance.randbytes(chance.randrange(200))]
        if chance.random() < 0.1:
            return [chance.randbytes(9)] * chance.randrange(2, 40)
        frame = bytearray(chance.choice(valid))
        for _ in range(chance.randrange(1, 6)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        return [bytes(frame[: chance.randrange(len(frame) + 1)] if chance.random() < 0.2 else frame)]

    with RegistryServer(endpoint) as server, RegistryClient(endpoint, "here") as here:
        entry = here.register("x", unique=True)
        context = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.setsockopt(zmq.SNDTIMEO, int(PATIENCE * 1_000))
        stranger.setsockopt(zmq.SNDHWM, 0)
        stranger.connect(endpoint)
        before = server.statistics()
        for _ in range(10_000):
            stranger.send_multipart(nonsense())
        until(lambda: server.statistics().malformed > before.malformed + 5_000)
        stranger.send(wire.encode(wire.Ping(77)))
        heard = [stranger.recv()]
        while not isinstance(pong := wire.decode(heard[-1]), wire.Pong) or pong.request != 77:
            heard.append(stranger.recv())
        # One frame above the limit makes the server hang up; it goes on serving.
        stranger.send(b"x" * (wire.MAX_FRAME_BYTES + 1))
        stranger.close(0)
        context.term()
        until(lambda: here.is_current(entry))
        assert here.register("y").name == "y"
        assert here.ping(PATIENCE) < PATIENCE
        statistics = server.statistics()
        assert statistics.failed == 0
        assert statistics.received - before.received > 8_000
        print(f"{statistics}")


def test_only_the_key_of_the_mesh_gets_in_over_tcp(directory: Path) -> None:
    curve = Curve.generate()
    curve.save(directory / "mesh.key")
    loaded = Curve.load(directory / "mesh.key")
    with RegistryServer("tcp://127.0.0.1:*", curve=curve) as server:
        assert server.endpoint.startswith("tcp://127.0.0.1:") and not server.endpoint.endswith("*")
        with RegistryClient(server.endpoint, "here", loaded) as here:
            assert here.register("x", unique=True).epoch > 0
            with pytest.raises(ConfigurationError):
                RegistryClient(server.endpoint, "there")
            stranger = RegistryClient(server.endpoint, "there", Curve.generate())
            with pytest.raises(RegistryTimeout):
                stranger.start(0.4)
            other = Curve.generate()
            assert answered(server.endpoint, None) is False
            assert answered(server.endpoint, (curve.public, other)) is False
            assert answered(server.endpoint, (curve.public, curve)) is True
            assert server.statistics().clients == 1
            assert here.ping(PATIENCE) < PATIENCE
    with pytest.raises(ConfigurationError, match="CURVE"):
        RegistryServer("tcp://127.0.0.1:*")


def answered(endpoint: str, keys: tuple[bytes, Curve] | None) -> bool:
    """Whether the server answers a ping on a connection with (server's public key, own pair)."""
    context = zmq.Context()
    with context.socket(zmq.DEALER) as raw:
        raw.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            raw.setsockopt(zmq.CURVE_SERVERKEY, keys[0])
            raw.setsockopt(zmq.CURVE_PUBLICKEY, keys[1].public)
            raw.setsockopt(zmq.CURVE_SECRETKEY, keys[1].secret)
        raw.connect(endpoint)
        raw.send(wire.encode(wire.Ping(1)))
        honest = keys is not None and keys[0] == keys[1].public
        heard = bool(raw.poll(PATIENCE * 1_000 if honest else 400))
    context.term()
    return heard


def test_an_endpoint_and_a_state_are_for_one_server(endpoint: str, directory: Path) -> None:
    server = RegistryServer(endpoint, directory / "boot")
    server.start()
    with pytest.raises(EndpointInUse):
        RegistryServer(endpoint).start()
    with pytest.raises(EndpointInUse):
        RegistryServer(f"ipc://{directory}/other.sock", directory / "boot").start()
    with RegistryClient(endpoint, "here") as here:
        assert here.ping(PATIENCE) < PATIENCE
        server.stop()
        server.stop()
        server.start()
        until(lambda: here.connected and server.statistics().clients == 1)
        assert server.statistics().boot == 2
    server.stop()
    assert not Path(endpoint.removeprefix("ipc://")).exists()
    with RegistryServer(f"ipc://{directory}/other.sock", directory / "boot") as other:
        assert other.statistics().boot == 3


def test_nobody_there_is_a_clear_error(endpoint: str) -> None:
    client = RegistryClient(endpoint, "here")
    with pytest.raises(RegistryTimeout, match="is it running"):
        client.start(0.2)
    client.close()


def test_a_holder_id_is_free_again_when_its_process_is_dead(endpoint: str, spawn: Callable[..., Child]) -> None:
    with RegistryServer(endpoint, lease=0.8, heartbeat=0.15):
        child = spawn("client", endpoint, "same")
        child.ask("register", "x", True)
        with pytest.raises(HolderInUse):
            RegistryClient(endpoint, "same").start(0.4)
        child.kill()
        with RegistryClient(endpoint, "same") as again:
            assert again.register("x", unique=True).holder == "same"


def run_server(endpoint: str, state: str) -> None:
    server = RegistryServer(endpoint, Path(state))
    server.start()
    answer("ready")
    for line in sys.stdin:
        assert json.loads(line) == ["count"]
        answer(server.statistics().entries)
    server.stop()


def run_client(endpoint: str, holder: str) -> None:
    client = RegistryClient(endpoint, holder)
    client.start(PATIENCE)
    losses: dict[str, queue.Queue[Loss]] = {}
    client.on_lost(lambda lost: [losses.setdefault(loss.entry.name, queue.Queue()).put(loss) for loss in lost])
    answer("ready")
    for line in sys.stdin:
        match json.loads(line):
            case ["register", name, unique]:
                losses.setdefault(name, queue.Queue())
                try:
                    answer(client.register(name, unique=unique, timeout=PATIENCE).epoch)
                except AlreadyRegistered as error:
                    answer(error.entry.holder)
            case ["current", name, epoch]:
                answer(client.is_current(Entry(name, holder, {}, True, epoch)))
            case ["lost", name]:
                loss = losses[name].get(timeout=PATIENCE)
                answer([loss.entry.epoch, loss.taken_by.holder if loss.taken_by is not None else None])
            case ["count"]:
                answer(client.count())
            case ["leave"]:
                client.close()
                answer("left")
    client.close()


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"server": run_server, "client": run_client}[sys.argv[1]](*sys.argv[2:])
