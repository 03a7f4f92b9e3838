"""Whether others could listen, or put a socket of theirs, where ours is: the one rule for directories and sockets, of
registries and of nodes.

Nobody but us may put a socket into the directory, and nobody but us and root may connect to the socket: it is of mode
0600, and between its binding and that a connection of another user is refused by the user's id, as the kernel says it.
The umask, which would make it so at once, is the whole process's, whose threads make files of their own meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import zmq

from bitactor.errors import ConfigurationError

_ROOT = 0


def private_directory(directory: Path) -> None:
    """Make a directory for our sockets, of mode 0700, or check the one that is there.

    Raises:
        ConfigurationError: it cannot be made, or `check_directory` refuses it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_directory(directory)
    except OSError as error:
        raise ConfigurationError(f"cannot make the directory {directory} for a socket: {error.strerror}") from error


def private_connections(listener: zmq.Socket[bytes]) -> None:
    """Have a socket that is to be bound to a file take connections of our user and root only, where the system tells
    whose they are."""
    for uid in {os.geteuid(), _ROOT}:
        try:
            listener.set(zmq.IPC_FILTER_UID, uid - 2**32 if uid >= 2**31 else uid)  # an int of C
        except zmq.ZMQError as error:
            if error.errno != errno.EINVAL:  # this system does not tell
                raise


def private_socket(path: Path) -> None:
    """Let nobody but us connect to a socket that we have just bound; see `private_connections` for the time between.

    Raises:
        ConfigurationError: it is gone, or another's.
    """
    try:
        path.chmod(0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot make the socket {path} private: {error.strerror}") from error


def check_directory(directory: Path) -> None:
    """Refuse a directory in which other users may exchange a socket.

    One with the sticky bit (`/tmp`) is taken: there nobody replaces what is ours, and whose a socket is
    `check_socket` looks.

    Raises:
        ConfigurationError: with the cure.
        OSError: it cannot be looked at.
    """
    status = directory.stat()
    mode = status.st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise ConfigurationError(
            f"{directory} can be written by others (mode {stat.S_IMODE(mode):o}), who could put a socket of theirs "
            f"there; use a directory of your own, and chmod 700 {directory}"
        )
    if not _trusted(status):
        raise ConfigurationError(
            f"{directory} belongs to another user (uid {status.st_uid}), who could put another socket there; use a "
            "directory of your own, of mode 700"
        )


def check_socket(path: Path) -> None:
    """Refuse to connect to a socket that is another user's, or that others could have put there; none is well.

    Raises:
        ConfigurationError: with the cure.
    """
    try:
        check_directory(path.parent)
        status = path.lstat()
    except OSError:
        return  # there is nobody to be connected to
    if not _trusted(status):
        raise ConfigurationError(
            f"{path} belongs to another user (uid {status.st_uid}), who would hear all that is said there; name the "
            "socket of a server of your own"
        )


def _trusted(status: os.stat_result) -> bool:
    """Whether it is ours or root's; root, who looks after the servers of users, trusts each."""
    return os.geteuid() == _ROOT or status.st_uid in (os.geteuid(), _ROOT)
