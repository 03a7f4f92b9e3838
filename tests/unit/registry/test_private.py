"""A client connects to no socket that others may have put there, and a server binds none in such a place."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from bitactor.errors import ConfigurationError
from mesh.network.transports.zmq import ZmqTransport
from registry import RegistryClient, RegistryServer
from registry.support.bind import Binding
from registry.support.private import check_directory, check_socket, private_connections

NOBODY = 65_534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and become another user")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "r"
    directory.mkdir(mode=0o700)
    return directory


def test_a_directory_that_others_may_write(place: Path) -> None:
    place.chmod(0o777)
    endpoint = f"ipc://{place}/registry"
    with pytest.raises(ConfigurationError, match=r"can be written by others.*chmod 700"):
        RegistryServer(endpoint).start()
    client = RegistryClient(endpoint, "one")
    with pytest.raises(ConfigurationError, match=r"can be written by others.*chmod 700"):
        client.connect()
    client.close()


def test_tmp_and_a_link_to_a_private_one_are_taken(place: Path) -> None:
    link = place.with_name("link")
    link.symlink_to(place)
    check_directory(link)
    check_socket(link / "none")
    place.chmod(0o777 | stat.S_ISVTX)
    check_directory(place)
    check_socket(place.with_name("none") / "none")


@as_root
def test_a_socket_or_directory_of_another_user() -> None:
    """For anybody but root, who trusts each; what is root's is trusted."""
    check_directory(Path("/"))
    here = Path(f"/tmp/bitactor-private-{os.getpid()}")
    here.mkdir()
    path = here / "s"
    try:
        here.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        _check_as_nobody(path, NOBODY, NOBODY, "")
        _check_as_nobody(path, 0, 0, "")
        _check_as_nobody(path, 0, 1234, "s belongs to another user")
        _check_as_nobody(path, 1234, NOBODY, "belongs to another user .uid 1234.*directory of your own")
        os.chown(path, 1234, -1)
        check_socket(path)
    finally:
        path.unlink(missing_ok=True)
        here.rmdir()


def _check_as_nobody(path: Path, directory: int, owner: int, says: str) -> None:
    os.chown(path.parent, directory, -1)
    os.chown(path, owner, -1)
    os.seteuid(NOBODY)
    try:
        if says:
            with pytest.raises(ConfigurationError, match=says):
                check_socket(path)
        else:
            check_socket(path)
    finally:
        os.seteuid(0)


def binding(path: Path) -> Iterator[None]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listener = context.socket(zmq.ROUTER)
    bound = Binding(listener, f"ipc://{path}")
    yield
    listener.close(linger=0)
    bound.release()
    context.term()


def transport(path: Path) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    node = ZmqTransport(f"ipc://{path}", loop=loop)
    node.open(lambda messages: None)
    yield
    node.close()
    loop.close()


@as_root
@pytest.mark.parametrize("bind", [binding, transport])
def test_a_connection_of_another_user_is_refused_before_the_socket_has_its_mode(
    bind: Callable[[Path], Iterator[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path) -> None:
        path.chmod(0o666)

    monkeypatch.setattr("registry.support.bind.private_socket", late)
    monkeypatch.setattr("mesh.network.transports.zmq.private_socket", late)
    with tempfile.TemporaryDirectory(prefix="ba-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        path = Path(made) / "s"
        bound = bind(path)
        next(bound)
        assert [heard(path, user) for user in (NOBODY, 0)] == [b"", b"\xff"], "the second is greeted"
        assert next(bound, None) is None


def heard(path: Path, user: int) -> bytes:
    """The first byte that a user who connects is told; none if the connection is closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10.0)
        os.seteuid(user)
        try:
            connection.connect(str(path))
        finally:
            os.seteuid(0)
        try:
            return connection.recv(1)
        except ConnectionResetError:
            return b""


def test_a_system_that_does_not_tell_whose_a_connection_is_leaves_it_to_the_mode() -> None:
    class Listener:
        def set(self, option: int, value: int) -> None:
            raise zmq.ZMQError(errno.EINVAL)

    private_connections(Listener())  # type: ignore[arg-type]
