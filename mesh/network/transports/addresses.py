"""Addresses that a node may bind and reach, checked before ZeroMQ sees them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from bitactor.errors import ConfigurationError, Unroutable
from registry.support.bind import is_listening
from registry.support.private import private_directory

MAX_IPC_PATH: Final = 107
"""Bytes of a Unix socket's path on Linux, without the closing zero."""
_WILDCARD_HOSTS: Final = ("*", "0.0.0.0", "[::]")


def check_bind(url: str, *, secured: bool, advertise: str) -> None:
    """Refuse an address that cannot be bound, or not safely; touches nothing.

    Raises:
        ConfigurationError
    """
    scheme, _, rest = url.partition("://")
    if scheme == "ipc":
        _check_ipc(url, rest)
        if advertise:
            raise ConfigurationError(f"advertise={advertise!r} is for tcp:// only; {url} is reached where it is bound")
    elif scheme == "tcp":
        _check_tcp(url, rest, secured=secured, advertise=advertise)
    else:
        raise ConfigurationError(f"cannot bind {url!r}: an address is ipc:///directory/name or tcp://host:port")


def _check_ipc(url: str, path: str) -> None:
    if not path or path == "*" or path.endswith("/") or "\0" in path:
        raise ConfigurationError(f"cannot bind {url!r}: give a file name, as in ipc:///run/user/1000/bitactor/node-1")
    if path.startswith("@"):
        raise ConfigurationError(
            f"cannot bind {url!r}: every user of this machine can reach an abstract socket; give a file name"
        )
    size = len(os.fsencode(Path(path).absolute()))
    if size > MAX_IPC_PATH:
        raise ConfigurationError(
            f"cannot bind {url!r}: a path of {size} bytes, the system allows {MAX_IPC_PATH}; use a shorter directory"
        )


def _check_tcp(url: str, rest: str, *, secured: bool, advertise: str) -> None:
    if not secured:
        raise ConfigurationError(
            f"cannot bind {url!r} without CURVE keys: anybody could send; give curve=, or use ipc://"
        )
    host, _, port = rest.rpartition(":")
    if not host or not (port == "*" or _is_port(port, lowest=0)):
        raise ConfigurationError(
            f"cannot bind {url!r}: tcp://host:port, where port is 1 to 65535, or * for any free one"
        )
    if host in _WILDCARD_HOSTS and not advertise:
        raise ConfigurationError(
            f"{url!r} binds every interface, so others cannot tell where to reach it: give the address by "
            f"which they reach this machine, such as endpoint='tcp://10.0.0.5:{port}'"
        )
    if advertise.startswith("tcp://") and not is_peer_address(advertise):
        raise ConfigurationError(
            f"advertise={advertise!r}: give 'tcp://host:port', or a host alone to use the bound port"
        )
    if "://" in advertise and not advertise.startswith("tcp://"):
        raise ConfigurationError(f"advertise={advertise!r}: only tcp:// can be advertised")


def prepare_ipc(url: str) -> str:
    """Make the directory (0700) if it is not there, remove a dead socket file, and return the absolute address.

    Raises:
        ConfigurationError: others may write the directory, or the file is in use, is no socket, or cannot be removed.
    """
    path = Path(url.removeprefix("ipc://")).absolute()
    private_directory(path.parent)
    try:
        _remove_stale(path)
    except OSError as error:
        raise ConfigurationError(f"cannot remove {path}, which a dead node left: {error.strerror}") from error
    return f"ipc://{path}"


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a dead node; ZeroMQ would remove whatever has this name, a living node's socket or a
    file of the user's included."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} exists and is no socket; use another name")
    if is_listening(path):
        raise ConfigurationError(f"{path} is in use by another node; give each node a name of its own")
    path.unlink(missing_ok=True)


def remove_ipc(url: str) -> None:
    """Remove the socket file of an `ipc://` address, which ZeroMQ leaves behind; while it is bound, so that it is
    ours."""
    if url.startswith("ipc://"):
        Path(url.removeprefix("ipc://")).unlink(missing_ok=True)


def reachable_endpoint(bound: str, advertise: str) -> str:
    """The endpoint that others are told: the bound address, or what is advertised, completed with the bound port."""
    if not advertise or advertise.startswith("tcp://"):
        return advertise or bound
    return f"tcp://{advertise}:{bound.rpartition(':')[2]}"


def check_peer(endpoint: str, *, secured: bool) -> None:
    """Refuse an endpoint that cannot, or must not, be connected to; it may come from a stranger's reply address.

    Raises:
        Unroutable
    """
    if not is_peer_address(endpoint):
        raise Unroutable(f"{endpoint!r} is no endpoint: ipc:///path or tcp://host:port")
    if endpoint.startswith("tcp://") and not secured:
        raise Unroutable(f"{endpoint} needs CURVE keys and this node has none: give curve=")


def is_peer_address(endpoint: str) -> bool:
    """Whether `endpoint` is an address that could be connected to."""
    scheme, _, rest = endpoint.partition("://")
    if not rest.isprintable():
        return False
    if scheme == "ipc":
        return rest.startswith("/") and len(rest.encode()) <= MAX_IPC_PATH
    host, _, port = rest.rpartition(":")
    plain = not any(character in host for character in " ;/@*")
    return scheme == "tcp" and bool(host) and plain and _is_port(port, lowest=1)


def _is_port(text: str, lowest: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and lowest <= int(text) <= 65_535
