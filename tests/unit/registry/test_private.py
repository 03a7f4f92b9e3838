"""A client connects to no socket that others may have put there, and a server binds none in such a place."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from bitactor.errors import ConfigurationError
from registry import RegistryClient, RegistryServer
from registry.support.private import check_directory, check_socket

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
