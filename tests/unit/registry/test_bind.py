"""Keys, endpoints and the boot epoch: what is refused, and what a dead server leaves behind."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from bitactor.errors import ConfigurationError
from registry import Curve, EndpointInUse, Gatekeeper, RegistryServer
from registry.entry import Entry
from registry.protocol.entry_cache import EntryCache
from registry.support.bind import Binding, BootEpoch, check_endpoint


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ba-"))
    yield path
    shutil.rmtree(path)


def test_keys_are_saved_for_their_owner_only(directory: Path) -> None:
    curve = Curve.generate()
    file = directory / "mesh.key"
    curve.save(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert Curve.load(file) == curve
    assert curve.secret.decode() not in repr(curve) + str(curve) + f"{curve}"
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Curve.load(file)


@pytest.mark.parametrize("content", [b"", b"one", b"x" * 40 + b"\n" + b"y" * 40, b"\xff" * 40 + b"\n" + b"\xff" * 40])
def test_what_is_no_key_pair_is_refused(directory: Path, content: bytes) -> None:
    file = directory / "mesh.key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="no key pair"):
        Curve.load(file)
    with pytest.raises(ConfigurationError, match=r"Curve\.generate"):
        Curve.load(directory / "nothing")


def test_a_gatekeeper_is_alone_in_its_context_and_stops_twice() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    curve = Curve.generate()
    keeper = Gatekeeper(context, curve)
    keeper.start()
    keeper.start()
    with pytest.raises(ConfigurationError):
        Gatekeeper(context, curve).start()
    keeper.stop()
    keeper.stop()
    again = Gatekeeper(context, curve)
    again.start()
    again.stop()
    context.term()


@pytest.mark.parametrize(
    "endpoint",
    ["", "inproc://x", "ipc://@abstract", "ipc://relative", "ipc:///" + "x" * 120, "tcp://127.0.0.1:1", "ipc://*"],
)
def test_endpoints_that_are_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError):
        check_endpoint(endpoint, None)
    with pytest.raises(ConfigurationError):
        RegistryServer(endpoint)


def test_times_that_make_no_sense_are_refused(directory: Path) -> None:
    for times in ({"lease": 0.3, "heartbeat": 0.3}, {"heartbeat": 0.0}, {"lease": -1.0}):
        with pytest.raises(ConfigurationError):
            RegistryServer(f"ipc://{directory}/r", **times)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(directory: Path) -> None:
    path = directory / "r.sock"
    with socket.socket(socket.AF_UNIX) as alien:
        alien.bind(str(path))
        alien.listen()
        with pytest.raises(EndpointInUse):
            RegistryServer(f"ipc://{path}").start()
    assert path.exists()
    with RegistryServer(f"ipc://{path}"):
        assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="no socket"):
        RegistryServer(f"ipc://{path}").start()
    assert path.read_text() == "precious"


def test_a_directory_that_others_can_write_is_refused(directory: Path) -> None:
    directory.chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"):
        RegistryServer(f"ipc://{directory}/r.sock").start()
    directory.chmod(0o700)


def test_a_tcp_port_is_for_one_server() -> None:
    curve = Curve.generate()
    with RegistryServer("tcp://127.0.0.1:*", curve=curve) as server, pytest.raises(EndpointInUse):
        RegistryServer(server.endpoint, curve=curve).start()


def test_a_binding_is_released_for_the_next(directory: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for _ in range(3):
        with context.socket(zmq.ROUTER) as listener:
            binding = Binding(listener, f"ipc://{directory}/deep/er/r.sock")
            with context.socket(zmq.ROUTER) as other, pytest.raises(EndpointInUse):
                Binding(other, f"ipc://{directory}/deep/er/r.sock")
        binding.release()
        binding.release()
    context.term()


def test_the_boot_epoch_rises_and_is_never_guessed(directory: Path) -> None:
    path = directory / "state" / "boot"
    for expected in (1, 2, 3):
        boot = BootEpoch(path)
        assert boot.number == expected
        with pytest.raises(EndpointInUse):
            BootEpoch(path)
        boot.release()
        boot.release()
    for content in (b"", b"three", b"-1", b"99999999999999"):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="no boot epoch"):
            BootEpoch(path)
    path.write_bytes(b"7\n")
    boot = BootEpoch(path)
    assert boot.number == 8
    boot.release()


def test_the_cache_keeps_what_is_unconfirmed_until_its_grace_ends() -> None:
    cache = EntryCache()
    kept, dropped = Entry("kept", "a", {}, True, 1), Entry("dropped", "a", {}, False, 0)
    assert [notice.kind for entry in (kept, dropped) for notice in cache.put(entry)] == ["appeared", "appeared"]
    cache.begin_sync()
    assert cache.end_sync(grace_until_ns=100) == []
    assert cache.put(kept) == []
    cache.begin_sync()
    cache.put(kept)
    assert cache.end_sync(None) == []
    assert cache.end_grace(99, 50) == []
    assert cache.end_grace(100, 50) == [], "kept was confirmed meanwhile, so others may be on their way still"
    assert cache.end_grace(149, 50) == []
    assert [(notice.kind, notice.entry) for notice in cache.end_grace(150, 50)] == [("disappeared", dropped)]
    assert cache.end_grace(200, 50) == [] and cache.count() == 1 and cache.keys("a") == ("kept",)


def test_the_cache_never_shows_two_holders_of_a_unique_name() -> None:
    cache = EntryCache()
    cache.put(Entry("x", "a", {}, True, 1))
    told = cache.put(Entry("x", "b", {}, True, 2), 9)
    assert [(notice.kind, notice.entry.holder, notice.revision) for notice in told] == [
        ("disappeared", "a", 9),
        ("appeared", "b", 9),
    ]
    assert cache.count() == 1 and cache.keys("a") == () and cache.lookup("x")[0].holder == "b"
    assert cache.remove("x", "a") == []
